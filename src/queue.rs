//! Who may start, who waits and who is refused: the rules, without any async code.
//!
//! One `Queue` sits behind the scheduler's only lock. Its methods do bounded work, run no user
//! code and drop none: whatever must be woken, started or dropped is handed back to the caller,
//! who does so after unlocking. (Who ends a job holds a clone of its entry, so the table's clone
//! is never the last.)
//!
//! There are `limit + pending_limit` places. A job holds one from when it is accepted until it
//! ends, and so does a spawner from when it is granted one until it takes its turn; shielded work
//! holds none. `R` is what the table keeps of a job for its whole life, `W` its work, which leaves
//! when the job starts.
//!
//! A job with a key runs only while fewer than `limit_per_key` of that key are *let in*: see
//! [`lanes`](crate::lanes).
//!
//! # Invariants
//!
//! 1. At most `limit` jobs run (shielded work aside), and at most `limit_per_key` of one key.
//! 2. At most `pending_limit` jobs are pending, and no more places are held than there are. (If it
//!    is 0, a job that was deferred still waits, in the running place that it has, while its key
//!    is at its limit.)
//! 3. A job is pending only while `limit` jobs run or `limit_per_key` of its key are let in:
//!    nothing idles beside a backlog, not even for a spawner that has been granted a place and is
//!    slow to use it.
//! 4. A spawner waits without a grant only while all places are held, or, if its key is at its
//!    limit, all places to wait in: nobody who could not start at once overtakes it.
//! 5. Of the pending jobs that may start, the one that has been pending longest starts first;
//!    waiting spawners are granted places likewise.
//! 6. `Closed` is final: nothing is admitted, granted or started any more.
//! 7. `accepted` = jobs in the table + the sum of the outcomes.
//! 8. A draining queue closes in the very step that leaves it idle.
//! 9. From the announcement of the end on, a job that ends otherwise than completed or skipped is
//!    kept in `ended` until the report takes it.
//! 10. Deferred and pending jobs together are at most `pending_limit` (if that is not 0): jobs
//!     that wait for their responses do not keep others from running.
//! 11. At most one job of a unique key is in the table.

use std::{collections::BTreeMap, mem, sync::Arc, task::Waker};

use slab::Slab;
use tokio::time::Instant;

use crate::{
    lanes::{Lanes, Ticket},
    state::{JobId, JobState, Outcome},
};

#[cfg(test)]
mod tests;

/// What the queue asks of the part of a job that stays in its table.
pub(crate) trait Entry: Clone {
    fn id(&self) -> JobId;
    /// Jobs of one key share `limit_per_key`.
    fn key(&self) -> Option<&Arc<str>>;
    fn unique(&self) -> Option<&Unique>;
    /// The job is in `state` now, in this slot until it is finished.
    fn moved(&self, state: JobState, slot: usize);
}

/// There is to be one job of this key.
#[derive(Clone, Debug)]
pub(crate) struct Unique {
    pub(crate) key: Arc<str>,
    /// What to do where there is one that has not started: take its place, or be refused.
    pub(crate) replace: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    /// The end is announced, and nothing else has changed.
    Announced,
    /// Open until idle.
    Draining,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Closed,
    /// There is a job of the same unique key.
    Duplicate(JobId),
}

/// In which way a job asks to be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// To run as soon as it may.
    Limited,
    /// To wait for [`Queue::begin`] first.
    Deferred,
    /// To run now, outside all limits.
    Outside,
}

/// A job that the caller must start now.
pub(crate) struct Start<R, W> {
    pub(crate) entry: R,
    pub(crate) work: W,
}

/// What the caller must do after unlocking.
#[must_use]
pub(crate) struct Effects<R, W> {
    pub(crate) start: Option<Start<R, W>>,
    pub(crate) wake: Vec<Waker>,
    /// A job whose unique key another has taken over. It has ended as cancelled.
    pub(crate) replaced: Option<(R, W)>,
    /// The step left nothing in the queue.
    pub(crate) idle: bool,
}

/// Counts of a moment: how many jobs were ever accepted, and how those that ended did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) accepted: u64,
    outcomes: [u64; Outcome::COUNT],
}

impl Totals {
    pub(crate) fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    fn count(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }
}

struct Slot<R, W> {
    entry: R,
    state: JobState,
    /// Present until the job starts.
    work: Option<W>,
    /// Shielded work holds no place.
    has_place: bool,
    /// Smaller than that of any job that became pending later.
    turn: u64,
    /// When the job came into its present state.
    since: Instant,
    previous: Option<usize>,
    next: Option<usize>,
}

/// A doubly linked list through the slots, so that any job leaves in constant time.
#[derive(Default)]
struct List {
    first: Option<usize>,
    last: Option<usize>,
    len: usize,
}

impl List {
    fn push<R, W>(&mut self, slots: &mut Slab<Slot<R, W>>, key: usize) {
        slots[key].previous = self.last;
        slots[key].next = None;
        match self.last.replace(key) {
            Some(last) => slots[last].next = Some(key),
            None => self.first = Some(key),
        }
        self.len += 1;
    }

    fn unlink<R, W>(&mut self, slots: &mut Slab<Slot<R, W>>, key: usize) {
        let (previous, next) = (slots[key].previous, slots[key].next);
        match previous {
            Some(previous) => slots[previous].next = next,
            None => self.first = next,
        }
        match next {
            Some(next) => slots[next].previous = previous,
            None => self.last = previous,
        }
        self.len -= 1;
    }
}

pub(crate) struct Queue<R, W> {
    limit: usize,
    pending_limit: usize,
    phase: Phase,
    slots: Slab<Slot<R, W>>,
    deferred: List,
    /// Pending, without a key.
    line: List,
    active: List,
    /// The pending jobs with a key, and the line of spawners.
    lanes: Lanes,
    /// Active jobs that hold a place.
    running: usize,
    /// Spawners that hold a place.
    granted: BTreeMap<Ticket, Grant>,
    uniques: BTreeMap<Arc<str>, usize>,
    last_turn: u64,
    totals: Totals,
    at_drain: Totals,
    ended: Vec<(R, Outcome)>,
}

/// A place for a spawner, and whether its key has been let in along with it.
struct Grant {
    key: Option<Arc<str>>,
    let_in: bool,
}

impl<R: Entry, W> Queue<R, W> {
    pub(crate) fn new(
        limit: Option<usize>,
        pending_limit: Option<usize>,
        limit_per_key: Option<usize>,
    ) -> Self {
        Self {
            limit: limit.unwrap_or(usize::MAX),
            pending_limit: pending_limit.unwrap_or(usize::MAX),
            phase: Phase::Open,
            slots: Slab::new(),
            deferred: List::default(),
            line: List::default(),
            active: List::default(),
            lanes: Lanes::new(limit_per_key),
            running: 0,
            granted: BTreeMap::new(),
            uniques: BTreeMap::new(),
            last_turn: 0,
            totals: Totals::default(),
            at_drain: Totals::default(),
            ended: Vec::new(),
        }
    }

    // Admission. `work` is called under the lock, and only if the job is taken in.

    /// Takes the job in if there is a place for it.
    pub(crate) fn admit(
        &mut self,
        how: Admit,
        entry: &R,
        work: impl FnOnce() -> W,
        now: Instant,
    ) -> Result<Effects<R, W>, Refusal> {
        let replaced = self.check(entry)?;
        // A job that takes over from another has that one's place.
        let has_room = match how {
            Admit::Outside => true,
            // It would have to wait, and there is nothing to wait in.
            Admit::Limited if self.pending_limit == 0 && !self.lanes.is_open(entry.key()) => false,
            _ if replaced.is_some() => true,
            Admit::Limited if self.lanes.is_open(entry.key()) => !self.is_full(),
            Admit::Limited => self.has_room_to_wait(),
            Admit::Deferred if self.pending_limit == 0 => !self.is_full(),
            Admit::Deferred => self.has_room_to_wait(),
        };
        if !has_room {
            return Err(Refusal::Full);
        }
        let replaced = replaced.and_then(|slot| self.take_over(slot));
        let slot = self.insert(entry, work(), how != Admit::Outside, now);
        let start = match how {
            Admit::Limited => self.enter(slot, false, now),
            Admit::Deferred => {
                self.put(slot, JobState::Deferred, now);
                None
            }
            Admit::Outside => Some(self.start(slot, now)),
        };
        Ok(Effects { replaced, ..self.effects(start, now) })
    }

    /// The deferred job `id` in `slot` may start.
    pub(crate) fn begin(&mut self, slot: usize, id: JobId, now: Instant) -> Effects<R, W> {
        if self.phase == Phase::Closed || !self.is_at(slot, id, JobState::Deferred) {
            return self.effects(None, now);
        }
        self.deferred.unlink(&mut self.slots, slot);
        let start = self.enter(slot, false, now);
        self.effects(start, now)
    }

    /// Joins the line of spawners. Only for one that was refused as `Full` under this same hold of
    /// the lock (4).
    pub(crate) fn wait(&mut self, entry: &R, waker: Waker) -> Ticket {
        self.lanes.join(entry.key(), waker)
    }

    /// Takes in the job of a spawner that has been granted a place; `None` if it has not.
    pub(crate) fn take_turn(
        &mut self,
        ticket: Ticket,
        entry: &R,
        work: impl FnOnce() -> W,
        now: Instant,
    ) -> Option<Result<Effects<R, W>, Refusal>> {
        if self.phase < Phase::Closed && !self.granted.contains_key(&ticket) {
            return None;
        }
        // A refused spawner gives its place back when it leaves.
        let replaced = match self.check(entry) {
            Ok(replaced) => replaced.and_then(|slot| self.take_over(slot)),
            Err(refusal) => return Some(Err(refusal)),
        };
        let grant = self.granted.remove(&ticket)?;
        let slot = self.insert(entry, work(), true, now);
        let start = self.enter(slot, grant.let_in, now);
        Some(Ok(Effects { replaced, ..self.effects(start, now) }))
    }

    /// Goes on waiting, after `take_turn` gave `None` under this same hold of the lock. The waker
    /// that comes back is for the caller to drop.
    pub(crate) fn wait_on(&mut self, ticket: Ticket, waker: Waker) -> Option<Waker> {
        self.lanes.wait_on(ticket, waker)
    }

    /// Leaves the line, whether granted or not. The waker is for the caller to drop.
    pub(crate) fn leave(&mut self, ticket: Ticket, now: Instant) -> (Effects<R, W>, Option<Waker>) {
        let waker = self.lanes.leave(ticket);
        if let Some(Grant { key, let_in: true }) = self.granted.remove(&ticket) {
            self.lanes.let_out(key.as_ref());
        }
        (self.effects(None, now), waker)
    }

    /// Whether the job may be taken in, and the slot of the one that it replaces.
    fn check(&self, entry: &R) -> Result<Option<usize>, Refusal> {
        if self.phase == Phase::Closed {
            return Err(Refusal::Closed);
        }
        let Some(unique) = entry.unique() else { return Ok(None) };
        let Some(&slot) = self.uniques.get(&unique.key) else { return Ok(None) };
        let other = &self.slots[slot];
        if unique.replace && other.state < JobState::Active {
            return Ok(Some(slot));
        }
        Err(Refusal::Duplicate(other.entry.id()))
    }

    fn is_full(&self) -> bool {
        self.running + self.waiting_for_something() >= self.limit.saturating_add(self.pending_limit)
    }

    /// Whether one more job may wait although jobs could run (10).
    fn has_room_to_wait(&self) -> bool {
        self.waiting_for_something() < self.pending_limit
    }

    fn waiting_for_something(&self) -> usize {
        self.deferred.len + self.pending_count() + self.granted.len()
    }

    fn insert(&mut self, entry: &R, work: W, has_place: bool, now: Instant) -> usize {
        self.totals.accepted += 1;
        let slot = self.slots.insert(Slot {
            entry: entry.clone(),
            // Until `put` says otherwise, in the same step.
            state: JobState::Deferred,
            work: Some(work),
            has_place,
            turn: 0,
            since: now,
            previous: None,
            next: None,
        });
        if let Some(unique) = entry.unique() {
            self.uniques.insert(unique.key.clone(), slot);
        }
        slot
    }

    /// Starts the job if it may, or has it wait.
    fn enter(&mut self, slot: usize, let_in: bool, now: Instant) -> Option<Start<R, W>> {
        let key = self.slots[slot].entry.key().cloned();
        let let_in = let_in || self.lanes.let_in(key.as_ref());
        if let_in && self.running < self.limit {
            return Some(self.start(slot, now));
        }
        self.put(slot, JobState::Pending, now);
        self.last_turn += 1;
        self.slots[slot].turn = self.last_turn;
        match key.as_ref().filter(|_| self.lanes.are_limited()) {
            None => self.line.push(&mut self.slots, slot),
            Some(key) => self.lanes.push(key, self.last_turn, slot, let_in),
        }
        None
    }

    fn put(&mut self, slot: usize, state: JobState, now: Instant) {
        match state {
            JobState::Deferred => self.deferred.push(&mut self.slots, slot),
            JobState::Active => self.active.push(&mut self.slots, slot),
            // In the line or its lane, as `enter` says.
            JobState::Pending => {}
            JobState::Finished => unreachable!("a finished job leaves the table"),
        }
        let job = &mut self.slots[slot];
        job.state = state;
        job.since = now;
        job.entry.moved(state, slot);
    }

    fn start(&mut self, slot: usize, now: Instant) -> Start<R, W> {
        self.put(slot, JobState::Active, now);
        let job = &mut self.slots[slot];
        if job.has_place {
            self.running += 1;
        }
        let work = job.work.take().expect("a job starts once");
        Start { entry: job.entry.clone(), work }
    }

    // Leaving.

    /// The active job `id` in `slot` has ended. Its place goes to the next that may start, which
    /// the caller must see to.
    pub(crate) fn finish(
        &mut self,
        slot: usize,
        id: JobId,
        outcome: Outcome,
        now: Instant,
    ) -> Effects<R, W> {
        if self.is_active(slot, id) {
            self.active.unlink(&mut self.slots, slot);
            let job = self.end(slot, outcome);
            if job.has_place {
                self.running -= 1;
                self.lanes.let_out(job.entry.key());
            }
        }
        self.effects(None, now)
    }

    /// Takes a job that has not started out of the queue.
    pub(crate) fn remove(
        &mut self,
        slot: usize,
        id: JobId,
        outcome: Outcome,
        now: Instant,
    ) -> Option<(W, Effects<R, W>)> {
        let job = self.slots.get(slot).filter(|job| job.entry.id() == id)?;
        if job.state >= JobState::Active {
            return None;
        }
        let work = self.take_out(slot, outcome)?.work?;
        Some((work, self.effects(None, now)))
    }

    /// Ends a job that another replaces.
    fn take_over(&mut self, slot: usize) -> Option<(R, W)> {
        let job = self.take_out(slot, Outcome::Cancelled)?;
        Some((job.entry, job.work?))
    }

    fn take_out(&mut self, slot: usize, outcome: Outcome) -> Option<Slot<R, W>> {
        let job = self.slots.get(slot)?;
        match (job.state, job.entry.key().filter(|_| self.lanes.are_limited())) {
            (JobState::Deferred, _) => self.deferred.unlink(&mut self.slots, slot),
            (JobState::Pending, None) => self.line.unlink(&mut self.slots, slot),
            (JobState::Pending, Some(key)) => self.lanes.remove(key, job.turn),
            _ => return None,
        }
        Some(self.end(slot, outcome))
    }

    pub(crate) fn is_active(&self, slot: usize, id: JobId) -> bool {
        self.is_at(slot, id, JobState::Active)
    }

    fn is_at(&self, slot: usize, id: JobId, state: JobState) -> bool {
        self.slots.get(slot).is_some_and(|job| job.entry.id() == id && job.state == state)
    }

    fn end(&mut self, slot: usize, outcome: Outcome) -> Slot<R, W> {
        let job = self.slots.remove(slot);
        job.entry.moved(JobState::Finished, slot);
        if let Some(unique) = job.entry.unique() {
            self.uniques.remove(&unique.key);
        }
        self.totals.count(outcome);
        if self.phase > Phase::Open && !matches!(outcome, Outcome::Completed | Outcome::Skipped) {
            self.ended.push((job.entry.clone(), outcome));
        }
        job
    }

    // The end of every step.

    /// At most one more job can start now than before the step; and the places that have come free
    /// go to waiting spawners.
    fn effects(&mut self, start: Option<Start<R, W>>, now: Instant) -> Effects<R, W> {
        let open = self.phase < Phase::Closed;
        let start = start.or_else(|| if open { self.start_next(now) } else { None });
        let wake = if open { self.grant() } else { Vec::new() };
        let idle = self.is_idle();
        if idle && self.phase == Phase::Draining {
            self.phase = Phase::Closed; // 8
        }
        Effects { start, wake, replaced: None, idle }
    }

    fn start_next(&mut self, now: Instant) -> Option<Start<R, W>> {
        if self.running >= self.limit {
            return None;
        }
        let first = self.line.first.map(|slot| (self.slots[slot].turn, slot));
        let slot = match (first, self.lanes.first_let_in()) {
            (Some((turn, slot)), let_in) if let_in.is_none_or(|(other, _)| turn < other) => {
                self.line.unlink(&mut self.slots, slot);
                slot
            }
            (_, let_in) => {
                let (turn, slot) = let_in?;
                self.lanes.start(turn);
                slot
            }
        };
        Some(self.start(slot, now))
    }

    fn grant(&mut self) -> Vec<Waker> {
        let mut wake = Vec::new();
        while !self.lanes.nobody_waits() && !self.is_full() {
            let Some(granted) = self.lanes.call_next(self.has_room_to_wait()) else { break };
            let (ticket, key, let_in, waker) = granted;
            self.granted.insert(ticket, Grant { key, let_in });
            wake.push(waker);
        }
        wake
    }

    // Closing.

    pub(crate) fn announce(&mut self) {
        if self.phase == Phase::Open {
            self.at_drain = self.totals;
            self.phase = Phase::Announced;
        }
    }

    /// Begins to drain, or closes at once if there is nothing to drain.
    pub(crate) fn drain(&mut self) {
        self.announce();
        if self.phase == Phase::Announced {
            self.phase = if self.is_idle() { Phase::Closed } else { Phase::Draining };
        }
    }

    pub(crate) fn close(&mut self) {
        self.announce();
        self.phase = Phase::Closed;
    }

    /// After closing: up to `most` waiting spawners, to be woken.
    pub(crate) fn take_waiters(&mut self, most: usize) -> Vec<Waker> {
        self.lanes.take_waiters(most)
    }

    /// After closing: up to `most` jobs that will never start.
    pub(crate) fn take_unstarted(&mut self, most: usize) -> Vec<(R, W)> {
        let mut taken = Vec::with_capacity(most.min(self.pending_count() + self.deferred.len));
        while taken.len() < most {
            let first = self.line.first.or_else(|| self.lanes.first()).or(self.deferred.first);
            let Some(job) = first.and_then(|slot| self.take_out(slot, Outcome::NeverStarted))
            else {
                break;
            };
            taken.extend(job.work.map(|work| (job.entry, work)));
        }
        taken
    }

    /// What ended otherwise than completed or skipped since the end was announced (9), once.
    pub(crate) fn take_ended(&mut self) -> Vec<(R, Outcome)> {
        mem::take(&mut self.ended)
    }

    // Tests of applications.

    /// From here on nothing starts by itself.
    #[cfg(feature = "testing")]
    pub(crate) fn hold(&mut self) {
        self.limit = 0;
    }

    /// Starts one job although the queue is on hold.
    #[cfg(feature = "testing")]
    pub(crate) fn start_one(&mut self, now: Instant) -> Effects<R, W> {
        let limit = mem::replace(&mut self.limit, self.running + 1);
        let effects = self.effects(None, now);
        self.limit = limit;
        effects
    }

    // Looking.

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Nothing runs or waits, and no spawner is between its place and its job. A closed queue does
    /// not wait for spawners: it refuses them.
    pub(crate) fn is_idle(&self) -> bool {
        let nobody_is_spawning = self.granted.is_empty() && self.lanes.nobody_waits();
        self.slots.is_empty() && (nobody_is_spawning || self.phase == Phase::Closed)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn deferred_count(&self) -> usize {
        self.deferred.len
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.line.len + self.lanes.len()
    }

    pub(crate) fn active_count(&self) -> usize {
        self.active.len
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.lanes.waiting_count()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn totals_at_drain(&self) -> Totals {
        self.at_drain
    }

    /// Since when the longest pending job has waited, and the longest active one has run.
    pub(crate) fn oldest(&self) -> (Option<Instant>, Option<Instant>) {
        let since = |slot: usize| self.slots[slot].since;
        let pending = self.line.first.into_iter().chain(self.lanes.first()).map(since).min();
        (pending, self.active.first.map(since))
    }

    /// The jobs in up to `most` slots from `from` on, and where to go on.
    pub(crate) fn page(&self, from: usize, most: usize) -> (Vec<R>, Option<usize>) {
        let to = from.saturating_add(most).min(self.slots.capacity());
        let jobs = (from..to).filter_map(|slot| self.slots.get(slot)).map(|job| job.entry.clone());
        (jobs.collect(), (to < self.slots.capacity()).then_some(to))
    }
}
