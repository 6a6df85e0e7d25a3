//! The report of a closed scheduler.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    job::info::JobInfo,
    report::job_list::{Drained, JobList},
    rules::state::Outcome,
};

/// Reports the outcomes of a scheduler's jobs during its shutdown.
///
/// The report begins with the first call of [`start_draining`](crate::Scheduler::start_draining),
/// [`wait_and_close`](crate::Scheduler::wait_and_close) or [`close`](crate::Scheduler::close). It ends
/// when no job is left to wait for. It counts the jobs that were completed or skipped in that time, and
/// lists every other job that ended in it.
///
/// `Display` writes one line, with at most the first 250 jobs of each outcome.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DrainReport {
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
    /// Time from the beginning to the end of the report.
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

/// Maximum number of jobs of each outcome in `Display`, which take about 20 KB. Log collectors split or
/// drop the line that all pending jobs could make.
const MAX_JOBS_SHOWN: usize = 250;

impl fmt::Display for DrainReport {
    /// Formats as `drained in 1200 ms: 41 completed, 1 failed (job 7 "welcome e-mail" of POST /signup (src/main.rs:12:5))`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "drained in {} ms: {} completed", self.elapsed.as_millis(), self.completed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        for (outcome, jobs) in self.unclean().filter(|(_, jobs)| !jobs.is_empty()) {
            let outcome = match outcome {
                Outcome::Failed => "failed",
                Outcome::Panicked => "panicked",
                Outcome::TimedOut => "timed out",
                Outcome::Cancelled => "cancelled",
                Outcome::NeverStarted => "never started",
                _ => "abandoned",
            };
            write!(f, ", {} {outcome} (", jobs.len())?;
            for (n, job) in jobs.infos().take(MAX_JOBS_SHOWN).enumerate() {
                write!(f, "{}{job}", if n == 0 { "" } else { ", " })?;
            }
            if jobs.len() > MAX_JOBS_SHOWN {
                write!(f, ", and {} more", jobs.len() - MAX_JOBS_SHOWN)?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}
