//! Closing: `close` and `wait_and_close`. Any number of callers may take these steps, together, or
//! again after an earlier caller gave up.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    job::{
        body::{Work, drop_work},
        error::JobError,
        options::JobKind,
        record::Record,
    },
    report::{drain_report::DrainReport, job_list::Drained},
    rules::{
        state::{JobState, Outcome},
        step::{Phase, Wake},
    },
    run::{core::Core, deadlines},
    util::{
        clock::Moment,
        panics::{drop_contained, notify, wake},
        waiting::wait_until,
    },
};

/// Jobs or spawners that are handled under one hold of the lock.
const JOBS_PER_LOCK: usize = 128;
/// Time for aborted futures to be dropped, before their jobs count as abandoned.
const ABORT_GRACE: Duration = Duration::from_millis(20);

impl Core {
    pub(crate) fn start_draining(&self) {
        self.drain_began.get_or_init(Instant::now);
        self.queue().announce();
        notify(&self.shutdown_started);
    }

    /// Resolves when the shutdown has been announced.
    pub(crate) async fn shutting_down(&self) {
        wait_until(&self.shutdown_started, || self.queue().phase() > Phase::Open).await;
    }

    pub(crate) async fn wait_and_close(self: &Arc<Self>, timeout: Duration) -> DrainReport {
        let deadline = Instant::now().checked_add(timeout);
        self.drain_until(deadline).await;
        self.close().await
    }

    /// As [`wait_and_close`](Self::wait_and_close), and returns by `deadline`.
    #[cfg(feature = "shutdown")]
    pub(crate) async fn wait_and_close_by(self: &Arc<Self>, deadline: Instant) -> DrainReport {
        self.drain_until(Some(self.latest_close(deadline))).await;
        self.close_by(deadline).await
    }

    /// The latest moment to begin closing so that it is over by `deadline`; in the past if it cannot be.
    #[cfg(feature = "shutdown")]
    pub(crate) fn latest_close(&self, deadline: Instant) -> Instant {
        let closing = self.config.close_timeout + ABORT_GRACE;
        deadline.checked_sub(closing).unwrap_or_else(Instant::now)
    }

    async fn drain_until(&self, deadline: Option<Instant>) {
        self.start_draining();
        self.queue().drain();
        // Whether the queue is idle or the time is over, the rest is closed next.
        self.idle_by(deadline).await;
    }

    pub(crate) async fn close(self: &Arc<Self>) -> DrainReport {
        self.close_after(self.config.close_timeout).await
    }

    /// As [`close`](Self::close), and returns by `deadline`.
    #[cfg(feature = "shutdown")]
    pub(crate) async fn close_by(self: &Arc<Self>, deadline: Instant) -> DrainReport {
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(ABORT_GRACE);
        self.close_after(left.min(self.config.close_timeout)).await
    }

    async fn close_after(self: &Arc<Self>, close_timeout: Duration) -> DrainReport {
        self.start_draining();
        let own = Instant::now() + close_timeout;
        // A later caller does not postpone the deadline, and a caller with less time does not wait for it.
        let deadline = own.min(*self.close_deadline.get_or_init(|| own));
        self.close_now();
        self.for_each_job(|(record, _)| self.close_started(&record));
        if !self.idle_by(Some(deadline)).await {
            self.for_each_job(|(record, _)| {
                // Other kinds were stopped above, and were given no time to overrun.
                record.stop(record.kind() == JobKind::Cooperative);
            });
            // Not counted from the deadline: an earlier caller may have given up long after it.
            if !self.idle_by(Some(Instant::now() + ABORT_GRACE)).await {
                self.abandon();
            }
        }
        DrainReport::new(self.drained.get_or_init(|| Arc::new(self.account())))
    }

    /// Refuses all spawners, and ends the jobs that have not started.
    pub(crate) fn close_now(&self) {
        self.queue().close();
        notify(&self.shutdown_started);
        loop {
            let waiting = self.queue().drain_waiting(JOBS_PER_LOCK);
            if waiting.is_empty() {
                break;
            }
            waiting.into_iter().for_each(wake);
        }
        let mut unstarted = Vec::new();
        loop {
            let (jobs, work) = self.queue().drain_unstarted(JOBS_PER_LOCK);
            if jobs.is_empty() {
                break;
            }
            jobs.iter().for_each(|record| record.publish_cancelled());
            unstarted.push(UnstartedPage(work));
        }
        self.shutdown_idle_runners();
        self.notify_idle();
        self.drop_in_background(unstarted);
    }

    /// Whether the queue was idle at some moment before `deadline`.
    async fn idle_by(&self, deadline: Option<Instant>) -> bool {
        deadlines::timeout_at(deadline, self.wait_idle()).await.is_ok()
    }

    pub(crate) fn for_each_job(&self, mut visit: impl FnMut((Arc<Record>, JobState))) {
        let mut from = Some(0);
        while let Some(row) = from {
            let (page, next) = self.queue().page(row, JOBS_PER_LOCK);
            page.into_iter().for_each(&mut visit);
            from = next;
        }
    }

    fn abandon(&self) {
        self.for_each_job(|(record, _)| {
            let (key, now) = (record.key(), Moment::now());
            let mut queue = self.queue();
            let still_runs = queue.state(key) == JobState::Active;
            let (effects, _meta, work) = queue.finish(key, Outcome::Abandoned, now);
            drop(queue);
            let starts_nothing = matches!(effects.wake, Wake::None | Wake::IdleWaiters);
            debug_assert!(starts_nothing, "a closed queue starts nothing");
            drop(effects);
            // A job that has ended in this very moment keeps its result.
            if still_runs {
                let previous = record.result().store_error(JobError::abandoned());
                self.drop_in_background(previous.into_iter().map(Contained::new).collect());
                self.report_unobserved(&record, record.result().take_unobserved());
                record.publish();
            }
            // The work of a ready job that no runner has taken.
            let work = work.map(|work| UnstartedPage(vec![work]));
            self.drop_in_background(work.into_iter().collect());
        });
        self.notify_idle();
    }

    fn account(&self) -> Drained {
        let now = Instant::now();
        let mut queue = self.queue();
        let (ended, after, before) = (queue.take_ended(), queue.totals(), queue.totals_at_drain());
        drop(queue);
        let began = self.drain_began.get().copied().unwrap_or(now);
        Drained {
            totals: after.since(&before),
            ended,
            elapsed: now.saturating_duration_since(began),
            at: Moment::of(now),
        }
    }
}

/// A value whose `Drop` may panic.
struct Contained<T>(Option<T>);

impl<T> Contained<T> {
    fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T> Drop for Contained<T> {
    fn drop(&mut self) {
        drop_contained(self.0.take());
    }
}

/// A page of work that will never run. It is dropped job by job, and each panic is contained.
struct UnstartedPage(Vec<Work>);

impl Drop for UnstartedPage {
    fn drop(&mut self) {
        self.0.drain(..).for_each(drop_work);
    }
}
