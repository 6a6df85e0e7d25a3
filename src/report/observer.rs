//! The seam for metrics, dashboards and the like: calls for each event in the life of a job.

use std::{panic::Location, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    job::{
        error::{JobError, SpawnError},
        options::JobKind,
        record::Record,
    },
    report::drain_report::DrainReport,
    rules::state::{JobId, Outcome},
};

/// Observes the jobs of a scheduler.
///
/// Each method has an empty default. [`SchedulerBuilder::observer`](crate::SchedulerBuilder::observer)
/// adds an observer, and [`Scheduler::observe`](crate::Scheduler::observe) adds one to a running scheduler. A
/// scheduler may have several.
///
/// # Guarantees
///
/// - [`accepted`](Self::accepted) and [`ended`](Self::ended) are called exactly once for each accepted job, with the outcome that
///   [`stats`](crate::Scheduler::stats) counts. That includes jobs that never start. `started` is called in
///   between exactly if [`has_started`](JobEnd::has_started).
/// - No lock of the scheduler is held during a call, and a panic is contained.
/// - [`closed`](Self::closed) is called once, after all calls of `ended`, so sums equal the counts of
///   `stats` then. The calls that closing makes run beside it on a plain thread.
///
/// # What it does not do
///
/// - It promises no order between threads: `started` or `ended` of a job may come before its `accepted`.
///   Count by signed differences.
/// - It does not wait: a call that blocks holds up the job's runner or its spawner.
///
/// ```
/// use std::{sync::atomic::{AtomicI64, Ordering}, time::Duration};
/// use tower_jobs::{JobEnd, JobSeen, Observer, Scheduler};
///
/// #[derive(Default)]
/// struct Unfinished(AtomicI64);
///
/// impl Observer for Unfinished {
///     fn accepted(&self, _: &JobSeen<'_>) {
///         self.0.fetch_add(1, Ordering::Relaxed);
///     }
///     fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
///         self.0.fetch_sub(1, Ordering::Relaxed);
///         if let Some(error) = end.error {
///             println!("{}: {error} after {:?}", job.name(), end.ran);
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let scheduler = Scheduler::builder().observer(Unfinished::default()).build();
/// scheduler.spawn(async { Err::<(), _>("no mail today") }).await.unwrap();
/// # scheduler.wait_and_close().await;
/// # }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// A job was accepted.
    fn accepted(&self, job: &JobSeen<'_>) {
        let _ = job;
    }

    /// A job starts, after it was queued for that time.
    fn started(&self, job: &JobSeen<'_>, queued: Duration) {
        let _ = (job, queued);
    }

    /// A job has ended, started or not.
    fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
        let _ = (job, end);
    }

    /// A job was refused. `name` is its name.
    fn refused(&self, reason: RefusalReason, name: &str) {
        let _ = (reason, name);
    }

    /// The shutdown of the scheduler has begun. The deadline is that of the drain, if it has one yet.
    fn draining(&self, deadline: Option<Instant>) {
        let _ = deadline;
    }

    /// The scheduler has closed, and all its jobs have ended or are abandoned.
    fn closed(&self, report: &DrainReport) {
        let _ = report;
    }
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn accepted(&self, job: &JobSeen<'_>) {
        (**self).accepted(job);
    }

    fn started(&self, job: &JobSeen<'_>, queued: Duration) {
        (**self).started(job, queued);
    }

    fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
        (**self).ended(job, end);
    }

    fn refused(&self, reason: RefusalReason, name: &str) {
        (**self).refused(reason, name);
    }

    fn draining(&self, deadline: Option<Instant>) {
        (**self).draining(deadline);
    }

    fn closed(&self, report: &DrainReport) {
        (**self).closed(report);
    }
}

/// A job, as an [`Observer`] sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct JobSeen<'a> {
    pub(crate) record: &'a Arc<Record>,
    pub(crate) scheduler: Option<&'a str>,
}

impl JobSeen<'_> {
    /// Returns the job's id.
    pub fn id(&self) -> JobId {
        self.record.id()
    }

    /// Returns the job's name: the one it was given, or its spawn location.
    pub fn name(&self) -> &str {
        self.record.name_str()
    }

    /// Returns the label of the job's request, if it was spawned by one, or was given [one](crate::JobBuilder::label).
    pub fn request(&self) -> Option<&str> {
        self.record.label().map(|label| &**label)
    }

    /// Returns the job's concurrency key.
    pub fn key(&self) -> Option<&str> {
        self.record.concurrency_key().map(|key| &**key)
    }

    /// Returns the job's spawn location.
    pub fn location(&self) -> &'static Location<'static> {
        self.record.location()
    }

    /// Returns how the job runs.
    pub fn kind(&self) -> JobKind {
        self.record.kind()
    }

    /// Returns the name of the job's scheduler, if it was given one.
    pub fn scheduler(&self) -> Option<&str> {
        self.scheduler
    }
}

/// The end of a job.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct JobEnd<'a> {
    /// The outcome, as `stats` counts it.
    pub outcome: Outcome,
    /// Whether the job had started: [`started`](Observer::started) was called for it.
    pub has_started: bool,
    /// Time from the acceptance of the job, or from the end of its response, to its start. For a job that
    /// never started, to its end.
    pub queued: Duration,
    /// Time from the job's start to its end; zero for a job that never started.
    pub ran: Duration,
    /// The job's error, if it failed, also if its handle is awaited. `None` for shielded and atomic work,
    /// whose output belongs to its caller.
    pub error: Option<&'a JobError>,
}

/// Why a job was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RefusalReason {
    /// No permit was free, and the queue was full.
    PendingFull,
    /// `deferred_limit` jobs were deferred.
    DeferredFull,
    /// No permit or place became free within the timeout.
    TimedOut,
    /// The scheduler was closed.
    Closed,
    /// The scheduler had no runtime.
    NoRuntime,
    /// An unfinished job had the same unique key.
    Duplicate,
    /// The spawn future was dropped while it waited.
    Dropped,
}

impl RefusalReason {
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::PendingFull,
        Self::DeferredFull,
        Self::TimedOut,
        Self::Closed,
        Self::NoRuntime,
        Self::Duplicate,
        Self::Dropped,
    ];

    /// Returns the reason as a word of lower case, for labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PendingFull => "pending_full",
            Self::DeferredFull => "deferred_full",
            Self::TimedOut => "timed_out",
            Self::Closed => "closed",
            Self::NoRuntime => "no_runtime",
            Self::Duplicate => "duplicate",
            Self::Dropped => "dropped",
        }
    }
}

impl From<&SpawnError> for RefusalReason {
    fn from(error: &SpawnError) -> Self {
        match error {
            SpawnError::Full => Self::PendingFull,
            SpawnError::DeferredFull => Self::DeferredFull,
            SpawnError::Closed => Self::Closed,
            SpawnError::TimedOut => Self::TimedOut,
            SpawnError::NoRuntime => Self::NoRuntime,
            SpawnError::Duplicate(_) => Self::Duplicate,
        }
    }
}
