//! Closing: what `close` and `wait_and_close` do, in steps that any number of callers may take,
//! together or again after one of them gave up.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{task, time::Instant};

use crate::{
    job::body::{Work, discard_work},
    job::error::JobError,
    job::record::Kind,
    report::drain_report::DrainReport,
    report::job_list::Drained,
    rules::queue::{Call, Phase, Queue},
    rules::state::{JobState, Outcome},
    run::runner::{Entry, Shared},
    util::clock::{self, Moment},
    util::panics::{discard, notify, wake},
};

/// How many jobs or spawners are handled under one hold of the lock.
pub(crate) const PAGE: usize = 128;
/// How long aborted futures may take to be dropped before their jobs count as abandoned.
const LANDING: Duration = Duration::from_millis(20);

impl Shared {
    /// Resolves when nothing runs or waits.
    pub(crate) async fn wait_idle(&self) {
        self.wait_until(Queue::is_idle).await;
    }

    pub(crate) fn start_draining(&self) {
        self.drain_began.get_or_init(Instant::now);
        self.queue().announce();
        notify(&self.ending);
    }

    /// Resolves when the end has been announced.
    pub(crate) async fn ending(&self) {
        let mut ending = pin!(self.ending.notified());
        ending.as_mut().enable();
        if self.queue().phase() == Phase::Open {
            ending.await;
        }
    }

    pub(crate) async fn wait_and_close(self: &Arc<Self>, timeout: Duration) -> DrainReport {
        let deadline = Instant::now().checked_add(timeout);
        self.drain_until(deadline).await;
        self.close().await
    }

    /// Like `wait_and_close`, with all of it over by `deadline`.
    #[cfg(feature = "shutdown")]
    pub(crate) async fn wait_and_close_by(self: &Arc<Self>, deadline: Instant) -> DrainReport {
        self.drain_until(Some(self.latest_close(deadline))).await;
        self.close_by(deadline).await
    }

    /// When to begin closing so that it is over by `deadline`; in the past if it cannot be.
    #[cfg(feature = "shutdown")]
    pub(crate) fn latest_close(&self, deadline: Instant) -> Instant {
        let closing = self.config.close_timeout + LANDING;
        deadline.checked_sub(closing).unwrap_or_else(Instant::now)
    }

    async fn drain_until(&self, deadline: Option<Instant>) {
        self.start_draining();
        self.queue().drain();
        // Whether all jobs ended or the time did, what is left is closed.
        self.idle_by(deadline).await;
    }

    pub(crate) async fn close(self: &Arc<Self>) -> DrainReport {
        self.close_after(self.config.close_timeout).await
    }

    /// Like `close`, with all of it over by `deadline`.
    #[cfg(feature = "shutdown")]
    pub(crate) async fn close_by(self: &Arc<Self>, deadline: Instant) -> DrainReport {
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(LANDING);
        self.close_after(left.min(self.config.close_timeout)).await
    }

    async fn close_after(self: &Arc<Self>, close_timeout: Duration) -> DrainReport {
        self.start_draining();
        let own = Instant::now() + close_timeout;
        // Who closes later does not put it off, and who must be done earlier does not wait for it.
        let deadline = own.min(*self.close_deadline.get_or_init(|| own));
        self.close_now();
        self.for_each_job(|(entry, _)| match entry.kind() {
            Kind::Cooperative => entry.cancel(),
            _ => entry.stop(false),
        });
        if !self.idle_by(Some(deadline)).await {
            self.for_each_job(|(entry, _)| {
                // The others have been stopped already, and had no time to overrun.
                let overdue = entry.kind() == Kind::Cooperative;
                entry.stop(overdue);
            });
            // Not from the deadline on: a call that was given up may have let that pass long ago.
            if !self.idle_by(Some(Instant::now() + LANDING)).await {
                self.abandon();
            }
        }
        DrainReport::new(self.drained.get_or_init(|| Arc::new(self.account())))
    }

    /// Refuses all spawners, and ends what has not started.
    pub(crate) fn close_now(&self) {
        self.queue().close();
        notify(&self.ending);
        loop {
            let waiting = self.queue().take_waiters(PAGE);
            if waiting.is_empty() {
                break;
            }
            waiting.into_iter().for_each(wake);
        }
        let mut remains = Vec::new();
        loop {
            let (jobs, work) = self.queue().take_unstarted(PAGE);
            if jobs.is_empty() {
                break;
            }
            jobs.iter().for_each(|job| job.publish_cancelled());
            remains.push(Remains(work));
        }
        self.retire();
        self.notify_idle();
        self.drop_apart(remains);
    }

    /// Drops these in a task of their own, one between two turns of all others: it may be much, and
    /// what will never run is user code, which may block.
    pub(crate) fn drop_apart<T: Send + 'static>(&self, pieces: Vec<T>) {
        let Some(runtime) = self.runtime() else {
            return;
        };
        if !pieces.is_empty() {
            // Nobody waits for it, and a runtime that has gone drops it here.
            drop(runtime.spawn(async move {
                // In the order in which they were made, and so mostly lie in memory.
                for piece in pieces {
                    drop(piece);
                    task::yield_now().await;
                }
            }));
        }
    }

    /// Whether nothing ran or waited any more at some moment before `deadline`.
    async fn idle_by(&self, deadline: Option<Instant>) -> bool {
        clock::timeout_at(deadline, self.wait_idle()).await.is_ok()
    }

    pub(crate) fn for_each_job(&self, mut visit: impl FnMut((Entry, JobState))) {
        let mut from = Some(0);
        while let Some(slot) = from {
            let (page, next) = self.queue().page(slot, PAGE);
            page.into_iter().for_each(&mut visit);
            from = next;
        }
    }

    fn abandon(&self) {
        self.for_each_job(|(entry, _)| {
            let now = Moment::now();
            let mut queue = self.queue();
            let still_runs = queue.is_active(entry.slot(), entry.id());
            let (effects, _ended, work) =
                queue.finish(entry.slot(), entry.id(), Outcome::Abandoned, now);
            drop(queue);
            let starts_nothing = matches!(effects.call, Call::Nobody | Call::Idle);
            debug_assert!(starts_nothing, "a closed queue starts nothing");
            drop(effects);
            // One that has ended in this very moment keeps the result it has.
            if still_runs {
                let error = JobError::close_timeout(self.config.close_timeout);
                let replaced = entry.fail(error).map(|replaced| Discarded(Some(replaced)));
                self.drop_apart(replaced.into_iter().collect());
                self.settle(&entry);
                entry.publish();
            }
            // No thread has come to it in all that time.
            self.drop_apart(work.map(|work| Remains(vec![work])).into_iter().collect());
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

/// What a job had returned that is not let go. Contains what its `Drop` does.
struct Discarded<T>(Option<T>);

impl<T> Drop for Discarded<T> {
    fn drop(&mut self) {
        discard(self.0.take());
    }
}

/// Futures that will never run: a page of them. Contains what their `Drop` does, wherever it
/// happens.
struct Remains(Vec<Work>);

impl Drop for Remains {
    fn drop(&mut self) {
        self.0.drain(..).for_each(discard_work);
    }
}
