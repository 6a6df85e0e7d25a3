//! A snapshot of one job, for listings and reports.

use std::{
    borrow::Cow,
    cell::Cell,
    collections::HashMap,
    fmt,
    panic::Location,
    ptr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    job::options::JobKind,
    rules::state::{JobId, JobState},
    util::{
        one_line::OneLine,
        sync::{Mutex, lock},
    },
};

/// A snapshot of one job.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct JobInfo {
    /// The job's id.
    pub id: JobId,
    /// The job's name. Defaults to its spawn location.
    pub name: Cow<'static, str>,
    /// How the job runs.
    pub kind: JobKind,
    /// The job's state.
    pub state: JobState,
    /// The label of the request that spawned the job, as `METHOD /path`, or the one it was
    /// [given](crate::JobBuilder::label); `None` if the job was spawned on the scheduler.
    pub request: Option<Arc<str>>,
    /// The job's concurrency key: see
    /// [`JobBuilder::concurrency_key`](crate::JobBuilder::concurrency_key).
    pub key: Option<Arc<str>>,
    /// The job's spawn location, serialized as `file:line:column`.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_display"))]
    pub location: &'static Location<'static>,
    /// Time since the job was accepted, serialized as seconds.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_seconds"))]
    pub age: Duration,
    /// Time that the job is in its state, serialized as seconds. For an active job, the time since it was
    /// given its permit; zero for a job that has ended.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_seconds"))]
    pub state_for: Duration,
    /// Time for which an active job was pending, serialized as seconds; `None` for a job in another state.
    ///
    /// For a job that was deferred it is counted from the end of its response if the scheduler has an
    /// [observer](crate::Observer) or the job has a [span](crate::docs::observability), else from its acceptance.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_some_seconds"))]
    pub queued: Option<Duration>,
    /// The job's run timeout, serialized as seconds: its own, else the scheduler's
    /// [`job_timeout`](crate::SchedulerBuilder::job_timeout). `None` if it has none.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_some_seconds"))]
    pub timeout: Option<Duration>,
    /// The part of its work that the job says it has done, from 0 to 1: see
    /// [`JobContext::progress`](crate::JobContext::progress). `None` if it has said nothing.
    pub progress: Option<f32>,
}

#[cfg(feature = "serde")]
fn serialize_display<S: serde::Serializer>(
    value: &impl fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Serializes a duration as seconds.
#[cfg(feature = "serde")]
pub(crate) fn serialize_seconds<S: serde::Serializer>(
    value: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(value.as_secs_f64())
}

/// Serializes an optional duration as seconds.
#[cfg(feature = "serde")]
pub(crate) fn serialize_some_seconds<S: serde::Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.serialize_some(&value.as_secs_f64()),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for JobInfo {
    /// Formats as `job 7 "welcome e-mail" of POST /signup (src/main.rs:12:5)`, in one line: control
    /// characters are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.id)?;
        if self.name != name_of(self.location) {
            write!(f, " {:?}", self.name)?;
        }
        if let Some(request) = &self.request {
            write!(f, " of {}", OneLine(request))?;
        }
        write!(f, " ({})", self.location)
    }
}

/// The name of jobs without a name: their spawn location. Leaked, once for each location.
pub(super) fn name_of(location: &'static Location<'static>) -> &'static str {
    static NAMES: OnceLock<Mutex<HashMap<&'static Location<'static>, &'static str>>> =
        OnceLock::new();
    type Last = Option<(&'static Location<'static>, &'static str)>;
    // Most listings have many jobs of one location in a row.
    thread_local!(static LAST: Cell<Last> = const { Cell::new(None) });
    match LAST.get() {
        Some((last, name)) if ptr::eq(last, location) => return name,
        _ => {}
    }
    let mut names = lock(NAMES.get_or_init(Mutex::default));
    let name = *names.entry(location).or_insert_with(|| location.to_string().leak());
    drop(names);
    LAST.set(Some((location, name)));
    name
}
