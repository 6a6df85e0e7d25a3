//! Counts of a scheduler's jobs.

use std::time::Duration;

/// Counts a scheduler's jobs by state and outcome, at one moment.
///
/// This equation holds in every snapshot:
///
/// ```text
/// accepted = deferred + pending + active + completed + failed + panicked + timed_out
///          + cancelled + skipped + never_started + abandoned
/// ```
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
    /// Number of spawners that wait for a place in the queue. Their jobs are not accepted yet.
    pub waiting_spawners: u64,
    /// Time since the longest deferred job was deferred.
    pub oldest_deferred: Option<Duration>,
    /// Time that the job at the head of the queue has waited.
    pub oldest_pending: Option<Duration>,
    /// Time that the longest-running job has run.
    pub oldest_active: Option<Duration>,
}
