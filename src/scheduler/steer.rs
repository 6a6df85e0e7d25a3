//! Steering a scheduler while it runs.

use std::sync::Arc;

use crate::{
    job::info::JobInfo,
    report::{memory::Lookup, observer::Observer},
    rules::{
        config::ConfigError,
        state::{JobId, JobState},
    },
    scheduler::Scheduler,
    util::clock::Moment,
};

/// Steering while it runs.
impl Scheduler {
    /// Changes the maximum number of jobs that run at once.
    ///
    /// Lowered below the number of running jobs, nothing starts until it fits: no job is stopped. Raised,
    /// pending jobs start in order. `None` = any number. Use it to follow the load of a database, for
    /// example; to stop all starts, use [`pause`](Self::pause).
    ///
    /// ```
    /// let scheduler = tower_jobs::Scheduler::builder().limit(10).build();
    /// scheduler.set_limit(20)?;
    /// assert_eq!(scheduler.limit(), Some(20));
    /// # Ok::<(), tower_jobs::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If it is 0. The limit stays as it was.
    pub fn set_limit(&self, limit: impl Into<Option<usize>>) -> Result<(), ConfigError> {
        self.core().set_limit(limit.into())
    }

    /// Changes the maximum number of jobs that wait in the queue.
    ///
    /// Lowered, no accepted job is dropped. `None` = any number, 0 = no queue.
    ///
    /// # Errors
    ///
    /// None at present: each number makes sense.
    pub fn set_pending_limit(&self, limit: impl Into<Option<usize>>) -> Result<(), ConfigError> {
        self.core().set_pending_limit(limit.into());
        Ok(())
    }

    /// Changes the maximum number of jobs of one key that run at once.
    ///
    /// Lowered, no job of the key starts until it fits. `None` = any number.
    ///
    /// # Errors
    ///
    /// If it is 0. The limit stays as it was.
    pub fn set_limit_per_key(&self, limit: impl Into<Option<usize>>) -> Result<(), ConfigError> {
        self.core().set_limit_per_key(limit.into())
    }

    /// Lets no job start until [`resume`](Self::resume), but shielded and atomic work.
    ///
    /// Running jobs go on, and jobs are accepted into the queue as before. A drain waits only for the
    /// running jobs then, and reports the pending ones as never started. Use it while a service that all
    /// jobs need is away.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let scheduler = tower_jobs::Scheduler::new();
    /// scheduler.pause();
    /// let job = scheduler.spawn(async {}).await.unwrap();
    /// assert!(job.is_pending() && scheduler.is_paused());
    /// scheduler.resume();
    /// job.await.unwrap();
    /// # }
    /// ```
    pub fn pause(&self) {
        self.core().pause();
    }

    /// Lets jobs start again, in order.
    pub fn resume(&self) {
        self.core().resume();
    }

    /// Returns whether the scheduler is [paused](Self::pause).
    pub fn is_paused(&self) -> bool {
        self.core().queue().is_paused()
    }

    /// Ends all pending jobs as cancelled. Returns how many.
    ///
    /// Jobs that become pending meanwhile stay, and so do deferred jobs. Each future is dropped in a task of
    /// the runtime.
    pub fn clear(&self) -> usize {
        self.core().clear()
    }

    /// Aborts the unfinished job with this id, as [`Job::abort`](crate::Job::abort) does.
    ///
    /// Returns false if there is none. Without [`remember`](crate::SchedulerBuilder::remember) the job is
    /// looked for among all jobs, in steps.
    pub fn abort(&self, id: JobId) -> bool {
        let found = self.core().find(id);
        found.inspect(|record| self.core().abort_job(record)).is_some()
    }

    /// Closes the unfinished job with this id, and does not wait for its end.
    ///
    /// A pending job never starts. A job of [`spawn_with`](Self::spawn_with) is cancelled, without a
    /// deadline. Any other future is dropped at its next `await`. Returns false if there is no such job.
    pub fn close_job(&self, id: JobId) -> bool {
        let found = self.core().find(id);
        found.inspect(|record| self.core().close_job(record)).is_some()
    }

    /// Adds an observer while the scheduler runs.
    ///
    /// It sees the jobs that are made from now on, each from its acceptance to its end, and none of those
    /// made before: these are in [`jobs`](Self::jobs). It also sees refusals, and the shutdown if that has not
    /// begun yet. It is kept as long as the scheduler, so hold a [weak handle](Self::downgrade) in it.
    ///
    /// ```
    /// use tower_jobs::{JobEnd, JobSeen, Observer, Scheduler};
    ///
    /// struct Failures;
    ///
    /// impl Observer for Failures {
    ///     fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
    ///         if let Some(error) = end.error {
    ///             println!("{}: {error}", job.name());
    ///         }
    ///     }
    /// }
    ///
    /// let scheduler = Scheduler::new();
    /// scheduler.observe(Failures);
    /// ```
    pub fn observe(&self, observer: impl Observer) {
        self.core().observers.add(Arc::new(observer));
    }

    /// Looks up a job by its id.
    ///
    /// With [`remember`](crate::SchedulerBuilder::remember) an index is used, and the last jobs that ended are
    /// known. Without it, unfinished jobs are looked for in steps, and ended ones are forgotten. A job whose
    /// end is being recorded is [`Live`](Lookup::Live) and [`Finished`](JobState::Finished).
    ///
    /// A client's text becomes an id by [`str::parse`], or with the feature `serde` by axum's `Path<JobId>`.
    /// `examples/status.rs` is a whole upload: 202, its status by a URL, its result.
    ///
    /// It knows this process only. Behind a load balancer, ask the process that spawned the job.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use tower_jobs::{Lookup, Scheduler};
    ///
    /// let scheduler = Scheduler::builder().remember(1000).build();
    /// let id = scheduler.spawn(async {}).await.unwrap().id();
    /// assert!(matches!(scheduler.get(id), Lookup::Live(_)));
    /// scheduler.wait_idle().await;
    /// assert!(matches!(scheduler.get(id), Lookup::Ended(_)));
    /// # }
    /// ```
    pub fn get(&self, id: JobId) -> Lookup {
        self.core().look_up(id)
    }

    /// Lists up to `limit` jobs in this state, longest in it first.
    ///
    /// So `longest(JobState::Active, 50)` lists the 50 jobs that have run longest, and
    /// `longest(JobState::Pending, 1)` the job at the head of the queue. The time in the state is
    /// [`state_for`](JobInfo::state_for). However many jobs there are, `limit` of them are looked at, in
    /// steps that hold the lock for 128 jobs each. Jobs that start or end meanwhile may be missing.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use tower_jobs::{JobState, Scheduler};
    ///
    /// let scheduler = Scheduler::new();
    /// scheduler.job("e-mail").spawn(std::future::pending::<()>()).await.unwrap();
    /// for job in scheduler.longest(JobState::Active, 50) {
    ///     println!("{} has run for {:?}", job.name, job.state_for);
    /// }
    /// # assert_eq!(scheduler.longest(JobState::Active, 50).len(), 1);
    /// # }
    /// ```
    pub fn longest(&self, state: JobState, limit: usize) -> Vec<JobInfo> {
        self.core().longest(state, limit)
    }

    /// Lists up to `limit` jobs in this state, or in any, with ids above `after`, by id.
    ///
    /// For pages of a long list: the last id of a page is the `after` of the next. All jobs are looked
    /// through, in steps that hold the lock for 128 jobs each.
    pub fn jobs_page(
        &self,
        state: Option<JobState>,
        after: Option<JobId>,
        limit: usize,
    ) -> Vec<JobInfo> {
        let now = Moment::now();
        let mut found = std::collections::BTreeMap::new();
        self.core().for_each_job(|(record, stamp)| {
            let is_wanted = state.is_none_or(|state| state == stamp.state())
                && after.is_none_or(|after| record.id() > after);
            if is_wanted && limit > 0 {
                found.insert(record.id(), (record, stamp));
                if found.len() > limit {
                    found.pop_last();
                }
            }
        });
        let found = found.into_values();
        found.map(|(record, stamp)| self.core().info_at(&record, Some(stamp), now)).collect()
    }
}
