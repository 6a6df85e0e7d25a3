//! One request's jobs as a group.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    http::jobs::Jobs,
    job::{group::GroupOwner, info::JobInfo, record::Record},
    rules::line::Stamp,
    run::deadlines,
    util::clock::Moment,
};

/// This request's jobs, as a group.
///
/// The group has all jobs that are spawned through this `Jobs` and its clones.
///
/// If the request has had a job by the time of the response's head, the extensions of the response hold
/// the same `Jobs`. A test can therefore wait for the jobs of one request, and of no other:
/// `response.extensions().get::<Jobs>()`.
impl<M> Jobs<M> {
    /// Counts this request's jobs: deferred, pending and active.
    pub fn len(&self) -> usize {
        self.request().group().len()
    }

    /// Returns whether this request has no jobs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lists this request's jobs, oldest first.
    ///
    /// This visits all jobs of the scheduler, a bounded number per lock. Jobs that start or end
    /// meanwhile may be missing or listed.
    pub fn jobs(&self) -> Vec<JobInfo> {
        let now = Moment::now();
        let core = self.scheduler().core();
        let info = |(record, stamp): &(Arc<Record>, _)| core.info_at(record, Some(*stamp), now);
        self.records().iter().map(info).collect()
    }

    /// Waits until this request has no jobs.
    ///
    /// Deferred jobs count. While the request has any, do not await this before the response has ended,
    /// above all not in the request's own handler: it would wait without end. Do not await it inside
    /// one of the request's own jobs: that job would wait for itself.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn wait_idle(&self) {
        let (group, core) = (self.request().group(), self.scheduler().core());
        let is_idle = || {
            let is_idle = group.len() == 0;
            if !is_idle {
                core.check_group(group);
            }
            is_idle
        };
        group.wait_until(is_idle).await;
    }

    /// Closes this request's jobs, and returns those that did not end.
    ///
    /// Each job is closed as by [`Job::close`](crate::Job::close):
    ///
    /// - A job that has not started never starts.
    /// - A job of `spawn_with` is asked to end, and has the scheduler's `close_timeout` to do so.
    /// - Any other job is cancelled at its next `.await`.
    ///
    /// A job that has not ended after the `close_timeout` is aborted, and is in the returned list. A
    /// blocking job that has started cannot be aborted, and runs on.
    ///
    /// The scheduler stays open, for this request too.
    ///
    /// # Panics
    ///
    /// Panics if called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// The first poll asks the jobs to end. If this is dropped later, jobs that do not end are not
    /// aborted.
    pub async fn close(&self) -> Vec<JobInfo> {
        let core = self.scheduler().core();
        let records: Vec<Arc<Record>> =
            self.records().into_iter().map(|(record, _)| record).collect();
        // Unstarted jobs are removed first, so that none gets the permit of a job that ends.
        let started: Vec<_> =
            records.iter().filter(|record| !core.remove_unstarted(record)).collect();
        started.into_iter().for_each(|record| core.close_started(record));
        let deadline = Instant::now() + self.scheduler().close_timeout();
        let all_ended =
            self.request().group().wait_until(|| records.iter().all(|record| record.is_finished()));
        if deadlines::timeout_at(Some(deadline), all_ended).await.is_ok() {
            return Vec::new();
        }
        let late: Vec<_> = records.into_iter().filter(|record| !record.is_finished()).collect();
        late.iter().for_each(|record| core.abort_job(record));
        late.iter().map(|record| core.info(record)).collect()
    }

    fn records(&self) -> Vec<(Arc<Record>, Stamp)> {
        let mut records = Vec::new();
        self.scheduler().core().for_each_job(|(record, stamp)| {
            if record.is_in_group(self.request().group()) {
                records.push((record, stamp));
            }
        });
        records.sort_unstable_by_key(|(record, _)| record.id());
        records
    }
}
