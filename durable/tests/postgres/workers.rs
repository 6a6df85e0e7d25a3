//! Several workers, dead ones, and rows that were lost.

use std::{collections::HashSet, future::pending, sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tower_jobs_durable::{Durable, PushOptions};

use crate::store::{Seen, SendEmail, Store, email, end, mailer, store, until};

/// A row that this worker holds, as far as the database knows.
async fn hold(store: &Store, worker: &str, attempts: u32) -> String {
    let payload = format!(r#"{{"to": "{worker}"}}"#);
    let id = store
        .value(&format!("select id from graphile_worker.add_job('send_email', '{payload}')"))
        .await;
    store
        .run(&format!(
            "update graphile_worker._private_jobs set locked_by = '{worker}', locked_at = now() - \
             interval '1 hour', attempts = {attempts} where id = {id}"
        ))
        .await;
    id
}

/// A heartbeat row.
async fn beat(store: &Store, worker: &str, age: &str, dead_after: Duration) {
    let metadata = format!(r#"{{"tower_jobs_dead_after_ms": {}}}"#, dead_after.as_millis());
    store.run(&format!("select graphile_worker.worker_heartbeat('{worker}', '{metadata}')")).await;
    store
        .run(&format!(
            "update graphile_worker._private_workers set last_heartbeat_at = now() - interval '{age}' \
             where id = '{worker}'"
        ))
        .await;
}

/// Runs e-mails, and notes how many processes have died.
fn counter(store: &Store, seen: &Seen) -> Durable {
    let seen = seen.clone();
    Durable::builder(store.engine())
        .register(move |job: SendEmail, context| {
            let seen = seen.clone();
            async move { seen.add(format!("{} {} {}", job.to, context.attempt, context.crashes)) }
        })
        .dead_after(Duration::from_secs(3))
        .start()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_run_each_of_200_jobs_once() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let (_one, two) = (mailer(&store, &seen), mailer(&store, &seen));
    for number in 0..200 {
        two.outbox().push(email(&number.to_string())).await.unwrap();
    }
    let all = seen.reach(200).await;
    store.no_rows().await;
    assert_eq!(seen.all().len(), 200);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_dead_worker_are_freed_with_a_crash() {
    let Some(store) = store().await else { return };
    let (short, long) = (Duration::from_secs(3), Duration::from_secs(3600));
    hold(&store, "tower-jobs-dead", 1).await;
    beat(&store, "tower-jobs-dead", "10 seconds", short).await;
    // Its own limit is longer.
    hold(&store, "tower-jobs-slow", 1).await;
    beat(&store, "tower-jobs-slow", "10 seconds", long).await;
    hold(&store, "tower-jobs-live", 1).await;
    beat(&store, "tower-jobs-live", "-1 hour", short).await;
    // Without a heartbeat row: one of ours, and one of Node's.
    hold(&store, "tower-jobs-gone", 1).await;
    hold(&store, "worker-0123456789abcdef", 1).await;

    let seen = Seen::default();
    let _worker = counter(&store, &seen);
    let mut all = seen.reach(2).await;
    all.sort();
    assert_eq!(all, ["tower-jobs-dead 1 1", "tower-jobs-gone 1 1"]);
    until("their rows are gone", async || store.rows().await == 3).await;
    let left = "select string_agg(locked_by, ' ' order by locked_by) from graphile_worker.jobs";
    assert_eq!(store.value(left).await, "tower-jobs-live tower-jobs-slow worker-0123456789abcdef");
    let workers =
        "select count(*) from graphile_worker._private_workers where id = 'tower-jobs-dead'";
    assert_eq!(store.value(workers).await, "0");
}

/// The sweep waits for a lock on its row. Meanwhile, the worker gives a sign of life.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_worker_that_comes_back_are_not_freed() {
    let Some(store) = store().await else { return };
    let limit = Duration::from_secs(3);
    let id = hold(&store, "tower-jobs-slow", 1).await;
    beat(&store, "tower-jobs-slow", "10 seconds", limit).await;
    hold(&store, "tower-jobs-dead", 1).await;
    beat(&store, "tower-jobs-dead", "10 seconds", limit).await;
    let mut settling = store.pool.begin().await.unwrap();
    let sql = format!("select 1 from graphile_worker._private_jobs where id = {id} for update");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *settling).await.unwrap();
    let seen = Seen::default();
    let _worker = counter(&store, &seen);
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                   and datname = current_database()";
    until("the sweep waits", async || store.value(waiting).await == "1").await;
    beat(&store, "tower-jobs-slow", "-1 hour", limit).await;
    settling.rollback().await.unwrap();
    assert_eq!(seen.reach(1).await, ["tower-jobs-dead 1 1"]);
    let holder = format!("select locked_by from graphile_worker.jobs where id = {id}");
    assert_eq!(store.value(&holder).await, "tower-jobs-slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_row_holds_up_no_other_completion() {
    let Some(store) = store().await else { return };
    let (started, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let (noted, opens) = (started.clone(), gate.clone());
    let durable = Durable::builder(store.engine())
        .register(move |job: SendEmail, _| {
            noted.add(job.to);
            let opens = opens.clone();
            async move { drop(opens.acquire().await) }
        })
        .start();
    let id = durable.outbox().push(email("a")).await.unwrap();
    for to in ["b", "c", "d"] {
        durable.outbox().push(email(to)).await.unwrap();
    }
    started.reach(4).await;
    let mut other = store.pool.begin().await.unwrap();
    let sql = format!("select 1 from graphile_worker._private_jobs where id = {id} for update");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *other).await.unwrap();
    gate.close();
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                   and datname = current_database() and query like 'with done as (select%'";
    until("the others are gone", async || {
        assert_eq!(store.value(waiting).await, "0", "the statement for all waits");
        store.rows().await == 1
    })
    .await;
    other.rollback().await.unwrap();
    store.no_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sweep_postpones_a_job_that_crashed_often() {
    let Some(store) = store().await else { return };
    hold(&store, "tower-jobs-dead", 5).await;
    hold(&store, "tower-jobs-dead", 25).await;
    let seen = Seen::default();
    let _worker = counter(&store, &seen);
    let postponed = "select round(extract(epoch from run_at - updated_at)) from graphile_worker.jobs \
                     where attempts = 5 and locked_at is null and updated_at > created_at";
    let is_postponed = format!("select count(*) from ({postponed}) as postponed");
    until("the row is free", async || store.value(&is_postponed).await == "1").await;
    // 0, 1, 2, 4, 8.
    assert_eq!(store.value(postponed).await, "8");
    let dead = "select last_error from graphile_worker.jobs where attempts = max_attempts";
    assert_eq!(store.value(dead).await, "the process died in the last of 25 starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_kills_its_processes_is_dead() {
    let Some(store) = store().await else { return };
    hold(&store, "tower-jobs-dead", 20).await;
    let seen = Seen::default();
    let _worker = counter(&store, &seen);
    let freed = "select count(*) from graphile_worker.jobs where locked_at is null";
    until("the row is free", async || store.value(freed).await == "1").await;
    store.make_due().await;
    let error = "select last_error from graphile_worker.jobs where attempts = max_attempts";
    until("it is dead", async || {
        store.value(&format!("select count(*) from ({error}) as dead")).await == "1"
    })
    .await;
    assert_eq!(store.value(error).await, "20 processes have died while it ran");
    assert!(seen.all().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn released_job_is_free_and_its_start_does_not_count() {
    let Some(store) = store().await else { return };
    let started = Seen::default();
    let noted = started.clone();
    let durable = Durable::builder(store.engine())
        .register(move |job: SendEmail, _| {
            noted.add(job.to);
            pending::<()>()
        })
        .start();
    durable.outbox().push(email("a")).await.unwrap();
    started.reach(1).await;
    let report = end(&durable, Duration::from_secs(4)).await;
    assert!(report.to_string().contains("1 released"), "{report}");
    assert!(report.is_clean(), "{report}");
    let row = "select attempts || coalesce(locked_by, ' free') from graphile_worker.jobs";
    assert_eq!(store.value(row).await, "0 free");
    let workers = "select count(*) from graphile_worker._private_workers";
    assert_eq!(store.value(workers).await, "0");

    let seen = Seen::default();
    let _next = counter(&store, &seen);
    assert_eq!(seen.reach(1).await, ["a 1 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_of_a_job_whose_row_was_lost_changes_nothing() {
    let Some(store) = store().await else { return };
    let (started, may_end) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let (noted, gate) = (started.clone(), may_end.clone());
    let durable = Durable::builder(store.engine())
        .register(move |job: SendEmail, _| {
            let (noted, gate) = (noted.clone(), gate.clone());
            async move {
                noted.add(job.to.clone());
                gate.acquire().await.unwrap().forget();
                match job.to.as_str() {
                    "done" => Ok(()),
                    _ => Err("failed"),
                }
            }
        })
        .start();
    for to in ["done", "failed"] {
        durable.outbox().push(email(to)).await.unwrap();
    }
    let once = PushOptions::new().max_attempts(1);
    durable.outbox().push_with(email("dead"), once).await.unwrap();
    started.reach(3).await;
    // As a sweep does, and not due, so that nothing claims them.
    let lose = "update graphile_worker._private_jobs set locked_by = null, locked_at = null, \
                run_at = now() + interval '1 hour'";
    store.run(lose).await;
    let rows = "select string_agg(jobs::text, E'\\n' order by id) from graphile_worker._private_jobs as jobs";
    let before = store.value(rows).await;
    may_end.add_permits(3);
    // Once the worker has ended, all ends are stored.
    let report = end(&durable, Duration::from_secs(20)).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(store.value(rows).await, before);
}
