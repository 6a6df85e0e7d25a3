//! Running jobs, well or badly.

use std::{future::pending, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower_jobs_durable::{Durable, DurableJob};

use crate::store::{Seen, SendEmail, Store, TwoTries, mailer, store, until};

/// The error text of the only dead letter.
async fn dead_letter(store: &Store) -> String {
    let engine = store.engine();
    let admin = tower_jobs_durable::Engine::admin(&engine).unwrap();
    until("a job is dead", async || !admin.dead_letters(9).await.unwrap().is_empty()).await;
    let letters = admin.dead_letters(9).await.unwrap();
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert!(letters[0].ended.is_some());
    letters[0].error.clone()
}

/// Waits until the job has failed, and returns the seconds to its next try.
async fn pause_after(store: &Store, attempts: u32) -> f64 {
    let failed = format!(
        "select count(*) from graphile_worker.jobs where locked_at is null and attempts = {attempts} \
         and last_error is not null"
    );
    until("the try has failed", async || store.value(&failed).await == "1").await;
    let pause = "select extract(epoch from run_at - now()) from graphile_worker.jobs";
    store.value(pause).await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_job_waits_and_is_dead_after_its_tries() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let noted = seen.clone();
    let durable = Durable::builder(store.engine())
        .register(move |_: TwoTries, context| {
            let noted = noted.clone();
            async move {
                noted.add(format!("{} {}", context.attempt, context.crashes));
                Err::<(), _>(format!("no answer {}", context.attempt))
            }
        })
        .start();
    durable.outbox().push(TwoTries(7)).await.unwrap();
    let pause = pause_after(&store, 1).await;
    assert!(pause < 2.8, "e^1 s: {pause}");
    store.make_due().await;
    assert_eq!(dead_letter(&store).await, "the job failed: no answer 2");
    assert_eq!(seen.all(), ["1 0", "2 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_is_a_failed_try() {
    let Some(store) = store().await else { return };
    let durable = Durable::builder(store.engine())
        .register(|job: TwoTries, _| async move {
            assert!(job.0 == 0, "broken hard");
        })
        .start();
    durable.outbox().push(TwoTries(1)).await.unwrap();
    pause_after(&store, 1).await;
    store.make_due().await;
    let error = dead_letter(&store).await;
    assert!(error.contains("broken hard"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_timeout_is_a_failed_try() {
    let Some(store) = store().await else { return };
    let durable =
        Durable::builder(store.engine()).register(|_: TwoTries, _| pending::<()>()).start();
    durable.outbox().push(TwoTries(1)).await.unwrap();
    pause_after(&store, 1).await;
    store.make_due().await;
    let error = dead_letter(&store).await;
    assert!(error.contains("1s") || error.contains("time"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn value_that_is_no_object_comes_back() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let noted = seen.clone();
    let durable = Durable::builder(store.engine())
        .register(move |job: TwoTries, _| {
            let noted = noted.clone();
            async move { noted.add(job.0.to_string()) }
        })
        .start();
    durable.outbox().push(TwoTries(42)).await.unwrap();
    assert_eq!(seen.reach(1).await, ["42"]);
}

#[derive(Serialize, Deserialize)]
struct Zero(String);

impl DurableJob for Zero {
    const KIND: &'static str = "zero";
}

#[tokio::test(flavor = "multi_thread")]
async fn payload_with_a_zero_character_is_retried() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let noted = seen.clone();
    let durable = Durable::builder(store.engine())
        .register(move |job: Zero, context| {
            let noted = noted.clone();
            async move {
                noted.add(job.0);
                if context.attempt == 1 { Err("first") } else { Ok(()) }
            }
        })
        .start();
    durable.outbox().push(Zero("a\0b".into())).await.unwrap();
    pause_after(&store, 1).await;
    store.make_due().await;
    assert_eq!(seen.reach(2).await, ["a\0b", "a\0b"]);
    store.no_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_of_an_sql_producer_runs() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let _worker = mailer(&store, &seen);
    store.run(r#"select graphile_worker.add_job('send_email', '{"to": "sql@b"}')"#).await;
    assert_eq!(seen.reach(1).await, ["sql@b"]);
    store.no_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_named_queue_run_in_turn_without_polling() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    for to in ["1", "2", "3", "4", "5", "6", "7", "8"] {
        let payload = format!(r#"{{"to": "{to}"}}"#);
        store
            .run(&format!("select graphile_worker.add_job('send_email', '{payload}', 'queue')"))
            .await;
    }
    let started = Instant::now();
    let _worker = mailer(&store, &seen);
    assert_eq!(seen.reach(8).await, ["1", "2", "3", "4", "5", "6", "7", "8"]);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "by the poll alone it is 14 s: {took:?}");
    store.no_rows().await;
    let locked =
        "select count(*) from graphile_worker._private_job_queues where locked_at is not null";
    assert_eq!(store.value(locked).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_of_another_shape_is_retried() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let _worker = mailer(&store, &seen);
    store.run(r#"select graphile_worker.add_job('send_email', '{"address": "a@b"}')"#).await;
    pause_after(&store, 1).await;
    let error = store.value("select last_error from graphile_worker.jobs").await;
    assert!(error.contains("missing field `to`"), "{error}");
    let payload = "select payload from graphile_worker._private_jobs";
    assert_eq!(store.value(payload).await, r#"{"_tower_jobs":{"failures":1},"address":"a@b"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_that_serde_cannot_read_is_dead_and_others_run() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    store.run(r#"select graphile_worker.add_job('send_email', '{"to": 1e400}')"#).await;
    store.run(r#"select graphile_worker.add_job('send_email', '{"to": "a"}')"#).await;
    let _worker = mailer(&store, &seen);
    assert_eq!(seen.reach(1).await, ["a"]);
    let error = dead_letter(&store).await;
    assert!(error.contains("not JSON"), "{error}");
    store.run(r#"select graphile_worker.add_job('send_email', '{"to": "b"}')"#).await;
    assert_eq!(seen.reach(2).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_kind_is_left_alone() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let _worker = mailer(&store, &seen);
    store.run("select graphile_worker.add_job('of_the_next_version', '{}')").await;
    store.run(r#"select graphile_worker.add_job('send_email', '{"to": "a"}')"#).await;
    seen.reach(1).await;
    until("one row is left", async || store.rows().await == 1).await;
    let left = "select task_identifier || attempts from graphile_worker.jobs";
    assert_eq!(store.value(left).await, "of_the_next_version0");
}

#[tokio::test(flavor = "multi_thread")]
async fn kind_at_its_limit_leaves_room_to_others() {
    let Some(store) = store().await else { return };
    let outbox = store.durable().outbox();
    for number in 0..6 {
        outbox.push(Zero(number.to_string())).await.unwrap();
    }
    outbox.push(crate::store::email("a")).await.unwrap();
    let (seen, noted) = (Seen::default(), Seen::default());
    let (mails, numbers) = (seen.clone(), noted.clone());
    let _worker = Durable::builder(store.engine())
        .register_limited(2, move |job: Zero, _| {
            numbers.add(job.0);
            pending::<()>()
        })
        .register(move |job: SendEmail, _| {
            let mails = mails.clone();
            async move { mails.add(job.to) }
        })
        .limit(4)
        .start();
    seen.reach(1).await;
    noted.reach(2).await;
    assert_eq!(noted.all().len(), 2);
    let held =
        "select count(*) from graphile_worker.jobs where locked_at is not null and attempts = 1";
    until("two are held", async || store.value(held).await == "2").await;
}
