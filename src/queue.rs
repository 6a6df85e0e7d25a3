//! Who may start, who waits and who is refused: the rules, without any async code.
//!
//! One `Queue` sits behind the scheduler's only lock. Its methods do bounded work, run no user
//! code and drop none: whatever must be woken, started or dropped is handed back to the caller,
//! who does so after unlocking. (Who ends a job holds a clone of its entry, so the table's clone
//! is never the last.)
//!
//! There are `limit + pending_limit` places. A job that runs or is pending holds one, and so does a
//! spawner from when it is granted one until it takes its turn; shielded work holds none. `R` is
//! what the table keeps of a job for its whole life, `W` its work, which leaves when the job starts.
//!
//! # Invariants
//!
//! 1. At most `limit` jobs run (shielded work aside).
//! 2. At most `pending_limit` jobs are pending, and no more places are held than there are.
//! 3. A job is pending only while `limit` jobs run: nothing idles beside a backlog, not even for a
//!    spawner that has been granted a place and is slow to use it.
//! 4. A spawner waits without a grant only while all places are held, so nobody can overtake it.
//! 5. Pending jobs start in the order in which they became pending; waiting spawners are granted
//!    places in the order in which they came.
//! 6. `Closed` is final: nothing is admitted, granted or started any more.
//! 7. `accepted` = jobs in the table + the sum of the outcomes.
//! 8. A draining queue closes in the very step that leaves it idle.
//! 9. From the start of a drain on, a job that ends otherwise than completed or skipped is kept
//!    in `ended` until the report takes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    task::Waker,
};

use slab::Slab;
use tokio::time::Instant;

use crate::state::{JobId, JobState, Outcome};

/// What the queue asks of the part of a job that stays in its table.
pub(crate) trait Entry: Clone {
    fn id(&self) -> JobId;
    /// The job is in `state` now, at `key` until it is finished.
    fn moved(&self, state: JobState, key: usize);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    Draining,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Closed,
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
    pub(crate) wake: Option<Waker>,
    /// The step left nothing in the queue.
    pub(crate) idle: bool,
}

/// The number of a waiting spawner; smaller numbers came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

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
    /// Present until the job starts.
    work: Option<W>,
    /// Shielded work holds no place.
    has_place: bool,
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
    pending: List,
    active: List,
    /// Active jobs that hold a place.
    running: usize,
    waiting: BTreeMap<Ticket, Waker>,
    granted: BTreeSet<Ticket>,
    last_ticket: u64,
    totals: Totals,
    at_drain: Totals,
    ended: Vec<(R, Outcome)>,
}

impl<R: Entry, W> Queue<R, W> {
    pub(crate) fn new(limit: Option<usize>, pending_limit: Option<usize>) -> Self {
        Self {
            limit: limit.unwrap_or(usize::MAX),
            pending_limit: pending_limit.unwrap_or(usize::MAX),
            phase: Phase::Open,
            slots: Slab::new(),
            pending: List::default(),
            active: List::default(),
            running: 0,
            waiting: BTreeMap::new(),
            granted: BTreeSet::new(),
            last_ticket: 0,
            totals: Totals::default(),
            at_drain: Totals::default(),
            ended: Vec::new(),
        }
    }

    // Admission. `work` is called under the lock, and only if the job is taken in.

    /// Takes the job in if there is a place.
    pub(crate) fn admit(
        &mut self,
        entry: &R,
        work: impl FnOnce() -> W,
        now: Instant,
    ) -> Result<Effects<R, W>, Refusal> {
        self.refuse_if_closed()?;
        if self.is_full() {
            return Err(Refusal::Full);
        }
        Ok(self.accept(entry, work(), true, now))
    }

    /// Takes the job in outside the limit.
    pub(crate) fn admit_outside(
        &mut self,
        entry: &R,
        work: impl FnOnce() -> W,
        now: Instant,
    ) -> Result<Effects<R, W>, Refusal> {
        self.refuse_if_closed()?;
        Ok(self.accept(entry, work(), false, now))
    }

    /// Joins the line of spawners. Only for one that was refused as `Full` under this same hold of
    /// the lock (4).
    pub(crate) fn wait(&mut self, waker: Waker) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.waiting.insert(ticket, waker);
        ticket
    }

    /// Takes in the job of a spawner that has been granted a place; `None` if it has not.
    pub(crate) fn take_turn(
        &mut self,
        ticket: Ticket,
        entry: &R,
        work: impl FnOnce() -> W,
        now: Instant,
    ) -> Option<Result<Effects<R, W>, Refusal>> {
        if let Err(refusal) = self.refuse_if_closed() {
            return Some(Err(refusal));
        }
        if !self.granted.remove(&ticket) {
            return None;
        }
        Some(Ok(self.accept(entry, work(), true, now)))
    }

    /// Goes on waiting, after `take_turn` gave `None` under this same hold of the lock. The waker
    /// that comes back is for the caller to drop.
    pub(crate) fn wait_on(&mut self, ticket: Ticket, waker: Waker) -> Option<Waker> {
        self.waiting.insert(ticket, waker)
    }

    /// Leaves the line, whether granted or not. The waker is for the caller to drop.
    pub(crate) fn leave(
        &mut self,
        ticket: Ticket,
        now: Instant,
    ) -> (Option<Effects<R, W>>, Option<Waker>) {
        let waker = self.waiting.remove(&ticket);
        let granted = self.granted.remove(&ticket);
        (granted.then(|| self.refill(now)), waker)
    }

    fn refuse_if_closed(&self) -> Result<(), Refusal> {
        if self.phase == Phase::Closed { Err(Refusal::Closed) } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        let held = self.running + self.pending.len + self.granted.len();
        held >= self.limit.saturating_add(self.pending_limit)
    }

    fn accept(&mut self, entry: &R, work: W, has_place: bool, now: Instant) -> Effects<R, W> {
        self.totals.accepted += 1;
        let key = self.slots.insert(Slot {
            entry: entry.clone(),
            work: Some(work),
            has_place,
            since: now,
            previous: None,
            next: None,
        });
        if has_place && self.running >= self.limit {
            self.pending.push(&mut self.slots, key);
            self.slots[key].entry.moved(JobState::Pending, key);
            return self.effects(None, None);
        }
        let start = self.start(key, now);
        self.effects(Some(start), None)
    }

    // Leaving.

    /// The running job `id` at `key` has ended. Its place goes to the next pending job, which the
    /// caller must start.
    pub(crate) fn finish(
        &mut self,
        key: usize,
        id: JobId,
        outcome: Outcome,
        now: Instant,
    ) -> Effects<R, W> {
        if !self.is_at(key, id, JobState::Active) {
            return self.effects(None, None);
        }
        self.active.unlink(&mut self.slots, key);
        if self.end(key, outcome).has_place {
            self.running -= 1;
        }
        self.refill(now)
    }

    /// Takes a job that has not started out of the queue.
    pub(crate) fn remove(
        &mut self,
        key: usize,
        id: JobId,
        outcome: Outcome,
        now: Instant,
    ) -> Option<(W, Effects<R, W>)> {
        if !self.is_at(key, id, JobState::Pending) {
            return None;
        }
        self.pending.unlink(&mut self.slots, key);
        let mut slot = self.end(key, outcome);
        let work = slot.work.take()?;
        Some((work, self.refill(now)))
    }

    fn is_at(&self, key: usize, id: JobId, state: JobState) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.entry.id() == id && slot.state() == state)
    }

    fn end(&mut self, key: usize, outcome: Outcome) -> Slot<R, W> {
        let slot = self.slots.remove(key);
        slot.entry.moved(JobState::Finished, key);
        self.totals.count(outcome);
        if self.phase > Phase::Open && !matches!(outcome, Outcome::Completed | Outcome::Skipped) {
            self.ended.push((slot.entry.clone(), outcome));
        }
        slot
    }

    /// At most one place has come free: it goes to the next in line.
    fn refill(&mut self, now: Instant) -> Effects<R, W> {
        if self.phase == Phase::Closed {
            return self.effects(None, None);
        }
        let start = match self.pending.first {
            Some(key) if self.running < self.limit => {
                self.pending.unlink(&mut self.slots, key);
                Some(self.start(key, now))
            }
            _ => None,
        };
        let wake = self.grant();
        self.effects(start, wake)
    }

    fn grant(&mut self) -> Option<Waker> {
        if self.is_full() {
            return None;
        }
        let (ticket, waker) = self.waiting.pop_first()?;
        self.granted.insert(ticket);
        Some(waker)
    }

    fn start(&mut self, key: usize, now: Instant) -> Start<R, W> {
        self.active.push(&mut self.slots, key);
        let slot = &mut self.slots[key];
        if slot.has_place {
            self.running += 1;
        }
        slot.since = now;
        slot.entry.moved(JobState::Active, key);
        let work = slot.work.take().expect("a job starts once");
        Start { entry: slot.entry.clone(), work }
    }

    fn effects(&mut self, start: Option<Start<R, W>>, wake: Option<Waker>) -> Effects<R, W> {
        let idle = self.is_idle();
        if idle && self.phase == Phase::Draining {
            self.phase = Phase::Closed; // 8
        }
        Effects { start, wake, idle }
    }

    // Closing.

    /// Begins to drain, or closes at once if there is nothing to drain.
    pub(crate) fn drain(&mut self) {
        if self.phase == Phase::Open {
            self.at_drain = self.totals;
            self.phase = if self.is_idle() { Phase::Closed } else { Phase::Draining };
        }
    }

    pub(crate) fn close(&mut self) {
        self.drain();
        self.phase = Phase::Closed;
    }

    /// After closing: up to `most` waiting spawners, to be woken.
    pub(crate) fn take_waiters(&mut self, most: usize) -> Vec<Waker> {
        let count = most.min(self.waiting.len());
        (0..count).filter_map(|_| self.waiting.pop_first()).map(|(_, waker)| waker).collect()
    }

    /// After closing: up to `most` jobs that will never start.
    pub(crate) fn take_unstarted(&mut self, most: usize) -> Vec<(R, W)> {
        let mut taken = Vec::with_capacity(most.min(self.pending.len));
        while taken.len() < most {
            let Some(key) = self.pending.first else { break };
            self.pending.unlink(&mut self.slots, key);
            let slot = self.end(key, Outcome::NeverStarted);
            taken.extend(slot.work.map(|work| (slot.entry, work)));
        }
        taken
    }

    /// What ended otherwise than completed or skipped since the drain began (9), once.
    pub(crate) fn take_ended(&mut self) -> Vec<(R, Outcome)> {
        mem::take(&mut self.ended)
    }

    // Looking.

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Nothing runs or waits, and no spawner is between its place and its job.
    /// A closed queue does not wait for spawners: it refuses them.
    pub(crate) fn is_idle(&self) -> bool {
        let nobody_is_spawning = self.granted.is_empty() && self.waiting.is_empty();
        self.slots.is_empty() && (nobody_is_spawning || self.phase == Phase::Closed)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.pending.len
    }

    pub(crate) fn active_count(&self) -> usize {
        self.active.len
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn totals_at_drain(&self) -> Totals {
        self.at_drain
    }

    /// Since when the longest pending job has waited, and the longest active one has run.
    pub(crate) fn oldest(&self) -> (Option<Instant>, Option<Instant>) {
        let since = |list: &List| list.first.map(|key| self.slots[key].since);
        (since(&self.pending), since(&self.active))
    }

    /// The jobs at up to `most` keys from `from` on, and where to go on.
    pub(crate) fn page(&self, from: usize, most: usize) -> (Vec<R>, Option<usize>) {
        let to = from.saturating_add(most).min(self.slots.capacity());
        let jobs = (from..to).filter_map(|key| self.slots.get(key)).map(|slot| slot.entry.clone());
        (jobs.collect(), (to < self.slots.capacity()).then_some(to))
    }
}

impl<R, W> Slot<R, W> {
    fn state(&self) -> JobState {
        match self.work {
            Some(_) => JobState::Pending,
            None => JobState::Active,
        }
    }
}
