//! Several processes, dead ones, and a locked file.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::sleep};
use tower_jobs_durable::{Durable, DurableId, Sqlite};

use crate::support::{File, Note, Seen, note, until};

fn runs(sqlite: Sqlite, seen: &Seen) -> Durable {
    let seen = seen.clone();
    Durable::builder(sqlite)
        .dead_after(Duration::from_secs(3))
        .register(move |job: Note, context| {
            seen.add(job.text, context);
            async {}
        })
        .start()
}

#[tokio::test]
async fn two_workers_run_each_job_once() {
    let (sqlite, file) = File::new().await;
    let (ours, theirs) = (Seen::default(), Seen::default());
    let first = runs(sqlite, &ours);
    let _second = runs(Sqlite::open(&file.path).await.unwrap(), &theirs);
    for number in 0..200 {
        first.outbox().push(note(number.to_string())).await.unwrap();
    }
    file.until("Done", 200).await;
    let texts = [ours.texts(), theirs.texts()].concat();
    assert_eq!(texts.len(), 200);
    assert_eq!(texts.into_iter().collect::<HashSet<_>>().len(), 200);
}

#[tokio::test]
async fn rows_of_dead_workers_are_freed_with_a_crash() {
    let (sqlite, file) = File::new().await;
    file.run(
        "INSERT INTO Workers (id, worker_type, storage_name, last_seen) VALUES \
         ('tower-jobs-dead', 'tower-jobs', 'x', unixepoch() - 100), \
         ('tower-jobs-live', 'tower-jobs', 'x', unixepoch() + 600), \
         ('apalis', 'note', 'x', unixepoch() - 100)",
    )
    .await;
    file.run(
        "INSERT INTO Jobs (job, id, job_type, status, lock_by, lock_at) VALUES \
         ('{\"text\": \"dead\"}', 'dead', 'note', 'Running', 'tower-jobs-dead', unixepoch() - 100), \
         ('{\"text\": \"live\"}', 'live', 'note', 'Running', 'tower-jobs-live', unixepoch() - 100), \
         ('{\"text\": \"gone\"}', 'gone', 'note', 'Running', 'tower-jobs-gone', unixepoch() - 100), \
         ('{\"text\": \"foreign\"}', 'foreign', 'note', 'Running', 'apalis', unixepoch() - 100), \
         ('{\"text\": \"other\"}', 'other', 'note', 'Running', 'apalis-gone', unixepoch() - 100)",
    )
    .await;
    let seen = Seen::default();
    let _durable = runs(sqlite, &seen);
    file.until("Done", 2).await;
    let mut texts = seen.texts();
    texts.sort();
    assert_eq!(texts, ["dead", "gone"]);
    assert!(seen.contexts().iter().all(|context| (context.attempt, context.crashes) == (1, 1)));
    for kept in ["live", "foreign", "other"] {
        assert_eq!(file.row(&DurableId::new(kept)).await.status, "Running", "{kept}");
    }
    let workers = "SELECT count(*) FROM Workers WHERE id = 'tower-jobs-dead'";
    assert_eq!(file.number(workers).await, 0);
}

#[tokio::test]
async fn pause_after_a_crash_grows() {
    let (sqlite, file) = File::new().await;
    file.run(
        "INSERT INTO Jobs (job, id, job_type, status, attempts, lock_by, lock_at) VALUES \
         ('{\"text\": \"a\"}', 'first', 'other', 'Running', 0, 'tower-jobs-gone', 0), \
         ('{\"text\": \"a\", \"_tower_jobs\": {\"failures\": 4}}', 'failed', 'other', 'Running', 4, \
             'tower-jobs-gone', 0), \
         ('{\"text\": \"a\"}', 'often', 'other', 'Running', 5, 'tower-jobs-gone', 0), \
         ('{\"text\": \"a\"}', 'always', 'other', 'Running', 90, 'tower-jobs-gone', 0)",
    )
    .await;
    let _durable = runs(sqlite, &Seen::default());
    file.until("Pending", 4).await;
    for (id, least) in [("first", i64::MIN), ("failed", i64::MIN), ("often", 12), ("always", 56)] {
        let pause = file.row(&DurableId::new(id)).await.pause;
        assert!((least..=least.max(0) + 5).contains(&pause), "{id}: {pause}");
    }
}

#[tokio::test]
async fn end_of_a_job_whose_row_was_taken_changes_nothing() {
    let (sqlite, file) = File::new().await;
    let (seen, ends) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let (ran, waits) = (seen.clone(), ends.clone());
    let durable = Durable::builder(sqlite)
        .register(move |job: Note, context| {
            let waits = (job.text == "taken").then(|| waits.clone());
            ran.add(job.text, context);
            async move {
                if let Some(waits) = waits {
                    waits.acquire().await.unwrap().forget();
                }
            }
        })
        .start();
    let id = durable.outbox().push(note("taken")).await.unwrap();
    seen.until(1).await;
    file.run("UPDATE Jobs SET lock_by = 'tower-jobs-other', attempts = 1").await;
    ends.add_permits(1);
    durable.scheduler().wait_idle().await;
    // Ends are written in their order.
    durable.outbox().push(note("later")).await.unwrap();
    file.until("Done", 1).await;
    let row = file.row(&id).await;
    assert_eq!((row.status.as_str(), row.attempts), ("Running", 1));
    assert_eq!(row.lock_by.as_deref(), Some("tower-jobs-other"));
}

#[tokio::test]
async fn jobs_that_end_while_the_file_is_locked_run_once() {
    let (sqlite, file) = File::new().await;
    let (runs, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (ran, waits) = (runs.clone(), ends.clone());
    let durable = Durable::builder(sqlite)
        .register(move |_: Note, _| {
            ran.fetch_add(1, Ordering::Relaxed);
            let waits = waits.clone();
            async move { waits.acquire().await.unwrap().forget() }
        })
        .start();
    for _ in 0..10 {
        durable.outbox().push(note("a")).await.unwrap();
    }
    until("all run", async || runs.load(Ordering::Relaxed) == 10).await;
    let locked = file.sql.begin_with("BEGIN EXCLUSIVE").await.unwrap();
    ends.add_permits(10);
    durable.scheduler().wait_idle().await;
    // Not a wait for an event: the outage itself.
    sleep(Duration::from_secs(3)).await;
    locked.rollback().await.unwrap();
    file.until("Done", 10).await;
    assert_eq!(runs.load(Ordering::Relaxed), 10);
    assert_eq!(file.number("SELECT max(attempts) FROM Jobs").await, 1);
}

#[tokio::test]
async fn locks_of_the_file_free_no_row_of_live_workers() {
    let (sqlite, file) = File::new().await;
    let (seen, ends) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let worker = |sqlite: Sqlite| {
        let (seen, ends) = (seen.clone(), ends.clone());
        Durable::builder(sqlite)
            .limit(2)
            .dead_after(Duration::from_secs(3))
            .register(move |job: Note, context| {
                seen.add(job.text, context);
                let ends = ends.clone();
                async move { ends.acquire().await.unwrap().forget() }
            })
            .start()
    };
    let first = worker(sqlite);
    let _second = worker(Sqlite::open(&file.path).await.unwrap());
    for _ in 0..4 {
        first.outbox().push(note("a")).await.unwrap();
    }
    seen.until(4).await;
    // Longer than the dead limit, and a time to beat between. Not waits for events: the outages themselves.
    for _ in 0..4 {
        let locked = file.sql.begin_with("BEGIN EXCLUSIVE").await.unwrap();
        sleep(Duration::from_millis(3_700)).await;
        locked.rollback().await.unwrap();
        sleep(Duration::from_millis(900)).await;
    }
    ends.add_permits(100);
    file.until("Done", 4).await;
    assert_eq!(seen.len(), 4);
}
