//! The queue: which job starts, which waits, and which is refused.
//!
//! A pure, synchronous state machine behind the scheduler's one lock. Each method does a bounded
//! amount of work. It runs no user code and drops none: it returns [`Effects`], which the caller
//! applies after unlocking. Of a `R` that is dropped under the lock, the caller has a clone.
//!
//! There are `limit` permits to run and `pending_limit` places to wait. An active job holds a permit, and
//! so does a [reservation](super::reservations) until its job starts. A pending job holds a place, and a
//! spawner either of them from its grant to its admission. Shielded work and deferred jobs hold neither. A job with a concurrency key also runs only while it is *admitted* by its
//! key: see [`keys`](super::keys).
//!
//! `R` is the part of a job that the table keeps for the job's whole life. `W` is its work, which
//! leaves with the runner that takes the job: see [`dispatch`](super::dispatch).
//!
//! # Invariants
//!
//! 1. At most `limit` permits are held, by active jobs and reservations, and at most `limit_per_key` jobs
//!    of one key run. After a limit was lowered, nothing starts until that is so.
//! 2. A job is admitted, and a spawner granted, only if a permit is free for it or at most
//!    `pending_limit` jobs are pending with it. Deferred jobs, and those of spawners granted before,
//!    become pending whatever the limits.
//! 3. A job is pending only while `limit` permits are held, while its key is at its limit, while the
//!    queue is paused, or while a raised limit is carried out, which takes some steps. A grant that is
//!    not used yet does not keep a pending job, or a reservation, from starting.
//! 4. A spawner waits without a grant only while no permit is free and no place is left or, if its key
//!    is at its limit, no place. No later spawner overtakes it, unless that one's job could start.
//! 5. Of the pending jobs that may start, and of the waiting reservations, the longest pending one is
//!    first. Waiting spawners are granted in order too. A job that replaces a pending one keeps that
//!    one's turn.
//! 6. `Closed` is final: after it nothing is admitted, granted or started.
//! 7. `accepted` = jobs in the table + the sum of the outcomes.
//! 8. A draining queue closes in the step that leaves it idle, or, while it is paused, in the step that
//!    leaves no job active. Reservations do not count.
//! 9. Once the shutdown is announced, a job that ends otherwise than completed or skipped is kept for
//!    the drain report.
//! 10. A deferred job is admitted exactly when another job with the same key would be, and
//!     `deferred_limit` leaves room: deferred jobs, and pending jobs beyond `pending_limit`, are
//!     together fewer. From then on it holds nothing.
//! 11. At most one job of a unique key is in the table.
//! 12. Of the ready jobs, the one that started first is taken first.

use std::{collections::BTreeMap, task::Waker};

use crate::{
    rules::{
        dispatch::Dispatch,
        keys::{CalledSpawner, KeyName, Keys, Ticket},
        ledger::{Ledger, Totals},
        line::{Line, List, Row, Stamp},
        reservations::Reservations,
        state::{JobState, Outcome, Phase},
        step::{Admit, Advance, Effects, JobKey, JobMeta, RareEffects, Refusal, Stealable, Wake},
        table::{NONE, RowIndex, Table},
    },
    util::clock::Moment,
};

mod closing;
mod remove;
pub(crate) mod steer;
mod view;

/// Jobs that one step starts, blocks or grants after a limit was changed.
const JOBS_PER_STEP: usize = 64;

/// `hot` comes first: it shares the lock's two cache lines, which every thread that takes the lock must
/// fetch from the processor that held it last.
#[repr(C)]
pub(crate) struct Queue<R, W> {
    hot: Hot<R, W>,
    cold: Cold<R>,
}

/// The fields that every job changes, and the limit, which every job reads.
#[repr(C)]
struct Hot<R, W> {
    table: Table<Row<R, W>>,
    /// The active jobs, and the pending ones without a key.
    line: Line,
    /// Permits that are held: by active jobs, and by reservations.
    running: u32,
    /// A limit was raised, and jobs that may start are pending still.
    raising: bool,
    dispatch: Dispatch,
    /// 0 while paused.
    limit: usize,
    totals: Totals,
}

/// The fields that few jobs change.
struct Cold<R> {
    /// The limit to return to.
    paused_limit: Option<usize>,
    pending_limit: usize,
    deferred_limit: usize,
    phase: Phase,
    /// In the order in which they were admitted.
    deferred: List,
    deferred_len: usize,
    /// The pending jobs with a key, and the line of waiting spawners.
    keys: Keys,
    reservations: Reservations,
    /// Spawners that hold a permit or a place.
    grants: BTreeMap<Ticket, Grant>,
    last_turn: Moment,
    ledger: Ledger<R>,
}

/// A permit or a place for a spawner.
struct Grant {
    key: Option<KeyName>,
    /// The key is admitted along with it.
    key_admitted: bool,
}

/// The turn of a replaced pending job, for the job that replaces it.
struct Turn {
    stamp: Stamp,
    key: Option<KeyName>,
    key_admitted: bool,
    /// The next job in the line, if the replaced one was in that.
    line_next: Option<RowIndex>,
}

impl<R: JobMeta, W> Queue<R, W> {
    pub(crate) fn new(
        limit: Option<usize>,
        pending_limit: Option<usize>,
        deferred_limit: Option<usize>,
        limit_per_key: Option<usize>,
    ) -> Self {
        Self {
            hot: Hot {
                table: Table::new(),
                line: Line::new(),
                running: 0,
                raising: false,
                dispatch: Dispatch::new(),
                limit: limit.unwrap_or(usize::MAX),
                totals: Totals::default(),
            },
            cold: Cold {
                paused_limit: None,
                pending_limit: pending_limit.unwrap_or(usize::MAX),
                deferred_limit: deferred_limit.unwrap_or(usize::MAX),
                phase: Phase::Open,
                deferred: List::new(),
                deferred_len: 0,
                keys: Keys::new(limit_per_key),
                reservations: Reservations::default(),
                grants: BTreeMap::new(),
                last_turn: Moment::NEVER,
                ledger: Ledger::new(),
            },
        }
    }

    /// Sets the number of threads of the runtime.
    pub(crate) fn set_threads(&mut self, threads: u32) {
        self.hot.dispatch.set_threads(threads);
    }

    // Admission. `work` is called under the lock, and only if the job is admitted.
    //
    // `admit`, `advance`, `effects` and `start_and_grant` are always inlined: calling them, and
    // returning their results through memory, took a fifth of a job's instructions.

    /// Admits the job if there is a permit or a place for it.
    #[inline(always)]
    pub(crate) fn admit(
        &mut self,
        how: Admit,
        meta: R,
        work: impl FnOnce() -> W,
        now: Moment,
    ) -> Result<Effects<R, W>, Refusal> {
        let rival = self.check(&meta)?;
        // Decided before the rival goes, so that a refusal changes nothing.
        self.check_room(how, &meta, rival)?;
        let keeps_turn = how == Admit::Limited;
        let (replaced, turn) = rival.and_then(|row| self.replace(row, keeps_turn)).unzip();
        let turn = turn.flatten();
        meta.accepted(now);
        let row = self.insert(meta, work(), now);
        match how {
            Admit::Limited => self.enter_with(row, turn, false, now),
            Admit::Deferred => {
                self.cold.deferred.insert(&mut self.hot.table, row, NONE);
                self.cold.deferred_len += 1;
            }
            Admit::Outside => self.start(row, now),
        }
        Ok(self.effects(now).with_replaced(replaced))
    }

    /// Lets a deferred job start or become pending.
    pub(crate) fn undefer(&mut self, job: JobKey, now: Moment) -> Effects<R, W> {
        if self.cold.phase == Phase::Closed || self.state(job) != JobState::Deferred {
            return self.effects(now);
        }
        let row = &self.hot.table[job.row];
        row.meta().undeferred(now);
        let links = row.links;
        self.cold.deferred.unlink(&mut self.hot.table, links);
        self.cold.deferred_len -= 1;
        self.enter(job.row, false, now);
        self.effects(now)
    }

    /// Joins the line of waiting spawners. Only for one that was refused as `Full` under this same
    /// hold of the lock (4).
    pub(crate) fn wait(&mut self, meta: &R, waker: Waker) -> Ticket {
        self.cold.keys.join(meta.key(), waker)
    }

    /// Admits the job of a spawner that was granted; `None` if it was not.
    pub(crate) fn admit_granted(
        &mut self,
        ticket: Ticket,
        meta: R,
        work: impl FnOnce() -> W,
        now: Moment,
    ) -> Option<Result<Effects<R, W>, Refusal>> {
        if self.cold.phase < Phase::Closed && !self.cold.grants.contains_key(&ticket) {
            return None;
        }
        // A refused spawner gives its grant back by `cancel_wait`.
        let rival = match self.check(&meta) {
            Ok(rival) => rival,
            Err(refusal) => return Some(Err(refusal)),
        };
        let grant = self.cold.grants.remove(&ticket)?;
        let (replaced, turn) = rival.and_then(|row| self.replace(row, true)).unzip();
        meta.accepted(now);
        let row = self.insert(meta, work(), now);
        self.enter_with(row, turn.flatten(), grant.key_admitted, now);
        Some(Ok(self.effects(now).with_replaced(replaced)))
    }

    /// Replaces the waker of a spawner, after `admit_granted` gave `None` under this same hold of the
    /// lock. The caller drops the previous waker.
    pub(crate) fn replace_waker(&mut self, ticket: Ticket, waker: Waker) -> Option<Waker> {
        self.cold.keys.replace_waker(ticket, waker)
    }

    /// Leaves the line of spawners, granted or not. The caller drops the waker.
    pub(crate) fn cancel_wait(
        &mut self,
        ticket: Ticket,
        now: Moment,
    ) -> (Effects<R, W>, Option<Waker>) {
        let waker = self.cold.keys.cancel_wait(ticket);
        if let Some(Grant { key: Some(key), key_admitted: true }) = self.cold.grants.remove(&ticket)
        {
            self.cold.keys.release(&key);
        }
        (self.effects(now), waker)
    }

    /// Checks whether the job may be admitted at all. Returns the row of the job that it replaces.
    #[inline(always)]
    fn check(&self, meta: &R) -> Result<Option<RowIndex>, Refusal> {
        if self.cold.phase == Phase::Closed {
            return Err(Refusal::Closed);
        }
        let Some(unique) = meta.unique() else { return Ok(None) };
        let Some(&row) = self.cold.ledger.uniques.get(&unique.key) else { return Ok(None) };
        let other = &self.hot.table[row];
        if unique.replace && other.state() < JobState::Active {
            return Ok(Some(row));
        }
        Err(Refusal::Duplicate(other.meta().id()))
    }

    fn running(&self) -> usize {
        self.hot.running as usize
    }

    /// Checks whether there is a permit or a place for the job.
    #[inline(always)]
    fn check_room(&self, how: Admit, meta: &R, rival: Option<RowIndex>) -> Result<(), Refusal> {
        if how == Admit::Outside {
            return Ok(());
        }
        let rival_state = rival.map(|row| self.hot.table[row].state());
        // The permit or place of a pending rival comes free.
        if rival_state != Some(JobState::Pending) && !self.has_room(meta.key()) {
            return Err(Refusal::Full);
        }
        let replaced = usize::from(rival_state == Some(JobState::Deferred));
        let overflow = self.pending_count().saturating_sub(self.cold.pending_limit);
        let deferred = self.cold.deferred_len + overflow - replaced;
        if how == Admit::Deferred && deferred >= self.cold.deferred_limit {
            return Err(Refusal::DeferredFull); // 10
        }
        Ok(())
    }

    /// Whether a job with this key may be admitted: it could start, or it may wait (2).
    #[inline(always)]
    fn has_room(&self, key: Option<&KeyName>) -> bool {
        if self.cold.keys.has_room(key) { self.has_room_to_run() } else { self.has_room_to_wait() }
    }

    /// Whether a job whose key has room may be admitted. A free permit is enough, however many jobs are
    /// pending because of their keys.
    fn has_room_to_run(&self) -> bool {
        let granted = self.cold.grants.len();
        let free = self.hot.limit.saturating_sub(self.running());
        granted < free
            || granted + self.pending_count() < free.saturating_add(self.cold.pending_limit)
    }

    /// Whether a job whose key is at its limit may be admitted.
    fn has_room_to_wait(&self) -> bool {
        self.pending_count() + self.cold.grants.len() < self.cold.pending_limit
    }

    #[inline(always)]
    fn insert(&mut self, meta: R, work: W, now: Moment) -> RowIndex {
        self.hot.totals.accepted += 1;
        let (index, row) = self.hot.table.claim();
        meta.placed(index);
        if let Some(unique) = meta.unique() {
            self.cold.ledger.uniques.insert(unique.key.clone(), index);
        }
        row.meta = Some(meta);
        row.work = Some(work);
        // Until the same step puts it into a list.
        row.stamp = Stamp::new(JobState::Deferred, now);
        index
    }

    /// Whether a permit is free for a job or a reservation that comes now.
    #[inline(always)]
    fn has_free_permit(&self) -> bool {
        self.running() < self.hot.limit && !self.hot.raising
    }

    fn next_turn(&mut self, now: Moment) -> Moment {
        let turn = now.max(self.cold.last_turn.next());
        self.cold.last_turn = turn;
        turn
    }

    /// Starts the job if it may start, else makes it pending. With `key_admitted` its key counts it as
    /// running already.
    #[inline(always)]
    fn enter(&mut self, index: RowIndex, key_admitted: bool, now: Moment) {
        if self.hot.table[index].meta().key().is_some() {
            return self.enter_with_key(index, key_admitted, now);
        }
        if self.has_free_permit() {
            return self.start_with_permit(index, now);
        }
        let pending = Stamp::new(JobState::Pending, self.next_turn(now));
        self.hot.line.push_pending(&mut self.hot.table, index).stamp = pending;
    }

    fn enter_with_key(&mut self, index: RowIndex, key_admitted: bool, now: Moment) {
        let Some(key) = self.hot.table[index].meta().key().cloned() else { return };
        if self.has_free_permit() && self.starts_with_key(&key, key_admitted) {
            return self.start_with_permit(index, now);
        }
        let turn = self.next_turn(now);
        self.cold.keys.push(&key, turn, index, key_admitted);
        self.hot.table[index].stamp = Stamp::new(JobState::Pending, turn);
    }

    /// Whether a job of this key may start, which the key then counts as running.
    fn starts_with_key(&mut self, key: &KeyName, key_admitted: bool) -> bool {
        let keys = &mut self.cold.keys;
        if key_admitted { keys.is_within_limit(key) } else { keys.start_if_room(key) }
    }

    /// As [`enter`](Self::enter), in the turn of a replaced job if there is one.
    #[inline(always)]
    fn enter_with(&mut self, index: RowIndex, turn: Option<Turn>, key_admitted: bool, now: Moment) {
        match turn {
            Some(turn) => self.enter_in_turn(index, &turn, key_admitted, now),
            None => self.enter(index, key_admitted, now),
        }
    }

    #[cold]
    fn enter_in_turn(&mut self, index: RowIndex, turn: &Turn, granted_key: bool, now: Moment) {
        let (hot, keys) = (&mut self.hot, &mut self.cold.keys);
        let key = hot.table[index].meta().key().cloned();
        let since = turn.stamp.since();
        let Some(key) = key else {
            // Its place in the line, unless the replaced job was in none.
            match turn.line_next {
                Some(next) => {
                    hot.line.insert_pending(&mut hot.table, index, next).stamp = turn.stamp;
                }
                None => {
                    keys.push_keyless(since, index);
                    hot.table[index].stamp = turn.stamp;
                }
            }
            return self.release_replaced(turn);
        };
        let inherits = turn.key_admitted && turn.key.as_ref() == Some(&key) && !granted_key;
        if inherits {
            keys.put_admitted(&key, since, index);
            hot.table[index].stamp = turn.stamp;
            return;
        }
        self.release_replaced(turn);
        if self.has_free_permit() && self.starts_with_key(&key, granted_key) {
            return self.start_with_permit(index, now);
        }
        self.cold.keys.push(&key, since, index, granted_key);
        self.hot.table[index].stamp = turn.stamp;
    }

    /// Starts a job that is in no list. The job's own record is not touched: it is in another
    /// processor's cache, and other threads wait for the lock meanwhile.
    fn start_with_permit(&mut self, index: RowIndex, now: Moment) {
        self.hot.running += 1;
        self.start(index, now);
    }

    fn start(&mut self, index: RowIndex, now: Moment) {
        self.hot.line.push_active(&mut self.hot.table, index).stamp =
            Stamp::new(JobState::Active, now);
        self.hot.dispatch.push_ready(index);
    }

    // Runners.

    /// A requested runner arrives. Returns its job; without one it has nothing to do.
    pub(crate) fn runner_arrived(&mut self, stealable: Stealable) -> (Option<W>, Wake) {
        self.hot.dispatch.runner_arrived(stealable);
        let work = self.pop_ready();
        (work, self.hot.dispatch.wake())
    }

    /// The job of a rolling runner waits for the first time.
    pub(crate) fn rolling_runner_waits(&mut self) -> Wake {
        self.hot.dispatch.stops_rolling();
        self.hot.dispatch.wake()
    }

    /// Removes the work of the ready job that started first.
    pub(crate) fn pop_ready(&mut self) -> Option<W> {
        let index = self.hot.dispatch.first_ready()?;
        let row = self.hot.table.get_mut(index)?;
        self.hot.dispatch.remove_ready(index, row.links.next);
        row.work.take()
    }

    /// Ends a runner's job. Its permit goes to the next job that may start, and the runner to the next
    /// ready job.
    #[inline(always)]
    pub(crate) fn advance(
        &mut self,
        job: JobKey,
        outcome: Outcome,
        was_rolling: bool,
        now: Moment,
    ) -> Advance<R, W> {
        let ended = self.end_active(job, outcome).map(|(meta, _)| meta);
        let (idle, rare) = self.start_and_grant(now);
        if was_rolling {
            self.hot.dispatch.stops_rolling();
        }
        let next = if self.hot.dispatch.rolls_on() { self.pop_ready() } else { None };
        let wake = if idle { Wake::IdleWaiters } else { self.hot.dispatch.wake() };
        Advance { wake, rare, ended, next }
    }

    // Ends.

    /// Ends an active job without its runner. Returns, to be dropped, its part in the table, and the
    /// work of a job that no runner has taken.
    pub(crate) fn finish(
        &mut self,
        job: JobKey,
        outcome: Outcome,
        now: Moment,
    ) -> (Effects<R, W>, Option<R>, Option<W>) {
        let (ended, work) = self.end_active(job, outcome).unzip();
        (self.effects(now), ended, work.flatten())
    }

    #[inline(always)]
    fn end_active(&mut self, job: JobKey, outcome: Outcome) -> Option<(R, Option<W>)> {
        let row = self.hot.table.get_mut(job.row)?;
        if row.meta().id() != job.id || row.state() != JobState::Active {
            return None;
        }
        let (meta, work, links) = (row.meta.take()?, row.work.take(), row.links);
        self.hot.table.release(job.row);
        self.hot.line.remove_active(&mut self.hot.table, links);
        if work.is_some() {
            self.hot.dispatch.remove_ready(job.row, links.next);
        }
        meta.ended();
        if meta.needs_permit() {
            self.hot.running -= 1;
            if let Some(key) = meta.key() {
                self.cold.keys.release(key);
            }
        }
        self.record_end(&meta, outcome);
        Some((meta, work))
    }

    #[inline(always)]
    fn record_end(&mut self, meta: &R, outcome: Outcome) {
        self.hot.totals.count(outcome);
        self.cold.ledger.job_ended(meta, outcome, self.cold.phase);
    }

    // The end of every step.

    /// Starts the job that can start now, at most one more than before the step, and grants what has
    /// come free to waiting spawners.
    #[inline(always)]
    fn effects(&mut self, now: Moment) -> Effects<R, W> {
        let (idle, rare) = self.start_and_grant(now);
        let wake = if idle { Wake::IdleWaiters } else { self.hot.dispatch.wake_for_new() };
        Effects { wake, rare }
    }

    #[inline(always)]
    fn start_and_grant(&mut self, now: Moment) -> (bool, Option<Box<RareEffects<R, W>>>) {
        let open = self.cold.phase < Phase::Closed;
        let reserved =
            if open && self.running() < self.hot.limit { self.start_next(now) } else { None };
        let idle = self.is_idle();
        let may_have_rare = idle
            || reserved.is_some()
            || self.hot.raising
            || self.cold.paused_limit.is_some()
            || (open && self.cold.keys.has_waiting());
        (idle, if may_have_rare { self.rare_effects(open, idle, reserved) } else { None })
    }

    #[cold]
    fn rare_effects(
        &mut self,
        open: bool,
        idle: bool,
        reserved: Option<Waker>,
    ) -> Option<Box<RareEffects<R, W>>> {
        let mut wakers = if open { self.grant() } else { Vec::new() };
        wakers.extend(reserved);
        let has_closed = self.cold.phase == Phase::Draining && self.is_drained();
        if has_closed {
            self.cold.phase = Phase::Closed; // 8
        }
        let surplus = if idle { self.hot.table.surplus() } else { Vec::new() };
        let is_unfinished = self.hot.raising && self.cold.phase < Phase::Closed;
        let has_any = !wakers.is_empty() || !surplus.is_empty() || has_closed || is_unfinished;
        let rare = RareEffects { wakers, surplus, has_closed, is_unfinished, replaced: None };
        has_any.then(|| Box::new(rare))
    }

    /// Starts the longest pending job that may start, or grants the reservation before it, whose waker
    /// is returned.
    #[inline(always)]
    fn start_next(&mut self, now: Moment) -> Option<Waker> {
        if self.cold.keys.has_admitted() || self.cold.reservations.has_waiting() {
            return self.start_earliest(now);
        }
        let hot = &mut self.hot;
        if let Some((index, row)) = hot.line.start_first(&mut hot.table) {
            row.stamp = Stamp::new(JobState::Active, now);
            hot.running += 1;
            hot.dispatch.push_ready(index);
        }
        None
    }

    /// As [`start_next`](Self::start_next), where there are keys or reservations.
    fn start_earliest(&mut self, now: Moment) -> Option<Waker> {
        // After `limit_per_key` was lowered, admitted jobs may have to be blocked first.
        for _ in 0..JOBS_PER_STEP {
            let (hot, cold) = (&mut self.hot, &mut self.cold);
            let in_line = hot.line.first_pending().map(|row| hot.table[row].stamp.since());
            let keyed = cold.keys.first_admitted();
            let reserved = cold.reservations.first();
            let keyed_turn = keyed.map(|(turn, _)| turn);
            let first = [in_line, keyed_turn, reserved].into_iter().flatten().min()?;
            if Some(first) == reserved {
                hot.running += 1;
                return cold.reservations.grant_first();
            }
            if Some(first) == in_line {
                let (index, row) = hot.line.start_first(&mut hot.table)?;
                row.stamp = Stamp::new(JobState::Active, now);
                hot.running += 1;
                hot.dispatch.push_ready(index);
                return None;
            }
            let (turn, index) = keyed?;
            let starts = match hot.table[index].meta().key().cloned() {
                Some(key) => cold.keys.start(&key, turn),
                None => cold.keys.take_keyless(turn),
            };
            if starts {
                self.start_with_permit(index, now);
                return None;
            }
        }
        self.hot.raising = true;
        None
    }

    fn grant(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while self.cold.keys.has_waiting() && self.has_room_to_run() {
            if wakers.len() >= JOBS_PER_STEP {
                self.hot.raising = true;
                break;
            }
            let may_wait = self.has_room_to_wait();
            let Some(called) = self.cold.keys.call_next(may_wait) else { break };
            let CalledSpawner { ticket, key, key_admitted, waker } = called;
            self.cold.grants.insert(ticket, Grant { key, key_admitted });
            wakers.push(waker);
        }
        wakers
    }
}

#[cfg(test)]
mod tests;
