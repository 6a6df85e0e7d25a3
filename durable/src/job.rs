//! The kinds of jobs, and the ids of jobs.

use std::{
    borrow::Cow,
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Serialize, de::DeserializeOwned};

/// A job that is stored, and run later, by this process or by another.
///
/// The value is stored as JSON. It is the job's input, so a change of its fields is a change of a stored
/// format: add fields with `#[serde(default)]`, and give a new meaning a new [`KIND`](Self::KIND).
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tower_jobs_durable::DurableJob;
///
/// #[derive(Serialize, Deserialize)]
/// struct SendEmail {
///     to: String,
/// }
///
/// impl DurableJob for SendEmail {
///     const KIND: &str = "send_email";
/// }
/// ```
pub trait DurableJob: Serialize + DeserializeOwned + Send + 'static {
    /// Name of the kind: the job's name in reports, metrics and listings, and the name of its queue in the store.
    ///
    /// It is stored with each job. Two types must not share it.
    const KIND: &'static str;

    /// How many times the job is tried until it counts as dead. Defaults to 25; 0 counts as 1.
    ///
    /// A failure, a panic and a run timeout are tries. A crash of the process, or a shutdown, is none.
    const MAX_ATTEMPTS: u32 = 25;

    /// Run timeout of a try. Defaults to none.
    const TIMEOUT: Option<Duration> = None;

    /// How many times the process may die while the job runs, until the job counts as dead. Defaults to 20; 0
    /// counts as 1.
    ///
    /// The store cannot tell which of the jobs that were running has killed the process, so the number is large. A
    /// job that has used up a quarter of it runs with no other such job beside it.
    const MAX_CRASHES: u32 = 20;
}

/// The id of a stored job, as text.
///
/// It is unique in its store, and the same in each try.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct DurableId(Cow<'static, str>);

impl DurableId {
    /// Makes an id of the text that the store gives.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self(text.into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DurableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Options of a push. The default is: now, without a key, with the kind's attempts, at priority 0.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct PushOptions {
    pub(crate) run_at: Option<SystemTime>,
    pub(crate) unique_key: Option<String>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) priority: i16,
}

impl PushOptions {
    /// Creates the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the earliest start, counted from now. `Sqlite` rounds it up to a second.
    #[expect(
        clippy::disallowed_methods,
        reason = "a store keeps dates: another process reads them"
    )]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.run_at = SystemTime::now().checked_add(delay);
        self
    }

    /// Sets the earliest start. `Sqlite` rounds it up to a second.
    pub fn run_at(mut self, at: SystemTime) -> Self {
        self.run_at = Some(at);
        self
    }

    /// Sets a key that only one unfinished job of the kind may have.
    ///
    /// A dead letter keeps its key until it is retried or discarded.
    pub fn unique_key(mut self, key: impl Into<String>) -> Self {
        self.unique_key = Some(key.into());
        self
    }

    /// Replaces [`MAX_ATTEMPTS`](DurableJob::MAX_ATTEMPTS). 0 counts as 1.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// Sets the priority. A job of a higher priority starts before one of a lower. Defaults to 0.
    pub fn priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }
}
