//! Which runners to request, so that every ready job is reached by any thread that is free.
//!
//! A job that has started is *ready* until a runner takes it. A runner is a task. It polls one job
//! after the other, each in a poll of its own, and re-queues itself in between. A runner whose job
//! waits stays with that job.
//!
//! Any job may block its thread. So while jobs are ready, one more runner must be where a free thread
//! finds it. A task that a thread of tokio's multi-thread runtime wakes goes into the LIFO slot of that
//! thread, and no other thread steals it there until the thread wakes another task. Runners are
//! therefore requested in pairs: the first of two is *stealable*. A runner that re-queues itself is
//! stealable too: tokio puts a task that wakes itself at the end of the queue.
//!
//! # Invariants
//!
//! 1. While jobs are ready, a stealable runner has been requested and has not arrived, or `threads`
//!    runners are rolling. For a single ready job, one runner requested by the thread that made it
//!    ready is enough.
//! 2. A runner is *rolling* from when it re-queues itself with its next job until that job ends or
//!    waits. At most `threads` runners are rolling. If so many are, those that no thread polls are in
//!    the queue: either a thread is free and finds one, or all threads are busy.

use std::mem;

use crate::rules::{
    step::{Stealable, Wake},
    table::{NONE, RowIndex},
};

pub(super) struct Dispatch {
    /// The first ready job. The ready jobs are the last of the active ones.
    first_ready: RowIndex,
    ready: u32,
    /// Stealable runners that were requested and have not arrived.
    requested: u32,
    rolling: u32,
    /// Threads of the runtime.
    threads: u32,
    /// This step has made a job ready.
    has_new: bool,
}

impl Dispatch {
    pub(super) fn new() -> Self {
        let threads = u32::MAX;
        Self { first_ready: NONE, ready: 0, requested: 0, rolling: 0, threads, has_new: false }
    }

    /// Sets the number of the runtime's threads. Until it is known, there are many.
    pub(super) fn set_threads(&mut self, threads: u32) {
        self.threads = threads;
    }

    #[cfg(test)]
    pub(super) fn ready(&self) -> u32 {
        self.ready
    }

    /// Adds a job that has become the last of the active ones.
    pub(super) fn push_ready(&mut self, row: RowIndex) {
        if self.ready == 0 {
            self.first_ready = row;
        }
        self.ready += 1;
        self.has_new = true;
    }

    pub(super) fn first_ready(&self) -> Option<RowIndex> {
        (self.ready > 0).then_some(self.first_ready)
    }

    /// Removes a ready job, behind which `next` is.
    pub(super) fn remove_ready(&mut self, row: RowIndex, next: RowIndex) {
        self.ready -= 1;
        if self.first_ready == row {
            self.first_ready = next;
        }
    }

    pub(super) fn runner_arrived(&mut self, stealable: Stealable) {
        if stealable == Stealable::Yes {
            self.requested -= 1;
        }
    }

    /// The job of a rolling runner waits, or has ended.
    pub(super) fn stops_rolling(&mut self) {
        self.rolling -= 1;
    }

    /// Whether the runner whose job has ended rolls on to the next ready job. With `threads` others
    /// rolling it is not needed: without this rule there would be as many runners as there were jobs
    /// that waited, and other tasks would wait for a poll of each.
    pub(super) fn rolls_on(&mut self) -> bool {
        let rolls_on = self.ready > 0 && self.rolling < self.threads;
        self.rolling += u32::from(rolls_on);
        rolls_on
    }

    /// The runners that the thread must wake which may have made a job ready. A step makes at most
    /// one job ready.
    pub(super) fn wake_for_new(&mut self) -> Wake {
        if !mem::take(&mut self.has_new) {
            return Wake::None;
        }
        // For a job that is alone this thread is as good as any: as with `tokio::spawn`.
        if self.threads > 1 && self.ready == 1 && !self.is_covered() {
            return Wake::One;
        }
        self.wake()
    }

    /// The runners that a runner must wake, which may now be stuck in the job it has.
    pub(super) fn wake(&mut self) -> Wake {
        self.has_new = false;
        if self.ready == 0 || self.is_covered() {
            return Wake::None;
        }
        self.requested += 1;
        if self.threads == 1 { Wake::OneStealable } else { Wake::Two }
    }

    /// Whether any free thread finds a runner for the ready jobs (1).
    pub(super) fn is_covered(&self) -> bool {
        self.requested > 0 || self.rolling >= self.threads
    }
}
