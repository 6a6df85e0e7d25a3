//! The report of a closed scheduler.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    job::info::JobInfo,
    report::job_list::{Drained, JobList},
    rules::state::Outcome,
    util::one_line::cut,
};

/// Reports the outcomes of a scheduler's jobs during its shutdown.
///
/// The report begins with the first call of [`start_draining`](crate::Scheduler::start_draining),
/// [`wait_and_close`](crate::Scheduler::wait_and_close) or [`close`](crate::Scheduler::close). It ends
/// when no job is left to wait for. It counts the jobs that were completed or skipped in that time, and
/// lists every other job that ended in it.
///
/// `Display` writes one line of at most 15 000 bytes. It begins with the scheduler's name if it has one,
/// has all counts, and names the first jobs of each outcome.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DrainReport {
    /// The scheduler's [`name`](crate::SchedulerBuilder::name).
    pub scheduler: Option<Arc<str>>,
    /// Number of jobs that returned a value.
    pub completed: u64,
    /// Number of jobs skipped because their response was not a success.
    pub skipped: u64,
    /// Jobs that returned an error.
    pub failed: JobList,
    /// Jobs that panicked.
    pub panicked: JobList,
    /// Jobs that exceeded their run timeout, or the close timeout.
    pub timed_out: JobList,
    /// Jobs that were dropped while they ran.
    pub cancelled: JobList,
    /// Jobs that never started.
    pub never_started: JobList,
    /// Jobs that did not end, and may still be running.
    pub abandoned: JobList,
    /// Time from the beginning to the end of the report, serialized as seconds.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::job::info::serialize_seconds"))]
    pub elapsed: Duration,
}

impl DrainReport {
    pub(crate) fn new(drained: &Arc<Drained>) -> Self {
        let jobs = |outcome| JobList::new(drained, outcome);
        Self {
            scheduler: drained.scheduler.clone(),
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

    /// Returns whether every job completed or was skipped.
    ///
    /// If so, no work was lost, and none failed.
    pub fn is_clean(&self) -> bool {
        self.unclean().all(|(_, jobs)| jobs.is_empty())
    }

    /// Lists the jobs that were neither completed nor skipped, with their outcomes.
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
/// Bytes of the scheduler's name in the line.
const MAX_NAME: usize = 200;
/// Room for the count of one outcome.
const COUNT: usize = 60;

impl DrainReport {
    /// The line of `Display`, which names jobs in up to about `most` bytes.
    pub(crate) fn line(&self, most: usize) -> String {
        let (elapsed, completed) = (self.elapsed.as_millis(), self.completed);
        let name = self.scheduler.as_ref().map(|name| cut(format!("{name:?}"), MAX_NAME) + " ");
        let name = name.unwrap_or_default();
        let mut line = format!("{name}drained in {elapsed} ms: {completed} completed");
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
