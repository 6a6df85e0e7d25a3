//! Blocking closures as jobs.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use crate::{
    job::{
        error::JobError,
        output::JobOutput,
        record::Record,
        span::{JobSpan, in_span},
    },
    rules::state::Outcome,
    util::panics::drop_contained,
};

/// Runs the closure on one of the runtime's blocking threads, and stores its result.
pub(super) async fn run_blocking<C, R>(
    closure: C,
    record: Arc<Record>,
    timeout: Option<Duration>,
    span: Option<JobSpan>,
) -> Outcome
where
    C: FnOnce() -> R + Send + 'static,
    R: JobOutput + Send + 'static,
{
    let in_thread = record.clone();
    let run = move || {
        let runs = !in_thread.must_stop() && in_thread.claim_blocking();
        let began = Instant::now();
        runs.then(|| (closure(), began.elapsed()))
    };
    #[expect(clippy::disallowed_methods, reason = "a job is polled inside its runtime")]
    let runtime = Handle::current();
    let mut closure = UnrunClosure { closure: Some(run), span };
    let mut thread = runtime.spawn_blocking(move || {
        let run = closure.closure.take();
        in_span(closure.span.as_ref(), || run.and_then(|run| run()))
    });
    let ended = poll_fn(|cx| {
        if record.must_stop() && record.claim_blocking() {
            // No thread will run the closure, but the thread's handle would resolve only once one has
            // taken it from its queue.
            thread.abort();
            return Poll::Ready(Ok(None));
        }
        Pin::new(&mut thread).poll(cx)
    })
    .await;
    match (ended, timeout) {
        (Ok(Some((_, took))), Some(timeout)) if took > timeout => {
            record.end(JobError::run_timeout(timeout), Outcome::TimedOut)
        }
        (Ok(Some((output, _))), _) => record.end_with(output.into_result()),
        (Err(error), _) if error.is_panic() => {
            record.end(JobError::panicked(error.into_panic()), Outcome::Panicked)
        }
        (Ok(None) | Err(_), _) => record.end(JobError::cancelled(), Outcome::Cancelled),
    }
}

/// A closure that may never run. It is then dropped in the job's span, and its panic is contained.
struct UnrunClosure<C> {
    closure: Option<C>,
    span: Option<JobSpan>,
}

impl<C> Drop for UnrunClosure<C> {
    fn drop(&mut self) {
        if let Some(closure) = self.closure.take() {
            in_span(self.span.as_ref(), || drop_contained(closure));
        }
    }
}
