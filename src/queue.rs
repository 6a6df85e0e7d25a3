//! Who may start, who waits and who is refused: the rules, without any async code.
//!
//! One `Queue` sits behind the scheduler's only lock. Its methods do bounded work, run no user
//! code and drop none: whatever must be woken, started or dropped is handed back to the caller,
//! who does so after unlocking. (Who ends a job holds a clone of its entry, so the table's clone
//! is never the last.)
//!
//! A job holds a *running* place, a *queue* place, or (shielded work) none. A deferred job, which
//! waits for its response, holds a queue place if there is one, else a running one. `R` is what the table
//! keeps of a job for its whole life, `W` its work, which leaves when the job starts.
//!
//! # Invariants
//!
//! 1. `running <= limit`: at most `limit` running places are held.
//! 2. `queued <= pending_limit`: at most `pending_limit` queue places are held.
//! 3. A job is pending only while all running places are held (nothing idles beside a backlog).
//! 4. A spawner waits without a grant only while all places of both kinds are held, so nobody can
//!    overtake it.
//! 5. Pending jobs start in the order in which they became pending; waiting spawners are granted
//!    places in the order in which they came.
//! 6. `Closed` is final: nothing is admitted, granted or started any more.
//! 7. `accepted` = jobs in the table + the sum of the outcomes.
//! 8. A draining queue closes in the very step that leaves it idle.
//! 9. From the announcement of the end on, a job that ends otherwise than completed or skipped is kept
//!    in `ended` until the report takes it.

use std::{collections::BTreeMap, mem, task::Waker};

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
}

/// In which way a job asks to be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// To run as soon as a running place is free.
    Limited,
    /// To wait for [`Queue::begin`] first.
    Deferred,
    /// To run now, outside the limit.
    Outside,
}

/// The place a job or a spawner holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Running,
    Queue,
    /// Outside the limit: shielded work.
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
    state: JobState,
    /// Present until the job starts.
    work: Option<W>,
    place: Place,
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
    pending: List,
    active: List,
    running: usize,
    queued: usize,
    waiting: BTreeMap<Ticket, Waker>,
    granted: BTreeMap<Ticket, Place>,
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
            deferred: List::default(),
            pending: List::default(),
            active: List::default(),
            running: 0,
            queued: 0,
            waiting: BTreeMap::new(),
            granted: BTreeMap::new(),
            last_ticket: 0,
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
        self.refuse_if_closed()?;
        let place = match how {
            Admit::Limited => self.take_place(),
            Admit::Deferred => self.take_queue_place().or_else(|| self.take_place()),
            Admit::Outside => Some(Place::Outside),
        };
        let key = self.insert(place.ok_or(Refusal::Full)?, entry, work(), now);
        if how == Admit::Deferred {
            self.put(key, JobState::Deferred, now);
            return Ok(self.effects(None, None));
        }
        Ok(self.enter(key, now))
    }

    /// The deferred job `id` at `key` may start.
    pub(crate) fn begin(&mut self, key: usize, id: JobId, now: Instant) -> Effects<R, W> {
        if self.phase == Phase::Closed || !self.is_at(key, id, JobState::Deferred) {
            return self.effects(None, None);
        }
        self.deferred.unlink(&mut self.slots, key);
        self.enter(key, now)
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
        let place = self.granted.remove(&ticket)?;
        let key = self.insert(place, entry, work(), now);
        Some(Ok(self.enter(key, now)))
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
        let place = self.granted.remove(&ticket);
        (place.map(|place| self.free(place, now)), waker)
    }

    fn refuse_if_closed(&self) -> Result<(), Refusal> {
        if self.phase == Phase::Closed { Err(Refusal::Closed) } else { Ok(()) }
    }

    fn take_place(&mut self) -> Option<Place> {
        if self.running < self.limit {
            self.running += 1;
            return Some(Place::Running);
        }
        self.take_queue_place()
    }

    fn take_queue_place(&mut self) -> Option<Place> {
        let free = self.queued < self.pending_limit;
        free.then(|| {
            self.queued += 1;
            Place::Queue
        })
    }

    fn insert(&mut self, place: Place, entry: &R, work: W, now: Instant) -> usize {
        self.totals.accepted += 1;
        self.slots.insert(Slot {
            entry: entry.clone(),
            // Until `put` says otherwise, in the same step.
            state: JobState::Deferred,
            work: Some(work),
            place,
            since: now,
            previous: None,
            next: None,
        })
    }

    /// Starts the job, or has it wait for a running place.
    fn enter(&mut self, key: usize, now: Instant) -> Effects<R, W> {
        let place = self.slots[key].place;
        if place == Place::Queue && self.running == self.limit {
            self.put(key, JobState::Pending, now);
            return self.effects(None, None);
        }
        // A queue place that was granted or taken earlier may find that running places have come
        // free meanwhile; then nothing is pending (3), and the job starts.
        let wake = if place == Place::Queue { self.promote(key) } else { None };
        let start = self.start(key, now);
        self.effects(Some(start), wake)
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
        let slot = self.end(key, outcome);
        self.free(slot.place, now)
    }

    /// Takes a job that has not started out of the queue.
    pub(crate) fn remove(
        &mut self,
        key: usize,
        id: JobId,
        outcome: Outcome,
        now: Instant,
    ) -> Option<(W, Effects<R, W>)> {
        if self.is_at(key, id, JobState::Deferred) {
            self.deferred.unlink(&mut self.slots, key);
        } else if self.is_at(key, id, JobState::Pending) {
            self.pending.unlink(&mut self.slots, key);
        } else {
            return None;
        }
        let mut slot = self.end(key, outcome);
        let work = slot.work.take()?;
        Some((work, self.free(slot.place, now)))
    }

    fn is_at(&self, key: usize, id: JobId, state: JobState) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.entry.id() == id && slot.state == state)
    }

    fn put(&mut self, key: usize, state: JobState, now: Instant) {
        match state {
            JobState::Deferred => self.deferred.push(&mut self.slots, key),
            JobState::Pending => self.pending.push(&mut self.slots, key),
            JobState::Active => self.active.push(&mut self.slots, key),
            JobState::Finished => unreachable!("a finished job leaves the table"),
        }
        let slot = &mut self.slots[key];
        slot.state = state;
        slot.since = now;
        slot.entry.moved(state, key);
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

    fn free(&mut self, place: Place, now: Instant) -> Effects<R, W> {
        self.give_up(place);
        if self.phase == Phase::Closed || place == Place::Outside {
            return self.effects(None, None);
        }
        match self.pending.first {
            Some(key) if self.running < self.limit => {
                self.pending.unlink(&mut self.slots, key);
                let wake = self.promote(key);
                let start = self.start(key, now);
                self.effects(Some(start), wake)
            }
            _ => {
                let wake = self.grant();
                self.effects(None, wake)
            }
        }
    }

    fn give_up(&mut self, place: Place) {
        match place {
            Place::Running => self.running -= 1,
            Place::Queue => self.queued -= 1,
            Place::Outside => {}
        }
    }

    /// Exchanges a queue place for a running one; the queue place goes to a waiting spawner.
    fn promote(&mut self, key: usize) -> Option<Waker> {
        self.queued -= 1;
        self.running += 1;
        self.slots[key].place = Place::Running;
        self.grant()
    }

    fn grant(&mut self) -> Option<Waker> {
        if self.waiting.is_empty() {
            return None;
        }
        let place = self.take_place()?;
        let (ticket, waker) = self.waiting.pop_first()?;
        self.granted.insert(ticket, place);
        Some(waker)
    }

    fn start(&mut self, key: usize, now: Instant) -> Start<R, W> {
        self.put(key, JobState::Active, now);
        let slot = &mut self.slots[key];
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
        let count = most.min(self.waiting.len());
        (0..count).filter_map(|_| self.waiting.pop_first()).map(|(_, waker)| waker).collect()
    }

    /// After closing: up to `most` jobs that will never start.
    pub(crate) fn take_unstarted(&mut self, most: usize) -> Vec<(R, W)> {
        let mut taken = Vec::with_capacity(most.min(self.pending.len + self.deferred.len));
        while taken.len() < most {
            let list = if self.pending.len > 0 { &mut self.pending } else { &mut self.deferred };
            let Some(key) = list.first else { break };
            list.unlink(&mut self.slots, key);
            let slot = self.end(key, Outcome::NeverStarted);
            self.give_up(slot.place);
            taken.extend(slot.work.map(|work| (slot.entry, work)));
        }
        taken
    }

    /// What ended otherwise than completed or skipped since the end was announced (9), once.
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

    pub(crate) fn deferred_count(&self) -> usize {
        self.deferred.len
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
