//! One scheduler that the dashboard watches: its observer, and its last figures.

use std::{
    error::Error as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tower_jobs::{
    DrainReport, JobEnd, JobError, JobSeen, Observer, Outcome, Phase, RefusalReason, Scheduler,
    Stats, WeakScheduler,
};

use crate::{
    clock::Clock,
    json::{Report, Settings},
    state::{
        State,
        failures::{Failure, LastJob},
        names::{End, Names},
        series::Gauges,
    },
    text,
};

/// A scheduler, the state of its page, and its last figures, which outlive it.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) name: String,
    scheduler: WeakScheduler,
    clock: Arc<Clock>,
    changed: Arc<Notify>,
    state: Mutex<State>,
    last: Mutex<Last>,
}

/// The last figures of a scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    pub(crate) phase: Phase,
    pub(crate) stats: Stats,
    pub(crate) settings: Settings,
    pub(crate) deadline: Option<Duration>,
    pub(crate) draining_since: Option<Duration>,
    pub(crate) report: Option<Arc<Report>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a job with this outcome is listed as a failure.
pub(crate) fn is_failure(outcome: Outcome) -> bool {
    use Outcome::{Abandoned, Failed, Panicked, TimedOut};
    matches!(outcome, Failed | Panicked | TimedOut | Abandoned)
}

impl Watched {
    /// Begins to observe a scheduler.
    pub(crate) fn new(
        scheduler: &Scheduler,
        name: String,
        clock: &Arc<Clock>,
        changed: &Arc<Notify>,
    ) -> Arc<Self> {
        let last = Last {
            phase: scheduler.phase(),
            stats: scheduler.stats(),
            settings: Settings::of(scheduler),
            deadline: None,
            draining_since: None,
            report: None,
        };
        let watched = Arc::new(Self {
            name,
            scheduler: scheduler.downgrade(),
            clock: clock.clone(),
            changed: changed.clone(),
            state: Mutex::new(State::new(clock.now())),
            last: Mutex::new(last),
        });
        scheduler.observe(watched.clone());
        watched
    }

    pub(crate) fn scheduler(&self) -> Option<Scheduler> {
        self.scheduler.upgrade()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn last(&self) -> Last {
        lock(&self.last).clone()
    }

    /// Reads the scheduler's figures, if it is still there. A scheduler without handles stays as it was.
    pub(crate) fn refresh(&self) -> Last {
        if let Some(scheduler) = self.scheduler() {
            let (phase, stats) = (scheduler.phase(), scheduler.stats());
            let settings = Settings::of(&scheduler);
            let deadline = scheduler.deadline().map(|deadline| self.clock.of(deadline));
            let draining_since = scheduler.draining_since().map(|since| self.clock.of(since));
            let mut last = lock(&self.last);
            let report = last.report.take();
            *last = Last { phase, stats, settings, deadline, draining_since, report };
        }
        self.last()
    }

    /// Keeps the gauges of the second that has just ended.
    pub(crate) fn tick(&self, second: u64) {
        let last = self.refresh();
        self.state().series.sample(second, gauges(&last.stats));
    }

    fn add_failure(&self, job: &JobSeen<'_>, end: &JobEnd<'_>, may_format: bool, at: Duration) {
        // Boxes, since a `String` may have much room to spare.
        let error = match end.error {
            _ if !may_format => "more failures of this name in the same second".into(),
            Some(error) => error_text(error).into_boxed_str(),
            None => "its caller has the error".into(),
        };
        let cut = |text: &str| -> Box<str> { text::cut(text, text::NAME).into() };
        let failure = Failure {
            name: cut(job.name()),
            outcome: end.outcome,
            error,
            job: LastJob {
                id: job.id().to_string().into(),
                key: job.key().map(cut),
                request: job.request().map(cut),
                location: text::shown(job.location(), text::LOCATION).into(),
                queued: end.queued,
                ran: end.ran,
            },
        };
        self.state().failures.add(failure, at);
    }
}

/// The text of an error, without the words that repeat its outcome.
fn error_text(error: &JobError) -> String {
    match error.source() {
        Some(cause) if error.is_failed() => text::chain(cause, text::ERROR),
        _ => {
            let text = text::chain(error, text::ERROR);
            text.strip_prefix("the job panicked: ").map(str::to_owned).unwrap_or(text)
        }
    }
}

fn gauges(stats: &Stats) -> Gauges {
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let millis = |age: Duration| u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
    Gauges {
        running: count(stats.active.saturating_sub(stats.outside_limit)),
        pending: count(stats.pending),
        deferred: count(stats.deferred),
        waiting_callers: count(stats.waiting_spawners),
        oldest_pending_ms: stats.oldest_pending.map_or(0, millis),
    }
}

impl Observer for Watched {
    fn accepted(&self, job: &JobSeen<'_>) {
        self.state().names.accepted(job.name());
    }

    fn started(&self, job: &JobSeen<'_>, queued: Duration) {
        let second = self.clock.now().as_secs();
        let mut state = self.state();
        state.names.started(job.name(), second, queued);
        state.series.counts(second).started += 1;
    }

    fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
        let now = self.clock.now();
        let is_failure = is_failure(end.outcome);
        let mut state = self.state();
        let counted = End { has_started: end.has_started, is_failure, ran: end.ran };
        state.names.ended(job.name(), now.as_secs(), counted);
        let counts = state.series.counts(now.as_secs());
        counts.ended += 1;
        counts.failed += u32::from(is_failure);
        let may_format = is_failure && state.failures.may_format(now.as_secs());
        drop(state);
        if is_failure {
            self.add_failure(job, end, may_format, now);
        }
    }

    fn refused(&self, reason: RefusalReason, _: &str) {
        // A duplicate is the application's wish.
        if reason != RefusalReason::Duplicate {
            self.state().series.counts(self.clock.now().as_secs()).refused += 1;
        }
    }

    fn draining(&self, _: Option<Instant>) {
        self.state().mark("drain", self.clock.now());
        self.changed.notify_one();
    }

    fn closed(&self, report: &DrainReport) {
        let now = self.clock.now();
        let report = Arc::new(Report::new(report, now));
        self.state().mark("closed", now);
        lock(&self.last).report = Some(report);
        self.refresh();
        self.changed.notify_one();
    }
}

/// Length of the window of `names`, in seconds.
pub(crate) fn window(state: &State, second: u64) -> u64 {
    Names::window(second, state.first_second)
}
