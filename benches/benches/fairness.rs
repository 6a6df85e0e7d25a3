//! What a backlog does to the tasks beside it: how long a task of the same runtime waits for its
//! turn while the jobs run.
//!
//! The backlog is made in full before any of it runs, and the task comes last, as a request does
//! that arrives then: that is its first wait. From there it ticks until the last job has ended,
//! which is how long the backlog is watched. Where there are few waits, each was a long one, and
//! often the first was the only one that the backlog had to do with: it is counted among them.

use std::{
    hint::spin_loop,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::yield_now, time::sleep};
use tokio_util::task::TaskTracker;
use tower_jobs_benches::{
    Chart, Contender, Detached, Flavour, PermitInside, Report, Table, Work, in_turns, is_brief,
    median,
    names::{DETACHED, INSIDE},
    percentile, scheduler, two_yields,
};

const LIMIT: usize = 100;

/// Who competes.
const NAMES: [&str; 4] = ["idle", DETACHED, INSIDE, "`tokio::spawn`"];
/// Their places there.
const OURS: usize = 1;
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
    let mut report = Report::new("fairness");
    for flavour in Flavour::ALL {
        for ticker in [Ticker::Yields, Ticker::Sleeps] {
            let compare = Comparison { flavour, ticker, scale };
            let beside = [
                compare.all("1 M no-op jobs", scale.million, counted),
                compare.all("1 M jobs of two yields", scale.million, yielding),
                compare.all("25 000 jobs that compute for 20 µs", scale.computing, computing),
            ];
            tell(&mut report, compare, &beside);
        }
    }
    report.finish();
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
#[derive(Clone, Copy, PartialEq)]
enum Ticker {
    Yields,
    /// For 1 ms, which each of its waits then takes at least.
    Sleeps,
}

/// From the beginning of a round until the task first runs, and then from tick to tick. In
/// microseconds.
type Waits = Vec<f64>;

impl Ticker {
    fn name(self) -> &'static str {
        match self {
            Self::Yields => "a task that yields",
            Self::Sleeps => "a task that sleeps for 1 ms",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Yields => "yields",
            Self::Sleeps => "sleeps",
        }
    }

    async fn waits(self, begin: Instant, ended: impl Fn() -> bool) -> Waits {
        let mut last = begin;
        // Room for all: glibc takes a request of a kilobyte for an occasion to put the small pieces
        // together that are free by then, and there may be a million.
        let mut waits = Waits::with_capacity(2_000_000);
        loop {
            let now = Instant::now();
            waits.push((now - last).as_nanos() as f64 / 1000.0);
            if ended() {
                return waits;
            }
            last = now;
            match self {
                Self::Yields => yield_now().await,
                Self::Sleeps => sleep(Duration::from_millis(1)).await,
            }
        }
    }
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
            let (begun, begins) = mpsc::channel();
            drop(tokio::spawn(async move {
                begun.send(()).expect("somebody waits for it");
                barrier.wait();
            }));
            // One by one: a worker that takes up both is not sure to have another take the second.
            begins.recv().expect("a worker is free");
        }
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
    fn all<W: Work>(self, jobs_are: &'static str, jobs: usize, work: W) -> Beside {
        let rounds = in_turns(NAMES.len(), self.scale.rounds, |who| match who {
            0 => self.waits(&Idle, 0),
            OURS => self.waits(&Detached(scheduler(Some(LIMIT)), work), jobs),
            BESIDE => {
                let permits = Arc::new(Semaphore::new(LIMIT));
                self.waits(&PermitInside(TaskTracker::new(), permits, work), jobs)
            }
            _ => self.waits(&Bare(work), jobs),
        });
        let figures = std::array::from_fn(|who| {
            let waits = rounds.iter().map(|turns| &turns[who]);
            let mut all: Vec<_> = waits.clone().flatten().copied().collect();
            all.sort_by(f64::total_cmp);
            Figures {
                first: median(waits.map(|waits| waits[0]).collect()),
                count: all.len(),
                parts: PERMILLES.map(|permille| percentile(&all, permille)),
            }
        });
        Beside { jobs: jobs_are, figures }
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

/// The median of the rounds' first waits; how many waits there are in all, and how long they are,
/// by [`PERMILLES`].
struct Figures {
    first: f64,
    count: usize,
    parts: [f64; PERMILLES.len()],
}

/// p50, p99, p99.9 and the longest.
const PERMILLES: [usize; 4] = [500, 990, 999, 1000];
const P999: usize = 2;

/// What a comparison came to beside one kind of jobs.
struct Beside {
    jobs: &'static str,
    figures: [Figures; NAMES.len()],
}

fn table(figures: &[Figures; NAMES.len()]) -> Table {
    let beside = NAMES[BESIDE];
    let columns = ["", "first wait, µs", "waits", "p50, µs", "p99", "p99.9", "longest"];
    let ratios = ["first wait", "p99.9"].map(|what| format!("{what}, of {beside}"));
    let mut table = Table::new(columns.map(str::to_owned).into_iter().chain(ratios));
    let to = &figures[BESIDE];
    for (name, Figures { first, count, parts }) in NAMES.iter().zip(figures) {
        let cells = [(*name).to_owned(), shown(*first), count.to_string()].into_iter();
        let ratios = [first / to.first, parts[P999] / to.parts[P999]];
        table.row(cells.chain(parts.iter().copied().chain(ratios).map(shown)));
    }
    table
}

fn tell(report: &mut Report, comparison: Comparison, beside: &[Beside; 3]) {
    let Comparison { ticker, flavour, .. } = comparison;
    let named = format!("{}, {}", ticker.name(), flavour.name());
    for Beside { jobs, figures } in beside {
        report.heading(&format!("Beside {jobs}, {named}"));
        report.table(&table(figures));
        if ticker == Ticker::Yields {
            let ratio = figures[OURS].parts[P999] / figures[BESIDE].parts[P999];
            let title = format!("p99.9 beside {jobs}, {named}, {DETACHED}, of {INSIDE}");
            report.goals.at_most(title, Some(ratio), 1.0, 0.5);
        }
    }
    let mut chart = |key: &str, what: &str, figure: fn(&Figures) -> f64| {
        let rows = NAMES.iter().enumerate().map(|(who, name)| {
            (*name, beside.iter().map(|beside| figure(&beside.figures[who])).collect())
        });
        let series = ["no-op", "two yields", "computing"];
        let chart =
            Chart::groups(format!("{what} of {named}"), "µs; less is better", &series, rows);
        report.chart(&format!("{key}-{}-{}", ticker.key(), flavour.name()), &chart);
    };
    chart("first", "First wait", |figures| figures.first);
    chart("p999", "p99.9 of all waits", |figures| figures.parts[P999]);
}

fn shown(value: f64) -> String {
    match value {
        value if value < 0.1 => format!("{value:.5}"),
        value if value < 10.0 => format!("{value:.2}"),
        value => format!("{value:.0}"),
    }
}
