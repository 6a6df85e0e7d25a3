use std::{
    fmt,
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering},
};

/// Names one job, uniquely within the process.
///
/// Ids grow in the order in which jobs are made, which is not always the order in which they are
/// accepted or started. A restarted process starts again at 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct JobId(NonZeroU64);

impl JobId {
    pub(crate) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        Self(NonZeroU64::new(id).expect("2^64 jobs outlast the machine"))
    }

    /// The id as a number, at least 1.
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

/// Where a job is in its life. A job only ever moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum JobState {
    /// Accepted, and waiting for the end of its response.
    Deferred,
    /// Accepted, and waiting for a running place.
    Pending,
    /// Running.
    Active,
    /// Ended, one way or another.
    Finished,
}

/// How a job ended. Every accepted job that ends has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Outcome {
    /// Returned a value that is not an error.
    Completed,
    /// Returned `Err`.
    Failed,
    /// Panicked, in its code or, once it had started, while it was dropped.
    Panicked,
    /// Exceeded its run timeout, or did not end within `close_timeout` when its scheduler closed.
    TimedOut,
    /// Was closed or aborted before it ended by itself.
    Cancelled,
    /// Waited for a successful response, and the response was not.
    Skipped,
    /// Was still waiting when the scheduler closed.
    NeverStarted,
    /// Was still running when the scheduler stopped waiting for it.
    Abandoned,
}

impl Outcome {
    pub(crate) const COUNT: usize = Outcome::Abandoned as usize + 1;
}
