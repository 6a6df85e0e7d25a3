//! The queue: which job starts, which waits, and which is refused.
//!
//! A pure, synchronous state machine behind the scheduler's one lock. Each method does a bounded
//! amount of work. It runs no user code and drops none: it returns [`Effects`], which the caller
//! applies after unlocking. Of a `R` that is dropped under the lock, the caller has a clone.
//!
//! There are `limit` permits to run and `pending_limit` places to wait. A job holds a permit or a
//! place from its admission to its end, and a spawner holds one from its grant to its admission.
//! Shielded work holds none. A job with a concurrency key also runs only while it is *admitted* by its
//! key: see [`keys`](super::keys).
//!
//! `R` is the part of a job that the table keeps for the job's whole life. `W` is its work, which
//! leaves with the runner that takes the job: see [`dispatch`](super::dispatch).
//!
//! # Invariants
//!
//! 1. At most `limit` jobs run, shielded work not counted, and at most `limit_per_key` of one key.
//! 2. At most `pending_limit` jobs are pending, and no more permits and places are held than exist.
//!    With a `pending_limit` of 0, a deferred job holds a permit, and may be pending with that while
//!    its key is at its limit.
//! 3. A job is pending only while `limit` jobs run, or while `limit_per_key` of its key are admitted.
//!    A grant that is not used yet does not keep a pending job from starting.
//! 4. A spawner waits without a grant only while all permits and places are held or, if its key is at
//!    its limit, all places. No later spawner overtakes it, unless that one's job could start.
//! 5. Of the pending jobs that may start, the longest pending one starts first. Waiting spawners are
//!    granted in order too.
//! 6. `Closed` is final: after it nothing is admitted, granted or started.
//! 7. `accepted` = jobs in the table + the sum of the outcomes.
//! 8. A draining queue closes in the step that leaves it idle.
//! 9. Once the shutdown is announced, a job that ends otherwise than completed or skipped is kept for
//!    the drain report.
//! 10. Deferred and pending jobs together are at most `pending_limit`, if that is not 0: jobs that wait
//!     for their responses do not keep others from running.
//! 11. At most one job of a unique key is in the table.
//! 12. Of the ready jobs, the one that started first is taken first.

use std::{collections::BTreeMap, sync::Arc, task::Waker};

use crate::{
    rules::{
        dispatch::Dispatch,
        keys::{CalledSpawner, KeyName, Keys, Ticket},
        ledger::{Ended, Ledger, Totals},
        line::{Line, Links, List, Row, Stamp},
        state::{JobState, Outcome},
        step::{
            Admit, Advance, Effects, JobKey, JobMeta, Phase, RareEffects, Refusal, Stealable, Wake,
        },
        table::{NONE, RowIndex, Table},
    },
    util::clock::Moment,
};

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
    phase: Phase,
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

impl<R: JobMeta, W> Queue<R, W> {
    pub(crate) fn new(
        limit: Option<usize>,
        pending_limit: Option<usize>,
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
        let replaced = self.check(&meta)?;
        let keys = &self.cold.keys;
        // A job that replaces another takes over its permit or place.
        let has_room = match how {
            Admit::Outside => true,
            // It would have to wait, and there is no place to wait.
            Admit::Limited if self.cold.pending_limit == 0 && !keys.has_room(meta.key()) => false,
            _ if replaced.is_some() => true,
            Admit::Limited if keys.has_room(meta.key()) => !self.is_full(),
            Admit::Deferred if self.cold.pending_limit == 0 => !self.is_full(),
            Admit::Limited | Admit::Deferred => self.has_room_to_wait(),
        };
        if !has_room {
            return Err(Refusal::Full);
        }
        let replaced = replaced.and_then(|row| self.replace_unique(row));
        meta.accepted(now);
        let row = self.insert(meta, work(), now);
        match how {
            Admit::Limited => self.enter(row, false, now),
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
        let replaced = match self.check(&meta) {
            Ok(replaced) => replaced.and_then(|row| self.replace_unique(row)),
            Err(refusal) => return Some(Err(refusal)),
        };
        let grant = self.cold.grants.remove(&ticket)?;
        meta.accepted(now);
        let row = self.insert(meta, work(), now);
        self.enter(row, grant.key_admitted, now);
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

    fn is_full(&self) -> bool {
        self.running() + self.waiting_for_something()
            >= self.hot.limit.saturating_add(self.cold.pending_limit)
    }

    /// Whether one more job may wait although jobs could run (10).
    fn has_room_to_wait(&self) -> bool {
        self.waiting_for_something() < self.cold.pending_limit
    }

    fn waiting_for_something(&self) -> usize {
        self.cold.deferred_len + self.pending_count() + self.cold.grants.len()
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

    /// Ends an unstarted job that another job of its unique key replaces.
    fn replace_unique(&mut self, row: RowIndex) -> Option<(R, W)> {
        let (meta, work) = self.remove_unstarted(row)?;
        self.record_end(&meta, Outcome::Cancelled);
        Some((meta, work))
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
        let row = &mut hot.table[index];
        let removed = row.meta.take().zip(row.work.take());
        hot.table.release(index);
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
        while self.cold.keys.has_waiting() && !self.is_full() {
            let may_wait = self.has_room_to_wait();
            let Some(called) = self.cold.keys.call_next(may_wait) else { break };
            let CalledSpawner { ticket, key, key_admitted, waker } = called;
            self.cold.grants.insert(ticket, Grant { key, key_admitted });
            wakers.push(waker);
        }
        wakers
    }

    // Closing.

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
            self.cold.phase = if self.is_idle() { Phase::Closed } else { Phase::Draining };
        }
    }

    pub(crate) fn close(&mut self) {
        self.announce();
        self.cold.phase = Phase::Closed;
    }

    /// After closing: removes up to `most` waiting spawners, to be woken.
    pub(crate) fn drain_waiting(&mut self, most: usize) -> Vec<Waker> {
        self.cold.keys.drain_waiting(most)
    }

    /// After closing: removes up to `most` jobs that will never start, with their work.
    pub(crate) fn drain_unstarted(&mut self, most: usize) -> (Arc<Vec<R>>, Vec<W>) {
        let room = most.min(self.pending_count() + self.cold.deferred_len);
        let (mut jobs, mut all_work) = (Vec::with_capacity(room), Vec::with_capacity(room));
        self.hot.line.drain_pending(&mut self.hot.table, most, |meta, work| {
            meta.ended();
            jobs.push(meta);
            all_work.push(work);
        });
        while jobs.len() < most {
            let first = self.cold.keys.first().unwrap_or(self.cold.deferred.first);
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
        std::mem::take(&mut self.cold.ledger.ended)
    }

    // Looking.

    pub(crate) fn phase(&self) -> Phase {
        self.cold.phase
    }

    pub(crate) fn state(&self, job: JobKey) -> JobState {
        let row = self.hot.table.get(job.row).filter(|row| row.meta().id() == job.id);
        row.map_or(JobState::Finished, Row::state)
    }

    /// Whether nothing runs or waits, and no spawner is between its grant and its admission. A closed
    /// queue does not wait for spawners, since it refuses them.
    pub(crate) fn is_idle(&self) -> bool {
        let no_spawners = self.cold.grants.is_empty() && !self.cold.keys.has_waiting();
        self.hot.table.is_empty() && (no_spawners || self.cold.phase == Phase::Closed)
    }

    pub(crate) fn len(&self) -> usize {
        self.hot.table.len()
    }

    pub(crate) fn deferred_count(&self) -> usize {
        self.cold.deferred_len
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.hot.line.pending as usize + self.cold.keys.len()
    }

    pub(crate) fn active_count(&self) -> usize {
        self.hot.line.active as usize
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.cold.keys.waiting_count()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.hot.totals
    }

    pub(crate) fn totals_at_drain(&self) -> Totals {
        self.cold.ledger.at_drain
    }

    /// Since when the longest pending job has been pending, and the longest active one active.
    pub(crate) fn oldest(&self) -> (Option<Moment>, Option<Moment>) {
        let since = |row: RowIndex| self.hot.table[row].stamp.since();
        let pending = self.hot.line.first_pending().or_else(|| self.cold.keys.first());
        (pending.map(since), self.hot.line.first_active().map(since))
    }

    /// The jobs in up to `most` rows from `from` on, and the row to go on from.
    pub(crate) fn page(&self, from: usize, most: usize) -> (Vec<(R, JobState)>, Option<usize>) {
        let Hot { table, line, .. } = &self.hot;
        let active = self.active_count();
        if from == 0 && active <= most && active == table.len() {
            // All other rows are free, and there may be a million of them.
            let next = |row: &RowIndex| Some(table[*row].links.next).filter(|next| *next != NONE);
            let active = std::iter::successors(line.first_active(), next);
            let job = |row| (table[row].meta().clone(), JobState::Active);
            return (active.map(job).collect(), None);
        }
        let to = from.saturating_add(most).min(table.end());
        let rows = (from..to).filter_map(|row| table.get(RowIndex::try_from(row).ok()?));
        let jobs = rows.map(|row| (row.meta().clone(), row.state()));
        (jobs.collect(), (to < table.end()).then_some(to))
    }

    // Schedulers for tests of applications.

    /// Replaces the limit, and nothing else. Returns the previous one.
    pub(crate) fn swap_limit(&mut self, limit: usize) -> usize {
        std::mem::replace(&mut self.hot.limit, limit)
    }

    /// Starts one job although the limit is 0. Returns it.
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
