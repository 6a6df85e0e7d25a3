//! What an operator asks of the store.

use std::time::Duration;

use tower_jobs_durable::{DurableId, PushError, PushOptions};

use crate::store::{Seen, Store, email, keyed, mailer, store};

/// Makes a job dead, with a failure in its payload.
async fn kill(store: &Store, id: &DurableId) {
    store
        .run(&format!(
            r#"update graphile_worker._private_jobs
               set payload = '{{"to": "dead", "_tower_jobs": {{"failures": 24, "label": "GET /"}}}}'
               where id = {id}"#
        ))
        .await;
    let sql = format!("select graphile_worker.permanently_fail_jobs(array[{id}], 'no answer')");
    store.run(&sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_counts_each_state() {
    let Some(store) = store().await else { return };
    let durable = store.durable();
    let admin = durable.admin().unwrap();
    assert_eq!(admin.depth().await.unwrap(), Default::default());
    let outbox = durable.outbox();
    outbox.push(email("ready")).await.unwrap();
    outbox.push(email("ready")).await.unwrap();
    let later = PushOptions::new().delay(Duration::from_secs(60));
    outbox.push_with(email("later"), later).await.unwrap();
    let held = outbox.push(email("held")).await.unwrap();
    store
        .run(&format!(
            "update graphile_worker._private_jobs set locked_at = now(), locked_by = 'x' \
             where id = {held}"
        ))
        .await;
    kill(&store, &outbox.push(email("dead")).await.unwrap()).await;
    store
        .run(
            "update graphile_worker._private_jobs set run_at = run_at - interval '100 seconds' \
             where run_at < now()",
        )
        .await;
    let depth = admin.depth().await.unwrap();
    assert_eq!((depth.ready, depth.later, depth.running, depth.dead), (2, 1, 1, 1));
    let oldest = depth.oldest_ready.unwrap().as_secs();
    assert!((100..200).contains(&oldest), "{oldest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_is_listed_and_runs_again() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let worker = mailer(&store, &seen);
    let (admin, outbox) = (worker.admin().unwrap(), worker.outbox());
    let options = keyed("1").delay(Duration::from_secs(60));
    let id = outbox.push_with(email("dead"), options).await.unwrap();
    assert!(!admin.retry(&id).await.unwrap(), "it is not dead");
    kill(&store, &id).await;

    let letters = admin.dead_letters(10).await.unwrap();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((&letter.id, letter.kind.as_str()), (&id, "send_email"));
    assert_eq!((letter.error.as_str(), letter.starts > 1), ("no answer", true));
    assert!(letter.ended.unwrap().elapsed().unwrap() < Duration::from_secs(60));
    assert!(admin.dead_letters(0).await.unwrap().is_empty());
    let again = outbox.push_with(email("dead"), keyed("1")).await;
    assert!(matches!(again, Err(PushError::Duplicate(dead)) if dead == id));

    let before = "select payload from graphile_worker._private_jobs";
    assert!(store.value(before).await.contains("24"));
    assert!(admin.retry(&id).await.unwrap());
    assert_eq!(seen.reach(1).await, ["dead"]);
    store.no_rows().await;
    assert!(!admin.retry(&id).await.unwrap(), "it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn retried_dead_letter_has_no_failures() {
    let Some(store) = store().await else { return };
    let durable = store.durable();
    let id = durable.outbox().push(email("dead")).await.unwrap();
    kill(&store, &id).await;
    assert!(durable.admin().unwrap().retry(&id).await.unwrap());
    let row = "select attempts || payload::text from graphile_worker._private_jobs";
    assert_eq!(store.value(row).await, r#"0{"_tower_jobs":{"label":"GET /"},"to":"dead"}"#);
    let due = "select run_at <= now() from graphile_worker.jobs";
    assert_eq!(store.value(due).await, "true");
    let marked = "select count(*) from graphile_worker._private_job_retirements";
    assert_eq!(store.value(marked).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_dead_letter_is_discarded() {
    let Some(store) = store().await else { return };
    let durable = store.durable();
    let admin = durable.admin().unwrap();
    let live = durable.outbox().push(email("live")).await.unwrap();
    let dead = durable.outbox().push(email("dead")).await.unwrap();
    kill(&store, &dead).await;
    assert!(!admin.discard(&live).await.unwrap());
    assert!(!admin.discard(&DurableId::new("no number")).await.unwrap());
    assert!(admin.discard(&dead).await.unwrap());
    assert!(!admin.discard(&dead).await.unwrap());
    assert_eq!(store.value("select id from graphile_worker.jobs").await, live.as_str());
}
