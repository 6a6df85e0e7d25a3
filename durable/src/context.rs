//! A durable job's view of itself.

use std::{error::Error as StdError, fmt, iter::successors, time::SystemTime};

use tokio::sync::watch;
use tower_jobs::BoxError;

use crate::{engine::Claimed, envelope::Note, job::DurableId, stage::Stage};

/// A try of a job.
#[derive(Clone)]
#[non_exhaustive]
pub struct DurableContext {
    /// The job's id, the same in each try: the key by which a handler makes its work idempotent.
    pub id: DurableId,
    /// Which try this is, from 1. A crash and a release do not count.
    pub attempt: u32,
    /// How many processes have died while the job ran.
    pub crashes: u32,
    /// The label of the request that pushed the job, such as `POST /users`.
    pub label: Option<String>,
    /// The W3C `traceparent` of the request that pushed the job.
    pub traceparent: Option<String>,
    /// The W3C `tracestate` beside it.
    pub tracestate: Option<String>,
    /// When the job could first have started, if the store knows.
    pub ready_since: Option<SystemTime>,
    stage: watch::Receiver<Stage>,
}

impl DurableContext {
    pub(crate) fn new(row: &Claimed, note: &Note, stage: watch::Receiver<Stage>) -> Self {
        Self {
            id: row.id.clone(),
            attempt: note.failures.saturating_add(1),
            crashes: row.starts.saturating_sub(1).saturating_sub(note.failures),
            label: note.label.clone(),
            traceparent: note.traceparent.clone(),
            tracestate: note.tracestate.clone(),
            ready_since: row.ready_since,
            stage,
        }
    }

    /// Returns whether the application is shutting down.
    pub fn is_shutting_down(&self) -> bool {
        *self.stage.borrow() >= Stage::Stopping
    }

    /// Resolves when the application begins to shut down.
    ///
    /// The job then has until the deadline of the shutdown, less the time to settle its row. After that it is dropped.
    /// A job that keeps how far it is, and returns [`Interrupted`], lets the application end earlier.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tower_jobs::BoxError;
    /// # use tower_jobs_durable::{DurableContext, DurableJob, Interrupted};
    /// # #[derive(Serialize, Deserialize)] struct Import { file: String }
    /// # impl DurableJob for Import { const KIND: &str = "import"; }
    /// # async fn import_next_rows(_: &Import) -> Result<bool, BoxError> { Ok(false) }
    /// async fn import(job: Import, context: DurableContext) -> Result<(), BoxError> {
    ///     while import_next_rows(&job).await? {
    ///         if context.is_shutting_down() {
    ///             return Err(Interrupted.into()); // another process goes on
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn shutting_down(&self) {
        // An error means that the sender is gone, and that is the end too.
        drop(self.stage.clone().wait_for(|stage| *stage >= Stage::Stopping).await);
    }
}

impl fmt::Debug for DurableContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableContext")
            .field("id", &self.id)
            .field("attempt", &self.attempt)
            .field("crashes", &self.crashes)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

/// Ends a try early, because the application is [shutting down](DurableContext::shutting_down).
///
/// As a handler's error, or the cause of one, it releases the job: another process may run it at once, and the try does
/// not count. While the application is not shutting down, it is an error like any other, and the try counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupted;

impl Interrupted {
    pub(crate) fn is_cause_of(error: &BoxError) -> bool {
        let first: &(dyn StdError + 'static) = error.as_ref();
        successors(Some(first), |&error| error.source()).any(|error| error.is::<Self>())
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted by the shutdown")
    }
}

impl StdError for Interrupted {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(Interrupted);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("row 7")
        }
    }

    impl StdError for Wrapped {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn interruption_is_seen_as_a_cause() {
        assert!(Interrupted::is_cause_of(&Interrupted.into()));
        assert!(Interrupted::is_cause_of(&Wrapped(Interrupted).into()));
        assert!(!Interrupted::is_cause_of(&"interrupted by the shutdown".into()));
    }
}
