//! A job's id, its states and its outcomes.

use std::{
    error::Error,
    fmt,
    hash::{BuildHasher, RandomState},
    num::NonZeroU64,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Identifies one job, uniquely within the process.
///
/// Ids increase in the order in which jobs are made. Jobs may be accepted or started in another order.
///
/// The text of an id has a random part of the process, as in `7-0f3a9`. So an id of before a restart is
/// not taken for one of this process. It is no secret: who sees one id can guess others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(NonZeroU64);

/// Bits of the number within the process; the bits above are the process's part.
const NUMBER_BITS: u32 = 44;
const NUMBERS: u64 = 1 << NUMBER_BITS;

/// The number of the last job.
static LAST: AtomicU64 = AtomicU64::new(0);

/// The random part of the process, above the bits of the number.
fn process_part() -> u64 {
    static PART: OnceLock<u64> = OnceLock::new();
    // Keys of `RandomState` are random in each process.
    *PART.get_or_init(|| RandomState::new().hash_one("process") & !(NUMBERS - 1))
}

impl JobId {
    pub(crate) fn next() -> Self {
        // Ordered, since observers are added between two ids.
        let number = LAST.fetch_add(1, Ordering::AcqRel) + 1;
        Self(
            NonZeroU64::new(process_part() | number).expect("a process makes fewer than 2^44 jobs"),
        )
    }

    /// Returns the number of the job within the process, at least 1.
    pub fn get(self) -> u64 {
        self.0.get() & (NUMBERS - 1)
    }

    /// Whether this process has made a job with this id.
    pub(crate) fn is_of_this_process(self) -> bool {
        let is_own = self.0.get() & !(NUMBERS - 1) == process_part();
        is_own && (1..=LAST.load(Ordering::Relaxed)).contains(&self.get())
    }
}

impl fmt::Display for JobId {
    /// Formats as `7-0f3a9`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:05x}", self.get(), self.0.get() >> NUMBER_BITS)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({self})")
    }
}

/// The text is not the id of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseJobIdError;

impl fmt::Display for ParseJobIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "not the id of a job: it is written as a number and the process's part, 7-0f3a9",
        )
    }
}

impl Error for ParseJobIdError {}

impl FromStr for JobId {
    type Err = ParseJobIdError;

    /// Reads the text of an id, of this process or another.
    fn from_str(text: &str) -> Result<Self, ParseJobIdError> {
        let (number, process) = text.split_once('-').ok_or(ParseJobIdError)?;
        let is_plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_plain(number) || !is_plain(process) || process.len() != 5 {
            return Err(ParseJobIdError);
        }
        let number = number.parse::<u64>().map_err(|_| ParseJobIdError)?;
        let process = u64::from_str_radix(process, 16).map_err(|_| ParseJobIdError)?;
        if number == 0 || number >= NUMBERS {
            return Err(ParseJobIdError);
        }
        NonZeroU64::new(process << NUMBER_BITS | number).map(Self).ok_or(ParseJobIdError)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for JobId {
    /// Serializes as the text.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for JobId {
    /// Deserializes from the text, as axum's `Path<JobId>` does.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
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

/// Describes how far the shutdown of a scheduler is.
///
/// A scheduler only moves down this list. [`Scheduler::phase`](crate::Scheduler::phase) returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Phase {
    /// The shutdown has not begun.
    Open,
    /// The shutdown has begun by [`start_draining`](crate::Scheduler::start_draining). Jobs are accepted and
    /// started as before; connections end first.
    Announced,
    /// Jobs are accepted, started and waited for. The scheduler closes when it is idle, or at its deadline.
    Draining,
    /// No job is accepted or started any more. Some may still run.
    Closed,
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

    /// All outcomes.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Completed,
        Self::Failed,
        Self::Panicked,
        Self::TimedOut,
        Self::Cancelled,
        Self::Skipped,
        Self::NeverStarted,
        Self::Abandoned,
    ];

    /// Returns the outcome as a word of lower case, for labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Panicked => "panicked",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::NeverStarted => "never_started",
            Self::Abandoned => "abandoned",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_read_as_it_was_written() {
        let id = JobId::next();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.is_of_this_process());
        assert!(JobId::next() > id);
    }

    #[test]
    fn id_of_another_process_is_none_of_this() {
        let id = JobId::next().to_string();
        let (number, part) = id.split_once('-').expect("two parts");
        let other = if part == "00000" { "00001" } else { "00000" };
        let foreign: JobId = format!("{number}-{other}").parse().expect("an id");
        assert!(!foreign.is_of_this_process());
        let future: JobId = format!("{}-{part}", NUMBERS - 1).parse().expect("an id");
        assert!(!future.is_of_this_process());
    }

    #[test]
    fn other_texts_are_no_ids() {
        for text in
            ["", "7", "7-", "-0f3a9", "0-0f3a9", "7-0f3a", "7-0f3a9a", "+7-0f3a9", "7-+f3a9"]
        {
            assert_eq!(text.parse::<JobId>(), Err(ParseJobIdError), "{text}");
        }
        assert_eq!(format!("{NUMBERS}-0f3a9").parse::<JobId>(), Err(ParseJobIdError));
    }
}
