//! Draining and closing a scheduler.

use std::time::Duration;

use crate::{report::drain_report::DrainReport, scheduler::Scheduler};

/// Closing.
impl Scheduler {
    /// Resolves when no job runs or waits, and no spawner waits.
    ///
    /// It closes nothing, and new jobs may come at once. Do not await this inside a job of the same
    /// scheduler: it would wait for itself.
    ///
    /// All jobs have run to their end by then. On several threads, the handle of the last job may show
    /// that an instant later: await the handle.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn wait_idle(&self) {
        self.core().wait_idle_checked().await;
    }

    /// Closes the scheduler now; running jobs have the close timeout to end.
    ///
    /// - New jobs are refused from here on, and so are the jobs of waiting spawners.
    /// - Pending jobs, and jobs that wait for their response, are reported as never started. Their futures
    ///   are dropped on the runtime's blocking pool, which may go on after this has returned.
    /// - Running jobs of [`spawn_with`](Self::spawn_with) are cancelled, and have
    ///   [`close_timeout`](Self::close_timeout) to end. All other running jobs are aborted: their futures
    ///   are dropped at their next `await`.
    /// - Jobs still running at the deadline are aborted. One that cannot be dropped within another 20 ms
    ///   (it never awaits, or blocks its thread) is reported as *abandoned*.
    ///
    /// It can be called again: every caller gets the same report.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// Once polled, it is carried through, although it is dropped, or awaited by one of the jobs. Call it
    /// again for the report.
    pub async fn close(&self) -> DrainReport {
        self.core().close().await
    }

    /// Announces the shutdown, and changes nothing else.
    ///
    /// From here on [`is_draining`](Self::is_draining) is true, so that a readiness probe fails, and the
    /// report of the later [`wait_and_close`](Self::wait_and_close) or [`close`](Self::close) covers the
    /// time from this call. Jobs are accepted as before. It is meant for the time between a signal and the
    /// end of the last connection.
    pub fn start_draining(&self) {
        self.core().start_draining();
    }

    /// Lets jobs finish for up to [`wait_timeout`](Self::wait_timeout), then [closes](Self::close).
    ///
    /// Until then the scheduler *drains*: it still accepts jobs from all callers, such as running jobs and
    /// requests in flight, and waits for those too. It closes in the very step that leaves it idle, so no
    /// job slips in between, or when the time is over. A spawner that has been granted a permit or a place
    /// in the queue, and has not been polled since, is waited for like a job.
    ///
    /// Returns after at most `wait_timeout` plus [`close_timeout`](Self::close_timeout), plus the 20 ms of
    /// [`close`](Self::close) if jobs cannot be dropped in time.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// Once polled, it is carried through with its deadline, although it is dropped. Call it again for
    /// the report, or call [`close`](Self::close) for an earlier end.
    pub async fn wait_and_close(&self) -> DrainReport {
        self.wait_and_close_within(self.wait_timeout()).await
    }

    /// Like [`wait_and_close`](Self::wait_and_close), with `timeout` instead of `wait_timeout`.
    ///
    /// A `timeout` too long for the clock, such as `Duration::MAX`, means no deadline.
    ///
    /// # Panics
    ///
    /// Like [`wait_and_close`](Self::wait_and_close).
    ///
    /// # Cancel safety
    ///
    /// Like [`wait_and_close`](Self::wait_and_close).
    #[doc(alias = "wait_and_close_timeout")]
    pub async fn wait_and_close_within(&self, timeout: Duration) -> DrainReport {
        self.core().wait_and_close(timeout).await
    }
}
