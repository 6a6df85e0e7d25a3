//! Keys: the pending jobs that have one, and the line of waiting spawners, which may have one.
//!
//! A *lane* is what there is of one key. Of its jobs at most `limit` are *let in* at a time: to
//! run, or to start as soon as a running place is free. The others are held back, and so keep
//! nobody of another lane from starting. A lane that has nothing left in it is forgotten.
//!
//! # Invariants
//!
//! 1. At most `limit` of a lane are let in: active jobs, pending ones in `let_in`, and spawners
//!    that were granted their place with it.
//! 2. A job of a lane is held back only while `limit` are let in, and is let in before those that
//!    came after it.
//! 3. `open` has the spawners that could start a job now if there were a running place: all
//!    without a key, and the first of each lane that is not at its limit.

use std::{
    collections::{
        BTreeMap, BTreeSet,
        btree_map::{Entry, OccupiedEntry},
    },
    num::NonZeroU64,
    sync::Arc,
    task::Waker,
};

use crate::rules::table::Key as Row;

/// The number of a waiting spawner; smaller numbers came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(NonZeroU64);

type Key = Arc<str>;

#[derive(Default)]
struct Lane {
    let_in: usize,
    /// The turns of its pending jobs that are not let in.
    held: BTreeSet<u64>,
    waiting: BTreeSet<Ticket>,
}

struct Waiting {
    key: Option<Key>,
    waker: Waker,
}

pub(crate) struct Lanes {
    limit: usize,
    lanes: BTreeMap<Key, Lane>,
    /// Pending jobs that are let in: by turn, the slot.
    let_in: BTreeMap<u64, Row>,
    /// Pending jobs that are not: likewise.
    held: BTreeMap<u64, Row>,
    waiting: BTreeMap<Ticket, Waiting>,
    open: BTreeSet<Ticket>,
    next_ticket: Ticket,
}

impl Lanes {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self {
            limit: limit.unwrap_or(usize::MAX),
            lanes: BTreeMap::new(),
            let_in: BTreeMap::new(),
            held: BTreeMap::new(),
            waiting: BTreeMap::new(),
            open: BTreeSet::new(),
            next_ticket: Ticket(NonZeroU64::MIN),
        }
    }

    /// Without a limit, keys are names and no more.
    pub(crate) fn are_limited(&self) -> bool {
        self.limit < usize::MAX
    }

    fn limited<'k>(&self, key: Option<&'k Key>) -> Option<&'k Key> {
        key.filter(|_| self.are_limited())
    }

    // Being let in.

    /// Whether one more of this key could be let in.
    pub(crate) fn is_open(&self, key: Option<&Key>) -> bool {
        let lane = self.limited(key).and_then(|key| self.lanes.get(key));
        lane.is_none_or(|lane| lane.let_in < self.limit)
    }

    /// Lets one more of this key in, if it can be.
    pub(crate) fn let_in(&mut self, key: Option<&Key>) -> bool {
        let Some(key) = self.limited(key) else { return true };
        let lane = self.lanes.entry(key.clone()).or_default();
        if lane.let_in >= self.limit {
            return false;
        }
        lane.let_in += 1;
        if lane.let_in == self.limit {
            if let Some(first) = lane.waiting.first() {
                self.open.remove(first);
            }
        }
        true
    }

    /// One of this key that was let in is gone: the next takes its turn.
    pub(crate) fn let_out(&mut self, key: Option<&Key>) {
        let Some(key) = self.limited(key) else { return };
        let Entry::Occupied(mut lane) = self.lanes.entry(key.clone()) else { return };
        match lane.get_mut().held.pop_first() {
            Some(turn) => {
                let slot = self.held.remove(&turn);
                self.let_in.extend(slot.map(|slot| (turn, slot)));
            }
            None => {
                lane.get_mut().let_in -= 1;
                self.open.extend(lane.get().waiting.first());
                forget_if_empty(lane);
            }
        }
    }

    // Pending jobs.

    /// A job without a key is always let in.
    pub(crate) fn push(&mut self, key: Option<&Key>, turn: u64, slot: Row, let_in: bool) {
        match key {
            Some(key) if !let_in => {
                self.held.insert(turn, slot);
                self.lanes.entry(key.clone()).or_default().held.insert(turn);
            }
            _ => {
                self.let_in.insert(turn, slot);
            }
        }
    }

    /// The pending job of that turn leaves without having started.
    pub(crate) fn remove(&mut self, key: Option<&Key>, turn: u64) {
        if self.let_in.remove(&turn).is_some() {
            self.let_out(key);
        } else if let Some(lane) = key.and_then(|key| self.lanes.get_mut(key)) {
            // The lane stays: others are let in.
            lane.held.remove(&turn);
            self.held.remove(&turn);
        }
    }

    /// Of the pending jobs that are let in, the turn and slot of the first.
    pub(crate) fn first_let_in(&self) -> Option<(u64, Row)> {
        self.let_in.first_key_value().map(|(turn, slot)| (*turn, *slot))
    }

    /// It starts.
    pub(crate) fn start(&mut self, turn: u64) {
        self.let_in.remove(&turn);
    }

    /// The slot of the job that has been pending longest.
    pub(crate) fn first(&self) -> Option<Row> {
        let first = [&self.let_in, &self.held].into_iter().filter_map(BTreeMap::first_key_value);
        first.min().map(|(_, slot)| *slot)
    }

    pub(crate) fn len(&self) -> usize {
        self.let_in.len() + self.held.len()
    }

    // Waiting spawners.

    pub(crate) fn join(&mut self, key: Option<&Key>, waker: Waker) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket = Ticket(ticket.0.saturating_add(1));
        let key = self.limited(key).cloned();
        match &key {
            None => self.open.extend([ticket]),
            Some(key) => {
                let lane = self.lanes.entry(key.clone()).or_default();
                lane.waiting.insert(ticket);
                if lane.let_in < self.limit {
                    self.open.extend(lane.waiting.first());
                }
            }
        }
        self.waiting.insert(ticket, Waiting { key, waker });
        ticket
    }

    pub(crate) fn wait_on(&mut self, ticket: Ticket, waker: Waker) -> Option<Waker> {
        let waiting = self.waiting.get_mut(&ticket)?;
        Some(std::mem::replace(&mut waiting.waker, waker))
    }

    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<Waker> {
        let Waiting { key, waker } = self.waiting.remove(&ticket)?;
        let was_open = self.open.remove(&ticket);
        if let Some(key) = key {
            if let Entry::Occupied(mut lane) = self.lanes.entry(key) {
                lane.get_mut().waiting.remove(&ticket);
                if was_open {
                    self.open.extend(lane.get().waiting.first());
                }
                forget_if_empty(lane);
            }
        }
        Some(waker)
    }

    /// Calls the next spawner that can use a place: the first of all if it may also wait there,
    /// else the first that could start.
    pub(crate) fn call_next(
        &mut self,
        may_wait: bool,
    ) -> Option<(Ticket, Option<Key>, bool, Waker)> {
        let first = self.waiting.keys().next().filter(|_| may_wait);
        let ticket = *first.or_else(|| self.open.first())?;
        let could_start = self.open.contains(&ticket);
        let key = self.waiting.get(&ticket)?.key.clone();
        let let_in = key.is_some() && could_start && self.let_in(key.as_ref());
        let waker = self.leave(ticket)?;
        Some((ticket, key, let_in, waker))
    }

    pub(crate) fn take_waiters(&mut self, most: usize) -> Vec<Waker> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let Some(&ticket) = self.waiting.keys().next() else { break };
            taken.extend(self.leave(ticket));
        }
        taken
    }

    pub(crate) fn nobody_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// How many lanes there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.lanes.len()
    }
}

fn forget_if_empty(lane: OccupiedEntry<'_, Key, Lane>) {
    let Lane { let_in, held, waiting } = lane.get();
    if *let_in == 0 && held.is_empty() && waiting.is_empty() {
        lane.remove();
    }
}

#[cfg(test)]
mod tests;
