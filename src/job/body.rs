//! The body of a job: the user's future, and around it the code that stores its output and keeps its
//! run timeout.

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    task::coop,
    time::{self, Instant, Sleep},
};

use crate::{
    job::{
        error::JobError,
        output::JobOutput,
        record::Record,
        surroundings::{Surroundings, within},
    },
    rules::state::Outcome,
    util::panics::drop_contained,
};

/// A future that has stored the job's result in its record when it is ready.
pub(crate) trait Body: Send {
    fn poll(self: Pin<&mut Self>, record: &Record, cx: &mut Context<'_>) -> Poll<Outcome>;

    /// Takes out the job's record, and the surroundings to poll and drop this body in. Called once, before
    /// any other method. They leave the job as that ends, so its span closes then, whatever happens to the
    /// handle.
    fn unpack(self: Pin<&mut Self>) -> Unpacked;
}

pub(crate) type Unpacked = (Arc<Record>, Option<Surroundings>);

/// A body on the heap, as the queue holds it.
pub(crate) type Work = Pin<Box<dyn Body>>;

/// Drops work that will never run, in its surroundings.
pub(crate) fn drop_work(mut work: Work, outcome: Outcome) {
    let (_, mut surroundings) = work.as_mut().unpack();
    if let Some(surroundings) = &mut surroundings {
        surroundings.end(outcome);
    }
    within(surroundings.as_ref(), || drop_contained(work));
}

pin_project! {
    /// A future, and `S`: where its output goes.
    pub(crate) struct Run<F, S> {
        #[pin]
        future: F,
        record: Option<Arc<Record>>,
        store: PhantomData<fn() -> S>,
    }
}

impl<F, S> Run<F, S> {
    pub(crate) fn new(future: F, record: &Arc<Record>) -> Self {
        Self { future, record: Some(record.clone()), store: PhantomData }
    }

    pub(crate) fn into_future(self) -> F {
        self.future
    }
}

impl<F: Future + Send, S: Store<F::Output>> Body for Run<F, S> {
    fn poll(self: Pin<&mut Self>, record: &Record, cx: &mut Context<'_>) -> Poll<Outcome> {
        let output = ready!(self.project().future.poll(cx));
        Poll::Ready(S::store(output, record))
    }

    fn unpack(self: Pin<&mut Self>) -> Unpacked {
        (self.project().record.take().expect("unpacked once"), None)
    }
}

/// Where a job's output goes.
pub(crate) trait Store<T> {
    fn store(output: T, record: &Record) -> Outcome;
}

/// The output becomes the job's result.
pub(crate) enum AsResult {}

impl<T: JobOutput> Store<T> for AsResult {
    fn store(output: T, record: &Record) -> Outcome {
        record.end_with(output.into_result())
    }
}

/// The output passes through to a caller unchanged.
pub(crate) enum PassThrough {}

impl<T: JobOutput + Send + 'static> Store<T> for PassThrough {
    fn store(output: T, record: &Record) -> Outcome {
        let is_failure = output.is_failure();
        let outcome = if is_failure { Outcome::Failed } else { Outcome::Completed };
        match record.pass_through(output, is_failure) {
            // The caller is gone: a failure is reported as that of any job.
            Some(output) => match output.into_result() {
                Ok(_) => outcome,
                Err(error) => record.end(JobError::failed(error), Outcome::Failed),
            },
            None => outcome,
        }
    }
}

/// The future has stored the result itself.
pub(crate) enum Stored {}

impl Store<Outcome> for Stored {
    fn store(outcome: Outcome, _: &Record) -> Outcome {
        outcome
    }
}

pin_project! {
    /// A body with the parts that most jobs do not have.
    struct Equipped<B> {
        #[pin]
        body: B,
        timer: Option<RunTimer>,
        surroundings: Option<Surroundings>,
    }
}

/// A run timeout. Its clock starts at the job's first poll.
struct RunTimer {
    timeout: Duration,
    /// Set by the first poll. `Some(None)` is a deadline beyond the clock's range.
    deadline: Option<Option<Instant>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl RunTimer {
    fn start(&mut self) {
        let timeout = self.timeout;
        self.deadline.get_or_insert_with(|| Instant::now().checked_add(timeout));
    }

    /// Returns whether the deadline has passed, by tokio's clock.
    fn is_over(&self) -> bool {
        self.deadline.flatten().is_some_and(|deadline| Instant::now() > deadline)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Some(deadline)) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(time::sleep_until(deadline)));
        // A job that uses up its cooperative budget in each poll must not put off its timeout.
        Pin::new(&mut coop::unconstrained(sleep)).poll(cx)
    }
}

impl<B: Body> Body for Equipped<B> {
    fn poll(self: Pin<&mut Self>, record: &Record, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        if let Some(timer) = this.timer {
            timer.start();
        }
        let polled = this.body.poll(record, cx);
        let Some(timer) = this.timer else { return polled };
        match polled {
            // As for a blocking closure: a result that comes late does not count.
            Poll::Ready(outcome) if !timer.is_over() => return Poll::Ready(outcome),
            Poll::Ready(_) => {}
            Poll::Pending => ready!(timer.poll(cx)),
        }
        Poll::Ready(record.end(JobError::run_timeout(timer.timeout), Outcome::TimedOut))
    }

    fn unpack(self: Pin<&mut Self>) -> Unpacked {
        let this = self.project();
        let (record, _) = this.body.unpack();
        (record, this.surroundings.take())
    }
}

/// A body on the heap whose type is still known, so that a refused future can be given back.
pub(crate) struct Packed<B>(Package<B>);

enum Package<B> {
    Bare(Box<B>),
    Equipped(Box<Equipped<B>>),
}

impl<B: Body + 'static> Packed<B> {
    #[inline(always)]
    pub(crate) fn new(
        make: impl FnOnce() -> B,
        timeout: Option<Duration>,
        surroundings: Option<Surroundings>,
    ) -> Self {
        Self(match (timeout, surroundings) {
            (None, None) => Package::Bare(Box::new(make())),
            (timeout, surroundings) => {
                let timer =
                    timeout.map(|timeout| RunTimer { timeout, deadline: None, sleep: None });
                Package::Equipped(Box::new(Equipped { body: make(), timer, surroundings }))
            }
        })
    }

    pub(crate) fn into_work(self) -> Work {
        match self.0 {
            Package::Bare(body) => Box::into_pin(body),
            Package::Equipped(body) => Box::into_pin(body),
        }
    }

    /// Unpacks a body that has not run.
    pub(crate) fn into_body(self) -> Box<B> {
        match self.0 {
            Package::Bare(body) => body,
            Package::Equipped(equipped) => Box::new(equipped.body),
        }
    }
}
