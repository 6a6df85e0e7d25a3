//! The report of closing: its jobs, its time and its form.

use std::future::pending;

use tokio::time::{advance, sleep};
use tower_jobs::{DrainReport, JobInfo, JobState, Scheduler};

use crate::support::SECOND;

#[tokio::test(start_paused = true)]
async fn report_shows_the_moment_it_was_made_however_it_is_read() {
    let scheduler = Scheduler::builder().limit(1).build();
    for name in ["first", "second", "third"] {
        scheduler.job(name).concurrency_key("a key").spawn(pending::<()>()).await.unwrap();
        advance(SECOND).await;
    }
    let (report, other) = (scheduler.close().await, scheduler.close().await);
    drop(scheduler);
    advance(SECOND).await;

    let expected = [("second", 2 * SECOND), ("third", SECOND)];
    let shown = |job: &JobInfo| (job.name.to_string(), job.age, job.state, job.key.clone());
    let expected =
        expected.map(|(name, age)| (name.into(), age, JobState::Finished, Some("a key".into())));
    let jobs = &report.never_started;
    assert_eq!((jobs.len(), jobs.is_empty(), report.cancelled.len()), (2, false, 1));
    assert_eq!(jobs.iter().map(shown).collect::<Vec<_>>(), expected);
    assert_eq!(
        (jobs[1].id, jobs.last().map(|job| job.id)),
        (other.never_started[1].id, Some(jobs[1].id))
    );
    let mut read = Vec::new();
    for job in &other.clone().never_started {
        read.push(shown(job));
    }
    assert_eq!(read, expected);
    assert_eq!(format!("{jobs:?}"), format!("{:?}", jobs.to_vec()));
    let (read, unread) = (other.never_started, report.clone().cancelled);
    assert_eq!(read.into_iter().map(|job| shown(&job)).collect::<Vec<_>>(), expected);
    assert_eq!(unread.into_iter().map(|job| job.name).collect::<Vec<_>>(), ["first"]);
    let vec: Vec<JobInfo> = report.never_started.clone().into();
    assert_eq!(vec.iter().map(shown).collect::<Vec<_>>(), expected);
    let none = &report.failed;
    assert_eq!((none.len(), none.iter().count()), (0, 0));
    assert!(none.is_empty() && report.never_started.iter().len() == 2);
    assert!(DrainReport::default().never_started.into_iter().next().is_none());
}

#[tokio::test(start_paused = true)]
async fn report_is_shown_in_one_line() {
    let scheduler = Scheduler::builder().limit(2).wait_timeout(10 * SECOND).build();
    let _well = scheduler.spawn(async { sleep(SECOND).await }).await.unwrap();
    let mail = scheduler.job("welcome\ne-mail").spawn(pending::<()>()).await.unwrap();
    let pending_jobs = [
        scheduler.spawn(pending::<()>()).await.unwrap(),
        scheduler.spawn(pending::<()>()).await.unwrap(),
    ];
    let report = scheduler.wait_and_close().await;
    let text = format!(
        "drained in 10000 ms: 1 completed, 2 cancelled (job {} \"welcome\\ne-mail\" ({}), job {} \
         ({})), 1 never started (job {} ({}))",
        mail.id(),
        mail.info().location,
        pending_jobs[0].id(),
        pending_jobs[0].name(),
        pending_jobs[1].id(),
        pending_jobs[1].name(),
    );
    assert_eq!(report.to_string(), text);
    assert_eq!(text.lines().count(), 1);
    assert_eq!(Scheduler::new().close().await.to_string(), "drained in 0 ms: 0 completed");
}

#[tokio::test]
async fn report_names_its_scheduler() {
    let scheduler = Scheduler::builder().name("e-\nmails").build();
    let report = scheduler.close().await;
    assert_eq!(report.scheduler.as_deref(), Some("e-\nmails"));
    assert_eq!(report.to_string(), r#""e-\nmails" drained in 0 ms: 0 completed"#);
    let scheduler = Scheduler::builder().name("n".repeat(20_000)).build();
    assert!(scheduler.close().await.to_string().len() < 300);
}

#[tokio::test]
async fn report_line_is_short_and_has_a_share_for_each_outcome() {
    let long = "m".repeat(200);
    for (unstarted, name) in [(300, "mail"), (300, &*long), (3, &"m".repeat(20_000))] {
        let scheduler = Scheduler::builder().limit(300).build();
        for n in 0..300 + unstarted {
            drop(scheduler.job(format!("{name} {n}")).try_spawn(pending::<()>()).unwrap());
        }
        let report = scheduler.close().await;
        assert_eq!((report.cancelled.len(), report.never_started.len()), (300, unstarted));
        let text = report.to_string();
        assert!(text.len() < 15_000, "{} bytes", text.len());
        let are_named = name.len() < 1_000;
        for outcome in ["300 cancelled".to_owned(), format!("{unstarted} never started")] {
            let names = text.contains(&format!(", {outcome} (job "));
            assert!(text.contains(&outcome) && names == are_named, "{text}");
        }
        assert_eq!(text.matches(" more)").count(), if are_named { 2 } else { 0 }, "{text}");
    }
}

#[tokio::test]
async fn report_covers_only_the_time_of_the_drain() {
    let scheduler = Scheduler::new();
    scheduler.spawn(async { Err::<(), _>("no") }).await.unwrap().await.unwrap_err();
    scheduler.spawn(async {}).await.unwrap().await.unwrap();
    scheduler.spawn(pending::<()>()).await.unwrap().abort();
    scheduler.wait_idle().await;
    let report = scheduler.wait_and_close().await;
    assert_eq!((report.completed, report.is_clean()), (0, true), "{report}");
}
