//! How often a job takes a lock of this crate, and how often another thread holds it just then, on
//! two workers. Counted by the crate itself, in a build with a cfg for it.
//!
//! Whether a lock is held depends on timing, so of many rounds there is the median and the range.
//! Threads that share a processor are hardly ever in each other's way, so only those rounds count in
//! which they waited least for one, and the table says how long that was. The counters are shared by
//! the threads, and take their own time.
//!
//! Locks of tokio and tokio-util, ours or a neighbour's, cannot be counted so; the atomics that they
//! are made of are, in [`machine`](crate::machine).

use std::{
    path::Path,
    process::{Command, ExitCode},
};

/// Asks a binary built with the cfg for the figures.
pub(crate) const HERE: &str = "--count-locks-here";

/// Builds this benchmark with the cfg, next to the other builds so that neither spoils the other,
/// and runs it.
pub(crate) fn build_and_print() -> ExitCode {
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let brief = tower_jobs_benches::is_brief().then_some("--test");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["bench", "--quiet", "--package", "tower-jobs-benches", "--bench", "counts"])
        .arg("--target-dir")
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("counts"))
        .args(["--", HERE])
        .args(brief)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTFLAGS", format!("{flags} --cfg tower_jobs_count_locks"))
        // It would go before the other.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("cargo runs");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
    use tower_jobs_benches::{Flavour, is_brief, median};

    let (rounds, kept) = if is_brief() { (2, 1) } else { (100, 10) };
    let runtime = Flavour::MultiThread.runtime();
    let mut rows = Vec::new();
    for (key, title, _) in &LOADS {
        for (contender, name) in OURS {
            let (entrant, load) = pick(key, contender, 10_000).expect("ours");
            rows.push((title, name, entrant, load, Vec::new()));
        }
    }
    for _ in 0..rounds {
        for (_, _, entrant, load, figures) in &mut rows {
            let (begin, waited, locks) = (Instant::now(), waited(), Scheduler::locks());
            entrant.time(&runtime, *load);
            let waited = (self::waited() - waited) / begin.elapsed().as_nanos() as f64;
            let (taken, held) = Scheduler::locks();
            let each = |count: u64| count as f64 / load.total() as f64;
            figures.push((waited, each(taken - locks.0), each(held - locks.1)));
        }
    }
    println!("\n## Locks per job, multi-thread with two workers\n");
    println!("Of {rounds} rounds, the {kept} whose threads waited least for a processor. Where");
    println!("they waited most of the time, they took turns on one, and hardly met at a lock.\n");
    println!("| | | taken | held by another, median | lowest | highest | waited, of the time |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    for (title, name, _, _, mut figures) in rows {
        figures.sort_by(|a, b| a.0.total_cmp(&b.0));
        figures.truncate(kept);
        let column = |figure: fn(&(f64, f64, f64)) -> f64| {
            let mut column: Vec<_> = figures.iter().map(figure).collect();
            column.sort_by(f64::total_cmp);
            column
        };
        let (taken, held) = (median(column(|round| round.1)), column(|round| round.2));
        let (lowest, highest) = (held[0], held[kept - 1]);
        let (held, waited) = (median(held), median(column(|round| round.0)));
        print!("| {title} | {name} | {taken:.2} | {held:.3} | {lowest:.3} | {highest:.3} |");
        println!(" {waited:.2} |");
    }
}

/// Nanoseconds that threads of this process were ready to run, and did not; NaN where no Linux says.
#[cfg(tower_jobs_count_locks)]
fn waited() -> f64 {
    let of = |told: String| told.split_whitespace().nth(1)?.parse::<f64>().ok();
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    threads
        .filter_map(|thread| of(std::fs::read_to_string(thread.path().join("schedstat")).ok()?))
        .reduce(|sum, one| sum + one)
        .unwrap_or(f64::NAN)
}
