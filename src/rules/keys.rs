//! Concurrency keys: the pending jobs while there is a `limit_per_key`, and the line of waiting
//! spawners, whose jobs may have a key.
//!
//! A *lane* is the state of one key. At most `limit` jobs of a lane are *admitted* at a time: they
//! run, or start as soon as a permit is free. The other jobs of the lane are *blocked*, and do not
//! keep jobs of other lanes from starting. An empty lane is forgotten.
//!
//! # Invariants
//!
//! 1. At most `limit` of a lane are admitted: active jobs, pending jobs in `admitted`, and spawners
//!    whose grant includes their key.
//! 2. A job of a lane is blocked only while `limit` of the lane are admitted. Blocked jobs of a lane
//!    are admitted in order.
//! 3. `eligible` holds the waiting spawners whose job could start if a permit were free: all without
//!    a key, and the first of each lane that is below its limit.

use std::{
    collections::{
        BTreeMap, BTreeSet,
        btree_map::{Entry, OccupiedEntry},
    },
    mem,
    num::NonZeroU64,
    sync::Arc,
    task::Waker,
};

use crate::rules::table::RowIndex;

/// The number of a waiting spawner. Smaller numbers came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(NonZeroU64);

/// The name of a concurrency key.
pub(crate) type KeyName = Arc<str>;

#[derive(Default)]
struct Lane {
    admitted: usize,
    /// The turns of its blocked pending jobs.
    blocked: BTreeSet<u64>,
    waiting: BTreeSet<Ticket>,
}

struct Waiting {
    key: Option<KeyName>,
    waker: Waker,
}

/// A spawner whose turn it is.
pub(crate) struct CalledSpawner {
    pub(crate) ticket: Ticket,
    pub(crate) key: Option<KeyName>,
    /// Its key is admitted along with it.
    pub(crate) key_admitted: bool,
    pub(crate) waker: Waker,
}

pub(crate) struct Keys {
    limit: usize,
    lanes: BTreeMap<KeyName, Lane>,
    /// The rows of admitted pending jobs, by turn.
    admitted: BTreeMap<u64, RowIndex>,
    /// The rows of blocked pending jobs, by turn.
    blocked: BTreeMap<u64, RowIndex>,
    waiting: BTreeMap<Ticket, Waiting>,
    eligible: BTreeSet<Ticket>,
    next_ticket: Ticket,
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
        }
    }

    /// Whether there is a `limit_per_key`. Without one a key is only a label.
    pub(crate) fn are_limited(&self) -> bool {
        self.limit < usize::MAX
    }

    fn limited<'k>(&self, key: Option<&'k KeyName>) -> Option<&'k KeyName> {
        key.filter(|_| self.are_limited())
    }

    // Admission of keys.

    /// Whether one more job of this key could be admitted.
    pub(crate) fn has_room(&self, key: Option<&KeyName>) -> bool {
        let lane = self.limited(key).and_then(|key| self.lanes.get(key));
        lane.is_none_or(|lane| lane.admitted < self.limit)
    }

    /// Admits one more job of this key, if there is room.
    pub(crate) fn admit(&mut self, key: Option<&KeyName>) -> bool {
        let Some(key) = self.limited(key) else { return true };
        let lane = self.lanes.entry(key.clone()).or_default();
        if lane.admitted >= self.limit {
            return false;
        }
        lane.admitted += 1;
        if lane.admitted == self.limit {
            if let Some(first) = lane.waiting.first() {
                self.eligible.remove(first);
            }
        }
        true
    }

    /// Releases one admission of this key. The first blocked job of the lane takes it over.
    pub(crate) fn release(&mut self, key: Option<&KeyName>) {
        let Some(key) = self.limited(key) else { return };
        let Entry::Occupied(mut lane) = self.lanes.entry(key.clone()) else { return };
        match lane.get_mut().blocked.pop_first() {
            Some(turn) => {
                let row = self.blocked.remove(&turn);
                self.admitted.extend(row.map(|row| (turn, row)));
            }
            None => {
                lane.get_mut().admitted -= 1;
                self.eligible.extend(lane.get().waiting.first());
                forget_if_empty(lane);
            }
        }
    }

    // Pending jobs.

    /// Adds a pending job. A job without a key is always admitted.
    pub(crate) fn push(
        &mut self,
        key: Option<&KeyName>,
        turn: u64,
        row: RowIndex,
        key_admitted: bool,
    ) {
        match key {
            Some(key) if !key_admitted => {
                self.blocked.insert(turn, row);
                self.lanes.entry(key.clone()).or_default().blocked.insert(turn);
            }
            _ => {
                self.admitted.insert(turn, row);
            }
        }
    }

    /// Removes the pending job of this turn, which has not started.
    pub(crate) fn remove(&mut self, key: Option<&KeyName>, turn: u64) {
        // A lane with a blocked job is not empty after it: `limit` of the lane are admitted (2).
        if self.take(key, turn) {
            self.release(key);
        }
    }

    /// Removes the pending job of this turn, and keeps its admission for the job that takes over the
    /// turn. Returns whether it was admitted.
    pub(crate) fn take(&mut self, key: Option<&KeyName>, turn: u64) -> bool {
        let was_admitted = self.admitted.remove(&turn).is_some();
        if let Some(lane) = key.and_then(|key| self.lanes.get_mut(key)).filter(|_| !was_admitted) {
            lane.blocked.remove(&turn);
            self.blocked.remove(&turn);
        }
        was_admitted
    }

    /// The turn and row of the first admitted pending job.
    pub(crate) fn first_admitted(&self) -> Option<(u64, RowIndex)> {
        self.admitted.first_key_value().map(|(turn, row)| (*turn, *row))
    }

    /// Removes an admitted pending job that starts. Its admission stays with it.
    pub(crate) fn start(&mut self, turn: u64) {
        self.admitted.remove(&turn);
    }

    /// The row of the job that has been pending longest.
    pub(crate) fn first(&self) -> Option<RowIndex> {
        let firsts = [&self.admitted, &self.blocked].map(BTreeMap::first_key_value);
        firsts.into_iter().flatten().min().map(|(_, row)| *row)
    }

    pub(crate) fn len(&self) -> usize {
        self.admitted.len() + self.blocked.len()
    }

    // Waiting spawners.

    pub(crate) fn join(&mut self, key: Option<&KeyName>, waker: Waker) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket = Ticket(ticket.0.saturating_add(1));
        let key = self.limited(key).cloned();
        match &key {
            None => self.eligible.extend([ticket]),
            Some(key) => {
                let lane = self.lanes.entry(key.clone()).or_default();
                lane.waiting.insert(ticket);
                if lane.admitted < self.limit {
                    self.eligible.extend(lane.waiting.first());
                }
            }
        }
        self.waiting.insert(ticket, Waiting { key, waker });
        ticket
    }

    pub(crate) fn replace_waker(&mut self, ticket: Ticket, waker: Waker) -> Option<Waker> {
        let waiting = self.waiting.get_mut(&ticket)?;
        Some(mem::replace(&mut waiting.waker, waker))
    }

    pub(crate) fn cancel_wait(&mut self, ticket: Ticket) -> Option<Waker> {
        let Waiting { key, waker } = self.waiting.remove(&ticket)?;
        let was_eligible = self.eligible.remove(&ticket);
        if let Some(key) = key {
            if let Entry::Occupied(mut lane) = self.lanes.entry(key) {
                lane.get_mut().waiting.remove(&ticket);
                if was_eligible {
                    self.eligible.extend(lane.get().waiting.first());
                }
                forget_if_empty(lane);
            }
        }
        Some(waker)
    }

    /// Removes the next spawner that can use a place: the first of all if its job may also wait
    /// there, else the first whose job could start.
    pub(crate) fn call_next(&mut self, may_wait: bool) -> Option<CalledSpawner> {
        let first = self.waiting.keys().next().filter(|_| may_wait);
        let ticket = *first.or_else(|| self.eligible.first())?;
        let could_start = self.eligible.contains(&ticket);
        let key = self.waiting.get(&ticket)?.key.clone();
        let key_admitted = key.is_some() && could_start && self.admit(key.as_ref());
        let waker = self.cancel_wait(ticket)?;
        Some(CalledSpawner { ticket, key, key_admitted, waker })
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

    /// The number of lanes.
    #[cfg(test)]
    pub(crate) fn lane_count(&self) -> usize {
        self.lanes.len()
    }
}

fn forget_if_empty(lane: OccupiedEntry<'_, KeyName, Lane>) {
    let Lane { admitted, blocked, waiting } = lane.get();
    if *admitted == 0 && blocked.is_empty() && waiting.is_empty() {
        lane.remove();
    }
}

#[cfg(test)]
mod tests;
