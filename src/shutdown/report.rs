//! The report of a shutdown.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::{
    report::{
        drain_report::{DrainReport, MAX_LINE},
        stats::Stats,
    },
    shutdown::{
        parts::{PartOutcome, PartReport},
        server::{ServerOutcome, ServerOutput},
    },
    util::one_line::{OneLine, cut},
};

/// Bytes of the server's error in the line.
const MAX_ERROR: usize = 2_000;
/// Bytes for a part in the line.
const MAX_PART: usize = 500;
/// Bytes for the jobs of all schedulers in the line.
const MAX_JOBS: usize = 12_000;
/// How long [`ShutdownReport::print`] waits for standard output.
const PRINT_GRACE: Duration = Duration::from_millis(50);

/// Durations of the phases of a shutdown, serialized as seconds.
///
/// Together they are the time from the signal to the last job's end. If the server ended by itself, all
/// the time from then on is in `jobs`; so is the time of a phase that a second signal broke off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PhaseTimings {
    /// From the signal until the server's stop signal.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::job::info::serialize_seconds"))]
    pub readiness: Duration,
    /// From then until the server ended, or was dropped.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::job::info::serialize_seconds"))]
    pub connections: Duration,
    /// From then until the last job ended, or was abandoned.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::job::info::serialize_seconds"))]
    pub jobs: Duration,
}

/// Hooks that had not returned when [`Shutdown::serve`](crate::Shutdown::serve) did. They run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct UnfinishedHooks {
    /// Calls of [`on_failure`](crate::SchedulerBuilder::on_failure), or of the log in its place.
    pub on_failure: usize,
    /// Whether [`on_unstarted`](crate::Shutdown::on_unstarted) had not returned.
    pub on_unstarted: bool,
}

/// The result of a [`Shutdown`](crate::Shutdown).
///
/// `Display` is one line of less than 16 KB: the server's outcome, its error, the jobs since the signal,
/// and the schedulers' totals since the start.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShutdownReport<T> {
    /// How the server ended.
    pub server: ServerOutcome<T>,
    /// Whether a signal began the shutdown. If not, the end of the server did.
    pub signalled: bool,
    /// The jobs that ended since the shutdown began.
    pub jobs: DrainReport,
    /// The same of the schedulers given to [`Shutdown::and_scheduler`](crate::Shutdown::and_scheduler),
    /// in that order.
    pub others: Vec<DrainReport>,
    /// The counts of all schedulers since they were built, in that order.
    pub totals: Vec<Stats>,
    /// How long it took.
    pub phases: PhaseTimings,
    /// The [parts](crate::Shutdown::part) of the application, in the order in which they were given.
    pub parts: Vec<PartReport>,
    /// Hooks that did not return in time.
    pub unfinished_hooks: UnfinishedHooks,
}

impl<T: ServerOutput> ShutdownReport<T> {
    /// Whether the server ended without an error, every job that ended since the shutdown began ended well,
    /// and so did every [part](crate::Shutdown::part).
    ///
    /// An exit code of 0 should mean this. Jobs that failed before the signal are in
    /// [`totals`](Self::totals) only. A server that the signal prevented from starting counts as well.
    pub fn is_clean(&self) -> bool {
        self.server.is_well()
            && self.jobs.is_clean()
            && self.others.iter().all(DrainReport::is_clean)
            && self.parts.iter().all(|part| part.outcome == PartOutcome::Ended)
    }

    /// Prints the report's line to standard output, without blocking and without panicking.
    ///
    /// Waits up to 50 ms for standard output, which may be a full pipe. If it is closed, nothing is
    /// printed.
    pub fn print(&self) {
        let line = format!("{self}\n");
        let (printed, is_printed) = mpsc::channel();
        let print = move || {
            let mut stdout = io::stdout();
            drop(stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()));
            printed.send(()).unwrap_or_default();
        };
        // The thread is not joined: the pipe may hold it up.
        if thread::Builder::new().name("tower-jobs print".into()).spawn(print).is_ok() {
            is_printed.recv_timeout(PRINT_GRACE).unwrap_or_default();
        }
    }
}

impl<T: ServerOutput> From<&ShutdownReport<T>> for ExitCode {
    /// 0 if the shutdown was [clean](ShutdownReport::is_clean), else 1.
    fn from(report: &ShutdownReport<T>) -> Self {
        if report.is_clean() { Self::SUCCESS } else { Self::FAILURE }
    }
}

impl<T: ServerOutput> From<ShutdownReport<T>> for ExitCode {
    /// 0 if the shutdown was [clean](ShutdownReport::is_clean), else 1.
    fn from(report: ShutdownReport<T>) -> Self {
        Self::from(&report)
    }
}

impl<T: ServerOutput> fmt::Display for ShutdownReport<T> {
    /// `server finished; since the signal: drained in 12 ms: 3 completed; in all: 41 completed, 1 failed`
    ///
    /// A scheduler with a name has it before `drained`: `"mails" drained in 12 ms: ..`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = format!("server {}", self.server.as_str());
        if let Some(text) = self.server.error_text() {
            line += &format!(" ({})", cut(OneLine(text).to_string(), MAX_ERROR));
        }
        line += if self.signalled { "; since the signal: " } else { "; since the server's end: " };
        let share = MAX_JOBS / (1 + self.others.len());
        line += &self.jobs.line(share);
        for jobs in &self.others {
            line += &format!("; {}", jobs.line(share));
        }
        let UnfinishedHooks { on_failure, on_unstarted } = self.unfinished_hooks;
        if on_failure > 0 {
            line += &format!("; {on_failure} on_failure unfinished");
        }
        if on_unstarted {
            line += "; on_unstarted unfinished";
        }
        let is_told =
            |part: &&PartReport| part.outcome != PartOutcome::Ended || part.note.is_some();
        for part in self.parts.iter().filter(is_told) {
            line += &format!("; {}", cut(part.to_string(), MAX_PART));
        }
        let total = |count: fn(&Stats) -> u64| self.totals.iter().map(count).sum::<u64>();
        line += &format!("; in all: {} completed", total(|stats| stats.completed));
        for (count, outcome) in [
            (total(|stats| stats.skipped), "skipped"),
            (total(|stats| stats.failed), "failed"),
            (total(|stats| stats.panicked), "panicked"),
            (total(|stats| stats.timed_out), "timed out"),
            (total(|stats| stats.cancelled), "cancelled"),
            (total(|stats| stats.never_started), "never started"),
            (total(|stats| stats.abandoned), "abandoned"),
        ] {
            if count > 0 {
                line += &format!(", {count} {outcome}");
            }
        }
        f.write_str(&cut(line, MAX_LINE))
    }
}

#[cfg(feature = "serde")]
impl<T: ServerOutput> serde::Serialize for ShutdownReport<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut report = serializer.serialize_struct("ShutdownReport", 9)?;
        report.serialize_field("server", self.server.as_str())?;
        report.serialize_field("error", &self.server.error_text())?;
        report.serialize_field("signalled", &self.signalled)?;
        report.serialize_field("jobs", &self.jobs)?;
        report.serialize_field("others", &self.others)?;
        report.serialize_field("totals", &self.totals)?;
        report.serialize_field("phases", &self.phases)?;
        report.serialize_field("parts", &self.parts)?;
        report.serialize_field("unfinished_hooks", &self.unfinished_hooks)?;
        report.end()
    }
}
