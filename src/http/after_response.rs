//! Jobs that start when the response ends.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use crate::{
    http::{outcome::ResponseOutcome, request::RequestState},
    job::{
        body::{AsResult, Run},
        error::TrySpawnError,
        options::{JobFlags, JobKind},
        output::JobOutput,
    },
    rules::step::Admit,
    scheduler::{
        handle::Job,
        spawn::{JobBuilder, Value, admit_now},
    },
};

/// Lets a [`JobBuilder`] defer its job until the response ends.
///
/// [`Jobs::job`](crate::Jobs::job) makes builders of this scope.
#[derive(Clone)]
pub struct RequestScope(pub(super) Arc<RequestState>);

impl std::fmt::Debug for RequestScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestScope").finish_non_exhaustive()
    }
}

impl JobBuilder<'_, RequestScope> {
    /// Spawns a job that starts when the response ends.
    ///
    /// Like [`Jobs::after_response`](crate::Jobs::after_response).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn after_response<F>(self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.defer(future, |_| true)
    }

    /// Spawns a job that starts with the outcome of the response.
    ///
    /// Like [`Jobs::after_response_with`](crate::Jobs::after_response_with).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn after_response_with<C, F>(self, make: C) -> Result<Job<Value<F>>, TrySpawnError<C>>
    where
        C: FnOnce(ResponseOutcome) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let future = MakeAfterResponse::Make { make: Some(make), request: self.scope.0.clone() };
        self.defer(future, |_| true).map_err(|error| error.map(MakeAfterResponse::into_make))
    }

    /// Spawns a job that starts only after a successful response.
    ///
    /// Like [`Jobs::after_success`](crate::Jobs::after_success).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn after_success<F>(self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.defer(future, ResponseOutcome::is_success)
    }

    /// Admits the job as deferred. When the response ends, the job becomes pending if `starts_after`
    /// accepts the outcome, and is skipped otherwise.
    #[track_caller]
    fn defer<F>(
        self,
        future: F,
        starts_after: fn(ResponseOutcome) -> bool,
    ) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let (core, request) = (self.core, self.scope.0.clone());
        let mut flags = JobFlags::default();
        if request.is_multiplexed() {
            flags = flags.with(JobFlags::YIELDS_FIRST);
        }
        if !starts_after(ResponseOutcome::Unfinished(None)) {
            flags = flags.with(JobFlags::SKIP_IF_GIVEN_UP);
        }
        let (record, run) = self
            .flags(flags)
            .pack(JobKind::Plain, |record| Run::<_, AsResult>::new(future, record));
        admit_now(core, &record, run, Admit::Deferred)
            .map_err(|error| error.map(Run::into_future))?;
        request.defer(&record, starts_after);
        Ok(Job::new(record, core.clone()))
    }
}

pin_project! {
    /// A job's future that `make` returns once the response has ended, from the response's outcome.
    #[project = MakeProjection]
    enum MakeAfterResponse<C, F> {
        Make { make: Option<C>, request: Arc<RequestState> },
        Made { #[pin] future: F },
    }
}

impl<C, F> MakeAfterResponse<C, F> {
    fn into_make(self) -> C {
        match self {
            Self::Make { make: Some(make), .. } => make,
            _ => unreachable!("a refused job is never polled"),
        }
    }
}

impl<C, F> Future for MakeAfterResponse<C, F>
where
    C: FnOnce(ResponseOutcome) -> F,
    F: Future,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            let future = match self.as_mut().project() {
                MakeProjection::Made { future } => return future.poll(cx),
                MakeProjection::Make { make, request } => {
                    make.take().expect("`make` is called once")(request.outcome_now())
                }
            };
            self.set(Self::Made { future });
        }
    }
}
