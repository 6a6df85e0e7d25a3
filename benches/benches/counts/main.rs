//! What a job executes, and which locks it takes: counted and not timed, so that it is the same on
//! every machine, however busy, and a change for the worse can be told from noise.
//!
//! - Instructions, and those of them that are atomic (that read, modify and write memory shared
//!   with other cores, which is what contended code waits for), for everybody, as valgrind counts
//!   them on a current-thread runtime: see [`machine`].
//! - The locks of this crate, and how often they were held by another thread, on two workers: see
//!   [`locks`].
//!
//! After `cargo bench --package tower-jobs-benches --bench counts --`:
//!
//! | | |
//! |---|---|
//! | | all of it |
//! | `--check` | fails where this crate executes more than `instructions.txt` says; for CI |
//! | `--record` | writes `instructions.txt` |
//! | `--locks` | the locks only |
//!
//! To profile one contender: `valgrind --tool=callgrind <this binary> --run below detached 20000`;
//! with `multi` at the end, on two workers.

#![allow(clippy::print_stdout, reason = "the tables are the benchmark's output")]

mod locks;
mod machine;
mod record;

use std::process::ExitCode;

use tower_jobs_benches::{
    Chart, Entrant, Flavour, Load, Report, Table, entrants, is_brief,
    names::{
        AWAITED, BEFORE, DETACHED, INSIDE, OBSERVED, REMEMBERED, RESERVED, TASKS, TRACED, TRACKED,
        WITH_DASHBOARD, WITH_METRICS,
    },
    noop, optional_parts, two_yields,
};

use tracing_subscriber::util::SubscriberInitExt;

use crate::{
    machine::{Counts, Machine},
    record::Record,
};

type Pick = fn(usize) -> (Vec<Entrant>, Load);

/// Key, title, who competes and how so many jobs come.
const LOADS: [(&str, &str, Pick); 5] = [
    ("backlog", "No-op, backlog of 10 000 behind limit 100", |jobs| {
        let load = Load { producers: 1, waves: jobs / 10_000, jobs: 10_000 };
        let mut all = entrants(Some(100), noop);
        all.extend(optional_parts(100, noop));
        (all, load)
    }),
    ("below", "No-op, below the limit: 50 at a time, limit 100", |jobs| {
        (entrants(Some(100), noop), Load { producers: 1, waves: jobs / 50, jobs: 50 })
    }),
    ("single", "No-op, one after the other, limit 100", |jobs| {
        (entrants(Some(100), noop), Load { producers: 1, waves: jobs, jobs: 1 })
    }),
    ("unlimited", "No-op, unlimited, four producers", |jobs| {
        (entrants(None, noop), Load { producers: 4, waves: jobs / 10_000, jobs: 2500 })
    }),
    ("yields", "Two yields, backlog of 10 000 behind limit 100", |jobs| {
        let load = Load { producers: 1, waves: jobs / 10_000, jobs: 10_000 };
        (entrants(Some(100), two_yields), load)
    }),
];

/// Key and name.
const OURS: [(&str, &str); 2] = [("detached", DETACHED), ("awaited", AWAITED)];
/// Of some loads only.
const OPTIONAL: [(&str, &str); 6] = [
    ("observed", OBSERVED),
    ("metrics", WITH_METRICS),
    ("dashboard", WITH_DASHBOARD),
    ("remembered", REMEMBERED),
    ("reserved", RESERVED),
    (TRACED_KEY, TRACED),
];
/// Runs under a subscriber, which is that of the whole process.
const TRACED_KEY: &str = "traced";
const NEIGHBOURS: [(&str, &str); 4] =
    [("tasks", TASKS), ("tracked", TRACKED), ("inside", INSIDE), ("before", BEFORE)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if let [run, load, contender, jobs, rest @ ..] = &arguments[..]
        && run == "--run"
    {
        let flavour = match rest {
            [flavour, ..] if flavour == "multi" => Flavour::MultiThread,
            _ => Flavour::CurrentThread,
        };
        run_one(flavour, load, contender, jobs.parse().expect("a number of jobs"));
        return ExitCode::SUCCESS;
    }
    if has(locks::HERE) {
        locks::print();
        return ExitCode::SUCCESS;
    }
    let parts = ["--locks", "--record", "--check"].map(has);
    assert!(!(has("--write") && parts.contains(&true)), "with --write goes all of it, not a part");
    let [locks, record, check] = parts;
    if locks {
        println!("{}", locks::build_and_ask());
        return ExitCode::SUCCESS;
    }
    if record || check {
        // What is asked for by name must not seem done.
        let mut machine =
            Machine::new().unwrap_or_else(|missing| panic!("nothing is counted: {missing}"));
        let counted = Record::of(&mut machine);
        if record {
            counted.write();
        } else if !counted.check() {
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    all();
    ExitCode::SUCCESS
}

fn all() {
    let mut report = Report::new("counts");
    let mut machine = match Machine::new() {
        Ok(machine) => machine,
        Err(missing) => return report.skip(&missing),
    };
    tables(&mut machine, &mut report);
    if is_brief() {
        report.text("The locks take a build of their own: `--bench counts -- --locks`");
    } else {
        report.text(&locks::build_and_ask());
    }
    report.finish();
}

/// The contender of that key, and the load.
fn pick(load: &str, contender: &str, jobs: usize) -> Option<(Entrant, Load)> {
    let (_, _, pick) = LOADS.iter().find(|(key, ..)| *key == load)?;
    let (_, name) = ours().chain(&NEIGHBOURS).find(|(key, _)| *key == contender)?;
    let (entrants, load) = pick(jobs);
    Some((entrants.into_iter().find(|entrant| entrant.name == *name)?, load))
}

fn ours() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    OURS.iter().chain(&OPTIONAL)
}

fn run_one(flavour: Flavour, load: &str, contender: &str, jobs: usize) {
    if contender == TRACED_KEY {
        // It wants all spans, and stores nothing but their ids and ties.
        tracing_subscriber::registry().init();
    }
    let (entrant, load) = pick(load, contender, jobs).expect("a load and who is put through it");
    entrant.time(&flavour.runtime(), load);
}

fn tables(machine: &mut Machine, report: &mut Report) {
    let (loads, neighbours) = if is_brief() { (1, 0) } else { (LOADS.len(), NEIGHBOURS.len()) };
    for (load, title, _) in &LOADS[..loads] {
        let rows: Vec<_> = (ours().chain(&NEIGHBOURS[..neighbours]))
            .filter(|(key, _)| pick(load, key, 0).is_some())
            .map(|(key, name)| (*name, machine.per_job(load, key)))
            .collect();
        report.heading(title);
        report.table(&table(&rows));
        let bars = rows.iter().map(|(name, counts)| (*name, counts.instructions));
        let chart = Chart::bars(*title, "instructions per job; less is better", bars);
        report.chart(load, &chart);
    }
}

fn table(rows: &[(&str, Counts)]) -> Table {
    let to: Vec<_> =
        rows.iter().filter(|(name, _)| [INSIDE, TRACKED, TASKS].contains(name)).collect();
    let columns = ["", "instructions", "atomics"].map(str::to_owned).into_iter();
    let ratios = to.iter().flat_map(|(name, _)| {
        ["instructions", "atomics"].map(|counted| format!("{counted}, of {name}"))
    });
    let mut table = Table::new(columns.chain(ratios));
    for (name, Counts { instructions, atomics }) in rows {
        let cells = [(*name).to_owned(), format!("{instructions:.0}"), format!("{atomics:.1}")];
        let ratios = to.iter().flat_map(|(_, to)| {
            [instructions / to.instructions, atomics / to.atomics].map(|it| format!("{it:.2}"))
        });
        table.row(cells.into_iter().chain(ratios));
    }
    table
}
