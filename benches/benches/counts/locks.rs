//! How often a job takes a lock of this crate, and how often another thread holds it just then, on
//! two workers. Counted by the crate itself, in a build with a cfg for it.
//!
//! Whether a lock is held depends on timing, so of many rounds there is the median and the range.
//! Threads that share a processor are hardly ever in each other's way, nor is one that sleeps, so
//! only those rounds count in which the workers ran most at the same time, and the table says how
//! much that was. The counters are shared by the threads, and take their own time.
//!
//! Locks of tokio and tokio-util, ours or a neighbour's, cannot be counted so; the atomics that they
//! are made of are, in [`machine`](crate::machine).

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Asks a binary built with the cfg for the figures.
pub(crate) const HERE: &str = "--count-locks-here";

/// Builds this benchmark with the cfg, next to the other builds so that neither spoils the other,
/// and gives what it tells.
pub(crate) fn build_and_ask() -> String {
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let brief = tower_jobs_benches::is_brief().then_some("--test");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["bench", "--quiet", "--package", "tower-jobs-benches", "--bench", "counts"])
        .arg("--target-dir")
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("counts"))
        .args(["--", HERE])
        .args(brief)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTFLAGS", format!("{flags} --cfg tower_jobs_count_locks"))
        // It would go before the other.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "the benchmark built with the cfg: {}", output.status);
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[cfg(not(tower_jobs_count_locks))]
pub(crate) fn print() {
    panic!("built without the cfg that counts locks: ask with --locks");
}

#[cfg(tower_jobs_count_locks)]
pub(crate) fn print() {
    use std::time::Instant;

    use crate::{LOADS, OURS, pick};
    use tower_jobs::Scheduler;
    use tower_jobs_benches::{Flavour, Table, is_brief, median, ran_and_waited};

    // Rounds shorter than these are over before Linux has said who ran.
    let (rounds, kept, jobs) = if is_brief() { (2, 1, 10_000) } else { (50, 10, 40_000) };
    let runtime = Flavour::MultiThread.runtime();
    let mut rows = Vec::new();
    for (key, title, _) in &LOADS {
        for (contender, name) in OURS {
            let (entrant, load) = pick(key, contender, jobs).expect("ours");
            rows.push((title, name, entrant, load, Vec::new()));
        }
    }
    let ran = || ran_and_waited().map_or(f64::NAN, |(ran, _)| ran);
    for _ in 0..rounds {
        for (_, _, entrant, load, figures) in &mut rows {
            let (begin, before, locks) = (Instant::now(), ran(), Scheduler::locks());
            entrant.time(&runtime, *load);
            let elapsed = begin.elapsed().as_nanos() as f64;
            let running = (ran() - before) / elapsed;
            let (taken, held) = Scheduler::locks();
            let each = |count: u64| count as f64 / load.total() as f64;
            figures.push((running, each(taken - locks.0), each(held - locks.1)));
        }
    }
    println!("### Locks per job, multi-thread with two workers\n");
    println!(
        "Of {rounds} rounds, the {kept} in which the workers ran most at the same time. Where"
    );
    println!("hardly more than one was running, they hardly met at a lock.\n");
    let columns =
        ["", "", "taken", "held by another, median", "lowest", "highest", "workers running"];
    let mut table = Table::new(columns);
    for (title, name, _, _, mut figures) in rows {
        figures.sort_by(|a, b| b.0.total_cmp(&a.0));
        figures.truncate(kept);
        let column = |figure: fn(&(f64, f64, f64)) -> f64| {
            let mut column: Vec<_> = figures.iter().map(figure).collect();
            column.sort_by(f64::total_cmp);
            column
        };
        let (taken, held) = (median(column(|round| round.1)), column(|round| round.2));
        let (lowest, highest) = (held[0], held[kept - 1]);
        let (held, running) = (median(held), median(column(|round| round.0)));
        let held = [held, lowest, highest].map(|held| format!("{held:.3}"));
        let names = [(*title).to_owned(), name.to_owned(), format!("{taken:.2}")];
        table.row(names.into_iter().chain(held).chain([format!("{running:.2}")]));
    }
    println!("{table}");
}
