//! The server of a shutdown: its stop signal, and how it ends.

use std::{
    fmt::{self, Display},
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::watch;

use crate::{
    job::error::JobError,
    util::panics::{catch_panic, drop_contained},
};

/// Resolves when the server must stop accepting, or has ended: the argument of
/// `axum::serve(..).with_graceful_shutdown(..)`. Clones resolve together.
pub struct StopSignal {
    stopped: watch::Receiver<bool>,
    waiting: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl StopSignal {
    fn new(stopped: watch::Receiver<bool>) -> Self {
        let mut receiver = stopped.clone();
        let waiting = Box::pin(async move {
            // The sender is dropped only after it has sent.
            drop(receiver.wait_for(|stopped| *stopped).await);
        });
        Self { stopped, waiting }
    }
}

impl Clone for StopSignal {
    fn clone(&self) -> Self {
        Self::new(self.stopped.clone())
    }
}

impl Future for StopSignal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting.as_mut().poll(cx)
    }
}

impl fmt::Debug for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopSignal").field("stopped", &*self.stopped.borrow()).finish()
    }
}

/// The running server.
pub(super) struct Server<S: Future> {
    future: Option<Pin<Box<S>>>,
    stopping: watch::Sender<bool>,
    outcome: ServerOutcome<S::Output>,
}

impl<S: Future> Server<S> {
    pub(super) fn start(serve: impl FnOnce(StopSignal) -> S) -> Self {
        let (stopping, stopped) = watch::channel(false);
        let future = Some(Box::pin(serve(StopSignal::new(stopped))));
        Self { future, stopping, outcome: ServerOutcome::Unfinished }
    }

    pub(super) fn not_started() -> Self {
        let (stopping, _) = watch::channel(true);
        Self { future: None, stopping, outcome: ServerOutcome::NotStarted }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.future.is_none()
    }

    /// Resolves the stop signal.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Resolves when the server has ended.
    pub(super) async fn run(&mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(future) = &mut self.future else { return Poll::Ready(()) };
        self.outcome = match catch_panic(|| future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => ServerOutcome::Finished(output),
            Err(payload) => ServerOutcome::Panicked(JobError::panicked(payload)),
        };
        self.drop_future();
        Poll::Ready(())
    }

    pub(super) fn drop_future(&mut self) {
        // Its tasks may go on without it.
        self.stop();
        drop_contained(self.future.take());
    }

    pub(super) fn into_outcome(self) -> ServerOutcome<S::Output> {
        self.outcome
    }
}

/// How the server of a [`Shutdown`](crate::Shutdown) ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServerOutcome<T> {
    /// It ended by itself, with this output.
    Finished(T),
    /// It did not end in time, and was dropped with connections still open.
    Unfinished,
    /// It panicked.
    Panicked(JobError),
    /// The signal came first, so the server was not started.
    NotStarted,
}

impl<T> ServerOutcome<T> {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Finished(_) => "finished",
            Self::Unfinished => "unfinished",
            Self::Panicked(_) => "panicked",
            Self::NotStarted => "not started",
        }
    }
}

impl<T: ServerOutput> ServerOutcome<T> {
    pub(super) fn is_well(&self) -> bool {
        match self {
            Self::Finished(output) => output.error_text().is_none(),
            Self::NotStarted => true,
            Self::Unfinished | Self::Panicked(_) => false,
        }
    }

    /// Text of the server's error or panic.
    pub(super) fn error_text(&self) -> Option<String> {
        match self {
            Self::Finished(output) => output.error_text(),
            Self::Panicked(error) => error.panic_text().map(str::to_owned),
            Self::Unfinished | Self::NotStarted => None,
        }
    }
}

/// The output of a server, in which a [`ShutdownReport`](crate::ShutdownReport) finds the error.
///
/// Implemented for `()`, and for `Result<T, E>` whose error implements `Display`; also for the result
/// in the result that the `JoinHandle` of a server's task gives. An output of your own needs one line:
///
/// ```
/// # use tower_jobs::ServerOutput;
/// struct Connections(usize);
///
/// impl ServerOutput for Connections {}
/// ```
#[diagnostic::on_unimplemented(
    message = "a server cannot return `{Self}`",
    note = "a server returns `()`, or a `Result` whose error implements `Display`",
    note = "implement `tower_jobs::ServerOutput` for an output of your own: \
            `impl ServerOutput for T {{}}`"
)]
pub trait ServerOutput {
    /// Returns the text of the error, if the server failed.
    fn error_text(&self) -> Option<String> {
        None
    }
}

impl<T: ServerOutput, E: Display> ServerOutput for Result<T, E> {
    fn error_text(&self) -> Option<String> {
        match self {
            Ok(output) => output.error_text(),
            Err(error) => Some(error.to_string()),
        }
    }
}

macro_rules! no_errors {
    ($($type:ty),*) => {$( impl ServerOutput for $type {} )*};
}

no_errors!((), bool, usize, u32, u64, i32, i64, &str, String, std::convert::Infallible);
no_errors!(std::time::Duration, tokio::time::Instant);

impl<T> ServerOutput for Vec<T> {}
impl<T: ServerOutput> ServerOutput for Option<T> {
    fn error_text(&self) -> Option<String> {
        self.as_ref().and_then(ServerOutput::error_text)
    }
}
impl<A: ServerOutput, B: ServerOutput> ServerOutput for (A, B) {
    fn error_text(&self) -> Option<String> {
        self.0.error_text().or_else(|| self.1.error_text())
    }
}
