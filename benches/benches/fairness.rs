//! What a backlog does to the tasks beside it: how long a task of the same runtime waits for its
//! turn while the jobs run.
//!
//! The backlog is made in full before any of it runs, and the task comes last, as a request does
//! that arrives then: that is its first wait. From there it ticks until the last job has ended,
//! which is how long the backlog is watched. Where there are few ticks, each was waited for long.

#![allow(clippy::print_stdout, reason = "the tables are the benchmark's output")]

use std::{
    hint::spin_loop,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::yield_now, time::sleep};
use tokio_util::task::TaskTracker;
use tower_jobs_benches::{
    Contender, Detached, Flavour, PermitInside, Work, is_brief, median,
    names::{DETACHED, INSIDE},
    scheduler, two_yields,
};

const LIMIT: usize = 100;

/// Who competes.
const NAMES: [&str; 4] = ["idle", DETACHED, INSIDE, "`tokio::spawn`"];
/// Whom the others are beside.
const BESIDE: usize = 2;

/// How much of everything.
#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    million: usize,
    /// Jobs that compute. 1 M of them would take 20 s.
    computing: usize,
    /// How long the runtime without jobs is watched.
    idle: Duration,
}

fn main() {
    let scale = if is_brief() {
        Scale { rounds: 1, million: 10_000, computing: 500, idle: Duration::from_millis(10) }
    } else {
        Scale { rounds: 3, million: 1_000_000, computing: 25_000, idle: Duration::from_millis(100) }
    };
    println!("\n## Fairness: how long a task beside a backlog waits for its turn");
    for flavour in Flavour::ALL {
        for ticker in [Ticker::Yields, Ticker::Sleeps] {
            let compare = Comparison { flavour, ticker, scale };
            compare.all("1 M no-op jobs", scale.million, counted);
            compare.all("1 M jobs of two yields", scale.million, yielding);
            compare.all("25 000 jobs that compute for 20 µs", scale.computing, computing);
        }
    }
}

static DONE: AtomicUsize = AtomicUsize::new(0);

async fn counted() {
    DONE.fetch_add(1, Ordering::Relaxed);
}

async fn yielding() {
    two_yields().await;
    counted().await;
}

async fn computing() {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_micros(20) {
        spin_loop();
    }
    counted().await;
}

/// No jobs at all.
struct Idle;

impl Contender for Idle {
    async fn spawn(&self, _: usize) {}
}

/// `tokio::spawn`, and nothing else.
struct Bare<W>(W);

impl<W: Work> Contender for Bare<W> {
    async fn spawn(&self, jobs: usize) {
        for _ in 0..jobs {
            drop(tokio::spawn(self.0.job()));
        }
    }
}

/// What waits for its turn.
#[derive(Clone, Copy)]
enum Ticker {
    Yields,
    /// For 1 ms, which each of its waits then takes at least.
    Sleeps,
}

/// In nanoseconds.
#[derive(Default)]
struct Waits {
    /// Of each round, from its beginning until the task first runs.
    first: Vec<f64>,
    /// From tick to tick, of all rounds.
    later: Vec<f64>,
}

impl Ticker {
    fn name(self) -> &'static str {
        match self {
            Self::Yields => "a task that yields",
            Self::Sleeps => "a task that sleeps for 1 ms",
        }
    }

    async fn waits(self, begin: Instant, ended: impl Fn() -> bool) -> Waits {
        let mut last = Instant::now();
        let mut waits = Waits { first: vec![nanoseconds(last - begin)], later: Vec::new() };
        while !ended() {
            match self {
                Self::Yields => yield_now().await,
                Self::Sleeps => sleep(Duration::from_millis(1)).await,
            }
            let now = Instant::now();
            waits.later.push(nanoseconds(now - last));
            last = now;
        }
        waits
    }
}

fn nanoseconds(wait: Duration) -> f64 {
    wait.as_nanos() as f64
}

/// Keeps the workers of a runtime from running anything.
struct Held(Option<Arc<Barrier>>);

impl Held {
    fn new(flavour: Flavour) -> Self {
        if flavour == Flavour::CurrentThread {
            // Its thread is the one that makes the backlog.
            return Self(None);
        }
        let barrier = Arc::new(Barrier::new(3));
        for _ in 0..2 {
            let barrier = barrier.clone();
            drop(tokio::spawn(async move {
                barrier.wait();
                barrier.wait();
            }));
        }
        barrier.wait();
        Self(Some(barrier))
    }

    fn release(self) {
        if let Some(barrier) = self.0 {
            barrier.wait();
        }
    }
}

#[derive(Clone, Copy)]
struct Comparison {
    flavour: Flavour,
    ticker: Ticker,
    scale: Scale,
}

impl Comparison {
    fn all<W: Work>(self, title: &str, jobs: usize, work: W) {
        let mut told: [Waits; NAMES.len()] = Default::default();
        for round in 0..self.scale.rounds {
            for turn in 0..NAMES.len() {
                let who = (round + turn) % NAMES.len();
                let waits = match who {
                    0 => self.waits(&Idle, 0),
                    1 => self.waits(&Detached(scheduler(Some(LIMIT)), work), jobs),
                    2 => {
                        let permits = Arc::new(Semaphore::new(LIMIT));
                        self.waits(&PermitInside(TaskTracker::new(), permits, work), jobs)
                    }
                    _ => self.waits(&Bare(work), jobs),
                };
                told[who].first.extend(waits.first);
                told[who].later.extend(waits.later);
            }
        }
        let name = self.flavour.name();
        print(&format!("Beside {title}, {}, {name}", self.ticker.name()), told);
    }

    fn waits<C: Contender>(self, contender: &C, jobs: usize) -> Waits {
        let runtime = self.flavour.runtime();
        DONE.store(0, Ordering::Relaxed);
        runtime.block_on(async {
            let held = Held::new(self.flavour);
            contender.spawn(jobs).await;
            let begin = Instant::now();
            let ticks = tokio::spawn(self.ticker.waits(begin, move || match jobs {
                0 => begin.elapsed() >= self.scale.idle,
                jobs => DONE.load(Ordering::Relaxed) >= jobs,
            }));
            held.release();
            ticks.await.expect("ticks without a panic")
        })
    }
}

fn print(title: &str, mut told: [Waits; NAMES.len()]) {
    let beside = NAMES[BESIDE];
    println!("\n### {title}\n");
    print!("| | first wait, µs | ticks | p50, µs | p99 | p99.9 | longest |");
    println!(" first wait, of {beside} | p99, of {beside} |");
    println!("|---|{}", "---:|".repeat(8));
    told.iter_mut().for_each(|waits| waits.later.sort_by(f64::total_cmp));
    let figures = told.each_ref().map(|waits| {
        let later = [0.5, 0.99, 0.999, 1.0].map(|part| quantile(&waits.later, part));
        (median(waits.first.clone()), later)
    });
    let (first_beside, [_, p99_beside, ..]) = figures[BESIDE];
    for ((name, waits), (first, later)) in NAMES.iter().zip(&told).zip(figures) {
        print!("| {name} | {} | {} |", figure(first / 1000.0), waits.later.len());
        later.iter().for_each(|wait| print!(" {} |", figure(wait / 1000.0)));
        println!(" {} | {} |", figure(first / first_beside), figure(later[1] / p99_beside));
    }
}

fn figure(value: f64) -> String {
    match value {
        value if value.is_nan() => "–".into(),
        value if value < 0.1 => format!("{value:.5}"),
        value if value < 10.0 => format!("{value:.2}"),
        value => format!("{value:.0}"),
    }
}

/// The wait that so large a part of them, which are sorted, does not exceed.
fn quantile(waits: &[f64], part: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is an index")]
    let rank = (waits.len() as f64 * part).ceil() as usize;
    waits.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
