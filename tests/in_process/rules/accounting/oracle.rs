//! The oracle: lists of jobs, scanned again and again until no rule applies.

use std::{mem, time::Duration};

use tower_jobs::{Outcome, Stats};

use super::plan::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// Not accepted yet.
    Outside,
    Pending,
    Active,
    Ended(Outcome),
    Refused,
}

/// The holder of a job, or of its future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Gone,
    Spawner { deadline: Option<u64> },
    Handle { waits: bool },
    Closer { deadline: u64 },
    Shield,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Ends(End),
    Stops,
    Overdue,
    RanTooLong,
}

pub(super) struct Expected {
    pub(super) plan: Plan,
    pub(super) at: Where,
    pub(super) holder: Holder,
    /// Its end in its next poll.
    pub(super) fate: Option<Fate>,
    pub(super) deadline: Option<u64>,
    pub(super) since: u64,
    /// The result for its holder.
    pub(super) result: Option<Seen>,
    pub(super) failed: bool,
    pub(super) started: bool,
}

pub(super) struct ExpectedDrain {
    pub(super) stage: u8,
    pub(super) deadline: u64,
    /// The deadline of stage 0.
    pub(super) first: u64,
}

impl ExpectedDrain {
    pub(super) fn new(first: u64) -> Self {
        Self { stage: 0, deadline: first, first }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Open,
    Announced,
    Draining,
    Closed,
}

pub(super) struct Oracle {
    pub(super) limit: usize,
    pub(super) pending_limit: usize,
    pub(super) close_timeout: u64,
    pub(super) now: u64,
    pub(super) phase: Phase,
    pub(super) jobs: Vec<Expected>,
    pub(super) pending: Vec<usize>,
    pub(super) active: Vec<usize>,
    /// Spawners that wait for a place.
    pub(super) line: Vec<usize>,
    /// Spawners that have a place to use.
    pub(super) granted: Vec<usize>,
    pub(super) starts: Vec<usize>,
    /// The expected calls of `on_failure`.
    pub(super) reported: Vec<(usize, Seen)>,
    pub(super) accepted: u64,
    pub(super) ended: Vec<(usize, Outcome)>,
    /// How many had ended when the drain began.
    pub(super) ended_before_drain: usize,
    pub(super) drain_began: Option<u64>,
    pub(super) close_deadline: Option<u64>,
    pub(super) drains: Vec<Option<ExpectedDrain>>,
    /// Drains whose callers were dropped. A task carries them through.
    pub(super) carried: Vec<ExpectedDrain>,
}

impl Oracle {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            limit: setup.limit.unwrap_or(usize::MAX),
            pending_limit: setup.pending_limit.unwrap_or(usize::MAX),
            close_timeout: setup.close_timeout,
            now: 0,
            phase: Phase::Open,
            jobs: Vec::new(),
            pending: Vec::new(),
            active: Vec::new(),
            line: Vec::new(),
            granted: Vec::new(),
            starts: Vec::new(),
            reported: Vec::new(),
            accepted: 0,
            ended: Vec::new(),
            ended_before_drain: 0,
            drain_began: None,
            close_deadline: None,
            drains: Vec::new(),
            carried: Vec::new(),
        }
    }

    pub(super) fn limited(&self) -> usize {
        self.active.iter().filter(|job| self.jobs[**job].plan.verb != Verb::Shield).count()
    }

    pub(super) fn has_place(&self) -> bool {
        let running = self.limited() + self.granted.len();
        let held = running + self.pending.len();
        let has_room = |places: usize| held < places;
        running < self.limit || self.limit.checked_add(self.pending_limit).is_none_or(has_room)
    }

    pub(super) fn is_idle(&self) -> bool {
        let spawners = self.line.len() + self.granted.len();
        self.active.is_empty()
            && self.pending.is_empty()
            && (spawners == 0 || self.phase == Phase::Closed)
    }

    /// Offers a job. Unless it is refused at once, it has a holder.
    pub(super) fn offer(&mut self, plan: Plan) -> Seen {
        let job = self.jobs.len();
        self.jobs.push(Expected {
            plan,
            at: Where::Outside,
            holder: Holder::Gone,
            fate: None,
            deadline: None,
            since: 0,
            result: None,
            failed: false,
            started: false,
        });
        let refusal = match plan.verb {
            _ if self.phase == Phase::Closed => match plan.verb {
                Verb::Shield => Seen::Cancelled,
                _ => Seen::Closed,
            },
            Verb::Shield => {
                self.accept(job);
                self.jobs[job].holder = Holder::Shield;
                return Seen::Waiting;
            }
            _ if self.has_place() => {
                self.accept(job);
                return Seen::Accepted;
            }
            Verb::TrySpawn => Seen::Full,
            _ if self.pending_limit == 0 => Seen::Full,
            Verb::SpawnTimeout(0) => Seen::TimedOut,
            verb => {
                let deadline = match verb {
                    Verb::SpawnTimeout(seconds) => Some(self.now + spawn_within(seconds)),
                    _ => None,
                };
                self.jobs[job].holder = Holder::Spawner { deadline };
                self.line.push(job);
                return Seen::Waiting;
            }
        };
        self.jobs[job].at = Where::Refused;
        refusal
    }

    pub(super) fn accept(&mut self, job: usize) {
        self.accepted += 1;
        self.jobs[job].holder = Holder::Handle { waits: false };
        if self.jobs[job].plan.verb == Verb::Shield {
            self.start(job);
        } else {
            self.jobs[job].at = Where::Pending;
            self.jobs[job].since = self.now;
            self.pending.push(job);
        }
        self.settle();
    }

    pub(super) fn start(&mut self, job: usize) {
        let expected = &mut self.jobs[job];
        expected.at = Where::Active;
        expected.started = true;
        expected.since = self.now;
        expected.deadline =
            expected.plan.run_timeout.map(|timeout| self.now + run_timeout(timeout));
        expected.fate = expected.plan.at_once.map(Fate::Ends);
        self.active.push(job);
        self.starts.push(job);
    }

    /// Applies the rules until none applies, while the clock stands still.
    pub(super) fn settle(&mut self) {
        loop {
            if self.phase == Phase::Draining && self.is_idle() {
                self.phase = Phase::Closed;
            }
            let open = self.phase != Phase::Closed;
            let fated = self.active.iter().find(|job| self.jobs[**job].fate.is_some());
            if open && self.limited() < self.limit && !self.pending.is_empty() {
                let job = self.pending.remove(0);
                self.start(job);
            } else if open && !self.line.is_empty() && self.has_place() {
                self.granted.push(self.line.remove(0));
            } else if let Some(job) = fated {
                self.meet_fate(*job);
            } else {
                return;
            }
        }
    }

    pub(super) fn meet_fate(&mut self, job: usize) {
        let (outcome, result) = match self.jobs[job].fate {
            _ if self.jobs[job].plan.drop_panics => (Outcome::Panicked, Seen::Panicked),
            Some(Fate::Ends(End::Value)) => (Outcome::Completed, Seen::Value),
            Some(Fate::Ends(End::Error)) => (Outcome::Failed, Seen::Failed),
            Some(Fate::Ends(End::Panic)) => (Outcome::Panicked, Seen::Panicked),
            Some(Fate::Overdue) => (Outcome::TimedOut, Seen::Overdue),
            Some(Fate::RanTooLong) => (Outcome::TimedOut, Seen::RanTooLong),
            Some(Fate::Stops) | None => (Outcome::Cancelled, Seen::Cancelled),
        };
        self.end(job, outcome, result);
    }

    pub(super) fn end(&mut self, job: usize, outcome: Outcome, result: Seen) {
        self.active.retain(|other| *other != job);
        self.pending.retain(|other| *other != job);
        self.ended.push((job, outcome));
        let expected = &mut self.jobs[job];
        expected.at = Where::Ended(outcome);
        expected.result = Some(result);
        expected.failed = !matches!(result, Seen::Value | Seen::Cancelled);
        if expected.holder == Holder::Gone {
            self.forget(job);
        }
    }

    /// The holder is dropped. A failure that it did not get goes to `on_failure`.
    pub(super) fn forget(&mut self, job: usize) {
        let result = self.jobs[job].result.take();
        let failure = result.filter(|result| !matches!(result, Seen::Value | Seen::Cancelled));
        self.reported
            .extend(failure.filter(|result| *result != Seen::Taken).map(|result| (job, result)));
    }

    pub(super) fn drop_holder(&mut self, job: usize) {
        let holder = mem::replace(&mut self.jobs[job].holder, Holder::Gone);
        if let Holder::Spawner { .. } = holder {
            self.give_up(job);
        } else {
            self.forget(job);
        }
    }

    pub(super) fn give_up(&mut self, job: usize) {
        self.jobs[job].holder = Holder::Gone;
        self.jobs[job].at = Where::Refused;
        self.line.retain(|other| *other != job);
        self.granted.retain(|other| *other != job);
    }

    pub(super) fn poll(&mut self, job: usize) -> Seen {
        let ended = matches!(self.jobs[job].at, Where::Ended(_));
        match self.jobs[job].holder {
            Holder::Gone => unreachable!("a holder polls"),
            Holder::Spawner { deadline } => {
                let refusal = if self.phase == Phase::Closed {
                    Seen::Closed
                } else if self.granted.contains(&job) {
                    self.granted.retain(|other| *other != job);
                    self.accept(job);
                    return Seen::Accepted;
                } else if deadline.is_some_and(|deadline| self.now >= deadline) {
                    Seen::TimedOut
                } else {
                    return Seen::Waiting;
                };
                self.give_up(job);
                refusal
            }
            Holder::Handle { .. } => {
                self.jobs[job].holder = Holder::Handle { waits: !ended };
                if ended { self.take(job) } else { Seen::Waiting }
            }
            Holder::Shield => {
                if !ended {
                    return Seen::Waiting;
                }
                self.jobs[job].holder = Holder::Gone;
                self.take(job)
            }
            Holder::Closer { deadline } => {
                if !ended && self.now < deadline {
                    return Seen::Waiting;
                }
                self.jobs[job].holder = Holder::Handle { waits: false };
                if !ended {
                    self.abort(job);
                    return Seen::DidNotClose;
                }
                match self.jobs[job].result {
                    Some(Seen::Value | Seen::Cancelled | Seen::Taken) | None => Seen::JobClosed,
                    Some(_) => self.take(job),
                }
            }
        }
    }

    /// A value or a failure is given once. A cancellation is given every time.
    pub(super) fn take(&mut self, job: usize) -> Seen {
        let result = self.jobs[job].result.expect("it has ended");
        if result != Seen::Cancelled {
            self.jobs[job].result = Some(Seen::Taken);
        }
        result
    }

    pub(super) fn abort(&mut self, job: usize) {
        match self.jobs[job].at {
            // Whatever its drop does.
            Where::Pending => self.end(job, Outcome::Cancelled, Seen::Cancelled),
            Where::Active => self.jobs[job].fate = Some(Fate::Stops),
            _ => {}
        }
    }

    /// Cancels a running job. A job without a context is stopped.
    pub(super) fn tell(&mut self, job: usize) {
        self.jobs[job].fate = match self.jobs[job].plan {
            Plan { verb: Verb::SpawnWith, when_cancelled, .. } => when_cancelled.map(Fate::Ends),
            _ => Some(Fate::Stops),
        };
    }

    pub(super) fn close_job(&mut self, job: usize) -> Seen {
        self.jobs[job].holder = Holder::Closer { deadline: self.now + self.close_timeout };
        match self.jobs[job].at {
            Where::Active => self.tell(job),
            _ => self.abort(job),
        }
        self.poll(job)
    }

    pub(super) fn announce(&mut self) {
        self.drain_began.get_or_insert(self.now);
        if self.phase == Phase::Open {
            self.ended_before_drain = self.ended.len();
            self.phase = Phase::Announced;
        }
    }

    pub(super) fn begin_drain(&mut self) {
        self.announce();
        self.phase = self.phase.max(Phase::Draining);
        self.settle();
    }

    pub(super) fn close(&mut self) {
        self.announce();
        self.phase = Phase::Closed;
        self.close_deadline.get_or_insert(self.now + self.close_timeout);
        self.line.clear();
        for job in self.pending.clone() {
            self.end(job, Outcome::NeverStarted, Seen::Cancelled);
        }
        for job in self.active.clone() {
            self.tell(job);
        }
    }

    /// Whether the drain is over.
    pub(super) fn poll_drain(&mut self, at: usize) -> bool {
        let Some(mut drain) = self.drains[at].take() else { unreachable!("a drain that is there") };
        let is_over = self.carry_on(&mut drain);
        if !is_over {
            self.drains[at] = Some(drain);
        }
        is_over
    }

    /// Drops the caller of a drain. The drain begins again, with the same deadline.
    pub(super) fn drop_drain(&mut self, at: usize) {
        let drain = self.drains[at].take();
        self.carried.extend(drain.map(|drain| ExpectedDrain::new(drain.first)));
    }

    /// As [`settle`](Self::settle), with the drains that are carried through.
    pub(super) fn settle_all(&mut self) {
        loop {
            self.settle();
            let mut has_changed = false;
            for mut drain in mem::take(&mut self.carried) {
                let stage = drain.stage;
                if !self.carry_on(&mut drain) {
                    has_changed |= drain.stage > stage;
                    self.carried.push(drain);
                }
                self.settle();
            }
            if !has_changed {
                return;
            }
        }
    }

    /// Takes the stages of the drain that are due. Returns whether it is over.
    fn carry_on(&mut self, drain: &mut ExpectedDrain) -> bool {
        while drain.stage < 3 {
            if !self.is_idle() && self.now < drain.deadline {
                return false;
            }
            match drain.stage {
                0 => self.close(),
                1 if !self.is_idle() => {
                    for job in self.active.clone() {
                        // Only a job with a context can be late.
                        if self.jobs[job].plan.verb == Verb::SpawnWith {
                            self.jobs[job].fate = Some(Fate::Overdue);
                        }
                    }
                }
                _ => assert!(self.is_idle(), "all have had the time to be dropped"),
            }
            drain.deadline = match drain.stage {
                0 => self.close_deadline.expect("it is closing"),
                _ => self.now + LANDING,
            };
            drain.stage += 1;
        }
        true
    }

    pub(super) fn advance(&mut self, to: u64) {
        loop {
            let due = |job: &usize| Some((self.jobs[*job].deadline?, Some(*job)));
            let jobs = self.active.iter().filter_map(due);
            let drains = self.carried.iter().map(|drain| (drain.deadline, None));
            let Some((deadline, job)) = jobs.chain(drains).min() else { break };
            if deadline > to {
                break;
            }
            self.now = deadline;
            if let Some(job) = job {
                self.jobs[job].fate = Some(Fate::RanTooLong);
            }
            self.settle_all();
        }
        self.now = to;
    }

    pub(super) fn stats(&self) -> Stats {
        let of = |outcome| self.ended.iter().filter(|(_, other)| *other == outcome).count() as u64;
        let oldest = |jobs: &[usize]| {
            let since = jobs.iter().map(|job| self.jobs[*job].since).min();
            since.map(|since| Duration::from_millis(self.now - since))
        };
        let mut stats = Stats::default();
        stats.accepted = self.accepted;
        stats.pending = self.pending.len() as u64;
        stats.active = self.active.len() as u64;
        stats.completed = of(Outcome::Completed);
        stats.failed = of(Outcome::Failed);
        stats.panicked = of(Outcome::Panicked);
        stats.timed_out = of(Outcome::TimedOut);
        stats.cancelled = of(Outcome::Cancelled);
        stats.never_started = of(Outcome::NeverStarted);
        stats.abandoned = of(Outcome::Abandoned);
        stats.waiting_spawners = self.line.len() as u64;
        stats.granted = self.granted.len() as u64;
        stats.oldest_pending = oldest(&self.pending);
        stats.oldest_active = oldest(&self.active);
        stats
    }

    /// Whether a poll by the holder of the job would now give a result.
    pub(super) fn must_be_woken(&self, job: usize) -> bool {
        let ended = matches!(self.jobs[job].at, Where::Ended(_));
        match self.jobs[job].holder {
            Holder::Gone | Holder::Handle { waits: false } => false,
            Holder::Handle { waits: true } | Holder::Shield => ended,
            Holder::Closer { deadline } => ended || self.now >= deadline,
            Holder::Spawner { deadline } => {
                self.phase == Phase::Closed
                    || self.granted.contains(&job)
                    || deadline.is_some_and(|deadline| self.now >= deadline)
            }
        }
    }

    /// The jobs to which a step can be done, in order.
    pub(super) fn jobs_where(&self, test: impl Fn(&Expected) -> bool) -> Vec<usize> {
        (0..self.jobs.len()).filter(|job| test(&self.jobs[*job])).collect()
    }

    pub(super) fn open_drains(&self) -> Vec<usize> {
        (0..self.drains.len()).filter(|drain| self.drains[*drain].is_some()).collect()
    }
}
