//! Who may start, who waits and who is refused: the rules, without any async code.
//!
//! One `Queue` sits behind a scheduler's lock: see [`inbox`](crate::run::inbox). Its methods do bounded
//! work, run no user code and drop none: whatever must be woken, started or dropped is handed back to
//! the caller, who does so after unlocking. (Of an entry that is dropped under the lock, the caller
//! has a clone.)
//!
//! There are `limit + pending_limit` places. A job holds one from when it is accepted until it
//! ends, and so does a spawner from when it is granted one until it takes its turn; shielded work
//! holds none. `R` is what the table keeps of a job for its whole life, `W` its work, which leaves
//! when a runner takes the job.
//!
//! A job with a key runs only while fewer than `limit_per_key` of that key are *let in*: see
//! [`lanes`](crate::rules::keys).
//!
//! # Runners
//!
//! A job that has started is *ready* until one of the caller's runners, which are tasks, takes it.
//! A runner takes one job after the other, so that short jobs share a task; one whose job waits
//! stays with it. The queue says when a runner must be *called*, that is, its task spawned, or woken
//! where it waits for that.
//!
//! While jobs are ready, somebody must be on the way to them although every runner that has come
//! may be stuck in a job that blocks its thread. A task spawned by a thread of tokio's goes into a
//! slot of that thread's, from where no other thread takes it, until the thread spawns another. So
//! runners are called in pairs: the first is then *in reach* of all threads. (Where there is one
//! thread, every runner is. And of several a free one looks for tasks when tokio wakes it: if half
//! of them look already, 1.54 may let it sleep beside one in reach until something else happens.)
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
//! 7. `accepted` = jobs in the table + the sum of the outcomes. (What is in the inbox is in neither,
//!    until somebody looks.)
//! 8. A draining queue closes in the very step that leaves it idle.
//! 9. From the announcement of the end on, a job that ends otherwise than completed or skipped is
//!    kept in `ended` until the report takes it.
//! 10. Deferred and pending jobs together are at most `pending_limit` (if that is not 0): jobs
//!     that wait for their responses do not keep others from running.
//! 11. At most one job of a unique key is in the table.
//! 12. Of the ready jobs, the one that started first is taken first.
//! 13. While there are ready jobs, a runner that is in reach has been called and has not come; but
//!     for one ready job it is enough that the thread which made it ready has called one.
//! 14. A runner that lets other tasks have their turn comes again only if no more than one for each
//!     thread are in reach already: there may be as many as there were jobs that waited for
//!     something, and those other tasks wait for the turns of all.

use std::{collections::BTreeMap, mem, sync::Arc, task::Waker};

use crate::{
    rules::keys::{Lanes, Ticket},
    rules::state::{JobId, JobState, Outcome},
    rules::table::{Chunk, Key, NONE, Row, Slots},
    util::clock::Moment,
};

#[cfg(test)]
pub(crate) mod tests;

/// What the queue asks of the part of a job that stays in its table.
pub(crate) trait Entry: Clone {
    fn id(&self) -> JobId;
    /// Shielded work holds no place.
    fn has_place(&self) -> bool;
    /// Jobs of one key share `limit_per_key`.
    fn key(&self) -> Option<&Arc<str>>;
    fn unique(&self) -> Option<&Unique>;
    /// The job will be in the table, if it is not yet.
    fn accepted(&self, now: Moment);
    /// The job, which has been accepted, is in the table, in this slot until it ends.
    fn placed(&self, slot: Key);
    fn ended(&self);
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

/// A job that has been accepted, and is in the inbox.
pub(crate) struct Accepted<R, W> {
    pub(crate) entry: R,
    pub(crate) work: W,
    pub(crate) at: Moment,
}

/// Whom the caller must call, now.
///
/// A full word, like what is beside it in [`Effects`]: read in one with that, a byte that has just
/// been written keeps the processor waiting, and every job comes by here twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Call {
    Nobody,
    /// A runner, which may not be in reach.
    One,
    /// A runner, which will be in reach.
    OneInReach,
    /// A runner that will be in reach, since another, which may not be, is spawned after it.
    Pair,
    /// Who waits for that: the step has left nothing in the queue.
    Idle,
}

/// Whether a runner that was called could be taken up by any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    InReach,
    Unknown,
}

/// What a runner does that is through with a job.
pub(crate) enum Next<W> {
    Take(W),
    /// Lets other tasks have their turn, and comes again, as if called: in reach.
    Yield,
    End,
}

/// What has come of a runner's job that ended.
#[must_use]
pub(crate) struct Advance<R, W> {
    pub(crate) call: Call,
    pub(crate) more: Option<Box<More<R, W>>>,
    /// Of that job, what the table had, to be dropped.
    pub(crate) ended: Option<R>,
    pub(crate) next: Next<W>,
}

/// What the caller must do after unlocking. In two words, which need no memory to be returned.
#[must_use]
pub(crate) struct Effects<R, W> {
    pub(crate) call: Call,
    /// What few steps have.
    pub(crate) more: Option<Box<More<R, W>>>,
}

pub(crate) struct More<R, W> {
    pub(crate) wake: Vec<Waker>,
    /// A job whose unique key another has taken over. It has ended as cancelled.
    pub(crate) replaced: Option<(R, W)>,
    /// To be dropped: rows of the table.
    pub(crate) surplus: Vec<Chunk<Slot<R, W>>>,
    /// The step has closed the queue (8).
    pub(crate) has_closed: bool,
}

impl<R, W> Default for More<R, W> {
    fn default() -> Self {
        Self { wake: Vec::new(), replaced: None, surplus: Vec::new(), has_closed: false }
    }
}

impl<R, W> Effects<R, W> {
    #[inline(always)]
    fn with(self, replaced: Option<(R, W)>) -> Self {
        let Some(replaced) = replaced else { return self };
        let more =
            More { replaced: Some(replaced), ..self.more.map(|more| *more).unwrap_or_default() };
        Self { more: Some(Box::new(more)), ..self }
    }
}

/// Counts of a moment: how many jobs were ever accepted, and how those that ended did.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Totals {
    pub(crate) accepted: u64,
    outcomes: [u64; Outcome::COUNT],
}

impl Totals {
    pub(crate) fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    pub(crate) fn since(mut self, before: &Self) -> Self {
        self.accepted -= before.accepted;
        for (now, before) in self.outcomes.iter_mut().zip(before.outcomes) {
            *now -= before;
        }
        self
    }

    fn count(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }
}

/// There may be a million: 40 bytes each.
pub(crate) struct Slot<R, W> {
    entry: Option<R>,
    /// Present until a runner takes the job.
    work: Option<W>,
    stamp: Stamp,
    // Of the list that the job is in; in a lane, the halves of its turn.
    previous: Key,
    next: Key,
}

impl<R, W> Default for Slot<R, W> {
    fn default() -> Self {
        Self { entry: None, work: None, stamp: Stamp(0), previous: NONE, next: NONE }
    }
}

impl<R, W> Row for Slot<R, W> {
    fn is_free(&self) -> bool {
        self.entry.is_none()
    }

    fn next_free(&mut self) -> &mut Key {
        &mut self.next
    }
}

impl<R, W> Slot<R, W> {
    fn entry(&self) -> &R {
        self.entry.as_ref().expect("a row that is taken")
    }

    fn state(&self) -> JobState {
        self.stamp.state()
    }

    fn turn(&self) -> u64 {
        u64::from(self.previous) << 32 | u64::from(self.next)
    }

    fn set_turn(&mut self, turn: u64) {
        let half = |turn: u64| Key::try_from(turn & u64::from(Key::MAX)).expect("masked");
        (self.previous, self.next) = (half(turn >> 32), half(turn));
    }
}

/// In which state a job is, and since when, in one word: 73 years.
#[derive(Clone, Copy)]
struct Stamp(i64);

impl Stamp {
    fn new(state: JobState, since: Moment) -> Self {
        Self(since.as_nanos() << 2 | state as i64)
    }

    fn state(self) -> JobState {
        match self.0 & 3 {
            0 => JobState::Deferred,
            1 => JobState::Pending,
            _ => JobState::Active,
        }
    }

    fn since(self) -> Moment {
        Moment::from_nanos(self.0 >> 2)
    }
}

/// A doubly linked list through the slots, so that any job leaves in constant time.
struct List {
    first: Key,
    last: Key,
}

impl List {
    fn new() -> Self {
        Self { first: NONE, last: NONE }
    }

    /// Adds the job before another that is in the list, or, with `NONE`, at its end.
    #[inline(always)]
    fn insert<'s, R, W>(
        &mut self,
        slots: &'s mut Slots<Slot<R, W>>,
        key: Key,
        next: Key,
    ) -> &'s mut Slot<R, W> {
        let last = match slots.row_mut(next) {
            Some(next) => &mut next.previous,
            None => &mut self.last,
        };
        let previous = mem::replace(last, key);
        match slots.row_mut(previous) {
            Some(previous) => previous.next = key,
            None => self.first = key,
        }
        let slot = &mut slots[key];
        (slot.previous, slot.next) = (previous, next);
        slot
    }

    /// Makes neighbours of these: what was between them has left.
    fn join<R, W>(&mut self, slots: &mut Slots<Slot<R, W>>, previous: Key, next: Key) {
        match slots.row_mut(previous) {
            Some(previous) => previous.next = next,
            None => self.first = next,
        }
        match slots.row_mut(next) {
            Some(next) => next.previous = previous,
            None => self.last = previous,
        }
    }
}

/// The jobs that run, in the order in which they started, and behind them those that wait for a
/// place, in the order in which they came. In one list, so that a job starts where it is.
struct Line {
    list: List,
    /// The first that waits, or `NONE`.
    border: Key,
    active: u32,
    pending: u32,
}

impl Line {
    fn new() -> Self {
        Self { list: List::new(), border: NONE, active: 0, pending: 0 }
    }

    fn first_active(&self) -> Option<Key> {
        (self.active > 0).then_some(self.list.first)
    }

    fn first_pending(&self) -> Option<Key> {
        (self.pending > 0).then_some(self.border)
    }

    fn wait<'s, R, W>(&mut self, slots: &'s mut Slots<Slot<R, W>>, key: Key) -> &'s mut Slot<R, W> {
        if self.pending == 0 {
            self.border = key;
        }
        self.pending += 1;
        self.list.insert(slots, key, NONE)
    }

    /// A job that has not waited here runs.
    fn run<'s, R, W>(&mut self, slots: &'s mut Slots<Slot<R, W>>, key: Key) -> &'s mut Slot<R, W> {
        self.active += 1;
        self.list.insert(slots, key, self.border)
    }

    /// The first that waits runs.
    fn run_first<'s, R, W>(
        &mut self,
        slots: &'s mut Slots<Slot<R, W>>,
    ) -> Option<(Key, &'s mut Slot<R, W>)> {
        let key = self.first_pending()?;
        let slot = &mut slots[key];
        self.border = slot.next;
        self.pending -= 1;
        self.active += 1;
        Some((key, slot))
    }

    /// An active job leaves, from between these.
    fn leave<R, W>(&mut self, slots: &mut Slots<Slot<R, W>>, previous: Key, next: Key) {
        self.active -= 1;
        self.list.join(slots, previous, next);
    }

    /// Takes the first pending jobs out of the table, up to `most`, and closes up once.
    fn take_pending<R, W>(
        &mut self,
        slots: &mut Slots<Slot<R, W>>,
        most: usize,
        mut take: impl FnMut(R, W),
    ) {
        let Some(first) = self.first_pending() else { return };
        let previous = slots[first].previous;
        let count = self.pending.min(u32::try_from(most).unwrap_or(u32::MAX));
        for _ in 0..count {
            let (key, job) = (self.border, &mut slots[self.border]);
            self.border = job.next;
            let job = job.entry.take().zip(job.work.take());
            slots.release(key);
            if let Some((entry, work)) = job {
                take(entry, work);
            }
        }
        self.pending -= count;
        self.list.join(slots, previous, self.border);
    }

    /// A pending job leaves, from between these.
    fn give_up<R, W>(&mut self, slots: &mut Slots<Slot<R, W>>, key: Key, previous: Key, next: Key) {
        if self.border == key {
            self.border = next;
        }
        self.pending -= 1;
        self.list.join(slots, previous, next);
    }
}

/// In this order: what every job changes comes first, and is in two cache lines along with the lock,
/// for whoever takes that must have them from the processor that had it before.
#[repr(C)]
pub(crate) struct Queue<R, W> {
    slots: Slots<Slot<R, W>>,
    /// The active jobs; and the pending ones, if there is no `limit_per_key`.
    line: Line,
    /// Active jobs that hold a place.
    running: u32,
    ready_len: u32,
    /// The first of the ready jobs, which are the last of the active ones.
    ready: Key,
    /// Runners in reach that were called and have not come.
    in_reach: u32,
    /// The step has made a job ready that its own thread has no runner for.
    has_new: bool,
    /// There is, or may be, something in the inbox.
    has_inbox: bool,
    totals: Totals,

    limit: usize,
    pending_limit: usize,
    phase: Phase,
    /// For the jobs of the inbox, and empty.
    spare_list: Vec<Accepted<R, W>>,
    /// How many threads the runners have.
    threads: u32,
    deferred: List,
    deferred_len: usize,
    /// The pending jobs, if there is a `limit_per_key`; and the line of spawners.
    lanes: Lanes,
    /// Spawners that hold a place.
    granted: BTreeMap<Ticket, Grant>,
    last_turn: u64,
    at_drain: Totals,
    books: Books<R>,
}

/// What ended otherwise than completed or skipped, in pieces, so that no step copies all of it.
pub(crate) struct Ended<R> {
    /// By the page, which those who have to tell them share.
    pub(crate) never_started: Vec<Arc<Vec<R>>>,
    pub(crate) others: Vec<Vec<(R, Outcome)>>,
}

impl<R> Default for Ended<R> {
    fn default() -> Self {
        Self { never_started: Vec::new(), others: Vec::new() }
    }
}

impl<R> Ended<R> {
    fn keep(&mut self, entry: R, outcome: Outcome) {
        match self.others.last_mut().filter(|last| last.len() < ENDED) {
            Some(last) => last.push((entry, outcome)),
            None => {
                // Mostly there are few.
                let room = if self.others.is_empty() { 4 } else { ENDED };
                let mut piece = Vec::with_capacity(room);
                piece.push((entry, outcome));
                self.others.push(piece);
            }
        }
    }
}

/// Who has a unique key, and what became of those that ended badly.
struct Books<R> {
    uniques: BTreeMap<Arc<str>, Key>,
    ended: Ended<R>,
}

impl<R: Entry> Books<R> {
    #[inline(always)]
    fn end(&mut self, entry: &R, outcome: Outcome, phase: Phase) {
        self.leave(entry);
        if phase > Phase::Open && !matches!(outcome, Outcome::Completed | Outcome::Skipped) {
            self.ended.keep(entry.clone(), outcome);
        }
    }

    fn leave(&mut self, entry: &R) {
        if let Some(unique) = entry.unique() {
            self.uniques.remove(&unique.key);
        }
    }
}

/// How many of those that ended are kept in one piece of memory: none is copied as they grow.
const ENDED: usize = 1024;

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
            has_inbox: false,
            spare_list: Vec::new(),
            slots: Slots::new(),
            deferred: List::new(),
            deferred_len: 0,
            line: Line::new(),
            ready: NONE,
            ready_len: 0,
            in_reach: 0,
            has_new: false,
            threads: u32::MAX,
            lanes: Lanes::new(limit_per_key),
            running: 0,
            granted: BTreeMap::new(),
            last_turn: 0,
            at_drain: Totals::default(),
            books: Books { uniques: BTreeMap::new(), ended: Ended::default() },
            totals: Totals::default(),
        }
    }

    /// How many threads the runtime has that runs the runners; unknown, there are many.
    pub(crate) fn set_threads(&mut self, threads: u32) {
        self.threads = threads;
    }

    // Admission. `work` is called under the lock, and only if the job is taken in.

    // What every job goes through is inlined by decree, here and elsewhere: to call it all, and to
    // hand results back through memory, was a fifth of what a job took.

    /// Takes the job in if there is a place for it.
    #[inline(always)]
    pub(crate) fn admit(
        &mut self,
        how: Admit,
        entry: R,
        work: impl FnOnce() -> W,
        now: Moment,
    ) -> Result<Effects<R, W>, Refusal> {
        let replaced = self.check(&entry)?;
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
        entry.accepted(now);
        let slot = self.insert(entry, work(), now);
        match how {
            Admit::Limited => self.enter(slot, false, now),
            Admit::Deferred => {
                self.deferred.insert(&mut self.slots, slot, NONE);
                self.deferred_len += 1;
            }
            Admit::Outside => self.run(slot, now),
        }
        Ok(self.effects(now).with(replaced))
    }

    /// The deferred job `id` in `slot` may start.
    pub(crate) fn begin(&mut self, slot: Key, id: JobId, now: Moment) -> Effects<R, W> {
        if self.phase == Phase::Closed || !self.is_at(slot, id, JobState::Deferred) {
            return self.effects(now);
        }
        let Slot { previous, next, .. } = self.slots[slot];
        self.deferred.join(&mut self.slots, previous, next);
        self.deferred_len -= 1;
        self.enter(slot, false, now);
        self.effects(now)
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
        entry: R,
        work: impl FnOnce() -> W,
        now: Moment,
    ) -> Option<Result<Effects<R, W>, Refusal>> {
        if self.phase < Phase::Closed && !self.granted.contains_key(&ticket) {
            return None;
        }
        // A refused spawner gives its place back when it leaves.
        let replaced = match self.check(&entry) {
            Ok(replaced) => replaced.and_then(|slot| self.take_over(slot)),
            Err(refusal) => return Some(Err(refusal)),
        };
        let grant = self.granted.remove(&ticket)?;
        entry.accepted(now);
        let slot = self.insert(entry, work(), now);
        self.enter(slot, grant.let_in, now);
        Some(Ok(self.effects(now).with(replaced)))
    }

    /// Goes on waiting, after `take_turn` gave `None` under this same hold of the lock. The waker
    /// that comes back is for the caller to drop.
    pub(crate) fn wait_on(&mut self, ticket: Ticket, waker: Waker) -> Option<Waker> {
        self.lanes.wait_on(ticket, waker)
    }

    /// Leaves the line, whether granted or not. The waker is for the caller to drop.
    pub(crate) fn leave(&mut self, ticket: Ticket, now: Moment) -> (Effects<R, W>, Option<Waker>) {
        let waker = self.lanes.leave(ticket);
        if let Some(Grant { key, let_in: true }) = self.granted.remove(&ticket) {
            self.lanes.let_out(key.as_ref());
        }
        (self.effects(now), waker)
    }

    /// Whether the job may be taken in, and the slot of the one that it replaces.
    #[inline(always)]
    fn check(&self, entry: &R) -> Result<Option<Key>, Refusal> {
        if self.phase == Phase::Closed {
            return Err(Refusal::Closed);
        }
        let Some(unique) = entry.unique() else { return Ok(None) };
        let Some(&slot) = self.books.uniques.get(&unique.key) else { return Ok(None) };
        let other = &self.slots[slot];
        if unique.replace && other.state() < JobState::Active {
            return Ok(Some(slot));
        }
        Err(Refusal::Duplicate(other.entry().id()))
    }

    fn running(&self) -> usize {
        self.running as usize
    }

    fn is_full(&self) -> bool {
        self.running() + self.waiting_for_something()
            >= self.limit.saturating_add(self.pending_limit)
    }

    /// Whether one more job may wait although jobs could run (10).
    fn has_room_to_wait(&self) -> bool {
        self.waiting_for_something() < self.pending_limit
    }

    fn waiting_for_something(&self) -> usize {
        self.deferred_len + self.pending_count() + self.granted.len()
    }

    #[inline(always)]
    fn insert(&mut self, entry: R, work: W, now: Moment) -> Key {
        self.totals.accepted += 1;
        let (slot, row) = self.slots.claim();
        entry.placed(slot);
        if let Some(unique) = entry.unique() {
            self.books.uniques.insert(unique.key.clone(), slot);
        }
        row.entry = Some(entry);
        row.work = Some(work);
        // Until it is put somewhere, in the same step.
        row.stamp = Stamp::new(JobState::Deferred, now);
        slot
    }

    /// Starts the job if it may, or has it wait.
    #[inline(always)]
    fn enter(&mut self, slot: Key, let_in: bool, now: Moment) {
        let pending = Stamp::new(JobState::Pending, now);
        if !self.lanes.are_limited() {
            if self.running() < self.limit {
                return self.start(slot, now);
            }
            self.line.wait(&mut self.slots, slot).stamp = pending;
            return;
        }
        let key = self.slots[slot].entry().key().cloned();
        let let_in = let_in || self.lanes.let_in(key.as_ref());
        if let_in && self.running() < self.limit {
            return self.start(slot, now);
        }
        self.last_turn += 1;
        self.lanes.push(key.as_ref(), self.last_turn, slot, let_in);
        let job = &mut self.slots[slot];
        job.set_turn(self.last_turn);
        job.stamp = pending;
    }

    /// Starts a job that has a place, and waits in no line. What it keeps of itself elsewhere is
    /// not touched: that is in another processor's cache, and everybody waits for this lock.
    fn start(&mut self, slot: Key, now: Moment) {
        self.running += 1;
        self.run(slot, now);
    }

    fn run(&mut self, slot: Key, now: Moment) {
        self.line.run(&mut self.slots, slot).stamp = Stamp::new(JobState::Active, now);
        self.add_ready(slot);
    }

    /// The job, now the last of the active ones, is ready.
    fn add_ready(&mut self, slot: Key) {
        if self.ready_len == 0 {
            self.ready = slot;
        }
        self.ready_len += 1;
        self.has_new = true;
    }

    // The inbox. See `SharedQueue`.

    /// For how many jobs the inbox is opened: not where hardly any come at once.
    #[inline(always)]
    pub(crate) fn open_inbox(&mut self) -> usize {
        let room = if self.ready_len > 0 { self.room_for_inbox() } else { 0 };
        self.has_inbox = room > 0;
        room
    }

    /// For how many jobs it may be open: there are places for them, and all would start at once, or
    /// all would have to wait, so that what is in it need not be counted when a job ends. (Where
    /// spawners wait there are no places.)
    #[inline(always)]
    pub(crate) fn room_for_inbox(&self) -> usize {
        // The only thread that there is has nobody to wait for.
        let is_of_use = self.in_reach > 0 && self.threads > 1;
        if !is_of_use || self.phase == Phase::Closed || self.lanes.are_limited() {
            return 0;
        }
        let taken = self.running() + self.waiting_for_something();
        let places = self.limit.saturating_add(self.pending_limit).saturating_sub(taken);
        match self.limit.saturating_sub(self.running()) {
            0 => places,
            may_start => places.min(may_start),
        }
    }

    pub(crate) fn has_inbox(&self) -> bool {
        self.has_inbox
    }

    /// Whether a runner may not leave the inbox as it is: it has nothing to do, the place of its job is
    /// for one that is in there, or nobody comes after it.
    #[inline(always)]
    pub(crate) fn needs_inbox(&self) -> bool {
        let has_jobs = self.ready_len > 0 && self.running() < self.limit;
        self.has_inbox && (self.in_reach == 0 || !(has_jobs || self.line.pending > 0))
    }

    pub(crate) fn spare_list(&mut self) -> Vec<Accepted<R, W>> {
        mem::take(&mut self.spare_list)
    }

    /// Takes in what was in the inbox, which `is_open` for more.
    pub(crate) fn take_in(&mut self, mut jobs: Vec<Accepted<R, W>>, is_open: bool) {
        debug_assert!(jobs.is_empty() || self.phase < Phase::Closed, "6");
        self.has_inbox = is_open;
        for Accepted { entry, work, at } in jobs.drain(..) {
            let slot = self.insert(entry, work, at);
            self.enter(slot, false, at);
        }
        self.has_new = false;
        self.spare_list = jobs;
    }

    // Runners.

    /// A runner is here that was called.
    pub(crate) fn answer(&mut self, reach: Reach) {
        if reach == Reach::InReach {
            self.in_reach -= 1;
        }
    }

    /// It takes a job. If there is none for it, it ends.
    pub(crate) fn come(&mut self) -> (Option<W>, Call) {
        let work = self.take();
        (work, self.call_others())
    }

    /// What the runner of a job does now that it has ended: with `may_go_on`, the next one.
    fn next(&mut self, may_go_on: bool) -> Next<W> {
        if self.ready_len > 0 && !may_go_on {
            if self.in_reach > self.threads {
                return Next::End; // 14
            }
            self.in_reach += 1;
            return Next::Yield;
        }
        self.take().map_or(Next::End, Next::Take)
    }

    /// The ready job that started first. For whoever sees to it that invariant 13 holds.
    pub(crate) fn take(&mut self) -> Option<W> {
        let job = self.slots.get_mut(self.ready).filter(|_| self.ready_len > 0)?;
        self.ready = job.next;
        self.ready_len -= 1;
        job.work.take()
    }

    /// For a thread that may have made a job ready, which it does not do twice in a step.
    fn call(&mut self) -> Call {
        let has_new = mem::take(&mut self.has_new);
        if !has_new || self.in_reach > 0 {
            return Call::Nobody;
        }
        // A job that is alone needs no second runner: this thread would have it wait as long.
        if self.threads > 1 && self.ready_len == 1 {
            return Call::One;
        }
        self.call_others()
    }

    /// For a runner that may be stuck in the job that it takes.
    fn call_others(&mut self) -> Call {
        if self.ready_len == 0 || self.in_reach > 0 {
            return Call::Nobody;
        }
        self.in_reach += 1;
        if self.threads == 1 {
            return Call::OneInReach;
        }
        Call::Pair
    }

    // Leaving.

    /// A runner's job has ended. Its place goes to the next that may start, and the runner to the
    /// next that is ready.
    #[inline(always)]
    pub(crate) fn advance(
        &mut self,
        slot: Key,
        id: JobId,
        outcome: Outcome,
        now: Moment,
        may_go_on: bool,
    ) -> Advance<R, W> {
        let ended = self.finish_active(slot, id, outcome).map(|(entry, _)| entry);
        let (idle, more) = self.settle(now);
        let next = self.next(may_go_on);
        // Of what has become ready, one is for this runner, which may be stuck in it.
        self.has_new = false;
        let call = if idle { Call::Idle } else { self.call_others() };
        Advance { call, more, ended, next }
    }

    /// The active job `id` in `slot` ends without its runner. What the table had comes back to be
    /// dropped, and the work of one that no runner has taken.
    pub(crate) fn finish(
        &mut self,
        slot: Key,
        id: JobId,
        outcome: Outcome,
        now: Moment,
    ) -> (Effects<R, W>, Option<R>, Option<W>) {
        let (ended, work) = self.finish_active(slot, id, outcome).unzip();
        (self.effects(now), ended, work.flatten())
    }

    #[inline(always)]
    fn finish_active(&mut self, slot: Key, id: JobId, outcome: Outcome) -> Option<(R, Option<W>)> {
        let job = self.slots.get_mut(slot)?;
        if job.entry().id() != id || job.state() != JobState::Active {
            return None;
        }
        let (entry, work, previous, next) =
            (job.entry.take()?, job.work.take(), job.previous, job.next);
        self.slots.release(slot);
        self.line.leave(&mut self.slots, previous, next);
        if work.is_some() {
            self.ready_len -= 1;
            if self.ready == slot {
                self.ready = next;
            }
        }
        entry.ended();
        if entry.has_place() {
            self.running -= 1;
            if self.lanes.are_limited() {
                self.lanes.let_out(entry.key());
            }
        }
        self.end(&entry, outcome);
        Some((entry, work))
    }

    /// Takes a job that has not started out of the queue.
    pub(crate) fn remove(
        &mut self,
        slot: Key,
        id: JobId,
        outcome: Outcome,
        now: Moment,
    ) -> Option<(W, Effects<R, W>)> {
        self.slots.get(slot).filter(|job| job.entry().id() == id)?;
        let (entry, work) = self.take_out(slot)?;
        self.end(&entry, outcome);
        Some((work, self.effects(now)))
    }

    /// Ends a job that another replaces.
    fn take_over(&mut self, slot: Key) -> Option<(R, W)> {
        let (entry, work) = self.take_out(slot)?;
        self.end(&entry, Outcome::Cancelled);
        Some((entry, work))
    }

    /// Takes a job that has not started out of the table, for the caller to enter in the books.
    fn take_out(&mut self, slot: Key) -> Option<(R, W)> {
        let job = self.slots.get_mut(slot)?;
        let (state, previous, next) = (job.state(), job.previous, job.next);
        match state {
            JobState::Deferred => {
                self.deferred.join(&mut self.slots, previous, next);
                self.deferred_len -= 1;
            }
            JobState::Pending if self.lanes.are_limited() => {
                self.lanes.remove(job.entry().key(), job.turn());
            }
            JobState::Pending => self.line.give_up(&mut self.slots, slot, previous, next),
            JobState::Active | JobState::Finished => return None,
        }
        let job = &mut self.slots[slot];
        let taken = job.entry.take().zip(job.work.take());
        self.slots.release(slot);
        let (entry, work) = taken?;
        entry.ended();
        Some((entry, work))
    }

    #[inline(always)]
    fn end(&mut self, entry: &R, outcome: Outcome) {
        self.totals.count(outcome);
        self.books.end(entry, outcome, self.phase);
    }

    pub(crate) fn state(&self, slot: Key, id: JobId) -> JobState {
        let job = self.slots.get(slot).filter(|job| job.entry().id() == id);
        job.map_or(JobState::Finished, Slot::state)
    }

    pub(crate) fn is_active(&self, slot: Key, id: JobId) -> bool {
        self.is_at(slot, id, JobState::Active)
    }

    fn is_at(&self, slot: Key, id: JobId, state: JobState) -> bool {
        self.state(slot, id) == state
    }

    // The end of every step.

    /// At most one more job can start now than before the step; and the places that have come free
    /// go to waiting spawners.
    #[inline(always)]
    fn effects(&mut self, now: Moment) -> Effects<R, W> {
        let (idle, more) = self.settle(now);
        let call = if idle { Call::Idle } else { self.call() };
        Effects { call, more }
    }

    #[inline(always)]
    fn settle(&mut self, now: Moment) -> (bool, Option<Box<More<R, W>>>) {
        let open = self.phase < Phase::Closed;
        if open && self.running() < self.limit {
            self.start_next(now);
        }
        let idle = self.is_idle();
        let has_more = idle || (open && !self.lanes.nobody_waits());
        (idle, if has_more { self.more(open, idle) } else { None })
    }

    #[cold]
    fn more(&mut self, open: bool, idle: bool) -> Option<Box<More<R, W>>> {
        let wake = if open { self.grant() } else { Vec::new() };
        let has_closed = idle && self.phase == Phase::Draining;
        if has_closed {
            self.phase = Phase::Closed; // 8
        }
        let surplus = if idle { self.slots.surplus() } else { Vec::new() };
        let has_more = !wake.is_empty() || !surplus.is_empty() || has_closed;
        has_more.then(|| Box::new(More { wake, surplus, has_closed, ..More::default() }))
    }

    #[inline(always)]
    fn start_next(&mut self, now: Moment) {
        if let Some((slot, job)) = self.line.run_first(&mut self.slots) {
            job.stamp = Stamp::new(JobState::Active, now);
            self.running += 1;
            self.add_ready(slot);
        } else if let Some((turn, slot)) = self.lanes.first_let_in() {
            self.lanes.start(turn);
            self.start(slot, now);
        }
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

    /// After closing: up to `most` jobs that will never start, and their work.
    pub(crate) fn take_unstarted(&mut self, most: usize) -> (Arc<Vec<R>>, Vec<W>) {
        let room = most.min(self.pending_count() + self.deferred_len);
        let (mut jobs, mut all_work) = (Vec::with_capacity(room), Vec::with_capacity(room));
        self.line.take_pending(&mut self.slots, most, |entry, work| {
            entry.ended();
            self.totals.count(Outcome::NeverStarted);
            self.books.leave(&entry);
            jobs.push(entry);
            all_work.push(work);
        });
        while jobs.len() < most {
            let first = self.lanes.first().unwrap_or(self.deferred.first);
            let Some((entry, work)) = self.take_out(first) else { break };
            self.totals.count(Outcome::NeverStarted);
            self.books.leave(&entry);
            jobs.push(entry);
            all_work.push(work);
        }
        let jobs = Arc::new(jobs);
        if !jobs.is_empty() {
            self.books.ended.never_started.push(jobs.clone()); // 9
        }
        (jobs, all_work)
    }

    /// What ended otherwise than completed or skipped since the end was announced (9), once.
    pub(crate) fn take_ended(&mut self) -> Ended<R> {
        mem::take(&mut self.books.ended)
    }

    // Tests of applications.

    /// From here on nothing starts by itself.
    #[cfg(feature = "testing")]
    pub(crate) fn hold(&mut self) {
        self.limit = 0;
    }

    /// Starts one job although the queue is on hold.
    #[cfg(feature = "testing")]
    pub(crate) fn start_one(&mut self, now: Moment) -> Option<(R, Effects<R, W>)> {
        if self.phase == Phase::Closed {
            return None; // 6
        }
        let let_in = || self.lanes.first_let_in().map(|(_, slot)| slot);
        let next = self.line.first_pending().or_else(let_in)?;
        let one_more = self.running() + 1;
        let limit = mem::replace(&mut self.limit, one_more);
        let effects = self.effects(now);
        self.limit = limit;
        Some((self.slots[next].entry().clone(), effects))
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
        self.deferred_len
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.line.pending as usize + self.lanes.len()
    }

    pub(crate) fn active_count(&self) -> usize {
        self.line.active as usize
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
    pub(crate) fn oldest(&self) -> (Option<Moment>, Option<Moment>) {
        let since = |slot: Key| self.slots[slot].stamp.since();
        let pending = self.line.first_pending().or_else(|| self.lanes.first());
        (pending.map(since), self.line.first_active().map(since))
    }

    /// The jobs in up to `most` slots from `from` on, and where to go on.
    pub(crate) fn page(&self, from: usize, most: usize) -> (Vec<(R, JobState)>, Option<usize>) {
        let end = self.slots.end();
        let active = self.active_count();
        if from == 0 && active <= most && active == self.slots.len() {
            // What was in the other rows has gone: there may have been a million.
            let follows = |slot: &Key| Some(self.slots[*slot].next).filter(|next| *next != NONE);
            let active = std::iter::successors(self.line.first_active(), follows);
            let job = |slot| (self.slots[slot].entry().clone(), JobState::Active);
            return (active.map(job).collect(), None);
        }
        let to = from.saturating_add(most).min(end);
        let keys = (from..to).filter_map(|key| Key::try_from(key).ok());
        let jobs = keys.filter_map(|key| self.slots.get(key));
        (jobs.map(|job| (job.entry().clone(), job.state())).collect(), (to < end).then_some(to))
    }
}
