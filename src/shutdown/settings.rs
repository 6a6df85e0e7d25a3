//! The settings of a shutdown.

use std::{borrow::Cow, fmt, future::Future, time::Duration};

use crate::{
    job::output::JobOutput,
    report::job_list::JobList,
    rules::config,
    scheduler::Scheduler,
    shutdown::{
        Shutdown,
        parts::{Part, PartContext},
    },
};

/// Settings.
impl Shutdown {
    /// Hears this signal too, such as `SIGHUP` or `SIGQUIT`, by its number.
    ///
    /// # Panics
    ///
    /// If the signal cannot be handled, as `SIGKILL`; or with [`with_trigger`](Self::with_trigger), which
    /// hears none.
    #[cfg(unix)]
    #[track_caller]
    pub fn signal(self, signal: i32) -> Self {
        let Some(listener) = self.trigger.listener() else {
            panic!(
                "a Shutdown with a trigger hears no signals: use Shutdown::new for signal {signal}"
            );
        };
        if let Err(error) = listener.add_signal(signal) {
            panic!("cannot hear signal {signal}: {error}; use one that can be handled");
        }
        self
    }

    /// Whether a signal that has no meaning any more ends the process, as it would without a handler.
    /// Defaults to `true`.
    ///
    /// With `false` such signals are ignored. Say so if the application handles signals by itself after
    /// [`serve`](Self::serve).
    pub fn late_signals_end_process(self, ends_process: bool) -> Self {
        if let Some(listener) = self.trigger.listener() {
            listener.set_ends_process(ends_process);
        }
        self
    }

    /// Also drains this scheduler, after those given before it, so their jobs can spawn jobs on it until
    /// they end.
    ///
    /// Its shutdown is announced at the signal too. All share the one [`grace`](Self::grace): each has the
    /// rest of it, less the `close_timeout` and 20 ms of each scheduler after it. Connections have that
    /// much less.
    ///
    /// ```
    /// # use tower_jobs::{Scheduler, Shutdown};
    /// let (scheduler, mail) = (Scheduler::new(), Scheduler::builder().limit(5).build());
    /// let shutdown = Shutdown::new(&scheduler).and_scheduler(&mail);
    /// ```
    ///
    /// # Panics
    ///
    /// If it has been given before.
    #[doc(alias = "also")]
    #[track_caller]
    pub fn and_scheduler(mut self, scheduler: &Scheduler) -> Self {
        let is_known = self.schedulers.iter().any(|known| known.is_same(scheduler));
        assert!(!is_known, "a Shutdown ends each scheduler once: {scheduler:?} was given before");
        self.schedulers.push(scheduler.clone());
        self
    }

    /// Time for all of the shutdown, counted from the signal. Defaults to 25 s: Kubernetes kills after 30.
    ///
    /// The scheduler's `close_timeout` is taken off first. If that leaves nothing, the server is dropped
    /// and jobs are cancelled at the signal.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = accept("grace", grace);
        if let Some(listener) = self.trigger.listener() {
            listener.set_grace(grace);
        }
        self
    }

    /// Time for connections to finish after the server has stopped accepting. Defaults to 10 s.
    ///
    /// It ends with the grace, less the scheduler's `close_timeout` and 20 ms, which are the jobs' own.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn connection_grace(mut self, grace: Duration) -> Self {
        self.connection_grace = accept("connection_grace", grace);
        self
    }

    /// Time for which the server goes on accepting after the signal, so that load balancers can notice.
    /// Defaults to none. It is part of the grace, and must be shorter.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn readiness_delay(mut self, delay: Duration) -> Self {
        self.readiness_delay = accept("readiness_delay", delay);
        self
    }

    /// Called at the end with the jobs that never started, so that you can store them elsewhere.
    ///
    /// Called once, with the jobs of all schedulers, if there are any. It runs on a plain thread, by the
    /// runtime's `block_on`, so it may block, and may await sockets and timers of the runtime. It has
    /// [`unstarted_grace`](Self::unstarted_grace); if it has not returned by then, it runs on, and
    /// [`ShutdownReport::unfinished_hooks`](crate::ShutdownReport::unfinished_hooks) says so. Its panic is logged.
    ///
    /// ```
    /// # use tower_jobs::{JobList, Scheduler, Shutdown};
    /// # async fn store(job: &tower_jobs::JobInfo) {}
    /// # let scheduler = Scheduler::new();
    /// # let shutdown = Shutdown::with_trigger(&scheduler, async {});
    /// shutdown.on_unstarted(|jobs: JobList| async move {
    ///     for job in &jobs {
    ///         store(job).await;
    ///     }
    /// });
    /// ```
    pub fn on_unstarted<F>(mut self, hook: impl FnOnce(JobList) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.on_unstarted = Some(Box::new(|jobs| Box::pin(hook(jobs))));
        self
    }

    /// Time for [`on_unstarted`](Self::on_unstarted), taken off the jobs' time. Defaults to 2 s if there
    /// is such a hook. At most half the grace is taken.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn unstarted_grace(mut self, grace: Duration) -> Self {
        self.unstarted_grace = accept("unstarted_grace", grace);
        self
    }

    /// Adds a part of the application that is no job, and ends with it: a pool to be closed, telemetry to be
    /// flushed, a consumer, periodic work.
    ///
    /// `run` is called by [`serve`](Self::serve), before the server, and its future is a task of the runtime
    /// from then on. The [`PartContext`] tells it when the shutdown begins, when the jobs are over, and the
    /// deadline. It has [`part_grace`](Self::part_grace) after the jobs, and more if they leave more. A part
    /// that has not ended by the end of the grace is dropped.
    /// [`ShutdownReport::parts`](crate::ShutdownReport::parts) names each part, and one that failed, panicked or
    /// did not end makes the shutdown [unclean](crate::ShutdownReport::is_clean).
    ///
    /// Parts run side by side. Of two that must end in order, make one part.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_jobs::{PartContext, Scheduler, Shutdown};
    /// # #[derive(Clone)] struct Pool;
    /// # impl Pool { async fn close(&self) {} async fn vacuum(&self) {} }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let (scheduler, pool) = (Scheduler::new(), Pool);
    /// let vacuumed = pool.clone();
    /// let report = Shutdown::with_trigger(&scheduler, async { /* .. */ })
    ///     // Ends once no job needs it any more.
    ///     .part("pool", move |part| async move {
    ///         part.jobs_over().await;
    ///         pool.close().await;
    ///     })
    ///     // Every five minutes, until the signal.
    ///     .part("vacuum", move |part| async move {
    ///         let mut ticks = tokio::time::interval(Duration::from_secs(300));
    ///         loop {
    ///             tokio::select! {
    ///                 () = part.begun() => return,
    ///                 _ = ticks.tick() => vacuumed.vacuum().await,
    ///             }
    ///         }
    ///     })
    ///     .serve(|stop| stop)
    ///     .await;
    /// assert!(report.is_clean());
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// [`serve`](Self::serve) panics if `run` does. A panic of its future is in the report.
    pub fn part<F>(
        mut self,
        name: impl Into<Cow<'static, str>>,
        run: impl FnOnce(PartContext) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.parts.push(Part::new(name.into(), run));
        self
    }

    /// Time for the [parts](Self::part) after the jobs, taken off the jobs' time. Defaults to 2 s if there is a
    /// part. At most a quarter of the grace is taken.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn part_grace(mut self, grace: Duration) -> Self {
        self.part_grace = accept("part_grace", grace);
        self
    }

    pub(super) fn refuse_long_delay(&self) {
        let (delay, grace) = (self.readiness_delay, self.grace);
        assert!(
            delay.is_zero() || delay < grace,
            "readiness_delay is {delay:?}, and the grace {grace:?}: set a shorter delay, or a grace that \
             also has time for connections and jobs"
        );
    }

    /// Time that is taken off the jobs' for `on_unstarted`, and for the parts.
    pub(super) fn used_graces(&self) -> (Duration, Duration) {
        let of =
            |is_used, grace: Duration, most| if is_used { grace.min(most) } else { Duration::ZERO };
        let unstarted = of(self.on_unstarted.is_some(), self.unstarted_grace, self.grace / 2);
        (unstarted, of(!self.parts.is_empty(), self.part_grace, self.grace / 4))
    }
}

#[track_caller]
fn accept(setting: &str, value: Duration) -> Duration {
    if let Err(error) = config::timeout(setting, value) {
        panic!("{error}");
    }
    value
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown")
            .field("schedulers", &self.schedulers)
            .field("grace", &self.grace)
            .field("connection_grace", &self.connection_grace)
            .field("readiness_delay", &self.readiness_delay)
            .finish_non_exhaustive()
    }
}
