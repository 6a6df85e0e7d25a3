//! Shared parts of the benchmarks: who competes, on what load, and how it is timed and told.
//!
//! The machine's own speed comes and goes, so no time here means anything by itself. All
//! contenders take turns on the same load in the same run, each round in another order, and what
//! counts is the median of the ratios within the rounds.

#![allow(clippy::missing_panics_doc, reason = "a benchmark that fails ends there")]
#![allow(clippy::print_stdout, reason = "the tables are the benchmark's output")]

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::task::TaskTracker;
use tower_jobs::Scheduler;

pub mod generator;

/// Whether to run all of it only briefly, to prove that it works: with `--test`, and when cargo
/// runs a benchmark as a test (that is, without `--bench`).
pub fn is_brief() -> bool {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    has("--test") || !has("--bench")
}

/// The flavour of a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Two workers.
    MultiThread,
    /// The thread that asks.
    CurrentThread,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::MultiThread, Self::CurrentThread];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultiThread => "multi-thread",
            Self::CurrentThread => "current-thread",
        }
    }

    /// A new runtime.
    pub fn runtime(self) -> Runtime {
        let mut builder = match self {
            Self::MultiThread => Builder::new_multi_thread(),
            Self::CurrentThread => Builder::new_current_thread(),
        };
        builder.worker_threads(2).enable_time().build().expect("a runtime")
    }
}

/// Makes one job after the other, all alike.
pub trait Work: Copy + Send + Sync + 'static {
    /// The next job.
    fn job(self) -> impl Future<Output = ()> + Send + 'static;
}

impl<M, F> Work for M
where
    M: Fn() -> F + Copy + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    fn job(self) -> impl Future<Output = ()> + Send + 'static {
        self()
    }
}

/// Does nothing.
pub async fn noop() {}

/// Lets others have their turn, twice.
pub async fn two_yields() {
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
}

/// How jobs come.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many tasks spawn jobs, at the same time.
    pub producers: usize,
    /// How often they do so. All jobs of one wave end before the next begins.
    pub waves: usize,
    /// How many jobs each producer spawns in one wave, without a pause.
    pub jobs: usize,
}

impl Load {
    /// All at once, from one producer.
    pub fn backlog(jobs: usize) -> Self {
        Self { producers: 1, waves: 1, jobs }
    }

    /// How many jobs there are in all.
    pub fn total(self) -> usize {
        self.producers * self.waves * self.jobs
    }
}

/// One way to have jobs done in the background. Lives as long as a server would.
pub trait Contender: Send + Sync + 'static {
    /// Spawns so many jobs; ends the jobs as well if that is how this contender learns of it.
    fn spawn(&self, jobs: usize) -> impl Future<Output = ()> + Send;

    /// Resolves when all jobs have ended.
    fn wait(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// This crate; handles are dropped at once.
#[derive(Debug)]
pub struct Detached<W>(pub Scheduler, pub W);

impl<W: Work> Contender for Detached<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            drop(self.0.spawn(self.1.job()).await.expect("open"));
        }
    }

    async fn wait(&self) {
        self.0.wait_idle().await;
    }
}

/// This crate; handles are kept, and awaited.
#[derive(Debug)]
pub struct Awaited<W>(pub Scheduler, pub W);

impl<W: Work> Contender for Awaited<W> {
    async fn spawn(&self, jobs: usize) {
        let mut handles = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            handles.push(self.0.spawn(self.1.job()).await.expect("open"));
        }
        for handle in handles {
            handle.await.expect("a job without a failure");
        }
    }
}

/// `tokio::spawn`; handles are kept, and awaited.
#[derive(Debug)]
pub struct Tasks<W>(pub W);

impl<W: Work> Contender for Tasks<W> {
    async fn spawn(&self, jobs: usize) {
        let mut handles = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            handles.push(tokio::spawn(self.0.job()));
        }
        for handle in handles {
            handle.await.expect("a job without a failure");
        }
    }
}

/// A `JoinSet` for each producer.
#[derive(Debug)]
pub struct Sets<W>(pub W);

impl<W: Work> Contender for Sets<W> {
    async fn spawn(&self, jobs: usize) {
        let mut set = JoinSet::new();
        for _ in 0..jobs {
            set.spawn(self.0.job());
        }
        while let Some(ended) = set.join_next().await {
            ended.expect("a job without a failure");
        }
    }
}

async fn all_ended(tracker: &TaskTracker) {
    tracker.close();
    tracker.wait().await;
    tracker.reopen();
}

/// A `TaskTracker`, which has no limit.
#[derive(Debug)]
pub struct Tracked<W>(pub TaskTracker, pub W);

impl<W: Work> Contender for Tracked<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            drop(self.0.spawn(self.1.job()));
        }
    }

    async fn wait(&self) {
        all_ended(&self.0).await;
    }
}

/// A `TaskTracker`, whose tasks wait for a permit: what people write by hand.
#[derive(Debug)]
pub struct PermitInside<W>(pub TaskTracker, pub Arc<Semaphore>, pub W);

impl<W: Work> Contender for PermitInside<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            let (permits, job) = (self.1.clone(), self.2.job());
            drop(self.0.spawn(async move {
                let _permit = permits.acquire().await.expect("open");
                job.await;
            }));
        }
    }

    async fn wait(&self) {
        all_ended(&self.0).await;
    }
}

/// A `TaskTracker`, and a producer that waits for a permit: no queue.
#[derive(Debug)]
pub struct PermitBefore<W>(pub TaskTracker, pub Arc<Semaphore>, pub W);

impl<W: Work> Contender for PermitBefore<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            let permit = self.1.clone().acquire_owned().await.expect("open");
            let job = self.2.job();
            drop(self.0.spawn(async move {
                job.await;
                drop(permit);
            }));
        }
    }

    async fn wait(&self) {
        all_ended(&self.0).await;
    }
}

/// Puts a contender through a load.
pub async fn run<C: Contender>(contender: Arc<C>, load: Load) {
    for _ in 0..load.waves {
        if load.producers == 1 {
            contender.spawn(load.jobs).await;
        } else {
            let mut producers = JoinSet::new();
            for _ in 0..load.producers {
                let contender = contender.clone();
                producers.spawn(async move { contender.spawn(load.jobs).await });
            }
            producers.join_all().await;
        }
        contender.wait().await;
    }
}

/// What a benchmark can keep many of, whatever they do.
pub type BoxedFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A contender by its name, ready to go through a load.
pub struct Entrant {
    /// Its name in tables.
    pub name: &'static str,
    run: Box<dyn Fn(Load) -> BoxedFuture>,
}

impl std::fmt::Debug for Entrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entrant").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Entrant {
    /// Enters a contender.
    pub fn new<C: Contender>(name: &'static str, contender: C) -> Self {
        let contender = Arc::new(contender);
        Self { name, run: Box::new(move |load| Box::pin(run(contender.clone(), load))) }
    }

    /// How long it takes. The producer is a task among the others, as a handler is.
    pub fn time(&self, runtime: &Runtime, load: Load) -> Duration {
        let run = (self.run)(load);
        let begin = Instant::now();
        runtime.block_on(async { tokio::spawn(run).await.expect("a run without a panic") });
        begin.elapsed()
    }
}

/// Names that goals refer to.
pub mod names {
    /// [`Detached`](super::Detached)
    pub const DETACHED: &str = "**tower-jobs**, detached";
    /// [`Awaited`](super::Awaited)
    pub const AWAITED: &str = "**tower-jobs**, awaited";
    /// [`Tasks`](super::Tasks)
    pub const TASKS: &str = "`tokio::spawn` + await";
    /// [`Sets`](super::Sets)
    pub const SETS: &str = "`JoinSet`";
    /// [`Tracked`](super::Tracked)
    pub const TRACKED: &str = "`TaskTracker`";
    /// [`PermitInside`](super::PermitInside)
    pub const INSIDE: &str = "`TaskTracker` + `Semaphore`, acquired inside";
    /// [`PermitBefore`](super::PermitBefore)
    pub const BEFORE: &str = "`TaskTracker` + `Semaphore`, acquired before";
}

/// A scheduler whose queue has no end.
pub fn scheduler(limit: Option<usize>) -> Scheduler {
    Scheduler::builder().limit(limit).pending_limit(None).build()
}

/// Everybody, on the same work. The limit binds who knows one.
pub fn entrants<W: Work>(limit: Option<usize>, work: W) -> Vec<Entrant> {
    let mut entrants = vec![
        Entrant::new(names::DETACHED, Detached(scheduler(limit), work)),
        Entrant::new(names::AWAITED, Awaited(scheduler(limit), work)),
        Entrant::new(names::TASKS, Tasks(work)),
        Entrant::new(names::SETS, Sets(work)),
        Entrant::new(names::TRACKED, Tracked(TaskTracker::new(), work)),
    ];
    if let Some(limit) = limit {
        let permits = || Arc::new(Semaphore::new(limit));
        let inside = PermitInside(TaskTracker::new(), permits(), work);
        let before = PermitBefore(TaskTracker::new(), permits(), work);
        entrants.push(Entrant::new(names::INSIDE, inside));
        entrants.push(Entrant::new(names::BEFORE, before));
    }
    entrants
}

/// The times of several contenders, in nanoseconds per job: one of each contender in each round.
#[derive(Debug)]
pub struct Times {
    names: Vec<&'static str>,
    rounds: Vec<Vec<f64>>,
}

impl Times {
    /// Times `count` contenders in turn, for so many rounds after one to warm up. `time` takes the
    /// number of a contender, and gives its nanoseconds per job.
    pub fn take(names: &[&'static str], rounds: usize, mut time: impl FnMut(usize) -> f64) -> Self {
        let count = names.len();
        let mut taken = Vec::with_capacity(rounds);
        for round in 0..=rounds {
            let mut times = vec![0.0; count];
            for turn in 0..count {
                let turn = if round % 2 == 0 { turn } else { count - turn };
                let contender = (round + turn) % count;
                times[contender] = time(contender);
            }
            if round > 0 {
                taken.push(times);
            }
        }
        Self { names: names.to_vec(), rounds: taken }
    }

    /// Times everybody on one load.
    pub fn of(entrants: &[Entrant], runtime: &Runtime, load: Load, rounds: usize) -> Self {
        let names: Vec<_> = entrants.iter().map(|entrant| entrant.name).collect();
        Self::take(&names, rounds, |contender| {
            per_job(entrants[contender].time(runtime, load), load.total())
        })
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| *known == name)
    }

    /// The median of one contender's times.
    pub fn median(&self, name: &str) -> Option<f64> {
        let column = self.column(name)?;
        Some(median(self.rounds.iter().map(|times| times[column]).collect()))
    }

    /// The median of the ratios between two contenders.
    pub fn ratio(&self, name: &str, to: &str) -> Option<f64> {
        let (column, to) = (self.column(name)?, self.column(to)?);
        Some(median(self.rounds.iter().map(|times| times[column] / times[to]).collect()))
    }

    /// Prints a table with one contender a line, and its ratios to those named.
    pub fn print(&self, title: &str, to: &[&str]) {
        let to: Vec<_> = to.iter().filter(|name| self.column(name).is_some()).collect();
        println!("\n### {title}\n");
        print!("| | ns per job |");
        to.iter().for_each(|name| print!(" of {name} |"));
        println!("\n|---|{}", "---:|".repeat(to.len() + 1));
        for name in &self.names {
            print!("| {name} | {:.0} |", self.median(name).unwrap_or(f64::NAN));
            to.iter().for_each(|to| {
                print!(" {:.2} |", self.ratio(name, to).unwrap_or(f64::NAN));
            });
            println!();
        }
    }
}

/// Nanoseconds per job.
pub fn per_job(time: Duration, jobs: usize) -> f64 {
    time.as_nanos() as f64 / jobs as f64
}

/// The middle one; of an even number, the upper.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What the figures come to, beside what they should.
#[derive(Debug, Default)]
pub struct Goals(Vec<(String, f64, f64, f64)>);

impl Goals {
    /// Adds a figure, with its goal and its far goal. Less is better.
    pub fn add(&mut self, title: impl Into<String>, figure: Option<f64>, goal: f64, far: f64) {
        self.0.push((title.into(), figure.unwrap_or(f64::NAN), goal, far));
    }

    /// Prints them as a table.
    pub fn print(&self) {
        println!("\n### Goals\n\n| | here | goal | far goal | |\n|---|---:|---:|---:|---|");
        for (title, figure, goal, far) in &self.0 {
            let verdict = match figure {
                figure if figure <= far => "far goal met",
                figure if figure <= goal => "met",
                _ => "missed",
            };
            println!("| {title} | {figure:.2} | {goal:.2} | {far:.2} | {verdict} |");
        }
    }
}
