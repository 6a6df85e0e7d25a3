//! The types of the JSON API, version 1. `API.md` describes them.

use std::time::Duration;

use serde::Serialize;
use tower_jobs::{DrainReport, Outcome, Phase, Scheduler, Stats};

use crate::{
    clock::{as_moment, as_seconds, as_some_moment, as_some_seconds, seconds},
    state::{
        Mark,
        failures::Group,
        histogram::Quantiles,
        names::{MINUTES, NameView},
        series::{Columns, Point},
    },
    text,
};

/// The version in each body.
pub(crate) const VERSION: u32 = 1;
/// Number of lost jobs that a report names.
const LOST: usize = 50;

#[derive(Debug, Serialize)]
pub(crate) struct Failed<'a> {
    pub(crate) v: u32,
    pub(crate) error: &'a str,
}

#[derive(Debug, Serialize)]
pub(crate) struct Overview<'a> {
    pub(crate) v: u32,
    #[serde(serialize_with = "as_moment")]
    pub(crate) now_at: Duration,
    pub(crate) process: &'a Process,
    pub(crate) schedulers: Vec<SchedulerView>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Process {
    pub(crate) app: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) pid: u32,
    #[serde(serialize_with = "as_moment")]
    pub(crate) started_at: Duration,
    pub(crate) crate_version: &'static str,
    /// Whether the routes of section 10 exist.
    pub(crate) actions: bool,
    pub(crate) stuck_after_s: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) limit: Option<usize>,
    pending_limit: Option<usize>,
    deferred_limit: Option<usize>,
    limit_per_key: Option<usize>,
    #[serde(serialize_with = "as_seconds")]
    wait_timeout_s: Duration,
    #[serde(serialize_with = "as_seconds")]
    close_timeout_s: Duration,
    paused: bool,
}

impl Settings {
    pub(crate) fn of(scheduler: &Scheduler) -> Self {
        Self {
            limit: scheduler.limit(),
            pending_limit: scheduler.pending_limit(),
            deferred_limit: scheduler.deferred_limit(),
            limit_per_key: scheduler.limit_per_key(),
            wait_timeout_s: scheduler.wait_timeout(),
            close_timeout_s: scheduler.close_timeout(),
            paused: scheduler.is_paused(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct SchedulerView {
    pub(crate) name: String,
    pub(crate) state: Phase,
    pub(crate) settings: Settings,
    pub(crate) gauges: GaugesView,
    pub(crate) oldest_pending: Option<OldestPending>,
    pub(crate) longest_running: Option<LongestRunning>,
    pub(crate) stuck: usize,
    pub(crate) failed_15m: u64,
    pub(crate) refused_15m: u64,
    pub(crate) totals: Totals,
    pub(crate) refused: RefusedView,
    pub(crate) drain: Option<DrainView>,
    pub(crate) report: Option<std::sync::Arc<Report>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct GaugesView {
    running: u64,
    outside_limit: u64,
    pending: u64,
    deferred: u64,
    waiting_callers: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct OldestPending {
    #[serde(serialize_with = "as_seconds")]
    pub(crate) wait_s: Duration,
    pub(crate) id: String,
    pub(crate) name: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct LongestRunning {
    #[serde(serialize_with = "as_seconds")]
    pub(crate) running_s: Duration,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) stuck: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Totals {
    accepted: u64,
    completed: u64,
    failed: u64,
    panicked: u64,
    timed_out: u64,
    cancelled: u64,
    skipped: u64,
    never_started: u64,
    abandoned: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct RefusedView {
    pending_full: u64,
    deferred_full: u64,
    timed_out: u64,
    closed: u64,
    no_runtime: u64,
    duplicate: u64,
    dropped: u64,
}

impl From<&Stats> for GaugesView {
    fn from(stats: &Stats) -> Self {
        Self {
            running: stats.active.saturating_sub(stats.outside_limit),
            outside_limit: stats.outside_limit,
            pending: stats.pending,
            deferred: stats.deferred,
            waiting_callers: stats.waiting_spawners,
        }
    }
}

impl From<&Stats> for Totals {
    fn from(stats: &Stats) -> Self {
        Self {
            accepted: stats.accepted,
            completed: stats.completed,
            failed: stats.failed,
            panicked: stats.panicked,
            timed_out: stats.timed_out,
            cancelled: stats.cancelled,
            skipped: stats.skipped,
            never_started: stats.never_started,
            abandoned: stats.abandoned,
        }
    }
}

impl From<&Stats> for RefusedView {
    fn from(stats: &Stats) -> Self {
        let refused = &stats.refused;
        Self {
            pending_full: refused.pending_full,
            deferred_full: refused.deferred_full,
            timed_out: refused.timed_out,
            closed: refused.closed,
            no_runtime: refused.no_runtime,
            duplicate: refused.duplicate,
            dropped: refused.dropped,
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct DrainView {
    #[serde(serialize_with = "as_moment")]
    pub(crate) since_at: Duration,
    #[serde(serialize_with = "as_some_moment")]
    pub(crate) deadline_at: Option<Duration>,
    #[serde(serialize_with = "as_some_seconds")]
    pub(crate) left_s: Option<Duration>,
}

/// A `DrainReport` as counts, with the first lost jobs.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(serialize_with = "as_moment")]
    closed_at: Duration,
    #[serde(serialize_with = "as_seconds")]
    elapsed_s: Duration,
    completed: u64,
    skipped: u64,
    failed: usize,
    panicked: usize,
    timed_out: usize,
    cancelled: usize,
    never_started: usize,
    abandoned: usize,
    lost: Vec<LostJob>,
}

#[derive(Debug, Serialize)]
struct LostJob {
    id: String,
    name: String,
    request: Option<String>,
    outcome: Outcome,
}

impl Report {
    pub(crate) fn new(report: &DrainReport, closed_at: Duration) -> Self {
        let lists = [
            (Outcome::Abandoned, &report.abandoned),
            (Outcome::Cancelled, &report.cancelled),
            (Outcome::NeverStarted, &report.never_started),
        ];
        let jobs = lists.into_iter().flat_map(|(outcome, jobs)| {
            jobs.first_infos(LOST).into_iter().map(move |job| (outcome, job))
        });
        let lost = jobs.take(LOST).map(|(outcome, job)| LostJob {
            id: job.id.to_string(),
            name: text::cut(&job.name, text::NAME).into_owned(),
            request: job.request.map(|request| text::cut(&request, text::NAME).into_owned()),
            outcome,
        });
        Self {
            closed_at,
            elapsed_s: report.elapsed,
            completed: report.completed,
            skipped: report.skipped,
            failed: report.failed.len(),
            panicked: report.panicked.len(),
            timed_out: report.timed_out.len(),
            cancelled: report.cancelled.len(),
            never_started: report.never_started.len(),
            abandoned: report.abandoned.len(),
            lost: lost.collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Jobs {
    pub(crate) total: u64,
    pub(crate) next: Option<String>,
    pub(crate) partial: bool,
    pub(crate) jobs: Vec<JobView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct JobView {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) key: Option<String>,
    pub(crate) request: Option<String>,
    pub(crate) location: String,
    pub(crate) kind: tower_jobs::JobKind,
    pub(crate) state: tower_jobs::JobState,
    #[serde(serialize_with = "as_seconds")]
    pub(crate) accepted_s: Duration,
    #[serde(serialize_with = "as_seconds")]
    pub(crate) state_s: Duration,
    #[serde(serialize_with = "as_some_seconds")]
    pub(crate) queued_s: Option<Duration>,
    #[serde(serialize_with = "as_some_seconds")]
    pub(crate) timeout_s: Option<Duration>,
    #[serde(serialize_with = "as_some_seconds")]
    pub(crate) left_s: Option<Duration>,
    pub(crate) progress: Option<f32>,
    #[serde(serialize_with = "as_some_seconds")]
    pub(crate) p95_s: Option<Duration>,
    pub(crate) stuck: bool,
    pub(crate) forecast: Option<Forecast>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Forecast {
    #[serde(serialize_with = "as_some_seconds")]
    pub(crate) need_s: Option<Duration>,
    pub(crate) at_deadline: AtDeadline,
}

/// The fate of a running job at the deadline of the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AtDeadline {
    Ends,
    Cut,
    Signalled,
    Abandoned,
}

#[derive(Debug, Serialize)]
pub(crate) struct FailuresView {
    pub(crate) kept: usize,
    pub(crate) dropped_groups: u64,
    pub(crate) groups: Vec<Group>,
}

#[derive(Debug, Serialize)]
pub(crate) struct NamesView {
    pub(crate) window_s: u64,
    pub(crate) names: Vec<NameRow>,
}

#[derive(Debug, Serialize)]
pub(crate) struct NameRow {
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    other: bool,
    running: u64,
    pending: u64,
    ended: u64,
    failed: u64,
    queue_s: QuantilesView,
    run_s: QuantilesView,
    per_min: [u32; MINUTES],
    failed_per_min: [u32; MINUTES],
}

#[derive(Debug, Default, Serialize)]
struct QuantilesView {
    p50: Option<f64>,
    p95: Option<f64>,
    max: Option<f64>,
}

impl From<Option<Quantiles>> for QuantilesView {
    fn from(quantiles: Option<Quantiles>) -> Self {
        let of = |pick: fn(Quantiles) -> Duration| quantiles.map(pick).map(seconds);
        Self { p50: of(|all| all.p50), p95: of(|all| all.p95), max: of(|all| all.max) }
    }
}

impl From<NameView<'_>> for NameRow {
    fn from(row: NameView<'_>) -> Self {
        Self {
            name: row.name.to_owned(),
            other: row.is_other,
            running: row.running,
            pending: row.pending,
            ended: row.ended,
            failed: row.failed,
            queue_s: row.queue.into(),
            run_s: row.run.into(),
            per_min: row.per_minute,
            failed_per_min: row.failed_per_minute,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct SeriesView {
    #[serde(flatten)]
    pub(crate) columns: Columns,
    pub(crate) marks: Vec<Mark>,
}

/// A body of one scheduler: the version, the time and the scheduler, beside the fields of `T`.
#[derive(Debug, Serialize)]
pub(crate) struct Body<'a, T> {
    pub(crate) v: u32,
    #[serde(serialize_with = "as_moment")]
    pub(crate) now_at: Duration,
    pub(crate) scheduler: &'a str,
    #[serde(flatten)]
    pub(crate) data: T,
}

/// An event: all schedulers, with those parts that it has.
#[derive(Debug, Serialize)]
pub(crate) struct Event<'a> {
    pub(crate) v: u32,
    #[serde(serialize_with = "as_moment")]
    pub(crate) now_at: Duration,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overview: Option<Overview<'a>>,
    pub(crate) schedulers: Vec<Part<'a>>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Part<'a> {
    pub(crate) name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) series: Option<SeriesView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) names: Option<NamesView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failures: Option<FailuresView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jobs: Option<Jobs>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) points: Vec<Point>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drain: Option<DrainView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) report: Option<std::sync::Arc<Report>>,
}
