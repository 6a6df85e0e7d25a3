//! [`Jobs`]: the view of the scheduler that a handler gets.

use std::{borrow::Cow, fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    http::{after_response::RequestScope, outcome::ResponseOutcome, request::RequestState},
    job::{
        boxed::{GiveBack, box_large, box_large_closure},
        error::{JobError, SpawnError, TrySpawnError},
        group::GroupOwner,
        info::JobInfo,
        options::Options,
        output::JobOutput,
        record::Record,
    },
    rules::state::JobState,
    run::{core::Mode, deadlines},
    scheduler::{
        Scheduler,
        handle::{Job, JobContext},
        spawn::{JobBuilder, Value},
        spawn_future::SpawnFuture,
    },
    util::clock::Moment,
};

/// Spawns jobs on a [`Scheduler`] on behalf of one request.
///
/// [`JobsLayer`](crate::JobsLayer) puts a `Jobs` into the extensions of every request that it sees. In
/// axum, `Jobs` is an extractor. In other stacks, use `request.extensions().get::<Jobs>()`.
///
/// A job spawned here is an ordinary job of the scheduler, and outlives the request. Logs, listings and
/// reports show the job with the label of its request, such as `POST /signup`. The job's span follows
/// from the span in which the job is spawned: see [`SpanLink`](crate::SpanLink).
///
/// The marker `M` distinguishes two schedulers on one route: see [`JobsLayer`](crate::JobsLayer).
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
/// On a route without a `JobsLayer`, the extractor rejects the request with status 500 and a text that
/// says how to add the layer. `Option<Jobs>` is `None` on such a route.
pub struct Jobs<M = ()> {
    scheduler: Scheduler,
    request: Arc<RequestState>,
    marker: PhantomData<fn() -> M>,
}

impl<M> Jobs<M> {
    pub(crate) fn new(scheduler: Scheduler, request: Arc<RequestState>) -> Self {
        Self { scheduler, request, marker: PhantomData }
    }

    /// Returns the scheduler. Jobs spawned on it do not belong to this request.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Waits until the shutdown begins: see [`Scheduler::shutting_down`].
    ///
    /// Use it to end a response stream that has no end of its own. Otherwise its connection delays the
    /// shutdown.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn shutting_down(&self) {
        self.scheduler.shutting_down().await;
    }

    /// Returns the label of this request's jobs: method and axum's matched path, such as
    /// `GET /users/{id}`.
    ///
    /// Without a matched path it is the method alone. A raw path is never part of it, since it may hold
    /// tokens and personal data. [`JobsLayer::label`](crate::JobsLayer::label) and
    /// [`label_by_path`](crate::JobsLayer::label_by_path) replace this default.
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

    /// Spawns a job, and waits while the queue is full.
    ///
    /// Like [`Scheduler::spawn`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn`]. With the feature `axum`, a [`SpawnError`] is a response, and a handler
    /// can return it with `?`. Its status is 503, or 409 for a duplicate, or 500 without a runtime.
    ///
    /// # Cancel safety
    ///
    /// Like [`Scheduler::spawn`]. If the client leaves while the handler waits for a place in the queue,
    /// the handler is dropped, and the job with it. Once this has resolved, the job does not depend on
    /// the request.
    #[inline]
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> SpawnFuture<Value<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        box_large!(future: F => self.builder().spawn_boxed(future))
    }

    /// Spawns a job without waiting: a full queue is an error.
    ///
    /// Like [`Scheduler::try_spawn`].
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
        box_large!(future: F => self.builder().try_spawn_boxed(future))
    }

    /// Spawns a job, waiting at most `timeout` while the queue is full.
    ///
    /// Like [`Scheduler::spawn_within`].
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
        let is_inline = self.scheduler.core().mode == Mode::Inline;
        box_large!(future: F => self.builder().spawn_boxed(future)).within(timeout, is_inline)
    }

    /// Spawns a job that gets a [`JobContext`], and can end itself cleanly.
    ///
    /// Like [`Scheduler::spawn_with`].
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
        box_large_closure!(make: C => self.builder().spawn_with_boxed(make))
    }

    /// Spawns a blocking closure as a job.
    ///
    /// Like [`Scheduler::spawn_blocking`].
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
        box_large_closure!(closure: C => self.builder().spawn_blocking_boxed(closure))
    }

    /// Runs a future to its end, even if the handler is dropped.
    ///
    /// Like [`Scheduler::shield`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::shield`].
    ///
    /// # Panics
    ///
    /// Panics if the future panics, with the same payload.
    #[track_caller]
    pub fn shield<F>(
        &self,
        future: F,
    ) -> impl Future<Output = Result<F::Output, JobError>> + Send + 'static + use<F, M>
    where
        F: Future<Output: JobOutput + Send + 'static> + Send + 'static,
    {
        box_large!(future: F => self.builder().shield_boxed(future)).run()
    }

    /// Starts building a job with options.
    ///
    /// Like [`Scheduler::job`].
    pub fn job(&self, name: impl Into<Cow<'static, str>>) -> JobBuilder<'_, RequestScope> {
        self.builder().name(name)
    }
}

/// Jobs that start when the response ends.
///
/// Until the response ends, such a job is *deferred*. The call accepts it exactly when
/// [`try_spawn`](Self::try_spawn) would accept a job with the same key, and while fewer than
/// [`deferred_limit`](crate::SchedulerBuilder::deferred_limit) jobs are deferred. From then on it holds
/// neither a permit nor a place in the queue, and is not refused later: when its response ends it joins
/// the queue, even if that is full.
///
/// The response ends when the server has taken it in full, **or** can no longer do so: the client left,
/// a timeout struck, the handler panicked or returned an error, or the body was dropped half-way. The
/// job then becomes pending. It starts exactly once. If the scheduler closes before the job starts, the
/// job is counted as never started.
///
/// "Taken by the server" does not mean received by the client, nor written to the socket: no server
/// reports that. But a deferred job does not delay the bytes that the socket can take:
///
/// - Over HTTP/1 the server writes them in the same step, before its thread can run the job.
/// - Over later versions another task writes them, and the job lets the tasks that are ready run first.
/// - A server takes a frame of any size. While a job blocks the only thread of a runtime, the rest of a
///   large frame waits.
///
/// If the response has already ended, for example in a call from a job, these methods start the job at
/// once.
impl<M> Jobs<M> {
    /// Spawns a job that starts when the response ends, with any outcome.
    ///
    /// This never waits for a place in the queue.
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
        box_large!(future: F => self.builder().defer(future, |_| true, GiveBack::give_back))
    }

    /// Spawns a job that starts with the outcome of the response.
    ///
    /// `make` gets the outcome, and returns the job's future.
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
        box_large_closure!(make: C => self.builder().defer_made(make))
    }

    /// Spawns a job that starts only after a successful response.
    ///
    /// A response [is a success](ResponseOutcome::is_success) if the server took it in full, and its
    /// status is below 400. After any other outcome the job is dropped, and counts as *skipped*, which is
    /// not a failure. Its handle returns an error that [`is_skipped`](JobError::is_skipped).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`].
    #[track_caller]
    pub fn after_success<F>(&self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        box_large!(future: F => self.builder().defer(future, ResponseOutcome::is_success, GiveBack::give_back))
    }

    /// Returns the outcome of the response, if it has ended.
    pub fn response(&self) -> Option<ResponseOutcome> {
        self.request.outcome()
    }
}

/// This request's jobs, as a group.
///
/// The group has all jobs that are spawned through this `Jobs` and its clones.
///
/// If the request has had a job by the time of the response's head, the extensions of the response hold
/// the same `Jobs`. A test can therefore wait for the jobs of one request, and of no other:
/// `response.extensions().get::<Jobs>()`.
impl<M> Jobs<M> {
    /// Counts this request's jobs: deferred, pending and active.
    pub fn len(&self) -> usize {
        self.request.group().len()
    }

    /// Returns whether this request has no jobs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lists this request's jobs, oldest first.
    ///
    /// This visits all jobs of the scheduler, a bounded number per lock. Jobs that start or end
    /// meanwhile may be missing or listed.
    pub fn jobs(&self) -> Vec<JobInfo> {
        let now = Moment::now();
        self.records().iter().map(|(record, state)| record.info(*state, now)).collect()
    }

    /// Waits until this request has no jobs.
    ///
    /// Deferred jobs count. While the request has any, do not await this before the response has ended,
    /// above all not in the request's own handler: it would wait without end. Do not await it inside
    /// one of the request's own jobs: that job would wait for itself.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn wait_idle(&self) {
        self.request.group().wait_until(|| self.request.group().len() == 0).await;
    }

    /// Closes this request's jobs, and returns those that did not end.
    ///
    /// Each job is closed as by [`Job::close`]:
    ///
    /// - A job that has not started never starts.
    /// - A job of `spawn_with` is asked to end, and has the scheduler's `close_timeout` to do so.
    /// - Any other job is cancelled at its next `.await`.
    ///
    /// A job that has not ended after the `close_timeout` is aborted, and is in the returned list. A
    /// blocking job that has started cannot be aborted, and runs on.
    ///
    /// The scheduler stays open, for this request too.
    ///
    /// # Panics
    ///
    /// Panics if called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// The first poll asks the jobs to end. If this is dropped later, jobs that do not end are not
    /// aborted.
    pub async fn close(&self) -> Vec<JobInfo> {
        let core = self.scheduler.core();
        let records: Vec<Arc<Record>> =
            self.records().into_iter().map(|(record, _)| record).collect();
        // Unstarted jobs are removed first, so that none gets the permit of a job that ends.
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
