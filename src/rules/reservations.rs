//! Reservations: permits to run that wait in line with the pending jobs, and are held without a job.
//!
//! # Invariants
//!
//! 1. A reservation waits, is granted, or is held by a permit. `held` counts the last two, which take one
//!    permit each.
//! 2. A waiting reservation has a turn, and is granted when no earlier job or reservation can start.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    task::Waker,
};

use crate::util::clock::Moment;

#[derive(Default)]
pub(crate) struct Reservations {
    waiting: BTreeMap<Moment, Waker>,
    /// Granted, and not yet taken by their future.
    granted: BTreeSet<Moment>,
    held: usize,
}

impl Reservations {
    /// A permit is held without having waited.
    pub(super) fn hold(&mut self) {
        self.held += 1;
    }

    /// A held permit is given back, or used for a job.
    pub(super) fn release(&mut self) {
        self.held -= 1;
    }

    pub(super) fn join(&mut self, turn: Moment, waker: Waker) {
        self.waiting.insert(turn, waker);
    }

    /// The turn of the first waiting reservation.
    pub(super) fn first(&self) -> Option<Moment> {
        self.waiting.keys().next().copied()
    }

    /// Grants the first waiting reservation. Returns its waker.
    pub(super) fn grant_first(&mut self) -> Option<Waker> {
        let (turn, waker) = self.waiting.pop_first()?;
        self.granted.insert(turn);
        self.held += 1;
        Some(waker)
    }

    /// Takes a granted permit. Returns whether it was granted.
    pub(super) fn take(&mut self, turn: Moment) -> bool {
        self.granted.remove(&turn)
    }

    /// Exchanges the waker of a waiting reservation for this one.
    pub(super) fn swap_waker(&mut self, turn: Moment, waker: &mut Waker) {
        if let Some(waiting) = self.waiting.get_mut(&turn) {
            mem::swap(waiting, waker);
        }
    }

    /// Removes a reservation that waits or is granted. Returns its waker, and whether a permit comes free.
    pub(super) fn cancel(&mut self, turn: Moment) -> (Option<Waker>, bool) {
        let is_granted = self.granted.remove(&turn);
        if is_granted {
            self.held -= 1;
        }
        (self.waiting.remove(&turn), is_granted)
    }

    /// Removes up to `most` waiting reservations.
    pub(super) fn drain_waiting(&mut self, most: usize) -> Vec<Waker> {
        let drained = (0..most).map_while(|_| self.waiting.pop_first());
        drained.map(|(_, waker)| waker).collect()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn granted_count(&self) -> usize {
        self.granted.len()
    }
}
