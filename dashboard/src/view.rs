//! From the state of a scheduler to the JSON that shows it.

use std::{collections::HashMap, time::Duration};

use tower_jobs::{JobInfo, JobKind, JobState, Phase};

use crate::{
    json::{
        AtDeadline, DrainView, FailuresView, Forecast, JobView, Jobs, LongestRunning, NamesView,
        OldestPending, SchedulerView, SeriesView,
    },
    state::State,
    text::{self, Search},
    watched::{Last, Watched, window},
};

/// When a running job counts as stuck.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stuck {
    /// It has run for longer than this,
    pub(crate) least: Duration,
    /// and longer than so many times the 95th percentile of its name.
    pub(crate) factor: u32,
}

/// Number of ends from which on a name's percentile is compared with.
const ENOUGH_ENDS: u64 = 5;
/// Number of the longest-running jobs that each event lists.
pub(crate) const LISTED: usize = 50;
/// Number of jobs that a search looks at.
pub(crate) const SEARCHED: usize = 10_000;

impl Stuck {
    fn is_stuck(self, ran: Duration, p95: Option<(Duration, u64)>) -> bool {
        let usual = p95.filter(|(_, ended)| *ended >= ENOUGH_ENDS);
        ran > self.least && usual.is_none_or(|(p95, _)| ran > p95.saturating_mul(self.factor))
    }
}

/// Estimates what becomes of a running job when the drain has `left` until its deadline.
fn forecast(job: &JobInfo, is_stuck: bool, p95: Option<Duration>, left: Duration) -> Forecast {
    let ran = job.state_for;
    let by_name = p95.filter(|p95| !is_stuck && *p95 > ran).map(|p95| p95 - ran);
    let by_timeout = job.timeout.map(|timeout| timeout.saturating_sub(ran));
    let need = [by_name, by_timeout].into_iter().flatten().min();
    // A job of unknown need that has run for half a minute is likely to go on.
    let ends = need.map_or(!is_stuck && ran < Duration::from_secs(30), |need| need <= left);
    let at_deadline = match job.kind {
        _ if ends => AtDeadline::Ends,
        JobKind::Cooperative => AtDeadline::Signalled,
        JobKind::Blocking => AtDeadline::Abandoned,
        _ => AtDeadline::Cut,
    };
    Forecast { need_s: need, at_deadline }
}

/// Reads one scheduler at one moment.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) watched: &'a Watched,
    pub(crate) last: Last,
    pub(crate) now: Duration,
    pub(crate) stuck: Stuck,
}

impl Reader<'_> {
    pub(crate) fn drain(&self) -> Option<DrainView> {
        if !matches!(self.last.phase, Phase::Announced | Phase::Draining) {
            return None;
        }
        let since_at = self.last.draining_since.unwrap_or(self.now);
        let deadline_at = self.last.deadline;
        let left_s = deadline_at.map(|deadline| deadline.saturating_sub(self.now));
        Some(DrainView { since_at, deadline_at, left_s })
    }

    fn longest(&self, state: JobState, limit: usize) -> Vec<JobInfo> {
        let scheduler = self.watched.scheduler();
        scheduler.map_or_else(Vec::new, |scheduler| scheduler.longest(state, limit))
    }

    fn total(&self, state: JobState) -> u64 {
        match state {
            JobState::Active => self.last.stats.active,
            JobState::Pending => self.last.stats.pending,
            JobState::Deferred => self.last.stats.deferred,
            _ => 0,
        }
    }

    /// The percentiles of these jobs' names.
    fn percentiles(&self, jobs: &[JobInfo]) -> HashMap<String, Option<(Duration, u64)>> {
        let state = self.watched.state();
        let mut percentiles = HashMap::new();
        for job in jobs {
            if !percentiles.contains_key(&*job.name) {
                let p95 = state.names.run_p95(&job.name, self.now.as_secs());
                percentiles.insert(job.name.clone().into_owned(), p95);
            }
        }
        percentiles
    }

    /// The page of jobs after the first `skip`, longest in this state first.
    pub(crate) fn jobs(&self, state: JobState, skip: usize, limit: usize, search: &Search) -> Jobs {
        let looked_at = if search.is_empty() { (skip + limit).min(SEARCHED) } else { SEARCHED };
        let found = self.longest(state, looked_at);
        let is_partial = !search.is_empty() && self.total(state) > SEARCHED as u64;
        let matching = |job: &JobInfo| {
            let optional = |text: &Option<std::sync::Arc<str>>| {
                text.as_ref().is_some_and(|text| search.finds(text))
            };
            search.finds(&job.name) || optional(&job.key) || optional(&job.request)
        };
        let mut page: Vec<_> = found.into_iter().filter(matching).skip(skip).collect();
        let has_more = if search.is_empty() {
            self.total(state) > (skip + page.len()) as u64 && skip + limit < SEARCHED
        } else {
            page.len() > limit
        };
        page.truncate(limit);
        let percentiles = self.percentiles(&page);
        let left = self.drain().map(|drain| drain.left_s.unwrap_or(Duration::MAX));
        let jobs = page.into_iter().map(|job| {
            let p95 = percentiles.get(&*job.name).copied().flatten();
            self.job(&job, p95, left.filter(|_| state == JobState::Active))
        });
        Jobs {
            total: self.total(state),
            next: has_more.then(|| (skip + limit).to_string()),
            partial: is_partial,
            jobs: jobs.collect(),
        }
    }

    fn job(&self, job: &JobInfo, p95: Option<(Duration, u64)>, left: Option<Duration>) -> JobView {
        let is_active = job.state == JobState::Active;
        let is_stuck = is_active && self.stuck.is_stuck(job.state_for, p95);
        let left_of_timeout = job.timeout.map(|timeout| match is_active {
            true => timeout.saturating_sub(job.state_for),
            false => timeout,
        });
        let cut = |text: &str| text::cut(text, text::NAME).into_owned();
        JobView {
            id: job.id.to_string(),
            name: cut(&job.name),
            key: job.key.as_deref().map(cut),
            request: job.request.as_deref().map(cut),
            location: text::shown(job.location, text::LOCATION),
            kind: job.kind,
            state: job.state,
            accepted_s: job.age,
            state_s: job.state_for,
            queued_s: job.queued,
            timeout_s: job.timeout,
            left_s: left_of_timeout,
            progress: job.progress,
            p95_s: p95.map(|(p95, _)| p95),
            stuck: is_stuck,
            forecast: left.map(|left| forecast(job, is_stuck, p95.map(|(p95, _)| p95), left)),
        }
    }

    pub(crate) fn overview(&self, running: &Jobs) -> SchedulerView {
        let (failed_15m, refused_15m) =
            self.watched.state().series.failed_and_refused(self.now.as_secs());
        let oldest = self.longest(JobState::Pending, 1).into_iter().next();
        let Last { phase, stats, settings, report, .. } = &self.last;
        SchedulerView {
            name: self.watched.name.clone(),
            state: *phase,
            settings: settings.clone(),
            gauges: stats.into(),
            oldest_pending: oldest.map(|job| OldestPending {
                wait_s: job.state_for,
                id: job.id.to_string(),
                name: text::cut(&job.name, text::NAME).into_owned(),
            }),
            longest_running: running.jobs.first().map(|job| LongestRunning {
                running_s: job.state_s,
                id: job.id.clone(),
                name: job.name.clone(),
                stuck: job.stuck,
            }),
            stuck: running.jobs.iter().filter(|job| job.stuck).count(),
            failed_15m,
            refused_15m,
            totals: stats.into(),
            refused: stats.into(),
            drain: self.drain(),
            report: report.clone(),
        }
    }

    /// The 50 longest-running jobs.
    pub(crate) fn running(&self) -> Jobs {
        self.jobs(JobState::Active, 0, LISTED, &Search::default())
    }

    pub(crate) fn failures(&self, limit: usize, search: &Search) -> FailuresView {
        let state = self.watched.state();
        let groups = state.failures.latest_first();
        FailuresView {
            kept: groups.len(),
            dropped_groups: state.failures.dropped_groups(),
            groups: groups
                .into_iter()
                .filter(|group| group.matches(search))
                .take(limit)
                .cloned()
                .collect(),
        }
    }

    pub(crate) fn names(&self) -> NamesView {
        let state = self.watched.state();
        let second = self.now.as_secs();
        let names = state.names.view(second).map(Into::into).collect();
        NamesView { window_s: window(&state, second), names }
    }

    pub(crate) fn series(&self, step: u64) -> SeriesView {
        let state = self.watched.state();
        let State { series, marks, .. } = &*state;
        SeriesView { columns: series.columns(self.now.as_secs(), step), marks: marks.clone() }
    }
}
