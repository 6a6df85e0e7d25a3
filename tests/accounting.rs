//! The accounting law, the limits, the order and the reports: random histories against an oracle.
//!
//! A history is a list of steps. Each is done to a real scheduler, on a paused clock, and to an
//! oracle: lists of jobs, looked through again and again until nothing more can happen. After every
//! step all that can be seen of the two must agree. Every future that a user would hold (spawners,
//! handles, closers, drains) is polled by steps only, so it may be early, late, dropped or
//! forgotten; what could go on must have been woken.
#![allow(clippy::disallowed_types, reason = "threads are waited for in real time")]

use std::{
    env,
    error::Error,
    fmt,
    future::{Future, poll_fn},
    hash::{BuildHasher, RandomState},
    mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};
use tokio::time::{Instant, sleep_until};
use tokio_test::task;
use tower_jobs::{
    DrainReport, Job, JobContext, JobError, JobState, Outcome, Scheduler, SpawnError, Stats,
    TrySpawnError,
};

// What a history is made of.

/// How a job ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Value,
    Error,
    Panic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Spawn,
    SpawnWith,
    SpawnTimeout(u64),
    TrySpawn,
    Shield,
}

/// One job, as it will behave.
#[derive(Clone, Copy, Debug)]
struct Plan {
    verb: Verb,
    /// In seconds, as all times of a history.
    run_timeout: Option<u64>,
    /// Ends in its first poll.
    at_once: Option<End>,
    /// Ends when it is told to, if it is one of `spawn_with`.
    heeds: Option<End>,
    drop_panics: bool,
}

/// Numbers pick a job (or a drain) among those to which the step can be done.
#[derive(Clone, Copy, Debug)]
enum Step {
    Offer(Plan),
    /// A running job ends by itself.
    End(usize, End),
    /// A running job tries to spawn another as the last thing it does.
    SpawnAndEnd(usize, Plan),
    /// Whoever holds a job (its spawner, its handle, who shields or closes it) polls.
    Poll(usize),
    /// ... or goes away.
    Drop(usize),
    Abort(usize),
    CloseJob(usize),
    Drain(u64),
    Close,
    PollDrain(usize),
    DropDrain(usize),
    Announce,
    Advance(u64),
}

fn end() -> impl Strategy<Value = End> {
    prop::sample::select(vec![End::Value, End::Error, End::Panic])
}

fn plan() -> impl Strategy<Value = Plan> {
    let verb = prop_oneof![
        4 => Just(Verb::Spawn),
        3 => Just(Verb::SpawnWith),
        1 => (0..3_u64).prop_map(Verb::SpawnTimeout),
        3 => Just(Verb::TrySpawn),
        1 => Just(Verb::Shield),
    ];
    let one_in = |n| prop_oneof![n => Just(None), 1 => end().prop_map(Some)];
    let run_timeout = prop_oneof![4 => Just(None), 1 => (0..4_u64).prop_map(Some)];
    (verb, run_timeout, one_in(4), prop::option::of(end()), prop::bool::weighted(0.1)).prop_map(
        |(verb, run_timeout, at_once, heeds, drop_panics)| Plan {
            verb,
            run_timeout,
            at_once,
            heeds: heeds.filter(|_| verb == Verb::SpawnWith),
            drop_panics,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<u8>().prop_map(usize::from);
    prop_oneof![
        80 => plan().prop_map(Step::Offer),
        30 => (at.clone(), end()).prop_map(|(at, end)| Step::End(at, end)),
        6 => (at.clone(), plan()).prop_map(|(at, plan)| Step::SpawnAndEnd(at, plan)),
        40 => at.clone().prop_map(Step::Poll),
        16 => at.clone().prop_map(Step::Drop),
        8 => at.clone().prop_map(Step::Abort),
        12 => at.clone().prop_map(Step::CloseJob),
        2 => (0..4_u64).prop_map(Step::Drain),
        1 => Just(Step::Close),
        8 => at.clone().prop_map(Step::PollDrain),
        2 => at.prop_map(Step::DropDrain),
        1 => Just(Step::Announce),
        12 => (1..4_u64).prop_map(Step::Advance),
    ]
}

/// Milliseconds. Steps happen at whole seconds; each kind of deadline has a fraction of its own, so
/// that no two of different kinds fall together.
fn run_timeout(seconds: u64) -> u64 {
    seconds * 1000 + 1
}

fn drain_timeout(seconds: u64) -> u64 {
    seconds * 1000 + 200
}

fn spawn_within(seconds: u64) -> u64 {
    if seconds == 0 { 0 } else { seconds * 1000 + 600 }
}

const CLOSE_TIMEOUTS: [u64; 3] = [0, 400, 1400];
/// How long a close waits, after its deadline, for aborted futures to be dropped. Here they always
/// are: what may outlast that (a blocking thread) moves no paused clock.
const LANDING: u64 = 20;
/// Real time for threads to end.
const PLENTY: Duration = Duration::from_secs(30);

/// What polling a future gave, or how a failure was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Waiting,
    Accepted,
    Closed,
    Full,
    TimedOut,
    Value,
    Failed,
    Panicked,
    RanTooLong,
    /// The job outlived its close timeout: as its own failure.
    Overdue,
    Cancelled,
    /// Was given before.
    Taken,
    JobClosed,
    /// The job outlives its close timeout: as an answer to who closes it.
    DidNotClose,
}

// The oracle.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// Not accepted yet.
    Outside,
    Pending,
    Active,
    Ended(Outcome),
    Refused,
}

/// Who holds a job, or its future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    Spawner { deadline: Option<u64> },
    Handle { waits: bool },
    Closer { deadline: u64 },
    Shield,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Ends(End),
    Stops,
    Overdue,
    RanTooLong,
}

struct Expected {
    plan: Plan,
    at: Where,
    holder: Holder,
    /// What will end it as soon as it is polled.
    fate: Option<Fate>,
    deadline: Option<u64>,
    since: u64,
    /// What its holder will be given.
    result: Option<Seen>,
    failed: bool,
    started: bool,
}

struct ExpectedDrain {
    stage: u8,
    deadline: u64,
    /// The deadline of stage 0.
    first: u64,
}

impl ExpectedDrain {
    fn new(first: u64) -> Self {
        Self { stage: 0, deadline: first, first }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    Announced,
    Draining,
    Closed,
}

struct Oracle {
    limit: usize,
    pending_limit: usize,
    close_timeout: u64,
    now: u64,
    phase: Phase,
    jobs: Vec<Expected>,
    pending: Vec<usize>,
    active: Vec<usize>,
    /// Spawners that wait for a place, and those that have one to use.
    line: Vec<usize>,
    granted: Vec<usize>,
    starts: Vec<usize>,
    /// What `on_failure` hears in this step.
    told: Vec<(usize, Seen)>,
    accepted: u64,
    ended: Vec<(usize, Outcome)>,
    /// How many had ended when the drain began.
    ended_before_drain: usize,
    drain_began: Option<u64>,
    close_deadline: Option<u64>,
    drains: Vec<Option<ExpectedDrain>>,
    /// Drains whose callers were dropped. A task carries them through.
    carried: Vec<ExpectedDrain>,
}

impl Oracle {
    fn new(setup: &Setup) -> Self {
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
            told: Vec::new(),
            accepted: 0,
            ended: Vec::new(),
            ended_before_drain: 0,
            drain_began: None,
            close_deadline: None,
            drains: Vec::new(),
            carried: Vec::new(),
        }
    }

    fn limited(&self) -> usize {
        self.active.iter().filter(|job| self.jobs[**job].plan.verb != Verb::Shield).count()
    }

    fn has_place(&self) -> bool {
        let held = self.limited() + self.pending.len() + self.granted.len();
        self.limit.checked_add(self.pending_limit).is_none_or(|places| held < places)
    }

    fn is_idle(&self) -> bool {
        let spawners = self.line.len() + self.granted.len();
        self.active.is_empty()
            && self.pending.is_empty()
            && (spawners == 0 || self.phase == Phase::Closed)
    }

    /// A job is offered, and if it is not refused at once, somebody holds it.
    fn offer(&mut self, plan: Plan) -> Seen {
        let job = self.jobs.len();
        self.jobs.push(Expected {
            plan,
            at: Where::Outside,
            holder: Holder::Nobody,
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

    fn accept(&mut self, job: usize) {
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

    fn start(&mut self, job: usize) {
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

    /// Lets happen what happens by itself while the clock stands still.
    fn settle(&mut self) {
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

    fn meet_fate(&mut self, job: usize) {
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

    fn end(&mut self, job: usize, outcome: Outcome, result: Seen) {
        self.active.retain(|other| *other != job);
        self.pending.retain(|other| *other != job);
        self.ended.push((job, outcome));
        let expected = &mut self.jobs[job];
        expected.at = Where::Ended(outcome);
        expected.result = Some(result);
        expected.failed = !matches!(result, Seen::Value | Seen::Cancelled);
        if expected.holder == Holder::Nobody {
            self.forget(job);
        }
    }

    /// The holder has gone: `on_failure` hears what it was not told.
    fn forget(&mut self, job: usize) {
        let result = self.jobs[job].result.take();
        let failure = result.filter(|result| !matches!(result, Seen::Value | Seen::Cancelled));
        self.told
            .extend(failure.filter(|result| *result != Seen::Taken).map(|result| (job, result)));
    }

    fn drop_holder(&mut self, job: usize) {
        let holder = mem::replace(&mut self.jobs[job].holder, Holder::Nobody);
        if let Holder::Spawner { .. } = holder {
            self.give_up(job);
        } else {
            self.forget(job);
        }
    }

    fn give_up(&mut self, job: usize) {
        self.jobs[job].holder = Holder::Nobody;
        self.jobs[job].at = Where::Refused;
        self.line.retain(|other| *other != job);
        self.granted.retain(|other| *other != job);
    }

    fn poll(&mut self, job: usize) -> Seen {
        let ended = matches!(self.jobs[job].at, Where::Ended(_));
        match self.jobs[job].holder {
            Holder::Nobody => unreachable!("nobody polls"),
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
                self.jobs[job].holder = Holder::Nobody;
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

    /// A value or a failure is given once; that a job was cancelled is told every time.
    fn take(&mut self, job: usize) -> Seen {
        let result = self.jobs[job].result.expect("it has ended");
        if result != Seen::Cancelled {
            self.jobs[job].result = Some(Seen::Taken);
        }
        result
    }

    fn abort(&mut self, job: usize) {
        match self.jobs[job].at {
            Where::Pending => {
                let panics = self.jobs[job].plan.drop_panics;
                let result = if panics { Seen::Panicked } else { Seen::Cancelled };
                self.end(job, Outcome::Cancelled, result);
            }
            Where::Active => self.jobs[job].fate = Some(Fate::Stops),
            _ => {}
        }
    }

    /// Tells a running job to end: one that cannot hear it is stopped.
    fn tell(&mut self, job: usize) {
        self.jobs[job].fate = match self.jobs[job].plan {
            Plan { verb: Verb::SpawnWith, heeds, .. } => heeds.map(Fate::Ends),
            _ => Some(Fate::Stops),
        };
    }

    fn close_job(&mut self, job: usize) -> Seen {
        self.jobs[job].holder = Holder::Closer { deadline: self.now + self.close_timeout };
        match self.jobs[job].at {
            Where::Active => self.tell(job),
            _ => self.abort(job),
        }
        self.poll(job)
    }

    fn announce(&mut self) {
        self.drain_began.get_or_insert(self.now);
        if self.phase == Phase::Open {
            self.ended_before_drain = self.ended.len();
            self.phase = Phase::Announced;
        }
    }

    fn begin_drain(&mut self) {
        self.announce();
        self.phase = self.phase.max(Phase::Draining);
        self.settle();
    }

    fn close(&mut self) {
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

    /// Whether the drain has come to its end.
    fn poll_drain(&mut self, at: usize) -> bool {
        let Some(mut drain) = self.drains[at].take() else { unreachable!("a drain that is there") };
        let is_over = self.carry_on(&mut drain);
        if !is_over {
            self.drains[at] = Some(drain);
        }
        is_over
    }

    /// Drops the caller of a drain: it begins again, with the same deadline.
    fn drop_drain(&mut self, at: usize) {
        let drain = self.drains[at].take();
        self.carried.extend(drain.map(|drain| ExpectedDrain::new(drain.first)));
    }

    /// As [`settle`](Self::settle), with the drains that are carried through.
    fn settle_all(&mut self) {
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
                        // Only who could hear that it was to end can be late.
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

    fn advance(&mut self, to: u64) {
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

    fn stats(&self) -> Stats {
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
        stats.oldest_pending = oldest(&self.pending);
        stats.oldest_active = oldest(&self.active);
        stats
    }

    /// Whether a poll by the job's holder would now give more than before.
    fn must_be_woken(&self, job: usize) -> bool {
        let ended = matches!(self.jobs[job].at, Where::Ended(_));
        match self.jobs[job].holder {
            Holder::Nobody | Holder::Handle { waits: false } => false,
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
    fn jobs_where(&self, test: impl Fn(&Expected) -> bool) -> Vec<usize> {
        (0..self.jobs.len()).filter(|job| test(&self.jobs[*job])).collect()
    }

    fn open_drains(&self) -> Vec<usize> {
        (0..self.drains.len()).filter(|drain| self.drains[*drain].is_some()).collect()
    }
}

// The real jobs.

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoned by an assertion, it must still let the future it belongs to be dropped.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Jobs are named by their number.
fn number(name: &str) -> usize {
    name.parse().expect("a number")
}

#[derive(Debug)]
struct Oops;

impl fmt::Display for Oops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("oops")
    }
}

impl Error for Oops {}

/// A panic that the panic hook does not print.
fn panic_quietly() -> ! {
    resume_unwind(Box::new("scripted"))
}

enum Order {
    End(End),
    SpawnAndEnd(Box<dyn FnOnce() + Send>),
}

/// What a test and its job share.
#[derive(Default)]
struct Strings {
    order: Option<Order>,
    waker: Option<Waker>,
    started: bool,
    drops: u32,
    /// Whether dropping it panics.
    drop_panics: bool,
}

/// The future of one job.
struct Puppet {
    number: usize,
    strings: Arc<Mutex<Strings>>,
    starts: Arc<Mutex<Vec<usize>>>,
    done: bool,
}

type Output = Result<usize, Oops>;

impl Puppet {
    fn end(&mut self, end: End) -> Output {
        self.done = true;
        match end {
            End::Value => Ok(self.number),
            End::Error => Err(Oops),
            End::Panic => panic_quietly(),
        }
    }

    async fn heeding(mut self, context: JobContext, heeds: Option<End>) -> Output {
        let Some(end) = heeds else { return self.await };
        let mut told = pin!(context.cancelled());
        poll_fn(|cx| match Pin::new(&mut self).poll(cx) {
            Poll::Pending => told.as_mut().poll(cx).map(|()| self.end(end)),
            ready => ready,
        })
        .await
    }
}

impl Future for Puppet {
    type Output = Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Output> {
        assert!(!self.done, "polled after its end");
        let mut strings = lock(&self.strings);
        if !mem::replace(&mut strings.started, true) {
            lock(&self.starts).push(self.number);
        }
        strings.waker = Some(cx.waker().clone());
        let order = strings.order.take();
        drop(strings);
        match order {
            None => Poll::Pending,
            Some(Order::End(end)) => Poll::Ready(self.end(end)),
            Some(Order::SpawnAndEnd(spawn)) => {
                spawn();
                Poll::Ready(self.end(End::Value))
            }
        }
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let mut strings = lock(&self.strings);
        strings.drops += 1;
        let panics = strings.drop_panics;
        drop(strings);
        if panics && !std::thread::panicking() {
            panic_quietly();
        }
    }
}

type Boxed<T> = task::Spawn<Pin<Box<dyn Future<Output = T>>>>;

fn boxed<T>(future: impl Future<Output = T> + 'static) -> Boxed<T> {
    task::spawn(Box::pin(future))
}

/// Who really holds a job.
enum Held {
    Nobody,
    Spawner(Boxed<Result<Job<usize>, SpawnError>>),
    Handle(task::Spawn<Job<usize>>),
    Closer(Boxed<(Job<usize>, Result<(), JobError>)>),
    Shield(Boxed<Result<Output, JobError>>),
}

impl Held {
    /// Into another task, so that it must be woken by another waker than before.
    fn moved(self) -> Self {
        match self {
            Held::Nobody => Held::Nobody,
            Held::Spawner(spawner) => Held::Spawner(task::spawn(spawner.into_inner())),
            Held::Handle(job) => Held::Handle(task::spawn(job.into_inner())),
            Held::Closer(closer) => Held::Closer(task::spawn(closer.into_inner())),
            Held::Shield(shield) => Held::Shield(task::spawn(shield.into_inner())),
        }
    }

    fn is_woken(&self) -> bool {
        match self {
            Held::Nobody => false,
            Held::Spawner(spawner) => spawner.is_woken(),
            Held::Handle(job) => job.is_woken(),
            Held::Closer(closer) => closer.is_woken(),
            Held::Shield(shield) => shield.is_woken(),
        }
    }
}

fn seen_error(error: &JobError) -> Seen {
    match error {
        error if error.is_failed() => Seen::Failed,
        error if error.is_panic() => Seen::Panicked,
        error if error.is_close_timeout() => Seen::Overdue,
        error if error.is_timeout() => Seen::RanTooLong,
        error if error.is_cancelled() => Seen::Cancelled,
        _ => Seen::Taken,
    }
}

fn seen_refusal(error: SpawnError) -> Seen {
    match error {
        SpawnError::Closed => Seen::Closed,
        SpawnError::Full => Seen::Full,
        SpawnError::TimedOut => Seen::TimedOut,
        error => panic!("{error}"),
    }
}

struct Real {
    scheduler: Scheduler,
    began: Instant,
    strings: Vec<Arc<Mutex<Strings>>>,
    held: Vec<Held>,
    starts: Arc<Mutex<Vec<usize>>>,
    /// What `on_failure` has heard, by the names of the jobs.
    told: Arc<Mutex<Vec<(usize, Seen)>>>,
    /// How often the failure of each job was told to its holder.
    answered: Vec<u32>,
    drains: Vec<Option<Boxed<DrainReport>>>,
}

impl Real {
    fn new(setup: &Setup) -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        let scheduler = Scheduler::builder()
            .limit(setup.limit)
            .pending_limit(setup.pending_limit)
            .close_timeout(Duration::from_millis(setup.close_timeout))
            .on_failure(move |failure| {
                let told = (number(&failure.job.name), seen_error(&failure.error));
                lock(&heard).push(told);
            })
            .build();
        Self {
            scheduler,
            began: Instant::now(),
            strings: Vec::new(),
            held: Vec::new(),
            starts: Arc::default(),
            told,
            answered: Vec::new(),
            drains: Vec::new(),
        }
    }

    fn puppet(&mut self, plan: Plan) -> Puppet {
        let order = plan.at_once.map(Order::End);
        let strings = Arc::new(Mutex::new(Strings { order, ..Strings::default() }));
        self.strings.push(strings.clone());
        self.held.push(Held::Nobody);
        self.answered.push(0);
        let number = self.strings.len() - 1;
        Puppet { number, strings, starts: self.starts.clone(), done: false }
    }

    fn offer(&mut self, plan: Plan) -> Seen {
        let puppet = self.puppet(plan);
        let number = puppet.number;
        let job = self.scheduler.job(number.to_string());
        let job = match plan.run_timeout {
            Some(seconds) => job.timeout(Duration::from_millis(run_timeout(seconds))),
            None => job,
        };
        self.held[number] = match plan.verb {
            Verb::Spawn => Held::Spawner(boxed(job.spawn(puppet))),
            Verb::SpawnWith => Held::Spawner(boxed(
                job.spawn_with(move |context| puppet.heeding(context, plan.heeds)),
            )),
            Verb::SpawnTimeout(seconds) => {
                let timeout = Duration::from_millis(spawn_within(seconds));
                Held::Spawner(boxed(job.spawn_within(timeout, puppet)))
            }
            Verb::Shield => Held::Shield(boxed(job.shield(puppet))),
            Verb::TrySpawn => return self.have(number, plan, job.try_spawn(puppet)),
        };
        let seen = self.poll(number, plan);
        if plan.verb == Verb::Shield && seen == Seen::Waiting {
            lock(&self.strings[number]).drop_panics = plan.drop_panics;
        }
        seen
    }

    /// `try_spawn` has answered.
    fn have(
        &mut self,
        number: usize,
        plan: Plan,
        answer: Result<Job<usize>, TrySpawnError<Puppet>>,
    ) -> Seen {
        match answer {
            Ok(job) => {
                self.accepted(number, plan, job);
                Seen::Accepted
            }
            Err(refused) => {
                let seen = if refused.is_closed() { Seen::Closed } else { Seen::Full };
                assert_eq!(refused.into_inner().number, number, "the future comes back");
                seen
            }
        }
    }

    fn accepted(&mut self, number: usize, plan: Plan, job: Job<usize>) {
        lock(&self.strings[number]).drop_panics = plan.drop_panics;
        self.held[number] = Held::Handle(task::spawn(job));
    }

    fn poll(&mut self, number: usize, plan: Plan) -> Seen {
        let mut held = mem::replace(&mut self.held[number], Held::Nobody).moved();
        let seen = match &mut held {
            Held::Nobody => unreachable!("nobody polls"),
            Held::Spawner(spawner) => match spawner.poll() {
                Poll::Pending => Seen::Waiting,
                Poll::Ready(Ok(job)) => {
                    self.accepted(number, plan, job);
                    return Seen::Accepted;
                }
                Poll::Ready(Err(error)) => return seen_refusal(error),
            },
            Held::Handle(job) => match job.poll() {
                Poll::Pending => Seen::Waiting,
                Poll::Ready(Ok(value)) => {
                    assert_eq!(value, number);
                    Seen::Value
                }
                Poll::Ready(Err(error)) => self.answer(number, seen_error(&error)),
            },
            Held::Shield(shield) => {
                // What has given its answer is gone.
                return match catch_unwind(AssertUnwindSafe(|| shield.poll())) {
                    Ok(Poll::Pending) => {
                        self.held[number] = held;
                        Seen::Waiting
                    }
                    Ok(Poll::Ready(Ok(Ok(_)))) => Seen::Value,
                    Ok(Poll::Ready(Ok(Err(Oops)))) => self.answer(number, Seen::Failed),
                    Ok(Poll::Ready(Err(error))) => self.answer(number, seen_error(&error)),
                    Err(_) => self.answer(number, Seen::Panicked),
                };
            }
            Held::Closer(closer) => match closer.poll() {
                Poll::Pending => Seen::Waiting,
                Poll::Ready((job, result)) => {
                    self.held[number] = Held::Handle(task::spawn(job));
                    return match result {
                        Ok(()) => Seen::JobClosed,
                        Err(error) if error.is_close_timeout() && self.is_running(number) => {
                            Seen::DidNotClose
                        }
                        Err(error) => self.answer(number, seen_error(&error)),
                    };
                }
            },
        };
        self.held[number] = held;
        seen
    }

    fn is_running(&self, number: usize) -> bool {
        lock(&self.strings[number]).drops == 0
    }

    fn answer(&mut self, number: usize, seen: Seen) -> Seen {
        self.answered[number] += u32::from(!matches!(seen, Seen::Cancelled | Seen::Taken));
        seen
    }

    fn order(&self, number: usize, order: Order) {
        let mut strings = lock(&self.strings[number]);
        strings.order = Some(order);
        if let Some(waker) = strings.waker.take() {
            waker.wake();
        }
    }

    fn drop_holder(&mut self, number: usize) {
        self.held[number] = Held::Nobody;
    }

    fn abort(&self, number: usize) {
        let Held::Handle(job) = &self.held[number] else { unreachable!("aborted by its handle") };
        job.abort();
    }

    fn close_job(&mut self, number: usize, plan: Plan) -> Seen {
        let held = mem::replace(&mut self.held[number], Held::Nobody);
        let Held::Handle(job) = held else { unreachable!("closed by its handle") };
        let mut job = job.into_inner();
        self.held[number] = Held::Closer(boxed(async move {
            let result = job.close().await;
            (job, result)
        }));
        self.poll(number, plan)
    }

    fn drain(&mut self, timeout: Option<u64>) {
        let scheduler = self.scheduler.clone();
        self.drains.push(Some(boxed(async move {
            match timeout {
                Some(timeout) => {
                    scheduler.wait_and_close_within(Duration::from_millis(timeout)).await
                }
                None => scheduler.close().await,
            }
        })));
    }

    /// `is_over` says whether it must end, though it may have to wait for the threads of hooks.
    async fn poll_drain(&mut self, at: usize, is_over: bool) -> Option<DrainReport> {
        let drain = self.drains[at].take().expect("a drain that is there");
        let mut drain = task::spawn(drain.into_inner());
        let began = std::time::Instant::now();
        loop {
            match drain.poll() {
                Poll::Ready(report) => return Some(report),
                Poll::Pending if is_over && began.elapsed() < PLENTY => {
                    tokio::task::yield_now().await;
                }
                Poll::Pending => break,
            }
        }
        self.drains[at] = Some(drain);
        None
    }

    async fn advance(&self, to: u64) {
        sleep_until(self.began + Duration::from_millis(to)).await;
    }

    /// Lets all tasks come to rest, without moving the clock.
    async fn settle(&self) {
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
    }
}

// Both together.

#[derive(Clone, Copy, Debug)]
struct Setup {
    limit: Option<usize>,
    pending_limit: Option<usize>,
    close_timeout: u64,
}

fn setup() -> impl Strategy<Value = Setup> {
    (
        prop_oneof![5 => (1..4_usize).prop_map(Some), 1 => Just(None)],
        prop_oneof![1 => Just(Some(0)), 4 => (1..4_usize).prop_map(Some), 1 => Just(None)],
        prop::sample::select(CLOSE_TIMEOUTS.to_vec()),
    )
        .prop_map(|(limit, pending_limit, close_timeout)| Setup {
            limit,
            pending_limit,
            close_timeout,
        })
}

struct History {
    real: Real,
    oracle: Oracle,
    report: Option<DrainReport>,
}

fn pick(from: &[usize], at: usize) -> Option<usize> {
    (!from.is_empty()).then(|| from[at % from.len()])
}

impl History {
    fn new(setup: &Setup) -> Self {
        Self { real: Real::new(setup), oracle: Oracle::new(setup), report: None }
    }

    async fn step(&mut self, step: Step) {
        let was_closed = self.real.scheduler.is_closed();
        let started = lock(&self.real.starts).len();
        self.act(step).await;
        self.settle_and_compare().await;
        if was_closed {
            assert_eq!(lock(&self.real.starts).len(), started, "nothing starts any more");
        }
    }

    async fn settle_and_compare(&mut self) {
        self.real.settle().await;
        self.oracle.settle_all();
        // While the scheduler closes, plain threads call the hook and drop what never started.
        let began = std::time::Instant::now();
        while !self.threads_have_ended() && began.elapsed() < PLENTY {
            tokio::task::yield_now().await;
        }
        self.compare();
    }

    fn threads_have_ended(&self) -> bool {
        let is_dropped = |(number, job): (usize, &Expected)| {
            let is_over = matches!(job.at, Where::Ended(_) | Where::Refused);
            !is_over || lock(&self.real.strings[number]).drops > 0
        };
        lock(&self.real.told).len() >= self.oracle.told.len()
            && self.oracle.jobs.iter().enumerate().all(is_dropped)
    }

    /// Does the step to both, unless there is nothing to do it to.
    async fn act(&mut self, step: Step) {
        let Self { real, oracle, .. } = self;
        let active = |job: &Expected| job.at == Where::Active;
        let has_handle = |job: &Expected| matches!(job.holder, Holder::Handle { .. });
        let is_held = |job: &Expected| job.holder != Holder::Nobody;
        match step {
            Step::Offer(plan) => assert_eq!(real.offer(plan), oracle.offer(plan)),
            Step::End(at, end) => {
                let Some(job) = pick(&oracle.jobs_where(active), at) else { return };
                real.order(job, Order::End(end));
                oracle.jobs[job].fate = Some(Fate::Ends(end));
            }
            Step::SpawnAndEnd(at, plan) => {
                let Some(job) = pick(&oracle.jobs_where(active), at) else { return };
                self.spawn_and_end(job, Plan { verb: Verb::TrySpawn, heeds: None, ..plan }).await;
            }
            Step::Poll(at) => {
                let Some(job) = pick(&oracle.jobs_where(is_held), at) else { return };
                self.poll(job);
            }
            Step::Drop(at) => {
                let Some(job) = pick(&oracle.jobs_where(is_held), at) else { return };
                real.drop_holder(job);
                oracle.drop_holder(job);
            }
            Step::Abort(at) => {
                let Some(job) = pick(&oracle.jobs_where(has_handle), at) else { return };
                real.abort(job);
                oracle.abort(job);
            }
            Step::CloseJob(at) => {
                let Some(job) = pick(&oracle.jobs_where(has_handle), at) else { return };
                let plan = oracle.jobs[job].plan;
                assert_eq!(real.close_job(job, plan), oracle.close_job(job));
            }
            Step::Drain(seconds) => {
                real.drain(Some(drain_timeout(seconds)));
                oracle.begin_drain();
                let deadline = oracle.now + drain_timeout(seconds);
                oracle.drains.push(Some(ExpectedDrain::new(deadline)));
                self.poll_drain(self.oracle.drains.len() - 1).await;
            }
            Step::Close => {
                real.drain(None);
                oracle.drains.push(Some(ExpectedDrain::new(0)));
                self.poll_drain(self.oracle.drains.len() - 1).await;
            }
            Step::PollDrain(at) => {
                let Some(drain) = pick(&oracle.open_drains(), at) else { return };
                self.poll_drain(drain).await;
            }
            Step::DropDrain(at) => {
                let Some(drain) = pick(&oracle.open_drains(), at) else { return };
                real.drains[drain] = None;
                oracle.drop_drain(drain);
            }
            Step::Announce => {
                real.scheduler.start_draining();
                oracle.announce();
            }
            Step::Advance(seconds) => {
                let to = oracle.now + seconds * 1000;
                real.advance(to).await;
                oracle.advance(to);
            }
        }
    }

    fn poll(&mut self, job: usize) {
        let plan = self.oracle.jobs[job].plan;
        assert_eq!(self.real.poll(job, plan), self.oracle.poll(job), "job {job}");
    }

    async fn spawn_and_end(&mut self, parent: usize, plan: Plan) {
        let puppet = self.real.puppet(plan);
        let child = puppet.number;
        let answer = Arc::new(Mutex::new(None));
        let (scheduler, answers) = (self.real.scheduler.clone(), answer.clone());
        let spawn = move || {
            let job = scheduler.job(child.to_string());
            let job = match plan.run_timeout {
                Some(seconds) => job.timeout(Duration::from_millis(run_timeout(seconds))),
                None => job,
            };
            let strings = puppet.strings.clone();
            let answer = job.try_spawn(puppet);
            lock(&strings).drop_panics = plan.drop_panics && answer.is_ok();
            *lock(&answers) = Some(answer);
        };
        self.real.order(parent, Order::SpawnAndEnd(Box::new(spawn)));
        self.real.settle().await;
        let answer = lock(&answer).take().expect("the parent has run");
        let seen = self.real.have(child, plan, answer);
        assert_eq!(seen, self.oracle.offer(plan), "spawned inside a job");
        self.oracle.jobs[parent].fate = Some(Fate::Ends(End::Value));
    }

    async fn poll_drain(&mut self, at: usize) {
        let ended = self.oracle.poll_drain(at);
        let report = self.real.poll_drain(at, ended).await;
        assert_eq!(report.is_some(), ended, "whether the drain is over");
        let Some(report) = report else { return };
        self.check_report(&report);
        // Every caller gets the same.
        let first = self.report.get_or_insert(report.clone());
        assert_eq!((first.to_string(), first.elapsed), (report.to_string(), report.elapsed));
    }

    /// The report names exactly the jobs that ended badly since the drain began.
    fn check_report(&self, report: &DrainReport) {
        let ended = &self.oracle.ended[self.oracle.ended_before_drain..];
        let is_good = |(_, outcome): &&(usize, Outcome)| *outcome == Outcome::Completed;
        assert_eq!(report.completed, ended.iter().filter(is_good).count() as u64);
        assert_eq!(report.skipped, 0);
        let mut expected: Vec<(usize, Outcome)> =
            ended.iter().filter(|job| !is_good(job)).copied().collect();
        let mut named: Vec<(usize, Outcome)> =
            report.jobs().map(|(outcome, job)| (number(&job.name), outcome)).collect();
        expected.sort_unstable_by_key(|(number, _)| *number);
        named.sort_unstable_by_key(|(number, _)| *number);
        assert_eq!(named, expected);
        assert_eq!(report.is_clean(), expected.is_empty());
        let began = self.oracle.drain_began.expect("it has begun");
        assert!(report.elapsed <= Duration::from_millis(self.oracle.now - began));
    }

    /// All that can be seen from outside is as the oracle has it.
    fn compare(&mut self) {
        let (real, oracle) = (&self.real, &mut self.oracle);
        let scheduler = &real.scheduler;
        let stats = scheduler.stats();
        assert_eq!(stats, oracle.stats());
        let ended = stats.completed + stats.failed + stats.panicked + stats.timed_out;
        let lost = stats.cancelled + stats.skipped + stats.never_started + stats.abandoned;
        let there = stats.deferred + stats.pending + stats.active;
        assert_eq!(stats.accepted, there + ended + lost, "the accounting law");

        let shields = scheduler.active_count() - oracle.limited();
        assert!(scheduler.active_count() - shields <= oracle.limit, "the limit");
        assert!(scheduler.pending_count() <= oracle.pending_limit, "the pending limit");
        assert_eq!(scheduler.len() as u64, there);
        assert_eq!(scheduler.is_closed(), oracle.phase == Phase::Closed);
        assert_eq!(scheduler.is_draining(), oracle.phase != Phase::Open);

        let listed: Vec<(usize, JobState)> =
            scheduler.jobs().iter().map(|job| (number(&job.name), job.state)).collect();
        let state = |(number, job): (usize, &Expected)| match job.at {
            Where::Pending => Some((number, JobState::Pending)),
            Where::Active => Some((number, JobState::Active)),
            _ => None,
        };
        let expected: Vec<_> = oracle.jobs.iter().enumerate().filter_map(state).collect();
        assert_eq!(listed, expected);

        assert_eq!(*lock(&real.starts), oracle.starts, "who started, in which order");
        let mut told = lock(&real.told);
        told.sort_unstable();
        oracle.told.sort_unstable();
        assert_eq!(*told, oracle.told, "what on_failure heard");

        for (number, job) in oracle.jobs.iter().enumerate() {
            let strings = lock(&real.strings[number]);
            let is_over = matches!(job.at, Where::Ended(_) | Where::Refused);
            assert_eq!(strings.drops, u32::from(is_over), "how often job {number} was dropped");
            assert_eq!(strings.started, job.started, "whether job {number} was run");
            assert!(
                real.held[number].is_woken() || !oracle.must_be_woken(number),
                "who holds job {number} ({:?}) was not woken",
                job.holder,
            );
        }
        for (at, drain) in real.drains.iter().enumerate() {
            let (Some(drain), Some(expected)) = (drain, &oracle.drains[at]) else { continue };
            let must = oracle.is_idle() || oracle.now >= expected.deadline;
            assert!(drain.is_woken() || !must, "drain {at} was not woken");
        }
    }

    /// Closes, lets everything come to its end, and adds up.
    async fn finish(mut self) {
        self.step(Step::Close).await;
        while !self.oracle.open_drains().is_empty() {
            self.step(Step::Advance(1)).await;
            for drain in self.oracle.open_drains() {
                self.poll_drain(drain).await;
                self.settle_and_compare().await;
            }
        }
        for job in self.oracle.jobs_where(|job| matches!(job.holder, Holder::Spawner { .. })) {
            self.poll(job);
            assert_eq!(self.oracle.jobs[job].at, Where::Refused, "all who waited are refused");
        }
        for job in self.oracle.jobs_where(|job| job.holder != Holder::Nobody) {
            if job % 2 == 0 {
                self.poll(job);
            }
            if self.oracle.jobs[job].holder != Holder::Nobody {
                self.real.drop_holder(job);
                self.oracle.drop_holder(job);
            }
        }
        self.settle_and_compare().await;
        assert!(self.real.scheduler.is_empty());
        let told = lock(&self.real.told);
        for (number, job) in self.oracle.jobs.iter().enumerate() {
            let heard = told.iter().filter(|(other, _)| *other == number).count();
            let times = heard + self.real.answered[number] as usize;
            assert_eq!(times, usize::from(job.failed), "how often job {number}'s failure was told");
        }
    }
}

fn check(setup: Setup, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut history = History::new(&setup);
        for step in steps {
            history.step(step).await;
        }
        history.finish().await;
    });
}

#[test]
fn every_history_adds_up() {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 1_000;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(RandomState::new().hash_one(()));
    }
    let seed = config.rng_seed;
    let histories = (setup(), prop::collection::vec(step(), 1..60));
    let checked = TestRunner::new(config).run(&histories, |(setup, steps)| {
        check(setup, steps);
        Ok(())
    });
    if let Err(error) = checked {
        panic!("{error}\nto see it again: PROPTEST_RNG_SEED={seed}");
    }
}
