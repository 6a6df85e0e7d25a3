//! Draining and closing.

use std::{mem, sync::Arc, task::Waker};

use crate::rules::{
    ledger::Ended,
    queue::Queue,
    state::{Outcome, Phase},
    step::JobMeta,
};

impl<R: JobMeta, W> Queue<R, W> {
    /// Announces the shutdown.
    pub(crate) fn announce(&mut self) {
        if self.cold.phase == Phase::Open {
            self.cold.ledger.at_drain = self.hot.totals;
            self.cold.phase = Phase::Announced;
        }
    }

    /// Begins to drain. An idle queue closes at once.
    pub(crate) fn drain(&mut self) {
        self.announce();
        if self.cold.phase == Phase::Announced {
            self.cold.phase = if self.is_drained() { Phase::Closed } else { Phase::Draining };
        }
    }

    pub(crate) fn close(&mut self) {
        self.announce();
        self.cold.phase = Phase::Closed;
    }

    /// After closing: removes up to `most` waiting spawners and reservations, to be woken.
    pub(crate) fn drain_waiting(&mut self, most: usize) -> Vec<Waker> {
        let mut drained = self.cold.keys.drain_waiting(most);
        drained.extend(self.cold.reservations.drain_waiting(most - drained.len()));
        drained
    }

    /// After closing: removes up to `most` jobs that will never start, with their work.
    pub(crate) fn drain_unstarted(&mut self, most: usize) -> (Arc<Vec<R>>, Vec<W>) {
        let room = most.min(self.pending_count() + self.cold.deferred_len);
        let (mut jobs, mut all_work) = (Vec::with_capacity(room), Vec::with_capacity(room));
        if self.cold.keys.len() == 0 {
            self.hot.line.drain_pending(&mut self.hot.table, most, |meta, work| {
                meta.ended();
                jobs.push(meta);
                all_work.push(work);
            });
        }
        while jobs.len() < most {
            let first = self.first_pending().unwrap_or(self.cold.deferred.first);
            let Some((meta, work)) = self.remove_unstarted(first) else { break };
            jobs.push(meta);
            all_work.push(work);
        }
        for meta in &jobs {
            self.hot.totals.count(Outcome::NeverStarted);
            self.cold.ledger.forget_unique(meta);
        }
        let jobs = Arc::new(jobs);
        if !jobs.is_empty() {
            self.cold.ledger.ended.never_started.push(jobs.clone()); // 9
        }
        (jobs, all_work)
    }

    /// Takes the jobs that ended otherwise than completed or skipped since the announcement (9).
    pub(crate) fn take_ended(&mut self) -> Ended<R> {
        mem::take(&mut self.cold.ledger.ended)
    }
}
