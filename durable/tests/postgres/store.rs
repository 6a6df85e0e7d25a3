//! A migrated database, and kinds of jobs.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool, Row, postgres::PgPoolOptions};
use tokio::time::{Instant, sleep};
use tower_jobs::{Scheduler, Shutdown, ShutdownReport, StopSignal};
use tower_jobs_durable::{Durable, DurableJob, Postgres, PushOptions};

use crate::postgres;

/// Time after which a test fails. Only a machine that is overloaded takes as long.
const PLENTY: Duration = Duration::from_secs(90);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SendEmail {
    pub(crate) to: String,
}

impl DurableJob for SendEmail {
    const KIND: &'static str = "send_email";
}

/// A job with two tries.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TwoTries(pub(crate) u32);

impl DurableJob for TwoTries {
    const KIND: &'static str = "two_tries";
    const MAX_ATTEMPTS: u32 = 2;
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(1));
}

pub(crate) fn email(to: &str) -> SendEmail {
    SendEmail { to: to.to_owned() }
}

/// A database of one test.
pub(crate) struct Store {
    pub(crate) pool: PgPool,
}

/// `None` where PostgreSQL is not installed.
pub(crate) async fn store() -> Option<Store> {
    let store = empty_store().await?;
    store.engine().migrate().await.unwrap();
    Some(store)
}

pub(crate) async fn empty_store() -> Option<Store> {
    Some(Store::at(&postgres::server()?.database().await).await)
}

impl Store {
    pub(crate) async fn at(url: &str) -> Self {
        let pool = PgPoolOptions::new().max_connections(5).connect(url).await.unwrap();
        Self { pool }
    }

    pub(crate) fn engine(&self) -> Postgres {
        Postgres::new(self.pool.clone())
    }

    /// Pushes only.
    pub(crate) fn durable(&self) -> Durable {
        Durable::builder(self.engine()).start()
    }

    pub(crate) async fn run(&self, sql: &str) -> u64 {
        sqlx::query(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap().rows_affected()
    }

    /// With a parameter, which the driver does not log.
    pub(crate) async fn run_with(&self, sql: &'static str, text: &str) {
        sqlx::query(sql).bind(text).execute(&self.pool).await.unwrap();
    }

    /// The only value of a query, as text.
    pub(crate) async fn value(&self, sql: &str) -> String {
        let sql = format!("select ({sql})::text");
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap();
        row.get::<Option<String>, _>(0).unwrap_or_default()
    }

    pub(crate) async fn rows(&self) -> u64 {
        self.value("select count(*) from graphile_worker.jobs").await.parse().unwrap()
    }

    pub(crate) async fn no_rows(&self) {
        until("all rows are gone", async || self.rows().await == 0).await;
    }

    /// Makes the waiting jobs due, in place of their pause.
    pub(crate) async fn make_due(&self) {
        self.run(
            "update graphile_worker._private_jobs set run_at = now() - interval '1 second' \
             where locked_at is null",
        )
        .await;
        self.run(r#"select pg_notify('jobs:insert', '{"r":0,"count":1}')"#).await;
    }
}

/// Waits until it is true.
pub(crate) async fn until(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !is_true().await {
        assert!(started.elapsed() < PLENTY, "waited {PLENTY:?} in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Ends the jobs as an application does.
pub(crate) async fn end(durable: &Durable, grace: Duration) -> ShutdownReport<()> {
    let scheduler = Scheduler::builder().build();
    Shutdown::with_trigger(&scheduler, std::future::ready(()))
        .grace(grace)
        .part("durable", durable.part())
        .serve(|stop: StopSignal| stop)
        .await
}

/// Texts that handlers have seen, in order.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(crate) fn add(&self, text: impl Into<String>) {
        self.0.lock().unwrap().push(text.into());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) async fn reach(&self, count: usize) -> Vec<String> {
        until("the handlers have run", async || self.all().len() >= count).await;
        self.all()
    }
}

/// Runs e-mails, and notes their receivers.
pub(crate) fn mailer(store: &Store, seen: &Seen) -> Durable {
    let seen = seen.clone();
    Durable::builder(store.engine())
        .register(move |job: SendEmail, _| {
            let seen = seen.clone();
            async move { seen.add(job.to) }
        })
        .dead_after(Duration::from_secs(3))
        .start()
}

pub(crate) fn keyed(key: &str) -> PushOptions {
    PushOptions::new().unique_key(key)
}
