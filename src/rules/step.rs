//! The vocabulary of the queue's steps: what goes in, and the effects that come out.

use std::{sync::Arc, task::Waker};

use crate::{
    rules::{
        line::Row,
        state::JobId,
        table::{Chunk, RowIndex},
    },
    util::clock::Moment,
};

/// Where a job is in the table, and its id. The id tells the job from a later one in the same row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JobKey {
    pub(crate) row: RowIndex,
    pub(crate) id: JobId,
}

/// The part of a job that stays in the table for the job's whole life, as the queue sees it.
pub(crate) trait JobMeta: Clone {
    fn id(&self) -> JobId;
    /// Whether the job needs a permit. Shielded work does not.
    fn needs_permit(&self) -> bool;
    /// The key whose jobs share `limit_per_key`.
    fn key(&self) -> Option<&Arc<str>>;
    fn unique(&self) -> Option<&UniqueKey>;
    /// The job is accepted.
    fn accepted(&self, now: Moment);
    /// The job is no longer deferred.
    fn undeferred(&self, now: Moment);
    /// The job is in this row of the table until it ends.
    fn placed(&self, row: RowIndex);
    /// The job has left the table.
    fn ended(&self);
}

/// A key that at most one unfinished job may have.
#[derive(Clone, Debug)]
pub(crate) struct UniqueKey {
    pub(crate) key: Arc<str>,
    /// Whether the job replaces an unstarted job of the same key, or is refused.
    pub(crate) replace: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No permit is free, and no place is left.
    Full,
    /// `deferred_limit` jobs are deferred.
    DeferredFull,
    Closed,
    /// Another job has the same unique key.
    Duplicate(JobId),
}

/// How a job is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// Runs as soon as it may.
    Limited,
    /// Waits for [`Queue::undefer`](super::queue::Queue::undefer) first.
    Deferred,
    /// Runs now, outside all limits.
    Outside,
}

/// Which tasks the caller must wake after unlocking.
///
/// A full word: a byte that was just written cannot be forwarded to a load of the word around it
/// (store forwarding), and every job passes here twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Wake {
    None,
    /// One runner. It may not be stealable.
    One,
    /// One runner, which is stealable.
    OneStealable,
    /// Two runners. The second pushes the first out of the thread's LIFO slot, so the first is
    /// stealable.
    Two,
    /// The tasks that wait for an idle queue.
    IdleWaiters,
}

/// Whether any thread can steal a runner that was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stealable {
    Yes,
    Unknown,
}

/// The effects of a step. Two words, which are returned in registers.
#[must_use]
pub(crate) struct Effects<R, W> {
    pub(crate) wake: Wake,
    pub(crate) rare: Option<Box<RareEffects<R, W>>>,
}

/// The effects that few steps have.
pub(crate) struct RareEffects<R, W> {
    pub(crate) wakers: Vec<Waker>,
    /// A job that was replaced by another of its unique key. It has ended as cancelled.
    pub(crate) replaced: Option<(R, W)>,
    /// Chunks of the table, to be dropped.
    pub(crate) surplus: Vec<Chunk<Row<R, W>>>,
    /// This step has closed the queue (8).
    pub(crate) has_closed: bool,
    /// A changed limit is not carried out yet: call [`Queue::go_on`](super::queue::Queue::go_on).
    pub(crate) is_unfinished: bool,
}

impl<R, W> Default for RareEffects<R, W> {
    fn default() -> Self {
        Self {
            wakers: Vec::new(),
            replaced: None,
            surplus: Vec::new(),
            has_closed: false,
            is_unfinished: false,
        }
    }
}

impl<R, W> Effects<R, W> {
    #[inline(always)]
    pub(super) fn with_replaced(self, replaced: Option<(R, W)>) -> Self {
        let Some(replaced) = replaced else { return self };
        let rare = self.rare.map(|rare| *rare).unwrap_or_default();
        let rare = RareEffects { replaced: Some(replaced), ..rare };
        Self { rare: Some(Box::new(rare)), ..self }
    }
}

impl<R, W> Effects<R, W> {
    pub(super) fn with_wakers(self, wakers: Vec<Waker>) -> Self {
        if wakers.is_empty() {
            return self;
        }
        let mut rare = self.rare.unwrap_or_default();
        rare.wakers.extend(wakers);
        Self { rare: Some(rare), ..self }
    }
}

/// The effects of the step that ends a runner's job.
#[must_use]
pub(crate) struct Advance<R, W> {
    pub(crate) wake: Wake,
    pub(crate) rare: Option<Box<RareEffects<R, W>>>,
    /// The ended job's part in the table, to be dropped.
    pub(crate) ended: Option<R>,
    /// The runner's next job. Without one it has no more to do.
    pub(crate) next: Option<W>,
}
