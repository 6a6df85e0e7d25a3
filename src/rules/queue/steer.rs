//! Steering the queue while it runs: limits, pausing, reservations.

use std::{mem, task::Waker};

use crate::{
    rules::{
        queue::{JOBS_PER_STEP, Queue},
        state::{Outcome, Phase},
        step::{Effects, JobMeta, Refusal},
    },
    util::clock::Moment,
};

/// How a reservation was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// The permit is held.
    Held,
    /// It waits in this turn.
    Waits(Moment),
}

/// The limits.
impl<R: JobMeta, W> Queue<R, W> {
    /// Sets the limit. Lowered, nothing starts until it fits; raised, pending jobs start.
    pub(crate) fn set_limit(&mut self, limit: Option<usize>, now: Moment) -> Effects<R, W> {
        let limit = limit.unwrap_or(usize::MAX);
        match &mut self.cold.paused_limit {
            Some(paused) => *paused = limit,
            None => self.hot.limit = limit,
        }
        self.go_on(now)
    }

    pub(crate) fn set_pending_limit(&mut self, limit: Option<usize>, now: Moment) -> Effects<R, W> {
        self.cold.pending_limit = limit.unwrap_or(usize::MAX);
        self.go_on(now)
    }

    pub(crate) fn set_limit_per_key(&mut self, limit: Option<usize>, now: Moment) -> Effects<R, W> {
        self.cold.keys.set_limit(limit);
        self.go_on(now)
    }

    /// Lets no job start but those outside the limit.
    pub(crate) fn pause(&mut self, now: Moment) -> Effects<R, W> {
        if self.cold.paused_limit.is_none() {
            self.cold.paused_limit = Some(mem::replace(&mut self.hot.limit, 0));
        }
        self.effects(now)
    }

    pub(crate) fn resume(&mut self, now: Moment) -> Effects<R, W> {
        if let Some(limit) = self.cold.paused_limit.take() {
            self.hot.limit = limit;
        }
        self.go_on(now)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.cold.paused_limit.is_some()
    }

    /// Carries a changed limit out: one bounded step, which asks for another if it is not through.
    pub(crate) fn go_on(&mut self, now: Moment) -> Effects<R, W> {
        self.hot.raising = false;
        if self.cold.phase == Phase::Closed {
            return self.effects(now);
        }
        self.cold.keys.go_on_raising(JOBS_PER_STEP);
        let mut wakers = Vec::new();
        for _ in 0..JOBS_PER_STEP {
            if !self.could_start() {
                break;
            }
            wakers.extend(self.start_next(now));
        }
        self.hot.raising |= self.could_start() || self.cold.keys.is_raising();
        self.effects(now).with_wakers(wakers)
    }

    /// Whether a permit is free for a job or a reservation that waits.
    fn could_start(&self) -> bool {
        let waits = self.hot.line.first_pending().is_some()
            || self.cold.keys.has_admitted()
            || self.cold.reservations.has_waiting();
        waits && self.running() < self.hot.limit
    }

    /// Ends up to `most` jobs that were pending by the moment `by`. Returns their work.
    pub(crate) fn clear_pending(&mut self, by: Moment, most: usize) -> (Vec<R>, Vec<W>) {
        let (mut jobs, mut all_work) = (Vec::new(), Vec::new());
        while jobs.len() < most {
            let Some(row) = self.first_pending() else { break };
            if self.hot.table[row].stamp.since() > by {
                break;
            }
            let Some((meta, work)) = self.remove_unstarted(row) else { break };
            self.record_end(&meta, Outcome::Cancelled);
            jobs.push(meta);
            all_work.push(work);
        }
        (jobs, all_work)
    }

    /// The turn of the last job that became pending.
    pub(crate) fn last_turn(&self) -> Moment {
        self.cold.last_turn
    }
}

/// Reservations.
impl<R: JobMeta, W> Queue<R, W> {
    /// Takes a permit if one is free, and no spawner was granted it.
    pub(crate) fn try_reserve(&mut self) -> Result<(), Refusal> {
        let free = self.hot.limit.saturating_sub(self.running());
        if self.cold.phase < Phase::Closed && self.cold.grants.len() >= free {
            return Err(Refusal::Full);
        }
        self.take_free_permit()
    }

    /// Takes a permit if one is free, else waits for one in line with the pending jobs. As for these, a
    /// grant that is not used yet is no obstacle. The caller drops a waker that is not taken.
    pub(crate) fn reserve(&mut self, waker: &mut Waker, now: Moment) -> Result<Reserve, Refusal> {
        match self.take_free_permit() {
            Err(Refusal::Full) => {
                let turn = self.next_turn(now);
                let waker = mem::replace(waker, Waker::noop().clone());
                self.cold.reservations.join(turn, waker);
                Ok(Reserve::Waits(turn))
            }
            taken => taken.map(|()| Reserve::Held),
        }
    }

    fn take_free_permit(&mut self) -> Result<(), Refusal> {
        if self.cold.phase == Phase::Closed {
            return Err(Refusal::Closed);
        }
        if !self.has_free_permit() {
            return Err(Refusal::Full);
        }
        self.hot.running += 1;
        self.cold.reservations.hold();
        Ok(())
    }

    /// Takes the permit of a waiting reservation, if it was granted. Else it waits on, with this waker in
    /// exchange for the previous one. The caller drops that.
    pub(crate) fn take_reserved(
        &mut self,
        turn: Moment,
        waker: &mut Waker,
    ) -> Option<Result<(), Refusal>> {
        if self.cold.reservations.take(turn) {
            return Some(Ok(()));
        }
        if self.cold.phase == Phase::Closed {
            return Some(Err(Refusal::Closed));
        }
        self.cold.reservations.swap_waker(turn, waker);
        None
    }

    /// A reservation leaves, waiting or granted.
    pub(crate) fn cancel_reserve(
        &mut self,
        turn: Moment,
        now: Moment,
    ) -> (Effects<R, W>, Option<Waker>) {
        let (waker, is_granted) = self.cold.reservations.cancel(turn);
        self.hot.running -= u32::from(is_granted);
        (self.effects(now), waker)
    }

    /// Gives a held permit back.
    pub(crate) fn give_back_permit(&mut self, now: Moment) -> Effects<R, W> {
        self.cold.reservations.release();
        self.hot.running -= 1;
        self.effects(now)
    }

    /// Admits a job with a held permit, which it takes over. A refusal leaves the permit held.
    pub(crate) fn admit_reserved(
        &mut self,
        meta: R,
        work: impl FnOnce() -> W,
        now: Moment,
    ) -> Result<Effects<R, W>, Refusal> {
        let rival = self.check(&meta)?;
        if !self.cold.keys.has_room(meta.key()) {
            return Err(Refusal::Full);
        }
        let replaced = rival.and_then(|row| self.replace(row, false)).map(|(replaced, _)| replaced);
        let key_admitted = meta.key().is_some_and(|key| self.cold.keys.start_if_room(key));
        meta.accepted(now);
        let row = self.insert(meta, work(), now);
        self.cold.reservations.release();
        self.hot.running -= 1;
        if self.is_paused() {
            self.enter(row, key_admitted, now);
        } else {
            self.start_with_permit(row, now);
        }
        Ok(self.effects(now).with_replaced(replaced))
    }
}

/// Schedulers for tests of applications.
#[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "for `testing` only"))]
impl<R: JobMeta, W> Queue<R, W> {
    /// Starts one job although the queue is paused. Returns it.
    pub(crate) fn start_one(&mut self, now: Moment) -> Option<(R, Effects<R, W>)> {
        if self.cold.phase == Phase::Closed {
            return None; // 6
        }
        let first_admitted = || self.cold.keys.first_admitted().map(|(_, row)| row);
        let first = self.hot.line.first_pending().or_else(first_admitted)?;
        let meta = self.hot.table[first].meta().clone();
        let one_more = self.running() + 1;
        let limit = mem::replace(&mut self.hot.limit, one_more);
        let effects = self.effects(now);
        self.hot.limit = limit;
        Some((meta, effects))
    }
}
