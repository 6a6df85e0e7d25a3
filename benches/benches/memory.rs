//! What a waiting job holds, and how often one allocates, counted and not timed.

use std::{
    alloc::System,
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, yield_now},
};
use tokio_util::task::TaskTracker;
use tower_jobs::Job;
use tower_jobs_benches::{
    Chart, Contender, Detached, Flavour, PermitInside, Report, Table, is_brief,
    names::{AWAITED, DETACHED, INSIDE, TASKS},
    noop, scheduler,
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// All that is allocated by now, and what of it is held.
#[derive(Clone, Copy)]
struct Heap {
    held: f64,
    allocations: f64,
}

impl Heap {
    fn now() -> Self {
        let stats = ALLOCATOR.stats();
        Self {
            held: stats.bytes_allocated as f64 - stats.bytes_deallocated as f64,
            // A table that grows is a few reallocations in all.
            allocations: stats.allocations as f64,
        }
    }
}

struct Row {
    name: &'static str,
    /// Bytes held for each waiting job, as asked of the allocator.
    waiting: f64,
    /// Bytes still held for each when all have ended, by whatever serves the next ones.
    left: f64,
    /// Allocations for each, from its spawn to its end.
    allocations: f64,
}

/// Counts what `jobs` futures or jobs hold, which `spawn` makes and leaves waiting until `end`.
async fn measure<T>(
    name: &'static str,
    jobs: usize,
    spawn: impl AsyncFnOnce() -> T,
    end: impl AsyncFnOnce(&mut T),
) -> Row {
    let before = Heap::now();
    let mut spawned = spawn().await;
    // Tasks have their first poll.
    for _ in 0..jobs {
        yield_now().await;
    }
    let waiting = Heap::now();
    end(&mut spawned).await;
    let after = Heap::now();
    let each = |difference: f64| difference / jobs as f64;
    Row {
        name,
        waiting: each(waiting.held - before.held),
        left: each(after.held - before.held),
        allocations: each(after.allocations - before.allocations),
    }
}

async fn ours_detached(jobs: usize) -> Row {
    let scheduler = scheduler(Some(1));
    let gate = scheduler.spawn(pending::<()>()).await.expect("open");
    let ours = Detached(scheduler, noop);
    let end = async |(): &mut ()| {
        gate.abort();
        ours.wait().await;
    };
    measure(DETACHED, jobs, async || ours.spawn(jobs).await, end).await
}

async fn ours_awaited(jobs: usize) -> Row {
    let scheduler = scheduler(Some(1));
    let gate = scheduler.spawn(pending::<()>()).await.expect("open");
    let handles = Vec::with_capacity(jobs);
    let spawn = async || {
        let mut handles = handles;
        for _ in 0..jobs {
            handles.push(scheduler.spawn(noop()).await.expect("open"));
        }
        handles
    };
    let end = async |handles: &mut Vec<Job<()>>| {
        gate.abort();
        for handle in handles.drain(..) {
            handle.await.expect("a job without a failure");
        }
    };
    measure(AWAITED, jobs, spawn, end).await
}

async fn permits(jobs: usize) -> Row {
    let permits = Arc::new(Semaphore::new(1));
    let gate = permits.acquire().await.expect("open");
    let theirs = PermitInside(TaskTracker::new(), permits.clone(), noop);
    let end = async |(): &mut ()| {
        drop(gate);
        theirs.wait().await;
    };
    measure(INSIDE, jobs, async || theirs.spawn(jobs).await, end).await
}

async fn tasks(jobs: usize) -> Row {
    let handles = Vec::with_capacity(jobs);
    let spawn = async || {
        let mut handles = handles;
        handles.extend((0..jobs).map(|_| tokio::spawn(pending::<()>())));
        handles
    };
    let end = async |handles: &mut Vec<JoinHandle<()>>| {
        for handle in handles.drain(..) {
            handle.abort();
            handle.await.expect_err("cancelled");
        }
    };
    measure(TASKS, jobs, spawn, end).await
}

fn rows(jobs: usize) -> [Row; 4] {
    // A runtime's own queue grows once, so each has its own.
    let run =
        |row: Pin<Box<dyn Future<Output = Row>>>| Flavour::CurrentThread.runtime().block_on(row);
    [
        run(Box::pin(ours_detached(jobs))),
        run(Box::pin(ours_awaited(jobs))),
        run(Box::pin(permits(jobs))),
        run(Box::pin(tasks(jobs))),
    ]
}

fn main() {
    let jobs = if is_brief() { 1000 } else { 100_000 };
    let rows = rows(jobs);
    let mut report = Report::new("memory");
    report.heading(&format!("{jobs} waiting no-op jobs"));
    let columns = ["", "bytes per waiting job", "still held afterwards", "allocations per job"];
    let mut table = Table::new(columns);
    for Row { name, waiting, left, allocations } in &rows {
        let [waiting, left] = [waiting, left].map(|bytes| format!("{bytes:.0}"));
        table.row([(*name).to_owned(), waiting, left, format!("{allocations:.2}")]);
    }
    report.table(&table);
    let bars = rows.iter().map(|row| (row.name, row.waiting));
    let title = "Memory of a waiting no-op job";
    report.chart("waiting", &Chart::bars(title, "bytes per job; less is better", bars));
    let of = |name| rows.iter().find(|row| row.name == name).expect("measured");
    let title = format!("bytes per waiting job, {DETACHED}, of {INSIDE}");
    let ratio = of(DETACHED).waiting / of(INSIDE).waiting;
    report.goals.at_most(title, Some(ratio), 0.5, 0.3);
    let title = format!("allocations per queued job, {DETACHED}");
    report.goals.at_most(title, Some(of(DETACHED).allocations), 3.0, 2.0);
    report.finish();
}
