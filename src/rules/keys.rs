//! Concurrency keys: the pending jobs that have one, and the line of waiting spawners, whose jobs may
//! have one.
//!
//! A *lane* is the state of one key. Its pending jobs are *admitted*, and start as soon as a permit is
//! free, or *blocked* while the lane is at its limit. Blocked jobs do not keep jobs of other lanes from
//! starting. An empty lane is forgotten.
//!
//! # Invariants
//!
//! 1. At most `limit` jobs of a lane run; a grant that includes its key counts as running. After the
//!    limit was lowered, no job of the lane starts until that is so.
//! 2. A job of a lane becomes blocked only if `limit` of the lane run or are admitted. Blocked jobs of a
//!    lane are admitted in order. After the limit was raised, this takes some steps.
//! 3. `eligible` holds the waiting spawners whose job could start if a permit were free: all without
//!    a key, and the first of each lane that has room. After the limit was lowered it may hold more.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    num::NonZeroU64,
    ops::Bound,
    sync::Arc,
    task::Waker,
};

use crate::{rules::table::RowIndex, util::clock::Moment};

/// The number of a waiting spawner. Smaller numbers came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(NonZeroU64);

/// The name of a concurrency key.
pub(crate) type KeyName = Arc<str>;

#[derive(Default)]
struct Lane {
    running: usize,
    /// The turns of its admitted pending jobs.
    admitted: BTreeSet<Moment>,
    /// The turns of its blocked pending jobs.
    blocked: BTreeSet<Moment>,
    waiting: BTreeSet<Ticket>,
}

impl Lane {
    fn has_room(&self, limit: usize) -> bool {
        self.running + self.admitted.len() < limit
    }

    fn is_empty(&self) -> bool {
        self.running == 0
            && self.admitted.is_empty()
            && self.blocked.is_empty()
            && self.waiting.is_empty()
    }
}

struct Waiting {
    key: Option<KeyName>,
    waker: Waker,
}

/// A spawner whose turn it is.
pub(crate) struct CalledSpawner {
    pub(crate) ticket: Ticket,
    pub(crate) key: Option<KeyName>,
    /// Its key counts it as running already.
    pub(crate) key_admitted: bool,
    pub(crate) waker: Waker,
}

pub(crate) struct Keys {
    limit: usize,
    lanes: BTreeMap<KeyName, Lane>,
    /// The rows of admitted pending jobs, by turn.
    admitted: BTreeMap<Moment, RowIndex>,
    /// The rows of blocked pending jobs, by turn.
    blocked: BTreeMap<Moment, RowIndex>,
    waiting: BTreeMap<Ticket, Waiting>,
    eligible: BTreeSet<Ticket>,
    next_ticket: Ticket,
    /// The limit was raised, and the lanes behind this one may have blocked jobs to admit.
    raised_up_to: Option<Bound<KeyName>>,
}

impl Keys {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self {
            limit: limit.unwrap_or(usize::MAX),
            lanes: BTreeMap::new(),
            admitted: BTreeMap::new(),
            blocked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            eligible: BTreeSet::new(),
            next_ticket: Ticket(NonZeroU64::MIN),
            raised_up_to: None,
        }
    }

    /// Changes one lane, and keeps `eligible` and the set of lanes in order (3).
    fn change<T>(&mut self, key: &KeyName, change: impl FnOnce(&mut Lane) -> T) -> T {
        let lane = self.lanes.entry(key.clone()).or_default();
        let result = change(lane);
        if let Some(first) = lane.waiting.first() {
            if lane.has_room(self.limit) {
                self.eligible.insert(*first);
            } else {
                self.eligible.remove(first);
            }
        }
        if lane.is_empty() {
            self.lanes.remove(key);
        }
        result
    }

    // Running jobs.

    /// Whether one more job of this key could be admitted.
    #[inline]
    pub(crate) fn has_room(&self, key: Option<&KeyName>) -> bool {
        let lane = key.and_then(|key| self.lanes.get(key));
        lane.is_none_or(|lane| lane.has_room(self.limit))
    }

    /// Counts one more job of this key as running, if the key has room.
    pub(crate) fn start_if_room(&mut self, key: &KeyName) -> bool {
        let has_room = self.has_room(Some(key));
        if has_room {
            self.change(key, |lane| lane.running += 1);
        }
        has_room
    }

    /// Whether the jobs that the key counts as running are within the limit, which may have been lowered.
    pub(crate) fn is_within_limit(&self, key: &KeyName) -> bool {
        self.lanes.get(key).is_none_or(|lane| lane.running <= self.limit)
    }

    /// A running job of this key has ended, or a grant was given back. The first blocked job of the lane
    /// is admitted.
    pub(crate) fn release(&mut self, key: &KeyName) {
        self.change(key, |lane| lane.running -= 1);
        self.admit_blocked(key, 1);
    }

    /// Admits the next blocked job of the lane, if it has room.
    pub(crate) fn admit_next(&mut self, key: &KeyName) {
        self.admit_blocked(key, 1);
    }

    /// Admits blocked jobs of the lane while it has room, at most so many. Returns how many.
    fn admit_blocked(&mut self, key: &KeyName, most: usize) -> usize {
        let limit = self.limit;
        let mut count = 0;
        while count < most {
            let next = self.lanes.get_mut(key).filter(|lane| lane.has_room(limit));
            let Some(turn) = next.and_then(|lane| lane.blocked.pop_first()) else { break };
            let row = self.blocked.remove(&turn);
            self.admitted.extend(row.map(|row| (turn, row)));
            self.change(key, |lane| lane.admitted.insert(turn));
            count += 1;
        }
        count
    }

    // Pending jobs.

    /// Adds a pending job, which is admitted if its key has room. With `was_running` the key counts it as
    /// running, and does so no more.
    pub(crate) fn push(&mut self, key: &KeyName, turn: Moment, row: RowIndex, was_running: bool) {
        let limit = self.limit;
        let is_admitted = self.change(key, |lane| {
            lane.running -= usize::from(was_running);
            let is_admitted = was_running || lane.has_room(limit);
            let turns = if is_admitted { &mut lane.admitted } else { &mut lane.blocked };
            turns.insert(turn);
            is_admitted
        });
        let rows = if is_admitted { &mut self.admitted } else { &mut self.blocked };
        rows.insert(turn, row);
    }

    /// Removes the pending job of this turn. The first blocked job of the lane is admitted in its place.
    pub(crate) fn remove(&mut self, key: &KeyName, turn: Moment) {
        self.take(key, turn);
        self.admit_blocked(key, 1);
    }

    /// Removes the pending job of this turn, and admits no other yet: another job takes over the turn.
    /// Returns whether it was admitted.
    pub(crate) fn take(&mut self, key: &KeyName, turn: Moment) -> bool {
        let was_admitted = self.admitted.remove(&turn).is_some();
        if !was_admitted {
            self.blocked.remove(&turn);
        }
        self.change(key, |lane| {
            let turns = if was_admitted { &mut lane.admitted } else { &mut lane.blocked };
            turns.remove(&turn);
        });
        was_admitted
    }

    /// Adds an admitted job in the turn of the admitted one of the same key that was just taken, also if
    /// the limit has been lowered below it.
    pub(crate) fn put_admitted(&mut self, key: &KeyName, turn: Moment, row: RowIndex) {
        self.change(key, |lane| lane.admitted.insert(turn));
        self.admitted.insert(turn, row);
    }

    /// Adds a pending job without a key, in the turn of a job with one.
    pub(crate) fn push_keyless(&mut self, turn: Moment, row: RowIndex) {
        self.admitted.insert(turn, row);
    }

    /// Removes a pending job without a key, if it is here.
    pub(crate) fn take_keyless(&mut self, turn: Moment) -> bool {
        self.admitted.remove(&turn).is_some()
    }

    /// The turn and row of the first admitted pending job.
    pub(crate) fn first_admitted(&self) -> Option<(Moment, RowIndex)> {
        self.admitted.first_key_value().map(|(turn, row)| (*turn, *row))
    }

    pub(crate) fn has_admitted(&self) -> bool {
        !self.admitted.is_empty()
    }

    /// Starts the admitted pending job of this turn. If the limit was lowered and the lane runs as many
    /// jobs already, the job becomes blocked instead, and this returns false.
    pub(crate) fn start(&mut self, key: &KeyName, turn: Moment) -> bool {
        let limit = self.limit;
        let Some(row) = self.admitted.remove(&turn) else { return false };
        let starts = self.change(key, |lane| {
            lane.admitted.remove(&turn);
            let starts = lane.running < limit;
            if starts {
                lane.running += 1;
            } else {
                lane.blocked.insert(turn);
            }
            starts
        });
        if !starts {
            self.blocked.insert(turn, row);
        }
        starts
    }

    /// The turn and row of the job that has been pending longest.
    pub(crate) fn first(&self) -> Option<(Moment, RowIndex)> {
        let firsts = [&self.admitted, &self.blocked].map(BTreeMap::first_key_value);
        firsts.into_iter().flatten().min().map(|(turn, row)| (*turn, *row))
    }

    /// Whether there is a pending job of this turn.
    pub(crate) fn has(&self, turn: Moment) -> bool {
        self.admitted.contains_key(&turn) || self.blocked.contains_key(&turn)
    }

    /// The rows of pending jobs with later turns: `most` admitted and `most` blocked ones at most.
    pub(crate) fn behind(&self, turn: Moment, most: usize) -> impl Iterator<Item = RowIndex> {
        let later = (Bound::Excluded(turn), Bound::Unbounded);
        let rows = [&self.admitted, &self.blocked].map(|rows| rows.range(later).take(most));
        rows.into_iter().flatten().map(|(_, row)| *row)
    }

    pub(crate) fn len(&self) -> usize {
        self.admitted.len() + self.blocked.len()
    }

    // Waiting spawners.

    pub(crate) fn join(&mut self, key: Option<&KeyName>, waker: Waker) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket = Ticket(ticket.0.saturating_add(1));
        match key {
            None => self.eligible.extend([ticket]),
            Some(key) => {
                self.change(key, |lane| lane.waiting.insert(ticket));
            }
        }
        self.waiting.insert(ticket, Waiting { key: key.cloned(), waker });
        ticket
    }

    pub(crate) fn replace_waker(&mut self, ticket: Ticket, waker: Waker) -> Option<Waker> {
        let waiting = self.waiting.get_mut(&ticket)?;
        Some(mem::replace(&mut waiting.waker, waker))
    }

    pub(crate) fn cancel_wait(&mut self, ticket: Ticket) -> Option<Waker> {
        let Waiting { key, waker } = self.waiting.remove(&ticket)?;
        self.eligible.remove(&ticket);
        if let Some(key) = key {
            self.change(&key, |lane| lane.waiting.remove(&ticket));
        }
        Some(waker)
    }

    /// Removes the next spawner that can use a place: the first of all if its job may also wait
    /// there, else the first whose job could start.
    pub(crate) fn call_next(&mut self, may_wait: bool) -> Option<CalledSpawner> {
        let first = self.waiting.keys().next().copied().filter(|_| may_wait);
        let ticket = first.or_else(|| self.first_eligible())?;
        let key = self.waiting.get(&ticket)?.key.clone();
        let waker = self.cancel_wait(ticket)?;
        let key_admitted = key.as_ref().is_some_and(|key| self.start_if_room(key));
        Some(CalledSpawner { ticket, key, key_admitted, waker })
    }

    /// The first spawner whose job could start. Forgets some whose lane has lost its room since.
    fn first_eligible(&mut self) -> Option<Ticket> {
        const MOST: usize = 64;
        for _ in 0..MOST {
            let ticket = *self.eligible.first()?;
            if self.has_room(self.waiting.get(&ticket)?.key.as_ref()) {
                return Some(ticket);
            }
            self.eligible.remove(&ticket);
        }
        None
    }

    /// Removes up to `most` waiting spawners.
    pub(crate) fn drain_waiting(&mut self, most: usize) -> Vec<Waker> {
        let mut drained = Vec::new();
        while drained.len() < most {
            let Some(&ticket) = self.waiting.keys().next() else { break };
            drained.extend(self.cancel_wait(ticket));
        }
        drained
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    // The limit.

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn set_limit(&mut self, limit: Option<usize>) {
        let limit = limit.unwrap_or(usize::MAX);
        if limit > self.limit {
            self.raised_up_to = Some(Bound::Unbounded);
        }
        self.limit = limit;
    }

    /// Whether the limit was raised, and lanes may have blocked jobs to admit.
    pub(crate) fn is_raising(&self) -> bool {
        self.raised_up_to.is_some()
    }

    /// Goes on with a raise of the limit, for about `most` jobs or lanes.
    pub(crate) fn go_on_raising(&mut self, most: usize) {
        let mut left = most;
        while let Some(from) = self.raised_up_to.clone() {
            if left == 0 {
                return;
            }
            let next = self.lanes.range::<KeyName, _>((from, Bound::Unbounded)).next();
            let Some(key) = next.map(|(key, _)| key.clone()) else {
                self.raised_up_to = None;
                return;
            };
            let admitted = self.admit_blocked(&key, left);
            // Nothing is admitted, and the lane's first waiting spawner may have become eligible.
            self.change(&key, |_| ());
            let is_through = admitted < left;
            left -= admitted.max(1);
            self.raised_up_to =
                Some(if is_through { Bound::Excluded(key) } else { Bound::Included(key) });
        }
    }

    /// The number of lanes.
    #[cfg(test)]
    pub(crate) fn lane_count(&self) -> usize {
        self.lanes.len()
    }
}

#[cfg(test)]
mod tests;
