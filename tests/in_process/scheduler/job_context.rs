//! The view that a job of `spawn_with` has of itself: its deadline, and the shutdown.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, advance, sleep};
use tower_jobs::{JobContext, Scheduler};

use crate::support::{Drops, HOUR, SECOND, turn, within};

/// The time that the job has left at its start, and 3 s later.
async fn time_left(context: JobContext) -> Result<[Option<Duration>; 2], Infallible> {
    let left = || context.deadline().map(|deadline| deadline - Instant::now());
    let first = left();
    sleep(3 * SECOND).await;
    Ok([first, left()])
}

#[tokio::test(start_paused = true)]
async fn deadline_is_the_end_of_the_run_timeout() {
    let scheduler = Scheduler::builder().limit(1).job_timeout(HOUR).build();
    let busy = scheduler.try_spawn(sleep(20 * SECOND)).unwrap();
    let own = scheduler.job("own").timeout(10 * SECOND).spawn_with(time_left).await.unwrap();
    let default = scheduler.spawn_with(time_left).await.unwrap();
    busy.await.unwrap();
    // It counts from the job's start, not from its spawn.
    assert_eq!(own.await.unwrap(), [Some(10 * SECOND), Some(7 * SECOND)]);
    assert_eq!(default.await.unwrap(), [Some(HOUR), Some(HOUR - 3 * SECOND)]);
    let none = Scheduler::new().spawn_with(time_left).await.unwrap();
    assert_eq!(none.await.unwrap(), [None, None]);
}

/// A job that uses its whole time is cut short at the moment that it was told.
#[tokio::test(start_paused = true)]
async fn job_is_cut_short_at_its_deadline() {
    let scheduler = Scheduler::new();
    let job = scheduler.job("late").timeout(5 * SECOND).spawn_with(async |context| {
        sleep(SECOND).await;
        tokio::time::sleep_until(context.deadline().unwrap() + SECOND).await;
    });
    let began = Instant::now();
    assert!(job.await.unwrap().await.unwrap_err().is_timeout());
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn deadline_is_that_of_the_drain_if_it_is_earlier() {
    for (timeout, expected) in [(None, 8), (Some(4), 4), (Some(60), 8)] {
        let scheduler = Scheduler::builder().wait_timeout(8 * SECOND).build();
        let builder = match timeout {
            Some(seconds) => scheduler.job("job").timeout(seconds * SECOND),
            None => scheduler.job("job"),
        };
        let job = builder.spawn_with(async |context| {
            let before = context.deadline().map(|deadline| deadline - Instant::now());
            context.shutting_down().await;
            let after = context.deadline().map(|deadline| deadline - Instant::now());
            Ok::<_, Infallible>([before, after])
        });
        let job = job.await.unwrap();
        turn().await;
        let (report, times) = tokio::join!(scheduler.wait_and_close(), job);
        assert!(report.is_clean(), "{report}");
        let before = timeout.map(|seconds| seconds * SECOND);
        assert_eq!(times.unwrap(), [before, Some(expected * SECOND)]);
    }
}

#[tokio::test(start_paused = true)]
async fn job_hears_the_shutdown_before_it_is_cancelled() {
    let scheduler = Scheduler::builder().close_timeout(SECOND).build();
    let job = scheduler.spawn_with(async |context| {
        context.shutting_down().await;
        let began = Instant::now();
        let cancelled = context.is_cancelled();
        context.cancelled().await;
        // Once it has begun, it resolves at once.
        context.shutting_down().await;
        Ok::<_, Infallible>((cancelled, began.elapsed().as_secs()))
    });
    let job = job.await.unwrap();
    turn().await;
    advance(SECOND).await;
    assert!(!job.is_finished());
    drop(within("the drain", scheduler.wait_and_close_within(5 * SECOND)).await);
    assert_eq!(job.await.unwrap(), (false, 5));
}

#[test]
fn unstarted_job_does_not_keep_its_scheduler() {
    let dropped = Drops::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let scheduler = Scheduler::new();
        scheduler.pause();
        let held = dropped.one();
        drop(scheduler.spawn_with(async move |_| drop(held)).await.unwrap());
    });
    drop(runtime);
    assert_eq!(dropped.count(), 1);
}
