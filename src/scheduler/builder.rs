use std::{fmt, sync::Arc, time::Duration};

use tokio::runtime::Handle;

#[cfg(feature = "metrics")]
use crate::scheduler::metrics::JobMetrics;
use crate::{
    job::{context::ContextHook, span::SpanLink},
    report::{failure::JobFailure, observer::Observer},
    rules::config::{self, ConfigError, SchedulerConfig},
    run::core::{Core, Mode, Setup},
    scheduler::Scheduler,
};

/// Sets up a [`Scheduler`]. Needs no runtime.
///
/// A setter panics if its value makes no sense, with a text that names a valid one. No later call panics
/// because of a setting.
#[derive(Default)]
#[must_use = "a builder builds nothing until `build` is called"]
pub struct SchedulerBuilder {
    config: SchedulerConfig,
    setup: Setup,
    #[cfg(feature = "metrics")]
    metrics: Option<JobMetrics>,
}

impl Scheduler {
    /// Begins a scheduler with settings of your own.
    pub fn builder() -> SchedulerBuilder {
        SchedulerBuilder::default()
    }
}

impl SchedulerBuilder {
    /// Maximum number of jobs that run at once.
    ///
    /// `None` = any number. Defaults to 100. Threads that a job starts by itself, as with
    /// `tokio::task::spawn_blocking`, are not counted once the job is over: use
    /// [`Scheduler::spawn_blocking`](crate::Scheduler::spawn_blocking).
    ///
    /// # Panics
    ///
    /// If it is 0: no job would ever run.
    #[track_caller]
    pub fn limit(mut self, limit: impl Into<Option<usize>>) -> Self {
        self.config.limit = limit.into();
        accept(config::limit("limit", self.config.limit));
        self
    }

    /// Maximum number of jobs of one [key](crate::JobBuilder::concurrency_key) that run at once.
    ///
    /// `None` = any number. Defaults to `None`.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[track_caller]
    pub fn limit_per_key(mut self, limit: impl Into<Option<usize>>) -> Self {
        self.config.limit_per_key = limit.into();
        accept(config::limit("limit_per_key", self.config.limit_per_key));
        self
    }

    /// Maximum number of jobs that wait in the queue; beyond it, spawners wait.
    ///
    /// 0 = no queue: a job runs now or is refused. `None` = any number. Defaults to 10 000. In aiojobs 0
    /// means any number.
    ///
    /// Jobs that wait for the end of their response do not count: see
    /// [`deferred_limit`](SchedulerConfig::deferred_limit). They join the queue when the response is over,
    /// even if it is full.
    pub fn pending_limit(mut self, pending_limit: impl Into<Option<usize>>) -> Self {
        self.config.pending_limit = pending_limit.into();
        self
    }

    /// Maximum number of deferred jobs, which wait for the end of their response; `None` = any number.
    /// Defaults to 10 000.
    ///
    /// A pending job beyond `pending_limit` counts too. Such a job was deferred, and its response ended
    /// while the queue was full.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[track_caller]
    pub fn deferred_limit(mut self, limit: impl Into<Option<usize>>) -> Self {
        self.config.deferred_limit = limit.into();
        accept(config::deferred_limit(self.config.deferred_limit));
        self
    }

    /// Maximum time that a job is deferred; `None` = no maximum. Defaults to `None`.
    ///
    /// A job deferred for longer starts with
    /// [`ResponseOutcome::Unfinished`](crate::ResponseOutcome::Unfinished), and a job of
    /// [`after_success`](crate::Jobs::after_success) is skipped. The end of the response then starts
    /// nothing.
    ///
    /// # Panics
    ///
    /// If it is zero, or longer than 365 days.
    #[track_caller]
    pub fn deferred_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.config.deferred_timeout = timeout.into();
        if let Some(timeout) = self.config.deferred_timeout {
            accept(config::deferred_timeout(timeout));
        }
        self
    }

    /// Maximum time for a job to end once it is closed.
    ///
    /// Zero = no time. Defaults to 100 ms.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        accept(config::timeout("close_timeout", timeout));
        self.config.close_timeout = timeout;
        self
    }

    /// Maximum time for jobs to finish in [`wait_and_close`](Scheduler::wait_and_close).
    ///
    /// Zero = no time. Defaults to 60 s.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        accept(config::timeout("wait_timeout", timeout));
        self.config.wait_timeout = timeout;
        self
    }

    /// Sets the hook for failures that no code awaits.
    ///
    /// Defaults to an event of `tracing`, of level `ERROR` and target `tower_jobs`, with the job's id,
    /// name, request, location and error.
    ///
    /// Called once for each failure that no code awaits, in the job's span, while the job still holds its
    /// permit. While the scheduler closes, the hook is called on a plain thread inside the runtime, beside the
    /// closing and beside other calls. If the job's handle is still held, the hook is called when the handle
    /// is dropped. It should not block. If it panics, the panic is logged, and has no other effect.
    #[doc(alias = "exception_handler")]
    pub fn on_failure(mut self, hook: impl Fn(JobFailure) + Send + Sync + 'static) -> Self {
        self.setup.on_failure = Some(Arc::new(hook));
        self
    }

    /// Sets the scheduler's name, which reports, metrics and observers show.
    ///
    /// Defaults to none.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.setup.name = Some(name.into());
        self
    }

    /// Sets the run timeout of jobs that have none of their own.
    ///
    /// `None` = no timeout. Defaults to `None`. It does not apply to shielded and atomic work, whose output
    /// belongs to its caller. See [`JobBuilder::timeout`](crate::JobBuilder::timeout) for its effect.
    ///
    /// # Panics
    ///
    /// If it is zero, or longer than 365 days.
    #[track_caller]
    pub fn job_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.config.job_timeout = timeout.into();
        accept(self.config.job_timeout.map_or(Ok(()), config::job_timeout));
        self
    }

    /// Adds an [`Observer`]: its calls follow each job from its acceptance to its end.
    ///
    /// Several are called in the order in which they were added. Without one, a job costs nothing for it.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.setup.observers.push(Arc::new(observer));
        self
    }

    /// Publishes the scheduler as one of this set of metrics, labelled with its name.
    ///
    /// The label `scheduler` is the [`name`](Self::name), or `default` without one. Schedulers of one process
    /// need different names, since their gauges would overwrite each other. Defaults to no metrics, in which
    /// case a job costs nothing for them. A second call replaces the set of the first.
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self, metrics: &JobMetrics) -> Self {
        self.metrics = Some(metrics.clone());
        self
    }

    /// Remembers the last `jobs` that ended, for [`Scheduler::get`].
    ///
    /// Defaults to 0. One takes some 300 bytes, and its error text. All unfinished jobs are then found by
    /// an index, too.
    pub fn remember(mut self, jobs: usize) -> Self {
        self.setup.remember = jobs;
        self
    }

    /// Sets the runtime that jobs run on.
    ///
    /// Defaults to the one in which the first job is spawned.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.setup.runtime = Some(runtime);
        self
    }

    /// Sets how a job's span is tied to the span of its spawner.
    ///
    /// That is the span in which the job is spawned, such as its request's. Defaults to
    /// [`SpanLink::FollowsFrom`].
    pub fn span(mut self, link: SpanLink) -> Self {
        self.setup.ties.span = link;
        self
    }

    /// Carries a context from the spawner to its job: a Sentry hub, a task-local, OpenTelemetry's baggage.
    ///
    /// - `capture` is called at each call of a spawn verb, in the spawner, and returns its context.
    /// - `enter` gets that context and code of the job, and calls the code inside the context. The code is
    ///   one poll of the future, its `Drop`, a blocking closure, or the hook of
    ///   [`on_failure`](Self::on_failure) for that job.
    ///
    /// `enter` runs inside the job's span. Called several times, this adds contexts, the first outermost. A
    /// scheduler without any pays nothing. The chapter [Context](crate::docs::context) has one for each of
    /// these uses.
    ///
    /// ```
    /// # use tower_jobs::Scheduler;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// tokio::task_local! {
    ///     static TENANT: u32;
    /// }
    /// let scheduler = Scheduler::builder()
    ///     .context(
    ///         || TENANT.try_with(|tenant| *tenant).ok(), // none outside a request
    ///         |tenant, code| match tenant {
    ///             Some(tenant) => TENANT.sync_scope(*tenant, code),
    ///             None => code(),
    ///         },
    ///     )
    ///     .build();
    ///
    /// let job = TENANT.sync_scope(7, || scheduler.try_spawn(async { TENANT.get() })).unwrap();
    /// assert_eq!(job.await.unwrap(), 7);
    /// # }
    /// ```
    ///
    /// # Guarantees
    ///
    /// - The code runs exactly once for each call of `enter`. If `enter` does not call it, it runs after that,
    ///   without the context. A second call does nothing.
    /// - A panic of the job does not pass through `enter`.
    /// - A panic of `capture` or `enter` is logged, and changes nothing else: the job runs without the context.
    /// - Neither is called under a lock of the scheduler.
    ///
    /// # What it does not do
    ///
    /// - A task that the job spawns by itself, as with `tokio::spawn`, has no context. A job that it spawns has
    ///   one.
    /// - The hook of `on_failure` has no context if it is called for a handle that is dropped later, or for an
    ///   abandoned job.
    /// - A future that is refused is dropped by its spawner, where that is.
    pub fn context<C>(
        mut self,
        capture: impl Fn() -> C + Send + Sync + 'static,
        enter: impl Fn(&C, &mut dyn FnMut()) + Send + Sync + 'static,
    ) -> Self
    where
        C: Send + Sync + 'static,
    {
        self.setup.ties.contexts.push(Arc::new(ContextHook { capture, enter }));
        self
    }

    /// Sets all limits and times from a [`SchedulerConfig`].
    ///
    /// It replaces all values that were set before; setters that are called after it change single ones.
    ///
    /// # Panics
    ///
    /// If a value makes no sense: see [`SchedulerConfig::validate`]. A configuration that serde has read
    /// has been checked.
    #[track_caller]
    pub fn config(mut self, config: SchedulerConfig) -> Self {
        accept(config.validate());
        self.config = config;
        self
    }

    /// Makes the scheduler.
    #[must_use]
    pub fn build(self) -> Scheduler {
        let make = |setup| Arc::new(Core::new(self.config, Mode::Run, setup));
        #[cfg(feature = "metrics")]
        if let Some(metrics) = self.metrics {
            return Scheduler::from_core(metrics.watch(self.setup, make));
        }
        Scheduler::from_core(make(self.setup))
    }
}

#[track_caller]
fn accept(setting: Result<(), ConfigError>) {
    if let Err(error) = setting {
        panic!("{error}");
    }
}

impl fmt::Debug for SchedulerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerBuilder")
            .field("config", &self.config)
            .field("name", &self.setup.name)
            .field("span", &self.setup.ties.span)
            .field("remember", &self.setup.remember)
            .finish_non_exhaustive()
    }
}
