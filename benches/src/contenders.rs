//! Who competes, under which names, and with what work.

use std::{future::Future, sync::Arc};

use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::task::TaskTracker;
use tower_jobs::{JobMetrics, Observer, Scheduler};
use tower_jobs_dashboard::Dashboard;

use crate::{
    recorder,
    timing::{Contender, Entrant},
};

/// Makes one job after the other, all alike.
pub trait Work: Copy + Send + Sync + 'static {
    /// The next job.
    fn job(self) -> impl Future<Output = ()> + Send + 'static;
}

impl<M, F> Work for M
where
    M: Fn() -> F + Copy + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    fn job(self) -> impl Future<Output = ()> + Send + 'static {
        self()
    }
}

/// Does nothing.
pub async fn noop() {}

/// Lets others have their turn, twice.
pub async fn two_yields() {
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
}

/// This crate; handles are dropped at once.
#[derive(Debug)]
pub struct Detached<W>(pub Scheduler, pub W);

impl<W: Work> Contender for Detached<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            drop(self.0.spawn(self.1.job()).await.expect("open"));
        }
    }

    async fn wait(&self) {
        self.0.wait_idle().await;
    }
}

/// This crate; handles are kept, and awaited.
#[derive(Debug)]
pub struct Awaited<W>(pub Scheduler, pub W);

impl<W: Work> Contender for Awaited<W> {
    async fn spawn(&self, jobs: usize) {
        let mut handles = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            handles.push(self.0.spawn(self.1.job()).await.expect("open"));
        }
        for handle in handles {
            handle.await.expect("a job without a failure");
        }
    }
}

/// This crate; each job has a permit that was reserved for it.
#[derive(Debug)]
pub struct Reserved<W>(pub Scheduler, pub W);

impl<W: Work> Contender for Reserved<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            let permit = self.0.reserve().await.expect("open");
            drop(permit.spawn(self.1.job()).expect("open"));
        }
    }

    async fn wait(&self) {
        self.0.wait_idle().await;
    }
}

/// Has the empty default of every call.
#[derive(Debug)]
struct Idle;

impl Observer for Idle {}

/// `tokio::spawn`; handles are kept, and awaited.
#[derive(Debug)]
pub struct Tasks<W>(pub W);

impl<W: Work> Contender for Tasks<W> {
    async fn spawn(&self, jobs: usize) {
        let mut handles = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            handles.push(tokio::spawn(self.0.job()));
        }
        for handle in handles {
            handle.await.expect("a job without a failure");
        }
    }
}

/// A `JoinSet` for each producer.
#[derive(Debug)]
pub struct Sets<W>(pub W);

impl<W: Work> Contender for Sets<W> {
    async fn spawn(&self, jobs: usize) {
        let mut set = JoinSet::new();
        for _ in 0..jobs {
            set.spawn(self.0.job());
        }
        while let Some(ended) = set.join_next().await {
            ended.expect("a job without a failure");
        }
    }
}

pub(crate) async fn all_ended(tracker: &TaskTracker) {
    tracker.close();
    tracker.wait().await;
    tracker.reopen();
}

/// A `TaskTracker`, which has no limit.
#[derive(Debug)]
pub struct Tracked<W>(pub TaskTracker, pub W);

impl<W: Work> Contender for Tracked<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            drop(self.0.spawn(self.1.job()));
        }
    }

    async fn wait(&self) {
        all_ended(&self.0).await;
    }
}

/// A `TaskTracker`, whose tasks wait for a permit: what people write by hand.
#[derive(Debug)]
pub struct PermitInside<W>(pub TaskTracker, pub Arc<Semaphore>, pub W);

impl<W: Work> Contender for PermitInside<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            let (permits, job) = (self.1.clone(), self.2.job());
            drop(self.0.spawn(async move {
                let _permit = permits.acquire().await.expect("open");
                job.await;
            }));
        }
    }

    async fn wait(&self) {
        all_ended(&self.0).await;
    }
}

/// A `TaskTracker`, and a producer that waits for a permit: no queue.
#[derive(Debug)]
pub struct PermitBefore<W>(pub TaskTracker, pub Arc<Semaphore>, pub W);

impl<W: Work> Contender for PermitBefore<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            let permit = self.1.clone().acquire_owned().await.expect("open");
            let job = self.2.job();
            drop(self.0.spawn(async move {
                job.await;
                drop(permit);
            }));
        }
    }

    async fn wait(&self) {
        all_ended(&self.0).await;
    }
}

/// Names that goals refer to.
pub mod names {
    /// [`Detached`](super::Detached)
    pub const DETACHED: &str = "**tower-jobs**, detached";
    /// [`Awaited`](super::Awaited)
    pub const AWAITED: &str = "**tower-jobs**, awaited";
    /// [`Detached`](super::Detached)
    pub const OBSERVED: &str = "**tower-jobs**, detached, with an observer";
    /// [`Detached`](super::Detached)
    pub const WITH_METRICS: &str = "**tower-jobs**, detached, with metrics";
    /// [`Detached`](super::Detached)
    pub const WITH_DASHBOARD: &str = "**tower-jobs**, detached, with a dashboard";
    /// [`Detached`](super::Detached)
    pub const REMEMBERED: &str = "**tower-jobs**, detached, the last 1000 remembered";
    /// [`Detached`](super::Detached)
    pub const TRACED: &str = "**tower-jobs**, detached, tracing span on";
    /// [`Reserved`](super::Reserved)
    pub const RESERVED: &str = "**tower-jobs**, a permit reserved for each";
    /// [`Tasks`](super::Tasks)
    pub const TASKS: &str = "`tokio::spawn` + await";
    /// [`Sets`](super::Sets)
    pub const SETS: &str = "`JoinSet`";
    /// [`Tracked`](super::Tracked)
    pub const TRACKED: &str = "`TaskTracker`";
    /// [`PermitInside`](super::PermitInside)
    pub const INSIDE: &str = "`TaskTracker` + `Semaphore`, acquired inside";
    /// [`PermitBefore`](super::PermitBefore)
    pub const BEFORE: &str = "`TaskTracker` + `Semaphore`, acquired before";
    /// [`Storage`](crate::apalis::Storage)
    pub const APALIS: &str = "`apalis`, in memory";
    /// [`Pool`](crate::orchestra::Pool)
    pub const ORCHESTRA: &str = "`futures_orchestra`";
    /// [`Relaxed`](crate::orchestra::Relaxed)
    pub const RELAXED: &str = "`futures_orchestra`, relaxed";
}

/// A scheduler whose queue has no end.
pub fn scheduler(limit: Option<usize>) -> Scheduler {
    Scheduler::builder().limit(limit).pending_limit(None).build()
}

/// Everybody, on the same work. The limit binds who knows one.
pub fn entrants<W: Work>(limit: Option<usize>, work: W) -> Vec<Entrant> {
    let mut entrants = vec![
        Entrant::new(names::DETACHED, Detached(scheduler(limit), work)),
        Entrant::new(names::AWAITED, Awaited(scheduler(limit), work)),
        Entrant::new(names::TASKS, Tasks(work)),
        Entrant::new(names::SETS, Sets(work)),
        Entrant::new(names::TRACKED, Tracked(TaskTracker::new(), work)),
    ];
    if let Some(limit) = limit {
        let permits = || Arc::new(Semaphore::new(limit));
        let inside = PermitInside(TaskTracker::new(), permits(), work);
        let before = PermitBefore(TaskTracker::new(), permits(), work);
        entrants.push(Entrant::new(names::INSIDE, inside));
        entrants.push(Entrant::new(names::BEFORE, before));
    }
    entrants
}

/// This crate, with the parts that cost something only if they are used.
pub fn optional_parts<W: Work>(limit: usize, work: W) -> [Entrant; 6] {
    let builder = || Scheduler::builder().limit(limit).pending_limit(None);
    let observed = builder().observer(Idle).build();
    recorder::install();
    let counted = builder().metrics(&JobMetrics::new()).build();
    let shown = builder().build();
    // The scheduler keeps its observer, and the page is not served.
    drop(Dashboard::new(&shown));
    let remembers = builder().remember(1000).build();
    [
        Entrant::new(names::OBSERVED, Detached(observed, work)),
        Entrant::new(names::WITH_METRICS, Detached(counted, work)),
        Entrant::new(names::WITH_DASHBOARD, Detached(shown, work)),
        Entrant::new(names::REMEMBERED, Detached(remembers, work)),
        Entrant::new(names::RESERVED, Reserved(builder().build(), work)),
        Entrant::new(names::TRACED, Detached(builder().build(), work)),
    ]
}
