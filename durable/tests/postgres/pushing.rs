//! Storing jobs.

use std::time::Duration;

use axum::response::IntoResponse;
use tokio::time::Instant;
use tower_jobs_durable::{PushError, PushOptions};

use crate::store::{Seen, email, empty_store, keyed, mailer, store};

#[tokio::test(flavor = "multi_thread")]
async fn pushed_job_runs_and_its_row_goes() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let durable = mailer(&store, &seen);
    durable.outbox().push(email("a@b")).await.unwrap();
    assert_eq!(seen.reach(1).await, ["a@b"]);
    store.no_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_push_runs_and_rolled_back_one_does_not() {
    let Some(store) = store().await else { return };
    let durable = store.durable();
    let mut transaction = store.pool.begin().await.unwrap();
    durable.outbox().push_in(&mut transaction, email("no")).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(store.rows().await, 0);
    let mut transaction = store.pool.begin().await.unwrap();
    durable.outbox().push_in(&mut transaction, email("yes")).await.unwrap();
    assert_eq!(store.rows().await, 0, "not yet committed");
    transaction.commit().await.unwrap();
    assert_eq!(store.rows().await, 1);
    let seen = Seen::default();
    let _worker = mailer(&store, &seen);
    store.no_rows().await;
    assert_eq!(seen.all(), ["yes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_taken_until_its_job_completes() {
    let Some(store) = store().await else { return };
    let outbox = store.durable().outbox();
    let first = outbox.push_with(email("first"), keyed("user:1")).await.unwrap();
    let error = outbox.push_with(email("second"), keyed("user:1")).await.unwrap_err();
    assert!(matches!(&error, PushError::Duplicate(id) if *id == first), "{error:?}");
    assert_eq!(error.into_response().status(), 409);
    let mut transaction = store.pool.begin().await.unwrap();
    let again = outbox.push_in_with(&mut transaction, email("second"), keyed("user:1")).await;
    assert!(matches!(again, Err(PushError::Duplicate(_))), "{again:?}");
    // A duplicate does not break the transaction.
    outbox.push_in_with(&mut transaction, email("other"), keyed("user:2")).await.unwrap();
    transaction.commit().await.unwrap();
    let key = "select key from graphile_worker.jobs order by id limit 1";
    assert_eq!(store.value(key).await, "send_email:user:1");

    let seen = Seen::default();
    let _worker = mailer(&store, &seen);
    store.no_rows().await;
    outbox.push_with(email("third"), keyed("user:1")).await.unwrap();
    assert_eq!(seen.reach(3).await, ["first", "other", "third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_job_runs_when_it_is_due() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let durable = mailer(&store, &seen);
    let delay = PushOptions::new().delay(Duration::from_secs(3600));
    durable.outbox().push_with(email("later"), delay).await.unwrap();
    durable.outbox().push(email("now")).await.unwrap();
    assert_eq!(seen.reach(1).await, ["now"]);
    let wait = "select round(extract(epoch from run_at - created_at) / 60) from graphile_worker.jobs \
                where locked_at is null";
    assert_eq!(store.value(wait).await, "60");
    store.make_due().await;
    assert_eq!(seen.reach(2).await, ["now", "later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn due_job_is_seen_without_a_notification() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let durable = mailer(&store, &seen);
    let delay = PushOptions::new().delay(Duration::from_secs(1));
    durable.outbox().push_with(email("later"), delay).await.unwrap();
    assert_eq!(seen.reach(1).await, ["later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn higher_priority_starts_first() {
    let Some(store) = store().await else { return };
    let outbox = store.durable().outbox();
    for (to, priority) in [("low", i16::MIN), ("middle", 0), ("high", 7), ("highest", i16::MAX)] {
        let options = PushOptions::new().priority(priority);
        outbox.push_with(email(to), options).await.unwrap();
    }
    let seen = Seen::default();
    let noted = seen.clone();
    let _worker = tower_jobs_durable::Durable::builder(store.engine())
        .register(move |job: crate::store::SendEmail, _| {
            let noted = noted.clone();
            async move { noted.add(job.to) }
        })
        .limit(1)
        .start();
    assert_eq!(seen.reach(4).await, ["highest", "high", "middle", "low"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_tables_are_named_with_the_cure() {
    let Some(store) = empty_store().await else { return };
    let error = store.durable().outbox().push(email("a")).await.unwrap_err();
    let PushError::Refused(text) = error else { panic!("{error:?}") };
    assert!(text.to_string().contains("Postgres::migrate()"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn time_that_no_database_has_is_refused() {
    let Some(store) = store().await else { return };
    let at = std::time::UNIX_EPOCH + Duration::from_secs(1 << 50);
    let pushed = store.durable().outbox();
    let error = pushed.push_with(email("a"), PushOptions::new().run_at(at)).await.unwrap_err();
    assert!(matches!(error, PushError::Refused(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn push_to_a_database_that_is_away_is_unavailable() {
    let Some(store) = store().await else { return };
    let outbox = store.durable().outbox();
    store.pool.close().await;
    let error = outbox.push(email("a")).await.unwrap_err();
    assert!(matches!(error, PushError::Unavailable(_)), "{error:?}");
    assert_eq!(error.into_response().status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn push_that_waits_for_a_lock_ends_in_time() {
    let Some(store) = store().await else { return };
    let outbox = store.durable().outbox();
    // The first push of a kind stores the kind too, and holds up others of that kind until it commits.
    outbox.push(email("before")).await.unwrap();
    let mut transaction = store.pool.begin().await.unwrap();
    outbox.push_in_with(&mut transaction, email("first"), keyed("1")).await.unwrap();
    // With the transaction's, these take all connections of the pool.
    let pushes = ["2", "3", "4", "5"].map(|to| outbox.push_with(email(to), keyed("1")));
    for pushed in futures_util::future::join_all(pushes).await {
        assert!(matches!(pushed, Err(PushError::Unavailable(_))), "{pushed:?}");
    }
    // They do not wait for the lock any more.
    outbox.push(email("other")).await.unwrap();
    transaction.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_job_does_not_wait_for_the_poll() {
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let durable = mailer(&store, &seen);
    let mut waits = Vec::new();
    for number in 1..=7 {
        let pushed = Instant::now();
        durable.outbox().push(email("a")).await.unwrap();
        seen.reach(number).await;
        store.no_rows().await;
        waits.push(pushed.elapsed());
    }
    waits.sort();
    // By the poll alone, each takes about 2 s.
    assert!(waits[3] < Duration::from_secs(1), "{waits:?}");
}
