//! The metrics of one scheduler, through the facade `metrics`: an observer that counts.
//!
//! 1. A handle belongs to the recorder that is installed when the handle is made. All are made at the first
//!    event or refresh, and kept.
//! 2. A name has its handles from the acceptance of its first job on, so that each of its counters begins at
//!    zero. See [`names`] for their bound.
//! 3. No lock is held while a recorder is called, which is code of the application.

mod names;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, SharedString, Unit, counter, gauge, histogram};
use tokio::time::Instant;

use crate::{
    report::{
        observer::{JobEnd, JobSeen, Observer, RefusalReason},
        stats::Stats,
    },
    rules::state::Outcome,
};
use names::{MAX_NAMES, Names};

/// The label of a scheduler without a name.
const NO_NAME: &str = "default";

const ACCEPTED: &str = "tower_jobs_accepted_total";
const ENDED: &str = "tower_jobs_ended_total";
const REFUSED: &str = "tower_jobs_refused_total";
const QUEUE: &str = "tower_jobs_queue_seconds";
const RUN: &str = "tower_jobs_run_seconds";
const DRAINING: &str = "tower_jobs_draining";

/// Observes one scheduler.
pub(crate) struct SchedulerMetrics {
    scheduler: Arc<str>,
    handles: OnceLock<Handles>,
    names: Names<NameHandles>,
}

/// The limits of a scheduler, and its state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) limit: Option<usize>,
    pub(crate) pending_limit: Option<usize>,
    pub(crate) deferred_limit: Option<usize>,
    pub(crate) limit_per_key: Option<usize>,
    pub(crate) is_draining: bool,
}

/// All but those of a name.
struct Handles {
    accepted: Counter,
    refused: [Counter; RefusalReason::ALL.len()],
    queue: Histogram,
    gauges: [Gauge; GAUGES.len()],
    draining: Gauge,
}

struct NameHandles {
    ended: [Counter; Outcome::ALL.len()],
    run: Histogram,
}

struct GaugeKind {
    name: &'static str,
    unit: Unit,
    description: &'static str,
    value: fn(&Stats, &Settings) -> f64,
}

/// The gauges that a refresh sets. `draining` is set by its event, too.
const GAUGES: [GaugeKind; 13] = [
    GaugeKind {
        name: "tower_jobs_active",
        unit: Unit::Count,
        description: "Jobs that run, shielded and atomic work included",
        value: |stats, _| stats.active as f64,
    },
    GaugeKind {
        name: "tower_jobs_outside_limit",
        unit: Unit::Count,
        description: "Active jobs outside the limit: shielded and atomic work",
        value: |stats, _| stats.outside_limit as f64,
    },
    GaugeKind {
        name: "tower_jobs_reserved",
        unit: Unit::Count,
        description: "Permits that are reserved without a job",
        value: |stats, _| stats.reserved as f64,
    },
    GaugeKind {
        name: "tower_jobs_pending",
        unit: Unit::Count,
        description: "Jobs that wait for a permit to run",
        value: |stats, _| stats.pending as f64,
    },
    GaugeKind {
        name: "tower_jobs_deferred",
        unit: Unit::Count,
        description: "Jobs that wait for the end of their response",
        value: |stats, _| stats.deferred as f64,
    },
    GaugeKind {
        name: "tower_jobs_waiting",
        unit: Unit::Count,
        description: "Callers that wait to have a job accepted, or for a permit",
        value: |stats, _| stats.waiting_spawners as f64,
    },
    GaugeKind {
        name: "tower_jobs_limit",
        unit: Unit::Count,
        description: "Maximum number of jobs that run at once",
        value: |_, settings| bound(settings.limit),
    },
    GaugeKind {
        name: "tower_jobs_pending_limit",
        unit: Unit::Count,
        description: "Maximum number of pending jobs",
        value: |_, settings| bound(settings.pending_limit),
    },
    GaugeKind {
        name: "tower_jobs_deferred_limit",
        unit: Unit::Count,
        description: "Maximum number of deferred jobs",
        value: |_, settings| bound(settings.deferred_limit),
    },
    GaugeKind {
        name: "tower_jobs_limit_per_key",
        unit: Unit::Count,
        description: "Maximum number of jobs of one concurrency key that run at once",
        value: |_, settings| bound(settings.limit_per_key),
    },
    GaugeKind {
        name: "tower_jobs_oldest_active_seconds",
        unit: Unit::Seconds,
        description: "Time that the longest-running job has run",
        value: |stats, _| age(stats.oldest_active),
    },
    GaugeKind {
        name: "tower_jobs_oldest_pending_seconds",
        unit: Unit::Seconds,
        description: "Time that the job at the head of the queue has waited",
        value: |stats, _| age(stats.oldest_pending),
    },
    GaugeKind {
        name: "tower_jobs_oldest_deferred_seconds",
        unit: Unit::Seconds,
        description: "Time since the longest deferred job was deferred",
        value: |stats, _| age(stats.oldest_deferred),
    },
];

/// A limit as a number; infinite without one.
fn bound(limit: Option<usize>) -> f64 {
    limit.map_or(f64::INFINITY, |limit| limit as f64)
}

fn age(oldest: Option<Duration>) -> f64 {
    oldest.unwrap_or_default().as_secs_f64()
}

impl SchedulerMetrics {
    pub(crate) fn new(scheduler: Option<Arc<str>>) -> Self {
        let scheduler = scheduler.unwrap_or_else(|| NO_NAME.into());
        Self { scheduler, handles: OnceLock::new(), names: Names::new() }
    }

    /// Sets all gauges.
    pub(crate) fn refresh(&self, stats: &Stats, settings: &Settings) {
        let handles = self.handles();
        for (gauge, kind) in handles.gauges.iter().zip(&GAUGES) {
            gauge.set((kind.value)(stats, settings));
        }
        handles.draining.set(if settings.is_draining { 1.0 } else { 0.0 });
    }

    #[inline]
    fn handles(&self) -> &Handles {
        // Not inside `get_or_init`, which blocks other threads meanwhile.
        if let Some(handles) = self.handles.get() { handles } else { self.make_handles() }
    }

    #[cold]
    fn make_handles(&self) -> &Handles {
        describe();
        let made = Handles::new(&self.label());
        self.handles.get_or_init(|| made)
    }

    #[inline]
    fn of_name(&self, name: &str) -> &NameHandles {
        let make = |name: &str| NameHandles::new(&self.label(), name);
        self.names.of(name, make, || {
            tracing::warn!(
                target: "tower_jobs",
                scheduler = &*self.scheduler,
                job.name = name,
                "more than {MAX_NAMES} names of jobs: the metrics count this and later ones as `other`"
            );
        })
    }

    fn label(&self) -> SharedString {
        SharedString::from_shared(self.scheduler.clone())
    }
}

impl Observer for SchedulerMetrics {
    fn accepted(&self, job: &JobSeen<'_>) {
        self.handles().accepted.increment(1);
        self.of_name(job.name());
    }

    fn started(&self, _: &JobSeen<'_>, queued: Duration) {
        self.handles().queue.record(queued);
    }

    fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
        let handles = self.of_name(job.name());
        handles.ended[end.outcome as usize].increment(1);
        if has_run(end) {
            handles.run.record(end.ran);
        }
    }

    fn refused(&self, reason: RefusalReason, _: &str) {
        self.handles().refused[reason as usize].increment(1);
    }

    fn draining(&self, _: Option<Instant>) {
        self.handles().draining.set(1.0);
    }
}

/// Whether the job has started. One that is cancelled within a nanosecond counts as unstarted.
fn has_run(end: &JobEnd<'_>) -> bool {
    match end.outcome {
        Outcome::NeverStarted | Outcome::Skipped => false,
        Outcome::Cancelled => end.ran > Duration::ZERO,
        _ => true,
    }
}

impl Handles {
    fn new(scheduler: &SharedString) -> Self {
        let scheduler = || scheduler.clone();
        Self {
            accepted: counter!(ACCEPTED, "scheduler" => scheduler()),
            refused: RefusalReason::ALL.map(
                |reason| counter!(REFUSED, "scheduler" => scheduler(), "reason" => reason.as_str()),
            ),
            queue: histogram!(QUEUE, "scheduler" => scheduler()),
            gauges: GAUGES.map(|kind| gauge!(kind.name, "scheduler" => scheduler())),
            draining: gauge!(DRAINING, "scheduler" => scheduler()),
        }
    }
}

impl NameHandles {
    fn new(scheduler: &SharedString, name: &str) -> Self {
        let name: SharedString = Arc::<str>::from(name).into();
        let labels = || (scheduler.clone(), name.clone());
        Self {
            ended: Outcome::ALL.map(|outcome| {
                let (scheduler, name) = labels();
                let outcome = outcome.as_str();
                counter!(ENDED, "scheduler" => scheduler, "name" => name, "outcome" => outcome)
            }),
            run: {
                let (scheduler, name) = labels();
                histogram!(RUN, "scheduler" => scheduler, "name" => name)
            },
        }
    }
}

fn describe() {
    metrics::describe_counter!(ACCEPTED, Unit::Count, "Jobs that were accepted");
    metrics::describe_counter!(ENDED, Unit::Count, "Jobs that have ended, by name and outcome");
    metrics::describe_counter!(REFUSED, Unit::Count, "Jobs that were refused, by reason");
    metrics::describe_histogram!(
        QUEUE,
        Unit::Seconds,
        "Time from a job's acceptance, or the end of its response, to its start"
    );
    metrics::describe_histogram!(RUN, Unit::Seconds, "Time from a job's start to its end, by name");
    metrics::describe_gauge!(
        DRAINING,
        Unit::Count,
        "1 once the shutdown of the scheduler has begun, else 0"
    );
    for kind in GAUGES {
        metrics::describe_gauge!(kind.name, kind.unit, kind.description);
    }
}

impl fmt::Debug for SchedulerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerMetrics")
            .field("scheduler", &self.scheduler)
            .finish_non_exhaustive()
    }
}
