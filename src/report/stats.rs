//! Counts of a scheduler's jobs.

use std::time::Duration;

use crate::report::observer::RefusalReason;

/// Counts a scheduler's jobs by state and outcome, at one moment.
///
/// Durations are serialized as seconds. This equation holds in every snapshot:
///
/// ```text
/// accepted = deferred + pending + active + completed + failed + panicked + timed_out
///          + cancelled + skipped + never_started + abandoned
/// ```
///
/// `axum::Json<Stats>` is a response with the feature `serde` only. Without it the compiler says of the handler
/// that ``the trait `Handler<_, _>` is not implemented``.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// Number of jobs that were ever accepted.
    pub accepted: u64,
    /// Number of jobs that wait for the end of their response.
    pub deferred: u64,
    /// Number of jobs that wait for a permit to run.
    pub pending: u64,
    /// Number of jobs that run. Shielded jobs are included, although they hold no permit.
    pub active: u64,
    /// Number of jobs that returned a value.
    pub completed: u64,
    /// Number of jobs that returned an error.
    pub failed: u64,
    /// Number of jobs that panicked.
    pub panicked: u64,
    /// Number of jobs that exceeded their run timeout or the `close_timeout`.
    ///
    /// The `close_timeout` counts when the scheduler closes.
    pub timed_out: u64,
    /// Number of jobs that were closed or aborted.
    pub cancelled: u64,
    /// Number of jobs skipped because their response was not a success.
    pub skipped: u64,
    /// Number of jobs that had not started when the scheduler closed.
    pub never_started: u64,
    /// Number of jobs still running when the scheduler stopped waiting for them.
    pub abandoned: u64,
    /// Number of spawners and reservations that wait. Their jobs are not accepted yet.
    pub waiting_spawners: u64,
    /// Number of permits that are reserved without a job.
    pub reserved: u64,
    /// Number of grants that are not used yet: of spawners, and of reservations.
    pub granted: u64,
    /// Number of active jobs outside the limit: shielded and atomic work.
    pub outside_limit: u64,
    /// Number of refused jobs, by reason.
    pub refused: Refusals,
    /// Time since the longest deferred job was deferred.
    #[cfg_attr(
        feature = "serde",
        serde(serialize_with = "crate::job::info::serialize_some_seconds")
    )]
    pub oldest_deferred: Option<Duration>,
    /// Time that the job at the head of the queue has waited.
    #[cfg_attr(
        feature = "serde",
        serde(serialize_with = "crate::job::info::serialize_some_seconds")
    )]
    pub oldest_pending: Option<Duration>,
    /// Time that the longest-running job has run.
    #[cfg_attr(
        feature = "serde",
        serde(serialize_with = "crate::job::info::serialize_some_seconds")
    )]
    pub oldest_active: Option<Duration>,
}

/// Counts the jobs that were refused since the scheduler was made, by reason.
///
/// See [`RefusalReason`] for the reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Refusals {
    /// No permit was free, and the queue was full.
    pub pending_full: u64,
    /// `deferred_limit` jobs were deferred.
    pub deferred_full: u64,
    /// No permit or place became free within the timeout.
    pub timed_out: u64,
    /// The scheduler was closed.
    pub closed: u64,
    /// The scheduler had no runtime.
    pub no_runtime: u64,
    /// An unfinished job had the same unique key.
    pub duplicate: u64,
    /// The spawn future was dropped while it waited.
    pub dropped: u64,
}

impl Refusals {
    /// From the counts in the order of [`RefusalReason::ALL`].
    pub(crate) fn from_counts(counts: [u64; RefusalReason::ALL.len()]) -> Self {
        let [pending_full, deferred_full, timed_out, closed, no_runtime, duplicate, dropped] =
            counts;
        Self { pending_full, deferred_full, timed_out, closed, no_runtime, duplicate, dropped }
    }

    /// Returns the number for one reason.
    pub fn of(&self, reason: RefusalReason) -> u64 {
        match reason {
            RefusalReason::PendingFull => self.pending_full,
            RefusalReason::DeferredFull => self.deferred_full,
            RefusalReason::TimedOut => self.timed_out,
            RefusalReason::Closed => self.closed,
            RefusalReason::NoRuntime => self.no_runtime,
            RefusalReason::Duplicate => self.duplicate,
            RefusalReason::Dropped => self.dropped,
        }
    }

    /// Returns the number for all reasons together.
    pub fn total(&self) -> u64 {
        RefusalReason::ALL.into_iter().map(|reason| self.of(reason)).sum()
    }
}
