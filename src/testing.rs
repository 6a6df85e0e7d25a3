//! For the tests of applications: a scheduler that records instead of running, one that runs jobs
//! before it goes on, and a check that no job was left behind.
//!
//! A plain [`Scheduler`] is often enough: with a paused clock every deadline is under the test's
//! control, and [`Jobs::wait_idle`](crate::Jobs::wait_idle) waits for one request's jobs. See the
//! chapter [Testing your handlers](crate::docs::testing).

use std::{fmt::Write, mem, panic::resume_unwind, sync::Arc, thread};

use crate::{
    job::{info::JobInfo, span::SpanLink},
    report::failure::JobFailure,
    rules::{config::SchedulerConfig, state::JobState},
    run::core::{Core, FailureHook, Mode},
    scheduler::Scheduler,
    util::{
        clock::Moment,
        sync::{Mutex, lock},
    },
};

/// A scheduler that accepts jobs and does not run them, until it is told to.
///
/// Shielded work, atomic handlers among it, runs as ever: its callers wait for it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use tower_jobs::testing::Recorder;
///
/// let recorder = Recorder::new();
/// let scheduler = recorder.scheduler(); // for the application
/// scheduler.job("welcome e-mail").spawn(async { /* .. */ }).await.unwrap();
///
/// recorder.assert_spawned("welcome e-mail");
/// recorder.assert_not_spawned("invoice");
/// let failures = recorder.run_all().await;
/// assert!(failures.is_empty());
/// # }
/// ```
#[derive(Debug)]
pub struct Recorder {
    scheduler: Scheduler,
    failures: Arc<Mutex<Vec<JobFailure>>>,
    ran: Mutex<Vec<JobInfo>>,
}

impl Recorder {
    /// A recorder with no jobs yet. Its queue has no end.
    #[must_use]
    pub fn new() -> Self {
        let failures = Arc::new(Mutex::new(Vec::new()));
        let hook = {
            let failures = failures.clone();
            Arc::new(move |failure| lock(&failures).push(failure))
        };
        let core = unlimited(Mode::Record, Some(hook));
        core.queue().swap_limit(0);
        Self { scheduler: Scheduler::from_core(core), failures, ran: Mutex::default() }
    }

    /// The scheduler that records.
    pub fn scheduler(&self) -> Scheduler {
        self.scheduler.clone()
    }

    /// All jobs that were spawned, oldest first: those that wait, and those that
    /// [`run_all`](Self::run_all) has run. Not those that were aborted before.
    pub fn spawned(&self) -> Vec<JobInfo> {
        let mut jobs = self.scheduler.jobs();
        let mut earlier: Vec<JobInfo> = lock(&self.ran).clone();
        earlier.retain(|job| jobs.iter().all(|other| other.id != job.id));
        jobs.append(&mut earlier);
        jobs.sort_by_key(|job| job.id);
        jobs
    }

    /// The first job of that name.
    ///
    /// # Panics
    ///
    /// If there is none. The text lists what was spawned.
    #[track_caller]
    pub fn assert_spawned(&self, name: &str) -> JobInfo {
        let spawned = self.spawned();
        match spawned.iter().find(|job| job.name == name) {
            Some(job) => job.clone(),
            None => panic!("no job named {name:?} was spawned; there are {}", list(&spawned)),
        }
    }

    /// That no job has that name.
    ///
    /// # Panics
    ///
    /// If one has. The text lists what was spawned.
    #[track_caller]
    pub fn assert_not_spawned(&self, name: &str) {
        let spawned = self.spawned();
        if let Some(job) = spawned.iter().find(|job| job.name == name) {
            panic!("{job} was spawned; there are {}", list(&spawned));
        }
    }

    /// Runs the recorded jobs, and those that they spawn, one after the other, each to its end.
    /// Those that still wait for their response are left. Gives the failures that nobody awaits.
    /// A job that waits for another recorded one never ends.
    ///
    /// # Panics
    ///
    /// If a job panics and nobody awaits its handle, so does this, at once.
    pub async fn run_all(&self) -> Vec<JobFailure> {
        let core = self.scheduler.core();
        loop {
            let started = core.queue().start_one(Moment::now());
            let Some((record, effects)) = started else { break };
            lock(&self.ran).push(record.info(JobState::Active, Moment::now()));
            core.apply(effects);
            core.wait_until(|_| record.is_finished()).await;
            let info = record.info(JobState::Finished, Moment::now());
            lock(&self.ran).retain(|job| job.id != info.id);
            lock(&self.ran).push(info);
            self.pass_on_panics();
        }
        mem::take(&mut *lock(&self.failures))
    }

    fn pass_on_panics(&self) {
        let mut failures = lock(&self.failures);
        let Some(panicked) = failures.iter().position(|failure| failure.error.is_panic()) else {
            return;
        };
        let failure = failures.swap_remove(panicked);
        drop(failures);
        if let Ok(payload) = failure.error.into_panic() {
            resume_unwind(payload);
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

/// A scheduler that runs a job to its end before `spawn`, `spawn_with`, `spawn_within` or
/// `spawn_blocking` gives its handle. No limit holds.
///
/// What does not wait cannot run inline: jobs of `try_spawn` run as ever, those of
/// `after_response` and its like when the response is over. A job that waits for something its
/// spawner does later never ends.
#[must_use]
pub fn inline() -> Scheduler {
    Scheduler::from_core(unlimited(Mode::Inline, None))
}

/// That `scheduler` has no jobs.
///
/// # Panics
///
/// If it has. The text lists them.
#[track_caller]
pub fn assert_no_jobs(scheduler: &Scheduler) {
    let jobs = scheduler.jobs();
    assert!(jobs.is_empty(), "jobs were left behind: {}", list(&jobs));
}

/// Checks when it is dropped, at the end of a test, that no job was left behind.
///
/// # Panics
///
/// When dropped, if its scheduler has jobs, unless the test panics already.
#[derive(Debug)]
#[must_use = "the check is made when this is dropped"]
pub struct LeakCheck(Scheduler);

impl LeakCheck {
    /// Will check `scheduler`.
    pub fn new(scheduler: &Scheduler) -> Self {
        Self(scheduler.clone())
    }
}

impl Drop for LeakCheck {
    fn drop(&mut self) {
        if !thread::panicking() {
            assert_no_jobs(&self.0);
        }
    }
}

fn unlimited(mode: Mode, on_failure: Option<FailureHook>) -> Core {
    let config = SchedulerConfig { limit: None, pending_limit: None, ..SchedulerConfig::default() };
    Core::new(config, mode, SpanLink::default(), on_failure, None)
}

fn list(jobs: &[JobInfo]) -> String {
    if jobs.is_empty() {
        return "no jobs".into();
    }
    let mut text = format!("{} jobs:", jobs.len());
    for job in jobs {
        write!(text, "\n  {job}").expect("a string takes any text");
    }
    text
}
