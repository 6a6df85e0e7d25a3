//! Blocking closures as jobs.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle, time::Instant};

use crate::{
    job::{
        body::{Run, Stored},
        error::JobError,
        output::JobOutput,
        record::Record,
        surroundings::{Surroundings, within},
    },
    rules::state::Outcome,
    util::panics::drop_contained,
};

/// A closure, and the function that calls it with its input.
pub(crate) struct BlockingCall<C, I, R> {
    pub(crate) closure: C,
    pub(crate) input: I,
    pub(crate) call: fn(C, I) -> R,
}

/// Runs a closure on one of the runtime's blocking threads, and stores its result.
pub(crate) struct BlockingRun<C, I, R> {
    /// Present until a thread gets it.
    call: Option<BlockingCall<C, I, R>>,
    thread: Option<JoinHandle<Option<(R, Duration)>>>,
    record: Arc<Record>,
    timeout: Option<Duration>,
    surroundings: Option<Surroundings>,
}

/// The body of a blocking job.
pub(crate) type BlockingBody<C, I, R> = Run<BlockingRun<C, I, R>, Stored>;

/// The closure is moved out before it runs, and never pinned.
impl<C, I, R> Unpin for BlockingRun<C, I, R> {}

impl<C, I, R> BlockingRun<C, I, R> {
    pub(super) fn new(
        call: BlockingCall<C, I, R>,
        record: Arc<Record>,
        timeout: Option<Duration>,
        surroundings: Option<Surroundings>,
    ) -> Self {
        Self { call: Some(call), thread: None, record, timeout, surroundings }
    }

    /// Takes the closure of a job that was refused.
    pub(crate) fn into_closure(self) -> C {
        self.call.expect("a refused job has not run").closure
    }
}

impl<C, I, R> BlockingRun<C, I, R>
where
    C: Send + 'static,
    I: Send + 'static,
    R: Send + 'static,
{
    fn start(&mut self) -> JoinHandle<Option<(R, Duration)>> {
        let BlockingCall { closure, input, call } = self.call.take().expect("started once");
        let record = self.record.clone();
        let run = move || {
            let runs = !record.must_stop() && record.claim_blocking();
            let began = Instant::now();
            runs.then(|| (call(closure, input), began.elapsed()))
        };
        #[expect(clippy::disallowed_methods, reason = "a job is polled inside its runtime")]
        let runtime = Handle::current();
        let surroundings = self.surroundings.take().map(Surroundings::of_started);
        let mut closure = UnrunClosure { closure: Some(run), surroundings };
        runtime.spawn_blocking(move || {
            let run = closure.closure.take();
            within(closure.surroundings.as_ref(), || run.and_then(|run| run()))
        })
    }
}

impl<C, I, R> Future for BlockingRun<C, I, R>
where
    C: Send + 'static,
    I: Send + 'static,
    R: JobOutput + Send + 'static,
{
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        if self.thread.is_none() {
            self.thread = Some(self.start());
        }
        let this = &mut *self;
        let (record, thread) = (&this.record, this.thread.as_mut().expect("started just now"));
        if record.must_stop() && record.claim_blocking() {
            // No thread will run the closure, but the thread's handle would resolve only once one has
            // taken it from its queue.
            thread.abort();
            return Poll::Ready(record.end(JobError::cancelled(), Outcome::Cancelled));
        }
        Poll::Ready(match (ready!(Pin::new(thread).poll(cx)), this.timeout) {
            (Ok(Some((_, took))), Some(timeout)) if took > timeout => {
                record.end(JobError::run_timeout(timeout), Outcome::TimedOut)
            }
            (Ok(Some((output, _))), _) => record.end_with(output.into_result()),
            (Err(error), _) if error.is_panic() => {
                record.end(JobError::panicked(error.into_panic()), Outcome::Panicked)
            }
            (Ok(None) | Err(_), _) => record.end(JobError::cancelled(), Outcome::Cancelled),
        })
    }
}

/// A closure that may never run. It is then dropped in the job's surroundings, and its panic is contained.
struct UnrunClosure<C> {
    closure: Option<C>,
    surroundings: Option<Surroundings>,
}

impl<C> Drop for UnrunClosure<C> {
    fn drop(&mut self) {
        if let Some(closure) = self.closure.take() {
            within(self.surroundings.as_ref(), || drop_contained(closure));
        }
    }
}
