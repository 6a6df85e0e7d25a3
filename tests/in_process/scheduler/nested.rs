//! Jobs that wait for jobs which they have spawned.

use std::time::Duration;

use tokio::time::timeout;
use tower_jobs::{JobState, Scheduler};

use crate::support::HOUR;

#[tokio::test(start_paused = true)]
async fn job_that_awaits_another_at_the_limit_is_listed_above_it() {
    let scheduler = Scheduler::builder().limit(1).build();
    let inside = scheduler.clone();
    let outer = scheduler.job("outer").spawn(async move {
        let inner = inside.job("inner").spawn(async { 7 }).await.unwrap();
        inner.await.unwrap()
    });
    let outer = outer.await.unwrap();
    assert!(timeout(HOUR, outer).await.is_err(), "the permit is the outer job's");
    let jobs = scheduler.jobs();
    let listed: Vec<_> = jobs.iter().map(|job| (&*job.name, job.state)).collect();
    assert_eq!(listed, [("outer", JobState::Active), ("inner", JobState::Pending)]);
    assert!(jobs.iter().all(|job| job.state_for >= HOUR), "{jobs:?}");
    let report = scheduler.wait_and_close_within(Duration::ZERO).await;
    assert_eq!((report.cancelled.len(), report.never_started.len()), (1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn job_at_the_limit_may_await_shielded_work() {
    let scheduler = Scheduler::builder().limit(1).build();
    let inside = scheduler.clone();
    let outer = scheduler.spawn(async move { inside.shield(async { 7 }).await.unwrap() });
    let outer = outer.await.unwrap();
    assert_eq!(timeout(HOUR, outer).await.unwrap().unwrap(), 7);
}
