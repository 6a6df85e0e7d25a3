//! The queue: which job starts, which waits, and which is refused.
//!
//! A pure, synchronous state machine behind the scheduler's one lock. Each method does a bounded
//! amount of work. It runs no user code and drops none: it returns [`Effects`], which the caller
//! applies after unlocking. Of a `R` that is dropped under the lock, the caller has a clone.
//!
//! There are `limit` permits to run and `pending_limit` places to wait. An active job holds a permit, a
//! pending job a place, and a spawner either of them from its grant to its admission. Shielded work and
//! deferred jobs hold neither. A job with a concurrency key also runs only while it is *admitted* by its
//! key: see [`keys`](super::keys).
//!
//! `R` is the part of a job that the table keeps for the job's whole life. `W` is its work, which
//! leaves with the runner that takes the job: see [`dispatch`](super::dispatch).
//!
//! # Invariants
//!
//! 1. At most `limit` jobs run, shielded work not counted, and at most `limit_per_key` of one key.
//! 2. A job is admitted, and a spawner granted, only if a permit is free for it or at most
//!    `pending_limit` jobs are pending with it. Deferred jobs, and those of spawners granted before,
//!    become pending whatever the limits.
//! 3. A job is pending only while `limit` jobs run, or while `limit_per_key` of its key are admitted.
//!    A grant that is not used yet does not keep a pending job from starting.
//! 4. A spawner waits without a grant only while no permit is free and no place is left or, if its key
//!    is at its limit, no place. No later spawner overtakes it, unless that one's job could start.
//! 5. Of the pending jobs that may start, the longest pending one starts first. Waiting spawners are
//!    granted in order too. A job that replaces a pending one keeps that one's turn.
//! 6. `Closed` is final: after it nothing is admitted, granted or started.
//! 7. `accepted` = jobs in the table + the sum of the outcomes.
//! 8. A draining queue closes in the step that leaves it idle.
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
        line::{Line, Links, List, Row, Stamp},
        state::{JobState, Outcome},
        step::{
            Admit, Advance, Effects, JobKey, JobMeta, Phase, RareEffects, Refusal, Stealable, Wake,
        },
        table::{NONE, RowIndex, Table},
    },
    util::clock::Moment,
};

mod closing;
mod view;

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
    /// The active jobs. Without a `limit_per_key`, the pending ones too.
    line: Line,
    /// Active jobs that hold a permit.
    running: u32,
    dispatch: Dispatch,
    limit: usize,
    totals: Totals,
}

/// The fields that few jobs change.
struct Cold<R> {
    pending_limit: usize,
    deferred_limit: usize,
    phase: Phase,
    /// In the order in which they were admitted.
    deferred: List,
    deferred_len: usize,
    /// The pending jobs while there is a `limit_per_key`, and the line of waiting spawners.
    keys: Keys,
    /// Spawners that hold a permit or a place.
    grants: BTreeMap<Ticket, Grant>,
    last_turn: u64,
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
    links: Links,
    stamp: Stamp,
    key: Option<KeyName>,
    key_admitted: bool,
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
                dispatch: Dispatch::new(),
                limit: limit.unwrap_or(usize::MAX),
                totals: Totals::default(),
            },
            cold: Cold {
                pending_limit: pending_limit.unwrap_or(usize::MAX),
                deferred_limit: deferred_limit.unwrap_or(usize::MAX),
                phase: Phase::Open,
                deferred: List::new(),
                deferred_len: 0,
                keys: Keys::new(limit_per_key),
                grants: BTreeMap::new(),
                last_turn: 0,
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
        let links = self.hot.table[job.row].links;
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
        if let Some(Grant { key, key_admitted: true }) = self.cold.grants.remove(&ticket) {
            self.cold.keys.release(key.as_ref());
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
        let permits_and_places = self.hot.limit.saturating_add(self.cold.pending_limit);
        self.running() + granted < self.hot.limit
            || self.running() + granted + self.pending_count() < permits_and_places
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

    /// Starts the job if it may start, else makes it pending.
    #[inline(always)]
    fn enter(&mut self, index: RowIndex, key_admitted: bool, now: Moment) {
        let may_run = self.running() < self.hot.limit;
        let pending = Stamp::new(JobState::Pending, now);
        if !self.cold.keys.are_limited() {
            if may_run {
                return self.start_with_permit(index, now);
            }
            self.hot.line.push_pending(&mut self.hot.table, index).stamp = pending;
            return;
        }
        let key = self.hot.table[index].meta().key().cloned();
        let key_admitted = key_admitted || self.cold.keys.admit(key.as_ref());
        if key_admitted && may_run {
            return self.start_with_permit(index, now);
        }
        self.cold.last_turn += 1;
        self.cold.keys.push(key.as_ref(), self.cold.last_turn, index, key_admitted);
        let row = &mut self.hot.table[index];
        row.links = Links::from_turn(self.cold.last_turn);
        row.stamp = pending;
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
        if !keys.are_limited() {
            hot.line.insert_pending(&mut hot.table, index, turn.links.next).stamp = turn.stamp;
            return;
        }
        let key = hot.table[index].meta().key().cloned();
        let inherits = turn.key_admitted && turn.key == key && !granted_key;
        if turn.key_admitted && !inherits {
            keys.release(turn.key.as_ref());
        }
        let key_admitted = granted_key || inherits || keys.admit(key.as_ref());
        if key_admitted && self.running() < self.hot.limit {
            return self.start_with_permit(index, now);
        }
        self.cold.keys.push(key.as_ref(), turn.links.turn(), index, key_admitted);
        let row = &mut self.hot.table[index];
        (row.links, row.stamp) = (turn.links, turn.stamp);
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
            if self.cold.keys.are_limited() {
                self.cold.keys.release(meta.key());
            }
        }
        self.record_end(&meta, outcome);
        Some((meta, work))
    }

    /// Ends a job that has not started. Returns its work.
    pub(crate) fn remove(
        &mut self,
        job: JobKey,
        outcome: Outcome,
        now: Moment,
    ) -> Option<(W, Effects<R, W>)> {
        self.hot.table.get(job.row).filter(|row| row.meta().id() == job.id)?;
        let (meta, work) = self.remove_unstarted(job.row)?;
        self.record_end(&meta, outcome);
        Some((work, self.effects(now)))
    }

    /// Ends an unstarted job that another job of its unique key replaces. With `keeps_turn` the turn of
    /// a pending one is returned.
    fn replace(&mut self, index: RowIndex, keeps_turn: bool) -> Option<((R, W), Option<Turn>)> {
        let row = self.hot.table.get(index)?;
        let turn = if keeps_turn && row.state() == JobState::Pending {
            Some(self.take_turn(index))
        } else {
            None
        };
        let (meta, work) = match turn {
            Some(_) => self.release_unstarted(index)?,
            None => self.remove_unstarted(index)?,
        };
        self.record_end(&meta, Outcome::Cancelled);
        Some(((meta, work), turn))
    }

    /// Takes a pending job out of its list, and leaves its key as admitted as it is.
    fn take_turn(&mut self, index: RowIndex) -> Turn {
        let (hot, keys) = (&mut self.hot, &mut self.cold.keys);
        let row = &hot.table[index];
        let (links, stamp, key) = (row.links, row.stamp, row.meta().key().cloned());
        let key_admitted = if keys.are_limited() {
            keys.take(key.as_ref(), links.turn())
        } else {
            hot.line.remove_pending(&mut hot.table, index, links);
            false
        };
        Turn { links, stamp, key, key_admitted }
    }

    /// Removes an unstarted job from the table. The caller records its end.
    fn remove_unstarted(&mut self, index: RowIndex) -> Option<(R, W)> {
        let (hot, cold) = (&mut self.hot, &mut self.cold);
        let row = hot.table.get(index)?;
        let links = row.links;
        match row.state() {
            JobState::Deferred => {
                cold.deferred.unlink(&mut hot.table, links);
                cold.deferred_len -= 1;
            }
            JobState::Pending if cold.keys.are_limited() => {
                cold.keys.remove(row.meta().key(), links.turn());
            }
            JobState::Pending => hot.line.remove_pending(&mut hot.table, index, links),
            JobState::Active | JobState::Finished => return None,
        }
        self.release_unstarted(index)
    }

    /// Frees the row of an unstarted job that is in no list.
    fn release_unstarted(&mut self, index: RowIndex) -> Option<(R, W)> {
        let row = &mut self.hot.table[index];
        let removed = row.meta.take().zip(row.work.take());
        self.hot.table.release(index);
        let (meta, work) = removed?;
        meta.ended();
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
        if open && self.running() < self.hot.limit {
            self.start_next(now);
        }
        let idle = self.is_idle();
        let may_have_rare = idle || (open && self.cold.keys.has_waiting());
        (idle, if may_have_rare { self.rare_effects(open, idle) } else { None })
    }

    #[cold]
    fn rare_effects(&mut self, open: bool, idle: bool) -> Option<Box<RareEffects<R, W>>> {
        let wakers = if open { self.grant() } else { Vec::new() };
        let has_closed = idle && self.cold.phase == Phase::Draining;
        if has_closed {
            self.cold.phase = Phase::Closed; // 8
        }
        let surplus = if idle { self.hot.table.surplus() } else { Vec::new() };
        let has_any = !wakers.is_empty() || !surplus.is_empty() || has_closed;
        has_any.then(|| Box::new(RareEffects { wakers, surplus, has_closed, replaced: None }))
    }

    #[inline(always)]
    fn start_next(&mut self, now: Moment) {
        let hot = &mut self.hot;
        if let Some((index, row)) = hot.line.start_first(&mut hot.table) {
            row.stamp = Stamp::new(JobState::Active, now);
            hot.running += 1;
            hot.dispatch.push_ready(index);
        } else if let Some((turn, index)) = self.cold.keys.first_admitted() {
            self.cold.keys.start(turn);
            self.start_with_permit(index, now);
        }
    }

    fn grant(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while self.cold.keys.has_waiting() && self.has_room_to_run() {
            let may_wait = self.has_room_to_wait();
            let Some(called) = self.cold.keys.call_next(may_wait) else { break };
            let CalledSpawner { ticket, key, key_admitted, waker } = called;
            self.cold.grants.insert(ticket, Grant { key, key_admitted });
            wakers.push(waker);
        }
        wakers
    }

    // Schedulers for tests of applications.

    /// Replaces the limit, and nothing else. Returns the previous one.
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "for `testing` only"))]
    pub(crate) fn swap_limit(&mut self, limit: usize) -> usize {
        std::mem::replace(&mut self.hot.limit, limit)
    }

    /// Starts one job although the limit is 0. Returns it.
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "for `testing` only"))]
    pub(crate) fn start_one(&mut self, now: Moment) -> Option<(R, Effects<R, W>)> {
        if self.cold.phase == Phase::Closed {
            return None; // 6
        }
        let first_admitted = || self.cold.keys.first_admitted().map(|(_, row)| row);
        let first = self.hot.line.first_pending().or_else(first_admitted)?;
        let meta = self.hot.table[first].meta().clone();
        let limit = self.swap_limit(self.running() + 1);
        let effects = self.effects(now);
        self.swap_limit(limit);
        Some((meta, effects))
    }
}

#[cfg(test)]
mod tests;
