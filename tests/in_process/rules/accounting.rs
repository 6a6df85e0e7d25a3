//! The accounting law, the limits, the order and the reports: random histories against an oracle.
//!
//! A history is a list of steps. Each step is done to a real scheduler on a paused clock, and to an
//! oracle. After every step, all visible state of the two must agree.
//!
//! Spawners, handles, closers and drains are polled by steps only, so a poll may be early, late or
//! missing. A future that could go on must have been woken.

mod oracle;
mod plan;
mod puppets;

use std::{
    env,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};
use tower_jobs::{DrainReport, JobState, Outcome, Refusals};

use self::{oracle::*, plan::*, puppets::*};
use crate::support::{PLENTY, assert_adds_up, number};

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
        // While the scheduler closes, plain threads call the hook and drop unstarted jobs.
        let began = Instant::now();
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
        lock(&self.real.reported).len() >= self.oracle.reported.len()
            && self.oracle.jobs.iter().enumerate().all(is_dropped)
    }

    /// Does the step to both, if there is a job or a drain for it.
    async fn act(&mut self, step: Step) {
        let Self { real, oracle, .. } = self;
        let active = |job: &Expected| job.at == Where::Active;
        let has_handle = |job: &Expected| matches!(job.holder, Holder::Handle { .. });
        let is_held = |job: &Expected| job.holder != Holder::Gone;
        match step {
            Step::Offer(plan) => assert_eq!(real.offer(plan), oracle.offer(plan)),
            Step::End(at, end) => {
                let Some(job) = pick(&oracle.jobs_where(active), at) else { return };
                real.order(job, Order::End(end));
                oracle.jobs[job].fate = Some(Fate::Ends(end));
            }
            Step::SpawnAndEnd(at, plan) => {
                let Some(job) = pick(&oracle.jobs_where(active), at) else { return };
                self.spawn_and_end(
                    job,
                    Plan { verb: Verb::TrySpawn, when_cancelled: None, ..plan },
                )
                .await;
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
        // Every caller gets the same report.
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

    /// Compares all visible state with the oracle.
    fn compare(&mut self) {
        let (real, oracle) = (&self.real, &mut self.oracle);
        let scheduler = &real.scheduler;
        let stats = scheduler.stats();
        let mut compared = stats.clone();
        // Refusals and shields have tests of their own.
        compared.refused = Refusals::default();
        compared.outside_limit = 0;
        // A pending job's age is read from its turn, which is unique by nanoseconds.
        let to_millis = |age: Duration| {
            let millis = age.as_nanos().div_ceil(1_000_000);
            Duration::from_millis(millis.try_into().expect("a short time"))
        };
        compared.oldest_pending = stats.oldest_pending.map(to_millis);
        assert_eq!(compared, oracle.stats());
        let there = stats.deferred + stats.pending + stats.active;
        assert_adds_up(&stats);

        let shields = scheduler.active_count() - oracle.limited();
        assert_eq!(stats.outside_limit, shields as u64);
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

        assert_eq!(*lock(&real.starts), oracle.starts, "the starts in order");
        let mut reported = lock(&real.reported);
        reported.sort_unstable();
        oracle.reported.sort_unstable();
        assert_eq!(*reported, oracle.reported, "the calls of on_failure");

        for (number, job) in oracle.jobs.iter().enumerate() {
            let strings = lock(&real.strings[number]);
            let is_over = matches!(job.at, Where::Ended(_) | Where::Refused);
            assert_eq!(strings.drops, u32::from(is_over), "how often job {number} was dropped");
            assert_eq!(strings.started, job.started, "whether job {number} was run");
            assert!(
                real.held[number].is_woken() || !oracle.must_be_woken(number),
                "the holder of job {number} ({:?}) was not woken",
                job.holder,
            );
        }
        for (at, drain) in real.drains.iter().enumerate() {
            let (Some(drain), Some(expected)) = (drain, &oracle.drains[at]) else { continue };
            let must = oracle.is_idle() || oracle.now >= expected.deadline;
            assert!(drain.is_woken() || !must, "drain {at} was not woken");
        }
    }

    /// Closes, waits for all ends, and adds up.
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
            assert_eq!(
                self.oracle.jobs[job].at,
                Where::Refused,
                "all waiting spawners are refused"
            );
        }
        for job in self.oracle.jobs_where(|job| job.holder != Holder::Gone) {
            if job % 2 == 0 {
                self.poll(job);
            }
            if self.oracle.jobs[job].holder != Holder::Gone {
                self.real.drop_holder(job);
                self.oracle.drop_holder(job);
            }
        }
        self.settle_and_compare().await;
        assert!(self.real.scheduler.is_empty());
        let reported = lock(&self.real.reported);
        for (number, job) in self.oracle.jobs.iter().enumerate() {
            let heard = reported.iter().filter(|(other, _)| *other == number).count();
            let times = heard + self.real.answered[number] as usize;
            assert_eq!(
                times,
                usize::from(job.failed),
                "the reports of the failure of job {number}"
            );
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
