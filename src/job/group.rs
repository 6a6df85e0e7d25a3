//! Jobs that belong together, such as those of one request.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU32, Ordering, fence},
};

use tokio::sync::Notify;

use crate::{
    rules::step::JobKey,
    util::{panics::notify, waiting::wait_until},
};

/// The owner of a group, such as a request.
pub(crate) trait GroupOwner: Send + Sync {
    /// The label of the group's jobs in logs, listings and reports.
    fn label(&self) -> &Arc<str>;

    fn group(&self) -> &Group;

    /// Forgets a deferred job that has ended.
    fn forget_deferred(&self, job: JobKey);
}

/// Counts the jobs of a group, and wakes the tasks that wait for their end.
#[derive(Default)]
pub(crate) struct Group {
    /// At most as many as the scheduler's table has rows.
    jobs: AtomicU32,
    /// The group has had a job.
    is_used: AtomicBool,
    /// Notified by each end of a job, once a task has waited for one.
    ended: OnceLock<Box<Notify>>,
}

impl Group {
    pub(crate) fn len(&self) -> usize {
        self.jobs.load(Ordering::Acquire) as usize
    }

    /// Whether the group has ever had a job.
    pub(crate) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    pub(crate) fn job_joined(&self) {
        self.is_used.store(true, Ordering::Relaxed);
        self.jobs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn job_left(&self) {
        self.jobs.fetch_sub(1, Ordering::Release);
    }

    /// Wakes the waiting tasks, after `job_left`. Not under a lock, since wakers run.
    pub(crate) fn notify_ended(&self) {
        // Pairs with the fence in `wait_until`: either this sees the waiting task, or the waiting task
        // sees all that was done before this.
        fence(Ordering::SeqCst);
        if let Some(ended) = self.ended.get() {
            notify(ended);
        }
    }

    /// Resolves when `done` returns true. It is called again at each end of a job.
    pub(crate) async fn wait_until(&self, done: impl Fn() -> bool) {
        let ended = self.ended.get_or_init(Box::default);
        wait_until(&**ended, done).await;
    }
}
