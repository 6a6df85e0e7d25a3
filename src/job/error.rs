use std::{any::Any, error::Error, fmt, sync::Mutex, time::Duration};

use crate::rules::state::JobId;

/// Any error, as jobs return it.
pub type BoxError = Box<dyn Error + Send + Sync>;
pub(crate) type Panic = Box<dyn Any + Send>;

/// Why a job was not accepted. Its future has been dropped, unrun.
///
/// With the feature `axum` it is a response: 503 with `Retry-After: 1`, so a handler may return it
/// with `?`. (409 for [`Duplicate`](Self::Duplicate); 500 for [`NoRuntime`](Self::NoRuntime), which
/// retrying does not cure.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnError {
    /// The scheduler is closed.
    Closed,
    /// All running places, or those of its [key](crate::JobBuilder::concurrency_key), are taken, and
    /// `pending_limit` is 0: there is no queue to wait in.
    Full,
    /// No place came free within the time given to `spawn_within`.
    TimedOut,
    /// The scheduler knows no runtime to run jobs on.
    NoRuntime,
    /// There is a job of the same [unique](crate::JobBuilder::unique_key) key: this one.
    Duplicate(JobId),
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Duplicate(id) => return write!(f, "job {id} has the same unique key"),
            Self::Closed => "the scheduler is closed and accepts no more jobs",
            Self::Full => "the scheduler is full: all places are taken",
            Self::TimedOut => "the scheduler is full: no place came free in the time given",
            Self::NoRuntime => {
                "the scheduler has no tokio runtime: spawn its first job inside one, or name one \
                 with Scheduler::builder().runtime(handle)"
            }
        })
    }
}

impl Error for SpawnError {}

/// Why a job was not accepted at once. Gives the future back.
///
/// With the feature `axum` it is a response, like [`SpawnError`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrySpawnError<F> {
    /// All places, running and waiting, are taken, or other spawners wait for one already. For a
    /// job that would have to wait although others could run, since its
    /// [key](crate::JobBuilder::concurrency_key) is at its limit or its response is not over: all places to wait
    /// in are taken.
    Full(F),
    /// The scheduler is closed.
    Closed(F),
    /// The scheduler knows no runtime to run jobs on.
    NoRuntime(F),
    /// There is a job of the same [unique](crate::JobBuilder::unique_key) key: this one.
    Duplicate(F, JobId),
}

impl<F> TrySpawnError<F> {
    /// The future that was not accepted. It has not been polled.
    pub fn into_inner(self) -> F {
        match self {
            Self::Full(future)
            | Self::Closed(future)
            | Self::NoRuntime(future)
            | Self::Duplicate(future, _) => future,
        }
    }

    /// Whether trying again later can help.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }

    /// Whether the scheduler is closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }

    pub(crate) fn map<G>(self, to: impl FnOnce(F) -> G) -> TrySpawnError<G> {
        match self {
            Self::Full(future) => TrySpawnError::Full(to(future)),
            Self::Closed(future) => TrySpawnError::Closed(to(future)),
            Self::NoRuntime(future) => TrySpawnError::NoRuntime(to(future)),
            Self::Duplicate(future, id) => TrySpawnError::Duplicate(to(future), id),
        }
    }

    /// The same without the future.
    pub(crate) fn kind(&self) -> SpawnError {
        match self {
            Self::Full(_) => SpawnError::Full,
            Self::Closed(_) => SpawnError::Closed,
            Self::NoRuntime(_) => SpawnError::NoRuntime,
            Self::Duplicate(_, id) => SpawnError::Duplicate(*id),
        }
    }
}

impl<F> From<TrySpawnError<F>> for SpawnError {
    /// Drops the future.
    fn from(error: TrySpawnError<F>) -> Self {
        error.kind()
    }
}

impl<F> fmt::Debug for TrySpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}(..)", self.kind())
    }
}

impl<F> fmt::Display for TrySpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)
    }
}

impl<F> Error for TrySpawnError<F> {}

/// Why a job gave no value.
///
/// What the job itself returned as an error is the [`source`](Error::source).
pub struct JobError(Kind);

enum Kind {
    Failed(BoxError),
    // Boxed, so that the others stay small.
    Panicked(Box<Panicked>),
    RunTimeout(Duration),
    WaitTimeout(Duration),
    CloseTimeout(Duration),
    /// After this close timeout, or as the runtime went away.
    Abandoned(Option<Duration>),
    Cancelled,
    Skipped,
    Refused(SpawnError),
    Taken,
}

struct Panicked {
    // It is `Send` only; the mutex, never locked, makes the error `Sync`.
    payload: Mutex<Panic>,
    text: Option<String>,
}

impl JobError {
    pub(crate) fn failed(error: BoxError) -> Self {
        Self(Kind::Failed(error))
    }

    pub(crate) fn panicked(payload: Panic) -> Self {
        let text = panic_text(payload.as_ref());
        Self(Kind::Panicked(Box::new(Panicked { payload: Mutex::new(payload), text })))
    }

    pub(crate) fn run_timeout(after: Duration) -> Self {
        Self(Kind::RunTimeout(after))
    }

    pub(crate) fn wait_timeout(after: Duration) -> Self {
        Self(Kind::WaitTimeout(after))
    }

    pub(crate) fn close_timeout(after: Duration) -> Self {
        Self(Kind::CloseTimeout(after))
    }

    /// Error of a job whose code may still run.
    pub(crate) fn abandoned(close_timeout: Option<Duration>) -> Self {
        Self(Kind::Abandoned(close_timeout))
    }

    pub(crate) fn cancelled() -> Self {
        Self(Kind::Cancelled)
    }

    pub(crate) fn skipped() -> Self {
        Self(Kind::Skipped)
    }

    pub(crate) fn refused(error: SpawnError) -> Self {
        Self(Kind::Refused(error))
    }

    pub(crate) fn taken() -> Self {
        Self(Kind::Taken)
    }

    /// The job returned `Err`; [`source`](Error::source) is what it returned.
    pub fn is_failed(&self) -> bool {
        matches!(self.0, Kind::Failed(_))
    }

    /// The job was closed or aborted, or its scheduler or runtime ended, before it did. Also if
    /// shielded work was not accepted at all; [`source`](Error::source) is then a [`SpawnError`].
    pub fn is_cancelled(&self) -> bool {
        matches!(self.0, Kind::Cancelled | Kind::Skipped | Kind::Refused(_))
    }

    /// The job waited for a successful response, and the response was not. Also counts as
    /// cancelled.
    pub fn is_skipped(&self) -> bool {
        matches!(self.0, Kind::Skipped)
    }

    /// What a panic said, if that was text.
    #[cfg(feature = "shutdown")]
    pub(crate) fn panic_text(&self) -> Option<&str> {
        match &self.0 {
            Kind::Panicked(panicked) => panicked.text.as_deref(),
            _ => None,
        }
    }

    /// The job panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.0, Kind::Panicked(..))
    }

    /// A time ran out: the job's run timeout, the time given to
    /// [`wait_or_close`](crate::Job::wait_or_close), or the time to end after being told to.
    pub fn is_timeout(&self) -> bool {
        matches!(self.0, Kind::RunTimeout(_) | Kind::WaitTimeout(_)) || self.is_close_timeout()
    }

    /// The job was told to end and did not within its close timeout.
    pub fn is_close_timeout(&self) -> bool {
        matches!(self.0, Kind::CloseTimeout(_) | Kind::Abandoned(Some(_)))
    }

    /// The job could not be ended, so its code may still run: it never awaits or blocks its thread.
    ///
    /// Also counts as a close timeout, unless the runtime went away.
    pub fn is_abandoned(&self) -> bool {
        matches!(self.0, Kind::Abandoned(_))
    }

    /// The panic's payload, for [`std::panic::resume_unwind`].
    ///
    /// # Errors
    ///
    /// Gives the error back if it is not a panic.
    pub fn into_panic(self) -> Result<Box<dyn Any + Send>, Self> {
        match self.0 {
            Kind::Panicked(panicked) => {
                Ok(panicked.payload.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
            }
            kind => Err(Self(kind)),
        }
    }

    /// The error that the job returned, to be downcast to its type.
    ///
    /// # Errors
    ///
    /// Gives the error back if the job did not return one.
    pub fn into_source(self) -> Result<Box<dyn Error + Send + Sync>, Self> {
        match self.0 {
            Kind::Failed(error) => Ok(error),
            kind => Err(Self(kind)),
        }
    }

    pub(crate) fn is_refused_as(&self, refusal: SpawnError) -> bool {
        matches!(self.0, Kind::Refused(error) if error == refusal)
    }

    /// Whether somebody must hear of it. Being cancelled or given out already is nobody's fault.
    pub(crate) fn is_failure(&self) -> bool {
        !(self.is_cancelled() || matches!(self.0, Kind::Taken))
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> Option<String> {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Failed(_) => f.write_str("the job failed"),
            Kind::Panicked(panicked) => match &panicked.text {
                Some(text) => write!(f, "the job panicked: {text}"),
                None => f.write_str("the job panicked"),
            },
            Kind::RunTimeout(after) => {
                write!(f, "the job ran longer than its timeout of {after:?}")
            }
            Kind::WaitTimeout(after) => {
                write!(f, "the job did not end within {after:?} and was closed")
            }
            Kind::CloseTimeout(after) => {
                write!(f, "the job was told to end and did not within {after:?}")
            }
            Kind::Abandoned(Some(after)) => write!(
                f,
                "the job was told to end and did not within {after:?}; its code may still run"
            ),
            Kind::Abandoned(None) => {
                f.write_str("the runtime went away, and the job's code may still run")
            }
            Kind::Cancelled => f.write_str("the job was cancelled"),
            Kind::Skipped => f.write_str("the job was skipped: its response was not a success"),
            Kind::Refused(_) => f.write_str("the job was not accepted"),
            Kind::Taken => f.write_str("the job's value or failure was given to an earlier wait"),
        }
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Failed(error) => write!(f, "JobError({self}: {error:?})"),
            _ => write!(f, "JobError({self})"),
        }
    }
}

impl Error for JobError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Failed(error) => Some(error.as_ref()),
            Kind::Refused(error) => Some(error),
            _ => None,
        }
    }
}
