//! Helps to test applications: recording and inline schedulers, and leak checks.
//!
//! Many tests need only a plain [`Scheduler`]. With a paused clock, the test controls every deadline.
//! [`Jobs::wait_idle`](crate::Jobs::wait_idle) waits for the jobs of one request. See the chapter
//! [Testing your handlers](crate::docs::testing).

use std::{borrow::Cow, fmt::Write, mem, panic::resume_unwind, sync::Arc, thread};

use crate::{
    job::info::JobInfo,
    report::failure::JobFailure,
    rules::config::SchedulerConfig,
    run::core::{Core, FailureHook, Mode, Setup},
    scheduler::Scheduler,
    util::{
        clock::Moment,
        sync::{Mutex, lock},
    },
};

/// Records the jobs of a scheduler, and runs them on demand.
///
/// The scheduler accepts jobs, and does not run them before [`run_all`](Self::run_all). Shielded work,
/// atomic handlers included, runs at once as usual, because its callers wait for it.
///
/// Code that waits for a recorded job would wait for ever, so it panics, with a text that names the job: a
/// handler that awaits its [`Job`](crate::Job), or `wait_idle` of the [request](crate::Jobs::wait_idle) or the
/// [scheduler](Scheduler::wait_idle), or [`reserve`](Scheduler::reserve). Test such handlers with [`inline`]. Waits with a time of their own, such as
/// [`wait_or_close`](crate::Job::wait_or_close), take that time.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use tower_jobs::testing::Recorder;
///
/// let recorder = Recorder::new();
/// let scheduler = recorder.scheduler(); // for the application
/// scheduler.job("welcome e-mail").spawn(async { /* .. */ }).await.unwrap();
///
/// assert_eq!(recorder.names(), ["welcome e-mail"]);
/// assert_eq!(recorder.count("invoice"), 0);
/// recorder.assert_spawned("welcome e-mail"); // its panic lists the spawned jobs
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
    /// Makes a recorder without jobs, whose queue is unlimited.
    #[must_use]
    pub fn new() -> Self {
        let failures = Arc::new(Mutex::new(Vec::new()));
        let hook = {
            let failures = failures.clone();
            Arc::new(move |failure| lock(&failures).push(failure))
        };
        let core = unlimited(Mode::Record, Some(hook));
        let core = Arc::new(core);
        let effects = core.queue().pause(Moment::now());
        core.apply(effects);
        Self { scheduler: Scheduler::from_core(core), failures, ran: Mutex::default() }
    }

    /// Returns the scheduler that records.
    pub fn scheduler(&self) -> Scheduler {
        self.scheduler.clone()
    }

    /// Lists the spawned jobs, oldest first.
    ///
    /// The list has the recorded jobs, and the jobs that [`run_all`](Self::run_all) has run. It does not
    /// have jobs that were aborted before they ran.
    pub fn spawned(&self) -> Vec<JobInfo> {
        let mut jobs = self.scheduler.jobs();
        let mut earlier: Vec<JobInfo> = lock(&self.ran).clone();
        earlier.retain(|job| jobs.iter().all(|other| other.id != job.id));
        jobs.append(&mut earlier);
        jobs.sort_by_key(|job| job.id);
        jobs
    }

    /// Counts the spawned jobs: those that [`spawned`](Self::spawned) lists.
    pub fn len(&self) -> usize {
        self.spawned().len()
    }

    /// Returns whether no job was spawned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts the spawned jobs that have this name.
    pub fn count(&self, name: &str) -> usize {
        self.spawned().iter().filter(|job| job.name == name).count()
    }

    /// Lists the names of the spawned jobs, oldest first.
    ///
    /// A job without a name has its spawn location: `src/main.rs:12:5`.
    pub fn names(&self) -> Vec<Cow<'static, str>> {
        self.spawned().into_iter().map(|job| job.name).collect()
    }

    /// Lists the labels of the requests of the spawned jobs, oldest job first: `POST /signup`.
    ///
    /// A request that spawned two jobs is listed twice. Jobs that were spawned on the scheduler have no
    /// request, and are left out.
    pub fn labels(&self) -> Vec<String> {
        self.spawned().iter().filter_map(|job| Some(job.request.as_ref()?.to_string())).collect()
    }

    /// Asserts that a job has this name, and returns the first.
    ///
    /// # Panics
    ///
    /// Panics if no job has the name. The text lists the spawned jobs.
    #[track_caller]
    pub fn assert_spawned(&self, name: &str) -> JobInfo {
        let spawned = self.spawned();
        match spawned.iter().find(|job| job.name == name) {
            Some(job) => job.clone(),
            None => {
                panic!("no job named {name:?} was spawned; the recorder has {}", list(&spawned))
            }
        }
    }

    /// Asserts that no spawned job has this name.
    ///
    /// # Panics
    ///
    /// Panics if a job has the name. The text lists the spawned jobs.
    #[track_caller]
    pub fn assert_not_spawned(&self, name: &str) {
        let spawned = self.spawned();
        if let Some(job) = spawned.iter().find(|job| job.name == name) {
            panic!("{job} was spawned; the recorder has {}", list(&spawned));
        }
    }

    /// Runs the recorded jobs, and returns the failures.
    ///
    /// Each job runs to its end before the next starts. The jobs that they spawn run too. Jobs that still
    /// wait for their response are left. The returned failures are those that no handle awaits.
    ///
    /// # Panics
    ///
    /// Panics at once if a job panics and no handle awaits it, with the job's payload. A job that waits for
    /// another recorded job panics.
    pub async fn run_all(&self) -> Vec<JobFailure> {
        let core = self.scheduler.core();
        loop {
            let started = core.queue().start_one(Moment::now());
            let Some((record, effects)) = started else { break };
            lock(&self.ran).push(core.info(&record));
            core.apply(effects);
            core.wait_until(|_| record.is_finished()).await;
            let info = core.info(&record);
            lock(&self.ran).retain(|job| job.id != info.id);
            lock(&self.ran).push(info);
            self.resume_unobserved_panic();
        }
        mem::take(&mut *lock(&self.failures))
    }

    /// Resumes the first panic among the reported failures.
    fn resume_unobserved_panic(&self) {
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

/// Makes a scheduler that runs each job inside its `spawn`.
///
/// The futures of `spawn`, `spawn_with`, `spawn_within` and `spawn_blocking` resolve after the job has
/// ended. The scheduler has no limits.
///
/// Methods that do not wait cannot run a job inline. Jobs of `try_spawn` run in the background as usual.
/// Jobs of `after_response`, `after_response_with` and `after_success` run when the response ends.
///
/// A job that waits for a later step of its spawner never ends.
#[must_use]
pub fn inline() -> Scheduler {
    Scheduler::from_core(Arc::new(unlimited(Mode::Inline, None)))
}

/// Asserts that `scheduler` has no jobs.
///
/// # Panics
///
/// Panics if the scheduler has jobs. The text lists them.
#[track_caller]
pub fn assert_no_jobs(scheduler: &Scheduler) {
    let jobs = scheduler.jobs();
    assert!(jobs.is_empty(), "jobs were left behind: {}", list(&jobs));
}

/// Asserts, when it is dropped, that its scheduler has no jobs.
///
/// Hold it to the end of a test.
///
/// # Panics
///
/// Its drop panics if the scheduler has jobs, unless the thread is already panicking.
#[derive(Debug)]
#[must_use = "the check runs when this is dropped"]
pub struct LeakCheck(Scheduler);

impl LeakCheck {
    /// Makes a check of `scheduler`.
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

/// Makes a core without limits.
fn unlimited(mode: Mode, on_failure: Option<FailureHook>) -> Core {
    let config = SchedulerConfig { limit: None, pending_limit: None, ..SchedulerConfig::default() };
    Core::new(config, mode, Setup { on_failure, ..Setup::default() })
}

/// Formats one job a line.
fn list(jobs: &[JobInfo]) -> String {
    if jobs.is_empty() {
        return "no jobs".into();
    }
    let noun = if jobs.len() == 1 { "job" } else { "jobs" };
    let mut text = format!("{} {noun}:", jobs.len());
    for job in jobs {
        write!(text, "\n  {job}").expect("writing to a `String` succeeds");
    }
    text
}
