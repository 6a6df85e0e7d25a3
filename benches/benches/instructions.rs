//! Instructions per job, as valgrind counts them: the same on every machine, however busy.
//!
//! On a current-thread runtime, where every run is the same. What a run costs besides its jobs
//! falls out of the difference between a long one and a short one.
//!
//! To profile one contender: `valgrind --tool=callgrind <this binary> --run below 0 20000`.

use std::process::Command;

use tower_jobs_benches::{
    Chart, Entrant, Flavour, Load, Report, Times, entrants, is_brief,
    names::{INSIDE, TASKS, TRACKED},
    noop, two_yields,
};

type Pick = fn(usize) -> (Vec<Entrant>, Load);

const LOADS: [(&str, &str, Pick); 4] = [
    ("backlog", "No-op, backlog of 10 000 behind limit 100", |jobs| {
        let load = Load { producers: 1, waves: jobs / 10_000, jobs: 10_000 };
        (entrants(Some(100), noop), load)
    }),
    ("below", "No-op, below the limit: 50 at a time, limit 100", |jobs| {
        (entrants(Some(100), noop), Load { producers: 1, waves: jobs / 50, jobs: 50 })
    }),
    ("unlimited", "No-op, unlimited, four producers", |jobs| {
        (entrants(None, noop), Load { producers: 4, waves: jobs / 10_000, jobs: 2500 })
    }),
    ("yields", "Two yields, backlog of 10 000 behind limit 100", |jobs| {
        let load = Load { producers: 1, waves: jobs / 10_000, jobs: 10_000 };
        (entrants(Some(100), two_yields), load)
    }),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [run, load, entrant, jobs, ..] = &arguments[..] {
        if run == "--run" {
            return run_one(load, entrant.parse().expect("a number"), jobs.parse().expect("jobs"));
        }
    }
    let mut report = Report::new("instructions");
    if Command::new("valgrind").arg("--version").output().is_err() {
        return report.skip("there is no valgrind here; install it");
    }
    let loads = if is_brief() { &LOADS[..1] } else { &LOADS[..] };
    for (key, title, pick) in loads {
        let (entrants, _) = pick(0);
        let entrants = if is_brief() { &entrants[..1] } else { &entrants[..] };
        let counts: Vec<_> = (0..entrants.len())
            .map(|number| (entrants[number].name, instructions_per_job(key, number)))
            .collect();
        let counts = Times::counted(&counts);
        report.heading(title);
        report.table(&counts.table("instructions", &[INSIDE, TRACKED, TASKS]));
        let chart = Chart::bars(*title, "instructions per job; less is better", counts.medians());
        report.chart(key, &chart);
    }
    report.finish();
}

fn run_one(load: &str, entrant: usize, jobs: usize) {
    let (_, _, pick) = LOADS.iter().find(|(key, ..)| *key == load).expect("a known load");
    let (entrants, load) = pick(jobs);
    entrants[entrant].time(&Flavour::CurrentThread.runtime(), load);
}

fn instructions_per_job(load: &str, entrant: usize) -> f64 {
    // The allocator does not treat every wave alike.
    let [short, long] = [10_000, 40_000].map(|jobs| instructions(load, entrant, jobs));
    (long - short) / 30_000.0
}

fn instructions(load: &str, entrant: usize, jobs: usize) -> f64 {
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("our own path"))
        .args(["--run", load, &entrant.to_string(), &jobs.to_string()])
        .output()
        .expect("valgrind runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let count = told.lines().find_map(|line| line.split_once("I   refs:")).map(|(_, count)| count);
    count.expect("a count").trim().replace(',', "").parse().expect("a number")
}
