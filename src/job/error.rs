//! Errors of spawning, and errors of jobs.

use std::{any::Any, error::Error as StdError, fmt, sync::Mutex, time::Duration};

use crate::{rules::state::JobId, util::one_line::chain};

/// Boxes any error that a job may return.
pub type BoxError = Box<dyn StdError + Send + Sync>;
/// The payload of a panic.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Says why a job was not accepted.
///
/// The job's future has been dropped, and has never run.
///
/// A handler that awaits a job too returns [`Error`](crate::Error), which `?` makes of this and of [`JobError`].
///
/// With the feature `axum`, the error is a response, and a handler can return it with `?`:
///
/// - [`Duplicate`](Self::Duplicate) has status 409.
/// - [`NoRuntime`](Self::NoRuntime) has status 500, because a retry does not help.
/// - The others have status 503 and `Retry-After: 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnError {
    /// The scheduler is closed.
    Closed,
    /// The limit is reached, and there is no queue.
    ///
    /// The limit is `limit`, or the one of the job's [key](crate::JobBuilder::concurrency_key), and
    /// `pending_limit` is 0.
    Full,
    /// `deferred_limit` jobs wait for the end of their response.
    DeferredFull,
    /// No place in the queue became free within the timeout of `spawn_within`.
    TimedOut,
    /// The scheduler has no runtime to run jobs on.
    NoRuntime,
    /// An unfinished job, with this id, has the same [unique key](crate::JobBuilder::unique_key).
    Duplicate(JobId),
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Duplicate(id) => return write!(f, "job {id} has the same unique key"),
            Self::Closed => "the scheduler is closed and accepts no more jobs",
            Self::Full => "the scheduler is full: all places are taken",
            Self::DeferredFull => {
                "the scheduler is full: deferred_limit jobs wait for the end of their response"
            }
            Self::TimedOut => "the scheduler is full: no place became free within the timeout",
            Self::NoRuntime => {
                "the scheduler has no tokio runtime: spawn its first job inside one, or name one \
                 with Scheduler::builder().runtime(handle)"
            }
        })
    }
}

impl StdError for SpawnError {}

/// Returns the future of a job that was not accepted at once.
///
/// The variant says why.
///
/// With the feature `axum`, the error is a response, like [`SpawnError`].
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrySpawnError<F> {
    /// The `limit` is reached and the queue is full.
    ///
    /// Also returned while other spawners wait for a place.
    ///
    /// A job whose [key](crate::JobBuilder::concurrency_key) is at its limit has to wait even while permits
    /// are free. For such a job it means that the queue is full.
    Full(Box<F>),
    /// `deferred_limit` jobs wait for the end of their response.
    DeferredFull(Box<F>),
    /// The scheduler is closed.
    Closed(Box<F>),
    /// The scheduler has no runtime to run jobs on.
    NoRuntime(Box<F>),
    /// An unfinished job, with this id, has the same [unique key](crate::JobBuilder::unique_key).
    Duplicate(Box<F>, JobId),
}

impl<F> TrySpawnError<F> {
    /// Returns the future, which has not been polled.
    ///
    /// It comes from the heap: match a variant to keep it there, if it is large.
    #[doc(alias = "into_inner")]
    pub fn into_future(self) -> F {
        match self {
            Self::Full(future)
            | Self::DeferredFull(future)
            | Self::Closed(future)
            | Self::NoRuntime(future)
            | Self::Duplicate(future, _) => *future,
        }
    }

    /// Returns whether the scheduler is full, and a later retry can succeed.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full(_) | Self::DeferredFull(_))
    }

    /// Returns whether the scheduler is closed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }

    pub(crate) fn map<G>(self, to: impl FnOnce(Box<F>) -> Box<G>) -> TrySpawnError<G> {
        match self {
            Self::Full(future) => TrySpawnError::Full(to(future)),
            Self::DeferredFull(future) => TrySpawnError::DeferredFull(to(future)),
            Self::Closed(future) => TrySpawnError::Closed(to(future)),
            Self::NoRuntime(future) => TrySpawnError::NoRuntime(to(future)),
            Self::Duplicate(future, id) => TrySpawnError::Duplicate(to(future), id),
        }
    }

    /// Returns the error without the future.
    pub(crate) fn kind(&self) -> SpawnError {
        match self {
            Self::Full(_) => SpawnError::Full,
            Self::DeferredFull(_) => SpawnError::DeferredFull,
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

impl<F> StdError for TrySpawnError<F> {}

/// Says why a job has no value.
///
/// If the job returned an error, that error is the [`source`](StdError::source). `{error}` formats this error
/// alone, as `the job failed`; `{error:#}` adds the causes, in one line: `the job failed: no such file`.
pub struct JobError(ErrorKind);

enum ErrorKind {
    Failed(BoxError),
    // Boxed, so that a `JobError` stays small.
    Panicked(Box<Panicked>),
    RunTimeout(Duration),
    WaitTimeout(Duration),
    CloseTimeout(Duration),
    /// After this close timeout, or as the runtime went away.
    Abandoned(Option<Duration>),
    Cancelled,
    Skipped,
    Refused(SpawnError),
    /// An earlier wait has taken the result.
    Taken,
}

struct Panicked {
    // A payload is `Send`, and not `Sync`. The mutex makes the error `Sync`, and is never locked.
    payload: Mutex<Panic>,
    text: Option<String>,
}

impl JobError {
    pub(crate) fn failed(error: BoxError) -> Self {
        Self(ErrorKind::Failed(error))
    }

    pub(crate) fn panicked(payload: Panic) -> Self {
        let text = panic_text(payload.as_ref());
        Self(ErrorKind::Panicked(Box::new(Panicked { payload: Mutex::new(payload), text })))
    }

    pub(crate) fn run_timeout(after: Duration) -> Self {
        Self(ErrorKind::RunTimeout(after))
    }

    pub(crate) fn wait_timeout(after: Duration) -> Self {
        Self(ErrorKind::WaitTimeout(after))
    }

    pub(crate) fn close_timeout(after: Duration) -> Self {
        Self(ErrorKind::CloseTimeout(after))
    }

    /// Error of a job whose code may still run.
    pub(crate) fn abandoned(close_timeout: Option<Duration>) -> Self {
        Self(ErrorKind::Abandoned(close_timeout))
    }

    pub(crate) fn cancelled() -> Self {
        Self(ErrorKind::Cancelled)
    }

    pub(crate) fn skipped() -> Self {
        Self(ErrorKind::Skipped)
    }

    pub(crate) fn refused(error: SpawnError) -> Self {
        Self(ErrorKind::Refused(error))
    }

    pub(crate) fn taken() -> Self {
        Self(ErrorKind::Taken)
    }

    /// Returns whether the job returned `Err`.
    ///
    /// The [`source`](StdError::source) is then the error that it returned.
    pub fn is_failed(&self) -> bool {
        matches!(self.0, ErrorKind::Failed(_))
    }

    /// Returns whether the job was cancelled before it ended by itself.
    ///
    /// Causes: the job was closed or aborted, or its scheduler or its runtime ended. Shielded work that
    /// was not accepted counts as cancelled too, and the [`source`](StdError::source) is then a
    /// [`SpawnError`].
    pub fn is_cancelled(&self) -> bool {
        matches!(self.0, ErrorKind::Cancelled | ErrorKind::Skipped | ErrorKind::Refused(_))
    }

    /// Returns whether the job was skipped after an unsuccessful response.
    ///
    /// The job was to start only after a successful response. A skipped job also
    /// [counts as cancelled](Self::is_cancelled).
    pub fn is_skipped(&self) -> bool {
        matches!(self.0, ErrorKind::Skipped)
    }

    /// Returns the text of a panic, if its payload is text.
    #[cfg(feature = "shutdown")]
    pub(crate) fn panic_text(&self) -> Option<&str> {
        match &self.0 {
            ErrorKind::Panicked(panicked) => panicked.text.as_deref(),
            _ => None,
        }
    }

    /// Returns whether the job panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.0, ErrorKind::Panicked(..))
    }

    /// Returns whether the job exceeded a timeout.
    ///
    /// The timeouts are: the job's run timeout, the timeout of
    /// [`wait_or_close`](crate::Job::wait_or_close), and the close timeout.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self.0,
            ErrorKind::RunTimeout(_) | ErrorKind::WaitTimeout(_) | ErrorKind::CloseTimeout(_)
        )
    }

    /// Returns whether the job was abandoned: it still ran when its scheduler stopped waiting for it, and
    /// its code may still run.
    ///
    /// Causes: the job did not end, and could not be dropped, by the end of a close; or it is a blocking
    /// job whose runtime ended.
    pub fn is_abandoned(&self) -> bool {
        matches!(self.0, ErrorKind::Abandoned(_))
    }

    /// Returns whether the job was asked to end and exceeded its close timeout.
    ///
    /// A job that its scheduler then gave up [is abandoned](Self::is_abandoned) instead.
    pub fn is_close_timeout(&self) -> bool {
        matches!(self.0, ErrorKind::CloseTimeout(_))
    }

    /// Returns the payload of the panic, for [`std::panic::resume_unwind`].
    ///
    /// # Errors
    ///
    /// Returns `self` if the job did not panic.
    pub fn into_panic(self) -> Result<Box<dyn Any + Send>, Self> {
        match self.0 {
            ErrorKind::Panicked(panicked) => {
                Ok(panicked.payload.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
            }
            kind => Err(Self(kind)),
        }
    }

    /// Returns the error that the job returned, which can be downcast.
    ///
    /// # Errors
    ///
    /// Returns `self` if the job did not return an error.
    pub fn into_source(self) -> Result<Box<dyn StdError + Send + Sync>, Self> {
        match self.0 {
            ErrorKind::Failed(error) => Ok(error),
            kind => Err(Self(kind)),
        }
    }

    /// Returns the reason for which shielded work was refused.
    pub(crate) fn refusal(&self) -> Option<SpawnError> {
        match self.0 {
            ErrorKind::Refused(error) => Some(error),
            _ => None,
        }
    }

    /// Returns whether the error must be reported. Cancelled jobs and results already taken are not
    /// failures.
    pub(crate) fn is_failure(&self) -> bool {
        !(self.is_cancelled() || matches!(self.0, ErrorKind::Taken))
    }
}

/// Returns the payload's text, if it is a string.
fn panic_text(payload: &(dyn Any + Send)) -> Option<String> {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return f.write_str(&chain(self));
        }
        match &self.0 {
            ErrorKind::Failed(_) => f.write_str("the job failed"),
            ErrorKind::Panicked(panicked) => match &panicked.text {
                Some(text) => write!(f, "the job panicked: {text}"),
                None => f.write_str("the job panicked"),
            },
            ErrorKind::RunTimeout(after) => {
                write!(f, "the job ran longer than its timeout of {after:?}")
            }
            ErrorKind::WaitTimeout(after) => {
                write!(f, "the job did not end within {after:?} and was closed")
            }
            ErrorKind::CloseTimeout(after) => {
                write!(f, "the job did not end within {after:?} after it was asked to")
            }
            ErrorKind::Abandoned(Some(after)) => write!(
                f,
                "the job did not end within {after:?} after it was asked to; its code may still run"
            ),
            ErrorKind::Abandoned(None) => {
                f.write_str("the runtime went away, and the job's code may still run")
            }
            ErrorKind::Cancelled => f.write_str("the job was cancelled"),
            ErrorKind::Skipped => {
                f.write_str("the job was skipped: its response was not a success")
            }
            ErrorKind::Refused(_) => f.write_str("the job was not accepted"),
            ErrorKind::Taken => {
                f.write_str("the job's value or failure was given to an earlier wait")
            }
        }
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ErrorKind::Failed(error) => write!(f, "JobError({self}: {error:?})"),
            _ => write!(f, "JobError({self})"),
        }
    }
}

impl StdError for JobError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0 {
            ErrorKind::Failed(error) => Some(error.as_ref()),
            ErrorKind::Refused(error) => Some(error),
            _ => None,
        }
    }
}
