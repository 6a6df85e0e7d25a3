//! `futures_orchestra`: a pool with a limit, a queue and a handle for each job.
//!
//! It does not tell when it is idle, so its handles are awaited. It has no "unlimited".

use std::{
    collections::HashSet,
    fmt::{Debug, Formatter},
    sync::OnceLock,
};

use futures_orchestra::{FuturePoolManager, FuturePoolManagerRlxd, PoolError, TaskHandle};
use tokio::runtime::Handle;

use crate::{contenders::Work, timing::Contender};

/// Like ours, its queue has no end: its own ends where nobody comes.
const CAPACITY: usize = usize::MAX >> 3;

async fn all_ended(handles: Vec<TaskHandle<()>>) {
    for handle in handles {
        handle.await_result().await.expect("a job without a failure");
    }
}

/// Its pool that starts jobs in order.
pub struct Pool<W> {
    limit: usize,
    work: W,
    /// Made where it is first needed: it wants a runtime.
    pool: OnceLock<FuturePoolManager<()>>,
}

impl<W> Debug for Pool<W> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<W> Pool<W> {
    /// A pool behind a limit.
    pub fn new(limit: usize, work: W) -> Self {
        Self { limit, work, pool: OnceLock::new() }
    }
}

impl<W: Work> Contender for Pool<W> {
    async fn spawn(&self, jobs: usize) {
        let pool = self.pool.get_or_init(|| {
            FuturePoolManager::new(self.limit, CAPACITY, Handle::current(), "benchmark")
        });
        let mut handles = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            let job = Box::pin(self.work.job());
            let spawned: Result<_, PoolError> = pool.submit(HashSet::new(), job).await;
            handles.push(spawned.expect("open"));
        }
        all_ended(handles).await;
    }
}

/// Its pool that starts jobs nearly in order, and is said to be faster for it.
pub struct Relaxed<W> {
    limit: usize,
    work: W,
    pool: OnceLock<FuturePoolManagerRlxd<()>>,
}

impl<W> Debug for Relaxed<W> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relaxed").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<W> Relaxed<W> {
    /// A pool behind a limit.
    pub fn new(limit: usize, work: W) -> Self {
        Self { limit, work, pool: OnceLock::new() }
    }
}

impl<W: Work> Contender for Relaxed<W> {
    async fn spawn(&self, jobs: usize) {
        let pool = self.pool.get_or_init(|| {
            // Two lanes are what its documentation advises.
            FuturePoolManagerRlxd::new(self.limit, CAPACITY, 2, Handle::current(), "benchmark")
        });
        let mut handles = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            let spawned = pool.submit_future(HashSet::new(), self.work.job()).await;
            handles.push(spawned.expect("open"));
        }
        all_ended(handles).await;
    }
}
