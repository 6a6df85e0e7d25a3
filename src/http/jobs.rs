//! [`Jobs`]: the view of the scheduler that a handler gets.

use std::{borrow::Cow, fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration};

use crate::{
    http::{after_response::RequestScope, outcome::ResponseOutcome, request::RequestState},
    job::{
        boxed::{GiveBack, box_large, box_large_closure},
        error::{JobError, SpawnError, TrySpawnError},
        group::GroupOwner,
        options::Options,
        output::JobOutput,
    },
    run::core::Mode,
    scheduler::{
        Scheduler,
        handle::{Job, JobContext},
        spawn::{JobBuilder, Value},
        spawn_future::SpawnFuture,
    },
};

/// Spawns jobs on a [`Scheduler`] on behalf of one request.
///
/// [`JobsLayer`](crate::JobsLayer) puts a `Jobs` into the extensions of every request that it sees. In
/// axum, `Jobs` is an extractor. In other stacks, use `request.extensions().get::<Jobs>()`.
///
/// An axum handler takes `Jobs` *before* the argument that reads the body, such as `String` or `Json`, since axum
/// wants that one last. The compiler's text for a wrong order is ``the trait `Handler<_, _>` is not
/// implemented``, and `#[axum::debug_handler]` above the handler makes it name the argument. The same text comes
/// for a handler whose error is a [`JobError`]: return [`tower_jobs::Error`](crate::Error) instead.
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

    /// Spawns a blocking closure that starts when the response ends, with any outcome.
    ///
    /// It is accepted and starts like [`after_response`](Self::after_response), and then runs like a job of
    /// [`spawn_blocking`](Self::spawn_blocking): on one of the runtime's blocking threads, counted and
    /// limited. The closure cannot be stopped once a thread has begun it.
    ///
    /// ```
    /// # #[cfg(feature = "axum")] {
    /// # use tower_jobs::{Jobs, SpawnError};
    /// async fn export(jobs: Jobs) -> Result<&'static str, SpawnError> {
    ///     jobs.after_response_blocking(|| std::fs::remove_file("export.csv"))?;
    ///     Ok("the file")
    /// }
    /// # let _: axum::routing::MethodRouter = axum::routing::get(export);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`]. [`TrySpawnError::into_future`] gives the closure back.
    #[track_caller]
    pub fn after_response_blocking<C, R>(
        &self,
        closure: C,
    ) -> Result<Job<R::Value>, TrySpawnError<C>>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        box_large_closure!(closure: C => self.builder().defer_blocking(closure, |_| true))
    }

    /// Spawns a blocking closure that gets the outcome of the response.
    ///
    /// Like [`after_response_blocking`](Self::after_response_blocking).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`].
    #[track_caller]
    pub fn after_response_blocking_with<C, R>(
        &self,
        closure: C,
    ) -> Result<Job<R::Value>, TrySpawnError<C>>
    where
        C: FnOnce(ResponseOutcome) -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        box_large_closure!(closure: C => self.builder().defer_blocking_with(closure))
    }

    /// Spawns a blocking closure that starts only after a successful response.
    ///
    /// Like [`after_response_blocking`](Self::after_response_blocking), and skipped like a job of
    /// [`after_success`](Self::after_success).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`].
    #[track_caller]
    pub fn after_success_blocking<C, R>(
        &self,
        closure: C,
    ) -> Result<Job<R::Value>, TrySpawnError<C>>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        box_large_closure!(closure: C => self.builder().defer_blocking(closure, ResponseOutcome::is_success))
    }

    /// Returns the outcome of the response, if it has ended.
    pub fn response(&self) -> Option<ResponseOutcome> {
        self.request.outcome()
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
