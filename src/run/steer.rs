//! Steering a scheduler while it runs: limits, pausing, reservations, and single jobs by id.

use std::{
    collections::BTreeSet,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    job::{
        body::Work,
        error::{JobError, SpawnError},
        info::JobInfo,
        record::Record,
    },
    report::memory::Lookup,
    rules::{
        config::{self, ConfigError},
        line::Stamp,
        queue::steer::Reserve,
        state::{JobId, JobState, Outcome},
        step::Refusal,
    },
    run::{
        admission::observe_accepted,
        core::{Core, JobEffects, JobQueue},
    },
    util::clock::Moment,
};

/// Jobs that are cleared under one hold of the lock.
const JOBS_PER_LOCK: usize = 128;

impl Core {
    /// Takes one step of the queue, and applies its effects.
    fn steer(self: &Arc<Self>, step: impl FnOnce(&mut JobQueue, Moment) -> JobEffects) {
        let now = Moment::now();
        let effects = step(&mut self.queue(), now);
        self.apply(effects);
    }

    pub(crate) fn set_limit(self: &Arc<Self>, limit: Option<usize>) -> Result<(), ConfigError> {
        config::limit("limit", limit)?;
        self.steer(|queue, now| queue.set_limit(limit, now));
        Ok(())
    }

    pub(crate) fn set_pending_limit(self: &Arc<Self>, limit: Option<usize>) {
        self.steer(|queue, now| queue.set_pending_limit(limit, now));
    }

    pub(crate) fn set_limit_per_key(
        self: &Arc<Self>,
        limit: Option<usize>,
    ) -> Result<(), ConfigError> {
        config::limit("limit_per_key", limit)?;
        self.steer(|queue, now| queue.set_limit_per_key(limit, now));
        Ok(())
    }

    pub(crate) fn pause(self: &Arc<Self>) {
        self.steer(JobQueue::pause);
    }

    pub(crate) fn resume(self: &Arc<Self>) {
        self.steer(JobQueue::resume);
    }

    /// Ends the jobs that are pending now. Returns how many.
    pub(crate) fn clear(self: &Arc<Self>) -> usize {
        let by = self.queue().last_turn();
        let mut count = 0;
        loop {
            let (jobs, work) = self.queue().clear_pending(by, JOBS_PER_LOCK);
            if jobs.is_empty() {
                break;
            }
            count += jobs.len();
            let end = |work| self.drop_unstarted(work, Outcome::Cancelled, JobError::cancelled());
            work.into_iter().for_each(end);
            // Their places go to waiting spawners, and the queue may be idle.
            self.steer(JobQueue::go_on);
        }
        count
    }

    /// Finds an unfinished job. With a memory it is looked up, else looked for in bounded steps.
    pub(crate) fn find(&self, id: JobId) -> Option<Arc<Record>> {
        let known = self.memory.as_ref().and_then(|memory| memory.live(id));
        match known.map(|record| (self.state(&record), record)) {
            Some((JobState::Finished, _)) => None,
            Some((_, record)) => Some(record),
            None => self.find_among_all(id).map(|(record, _)| record),
        }
    }

    pub(crate) fn look_up(&self, id: JobId) -> Lookup {
        let live =
            |record: &Record, stamp| Lookup::Live(self.info_at(record, stamp, Moment::now()));
        if let Some(memory) = &self.memory {
            // It may be over, if its end is being recorded.
            if let Some(record) = memory.live(id) {
                return Lookup::Live(self.info(&record));
            }
            if let Some(ended) = memory.ended(id) {
                return Lookup::Ended(ended);
            }
        }
        match self.find_among_all(id) {
            Some((record, stamp)) => live(&record, Some(stamp)),
            None if id.is_of_this_process() => Lookup::Forgotten,
            None => Lookup::Unknown,
        }
    }

    fn find_among_all(&self, id: JobId) -> Option<(Arc<Record>, Stamp)> {
        if !id.is_of_this_process() {
            return None;
        }
        let mut found = None;
        self.for_each_job(|(record, stamp)| {
            if record.id() == id {
                found = Some((record, stamp));
            }
        });
        found
    }

    /// Lists up to `limit` jobs in this state, longest in it first, in bounded steps.
    pub(crate) fn longest(&self, state: JobState, limit: usize) -> Vec<JobInfo> {
        let now = Moment::now();
        let (mut infos, mut ids) = (Vec::new(), BTreeSet::new());
        let (mut after, mut last) = (Vec::new(), None);
        while infos.len() < limit {
            let most = JOBS_PER_LOCK.min(limit - infos.len());
            let page = self.queue().longest(state, &after, last, most);
            last = page.last().map(|(_, stamp)| *stamp).or(last);
            after = page.iter().map(|(record, _)| record.key()).collect();
            // Of a list that begins anew, some are known.
            let new = page.into_iter().filter(|(record, _)| ids.insert(record.id()));
            let before = infos.len();
            infos.extend(new.map(|(record, stamp)| self.info_at(&record, Some(stamp), now)));
            if infos.len() == before {
                break;
            }
        }
        infos
    }

    // Reservations.

    pub(crate) fn try_reserve(self: &Arc<Self>) -> Result<(), SpawnError> {
        self.bind_runtime()?;
        self.queue().try_reserve().map_err(Refusal::into_error)
    }

    /// Waits for a permit. `turn` is that of the reservation, once it waits.
    pub(crate) fn poll_reserve(
        self: &Arc<Self>,
        turn: &mut Option<Moment>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SpawnError>> {
        self.bind_runtime()?;
        let (mut waker, now) = (cx.waker().clone(), Moment::now());
        // A waker that the queue does not keep is dropped after unlocking.
        let taken = match *turn {
            None => {
                let reserved = self.queue().reserve(&mut waker, now);
                match reserved {
                    Ok(Reserve::Held) => Ok(()),
                    Ok(Reserve::Waits(waits)) => {
                        *turn = Some(waits);
                        return Poll::Pending;
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            Some(waits) => {
                let taken = self.queue().take_reserved(waits, &mut waker);
                let Some(taken) = taken else { return Poll::Pending };
                *turn = None;
                taken
            }
        };
        Poll::Ready(taken.map_err(Refusal::into_error))
    }

    pub(crate) fn cancel_reserve(self: &Arc<Self>, turn: Moment) {
        let now = Moment::now();
        let (effects, waker) = self.queue().cancel_reserve(turn, now);
        drop(waker);
        self.apply(effects);
    }

    pub(crate) fn give_back_permit(self: &Arc<Self>) {
        self.steer(JobQueue::give_back_permit);
    }

    /// Admits a job with a held permit. A refusal leaves the permit held.
    pub(crate) fn admit_reserved(
        self: &Arc<Self>,
        record: &Arc<Record>,
        work: &mut dyn FnMut() -> Work,
    ) -> Result<(), Refusal> {
        let admission = self.observers.begin_admission(record);
        let (meta, now) = (record.clone(), Moment::now());
        let admitted = self.queue().admit_reserved(meta, work, now);
        self.apply(admitted?);
        observe_accepted(admission, record);
        Ok(())
    }
}
