//! A job's id, its states and its outcomes.

use std::{
    fmt,
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering},
};

/// Identifies one job, uniquely within the process.
///
/// Ids increase in the order in which jobs are made. Jobs may be accepted or started in another order.
/// A new process starts at 1 again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct JobId(NonZeroU64);

impl JobId {
    pub(crate) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        Self(NonZeroU64::new(id).expect("a process makes fewer than 2^64 jobs"))
    }

    /// Returns the id as a number, at least 1.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({})", self.0)
    }
}

/// Describes the state of a job.
///
/// A job only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum JobState {
    /// The job is accepted, and waits for the end of its response.
    Deferred,
    /// The job is accepted, and waits for a permit to run.
    Pending,
    /// The job runs.
    Active,
    /// The job has ended, with any outcome.
    Finished,
}

/// Describes how a job ended.
///
/// Every accepted job that ends has exactly one outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Outcome {
    /// The job returned a value that is not an error.
    Completed,
    /// The job returned `Err`.
    Failed,
    /// The job panicked.
    ///
    /// It panicked in its code or, once it had started, while it was dropped.
    Panicked,
    /// The job exceeded its run timeout or the `close_timeout`.
    ///
    /// The `close_timeout` counts when the scheduler closes.
    TimedOut,
    /// The job was closed or aborted before it ended by itself.
    Cancelled,
    /// The job never started, because its response was not a success.
    Skipped,
    /// The job was still pending or deferred when the scheduler closed.
    NeverStarted,
    /// The job was still running when the scheduler stopped waiting for it.
    Abandoned,
}

impl Outcome {
    /// Number of variants.
    pub(crate) const COUNT: usize = Outcome::Abandoned as usize + 1;
}
