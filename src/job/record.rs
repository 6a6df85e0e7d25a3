//! The record of one job, shared by its handle, the queue and its runner.
//!
//! There may be a million records, so one takes 88 bytes with the two counts of its `Arc`. Options that
//! few jobs have, and the parts that a job needs only once it waits, is awaited or fails, are allocated
//! when there are any.

use std::{
    borrow::Cow,
    fmt,
    future::pending,
    panic::Location,
    sync::{Arc, OnceLock},
    task::Waker,
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    job::{
        error::{BoxError, JobError},
        group::{Group, GroupOwner},
        info::{JobInfo, name_of},
        options::{Extras, JobFlags, JobKind},
        result::{Output, ResultCell},
    },
    rules::{
        line::Stamp,
        state::{JobId, JobState, Outcome},
        step::{JobKey, JobMeta, UniqueKey},
        table::{NONE, RowIndex},
    },
    util::{
        clock::Moment,
        panics::{notify, wake},
        sync::{
            Mutex,
            atomic::{AtomicI64, AtomicU8, AtomicU32, Ordering},
            lock,
        },
        waiting::wait_until,
    },
};

/// The requests to a job to stop, which thread has claimed a blocking job, and what observers have seen or
/// will see.
mod stop_bits {
    pub(super) const CANCEL: u8 = 1;
    pub(super) const ABORT: u8 = 2;
    /// Beside `ABORT`: the job did not end in time, which is a failure.
    pub(super) const OVERDUE: u8 = 4;
    /// A thread runs the blocking job, or no thread ever will.
    pub(super) const CLAIMED: u8 = 8;
    /// The start of the job was shown to the observers.
    pub(super) const START_SHOWN: u8 = 16;
    /// The end of the job was shown to the observers while it may still run.
    pub(super) const END_SHOWN: u8 = 32;
    /// The job has a span.
    pub(super) const TRACED: u8 = 64;
}

/// All that is known of one job but its future.
pub(crate) struct Record {
    id: JobId,
    location: &'static Location<'static>,
    group: Option<Arc<dyn GroupOwner>>,
    extras: Option<Box<Extras>>,
    accepted_at: AtomicI64,
    /// The row in the queue's table, [`NONE`] before. Read by the queue under its lock, and by the
    /// runner.
    row: AtomicU32,
    kind: JobKind,
    flags: JobFlags,
    stop: AtomicU8,
    result: AtomicU8,
    cold: OnceLock<Box<ColdPart>>,
}

/// The parts that a job needs once it waits, is awaited, or fails.
#[derive(Default)]
pub(crate) struct ColdPart {
    /// Notified when a cooperative job is cancelled.
    cancelled: Notify,
    /// Wakes the task that polls the job.
    runner: Mutex<Option<Waker>>,
    pub(super) output: Mutex<Output>,
    /// The end of the response that an observed or traced job was deferred for, in nanoseconds; 0 for other
    /// jobs.
    undeferred_at: AtomicI64,
    /// One more than the bits of the number; 0 before.
    progress: AtomicU32,
}

impl Record {
    #[inline]
    pub(crate) fn new(
        location: &'static Location<'static>,
        group: Option<Arc<dyn GroupOwner>>,
        extras: Option<Box<Extras>>,
        kind: JobKind,
        flags: JobFlags,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: JobId::next(),
            location,
            group,
            extras,
            accepted_at: AtomicI64::new(Moment::NEVER.as_nanos()),
            row: AtomicU32::new(NONE),
            kind,
            flags,
            stop: AtomicU8::new(0),
            result: AtomicU8::new(0),
            cold: OnceLock::new(),
        })
    }

    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    pub(crate) fn key(&self) -> JobKey {
        JobKey { row: self.row.load(Ordering::Relaxed), id: self.id }
    }

    pub(crate) fn kind(&self) -> JobKind {
        self.kind
    }

    pub(crate) fn yields_first(&self) -> bool {
        self.flags.has(JobFlags::YIELDS_FIRST)
    }

    pub(crate) fn is_skipped_if_given_up(&self) -> bool {
        self.flags.has(JobFlags::SKIP_IF_GIVEN_UP)
    }

    /// Makes the owner forget a deferred job that ended by another cause than the owner.
    pub(crate) fn forget_deferred(&self) {
        if let Some(owner) = &self.group {
            owner.forget_deferred(self.key());
        }
    }

    pub(crate) fn is_in_group(&self, group: &Group) -> bool {
        self.counted_group().is_some_and(|own| std::ptr::eq(own, group))
    }

    fn counted_group(&self) -> Option<&Group> {
        let counts = !self.flags.has(JobFlags::OUTSIDE_GROUP);
        self.group.as_ref().filter(|_| counts).map(|owner| owner.group())
    }

    pub(crate) fn label(&self) -> Option<&Arc<str>> {
        let given = self.extras.as_ref().and_then(|extras| extras.label.as_ref());
        given.or_else(|| self.group.as_ref().map(|owner| owner.label()))
    }

    pub(crate) fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// The name that the job was given.
    pub(crate) fn given_name(&self) -> Option<&str> {
        self.extras.as_ref()?.name.as_deref()
    }

    pub(crate) fn name_str(&self) -> &str {
        self.given_name().unwrap_or_else(|| name_of(self.location))
    }

    pub(crate) fn name(&self) -> Cow<'static, str> {
        let given = self.extras.as_ref().and_then(|extras| extras.name.clone());
        given.unwrap_or_else(|| Cow::Borrowed(name_of(self.location)))
    }

    pub(crate) fn concurrency_key(&self) -> Option<&Arc<str>> {
        self.extras.as_ref()?.key.as_ref()
    }

    /// The moment from which the job is queued: its acceptance, or the end of its response.
    pub(crate) fn queued_at(&self) -> Moment {
        let undeferred = self.cold.get().map(|cold| cold.undeferred_at.load(Ordering::Relaxed));
        let at = undeferred.filter(|at| *at != 0);
        Moment::from_nanos(at.unwrap_or_else(|| self.accepted_at.load(Ordering::Relaxed)))
    }

    /// A snapshot of the job. The queue knows the stamp; a job without one has ended. `default_timeout` is
    /// the run timeout of jobs without one.
    pub(crate) fn info(
        &self,
        stamp: Option<Stamp>,
        now: Moment,
        default_timeout: Option<Duration>,
    ) -> JobInfo {
        let accepted_at = Moment::from_nanos(self.accepted_at.load(Ordering::Relaxed));
        let is_accepted = accepted_at != Moment::NEVER;
        let age = if is_accepted { now.since(accepted_at) } else { Duration::ZERO };
        let started = stamp.filter(|stamp| stamp.state() == JobState::Active);
        JobInfo {
            id: self.id,
            name: self.name(),
            kind: self.kind,
            state: stamp.map_or(JobState::Finished, Stamp::state),
            request: self.label().cloned(),
            key: self.concurrency_key().cloned(),
            location: self.location,
            age,
            // A job that replaces a pending one has the turn of that.
            state_for: stamp.map_or(Duration::ZERO, |stamp| now.since(stamp.since()).min(age)),
            queued: started.map(|stamp| stamp.since().since(self.queued_at())),
            timeout: self.timeout(default_timeout),
            progress: self.progress(),
        }
    }

    /// The job's run timeout: its own, else the scheduler's, unless its output belongs to a caller.
    fn timeout(&self, default: Option<Duration>) -> Option<Duration> {
        let own = self.extras.as_ref().and_then(|extras| extras.timeout);
        own.or(default.filter(|_| self.kind != JobKind::Shielded))
    }

    pub(crate) fn set_progress(&self, part: f32) {
        self.cold().progress.store(part.to_bits() + 1, Ordering::Relaxed);
    }

    fn progress(&self) -> Option<f32> {
        let stored = self.cold.get()?.progress.load(Ordering::Relaxed);
        stored.checked_sub(1).map(f32::from_bits)
    }

    fn cold(&self) -> &ColdPart {
        self.cold.get_or_init(Box::default)
    }
}

/// Stopping.
impl Record {
    fn has_stop(&self, bits: u8) -> bool {
        self.stop.load(Ordering::Acquire) & bits != 0
    }

    /// Cancels the job. Only a cooperative one can react.
    pub(crate) fn cancel(&self) {
        self.stop.fetch_or(stop_bits::CANCEL, Ordering::AcqRel);
        if self.kind == JobKind::Cooperative {
            notify(&self.cold().cancelled);
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.has_stop(stop_bits::CANCEL)
    }

    /// Resolves when a cooperative job is cancelled; never for other jobs.
    pub(crate) async fn cancelled(&self) {
        if self.kind != JobKind::Cooperative {
            return pending().await;
        }
        wait_until(&self.cold().cancelled, || self.is_cancelled()).await;
    }

    /// Makes the runner drop the job's future.
    pub(crate) fn stop(&self, overdue: bool) {
        let overdue = if overdue { stop_bits::OVERDUE } else { 0 };
        self.stop.fetch_or(stop_bits::ABORT | overdue, Ordering::AcqRel);
        self.cancel();
        let runner = lock(&self.cold().runner).take();
        if let Some(runner) = runner {
            wake(runner);
        }
    }

    /// Claims a blocking job, to run it or to give it up. True for the first caller only.
    pub(crate) fn claim_blocking(&self) -> bool {
        self.stop.fetch_or(stop_bits::CLAIMED, Ordering::AcqRel) & stop_bits::CLAIMED == 0
    }

    pub(crate) fn must_stop(&self) -> bool {
        self.has_stop(stop_bits::ABORT)
    }

    pub(crate) fn is_overdue(&self) -> bool {
        self.has_stop(stop_bits::OVERDUE)
    }

    /// Stores the runner's waker for [`stop`](Self::stop). Returns whether the job must stop already.
    pub(crate) fn store_runner(&self, runner: Waker) -> bool {
        let previous = lock(&self.cold().runner).replace(runner);
        drop(previous);
        self.must_stop()
    }
}

/// Observers, and the span.
impl Record {
    pub(crate) fn mark_traced(&self) {
        self.stop.fetch_or(stop_bits::TRACED, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_observed(&self) -> bool {
        self.result().is_observed()
    }

    /// The start is about to be shown. Returns false if the end has been.
    pub(crate) fn show_start(&self) -> bool {
        let before = self.stop.fetch_or(stop_bits::START_SHOWN, Ordering::AcqRel);
        before & stop_bits::END_SHOWN == 0
    }

    /// The end of a job that may still run is about to be shown. Returns whether the start has been.
    pub(crate) fn show_end(&self) -> bool {
        let before = self.stop.fetch_or(stop_bits::END_SHOWN, Ordering::AcqRel);
        before & stop_bits::START_SHOWN != 0
    }
}

/// The result.
impl Record {
    #[inline]
    pub(crate) fn result(&self) -> ResultCell<'_> {
        ResultCell { bits: &self.result, cold: &self.cold }
    }

    /// Stores the job's result, unless the handle is gone.
    pub(crate) fn end_with<T: Send + 'static>(&self, result: Result<T, BoxError>) -> Outcome {
        match result {
            Ok(value) => {
                drop(self.result().store_value(value, false));
                Outcome::Completed
            }
            Err(error) => self.end(JobError::failed(error), Outcome::Failed),
        }
    }

    /// Stores the job's error.
    pub(crate) fn end(&self, error: JobError, outcome: Outcome) -> Outcome {
        drop(self.result().store_error(error));
        outcome
    }

    /// Stores an output that passes through to a caller unchanged. Returns it if the caller is gone.
    pub(super) fn pass_through<T: Send + 'static>(&self, output: T, is_failure: bool) -> Option<T> {
        self.result().store_value(output, is_failure)
    }

    /// Whether the job has ended, and its handle may know.
    pub(crate) fn is_finished(&self) -> bool {
        self.result().is_published()
    }

    /// Makes the result final, and wakes the awaiter and the group's waiters.
    #[inline(always)]
    pub(crate) fn publish(&self) {
        self.publish_as(false);
    }

    /// As [`publish`](Self::publish), for a job that ended without having started.
    pub(crate) fn publish_cancelled(&self) {
        self.publish_as(true);
    }

    #[inline(always)]
    fn publish_as(&self, cancelled: bool) {
        if let Some(waiter) = self.result().publish(cancelled) {
            wake(waiter);
        }
        if let Some(group) = self.counted_group() {
            group.notify_ended();
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("id", &self.id).finish_non_exhaustive()
    }
}

impl JobMeta for Arc<Record> {
    fn id(&self) -> JobId {
        self.id
    }

    fn needs_permit(&self) -> bool {
        self.kind != JobKind::Shielded
    }

    fn key(&self) -> Option<&Arc<str>> {
        self.concurrency_key()
    }

    fn unique(&self) -> Option<&UniqueKey> {
        self.extras.as_ref()?.unique.as_ref()
    }

    fn accepted(&self, now: Moment) {
        self.accepted_at.store(now.as_nanos(), Ordering::Relaxed);
        if let Some(group) = self.counted_group() {
            group.job_joined();
        }
    }

    fn undeferred(&self, now: Moment) {
        if self.is_observed() || self.has_stop(stop_bits::TRACED) {
            self.cold().undeferred_at.store(now.as_nanos(), Ordering::Relaxed);
        }
    }

    fn placed(&self, row: RowIndex) {
        self.row.store(row, Ordering::Relaxed);
    }

    fn ended(&self) {
        if let Some(group) = self.counted_group() {
            group.job_left();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_small() {
        // With the two counts of its `Arc`. Most allocators serve up to about 120 bytes several times as
        // fast as more.
        assert_eq!(size_of::<Record>() + 16, 88);
        assert!(size_of::<ColdPart>() <= 136, "{}", size_of::<ColdPart>());
    }
}

#[cfg(all(test, tower_jobs_loom))]
mod all_orders;
