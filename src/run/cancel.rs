//! Ending single jobs: closed, aborted, skipped or replaced.

use std::sync::Arc;

use crate::{
    job::{
        body::Work, error::JobError, info::JobInfo, options::JobKind, record::Record,
        surroundings::within,
    },
    rules::{
        line::Stamp,
        state::{JobState, Outcome},
    },
    run::core::Core,
    util::{clock::Moment, panics::drop_contained},
};

impl Core {
    pub(crate) fn state(&self, record: &Record) -> JobState {
        self.queue().state(record.key())
    }

    /// A snapshot of the job as it is now.
    pub(crate) fn info(&self, record: &Record) -> JobInfo {
        let stamp = self.queue().stamp(record.key());
        self.info_at(record, stamp, Moment::now())
    }

    /// A snapshot of the job with the stamp that the queue has given.
    pub(crate) fn info_at(&self, record: &Record, stamp: Option<Stamp>, now: Moment) -> JobInfo {
        record.info(stamp, now, self.config.job_timeout)
    }

    /// Closes a job: removes it if it has not started, else cancels or stops it.
    pub(crate) fn close_job(self: &Arc<Self>, record: &Arc<Record>) {
        if !self.remove_unstarted(record) {
            self.close_started(record);
        }
    }

    /// Closes a job that has started.
    pub(crate) fn close_started(&self, record: &Record) {
        match record.kind() {
            JobKind::Cooperative => record.cancel(),
            _ => record.stop(false),
        }
    }

    /// Ends a job as soon as possible, started or not.
    pub(crate) fn abort_job(self: &Arc<Self>, record: &Arc<Record>) {
        if !self.remove_unstarted(record) {
            record.stop(false);
        }
    }

    /// Ends a job that has not started. Returns whether it had not.
    pub(crate) fn remove_unstarted(self: &Arc<Self>, record: &Arc<Record>) -> bool {
        let (key, now) = (record.key(), Moment::now());
        let removed = self.queue().remove(key, Outcome::Cancelled, now);
        let Some((work, effects)) = removed else { return false };
        self.apply(effects);
        self.drop_unstarted(work, Outcome::Cancelled, JobError::cancelled());
        true
    }

    /// Ends a job that was removed from the queue. Its future is user code that may block, and need its
    /// runtime as it is dropped, so a task of the runtime drops it.
    pub(super) fn drop_unstarted(&self, mut work: Work, outcome: Outcome, error: JobError) {
        let (record, mut surroundings) = work.as_mut().unpack();
        if let Some(surroundings) = &mut surroundings {
            surroundings.end(outcome);
        }
        record.forget_deferred();
        drop_contained(record.result().store_error(error));
        if record.is_observed() {
            self.observers.ended(&record, outcome, None, None, Moment::now());
        }
        record.publish();
        if let Some(runtime) = self.runtime() {
            drop(runtime.spawn(async move {
                within(surroundings.as_ref(), || drop_contained(work));
                drop(surroundings);
            }));
        }
    }
}
