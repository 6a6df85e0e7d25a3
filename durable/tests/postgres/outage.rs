//! The database is away for a time.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::sleep};
use tower_jobs_durable::{Durable, PushError};

use crate::{
    postgres::Server,
    store::{Seen, SendEmail, Store, TwoTries, email, mailer, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_end_while_the_database_is_away_run_once() {
    let Some(server) = Server::start() else { return };
    let store = Store::at(&server.database().await).await;
    store.engine().migrate().await.unwrap();
    let (seen, may_end) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let (noted, gate) = (seen.clone(), may_end.clone());
    let durable = Durable::builder(store.engine())
        .register(move |job: SendEmail, _| {
            let (noted, gate) = (noted.clone(), gate.clone());
            async move {
                noted.add(job.to);
                gate.acquire().await.unwrap().forget();
            }
        })
        .dead_after(Duration::from_secs(3))
        .limit(6)
        .start();
    // It sweeps, and must not take the other's rows when the database is back.
    let _sweeper = Durable::builder(store.engine())
        .register(|_: TwoTries, _| async {})
        .dead_after(Duration::from_secs(3))
        .start();
    for number in 0..10 {
        durable.outbox().push(email(&number.to_string())).await.unwrap();
    }
    seen.reach(6).await;
    server.stop();
    may_end.add_permits(100);
    let error = durable.outbox().push(email("away")).await.unwrap_err();
    assert!(matches!(error, PushError::Unavailable(_)), "{error:?}");
    until("the handlers have ended", async || may_end.available_permits() == 94).await;
    // Longer than the dead limit.
    sleep(Duration::from_secs(4)).await;
    server.restart();
    store.no_rows().await;
    let mut all = seen.all();
    all.sort();
    assert_eq!(all, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    // Notifications come again.
    durable.outbox().push(email("after")).await.unwrap();
    seen.reach(11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_starts_while_the_database_is_away() {
    let Some(server) = Server::start() else { return };
    let store = Store::at(&server.database().await).await;
    store.engine().migrate().await.unwrap();
    store.durable().outbox().push(email("before")).await.unwrap();
    server.stop();
    let seen = Seen::default();
    let _worker = mailer(&store, &seen);
    server.restart();
    assert_eq!(seen.reach(1).await, ["before"]);
}
