//! How jobs end.

use std::{
    future::pending,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tower_jobs::{Scheduler, Shutdown};
use tower_jobs_durable::{Durable, DurableId, PushOptions};

use crate::support::{File, Note, Seen, Twice, note, until};

#[tokio::test]
async fn failed_job_waits_and_is_dead_after_its_attempts() {
    let (sqlite, file) = File::new().await;
    let seen = Seen::default();
    let ran = seen.clone();
    let durable = Durable::builder(sqlite)
        .register(move |job: Twice, context| {
            let attempt = context.attempt;
            ran.add(job.text, context);
            async move { Err::<(), _>(std::io::Error::other(format!("refused {attempt}"))) }
        })
        .start();
    let pushed_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let id = durable.outbox().push(Twice { text: "a".into() }).await.unwrap();
    until("the first try is stored", async || file.row(&id).await.attempts == 1).await;
    let row = file.row(&id).await;
    assert_eq!((row.status.as_str(), row.lock_by), ("Pending", None));
    let run_at = file.number("SELECT run_at FROM Jobs").await;
    // After e seconds, rounded up.
    assert!(Duration::from_secs(run_at.unsigned_abs()) > pushed_at + Duration::from_millis(2_718));
    assert!(row.pause <= 4, "{}", row.pause);
    file.run("UPDATE Jobs SET run_at = 0 WHERE status = 'Pending'").await;
    file.until("Killed", 1).await;
    let attempts: Vec<_> = seen.contexts().iter().map(|context| context.attempt).collect();
    assert_eq!(attempts, [1, 2]);
    let admin = durable.admin().unwrap();
    let letters = admin.dead_letters(10).await.unwrap();
    assert_eq!((&letters[0].id, letters[0].kind.as_str()), (&id, "twice"));
    assert_eq!((letters[0].error.as_str(), letters[0].starts), ("the job failed: refused 2", 2));
    assert!(letters[0].ended.is_some());
    assert_eq!(admin.depth().await.unwrap().dead, 1);
}

#[tokio::test]
async fn panic_and_run_timeout_are_failures() {
    let (sqlite, file) = File::new().await;
    let durable = Durable::builder(sqlite)
        .register(|job: Twice, _| async move {
            assert!(job.text != "panics", "out of cheese");
            pending::<()>().await;
        })
        .start();
    let once = || PushOptions::new().max_attempts(1);
    for text in ["panics", "lasts"] {
        durable.outbox().push_with(Twice { text: text.into() }, once()).await.unwrap();
    }
    file.until("Killed", 2).await;
    let letters = durable.admin().unwrap().dead_letters(10).await.unwrap();
    let mut errors: Vec<_> = letters.into_iter().map(|letter| letter.error).collect();
    errors.sort_by_key(|error| !error.contains("panicked"));
    assert!(errors[0].contains("out of cheese"), "{errors:?}");
    assert!(errors[1].contains("50ms"), "{errors:?}");
}

#[tokio::test]
async fn retried_dead_letter_starts_from_scratch() {
    let (sqlite, file) = File::new().await;
    let seen = Seen::default();
    let ran = seen.clone();
    let durable = Durable::builder(sqlite)
        .register(move |job: Note, context| {
            ran.add(job.text, context);
            let fails = ran.len() <= 2;
            async move { if fails { Err("twice") } else { Ok(()) } }
        })
        .start();
    let admin = durable.admin().unwrap();
    let twice = PushOptions::new().max_attempts(2);
    let id = durable.outbox().push_with(note("a"), twice).await.unwrap();
    until("the first try is stored", async || file.row(&id).await.attempts == 1).await;
    file.run("UPDATE Jobs SET run_at = 0").await;
    file.until("Killed", 1).await;
    assert!(admin.retry(&id).await.unwrap());
    file.until("Done", 1).await;
    let tries = seen.contexts().into_iter().map(|context| (context.attempt, context.crashes));
    assert_eq!(tries.collect::<Vec<_>>(), [(1, 0), (2, 0), (1, 0)]);
    assert!(!admin.retry(&id).await.unwrap());
    assert!(!admin.discard(&id).await.unwrap());
}

#[tokio::test]
async fn discarded_dead_letter_is_deleted() {
    let (sqlite, file) = File::new().await;
    let durable = Durable::builder(sqlite).start();
    let id = durable.outbox().push(note("a")).await.unwrap();
    let admin = durable.admin().unwrap();
    assert!(!admin.discard(&id).await.unwrap());
    file.run("UPDATE Jobs SET status = 'Killed'").await;
    assert!(admin.discard(&id).await.unwrap());
    assert_eq!(file.number("SELECT count(*) FROM Jobs").await, 0);
    assert!(!admin.discard(&DurableId::new("none")).await.unwrap());
}

#[tokio::test]
async fn depth_counts_each_state() {
    let (sqlite, file) = File::new().await;
    let durable = Durable::builder(sqlite).start();
    let later = || PushOptions::new().delay(Duration::from_secs(1_000));
    for _ in 0..2 {
        durable.outbox().push(note("a")).await.unwrap();
    }
    file.run("UPDATE Jobs SET run_at = run_at - 100").await;
    durable.outbox().push_with(note("b"), later()).await.unwrap();
    let depth = durable.admin().unwrap().depth().await.unwrap();
    assert_eq!((depth.ready, depth.later, depth.running, depth.dead), (2, 1, 0, 0));
    let age = depth.oldest_ready.unwrap().as_secs();
    assert!((100..160).contains(&age), "{age}");
}

#[tokio::test]
async fn job_cut_off_by_the_shutdown_counts_no_start() {
    let (sqlite, file) = File::new().await;
    let seen = Seen::default();
    let ran = seen.clone();
    let durable = Durable::builder(sqlite)
        .register(move |job: Note, context| {
            ran.add(job.text, context);
            pending::<()>()
        })
        .start();
    let id = durable.outbox().push(note("a")).await.unwrap();
    let started = seen.clone();
    let report = Shutdown::with_trigger(&Scheduler::new(), async move { started.until(1).await })
        .grace(Duration::from_secs(3))
        .part("durable", durable.part())
        .serve(|stop| stop)
        .await;
    assert!(report.is_clean() && report.to_string().contains("1 released"), "{report}");
    let row = file.row(&id).await;
    assert_eq!((row.status.as_str(), row.attempts, row.lock_by), ("Pending", 0, None));
    assert!(row.pause <= 0);
    assert_eq!(file.number("SELECT count(*) FROM Workers").await, 0);
}

#[tokio::test]
async fn finished_rows_are_deleted_after_their_time() {
    let (sqlite, file) = File::new().await;
    file.run(
        "INSERT INTO Jobs (job, id, job_type, status, done_at) VALUES \
         ('{}', 'old', 'note', 'Done', unixepoch() - 7300), \
         ('{}', 'young', 'note', 'Done', unixepoch() - 3500), \
         ('{}', 'dead', 'note', 'Killed', unixepoch() - 7300)",
    )
    .await;
    let _durable = Durable::builder(sqlite.keep_finished(Duration::from_secs(3_600)))
        .dead_after(Duration::from_secs(3))
        .register(|_: Note, _| async {})
        .start();
    file.until("Done", 1).await;
    assert_eq!(file.row(&DurableId::new("young")).await.status, "Done");
    assert_eq!(file.row(&DurableId::new("dead")).await.status, "Killed");
}
