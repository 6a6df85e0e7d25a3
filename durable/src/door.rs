//! A store's view of the application: room for jobs, and how they ended.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tower_jobs::{Permit, Scheduler};

use crate::{
    engine::{Claimed, Verdict},
    handlers::{Handlers, Kind, Prepared},
    stage::Stage,
};

/// Most rows that are claimed at once.
const BATCH: usize = 32;

/// Pause of a suspect while another runs.
const SUSPECT_PAUSE: Duration = Duration::from_secs(1);

/// The verdict of a job, once it has one.
pub(crate) type Running = BoxFuture<'static, Verdict>;

/// Counts of jobs that did not complete since the shutdown began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) released: usize,
    pub(crate) left: usize,
    pub(crate) not_stored: usize,
}

/// A store's way to the application: it gives room for jobs, and runs them.
///
/// It is given to [`Engine::run`](crate::Engine::run).
pub struct Door {
    handlers: Arc<Handlers>,
    scheduler: Scheduler,
    counts: Arc<Counts>,
    stage: watch::Receiver<Stage>,
    worker: String,
    dead_after: Duration,
    tally: Arc<Mutex<Tally>>,
}

/// Running jobs by kind.
#[derive(Default)]
struct Counts {
    by_kind: HashMap<&'static str, AtomicUsize>,
    /// A suspect runs: a job that was running when several processes died.
    suspect_runs: AtomicBool,
    left: Notify,
}

/// Keeps a job counted while it runs.
struct Counted {
    counts: Arc<Counts>,
    kind: &'static str,
    is_suspect: bool,
    is_limited: bool,
}

impl Counted {
    /// `None` for a suspect while another runs: which of them kills processes is then seen, and the others end.
    fn new(counts: &Arc<Counts>, prepared: &Prepared) -> Option<Self> {
        let Prepared { kind, is_limited, is_suspect, .. } = *prepared;
        if is_suspect && counts.suspect_runs.swap(true, Ordering::Relaxed) {
            return None;
        }
        counts.by_kind[kind].fetch_add(1, Ordering::Relaxed);
        Some(Self { counts: counts.clone(), kind, is_suspect, is_limited })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counts.by_kind[self.kind].fetch_sub(1, Ordering::Relaxed);
        if self.is_suspect {
            self.counts.suspect_runs.store(false, Ordering::Relaxed);
        }
        if self.is_limited {
            self.counts.left.notify_one();
        }
    }
}

impl Door {
    pub(crate) fn new(
        handlers: Arc<Handlers>,
        scheduler: Scheduler,
        stage: watch::Receiver<Stage>,
        worker: String,
        dead_after: Duration,
        tally: Arc<Mutex<Tally>>,
    ) -> Self {
        let by_kind = handlers.kinds().map(|kind| (kind.name, AtomicUsize::new(0))).collect();
        let counts = Arc::new(Counts { by_kind, ..Counts::default() });
        Self { handlers, scheduler, counts, stage, worker, dead_after, tally }
    }

    /// Returns the name of this worker, which no other process has, and no other start of this one.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// Returns the kinds that this process has handlers for.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.handlers.kinds().map(|kind| kind.name).collect()
    }

    /// Returns after how long without a sign of life a worker counts as dead.
    pub fn dead_after(&self) -> Duration {
        self.dead_after
    }

    /// Resolves when no more rows are to be claimed.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn stopping(&self) {
        self.reached(Stage::Stopping).await;
    }

    /// Returns whether no more rows are to be claimed.
    pub fn is_stopping(&self) -> bool {
        *self.stage.borrow() >= Stage::Stopping
    }

    /// Returns whether the scheduler runs no more jobs, because the application has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.scheduler.is_closed()
    }

    /// Resolves when the time to settle rows is over.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn over(&self) {
        self.reached(Stage::Over).await;
    }

    /// Returns whether the time to settle rows is over.
    pub fn is_over(&self) -> bool {
        *self.stage.borrow() >= Stage::Over
    }

    async fn reached(&self, stage: Stage) {
        // An error means that the sender is gone, and that is the end too.
        drop(self.stage.clone().wait_for(|seen| *seen >= stage).await);
    }

    /// Waits for room for at least one job. `None` when the door is [stopping](Self::stopping).
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn room(&self) -> Option<Room<'_>> {
        loop {
            let left = self.counts.left.notified();
            if self.free_kinds().is_empty() {
                tokio::select! {
                    () = left => continue,
                    () = self.stopping() => return None,
                }
            }
            let first = tokio::select! {
                permit = self.scheduler.reserve() => permit.ok()?,
                () = self.stopping() => return None,
            };
            if self.is_stopping() {
                return None;
            }
            let mut permits = vec![first];
            while permits.len() < BATCH
                && let Ok(permit) = self.scheduler.try_reserve()
            {
                permits.push(permit);
            }
            return Some(Room { door: self, permits });
        }
    }

    /// Resolves when a job of a kind with a limit has ended since the last call.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) async fn limited_kind_ended(&self) {
        self.counts.left.notified().await;
    }

    /// Kinds below their limits, and how many more of each may run.
    fn free_kinds(&self) -> Vec<(&'static str, usize)> {
        let free = |kind: &Kind| {
            let running = self.counts.by_kind[kind.name].load(Ordering::Relaxed);
            let free = kind.limit.map_or(usize::MAX, |limit| limit.saturating_sub(running));
            (free > 0).then_some((kind.name, free))
        };
        self.handlers.kinds().filter_map(free).collect()
    }

    fn spawn(&self, permit: Permit, prepared: Prepared, counted: Counted) -> Running {
        let Prepared { kind, label, timeout, future, judge, .. } = prepared;
        let mut builder = self.scheduler.job(kind);
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        if let Some(label) = label {
            builder = builder.label(label);
        }
        // Refused, because the scheduler has closed since.
        let Ok(mut job) = permit.spawn_as(builder, future) else {
            return Box::pin(async { Verdict::Release { after: Duration::ZERO } });
        };
        let (stage, tally) = (self.stage.clone(), self.tally.clone());
        Box::pin(async move {
            let ended = job.wait().await;
            drop(counted);
            let is_stopping = *stage.borrow() >= Stage::Stopping;
            let verdict = judge.judge(ended, is_stopping);
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            match verdict {
                Verdict::Release { .. } => tally.released += 1,
                Verdict::Leave => tally.left += 1,
                _ => {}
            }
            drop(tally);
            verdict
        })
    }

    /// Notes that a verdict could not be stored by the end.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn not_stored(&self, verdict: &Verdict) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.not_stored += 1;
        if matches!(verdict, Verdict::Release { .. }) {
            tally.released = tally.released.saturating_sub(1);
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// Room for jobs that start now. Dropped, it gives back the unused permits.
pub struct Room<'a> {
    door: &'a Door,
    permits: Vec<Permit>,
}

impl fmt::Debug for Room<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("len", &self.permits.len()).finish_non_exhaustive()
    }
}

impl Room<'_> {
    /// Returns how many jobs may start.
    pub fn len(&self) -> usize {
        self.permits.len()
    }

    /// Returns whether it is used up.
    pub fn is_empty(&self) -> bool {
        self.permits.is_empty()
    }

    /// Returns the kinds that may start, and how many of each.
    pub fn kinds(&self) -> Vec<(&'static str, usize)> {
        self.door.free_kinds()
    }

    /// Starts a row that the store holds for this worker. The future resolves to its verdict.
    ///
    /// The job runs on, however the future is polled or dropped. A row for which there is no room is released.
    pub fn start(&mut self, row: &Claimed) -> BoxFuture<'static, Verdict> {
        let release = |after| -> Running { Box::pin(async move { Verdict::Release { after } }) };
        let prepared = match self.door.handlers.prepare(row, &self.door.stage) {
            Ok(prepared) => prepared,
            Err(verdict) => return Box::pin(async move { verdict }),
        };
        let Some(permit) = self.permits.pop() else { return release(Duration::ZERO) };
        let Some(counted) = Counted::new(&self.door.counts, &prepared) else {
            return release(SUSPECT_PAUSE);
        };
        #[cfg(feature = "metrics")]
        crate::figures::started(prepared.kind, row.ready_since);
        self.door.spawn(permit, prepared, counted)
    }
}
