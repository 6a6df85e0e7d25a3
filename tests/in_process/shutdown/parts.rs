//! Parts of an application that are no jobs, and end with it.

use std::{
    future::{pending, ready},
    io,
    sync::{Arc, Mutex},
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, task::spawn as poll_by_hand};
use tower_jobs::{PartOutcome, Scheduler, ServerOutcome, Shutdown, ShutdownReport};

use super::at_once;
use crate::support::{Drops, SECOND, holding, turn};

fn outcomes<T>(report: &ShutdownReport<T>) -> Vec<(&str, &PartOutcome)> {
    report.parts.iter().map(|part| (&*part.name, &part.outcome)).collect()
}

#[tokio::test(start_paused = true)]
async fn part_sees_the_beginning_and_the_end_of_the_jobs() {
    let scheduler = Scheduler::new();
    drop(scheduler.spawn(sleep(5 * SECOND)).await.unwrap());
    let (trigger, triggered) = oneshot::channel::<()>();
    let (log, began) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
    let (noted, jobs) = (log.clone(), scheduler.clone());
    let serving = Shutdown::with_trigger(&scheduler, async { drop(triggered.await) })
        .grace(20 * SECOND)
        .on_unstarted(|_| ready(()))
        .part("pool", move |part| async move {
            let note = |text| noted.lock().unwrap().push((text, began.elapsed().as_secs()));
            assert_eq!(part.deadline(), None);
            note("started");
            part.begun().await;
            assert_eq!(part.deadline(), Some(began + 22 * SECOND));
            note("begun");
            part.jobs_over().await;
            assert!(jobs.is_closed());
            note("jobs over");
            sleep(3 * SECOND).await;
            note("ended");
        })
        .serve(|stop| stop);
    let serving = tokio::spawn(serving);
    sleep(2 * SECOND).await;
    trigger.send(()).unwrap();
    let report = serving.await.unwrap();
    let expected = [("started", 0), ("begun", 2), ("jobs over", 5), ("ended", 8)];
    assert_eq!(*log.lock().unwrap(), expected);
    assert_eq!(outcomes(&report), [("pool", &PartOutcome::Ended)]);
    assert!(report.is_clean() && !report.to_string().contains("pool"), "{report}");
    assert_eq!(began.elapsed().as_secs(), 8);
}

#[tokio::test(start_paused = true)]
async fn part_that_does_not_end_is_dropped_and_named() {
    let (scheduler, drops) = (Scheduler::new(), Drops::default());
    let (held, began) = (drops.one(), Instant::now());
    let report = at_once(&scheduler)
        .grace(10 * SECOND)
        .part("consumer", move |_| holding(held))
        .part("quick", |_| ready(()))
        .serve(|stop| stop)
        .await;
    assert_eq!(began.elapsed().as_secs(), 10);
    let expected = [("consumer", &PartOutcome::Unfinished), ("quick", &PartOutcome::Ended)];
    assert_eq!(outcomes(&report), expected);
    assert!(report.to_string().contains("; part \"consumer\" unfinished; in all"), "{report}");
    assert!(!report.is_clean());
    turn().await;
    assert_eq!(drops.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn part_that_fails_or_panics_is_named_with_its_text() {
    let scheduler = Scheduler::new();
    let report = at_once(&scheduler)
        .part("broker", |_| async { Err::<(), _>(io::Error::other("no route")) })
        .part("cache", |part| async move {
            part.jobs_over().await;
            panic!("on purpose");
        })
        .serve(|stop| stop)
        .await;
    let expected = [
        ("broker", &PartOutcome::Failed("no route".into())),
        ("cache", &PartOutcome::Panicked("on purpose".into())),
    ];
    assert_eq!(outcomes(&report), expected);
    let text = report.to_string();
    assert!(text.contains("part \"broker\" failed (no route)"), "{text}");
    assert!(text.contains("part \"cache\" panicked (on purpose)"), "{text}");
    assert!(!report.is_clean());
}

#[tokio::test(start_paused = true)]
async fn jobs_leave_the_parts_their_grace() {
    let (scheduler, began) = (Scheduler::new(), Instant::now());
    drop(scheduler.spawn(pending::<()>()).await.unwrap());
    let report = at_once(&scheduler)
        .grace(20 * SECOND)
        .part_grace(3 * SECOND)
        .part("pool", |part| async move {
            part.jobs_over().await;
            let left = part.deadline().unwrap() - Instant::now();
            assert!(left >= 3 * SECOND, "{left:?}");
        })
        .serve(|stop| stop)
        .await;
    assert_eq!(report.jobs.cancelled.len(), 1);
    assert_eq!(outcomes(&report), [("pool", &PartOutcome::Ended)]);
    assert!(began.elapsed() >= 16 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn parts_take_a_quarter_of_a_short_grace() {
    let (scheduler, began) = (Scheduler::new(), Instant::now());
    drop(scheduler.spawn(pending::<()>()).await.unwrap());
    let (left, told) = oneshot::channel();
    at_once(&scheduler)
        .grace(4 * SECOND)
        .part_grace(60 * SECOND)
        .part("pool", move |part| async move {
            part.jobs_over().await;
            left.send(began.elapsed()).unwrap();
        })
        .serve(|stop| stop)
        .await;
    let over = told.await.unwrap();
    assert!(over <= 3 * SECOND && over > 2 * SECOND, "{over:?}");
}

#[tokio::test(start_paused = true)]
async fn part_runs_before_the_server_and_may_feed_it() {
    let scheduler = Scheduler::new();
    let (warm, warmed) = oneshot::channel();
    let report = at_once(&scheduler)
        .part("start-up work", |_| async { warm.send(7).unwrap() })
        .serve(|_| async { warmed.await.map(drop).map_err(io::Error::other) })
        .await;
    assert!(matches!(report.server, ServerOutcome::Finished(_)), "{report}");
    assert!(report.is_clean());
}

#[tokio::test(start_paused = true)]
async fn dropped_serve_drops_the_parts() {
    let (scheduler, drops) = (Scheduler::new(), Drops::default());
    let held = drops.one();
    let mut serving = poll_by_hand(
        Shutdown::with_trigger(&scheduler, pending())
            .part("consumer", move |part| async move {
                let _held = held;
                part.jobs_over().await;
            })
            .serve(|stop| stop),
    );
    assert_pending!(serving.poll());
    turn().await;
    assert_eq!(drops.count(), 0);
    drop(serving);
    turn().await;
    assert_eq!(drops.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn first_signal_after_the_servers_end_leaves_parts_their_time() {
    let (scheduler, began) = (Scheduler::new(), Instant::now());
    let report = Shutdown::with_trigger(&scheduler, sleep(2 * SECOND))
        .grace(20 * SECOND)
        .part_grace(SECOND)
        .part("pool", |part| async move {
            part.jobs_over().await;
            sleep(9 * SECOND).await;
        })
        .serve(|_| ready(()))
        .await;
    assert_eq!(outcomes(&report), [("pool", &PartOutcome::Ended)]);
    assert_eq!(began.elapsed().as_secs(), 9);
}

#[tokio::test(start_paused = true)]
async fn note_of_a_part_is_in_the_clean_report() {
    let scheduler = Scheduler::new();
    let part = |part: tower_jobs::PartContext| async move { part.note("released\n3") };
    let report = at_once(&scheduler).part("durable", part).serve(|stop| stop).await;
    assert_eq!(report.parts[0].note.as_deref(), Some("released\n3"));
    assert!(report.is_clean(), "{report}");
    assert!(
        report.to_string().contains("; part \"durable\" ended: released\\n3; in all"),
        "{report}"
    );
}

#[tokio::test(start_paused = true)]
async fn part_is_told_when_little_time_is_left() {
    let (scheduler, began) = (Scheduler::new(), Instant::now());
    let report = at_once(&scheduler)
        .grace(20 * SECOND)
        .part("durable", move |part| async move {
            part.left(4 * SECOND).await;
            part.note(format!("{} s", began.elapsed().as_secs()));
        })
        .serve(|stop| stop)
        .await;
    assert_eq!(report.parts[0].note.as_deref(), Some("16 s"));
}
