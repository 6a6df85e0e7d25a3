//! The runner: a task that polls one job after the other, each in a poll of its own.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    job::{
        error::JobError,
        harness::{ActiveJob, Ended},
    },
    rules::{
        state::Outcome,
        step::{Advance, Stealable, Wake},
    },
    run::{core::Core, idle_runners::ParkKey},
    util::clock::Moment,
};

/// ```text
///                        +-------------------- re-queued with its next job
///                        v                   |
/// requested ------> has a job ---- ended ----+
///    ^  |                                    |
///    |  +-- no job is ready -->  parked <----+ no job is ready, or enough others roll
///    |                            |   |
///    +-------- unparked ----------+   +-- shut down, or enough are parked --> done
/// ```
pub(crate) struct Runner {
    core: Arc<Core>,
    state: State,
    /// Where it parks. Its task keeps one place for its whole life.
    park_key: Option<ParkKey>,
    /// It has re-queued itself with this job, and the job has neither ended nor waited since.
    is_rolling: bool,
    /// The runners to wake before it polls the job: not as the last job ends, since a woken runner would
    /// come before the tasks that the job has woken.
    wake: Wake,
    /// The start of its job, if that is observed and has begun.
    started: Moment,
}

enum State {
    /// Woken, and not arrived.
    Requested(Stealable),
    HasJob(ActiveJob),
    Parked(ParkKey),
    Done,
}

impl Runner {
    pub(super) fn new(core: Arc<Core>, stealable: Stealable) -> Self {
        let state = State::Requested(stealable);
        Self {
            core,
            state,
            park_key: None,
            is_rolling: false,
            wake: Wake::None,
            started: Moment::NEVER,
        }
    }

    /// Returns the job it has, or takes one.
    #[inline(always)]
    fn take(&mut self, cx: &mut Context<'_>) -> Option<&mut ActiveJob> {
        self.core.wake(mem::replace(&mut self.wake, Wake::None));
        if !matches!(self.state, State::HasJob(_)) && !self.arrive(cx) {
            return None;
        }
        match &mut self.state {
            State::HasJob(job) => {
                if !self.core.observers.is_empty() && job.begins() && job.record().is_observed() {
                    self.started = self.core.observers.started(job.record());
                }
                Some(job)
            }
            _ => None,
        }
    }

    /// Takes the first ready job. Returns whether this poll may begin it.
    fn arrive(&mut self, cx: &mut Context<'_>) -> bool {
        let requested = match self.state {
            State::Parked(key) => match self.core.idle_runners.0.take_request(key) {
                Some(stealable) => Some(stealable),
                // A waker of an earlier job may wake a parked runner.
                None if self.core.idle_runners.0.is_over(key) => None,
                None => return false,
            },
            State::Requested(stealable) => Some(stealable),
            State::HasJob(_) | State::Done => None,
        };
        self.state = State::Done;
        let Some(stealable) = requested else { return false };
        let (work, wake) = self.core.queue().runner_arrived(stealable);
        let job = work.map(ActiveJob::new);
        let yields_first = job.as_ref().is_some_and(|job| job.record().yields_first());
        let has_job = job.is_some();
        self.state = job.map_or(State::Done, State::HasJob);
        self.core.wake(wake);
        if !has_job {
            self.park(cx);
        }
        if yields_first {
            cx.waker().wake_by_ref();
        }
        has_job && !yields_first
    }

    /// Ends its job, and takes the next one in the same step of the queue.
    #[inline(always)]
    fn advance(&mut self, ended: Ended, cx: &mut Context<'_>) {
        let State::HasJob(mut job) = mem::replace(&mut self.state, State::Done) else { return };
        let Ended { outcome, unobserved } = ended;
        let observed = job.record().is_observed();
        let mut held_back = None;
        match unobserved {
            // Observers see the error first, once the queue has counted the end.
            Some(error) if observed => held_back = Some(error),
            Some(error) => self.core.report_job(&mut job, error),
            None => {}
        }
        let (key, was_rolling, now) = (job.record().key(), self.is_rolling, Moment::now());
        let step = self.core.queue().advance(key, outcome, was_rolling, now);
        let Advance { wake, rare, ended, next } = step;
        // Before any waker, which is user code: the next job and the other runners.
        self.is_rolling = next.is_some();
        if let Some(work) = next {
            self.state = State::HasJob(ActiveJob::new(work));
            self.wake = wake;
        } else {
            self.core.wake(wake);
        }
        if observed {
            let counted = ended.is_some().then_some((Some(self.started), now));
            self.core.observe_end(&mut job, outcome, counted, held_back);
        }
        let (record, surroundings) = job.into_parts();
        if let Some(surroundings) = surroundings {
            self.core.end_span(surroundings, &record, ended.is_some().then_some(outcome));
        }
        drop(ended);
        self.core.publish(&record);
        self.core.apply_rest(wake, rare);
        if self.is_rolling {
            // To the end of the queue: the tasks that the job has woken come first.
            cx.waker().wake_by_ref();
        } else {
            self.park(cx);
        }
    }

    /// Parks, unless enough others are parked. The last act of a poll.
    fn park(&mut self, cx: &Context<'_>) {
        let idle = &self.core.idle_runners.0;
        self.park_key = self.park_key.or_else(|| idle.join(cx.waker()));
        let parked = self.park_key.filter(|key| idle.park(*key, self.core.threads()));
        self.state = parked.map_or(State::Done, State::Parked);
    }
}

impl Future for Runner {
    type Output = ();

    /// Takes a job, polls it once, and advances if it has ended.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let close_timeout = this.core.config.close_timeout;
        if let Some(job) = this.take(cx) {
            match job.poll(close_timeout, cx) {
                Poll::Ready(ended) => this.advance(ended, cx),
                Poll::Pending if mem::take(&mut this.is_rolling) => {
                    let wake = this.core.queue().rolling_runner_waits();
                    this.core.wake(wake);
                }
                Poll::Pending => {}
            }
        }
        if matches!(this.state, State::Done) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Runner {
    /// Closes the scheduler, unless the runner is done: only a runtime that goes away drops it before,
    /// and no job can run there any more.
    fn drop(&mut self) {
        if let Some(key) = self.park_key {
            self.core.idle_runners.0.leave(key);
        }
        let job = match mem::replace(&mut self.state, State::Done) {
            State::Done => return,
            State::Requested(_) => None,
            State::Parked(_) => None,
            State::HasJob(job) => Some(job),
        };
        self.core.close_now();
        if let Some(job) = job {
            let started = job.has_begun().then_some(self.started);
            self.core.end_lost(job, started);
        }
        // No runner arrives any more for the other ready jobs.
        loop {
            let ready = self.core.queue().pop_ready();
            let Some(work) = ready else { break };
            self.core.end_lost(ActiveJob::new(work), None);
        }
    }
}

impl Core {
    /// Ends an active job whose runtime is gone. An observed one started at that moment, if it did.
    fn end_lost(self: &Arc<Self>, mut job: ActiveJob, started: Option<Moment>) {
        let ended = job.poll_blocking_once(self.config.close_timeout);
        let Ended { outcome, unobserved } = ended.unwrap_or_else(|| job.drop_active());
        let (key, now) = (job.record().key(), Moment::now());
        let (effects, meta, _work) = self.queue().finish(key, outcome, now);
        let is_counted = meta.is_some();
        if job.record().is_observed() {
            let counted = is_counted.then_some((started, now));
            self.observe_end(&mut job, outcome, counted, unobserved);
        } else {
            self.report_unobserved_job(&mut job, unobserved);
        }
        let (record, surroundings) = job.into_parts();
        if let Some(surroundings) = surroundings {
            self.end_span(surroundings, &record, is_counted.then_some(outcome));
        }
        self.publish(&record);
        self.apply(effects);
    }

    /// Shows the end of an observed job, if the queue has counted it just now, with the moments of its start
    /// and its end. Then reports its failure, if its handle is gone.
    #[inline(never)]
    fn observe_end(
        &self,
        job: &mut ActiveJob,
        outcome: Outcome,
        counted: Option<(Option<Moment>, Moment)>,
        unobserved: Option<JobError>,
    ) {
        let record = job.record();
        if let Some((started, now)) = counted {
            self.observers.ended(record, outcome, unobserved.as_ref(), started, now);
        }
        // The handle may have gone while the failure was lent.
        let unobserved = unobserved.or_else(|| record.result().take_unobserved());
        self.report_unobserved_job(job, unobserved);
    }
}
