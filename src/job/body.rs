//! What a job does: the user's future, and around it what stores its result, ends it when its time
//! is over, and has the span it runs in.

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::{
    job::error::JobError,
    job::output::JobOutput,
    job::record::Record,
    job::span::{JobSpan, in_span},
    rules::state::Outcome,
    util::panics::discard,
};
use pin_project_lite::pin_project;
use tokio::{
    task::coop,
    time::{self, Instant, Sleep},
};

/// Has stored the job's result in its record when it is ready.
pub(crate) trait Body: Send {
    fn poll(self: Pin<&mut Self>, record: &Record, cx: &mut Context<'_>) -> Poll<Outcome>;

    /// The job that this is of, and the span to poll and drop this in, which leaves the job as that
    /// ends, so that it closes then, whoever still holds a handle. Asked once, before all else.
    fn unpack(self: Pin<&mut Self>) -> Unpacked;
}

pub(crate) type Unpacked = (Arc<Record>, Option<JobSpan>);

/// A job's body that waits to be run.
pub(crate) type Work = Pin<Box<dyn Body>>;

/// Drops what will never run, where it belongs.
pub(crate) fn discard_work(mut work: Work) {
    let (_, span) = work.as_mut().unpack();
    in_span(span.as_ref(), || discard(work));
}

pin_project! {
    /// A future, and where its output goes.
    pub(crate) struct Run<F, C> {
        #[pin]
        future: F,
        record: Option<Arc<Record>>,
        complete: PhantomData<fn() -> C>,
    }
}

impl<F, C> Run<F, C> {
    pub(crate) fn new(future: F, record: &Arc<Record>) -> Self {
        Self { future, record: Some(record.clone()), complete: PhantomData }
    }

    pub(crate) fn into_future(self) -> F {
        self.future
    }
}

impl<F: Future + Send, C: Complete<F::Output>> Body for Run<F, C> {
    fn poll(self: Pin<&mut Self>, record: &Record, cx: &mut Context<'_>) -> Poll<Outcome> {
        let output = ready!(self.project().future.poll(cx));
        Poll::Ready(C::complete(output, record))
    }

    fn unpack(self: Pin<&mut Self>) -> Unpacked {
        (self.project().record.take().expect("asked once"), None)
    }
}

/// Where a job's output goes.
pub(crate) trait Complete<T> {
    fn complete(output: T, record: &Record) -> Outcome;
}

/// The output is the job's result.
pub(crate) enum Keep {}

impl<T: JobOutput> Complete<T> for Keep {
    fn complete(output: T, record: &Record) -> Outcome {
        record.end_with(output.into_result())
    }
}

/// The output passes through to a caller, as it is.
pub(crate) enum PassThrough {}

impl<T: JobOutput + Send + 'static> Complete<T> for PassThrough {
    fn complete(output: T, record: &Record) -> Outcome {
        let is_failure = output.is_failure();
        let outcome = if is_failure { Outcome::Failed } else { Outcome::Completed };
        match record.keep_as(output, is_failure) {
            // The caller has gone: a failure is told as any job's.
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

impl Complete<Outcome> for Stored {
    fn complete(outcome: Outcome, _: &Record) -> Outcome {
        outcome
    }
}

pin_project! {
    /// A body with what most have not.
    struct Equipped<B> {
        #[pin]
        body: B,
        timer: Option<Timer>,
        span: Option<JobSpan>,
    }
}

/// The clock starts when the job does: at the first poll.
struct Timer {
    after: Duration,
    /// Known from the first poll on; none if that is out of all reach.
    end: Option<Option<Instant>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn begin(&mut self) {
        let after = self.after;
        self.end.get_or_insert_with(|| Instant::now().checked_add(after));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Some(end)) = self.end else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(time::sleep_until(end)));
        // A job that uses up its cooperative budget in every poll must not put off its end.
        Pin::new(&mut coop::unconstrained(sleep)).poll(cx)
    }
}

impl<B: Body> Body for Equipped<B> {
    fn poll(self: Pin<&mut Self>, record: &Record, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        if let Some(timer) = this.timer {
            timer.begin();
        }
        if let Poll::Ready(outcome) = this.body.poll(record, cx) {
            return Poll::Ready(outcome);
        }
        let Some(timer) = this.timer else {
            return Poll::Pending;
        };
        ready!(timer.poll(cx));
        Poll::Ready(record.end(JobError::run_timeout(timer.after), Outcome::TimedOut))
    }

    fn unpack(self: Pin<&mut Self>) -> Unpacked {
        let this = self.project();
        let (record, _) = this.body.unpack();
        (record, this.span.take())
    }
}

/// A body on the heap, that may be taken apart again. Most have no run timeout, and no span that
/// anybody listens to, and so no place for them.
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
        span: Option<JobSpan>,
    ) -> Self {
        Self(match (timeout, span) {
            (None, None) => Package::Bare(Box::new(make())),
            (timeout, span) => {
                let timer = timeout.map(|after| Timer { after, end: None, sleep: None });
                Package::Equipped(Box::new(Equipped { body: make(), timer, span }))
            }
        })
    }

    pub(crate) fn into_work(self) -> Work {
        match self.0 {
            Package::Bare(body) => Box::into_pin(body),
            Package::Equipped(body) => Box::into_pin(body),
        }
    }

    /// Without having run.
    pub(crate) fn into_body(self) -> B {
        match self.0 {
            Package::Bare(body) => *body,
            Package::Equipped(equipped) => equipped.body,
        }
    }
}
