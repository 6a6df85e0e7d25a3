//! The one error for handlers that spawn and await.

use std::{error::Error as StdError, fmt};

use crate::job::error::{JobError, SpawnError, TrySpawnError};

/// Holds any error of this crate that a handler meets: a job was refused, or has no value.
///
/// For handlers that both spawn and await, with `?`:
///
/// ```
/// # #[cfg(feature = "axum")] mod example {
/// use tower_jobs::{Error, Jobs};
///
/// # async fn price(_: u32) -> u32 { 7 }
/// async fn order(jobs: Jobs) -> Result<String, Error> {
///     let price = jobs.shield(price(3)).await?; // a JobError
///     let audit = jobs.spawn(async { /* .. */ }).await?; // a SpawnError
///     audit.await?;
///     Ok(format!("{price} euros"))
/// }
/// # }
/// ```
///
/// With the feature `axum`, it is a response: of a refused job that of its [`SpawnError`], of a cancelled job
/// 503 with `Retry-After: 1`, and of any other 500. The body never has the text of the job's own error or
/// panic.
///
/// The failure of a job that a handler awaits is reported to that handler only: no log has it, and the body
/// of the 500 does not say it. Log it before `?`, with its causes: `{error:#}`.
///
/// ```
/// # async fn price() -> Result<u32, std::io::Error> { Err(std::io::Error::other("no such file")) }
/// # async fn order(scheduler: tower_jobs::Scheduler) -> Result<u32, tower_jobs::Error> {
/// let job = scheduler.spawn(price()).await?;
/// let price = job.await.inspect_err(|error| tracing::error!("no price: {error:#}"))?;
/// # Ok(price)
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A job was not accepted.
    Spawn(SpawnError),
    /// A job has no value.
    Job(JobError),
}

impl Error {
    /// Returns the reason for which a job was not accepted, if it was not.
    pub fn refusal(&self) -> Option<SpawnError> {
        match self {
            Self::Spawn(error) => Some(*error),
            Self::Job(error) => error.refusal(),
        }
    }
}

impl From<SpawnError> for Error {
    fn from(error: SpawnError) -> Self {
        Self::Spawn(error)
    }
}

impl<F> From<TrySpawnError<F>> for Error {
    /// Drops the future.
    fn from(error: TrySpawnError<F>) -> Self {
        Self::Spawn(error.into())
    }
}

impl From<JobError> for Error {
    fn from(error: JobError) -> Self {
        Self::Job(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spawn(error) => error.fmt(f),
            Self::Job(error) => error.fmt(f), // also with `#`
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Spawn(error) => error.source(),
            Self::Job(error) => error.source(),
        }
    }
}
