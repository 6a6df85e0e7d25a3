use std::{borrow::Cow, fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    http::{after_response::RequestScope, outcome::ResponseOutcome, request::RequestState},
    job::{
        error::{JobError, SpawnError, TrySpawnError},
        group::GroupOwner,
        info::JobInfo,
        options::Options,
        output::JobOutput,
        record::Record,
    },
    rules::state::JobState,
    run::deadlines,
    scheduler::{
        Scheduler,
        handle::{Job, JobContext},
        spawn::{JobBuilder, SpawnFuture, Value},
    },
    util::clock::Moment,
};

/// One request's view of the [`Scheduler`]: through it a handler leaves work behind.
///
/// [`JobsLayer`](crate::JobsLayer) puts it into the extensions of every request it sees. In axum
/// it is an extractor; anywhere else, `request.extensions().get::<Jobs>()`.
///
/// Its jobs are jobs of the scheduler like any others, and outlive the request. They carry its
/// label, as `POST /signup`, in logs, listings and reports, and their span follows from the span
/// in which they are spawned (see [`SpanLink`](crate::SpanLink)).
///
/// `M` tells two schedulers on one route apart: see [`JobsLayer`](crate::JobsLayer).
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::http::StatusCode;
/// use tower_jobs::{Jobs, SpawnError};
///
/// # async fn send_welcome() {}
/// async fn signup(jobs: Jobs) -> Result<StatusCode, SpawnError> {
///     jobs.spawn(send_welcome()).await?;
///     Ok(StatusCode::ACCEPTED)
/// }
/// # let _: axum::routing::MethodRouter = axum::routing::post(signup);
/// # }
/// ```
///
/// Where the scheduler is missing, the extractor rejects with status 500 and a text that says what
/// to do; `Option<Jobs>` is `None` there.
pub struct Jobs<M = ()> {
    scheduler: Scheduler,
    request: Arc<RequestState>,
    marker: PhantomData<fn() -> M>,
}

impl<M> Jobs<M> {
    pub(crate) fn new(scheduler: Scheduler, request: Arc<RequestState>) -> Self {
        Self { scheduler, request, marker: PhantomData }
    }

    /// The scheduler behind it. Jobs spawned there are not this request's.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Resolves when the server is about to shut down: [`Scheduler::shutting_down`]. A stream that
    /// could go on for ever ends itself then, so that it does not hold up the connections' end.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn shutting_down(&self) {
        self.scheduler.shutting_down().await;
    }

    /// What this request's jobs are labelled with: method and path. The path is axum's matched
    /// path (`/users/{id}`) with the feature `matched-path`, else the request's own (of a layer inside
    /// a nested router, what that has left of it), unless
    /// [`JobsLayer::label`](crate::JobsLayer::label) says otherwise.
    pub fn label(&self) -> &str {
        self.request.label()
    }

    pub(crate) fn request(&self) -> &Arc<RequestState> {
        &self.request
    }

    fn builder(&self) -> JobBuilder<'_, RequestScope> {
        let group = Some(self.request.clone() as Arc<dyn GroupOwner>);
        let options = Options { group, ..Options::default() };
        JobBuilder::new(self.scheduler.core(), options, RequestScope(self.request.clone()))
    }

    /// Spawns a job, waiting for a place if there is none: like [`Scheduler::spawn`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn`]. With the feature `axum` a [`SpawnError`] is a response (503; 409
    /// for a duplicate, 500 without a runtime), so that a handler can return it with `?`.
    ///
    /// # Cancel safety
    ///
    /// Like [`Scheduler::spawn`]: a client that leaves while its handler waits for a place takes
    /// the job along. Spawned, the job stays, whatever becomes of the request.
    #[inline]
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> SpawnFuture<Value<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.builder().spawn(future)
    }

    /// Spawns a job if there is a place for it now: like [`Scheduler::try_spawn`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`].
    #[inline]
    #[track_caller]
    pub fn try_spawn<F>(&self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.builder().try_spawn(future)
    }

    /// Spawns a job, waiting at most `timeout` for a place: like [`Scheduler::spawn_within`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn_within`].
    ///
    /// # Panics
    ///
    /// Like [`Scheduler::spawn_within`].
    #[track_caller]
    pub fn spawn_within<F>(
        &self,
        timeout: Duration,
        future: F,
    ) -> impl Future<Output = Result<Job<Value<F>>, SpawnError>> + Send + 'static + use<F, M>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.builder().spawn_within(timeout, future)
    }

    /// Spawns a job that can see when it is told to end: like [`Scheduler::spawn_with`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn_with`].
    #[track_caller]
    pub fn spawn_with<C, F>(&self, make: C) -> SpawnFuture<Value<F>>
    where
        C: FnOnce(JobContext) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.builder().spawn_with(make)
    }

    /// Spawns a blocking closure: like [`Scheduler::spawn_blocking`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn_blocking`].
    #[track_caller]
    pub fn spawn_blocking<C, R>(&self, closure: C) -> SpawnFuture<R::Value>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        self.builder().spawn_blocking(closure)
    }

    /// Runs a future to its end even if the handler is dropped: like [`Scheduler::shield`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::shield`].
    ///
    /// # Panics
    ///
    /// If the future panics, so does this.
    #[track_caller]
    pub fn shield<F>(
        &self,
        future: F,
    ) -> impl Future<Output = Result<F::Output, JobError>> + Send + 'static + use<F, M>
    where
        F: Future<Output: JobOutput + Send + 'static> + Send + 'static,
    {
        self.builder().shield(future)
    }

    /// Begins a job with options: like [`Scheduler::job`].
    pub fn job(&self, name: impl Into<Cow<'static, str>>) -> JobBuilder<'_, RequestScope> {
        self.builder().name(name)
    }
}

/// Jobs that start when the response is over.
///
/// A job is *deferred* from the call on: room is kept for it already, in the queue or, where there
/// is none (`pending_limit` 0), among the running. So it can be refused now, and never later. It
/// joins the line when the response has been handed to the server in full, **or** can no longer be:
/// the client left, a timeout struck, the handler panicked or returned an error, the body was
/// dropped half-way. It starts exactly once, or is accounted for as never started if the scheduler
/// closes first.
///
/// "Handed to the server" is not "received by the client", nor even "written to the socket": no
/// server tells. But a job does not hold up what the socket takes: over HTTP/1 a server writes that
/// in the same step, before its thread can run the job; over later versions, where another task
/// writes, the job lets the tasks that are ready go first. (A server takes a frame of any size, and
/// while a job blocks the only thread of a runtime, the rest of a big one waits.)
///
/// Called when the response is already over, from a job for example, these start the job at once.
impl<M> Jobs<M> {
    /// Spawns a job that starts when the response is over, however it ended.
    ///
    /// Does not wait for a place: the places it could wait for may be held by deferred jobs whose
    /// responses wait for it.
    ///
    /// ```
    /// # #[cfg(feature = "axum")] {
    /// # use tower_jobs::{Jobs, SpawnError};
    /// # async fn count_download() {}
    /// async fn download(jobs: Jobs) -> Result<&'static str, SpawnError> {
    ///     jobs.after_response(count_download())?;
    ///     Ok("the file")
    /// }
    /// # let _: axum::routing::MethodRouter = axum::routing::get(download);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`].
    #[track_caller]
    pub fn after_response<F>(&self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.builder().after_response(future)
    }

    /// Spawns a job that starts when the response is over, and is told how it ended.
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`].
    #[track_caller]
    pub fn after_response_with<C, F>(&self, make: C) -> Result<Job<Value<F>>, TrySpawnError<C>>
    where
        C: FnOnce(ResponseOutcome) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.builder().after_response_with(make)
    }

    /// Spawns a job that starts only if the response
    /// [is a success](ResponseOutcome::is_success): handed over in full, with a status below 400.
    /// Otherwise it is dropped and counts as *skipped*, which is not a failure; its handle gives an
    /// error that [`is_skipped`](JobError::is_skipped).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`].
    #[track_caller]
    pub fn after_success<F>(&self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.builder().after_success(future)
    }

    /// How the response ended, if it has.
    pub fn response(&self) -> Option<ResponseOutcome> {
        self.request.outcome()
    }
}

/// This request's jobs, as a group: what was spawned through this `Jobs` and its clones.
///
/// The same `Jobs` is in the extensions of the response, so a test can wait for one request's jobs
/// and no others: `response.extensions().get::<Jobs>()`.
impl<M> Jobs<M> {
    /// How many jobs this request has: deferred, pending and active.
    pub fn len(&self) -> usize {
        self.request.group().len()
    }

    /// Whether this request has no jobs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// This request's jobs, oldest first. Looks through all jobs of the scheduler, piece by piece.
    pub fn jobs(&self) -> Vec<JobInfo> {
        let now = Moment::now();
        self.records().iter().map(|(record, state)| record.info(*state, now)).collect()
    }

    /// Resolves when this request has no jobs. Deferred ones count: awaited before the response is
    /// over, by its own handler above all, this waits for ever. So it does awaited by one of them.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn wait_idle(&self) {
        self.request.group().wait_until(|| self.request.group().len() == 0).await;
    }

    /// Ends this request's jobs, as [`Job::close`] ends one: those that have not started never do,
    /// those of `spawn_with` have the scheduler's `close_timeout` to end, the others are dropped at
    /// their next `await`. Gives the jobs that had not ended by then; they have been aborted (a blocking
    /// one that has started runs on).
    ///
    /// The scheduler stays open, for this request too.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// Once polled, the jobs have been told. Dropped after that, it does not see to it that they
    /// heed.
    pub async fn close(&self) -> Vec<JobInfo> {
        let core = self.scheduler.core();
        let records: Vec<Arc<Record>> =
            self.records().into_iter().map(|(record, _)| record).collect();
        // First of all, so that none starts in the place of one that has been told to end.
        let started: Vec<_> =
            records.iter().filter(|record| !core.remove_unstarted(record)).collect();
        started.into_iter().for_each(|record| core.close_started(record));
        let deadline = Instant::now() + self.scheduler.close_timeout();
        let all_ended =
            self.request.group().wait_until(|| records.iter().all(|record| record.is_finished()));
        if deadlines::timeout_at(Some(deadline), all_ended).await.is_ok() {
            return Vec::new();
        }
        let late: Vec<_> = records.into_iter().filter(|record| !record.is_finished()).collect();
        late.iter().for_each(|record| core.abort_job(record));
        late.iter().map(|record| record.info(core.state(record), Moment::now())).collect()
    }

    fn records(&self) -> Vec<(Arc<Record>, JobState)> {
        let mut records = Vec::new();
        self.scheduler.core().for_each_job(|(record, state)| {
            if record.is_in_group(self.request.group()) {
                records.push((record, state));
            }
        });
        records.sort_unstable_by_key(|(record, _)| record.id());
        records
    }
}

impl<M> Clone for Jobs<M> {
    fn clone(&self) -> Self {
        Self::new(self.scheduler.clone(), self.request.clone())
    }
}

impl<M> fmt::Debug for Jobs<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs")
            .field("request", &self.label())
            .field("len", &self.len())
            .field("scheduler", &self.scheduler)
            .finish()
    }
}
