//! The result cell: one byte of bits for each job, and a locked [`Output`] for the few jobs that have
//! one. It decides, without the queue's lock, that each failure is reported exactly once.
//!
//! # The bits
//!
//! | bit | set by | meaning |
//! |---|---|---|
//! | `DETACHED` | the handle | The handle is gone. |
//! | `STORED` | the runner, or closing | There is, or was, an output: a value other than `()`, or a failure. |
//! | `AWAITED` | the handle | A waker has been stored. |
//! | `PUBLISHED` | the runner, or closing | The result is final, and the handle may take it. |
//! | `CANCELLED` | the runner, or closing | The job ended without an output, and without a failure. |
//! | `SKIPPED` | the response's end | Beside `CANCELLED`: the job waited for another outcome. |
//! | `UNIT_TAKEN` | the handle | The `()` of a job without an output has been taken. |
//! | `OBSERVED` | the spawner | The job is shown to observers. Set before the queue has the job. |
//!
//! # Rules
//!
//! 1. A bit is set once, and never cleared. The thread that sets a bit learns which bits were set
//!    before, and so which of two threads must act.
//! 2. A failure that is stored before `DETACHED` is set is reported by the handle as it goes. One that
//!    is stored after is reported by the runner. Both take it under the output's lock, so one of them
//!    gets it. Of an observed job the handle leaves a failure that is not published yet, and the publisher
//!    takes it after publishing.
//! 3. `PUBLISHED` is set under the output's lock if there is an output. After it, nothing is stored.
//! 4. Either the handle sees `PUBLISHED` as it sets `AWAITED`, or the publisher sees `AWAITED` as it
//!    sets `PUBLISHED` and wakes the waker, which was stored before.
//! 5. A job that returns `()` stores nothing: no `STORED` and no `CANCELLED` means `()`.

use std::{
    any::{Any, TypeId},
    sync::OnceLock,
    task::{Context, Poll, Waker},
};

use crate::{
    job::{error::JobError, record::ColdPart},
    util::{
        panics::drop_contained,
        sync::{
            atomic::{AtomicU8, Ordering},
            lock,
        },
    },
};

mod result_bits {
    pub(super) const DETACHED: u8 = 1;
    pub(super) const STORED: u8 = 2;
    pub(super) const AWAITED: u8 = 4;
    pub(super) const PUBLISHED: u8 = 8;
    pub(super) const CANCELLED: u8 = 16;
    pub(super) const SKIPPED: u8 = 32;
    pub(super) const UNIT_TAKEN: u8 = 64;
    pub(super) const OBSERVED: u8 = 128;
}
use result_bits::{AWAITED, CANCELLED, DETACHED, OBSERVED, PUBLISHED, SKIPPED, STORED, UNIT_TAKEN};

/// A job's value. The handle knows its type.
pub(crate) type BoxedValue = Box<dyn Any + Send>;
pub(crate) type JobResult = Result<BoxedValue, JobError>;

#[derive(Default)]
pub(crate) struct Output {
    result: Option<JobResult>,
    /// A failure has been taken out to be reported. Later failures of the job are not.
    reported: bool,
    /// A caller that closed the job has been given a close timeout.
    reported_late: bool,
    /// The result is a failure, though it may be stored as a value that passes through.
    is_failure: bool,
    waiter: Option<Waker>,
}

impl Output {
    fn take_failure(&mut self) -> Option<JobError> {
        match self.result.take() {
            Some(Err(error)) => Some(error),
            value => {
                self.result = value;
                None
            }
        }
    }

    /// Whether this failure has been reported, in this form or an earlier one.
    fn has_reported(&self, failure: &JobResult) -> bool {
        let is_late =
            failure.as_ref().is_err_and(|error| error.is_close_timeout() || error.is_abandoned());
        self.reported || (self.reported_late && is_late)
    }
}

/// A view of the fields of a record that hold its result.
#[derive(Clone, Copy)]
pub(crate) struct ResultCell<'a> {
    pub(super) bits: &'a AtomicU8,
    pub(super) cold: &'a OnceLock<Box<ColdPart>>,
}

impl ResultCell<'_> {
    fn set(self, bits: u8) -> u8 {
        self.bits.fetch_or(bits, Ordering::AcqRel)
    }

    #[inline]
    fn has_any(self, bits: u8) -> bool {
        self.bits.load(Ordering::Acquire) & bits != 0
    }

    fn with_output<T>(self, use_it: impl FnOnce(&mut Output) -> T) -> T {
        use_it(&mut lock(&self.cold.get_or_init(Box::default).output))
    }

    #[inline]
    pub(crate) fn is_published(self) -> bool {
        self.has_any(PUBLISHED)
    }

    // The runner's side.

    /// Stores a value, if a handle may still take it. Returns a value that is not stored, for the
    /// caller to drop. `is_failure` says whether the handle will find a failure in it.
    pub(super) fn store_value<T: Send + 'static>(self, value: T, is_failure: bool) -> Option<T> {
        if self.has_any(DETACHED | PUBLISHED) {
            return Some(value);
        }
        if TypeId::of::<T>() == TypeId::of::<()>() {
            return None; // 5
        }
        let back = self.store(Ok(Box::new(value)), is_failure)?.ok()?;
        back.downcast().ok().map(|value| *value)
    }

    /// Stores an error in place of any earlier result, which is returned for the caller to drop.
    pub(crate) fn store_error(self, error: JobError) -> Option<JobResult> {
        if error.is_skipped() {
            self.set(CANCELLED | SKIPPED);
        } else if !error.is_failure() {
            self.set(CANCELLED);
        } else {
            return self.store(Err(error), true);
        }
        None
    }

    /// Returns the previous result, or the one that cannot be stored.
    fn store(self, result: JobResult, is_failure: bool) -> Option<JobResult> {
        self.with_output(|output| {
            let unless_published = |bits: u8| (bits & PUBLISHED == 0).then_some(bits | STORED);
            match self.bits.fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_published) {
                Err(_) => Some(result), // 3
                Ok(before) if before & DETACHED != 0 && result.is_ok() => Some(result),
                Ok(_) if is_failure && output.has_reported(&result) => Some(result),
                Ok(_) => {
                    output.is_failure = is_failure;
                    output.result.replace(result)
                }
            }
        })
    }

    /// Takes the failure of a job whose handle is gone (2).
    #[inline]
    pub(crate) fn take_unobserved(self) -> Option<JobError> {
        let bits = self.bits.load(Ordering::Acquire);
        if bits & DETACHED == 0 || bits & STORED == 0 {
            return None;
        }
        self.take_failure_to_report()
    }

    #[cold]
    fn take_failure_to_report(self) -> Option<JobError> {
        self.with_output(|output| {
            let failure = output.take_failure();
            output.reported |= failure.is_some();
            failure
        })
    }

    /// Makes the result final. Returns the waker of the awaiter.
    #[inline(always)]
    pub(super) fn publish(self, cancelled: bool) -> Option<Waker> {
        let bits = if cancelled { PUBLISHED | CANCELLED } else { PUBLISHED };
        if self.has_any(STORED) {
            return self.with_output(|output| {
                self.set(bits); // 3
                output.waiter.take()
            });
        }
        if self.set(bits) & AWAITED == 0 {
            return None;
        }
        self.with_output(|output| output.waiter.take()) // 4
    }

    // The handle's side.

    /// Detaches the handle. Returns whether nothing remains to be taken by
    /// [`take_remaining`](Self::take_remaining), as for most jobs.
    #[inline]
    pub(crate) fn detach(self) -> bool {
        let bits = self.bits.load(Ordering::Acquire);
        let remains = STORED | AWAITED;
        // Without an output, no thread asks any more whether there is a handle.
        let is_over = bits & (PUBLISHED | remains) == PUBLISHED;
        is_over || self.set(DETACHED) & remains == 0
    }

    /// Takes what remains when the handle goes: the result, which the caller must report if it is a
    /// failure, and the waker. A failure that is for the observers first stays until it is published;
    /// after that the publisher takes it by [`take_unobserved`](Self::take_unobserved).
    pub(crate) fn take_remaining(self) -> (Option<JobResult>, Option<Waker>) {
        self.with_output(|output| {
            let stays = self.is_observed() && !self.is_published();
            let stays = stays && matches!(output.result, Some(Err(_)));
            let result = if stays { None } else { output.result.take() };
            output.reported |= result.is_some() && output.is_failure;
            (result, output.waiter.take())
        })
    }

    #[inline]
    pub(crate) fn poll_published(self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_published() {
            return Poll::Ready(());
        }
        self.await_published(cx)
    }

    fn await_published(self, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let previous = self.with_output(|output| output.waiter.replace(waker));
        drop(previous);
        if self.set(AWAITED) & PUBLISHED != 0 {
            return Poll::Ready(()); // 4
        }
        Poll::Pending
    }

    /// Takes the published result; `None` stands for `()`. A cancellation can be taken any number of
    /// times.
    #[inline]
    pub(crate) fn take(self) -> Result<Option<BoxedValue>, JobError> {
        let bits = self.bits.load(Ordering::Acquire);
        if bits & !(DETACHED | AWAITED | OBSERVED) == PUBLISHED {
            // No other thread sets a bit of a published job without an output.
            self.bits.store(bits | UNIT_TAKEN, Ordering::Release);
            return Ok(None);
        }
        if bits & STORED != 0 {
            let result = self.with_output(|output| output.result.take());
            return result.unwrap_or_else(|| Err(JobError::taken())).map(Some);
        }
        Err(match bits {
            bits if bits & SKIPPED != 0 => JobError::skipped(),
            bits if bits & CANCELLED != 0 => JobError::cancelled(),
            _ => JobError::taken(),
        })
    }

    pub(crate) fn mark_observed(self) {
        self.set(OBSERVED);
    }

    #[inline]
    pub(crate) fn is_observed(self) -> bool {
        self.has_any(OBSERVED)
    }

    /// Takes the failure out to lend it to observers, or to the job's span. The caller [puts it back](Self::put_back) before it
    /// publishes the result.
    pub(crate) fn lend_failure(self) -> Option<JobError> {
        if !self.has_any(STORED) {
            return None;
        }
        self.with_output(Output::take_failure)
    }

    /// Puts a lent failure back, unless a caller that closed the job was given it meanwhile as a close timeout.
    /// If the handle went meanwhile it found nothing, and the failure is to be reported: see
    /// [`take_unobserved`](Self::take_unobserved).
    pub(crate) fn put_back(self, failure: JobError) {
        let reported = self.with_output(|output| {
            debug_assert!(output.result.is_none(), "nothing is stored while a failure is lent");
            let failure = Err(failure);
            if output.has_reported(&failure) {
                return Some(failure);
            }
            output.result.replace(failure)
        });
        drop_contained(reported);
    }

    pub(crate) fn take_failure(self) -> Option<JobError> {
        self.with_output(Output::take_failure)
    }

    /// Takes the failure of a job that did not end in time after it was closed; `late` if it has not
    /// failed yet.
    pub(crate) fn take_failure_or_late(self, late: JobError) -> JobError {
        self.with_output(|output| match output.take_failure() {
            Some(failure) => {
                output.reported = true;
                failure
            }
            None => {
                output.reported_late = true;
                late
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{panic::Location, time::Duration};

    use super::*;
    use crate::job::{
        options::{JobFlags, JobKind},
        record::Record,
    };

    #[test]
    fn lent_close_timeout_is_not_reported_again() {
        let (flags, after) = (JobFlags::default(), Duration::from_secs(1));
        let record = Record::new(Location::caller(), None, None, JobKind::Cooperative, flags);
        let cell = record.result();
        assert!(cell.store_error(JobError::close_timeout(after)).is_none());
        let lent = cell.lend_failure().expect("it is stored");
        let given = cell.take_failure_or_late(JobError::close_timeout(after));
        assert!(given.is_close_timeout());
        cell.put_back(lent);
        assert!(!cell.detach());
        assert!(cell.take_unobserved().is_none());
    }
}
