//! A job that a runner polls: its future, its record and its span, taken apart once.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use crate::{
    job::{
        body::{Unpacked, Work},
        context::Contexts,
        error::{JobError, Panic},
        options::JobKind,
        record::Record,
        span::JobSpan,
        surroundings::{Surroundings, poll_within, within},
    },
    rules::state::Outcome,
    util::panics::{catch_panic, drop_contained},
};

pub(crate) struct ActiveJob {
    record: Arc<Record>,
    /// `None` once it has ended.
    work: Option<Work>,
    surroundings: Option<Surroundings>,
    /// The runner's waker is in the record.
    is_parked: bool,
    /// It has been polled, or is about to be. Known only with observers.
    has_begun: bool,
}

/// The end of an active job. Its future has been dropped and its result is stored.
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// A failure whose handle is gone, to be reported.
    pub(crate) unobserved: Option<JobError>,
}

impl ActiveJob {
    #[inline(always)]
    pub(crate) fn new(mut work: Work) -> Self {
        let (record, surroundings) = work.as_mut().unpack();
        Self { record, work: Some(work), surroundings, is_parked: false, has_begun: false }
    }

    pub(crate) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Returns true once: before the first poll.
    pub(crate) fn begins(&mut self) -> bool {
        !mem::replace(&mut self.has_begun, true)
    }

    /// Whether an observed job has been polled, or is about to be.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Returns the record and the surroundings of an ended job. Its span closes with these.
    #[inline(always)]
    pub(crate) fn into_parts(self) -> Unpacked {
        (self.record, self.surroundings)
    }

    /// Runs `code` in the job's span and contexts.
    pub(crate) fn within<T>(&self, code: impl FnOnce() -> T) -> T {
        within(self.surroundings.as_ref(), code)
    }

    pub(crate) fn span_mut(&mut self) -> Option<&mut JobSpan> {
        self.surroundings.as_mut().and_then(Surroundings::span_mut)
    }

    pub(crate) fn contexts(&self) -> Option<&Contexts> {
        self.surroundings.as_ref().and_then(Surroundings::contexts)
    }

    /// Polls the job once. `close_timeout` is for the error of a job that did not end in time.
    #[inline(always)]
    pub(crate) fn poll(&mut self, close_timeout: Duration, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { record, work, surroundings, is_parked, .. } = self;
        poll_within(surroundings.as_mut(), record, || {
            Self::poll_work(record, work, is_parked, close_timeout, cx)
        })
    }

    #[inline(always)]
    fn poll_work(
        record: &Record,
        work: &mut Option<Work>,
        is_parked: &mut bool,
        close_timeout: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        // A blocking job sees for itself that it must stop.
        if record.must_stop() && record.kind() != JobKind::Blocking {
            let (error, outcome) = if record.is_overdue() {
                (JobError::close_timeout(close_timeout), Outcome::TimedOut)
            } else {
                (JobError::cancelled(), Outcome::Cancelled)
            };
            drop_contained(record.result().store_error(error));
            return Poll::Ready(drop_work(record, work.take(), outcome));
        }
        let polled = catch_panic(|| {
            let body = work.as_mut().expect("an ended job is not polled");
            let outcome = ready!(body.as_mut().poll(record, cx));
            // Here, since another `catch_panic` for the drop alone costs as much again.
            drop(work.take());
            Poll::Ready(outcome)
        });
        match polled {
            Ok(Poll::Ready(outcome)) => Poll::Ready(ended(record, outcome)),
            Ok(Poll::Pending) => {
                if !*is_parked && record.store_runner(cx.waker().clone()) {
                    cx.waker().wake_by_ref();
                }
                *is_parked = true;
                Poll::Pending
            }
            Err(payload) => {
                let outcome = panicked(record, payload);
                Poll::Ready(drop_work(record, work.take(), outcome))
            }
        }
    }

    /// Polls a blocking job whose runner is dropped: its thread may have finished meanwhile.
    pub(crate) fn poll_blocking_once(&mut self, close_timeout: Duration) -> Option<Ended> {
        if self.record.kind() != JobKind::Blocking {
            return None;
        }
        match self.poll(close_timeout, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => None,
        }
    }

    /// Drops the future of a job whose runtime is gone.
    pub(crate) fn drop_active(&mut self) -> Ended {
        let (record, work) = (&self.record, self.work.take());
        match within(self.surroundings.as_ref(), || catch_panic(|| drop(work))) {
            Err(payload) => {
                let outcome = panicked(record, payload);
                ended(record, outcome)
            }
            Ok(()) => {
                // A blocking closure runs on, unless no thread has begun it and now none will.
                let runs_on = record.kind() == JobKind::Blocking && !record.claim_blocking();
                let (error, outcome) = if runs_on {
                    (JobError::abandoned(None), Outcome::Abandoned)
                } else {
                    (JobError::cancelled(), Outcome::Cancelled)
                };
                drop_contained(record.result().store_error(error));
                ended(record, outcome)
            }
        }
    }
}

/// Drops the future of a job that ended before it did. Of two panics the first is reported.
#[cold]
fn drop_work(record: &Record, work: Option<Work>, mut outcome: Outcome) -> Ended {
    if outcome == Outcome::Panicked {
        drop_contained(work);
    } else if let Err(payload) = catch_panic(|| drop(work)) {
        outcome = panicked(record, payload);
    }
    ended(record, outcome)
}

#[inline(always)]
fn ended(record: &Record, outcome: Outcome) -> Ended {
    Ended { outcome, unobserved: record.result().take_unobserved() }
}

fn panicked(record: &Record, payload: Panic) -> Outcome {
    drop_contained(record.result().store_error(JobError::panicked(payload)));
    Outcome::Panicked
}
