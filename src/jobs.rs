use std::{
    borrow::Cow,
    fmt,
    future::Future,
    marker::PhantomData,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{Extensions, Method, Uri};

use crate::{
    error::{JobError, SpawnError, TrySpawnError},
    job::{Job, JobContext, JobOutput, Options},
    scheduler::Scheduler,
    spawn::{JobBuilder, Spawn, Value},
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
    scope: Arc<Scope>,
    marker: PhantomData<fn() -> M>,
}

struct Scope {
    scheduler: Scheduler,
    origin: Origin,
    label: OnceLock<Arc<str>>,
}

/// What a label is made of, if it is ever asked for.
pub(crate) enum Origin {
    Path(Method, Uri),
    #[cfg(feature = "matched-path")]
    MatchedPath(Method, axum::extract::MatchedPath),
    Label(Arc<str>),
}

impl Origin {
    pub(crate) fn new(method: &Method, uri: &Uri, extensions: &Extensions) -> Self {
        #[cfg(feature = "matched-path")]
        if let Some(path) = extensions.get::<axum::extract::MatchedPath>() {
            return Self::MatchedPath(method.clone(), path.clone());
        }
        #[cfg(not(feature = "matched-path"))]
        let _ = extensions;
        Self::Path(method.clone(), uri.clone())
    }

    fn label(&self) -> Arc<str> {
        match self {
            Self::Path(method, uri) => format!("{method} {}", uri.path()).into(),
            #[cfg(feature = "matched-path")]
            Self::MatchedPath(method, path) => format!("{method} {}", path.as_str()).into(),
            Self::Label(label) => label.clone(),
        }
    }
}

impl<M> Jobs<M> {
    pub(crate) fn new(scheduler: Scheduler, origin: Origin) -> Self {
        let scope = Scope { scheduler, origin, label: OnceLock::new() };
        Self { scope: Arc::new(scope), marker: PhantomData }
    }

    /// The scheduler behind it. Jobs spawned there carry no request's label.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scope.scheduler
    }

    /// What this request's jobs are labelled with: method and path. The path is axum's matched
    /// path (`/users/{id}`) with the feature `matched-path`, else the request's own, unless
    /// [`JobsLayer::label`](crate::JobsLayer::label) says otherwise.
    pub fn label(&self) -> &str {
        self.shared_label()
    }

    fn shared_label(&self) -> &Arc<str> {
        self.scope.label.get_or_init(|| self.scope.origin.label())
    }

    fn builder(&self) -> JobBuilder<'_> {
        let request = Some(self.shared_label().clone());
        self.scope.scheduler.with_options(Options { request, ..Options::default() })
    }

    /// Spawns a job, waiting for a place if there is none: like [`Scheduler::spawn`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn`]. With the feature `axum` a [`SpawnError`] is a response, 503, so
    /// that a handler can return it with `?`.
    ///
    /// # Cancel safety
    ///
    /// Like [`Scheduler::spawn`]: a client that leaves while its handler waits for a place takes
    /// the job along. Spawned, the job stays, whatever becomes of the request.
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> Spawn<Value<F>>
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
    #[track_caller]
    pub fn try_spawn<F>(&self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.builder().try_spawn(future)
    }

    /// Spawns a job, waiting at most `timeout` for a place: like [`Scheduler::spawn_timeout`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn_timeout`].
    #[track_caller]
    pub fn spawn_timeout<F>(
        &self,
        timeout: Duration,
        future: F,
    ) -> impl Future<Output = Result<Job<Value<F>>, SpawnError>> + Send + 'static + use<F, M>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.builder().spawn_timeout(timeout, future)
    }

    /// Spawns a job that can see when it is told to end: like [`Scheduler::spawn_with`].
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn_with`].
    #[track_caller]
    pub fn spawn_with<C, F>(&self, make: C) -> Spawn<Value<F>>
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
    pub fn spawn_blocking<C, R>(&self, closure: C) -> Spawn<R::Value>
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
    pub fn job(&self, name: impl Into<Cow<'static, str>>) -> JobBuilder<'_> {
        self.builder().name(name)
    }
}

impl<M> Clone for Jobs<M> {
    fn clone(&self) -> Self {
        Self { scope: self.scope.clone(), marker: PhantomData }
    }
}

impl<M> fmt::Debug for Jobs<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs")
            .field("request", &self.label())
            .field("scheduler", self.scheduler())
            .finish()
    }
}
