//! Time per job, against the neighbours, in the same run and on the same work.

#![allow(clippy::print_stdout, reason = "the tables are the benchmark's output")]

use std::{
    future::{Future, pending},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tower_jobs_benches::{
    BoxedFuture, Contender, Detached, Entrant, Flavour, Goals, Load, Times, Work, entrants,
    is_brief,
    names::{AWAITED, DETACHED, INSIDE, TASKS, TRACKED},
    noop, others, per_job, scheduler, two_yields,
};

const LIMIT: Option<usize> = Some(100);
const BACKLOG: usize = 10_000;

/// How much of everything.
#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    /// What 1 M is, and how often it is done.
    million: usize,
    million_rounds: usize,
    /// How many jobs the tables of limits and of sleeping jobs are about, and how often.
    limited: usize,
    sleeping: usize,
    more_rounds: usize,
}

fn main() {
    let scale = if is_brief() {
        Scale {
            rounds: 2,
            million: 20_000,
            million_rounds: 1,
            limited: 2000,
            sleeping: 200,
            more_rounds: 1,
        }
    } else {
        Scale {
            rounds: 41,
            million: 1_000_000,
            million_rounds: 3,
            limited: 20_000,
            sleeping: 2000,
            more_rounds: 11,
        }
    };
    println!("\n## Speed");
    everybody_does_the_work();
    let mut goals = Goals::default();
    for flavour in Flavour::ALL {
        against_neighbours(flavour, scale, &mut goals);
    }
    for flavour in Flavour::ALL {
        limits(flavour, scale);
        sleeping(flavour, scale);
    }
    for flavour in Flavour::ALL {
        growth(flavour, scale, &mut goals);
    }
    closing(scale, &mut goals);
    goals.print();
}

static DONE: AtomicUsize = AtomicUsize::new(0);

async fn counted() {
    DONE.fetch_add(1, Ordering::Relaxed);
}

fn everybody_does_the_work() {
    let load = Load { producers: 3, waves: 2, jobs: 200 };
    for flavour in Flavour::ALL {
        let runtime = flavour.runtime();
        for limit in [LIMIT, None] {
            for entrant in everybody(limit, counted) {
                let before = DONE.load(Ordering::Relaxed);
                entrant.time(&runtime, load);
                let done = DONE.load(Ordering::Relaxed) - before;
                assert_eq!(done, load.total(), "{} ended before its jobs", entrant.name);
            }
        }
    }
}

fn against_neighbours(flavour: Flavour, scale: Scale, goals: &mut Goals) {
    let runtime = flavour.runtime();
    let name = flavour.name();
    let compare = |title: &str, entrants: &[Entrant], load, rounds| {
        let times = Times::of(entrants, &runtime, load, rounds);
        times.print(&format!("{title}, {name}"), &[INSIDE, TRACKED, TASKS]);
        times
    };

    let no_ops = entrants(LIMIT, noop);
    let backlog = Load::backlog(BACKLOG);
    let with_others = everybody(LIMIT, noop);
    let times =
        compare("No-op, backlog of 10 000 behind limit 100", &with_others, backlog, scale.rounds);
    let (goal, far) = if flavour == Flavour::MultiThread { (0.5, 0.3) } else { (0.75, 0.4) };
    for ours in [DETACHED, AWAITED] {
        let title = format!("backlog, {name}, {ours}, of {INSIDE}");
        goals.add(title, times.ratio(ours, INSIDE), goal, far);
        let title = format!("backlog, {name}, {ours}, of {TASKS}");
        goals.add(title, times.ratio(ours, TASKS), 0.8, 0.5);
    }

    let below = Load { producers: 1, waves: BACKLOG / 50, jobs: 50 };
    let title = "No-op, below the limit: 50 at a time, limit 100";
    let times = compare(title, &no_ops, below, scale.rounds);
    let title = format!("below the limit, {name}, {DETACHED}, of {TRACKED}");
    goals.add(title, times.ratio(DETACHED, TRACKED), 1.15, 1.0);

    let title = "No-op, backlog of 1 M behind limit 100";
    compare(title, &no_ops, Load::backlog(scale.million), scale.million_rounds);

    let no_limit = entrants(None, noop);
    let many = Load { producers: 4, waves: 1, jobs: BACKLOG / 4 };
    let times = compare("No-op, unlimited, four producers", &no_limit, many, scale.rounds);
    let title = format!("unlimited, four producers, {name}, {DETACHED}, of {TRACKED}");
    goals.add(title, times.ratio(DETACHED, TRACKED), 1.15, 1.0);

    let yields = entrants(LIMIT, two_yields);
    let title = "Two yields, backlog of 10 000 behind limit 100";
    compare(title, &yields, backlog, scale.rounds);
}

/// Everybody and the other crates, on the same work.
fn everybody<W: Work>(limit: Option<usize>, work: W) -> Vec<Entrant> {
    entrants(limit, work).into_iter().chain(others(limit, work)).collect()
}

fn limits(flavour: Flavour, scale: Scale) {
    let runtime = flavour.runtime();
    // The backlog is longer than the highest of them.
    let limits = [
        (Some(1), "limit 1"),
        (Some(100), "limit 100"),
        (Some(10_000), "limit 10 000"),
        (None, "no limit"),
    ];
    for (limit, behind) in limits {
        let entrants = everybody(limit, noop);
        for (producers, spawning) in [(1, "one producer"), (4, "four producers")] {
            let load = Load { producers, waves: 1, jobs: scale.limited / producers };
            let times = Times::of(&entrants, &runtime, load, scale.more_rounds);
            let name = flavour.name();
            let title = format!("No-op, backlog of 20 000, {behind}, {spawning}, {name}");
            times.print(&title, &[INSIDE, TRACKED, TASKS]);
        }
    }
}

async fn one_millisecond() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Jobs that wait: most of the time is what the limit makes it, for everybody.
fn sleeping(flavour: Flavour, scale: Scale) {
    let runtime = flavour.runtime();
    let entrants = everybody(LIMIT, one_millisecond);
    let load = Load::backlog(scale.sleeping);
    let times = Times::of(&entrants, &runtime, load, scale.more_rounds);
    let title = format!("Sleeping for 1 ms, backlog of 2 000 behind limit 100, {}", flavour.name());
    times.print(&title, &[INSIDE]);
}

/// What a long queue costs.
fn growth(flavour: Flavour, scale: Scale, goals: &mut Goals) {
    let runtime = flavour.runtime();
    let entrant = Entrant::new(DETACHED, Detached(scheduler(LIMIT), noop));
    let long = Load::backlog(scale.million);
    let short = Load { producers: 1, waves: scale.million / 1000, jobs: 1000 };
    let loads = [("1 M pending", long), ("1 000 pending, 1 000 times", short)];
    let times = Times::take(&loads.map(|(name, _)| name), scale.million_rounds, |turn| {
        let (_, load) = loads[turn];
        per_job(entrant.time(&runtime, load), load.total())
    });
    let title = format!("Growth with the backlog, detached, {}", flavour.name());
    times.print(&title, &[loads[1].0]);
    let title = format!("1 M pending, of 1 000 pending, {}", flavour.name());
    goals.add(title, times.ratio(loads[0].0, loads[1].0), 1.2, 1.2);
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

struct CountsDrop;

impl Drop for CountsDrop {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

fn droppable() -> impl Future<Output = ()> + Send + 'static {
    let counts = CountsDrop;
    async move { drop(counts) }
}

/// Closing with a full queue, against dropping as many futures.
fn closing(scale: Scale, goals: &mut Goals) {
    const RETURNED: &str = "`close` until it returns";
    const DROPPED_ALL: &str = "`close` until all are dropped";
    const VEC: &str = "dropping a `Vec` of boxed futures";
    let runtime = Flavour::CurrentThread.runtime();
    let jobs = scale.million;
    let times = Times::take(&[RETURNED, DROPPED_ALL, VEC], scale.million_rounds, |turn| {
        let time = if turn == 2 {
            let futures: Vec<BoxedFuture> = (0..jobs).map(|_| Box::pin(droppable()) as _).collect();
            let begin = Instant::now();
            drop(futures);
            begin.elapsed()
        } else {
            runtime.block_on(async {
                let jobs_of = Detached(scheduler(Some(1)), droppable);
                drop(jobs_of.0.spawn(pending::<()>()).await.expect("open"));
                jobs_of.spawn(jobs).await;
                let before = DROPPED.load(Ordering::Relaxed);
                let begin = Instant::now();
                let report = jobs_of.0.close().await;
                let returned = begin.elapsed();
                while DROPPED.load(Ordering::Relaxed) - before < jobs {
                    tokio::task::yield_now().await;
                }
                let dropped = begin.elapsed();
                assert_eq!(report.never_started.len(), jobs);
                if turn == 0 { returned } else { dropped }
            })
        };
        per_job(time, jobs)
    });
    times.print("Closing with 1 M pending, current-thread", &[VEC]);
    let title = "closing with 1 M pending, of dropping a `Vec` of them";
    goals.add(title, times.ratio(DROPPED_ALL, VEC), 3.0, 1.5);
}
