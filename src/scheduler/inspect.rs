//! Reading a scheduler: its settings, jobs and counts.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    job::info::JobInfo,
    report::stats::{Refusals, Stats},
    rules::state::{Outcome, Phase},
    run::core::Core,
    scheduler::Scheduler,
    util::clock::Moment,
};

impl Scheduler {
    /// Returns the number of jobs: deferred, pending and active.
    pub fn len(&self) -> usize {
        self.core().queue().len()
    }

    /// Returns whether there are no jobs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of running jobs.
    ///
    /// Shielded work runs outside the limit, so this can exceed it.
    pub fn active_count(&self) -> usize {
        self.core().queue().active_count()
    }

    /// Returns the number of jobs that wait in the queue.
    pub fn pending_count(&self) -> usize {
        self.core().queue().pending_count()
    }

    /// Returns the maximum number of jobs that run at once; `None` = any number.
    pub fn limit(&self) -> Option<usize> {
        limit_of(self.core().queue().limit())
    }

    /// Returns the maximum number of waiting jobs; `None` = any number, 0 = no queue.
    pub fn pending_limit(&self) -> Option<usize> {
        limit_of(self.core().queue().pending_limit())
    }

    /// Returns the maximum number of deferred jobs; `None` = any number.
    pub fn deferred_limit(&self) -> Option<usize> {
        self.core().config.deferred_limit
    }

    /// Returns the maximum time that a job is deferred, if there is one.
    pub fn deferred_timeout(&self) -> Option<Duration> {
        self.core().config.deferred_timeout
    }

    /// Returns the maximum number of jobs of one key that run at once; `None` = any number.
    pub fn limit_per_key(&self) -> Option<usize> {
        limit_of(self.core().queue().limit_per_key())
    }

    /// Returns the run timeout of jobs that have none of their own.
    pub fn job_timeout(&self) -> Option<Duration> {
        self.core().config.job_timeout
    }

    /// Returns the scheduler's name, if it was given one.
    pub fn name(&self) -> Option<&str> {
        self.core().name.as_deref()
    }

    /// Returns the deadline of the drain, once it has one.
    ///
    /// [`wait_and_close`](Self::wait_and_close) and [`close`](Self::close) set it when they begin, and
    /// [`Shutdown`](crate::Shutdown) sets it at the signal.
    pub fn deadline(&self) -> Option<Instant> {
        self.core().deadline()
    }

    /// Returns the maximum time for a job to end once it is closed.
    pub fn close_timeout(&self) -> Duration {
        self.core().config.close_timeout
    }

    /// Returns the maximum time for jobs to finish in [`wait_and_close`](Self::wait_and_close).
    pub fn wait_timeout(&self) -> Duration {
        self.core().config.wait_timeout
    }

    /// Resolves when the shutdown has begun: when [`is_draining`](Self::is_draining) turns true.
    ///
    /// It is meant for streams and loops that must end by themselves.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn shutting_down(&self) {
        self.core().shutting_down().await;
    }

    /// Returns how far the shutdown is.
    pub fn phase(&self) -> Phase {
        self.core().queue().phase()
    }

    /// Returns when the shutdown has begun, once it has: when [`is_draining`](Self::is_draining) turned true.
    ///
    /// With [`deadline`](Self::deadline) it gives a countdown.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use tower_jobs::{Phase, Scheduler};
    ///
    /// let scheduler = Scheduler::new();
    /// assert_eq!((scheduler.phase(), scheduler.draining_since()), (Phase::Open, None));
    /// scheduler.start_draining();
    /// assert_eq!(scheduler.phase(), Phase::Announced);
    /// assert!(scheduler.draining_since().is_some());
    /// # }
    /// ```
    pub fn draining_since(&self) -> Option<Instant> {
        self.core().draining_since()
    }

    /// Returns whether the shutdown has begun.
    ///
    /// It is true from the first call of `start_draining`, `wait_and_close` or `close` on, and never
    /// false again. Readiness probes ask for it.
    pub fn is_draining(&self) -> bool {
        self.core().queue().phase() != Phase::Open
    }

    /// Returns whether new jobs are refused, because the scheduler is closed.
    pub fn is_closed(&self) -> bool {
        self.core().queue().phase() == Phase::Closed
    }

    /// Lists all jobs, oldest first.
    ///
    /// It reads them in several steps, so jobs that start or end meanwhile may be missing or listed. The
    /// numbers of [`stats`](Self::stats) agree with each other.
    pub fn jobs(&self) -> Vec<JobInfo> {
        let now = Moment::now();
        let mut jobs = Vec::new();
        let core = self.core();
        core.for_each_job(|(record, stamp)| jobs.push(core.info_at(&record, Some(stamp), now)));
        jobs.sort_unstable_by_key(|job| job.id);
        jobs
    }

    /// Returns all counts, taken at one moment.
    pub fn stats(&self) -> Stats {
        stats_of(self.core())
    }
}

#[cfg(tower_jobs_count_locks)]
impl Scheduler {
    /// Returns how many locks of this crate the process has taken, and how many were contended.
    #[doc(hidden)]
    pub fn locks() -> (u64, u64) {
        crate::util::sync::counting::counts()
    }
}

pub(super) fn stats_of(core: &Core) -> Stats {
    let now = Moment::now();
    let queue = core.queue();
    let totals = queue.totals();
    let [deferred, pending, active] = queue.oldest();
    Stats {
        accepted: totals.accepted,
        deferred: queue.deferred_count() as u64,
        pending: queue.pending_count() as u64,
        active: queue.active_count() as u64,
        completed: totals.of(Outcome::Completed),
        failed: totals.of(Outcome::Failed),
        panicked: totals.of(Outcome::Panicked),
        timed_out: totals.of(Outcome::TimedOut),
        cancelled: totals.of(Outcome::Cancelled),
        skipped: totals.of(Outcome::Skipped),
        never_started: totals.of(Outcome::NeverStarted),
        abandoned: totals.of(Outcome::Abandoned),
        waiting_spawners: queue.waiting_count() as u64,
        reserved: queue.reserved_count() as u64,
        granted: queue.granted_count() as u64,
        outside_limit: queue.outside_limit_count() as u64,
        refused: Refusals::from_counts(core.refusals()),
        oldest_deferred: deferred.map(|since| now.since(since)),
        oldest_pending: pending.map(|since| now.since(since)),
        oldest_active: active.map(|since| now.since(since)),
    }
}

/// The limit as users set it.
pub(super) fn limit_of(limit: usize) -> Option<usize> {
    Some(limit).filter(|limit| *limit < usize::MAX)
}
