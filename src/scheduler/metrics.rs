//! The metrics of schedulers: their gauges, which are read from `stats`.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    report::{
        metrics::{SchedulerMetrics, Settings},
        stats::Stats,
    },
    rules::state::Phase,
    run::core::{Core, Setup},
    scheduler::inspect::{limit_of, stats_of},
    util::sync::{Mutex, lock},
};

/// Publishes schedulers through the facade [`metrics`](https://docs.rs/metrics), as for Prometheus.
///
/// Pass it to [`SchedulerBuilder::metrics`](crate::SchedulerBuilder::metrics) of each scheduler. A clone is
/// cheap, and the same set of schedulers. The chapter [`docs::metrics`](crate::docs::metrics) lists all
/// metrics, and has queries, alerts and buckets.
///
/// # Guarantees
///
/// - Counters and histograms are exact, and current at every moment. Each accepted job is counted once by
///   `tower_jobs_accepted_total`, and once by `tower_jobs_ended_total`.
/// - Gauges are those of the last [`refresh`](Self::refresh). At a refresh without concurrent events,
///   accepted = the sum of ended + deferred + pending + active.
/// - A scheduler has series of at most 100 names of jobs. Further names are counted as `other`, and one
///   warning says so.
///
/// # What it does not do
///
/// - It does not refresh the gauges by itself: call [`refresh`](Self::refresh) before each scrape, or spawn
///   [`refresh_every`](Self::refresh_every).
/// - It sees no recorder that is installed later. Its handles belong to the recorder at the first job, refusal
///   or refresh of a scheduler: install it before.
/// - It does not keep a scheduler open.
///
/// ```
/// use tower_jobs::{JobMetrics, Scheduler};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// // First the recorder, such as `PrometheusBuilder::new().install_recorder()`.
/// let metrics = JobMetrics::new();
/// let web = Scheduler::builder().name("web").metrics(&metrics).build();
/// let mail = Scheduler::builder().name("mail").metrics(&metrics).build();
/// # drop((web, mail));
///
/// // In the handler of `/metrics`, before the recorder renders:
/// metrics.refresh();
/// # }
/// ```
#[derive(Clone, Default)]
pub struct JobMetrics {
    schedulers: Arc<Mutex<Vec<Watched>>>,
}

#[derive(Clone)]
struct Watched {
    core: Weak<Core>,
    metrics: Arc<SchedulerMetrics>,
}

impl JobMetrics {
    /// Makes an empty set of schedulers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the gauges of all schedulers to their [`stats`](crate::Scheduler::stats).
    ///
    /// It reads each scheduler briefly, however many jobs there are. The gauges of a scheduler
    /// that is gone turn 0.
    pub fn refresh(&self) {
        self.refresh_open();
    }

    /// Refreshes the gauges now and then every `period`, until all schedulers are closed.
    ///
    /// It is for exporters with a listener of their own, which no code is called before. Spawn it once all
    /// schedulers have been built; about the scrape interval divided by 3 is a good period.
    ///
    /// It ends, after a last refresh, at most a `period` after the last scheduler has closed and its jobs have
    /// ended.
    ///
    /// # Panics
    ///
    /// If `period` is zero; when it is polled outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    #[track_caller]
    pub fn refresh_every(&self, period: Duration) -> impl Future<Output = ()> + Send + 'static {
        assert!(!period.is_zero(), "a period of zero would never rest: use 5 s");
        let metrics = self.clone();
        async move {
            while metrics.refresh_open() {
                sleep(period).await;
            }
        }
    }

    /// Refreshes. Returns whether a scheduler may still have jobs.
    fn refresh_open(&self) -> bool {
        let watched = lock(&self.schedulers).clone();
        let is_open = watched.iter().filter(|scheduler| scheduler.refresh()).count() > 0;
        lock(&self.schedulers).retain(|scheduler| scheduler.core.strong_count() > 0);
        is_open
    }

    /// Makes a scheduler whose observer records it.
    pub(super) fn watch(
        &self,
        mut setup: Setup,
        make: impl FnOnce(Setup) -> Arc<Core>,
    ) -> Arc<Core> {
        let metrics = Arc::new(SchedulerMetrics::new(setup.name.clone()));
        setup.observers.push(metrics.clone());
        let core = make(setup);
        lock(&self.schedulers).push(Watched { core: Arc::downgrade(&core), metrics });
        core
    }
}

impl Watched {
    /// Returns whether the scheduler may still have jobs.
    fn refresh(&self) -> bool {
        let Some(core) = self.core.upgrade() else {
            self.metrics.refresh(&Stats::default(), &GONE);
            return false;
        };
        let is_closed = core.queue().phase() == Phase::Closed;
        // Read after the phase: no job is accepted once it is closed.
        let stats = stats_of(&core);
        self.metrics.refresh(&stats, &settings_of(&core));
        !is_closed || stats.active + stats.pending + stats.deferred > 0
    }
}

/// Of a scheduler that is gone.
const GONE: Settings = Settings {
    limit: Some(0),
    pending_limit: Some(0),
    deferred_limit: Some(0),
    limit_per_key: Some(0),
    is_draining: false,
};

fn settings_of(core: &Core) -> Settings {
    let queue = core.queue();
    Settings {
        limit: limit_of(queue.limit()),
        pending_limit: limit_of(queue.pending_limit()),
        deferred_limit: core.config.deferred_limit,
        limit_per_key: limit_of(queue.limit_per_key()),
        is_draining: queue.phase() != Phase::Open,
    }
}

impl fmt::Debug for JobMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = lock(&self.schedulers).len();
        f.debug_struct("JobMetrics").field("schedulers", &len).finish()
    }
}
