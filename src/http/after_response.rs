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
        body::{AsResult, Body, Packed, Run},
        boxed::{GiveBack, box_large, box_large_closure, is_large},
        error::TrySpawnError,
        options::{JobFlags, JobKind},
        output::JobOutput,
        record::Record,
    },
    rules::step::Admit,
    run::core::Core,
    scheduler::{
        blocking::BlockingCall,
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
        box_large!(future: F => self.defer(future, |_| true, GiveBack::give_back))
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
        box_large_closure!(make: C => self.defer_made(make))
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
        box_large!(future: F => self.defer(future, ResponseOutcome::is_success, GiveBack::give_back))
    }

    /// Spawns a blocking closure that starts when the response ends.
    ///
    /// Like [`Jobs::after_response_blocking`](crate::Jobs::after_response_blocking).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn after_response_blocking<C, R>(
        self,
        closure: C,
    ) -> Result<Job<R::Value>, TrySpawnError<C>>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        box_large_closure!(closure: C => self.defer_blocking(closure, |_| true))
    }

    /// Spawns a blocking closure that gets the outcome of the response.
    ///
    /// Like [`Jobs::after_response_blocking_with`](crate::Jobs::after_response_blocking_with).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn after_response_blocking_with<C, R>(
        self,
        closure: C,
    ) -> Result<Job<R::Value>, TrySpawnError<C>>
    where
        C: FnOnce(ResponseOutcome) -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        box_large_closure!(closure: C => self.defer_blocking_with(closure))
    }

    /// Spawns a blocking closure that starts only after a successful response.
    ///
    /// Like [`Jobs::after_success_blocking`](crate::Jobs::after_success_blocking).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn after_success_blocking<C, R>(self, closure: C) -> Result<Job<R::Value>, TrySpawnError<C>>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        box_large_closure!(closure: C => self.defer_blocking(closure, ResponseOutcome::is_success))
    }

    /// Defers a job whose future `make` returns. A large future is boxed as it is made.
    #[track_caller]
    pub(super) fn defer_made<C, M, F>(self, make: M) -> Result<Job<Value<F>>, TrySpawnError<C>>
    where
        M: FnOnce(ResponseOutcome) -> F + GiveBack<C> + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let request = self.scope.0.clone();
        if const { is_large::<F>() } {
            let future = MakeAfterResponse::new(make, Box::pin, request);
            return self.defer(future, |_| true, MakeAfterResponse::give_back);
        }
        let future = MakeAfterResponse::new(make, |future| future, request);
        self.defer(future, |_| true, MakeAfterResponse::give_back)
    }

    /// Defers a job that starts if `starts_after` accepts the outcome.
    #[track_caller]
    pub(super) fn defer<F, G>(
        self,
        future: G,
        starts_after: StartsAfter,
        give_back: fn(G) -> Box<F>,
    ) -> Result<Job<Value<G>>, TrySpawnError<F>>
    where
        G: Future<Output: JobOutput> + Send + 'static,
    {
        let (core, request) = (self.core, self.scope.0.clone());
        let packed = self
            .deferred(starts_after)
            .pack(JobKind::Plain, |record| Run::<_, AsResult>::new(future, record));
        admit_deferred(core, &request, packed, starts_after)
            .map_err(|error| error.map(|run| give_back(run.into_future())))
    }

    /// As [`defer`](Self::defer), for a closure that runs on a blocking thread.
    #[track_caller]
    pub(super) fn defer_blocking<C, M, R>(
        self,
        closure: M,
        starts_after: StartsAfter,
    ) -> Result<Job<R::Value>, TrySpawnError<C>>
    where
        M: FnOnce() -> R + GiveBack<C> + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        let call = |closure: M, ()| closure();
        self.defer_call(BlockingCall { closure, input: (), call }, starts_after)
    }

    /// As [`defer_blocking`](Self::defer_blocking), for a closure that gets the outcome.
    #[track_caller]
    pub(super) fn defer_blocking_with<C, M, R>(
        self,
        closure: M,
    ) -> Result<Job<R::Value>, TrySpawnError<C>>
    where
        M: FnOnce(ResponseOutcome) -> R + GiveBack<C> + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        let input = self.scope.0.clone();
        let call = |closure: M, request: Arc<RequestState>| closure(request.outcome_now());
        self.defer_call(BlockingCall { closure, input, call }, |_| true)
    }

    #[track_caller]
    fn defer_call<C, M, I, R>(
        self,
        call: BlockingCall<M, I, R>,
        starts_after: StartsAfter,
    ) -> Result<Job<R::Value>, TrySpawnError<C>>
    where
        M: GiveBack<C> + Send + 'static,
        I: Send + 'static,
        R: JobOutput + Send + 'static,
    {
        let (core, request) = (self.core, self.scope.0.clone());
        let packed = self.deferred(starts_after).pack_blocking(call);
        admit_deferred(core, &request, packed, starts_after)
            .map_err(|error| error.map(|run| run.into_future().into_closure().give_back()))
    }

    fn deferred(self, starts_after: StartsAfter) -> Self {
        let mut flags = JobFlags::default();
        if self.scope.0.is_multiplexed() {
            flags = flags.with(JobFlags::YIELDS_FIRST);
        }
        if !starts_after(ResponseOutcome::Unfinished(None)) {
            flags = flags.with(JobFlags::SKIP_IF_GIVEN_UP);
        }
        self.flags(flags)
    }
}

/// Whether a deferred job starts after this outcome, or is skipped.
type StartsAfter = fn(ResponseOutcome) -> bool;

/// Admits the job as deferred. When the response ends, the job becomes pending if `starts_after`
/// accepts the outcome, and is skipped otherwise.
fn admit_deferred<T, B: Body + 'static>(
    core: &Arc<Core>,
    request: &RequestState,
    (record, body): (Arc<Record>, Packed<B>),
    starts_after: StartsAfter,
) -> Result<Job<T>, TrySpawnError<B>> {
    admit_now(core, &record, body, Some(Admit::Deferred))?;
    request.defer(&record, starts_after);
    Ok(Job::new(record, core.clone()))
}

pin_project! {
    /// A job's future `G`, made once the response has ended: `make` returns an `F`, and `wrap` makes `G`
    /// of it.
    #[project = MakeProjection]
    enum MakeAfterResponse<M, F, G> {
        Make { make: Option<M>, wrap: fn(F) -> G, request: Arc<RequestState> },
        Made { #[pin] future: G },
    }
}

impl<M, F, G> MakeAfterResponse<M, F, G> {
    fn new(make: M, wrap: fn(F) -> G, request: Arc<RequestState>) -> Self {
        Self::Make { make: Some(make), wrap, request }
    }
}

impl<M, F, G> MakeAfterResponse<M, F, G> {
    fn give_back<C>(self) -> Box<C>
    where
        M: GiveBack<C>,
    {
        match self {
            Self::Make { make: Some(make), .. } => make.give_back(),
            _ => unreachable!("a refused job has not run"),
        }
    }
}

impl<M, F, G> Future for MakeAfterResponse<M, F, G>
where
    M: FnOnce(ResponseOutcome) -> F,
    G: Future,
{
    type Output = G::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<G::Output> {
        loop {
            let future = match self.as_mut().project() {
                MakeProjection::Made { future } => return future.poll(cx),
                MakeProjection::Make { make, wrap, request } => {
                    let make = make.take().expect("`make` is called once");
                    wrap(make(request.outcome_now()))
                }
            };
            self.set(Self::Made { future });
        }
    }
}
