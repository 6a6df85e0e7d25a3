//! Memory under overload, and after slow clients: a flat line, in bytes asked of the allocator.
//!
//! In a binary of its own because its allocator counts, and tests beside it would be counted as well.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "helpers spawn tasks, and a test may panic"
)]

mod support;

use std::{alloc::System, sync::Arc};

use axum::{Router, http::StatusCode, routing::get};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    sync::{Mutex, Semaphore},
    task::yield_now,
};
use tower_jobs::{Jobs, JobsLayer, Scheduler, SpawnError};

use support::{
    assert_adds_up, limited,
    oneshot::{call, text},
    slow_clients::Site,
    turn,
    wire::{Http1, Http2, Protocol},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Held by the test whose bytes are counted.
static ALONE: Mutex<()> = Mutex::const_new(());

const KIB: usize = 1024;

/// Bytes that are allocated now.
fn held() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

fn count(number: usize) -> u64 {
    number.try_into().unwrap()
}

/// Fails if the later figures exceed the first by more than `more`.
fn assert_flat(figures: &[usize], more: usize) {
    let most = figures.iter().max().unwrap();
    assert!(*most <= figures[0] + more, "bytes held grew: {figures:?}");
}

const LIMIT: usize = 20;
const PENDING_LIMIT: usize = 200;
/// Requests for each job that ends.
const OVERLOAD: usize = 10;

/// A handler whose responses end at once, and whose jobs wait for `end`.
fn deferring(scheduler: &Scheduler, end: &Arc<Semaphore>) -> Router {
    let end = end.clone();
    let handler = move |jobs: Jobs| {
        let end = end.clone();
        async move {
            let job = jobs.after_response(async move {
                let held = [0_u8; KIB];
                end.acquire().await.unwrap().forget();
                std::hint::black_box(held);
            })?;
            drop(job);
            Ok::<_, SpawnError>("accepted")
        }
    };
    Router::new().route("/", get(handler)).layer(JobsLayer::new(scheduler.clone()))
}

/// Waves of a hundred clients that read slowly, read nothing or vanish. The first waves fill the caches of
/// the runtime and of the scheduler.
async fn slow_clients_leave_no_bytes(protocol: Protocol) {
    let mut site = Site::start(protocol).await;
    let mut figures = Vec::new();
    for wave in 0..8 {
        assert_eq!(site.wave().await, 0, "values held after wave {wave}");
        turn().await;
        if wave >= 2 {
            figures.push(held());
        }
    }
    assert_flat(&figures, 8 * KIB);
}

#[tokio::test]
async fn slow_clients_leave_no_bytes_behind() {
    let _alone = ALONE.lock().await;
    slow_clients_leave_no_bytes(Http1).await;
    slow_clients_leave_no_bytes(Http2).await;
}

#[tokio::test]
async fn overload_is_refused_and_memory_stays_flat() {
    let _alone = ALONE.lock().await;
    let scheduler = limited(LIMIT, PENDING_LIMIT);
    let end = Arc::new(Semaphore::new(0));
    let app = deferring(&scheduler, &end);
    let [mut accepted, mut refused] = [0; 2];
    let mut figures = Vec::new();
    for round in 0..200 {
        for _ in 0..LIMIT * OVERLOAD {
            let response = call(app.clone(), "GET", "/").await;
            match response.status() {
                StatusCode::OK => accepted += 1,
                StatusCode::SERVICE_UNAVAILABLE => refused += 1,
                status => panic!("{status}"),
            }
            drop(text(response).await);
        }
        end.add_permits(LIMIT);
        let ended = (round + 1) * count(LIMIT);
        while scheduler.stats().completed < ended {
            yield_now().await;
        }
        let stats = scheduler.stats();
        assert_adds_up(&stats);
        assert!(stats.pending <= count(PENDING_LIMIT) && stats.active <= count(LIMIT), "{stats:?}");
        if round >= 20 && round % 20 == 0 {
            figures.push(held());
        }
    }
    assert!(refused > 8 * accepted, "{refused} refused of {}", refused + accepted);
    assert_flat(&figures, 8 * KIB);
    // Full is 220 jobs of some more than a KiB each.
    assert!(figures[0] < 4 * KIB * (LIMIT + PENDING_LIMIT), "bytes held: {figures:?}");
}
