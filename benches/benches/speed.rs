//! Time per job, against the neighbours, in the same run and on the same work.

use std::{
    env,
    future::{Future, pending},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tower_jobs::JobState;
use tower_jobs_benches::{
    BoxedFuture, Chart, Contender, Detached, Entrant, Flavour, Load, Report, Table, Times, Work,
    entrants, is_brief,
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
            million_rounds: 5,
            limited: 20_000,
            sleeping: 2000,
            more_rounds: 11,
        }
    };
    let mut arguments = env::args().skip_while(|argument| argument != GROWTH).skip(1);
    if let Some(name) = arguments.next() {
        let flavour = Flavour::ALL.into_iter().find(|flavour| flavour.name() == name);
        return print_growth(flavour.expect("a flavour"), scale);
    }
    let mut report = Report::new("speed");
    everybody_does_the_work();
    for flavour in Flavour::ALL {
        against_neighbours(flavour, scale, &mut report);
    }
    for flavour in Flavour::ALL {
        limits(flavour, scale, &mut report);
        sleeping(flavour, scale, &mut report);
    }
    for flavour in Flavour::ALL {
        growth(flavour, scale, &mut report);
    }
    closing(scale, &mut report);
    report.finish();
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

fn against_neighbours(flavour: Flavour, scale: Scale, report: &mut Report) {
    let runtime = flavour.runtime();
    let name = flavour.name();
    let mut compare = |title: &str, chart: Option<&str>, entrants: &[Entrant], load, rounds| {
        let times = Times::of(entrants, &runtime, load, rounds);
        let title = format!("{title}, {name}");
        tell(report, &title, &times, &[INSIDE, TRACKED, TASKS]);
        if let Some(chart) = chart {
            report.chart(&format!("{chart}-{name}"), &bars(&title, &times));
        }
        times
    };

    let title = "No-op, backlog of 10 000 behind limit 100";
    let load = Load::backlog(BACKLOG);
    let backlog = compare(title, Some("backlog"), &everybody(LIMIT, noop), load, scale.rounds);

    let title = "No-op, below the limit: 50 at a time, limit 100";
    let load = Load { producers: 1, waves: BACKLOG / 50, jobs: 50 };
    let no_ops = entrants(LIMIT, noop);
    let below = compare(title, Some("below"), &no_ops, load, scale.rounds);

    let title = "No-op, backlog of 1 M behind limit 100";
    let load = Load::backlog(scale.million);
    let million = compare(title, Some("million"), &no_ops, load, scale.million_rounds);

    let title = "No-op, unlimited, four producers";
    let load = Load { producers: 4, waves: 1, jobs: BACKLOG / 4 };
    let unlimited = compare(title, Some("unlimited"), &entrants(None, noop), load, scale.rounds);

    let title = "Two yields, backlog of 10 000 behind limit 100";
    let yields = entrants(LIMIT, two_yields);
    compare(title, None, &yields, Load::backlog(BACKLOG), scale.rounds);

    let goals = &mut report.goals;
    let (goal, far) = if flavour == Flavour::MultiThread { (0.5, 0.3) } else { (0.75, 0.4) };
    for (size, times) in [("10 000", &backlog), ("1 M", &million)] {
        for ours in [DETACHED, AWAITED] {
            let title = format!("backlog of {size}, {name}, {ours}, of {INSIDE}");
            goals.at_most(title, times.ratio(ours, INSIDE), goal, far);
            let title = format!("backlog of {size}, {name}, {ours}, of {TASKS}");
            goals.at_most(title, times.ratio(ours, TASKS), 0.8, 0.5);
        }
    }
    let title = format!("below the limit, {name}, {DETACHED}, of {TRACKED}");
    goals.at_most(title, below.ratio(DETACHED, TRACKED), 1.15, 1.0);
    let title = format!("unlimited, four producers, {name}, {DETACHED}, of {TRACKED}");
    goals.at_most(title, unlimited.ratio(DETACHED, TRACKED), 1.15, 1.0);
}

fn tell(report: &mut Report, title: &str, times: &Times, to: &[&str]) {
    report.heading(title);
    report.table(&times.table("ns per job", to));
}

fn bars(title: &str, times: &Times) -> Chart {
    Chart::bars(title, "ns per job, median; less is better", times.medians())
}

/// Everybody and the other crates, on the same work.
fn everybody<W: Work>(limit: Option<usize>, work: W) -> Vec<Entrant> {
    entrants(limit, work).into_iter().chain(others(limit, work)).collect()
}

fn limits(flavour: Flavour, scale: Scale, report: &mut Report) {
    // The backlog is longer than the highest of them. All contenders know the first.
    let limits = [
        ("limit 1", Some(1)),
        ("limit 100", Some(100)),
        ("limit 10 000", Some(10_000)),
        ("no limit", None),
    ];
    let (runtime, name) = (flavour.runtime(), flavour.name());
    for (producers, spawning) in [(1, "one producer"), (4, "four producers")] {
        let load = Load { producers, waves: 1, jobs: scale.limited / producers };
        let behind = limits.map(|(_, limit)| {
            Times::of(&everybody(limit, noop), &runtime, load, scale.more_rounds)
        });
        report.heading(&format!("No-op, backlog of 20 000, by limit, {spawning}, {name}"));
        report.text(&format!("In ns per job, and of {TASKS}."));
        let mut table = Table::new([""].into_iter().chain(limits.map(|(title, _)| title)));
        for (name, _) in behind[0].medians() {
            let cells = behind.each_ref().map(|times| {
                let figures = times.median(name).zip(times.ratio(name, TASKS));
                figures.map_or("–".to_owned(), |(time, ratio)| format!("{time:.0} ({ratio:.2})"))
            });
            table.row([name.to_owned()].into_iter().chain(cells));
        }
        report.table(&table);
    }
}

async fn one_millisecond() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Jobs that wait: most of the time is what the limit makes it, for everybody.
fn sleeping(flavour: Flavour, scale: Scale, report: &mut Report) {
    let entrants = everybody(LIMIT, one_millisecond);
    let load = Load::backlog(scale.sleeping);
    let times = Times::of(&entrants, &flavour.runtime(), load, scale.more_rounds);
    let title = format!("Sleeping for 1 ms, backlog of 2 000 behind limit 100, {}", flavour.name());
    tell(report, &title, &times, &[INSIDE]);
}

/// Those who spawn all jobs at once, and what their time with short queues is called.
const GROWING: [(&str, &str); 4] =
    [(DETACHED, "short 1"), (TASKS, "short 2"), (TRACKED, "short 3"), (INSIDE, "short 4")];

/// What a long queue costs: of each, ns per job with 1 000 pending, with 1 M, and the ratio.
fn grown(flavour: Flavour, scale: Scale) -> Vec<[f64; 3]> {
    let runtime = flavour.runtime();
    let entrants = entrants(LIMIT, noop);
    let long = Load::backlog(scale.million);
    let short = Load { producers: 1, waves: scale.million / 1000, jobs: 1000 };
    let turns = GROWING.map(|(name, brief)| [(name, name, long), (brief, name, short)]);
    let turns = turns.as_flattened();
    let names: Vec<_> = turns.iter().map(|(turn, ..)| *turn).collect();
    let times = Times::take(&names, scale.more_rounds, |turn| {
        let (_, name, load) = turns[turn];
        let entrant = entrants.iter().find(|entrant| entrant.name == name).expect("an entrant");
        per_job(entrant.time(&runtime, load), load.total())
    });
    let figures = |(long, short)| {
        [times.median(short), times.median(long), times.ratio(long, short)]
            .map(|figure| figure.expect("a figure for each turn"))
    };
    GROWING.map(figures).to_vec()
}

/// With this argument, and a flavour's name, what that has `grown` is printed, and no more.
const GROWTH: &str = "--growth";

#[expect(clippy::print_stdout, reason = "who started this process reads it")]
fn print_growth(flavour: Flavour, scale: Scale) {
    for [short, long, ratio] in grown(flavour, scale) {
        println!("{GROWTH} {short} {long} {ratio}");
    }
}

/// The same in a process of its own, where glibc puts pieces together as they come free, and not
/// all at once when a large one is asked for or given back.
fn grown_without_fast_bins(flavour: Flavour) -> Vec<[f64; 3]> {
    let this = env::current_exe().expect("the path of this program");
    let output = Command::new(this)
        .args(env::args().skip(1).filter(|argument| argument != "--write"))
        .args([GROWTH, flavour.name()])
        .env("GLIBC_TUNABLES", "glibc.malloc.mxfast=0")
        .stderr(Stdio::inherit())
        .output()
        .expect("this program runs once more");
    assert!(output.status.success(), "{}", output.status);
    let printed = String::from_utf8(output.stdout).expect("figures");
    let figures = printed.lines().filter_map(|line| line.strip_prefix(GROWTH)).map(|line| {
        let figures: Vec<f64> =
            line.split_whitespace().map(|figure| figure.parse().expect("a figure")).collect();
        figures.try_into().expect("three figures")
    });
    figures.collect()
}

fn growth(flavour: Flavour, scale: Scale, report: &mut Report) {
    let name = flavour.name();
    let mut tell = |title: &str, grown: Vec<[f64; 3]>| {
        report.heading(&format!("Growth with the backlog, {name}{title}"));
        let few = "1 000 pending, 1 000 times, ns per job";
        let mut table = Table::new(["", few, "1 M pending", "of 1 000 pending"]);
        for ((name, _), [short, long, ratio]) in GROWING.into_iter().zip(&grown) {
            let cells = [format!("{short:.0}"), format!("{long:.0}"), format!("{ratio:.2}")];
            table.row([name.to_owned()].into_iter().chain(cells));
        }
        report.table(&table);
        let ours = grown.first().map(|[.., ratio]| *ratio);
        let title = format!("1 M pending, of 1 000 pending, {name}{title}");
        report.goals.at_most(title, ours, 1.2, 1.2);
    };
    tell("", grown(flavour, scale));
    if cfg!(target_env = "gnu") {
        tell(", without glibc's fast bins", grown_without_fast_bins(flavour));
    }
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
fn closing(scale: Scale, report: &mut Report) {
    const RETURNED: &str = "**tower-jobs**, `close` until it returns";
    const DROPPED_ALL: &str = "**tower-jobs**, `close` until all are dropped";
    const READ: &str = "**tower-jobs**, the same, and each job of the report is looked at";
    const VEC: &str = "dropping a `Vec` of boxed futures";
    let runtime = Flavour::CurrentThread.runtime();
    let jobs = scale.million;
    let all = [RETURNED, DROPPED_ALL, READ, VEC];
    let times = Times::take(&all, 2 * scale.million_rounds, |turn| {
        let time = if all[turn] == VEC {
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
                match all[turn] {
                    RETURNED => returned,
                    DROPPED_ALL => dropped,
                    _ => {
                        let finished = report.never_started.iter();
                        let finished = finished.filter(|job| job.state == JobState::Finished);
                        assert_eq!(finished.count(), jobs);
                        begin.elapsed()
                    }
                }
            })
        };
        per_job(time, jobs)
    });
    let title = "Closing with 1 M pending, current-thread";
    tell(report, title, &times, &[VEC]);
    report.chart("closing", &bars(title, &times));
    let title = "closing with 1 M pending, of dropping a `Vec` of them";
    report.goals.at_most(title, times.ratio(DROPPED_ALL, VEC), 3.0, 1.5);
}
