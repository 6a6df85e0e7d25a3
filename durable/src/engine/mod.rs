//! The seam between handlers and stores.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod rows;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod together;

#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::{BoxFuture, LocalBoxFuture};
use tower_jobs::BoxError;

use crate::{door::Door, error::PushError, job::DurableId};

/// A store of jobs, with its own rows, leases and workers.
///
/// `Postgres` and `Sqlite` are in this crate. Another engine, such as a broker, implements the trait, and is
/// given to [`Durable::builder`](crate::Durable::builder).
pub trait Engine: Send + Sync + 'static {
    /// Stores a job.
    ///
    /// Called on the application's runtime. It must end within about 5 s, with
    /// [`PushError::Unavailable`] if the store does not answer.
    fn push(&self, row: NewRow) -> BoxFuture<'_, Result<DurableId, PushError>>;

    /// Stores a job in the caller's transaction.
    ///
    /// `connection` is the transaction's connection, such as an `sqlx::PgConnection`. Any other is
    /// [`PushError::WrongDatabase`].
    fn push_in<'a>(
        &'a self,
        connection: &'a mut (dyn Any + Send),
        row: NewRow,
    ) -> BoxFuture<'a, Result<DurableId, PushError>>;

    /// Claims rows and runs them through the door, until the door is [stopping](Door::stopping) and all that
    /// it has started has been settled.
    ///
    /// It is the only future of a thread of its own, which has a current-thread runtime and runs no code of
    /// the application. It opens its connections there.
    fn run(self: Arc<Self>, door: Door) -> LocalBoxFuture<'static, ()>;

    /// Returns the store's figures and dead letters, if it has such.
    fn admin(&self) -> Option<&dyn Admin> {
        None
    }
}

/// A store's figures and dead letters, for its operator.
pub trait Admin: Send + Sync {
    /// Counts the stored jobs.
    fn depth(&self) -> BoxFuture<'_, Result<Depth, BoxError>>;

    /// Lists dead letters, the newest first.
    fn dead_letters(&self, most: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, BoxError>>;

    /// Makes a dead letter a job again, with no failures and no crashes. False if there is no such dead letter.
    fn retry<'a>(&'a self, id: &'a DurableId) -> BoxFuture<'a, Result<bool, BoxError>>;

    /// Deletes a dead letter. False if there is no such dead letter.
    fn discard<'a>(&'a self, id: &'a DurableId) -> BoxFuture<'a, Result<bool, BoxError>>;
}

/// Counts of a store, over all kinds and processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Depth {
    /// Jobs that could start now.
    pub ready: u64,
    /// Jobs that wait for their time: delayed, or between two tries.
    pub later: u64,
    /// Jobs that a process holds.
    pub running: u64,
    /// Jobs that have used up their tries, or killed too many processes.
    pub dead: u64,
    /// How long the oldest ready job has been ready.
    pub oldest_ready: Option<Duration>,
}

/// A job that is not tried any more.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its id.
    pub id: DurableId,
    /// Its kind.
    pub kind: String,
    /// Its last error, in one line.
    pub error: String,
    /// When its last try ended, if the store knows.
    pub ended: Option<SystemTime>,
    /// How many times it was started.
    pub starts: u32,
}

/// A job to be stored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewRow {
    /// Its kind.
    pub kind: &'static str,
    /// JSON, in UTF-8. It must not reach a log.
    pub payload: Vec<u8>,
    /// The earliest start; `None` is now.
    pub run_at: Option<SystemTime>,
    /// Only one unfinished job of the kind may have this key.
    pub unique_key: Option<String>,
    /// Upper bound of its starts, over tries and crashes, for stores that have such a bound.
    pub max_starts: u32,
    /// Higher is earlier.
    pub priority: i16,
}

/// A row that this process holds.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Its id.
    pub id: DurableId,
    /// Its kind, one of [`Room::kinds`](crate::Room::kinds).
    pub kind: String,
    /// The payload as it was stored, JSON or not.
    pub payload: Vec<u8>,
    /// How many times the row was started, this time included. A release does not count.
    pub starts: u32,
    /// When it could first have started, if the store knows.
    pub ready_since: Option<SystemTime>,
}

/// The end of a row that was started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// It has completed.
    Done,
    /// It failed, and is tried again.
    Retry {
        /// The payload to store, which counts the failure.
        payload: Vec<u8>,
        /// The error, in one line.
        error: String,
        /// The pause. An engine that has a rule of its own may follow that.
        after: Duration,
    },
    /// It is not tried any more.
    Dead {
        /// The error, in one line.
        error: String,
    },
    /// It was cut off, or not started. It is free at once, and the start does not count.
    Release {
        /// The pause before it may be claimed again.
        after: Duration,
    },
    /// Its code may still run. The row stays held, and is freed by the sweep when this process has ended.
    Leave,
}
