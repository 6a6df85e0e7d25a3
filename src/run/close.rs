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
        line::Stamp,
        state::{JobState, Outcome, Phase},
        step::Wake,
    },
    run::{core::Core, deadlines},
    util::{
        clock::Moment,
        log_context::LogContext,
        panics::{drop_contained, ignore_panic, notify, wake},
        sync::lock,
        waiting::wait_until,
    },
};

/// Jobs or spawners that are handled under one hold of the lock.
const JOBS_PER_LOCK: usize = 128;
/// Time for aborted futures to be dropped, before their jobs count as abandoned.
const ABORT_GRACE: Duration = Duration::from_millis(20);
/// Time for the hooks that the end of the closing calls.
pub(crate) const HOOK_GRACE: Duration = Duration::from_millis(20);

/// The steps of a close.
#[derive(Clone, Copy)]
struct Plan {
    /// Drains first; `Some(None)` is without a deadline.
    drain_until: Option<Option<Instant>>,
    /// The moment by which all is over; `None` leaves jobs the whole `close_timeout`.
    close_by: Option<Instant>,
}

/// Hands a close over to a task when its caller is dropped: given up, or itself one of the jobs.
struct Carrier {
    core: Arc<Core>,
    plan: Plan,
    is_over: bool,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // A runtime that is gone has closed the scheduler.
        if let Some(runtime) = self.core.runtime().filter(|_| !self.is_over) {
            let (core, plan) = (self.core.clone(), self.plan);
            // The task ends by the plan's deadlines.
            drop(runtime.spawn(async move { core.carry_out(plan).await }));
        }
    }
}

impl Core {
    pub(crate) fn start_draining(&self) {
        let mut is_first = false;
        self.drain_began.get_or_init(|| {
            is_first = true;
            Instant::now()
        });
        self.queue().announce();
        notify(&self.shutdown_started);
        if is_first && !self.observers.is_empty() {
            let (observers, deadline) = (self.observers.clone(), self.deadline());
            let unseen = observers.hold_closed();
            self.hooks.run(self.runtime().cloned(), move || {
                observers.draining(deadline);
                drop(unseen);
            });
        }
    }

    /// The moment of the first drain or close.
    pub(crate) fn draining_since(&self) -> Option<Instant> {
        self.drain_began.get().copied()
    }

    /// The deadline of the drain, once it has one.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        *lock(&self.deadline)
    }

    /// Sets the deadline of the drain, unless it has an earlier one.
    pub(crate) fn set_deadline(&self, deadline: Instant) {
        let mut current = lock(&self.deadline);
        *current = Some(current.map_or(deadline, |current| current.min(deadline)));
    }

    /// Resolves when the shutdown has been announced.
    pub(crate) async fn shutting_down(&self) {
        wait_until(&self.shutdown_started, || self.queue().phase() > Phase::Open).await;
    }

    pub(crate) async fn wait_and_close(self: &Arc<Self>, timeout: Duration) -> DrainReport {
        let drain_until = Some(Instant::now().checked_add(timeout));
        self.carry_through(Plan { drain_until, close_by: None }).await
    }

    /// As [`wait_and_close`](Self::wait_and_close), and returns by `deadline`.
    #[cfg(feature = "shutdown")]
    pub(crate) async fn wait_and_close_by(self: &Arc<Self>, deadline: Instant) -> DrainReport {
        let drain_until = Some(Some(self.latest_close(deadline)));
        self.carry_through(Plan { drain_until, close_by: Some(deadline) }).await
    }

    /// The latest moment to begin closing so that it is over by `deadline`; in the past if it cannot be.
    #[cfg(feature = "shutdown")]
    pub(crate) fn latest_close(&self, deadline: Instant) -> Instant {
        let closing = self.config.close_timeout + ABORT_GRACE;
        deadline.checked_sub(closing).unwrap_or_else(Instant::now)
    }

    async fn drain_until(self: &Arc<Self>, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            self.set_deadline(deadline);
        }
        self.start_draining();
        if self.begin_drain() == Phase::Closed {
            // Idle, or paused with nothing active.
            self.close_now();
        }
        // Whether the queue is idle or the time is over, the rest is closed next.
        self.idle_by(deadline).await;
    }

    fn begin_drain(&self) -> Phase {
        let mut queue = self.queue();
        queue.drain();
        queue.phase()
    }

    pub(crate) async fn close(self: &Arc<Self>) -> DrainReport {
        self.carry_through(Plan { drain_until: None, close_by: None }).await
    }

    /// As [`close`](Self::close), and returns by `deadline`.
    #[cfg(feature = "shutdown")]
    pub(crate) async fn close_by(self: &Arc<Self>, deadline: Instant) -> DrainReport {
        self.carry_through(Plan { drain_until: None, close_by: Some(deadline) }).await
    }

    /// Carries out the plan, although the caller may be dropped.
    async fn carry_through(self: &Arc<Self>, plan: Plan) -> DrainReport {
        let mut carrier = Carrier { core: self.clone(), plan, is_over: false };
        let report = self.carry_out(plan).await;
        carrier.is_over = true;
        report
    }

    async fn carry_out(self: &Arc<Self>, plan: Plan) -> DrainReport {
        if let Some(deadline) = plan.drain_until {
            self.drain_until(deadline).await;
        }
        let Some(deadline) = plan.close_by else {
            let report = self.close_after(self.config.close_timeout).await;
            let deadline = self.close_deadline.get().copied().unwrap_or_else(Instant::now);
            let left = deadline.saturating_duration_since(Instant::now());
            let hooks = self.hooks.all_ended();
            drop(deadlines::real_timeout(left.max(HOOK_GRACE), hooks).await);
            return report;
        };
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(ABORT_GRACE);
        self.close_after(left.min(self.config.close_timeout)).await
    }

    async fn close_after(self: &Arc<Self>, close_timeout: Duration) -> DrainReport {
        let own = Instant::now() + close_timeout;
        self.set_deadline(own);
        self.start_draining();
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
        let report = DrainReport::new(self.drained.get_or_init(|| Arc::new(self.account())));
        if !self.observers.is_empty() {
            let (observers, report) = (self.observers.clone(), report.clone());
            self.hooks.run(self.runtime().cloned(), move || observers.closed(&report));
        }
        report
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
        let (mut unstarted, mut pages) = (Vec::new(), Vec::new());
        loop {
            let (jobs, work) = self.queue().drain_unstarted(JOBS_PER_LOCK);
            if jobs.is_empty() {
                break;
            }
            jobs.iter().for_each(|record| record.publish_cancelled());
            unstarted.push(UnstartedPage { work, outcome: Outcome::NeverStarted });
            if !self.observers.is_empty() {
                pages.push(jobs);
            }
        }
        if !pages.is_empty() {
            let observers = self.observers.clone();
            self.hooks.run(self.runtime().cloned(), move || {
                let (outcome, now) = (Outcome::NeverStarted, Moment::now());
                let ended = |record| observers.ended(record, outcome, None, None, now);
                let jobs = pages.iter().flat_map(|page| page.iter());
                jobs.filter(|record| record.is_observed()).for_each(ended);
            });
        }
        self.shutdown_idle_runners();
        self.notify_idle();
        self.drop_on_blocking_pool(unstarted);
    }

    /// Drops these, one after the other, where they hold up no worker: their `Drop` may block.
    fn drop_on_blocking_pool<T: Send + 'static>(&self, values: Vec<T>) {
        if let Some(runtime) = self.runtime().filter(|_| !values.is_empty()) {
            let values = Logged { values, context: LogContext::current() };
            let dropping = move || drop(values);
            // Panics if the system has no thread left. A runtime that is gone drops them here.
            ignore_panic(|| drop(runtime.spawn_blocking(dropping)));
        }
    }

    /// Whether the queue was idle at some moment before `deadline`.
    async fn idle_by(&self, deadline: Option<Instant>) -> bool {
        deadlines::timeout_at(deadline, self.wait_idle()).await.is_ok()
    }

    pub(crate) fn for_each_job(&self, mut visit: impl FnMut((Arc<Record>, Stamp))) {
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
            let active = queue.stamp(key).filter(|stamp| stamp.state() == JobState::Active);
            let (effects, _meta, work) = queue.finish(key, Outcome::Abandoned, now);
            drop(queue);
            let starts_nothing = matches!(effects.wake, Wake::None | Wake::IdleWaiters);
            debug_assert!(starts_nothing, "a closed queue starts nothing");
            drop(effects);
            // A job that has ended in this very moment keeps its result.
            if let Some(active) = active {
                let error = JobError::abandoned(Some(self.config.close_timeout));
                let previous = record.result().store_error(error);
                self.drop_on_blocking_pool(previous.into_iter().map(Contained::new).collect());
                self.end_abandoned(record.clone(), active.since());
            }
            // The work of a ready job that no runner has taken.
            let outcome = Outcome::Abandoned;
            let work = work.map(|work| UnstartedPage { work: vec![work], outcome });
            self.drop_on_blocking_pool(work.into_iter().collect());
        });
        self.notify_idle();
    }

    /// Reports the failure of an abandoned job. Observers see it beside that, on a plain thread: one that
    /// blocks may not hold up the closing.
    fn end_abandoned(&self, record: Arc<Record>, since: Moment) {
        self.report_unobserved(&record, record.result().take_unobserved());
        self.publish(&record);
        if !record.is_observed() {
            return;
        }
        let (observers, close_timeout) = (self.observers.clone(), self.config.close_timeout);
        self.hooks.run(self.runtime().cloned(), move || {
            let error = JobError::abandoned(Some(close_timeout));
            let started = record.show_end().then_some(since);
            observers.ended(&record, Outcome::Abandoned, Some(&error), started, Moment::now());
        });
    }

    fn account(&self) -> Drained {
        let now = Instant::now();
        let mut queue = self.queue();
        let (ended, after, before) = (queue.take_ended(), queue.totals(), queue.totals_at_drain());
        drop(queue);
        let began = self.drain_began.get().copied().unwrap_or(now);
        Drained {
            scheduler: self.name.clone(),
            job_timeout: self.config.job_timeout,
            totals: after.since(&before),
            ended,
            elapsed: now.saturating_duration_since(began),
            at: Moment::of(now),
        }
    }
}

/// Values that are dropped under the subscriber of the thread that they come from.
struct Logged<T> {
    values: Vec<T>,
    context: LogContext,
}

impl<T> Drop for Logged<T> {
    fn drop(&mut self) {
        self.context.run(|| self.values.drain(..).for_each(drop));
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
struct UnstartedPage {
    work: Vec<Work>,
    outcome: Outcome,
}

impl Drop for UnstartedPage {
    fn drop(&mut self) {
        self.work.drain(..).for_each(|work| drop_work(work, self.outcome));
    }
}
