//! Ending single jobs: closed, aborted, skipped or replaced.

use std::sync::Arc;

use crate::{
    job::{body::Work, error::JobError, options::JobKind, record::Record, span::in_span},
    rules::state::{JobState, Outcome},
    run::core::Core,
    util::{
        clock::Moment,
        panics::{catch_panic, drop_contained},
    },
};

impl Core {
    pub(crate) fn state(&self, record: &Record) -> JobState {
        self.queue().state(record.key())
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

    /// Ends a deferred job whose response is not what it waited for.
    pub(crate) fn skip(self: &Arc<Self>, record: &Arc<Record>) {
        self.remove(record, Outcome::Skipped, JobError::skipped());
    }

    /// Ends a job that has not started. Returns whether it had not.
    pub(crate) fn remove_unstarted(self: &Arc<Self>, record: &Arc<Record>) -> bool {
        self.remove(record, Outcome::Cancelled, JobError::cancelled())
    }

    fn remove(self: &Arc<Self>, record: &Record, outcome: Outcome, error: JobError) -> bool {
        let now = Moment::now();
        let removed = self.queue().remove(record.key(), outcome, now);
        let Some((work, effects)) = removed else { return false };
        self.apply(effects);
        self.drop_unstarted(record, work, error);
        true
    }

    /// Drops the work of a job that was removed from the queue. If its `Drop` panics, the job's error is
    /// that panic.
    pub(super) fn drop_unstarted(&self, record: &Record, mut work: Work, error: JobError) {
        let (_, span) = work.as_mut().unpack();
        in_span(span.as_ref(), || {
            let dropped = catch_panic(|| drop(work));
            let error = dropped.map_or_else(JobError::panicked, |()| error);
            drop_contained(record.result().store_error(error));
            self.report_unobserved(record, record.result().take_unobserved());
        });
        drop(span);
        record.publish();
    }
}
