use std::{fmt, sync::Arc, time::Duration};

use crate::{
    job::info::JobInfo,
    report::job_list::{Drained, JobList},
    rules::state::Outcome,
};

/// How many jobs are where, at one moment, and what became of those that ended.
///
/// The accounting law holds in every snapshot:
///
/// ```text
/// accepted = deferred + pending + active + completed + failed + panicked + timed_out
///          + cancelled + skipped + never_started + abandoned
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// Jobs ever accepted.
    pub accepted: u64,
    /// Jobs that wait for the end of their response.
    pub deferred: u64,
    /// Jobs that wait for a running place.
    pub pending: u64,
    /// Jobs that run, shielded ones (which hold no place under the limit) included.
    pub active: u64,
    /// Jobs that returned a value.
    pub completed: u64,
    /// Jobs that returned an error.
    pub failed: u64,
    /// Jobs that panicked.
    pub panicked: u64,
    /// Jobs that exceeded their run timeout, or did not end within `close_timeout` when the
    /// scheduler closed.
    pub timed_out: u64,
    /// Jobs that were closed or aborted.
    pub cancelled: u64,
    /// Jobs that waited for a successful response in vain.
    pub skipped: u64,
    /// Jobs that still waited when the scheduler closed.
    pub never_started: u64,
    /// Jobs that still ran when the scheduler stopped waiting for them.
    pub abandoned: u64,
    /// Spawners that wait for a place. Their jobs are not accepted yet.
    pub waiting_spawners: u64,
    /// How long the job at the head of the queue has waited.
    pub oldest_pending: Option<Duration>,
    /// How long the longest-running job has run. (One that follows very short jobs in their task may
    /// count from up to three jobs earlier.)
    pub oldest_active: Option<Duration>,
}

/// What closing a scheduler did with its jobs.
///
/// Covers the time from the first [`start_draining`](crate::Scheduler::start_draining),
/// [`wait_and_close`](crate::Scheduler::wait_and_close) or [`close`](crate::Scheduler::close) until
/// no job was left to wait for, and names every job that ended otherwise than well in that time.
/// `Display` is one line of at most 15 000 bytes. It has all counts, and names the first jobs of each
/// outcome.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DrainReport {
    /// How many jobs ended well.
    pub completed: u64,
    /// How many jobs waited for a successful response in vain.
    pub skipped: u64,
    /// The jobs that returned an error.
    pub failed: JobList,
    /// The jobs that panicked.
    pub panicked: JobList,
    /// The jobs that ran out of time: their run timeout's, or the close timeout.
    pub timed_out: JobList,
    /// The jobs that were dropped while they ran.
    pub cancelled: JobList,
    /// The jobs that never started.
    pub never_started: JobList,
    /// The jobs that would not end: they may still be running.
    pub abandoned: JobList,
    /// How long it took.
    pub elapsed: Duration,
}

impl DrainReport {
    pub(crate) fn new(drained: &Arc<Drained>) -> Self {
        let jobs = |outcome| JobList::new(drained, outcome);
        Self {
            completed: drained.totals.of(Outcome::Completed),
            skipped: drained.totals.of(Outcome::Skipped),
            failed: jobs(Outcome::Failed),
            panicked: jobs(Outcome::Panicked),
            timed_out: jobs(Outcome::TimedOut),
            cancelled: jobs(Outcome::Cancelled),
            never_started: jobs(Outcome::NeverStarted),
            abandoned: jobs(Outcome::Abandoned),
            elapsed: drained.elapsed,
        }
    }

    /// Whether every job ended well (or was rightly skipped): no work was lost and none failed.
    pub fn is_clean(&self) -> bool {
        self.unclean().all(|(_, jobs)| jobs.is_empty())
    }

    /// The jobs that ended otherwise than well, with how they ended.
    pub fn jobs(&self) -> impl Iterator<Item = (Outcome, &JobInfo)> {
        self.unclean().flat_map(|(outcome, jobs)| jobs.iter().map(move |job| (outcome, job)))
    }

    fn unclean(&self) -> impl Iterator<Item = (Outcome, &JobList)> {
        [
            (Outcome::Failed, &self.failed),
            (Outcome::Panicked, &self.panicked),
            (Outcome::TimedOut, &self.timed_out),
            (Outcome::Cancelled, &self.cancelled),
            (Outcome::NeverStarted, &self.never_started),
            (Outcome::Abandoned, &self.abandoned),
        ]
        .into_iter()
    }
}

/// Log drivers cut lines at 16 384 bytes; the rest is for a timestamp and fields.
pub(crate) const MAX_LINE: usize = 15_000;
/// Room for the count of one outcome.
const COUNT: usize = 60;

impl DrainReport {
    /// The line of `Display`, which names jobs in up to about `most` bytes.
    pub(crate) fn line(&self, most: usize) -> String {
        let (elapsed, completed) = (self.elapsed.as_millis(), self.completed);
        let mut line = format!("drained in {elapsed} ms: {completed} completed");
        if self.skipped > 0 {
            line += &format!(", {} skipped", self.skipped);
        }
        let mut left = self.unclean().filter(|(_, jobs)| !jobs.is_empty()).count();
        for (outcome, jobs) in self.unclean().filter(|(_, jobs)| !jobs.is_empty()) {
            let outcome = match outcome {
                Outcome::Failed => "failed",
                Outcome::Panicked => "panicked",
                Outcome::TimedOut => "timed out",
                Outcome::Cancelled => "cancelled",
                Outcome::NeverStarted => "never started",
                _ => "abandoned",
            };
            // Each outcome has its share of the bytes, so a long list hides no other.
            let share = most.saturating_sub(line.len() + left * COUNT) / left;
            left -= 1;
            line += &format!(", {} {outcome}", jobs.len());
            line += &names(jobs, share);
        }
        line
    }
}

/// The first of the jobs, in parentheses; nothing if there is not room for one.
fn names(jobs: &JobList, most: usize) -> String {
    let mut names = String::new();
    let mut shown = 0;
    for job in jobs.infos() {
        let name = job.to_string();
        if names.len() + 2 + name.len() > most {
            break;
        }
        names += if shown == 0 { " (" } else { ", " };
        names += &name;
        shown += 1;
    }
    if shown > 0 && shown < jobs.len() {
        names += &format!(", and {} more", jobs.len() - shown);
    }
    names + if shown > 0 { ")" } else { "" }
}

impl fmt::Display for DrainReport {
    /// `drained in 1200 ms: 41 completed, 1 failed (job 7 "welcome e-mail" of POST /signup (src/main.rs:12:5))`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line(MAX_LINE))
    }
}
