//! Deferred jobs: they start or become pending when their owner says so, after `deferred_timeout`, or
//! when a shutdown gives up their connections.

use std::sync::{Arc, atomic::Ordering};

use tokio::time::Instant;

use crate::{
    job::{error::JobError, record::Record},
    rules::{
        state::{Outcome, Phase},
        step::JobKey,
    },
    run::{core::Core, deadlines},
    util::clock::Moment,
};

/// Deferred jobs that are looked at under one hold of the lock.
const JOBS_PER_LOCK: usize = 128;

impl Core {
    /// Lets a deferred job start or become pending.
    pub(crate) fn undefer(self: &Arc<Self>, job: JobKey) {
        let now = Moment::now();
        let effects = self.queue().undefer(job, now);
        self.apply(effects);
    }

    /// Ends a deferred job whose owner does not want it any more.
    pub(crate) fn skip(self: &Arc<Self>, job: JobKey) {
        let now = Moment::now();
        let removed = self.queue().remove(job, Outcome::Skipped, now);
        if let Some((work, effects)) = removed {
            self.apply(effects);
            self.drop_unstarted(work, Outcome::Skipped, JobError::skipped());
        }
    }

    /// Starts the deferred jobs of all responses that are still open, and those deferred from now on:
    /// a shutdown has given their connections up.
    #[cfg_attr(not(feature = "shutdown"), expect(dead_code, reason = "for `shutdown` only"))]
    pub(crate) fn give_up_responses(self: &Arc<Self>) {
        // Before the jobs are listed: a job deferred after that sees the flag.
        self.gives_up_responses.store(true, Ordering::SeqCst);
        self.give_up_deferred(Moment::END);
    }

    /// Whether a job that was deferred just now must be given up at once.
    pub(crate) fn gives_up_responses(&self) -> bool {
        self.gives_up_responses.load(Ordering::SeqCst)
    }

    /// Gives up the jobs that were deferred by that moment.
    fn give_up_deferred(self: &Arc<Self>, by: Moment) {
        loop {
            let jobs = self.queue().deferred_by(by, JOBS_PER_LOCK);
            if jobs.is_empty() {
                return;
            }
            jobs.iter().for_each(|record| self.give_up(record));
        }
    }

    /// Starts a deferred job, or skips it, although its owner has not said so. The owner forgets it.
    pub(crate) fn give_up(self: &Arc<Self>, record: &Record) {
        record.forget_deferred();
        if record.is_skipped_if_given_up() {
            self.skip(record.key());
        } else {
            self.undefer(record.key());
        }
    }

    /// Watches `deferred_timeout`, if there is one, from the first deferred job on.
    pub(crate) fn watch_deferred(self: &Arc<Self>) {
        if self.config.deferred_timeout.is_none()
            || self.watches_deferred.swap(true, Ordering::SeqCst)
        {
            return;
        }
        if let Some(runtime) = self.runtime() {
            drop(runtime.spawn(self.clone().give_up_overdue()));
        }
    }

    /// Gives up jobs at their timeout, until no job is deferred. All jobs have the same timeout, so the
    /// longest deferred one is always the next.
    async fn give_up_overdue(self: Arc<Self>) {
        let Some(timeout) = self.config.deferred_timeout else { return };
        loop {
            let [oldest, ..] = self.queue().oldest();
            let Some(since) = oldest else {
                self.watches_deferred.store(false, Ordering::SeqCst);
                // A job deferred before that store relied on this task.
                let [oldest, ..] = self.queue().oldest();
                if oldest.is_none() || self.watches_deferred.swap(true, Ordering::SeqCst) {
                    return;
                }
                continue;
            };
            let closed = self.wait_until(|queue| queue.phase() == Phase::Closed);
            if deadlines::timeout_at(Some(since.instant() + timeout), closed).await.is_ok() {
                return;
            }
            self.give_up_deferred(Moment::of(Instant::now() - timeout));
        }
    }
}
