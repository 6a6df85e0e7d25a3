use std::{fmt, time::Duration};

use tokio::runtime::Handle;

use crate::{
    job::span::SpanLink,
    report::failure::JobFailure,
    rules::config::{self, ConfigError, SchedulerConfig},
    run::core::{Core, FailureHook, Mode},
    scheduler::Scheduler,
};

/// Sets up a [`Scheduler`]. Needs no runtime.
///
/// A setting that makes no sense panics here, with a text that says what to write instead, and
/// never later.
#[derive(Default)]
#[must_use = "a builder builds nothing until `build` is called"]
pub struct SchedulerBuilder {
    config: SchedulerConfig,
    span: SpanLink,
    on_failure: Option<FailureHook>,
    runtime: Option<Handle>,
}

impl Scheduler {
    /// Begins a scheduler with other than the default settings.
    pub fn builder() -> SchedulerBuilder {
        SchedulerBuilder::default()
    }
}

impl SchedulerBuilder {
    /// How many jobs run at once; `None` = any number. Defaults to 100.
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

    /// How many jobs of one [key](crate::JobBuilder::concurrency_key) run at once; `None` = any number.
    /// Defaults to `None`.
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

    /// How many jobs wait for a running place before spawners must wait themselves. Defaults to
    /// 10 000.
    ///
    /// 0 = no queue: a job runs now or is refused. `None` = any number. In aiojobs, 0 means any number.
    ///
    /// A deferred job joins the queue when its response ends, even if the queue is full. See
    /// [`deferred_limit`](Self::deferred_limit).
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

    /// How long a job that is told to end may take. Defaults to 100 ms; zero = no time.
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

    /// How long [`wait_and_close`](Scheduler::wait_and_close) lets jobs finish. Defaults to 60 s;
    /// zero = not at all.
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

    /// What to do with the failure of a job that nobody awaits. Defaults to an event of
    /// `tracing`, at level `ERROR` and of the target `tower_jobs`, with the job's id, name, request,
    /// location and error.
    ///
    /// Called once for every such failure, in the job's span and before its place is given on, or
    /// where the job's handle is dropped if that is held until after the failure. It should not
    /// block. If it panics, that is logged, and nothing else happens.
    #[doc(alias = "exception_handler")]
    pub fn on_failure(mut self, hook: impl Fn(JobFailure) + Send + Sync + 'static) -> Self {
        self.on_failure = Some(Box::new(hook));
        self
    }

    /// The runtime that jobs run on. Defaults to the one in which the first job is spawned.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// How a job's span is tied to the one in which it is spawned, such as its request's. Defaults
    /// to [`SpanLink::FollowsFrom`].
    pub fn span(mut self, link: SpanLink) -> Self {
        self.span = link;
        self
    }

    /// Takes all limits and times from a [`SchedulerConfig`], in place of what was set before;
    /// setters called after it change single ones.
    ///
    /// # Panics
    ///
    /// If a value makes no sense: see [`SchedulerConfig::validate`]. A configuration that was
    /// read by serde has been checked.
    #[track_caller]
    pub fn config(mut self, config: SchedulerConfig) -> Self {
        accept(config.validate());
        self.config = config;
        self
    }

    /// The scheduler.
    #[must_use]
    pub fn build(self) -> Scheduler {
        let Self { config, span, on_failure, runtime } = self;
        Scheduler::from_core(Core::new(config, Mode::Run, span, on_failure, runtime))
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
            .field("span", &self.span)
            .finish_non_exhaustive()
    }
}
