//! The bound of the dashboard's memory. It counts all of the process, so it is alone in it.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower_jobs::Scheduler;
use tower_jobs_dashboard::Dashboard;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that stay allocated after 10 000 jobs of as many names have failed with long texts.
async fn kept_bytes(is_watched: bool) -> i128 {
    let region = Region::new(ALLOCATOR);
    let scheduler = Scheduler::builder().on_failure(|_| {}).build();
    let dashboard = is_watched.then(|| Dashboard::new(&scheduler));
    for number in 0..10_000_u16 {
        let name = format!("{number} {}", "n".repeat(300));
        let letter = (b'a'..=b'z').map(char::from).nth(usize::from(number) % 26).expect("a letter");
        let error = format!("{letter} {}", "é".repeat(4_000));
        let job = scheduler.job(name).concurrency_key("k".repeat(300));
        let job = job.spawn(async move { Err::<(), _>(error) }).await.expect("open");
        job.await.expect_err("a failure");
    }
    let kept = region.change();
    drop(dashboard);
    kept.bytes_allocated as i128 - kept.bytes_deallocated as i128
}

#[tokio::test(flavor = "current_thread")]
async fn ten_thousand_names_and_failures_stay_below_a_megabyte() {
    kept_bytes(false).await;
    let without = kept_bytes(false).await;
    let with = kept_bytes(true).await;
    println!("{} bytes", with - without);
    assert!(with - without < 1_000_000, "{with} with, {without} without");
    // Full, or this test shows nothing.
    assert!(with - without > 300_000, "{with} with, {without} without");
}
