//! The jobs of a scheduler by id, and the last ones that ended.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    job::{info::JobInfo, record::Record},
    report::observer::{JobEnd, JobSeen, Observer},
    rules::state::{JobId, Outcome},
    util::{
        clock::Moment,
        one_line::chain,
        sync::{Mutex, lock},
    },
};

/// The answer to [`Scheduler::get`](crate::Scheduler::get).
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Lookup {
    /// The job has not ended, or its end is being recorded.
    Live(JobInfo),
    /// The job has ended, and is among the last that are
    /// [remembered](crate::SchedulerBuilder::remember).
    Ended(EndedJob),
    /// A job of this process, which is no longer known. It may have been a job of another scheduler.
    Forgotten,
    /// No job of this process has had this id: it is of another process, as of one before a restart.
    Unknown,
}

/// A job that has ended, as it is remembered.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct EndedJob {
    /// The job, at its end.
    pub job: JobInfo,
    /// How it ended.
    pub outcome: Outcome,
    /// Its error and the causes of that, in one line, if it failed.
    pub error: Option<String>,
    /// Time for which it was queued.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::job::info::serialize_seconds"))]
    pub queued: Duration,
    /// Time for which it ran.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::job::info::serialize_seconds"))]
    pub ran: Duration,
    /// Time since it ended.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::job::info::serialize_seconds"))]
    pub ago: Duration,
}

/// Remembers all live jobs, and the last `most` that ended.
pub(crate) struct Memory {
    most: usize,
    /// The scheduler's run timeout of jobs without one.
    job_timeout: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` for a job whose end came before its acceptance was seen.
    live: HashMap<JobId, Option<Arc<Record>>>,
    ended: HashMap<JobId, (EndedJob, Instant)>,
    order: VecDeque<JobId>,
}

impl Memory {
    pub(crate) fn new(most: usize, job_timeout: Option<Duration>) -> Self {
        Self { most, job_timeout, state: Mutex::new(State::default()) }
    }

    pub(crate) fn live(&self, id: JobId) -> Option<Arc<Record>> {
        lock(&self.state).live.get(&id).cloned().flatten()
    }

    pub(crate) fn ended(&self, id: JobId) -> Option<EndedJob> {
        let found = lock(&self.state).ended.get(&id).cloned();
        found.map(|(job, at)| EndedJob { ago: at.elapsed(), ..job })
    }
}

impl Observer for Memory {
    fn accepted(&self, job: &JobSeen<'_>) {
        let mut state = lock(&self.state);
        match state.live.remove(&job.id()) {
            // It has ended already.
            Some(None) => {}
            _ => {
                state.live.insert(job.id(), Some(job.record.clone()));
            }
        }
    }

    fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
        // The error is user code, so it is shown before locking.
        let error = end.error.map(|error| chain(error));
        let info = job.record.info(None, Moment::now(), self.job_timeout);
        let JobEnd { outcome, queued, ran, .. } = *end;
        let ended = EndedJob { job: info, outcome, error, queued, ran, ago: Duration::ZERO };
        let mut state = lock(&self.state);
        let was_live = state.live.remove(&job.id());
        if was_live.is_none() {
            state.live.insert(job.id(), None);
        }
        state.order.push_back(job.id());
        state.ended.insert(job.id(), (ended, Instant::now()));
        let forgotten = if state.order.len() > self.most { state.order.pop_front() } else { None };
        let dropped = forgotten.and_then(|id| state.ended.remove(&id));
        drop(state);
        drop((was_live, dropped));
    }
}
