//! Files, kinds and waiting.

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sqlx::{ConnectOptions, SqlitePool, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tower_jobs_durable::{DurableContext, DurableId, DurableJob, Sqlite};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A file of jobs, and a connection of another program to it.
pub(crate) struct File {
    _folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) sql: SqlitePool,
}

impl File {
    pub(crate) async fn new() -> (Sqlite, Self) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.db");
        let sqlite = Sqlite::open(&path).await.unwrap();
        let sql = SqlitePool::connect_with(options(&path)).await.unwrap();
        (sqlite, Self { _folder: folder, path, sql })
    }

    /// Waits until so many rows have the status.
    pub(crate) async fn until(&self, status: &str, count: i64) {
        until(&format!("{count} rows are {status}"), async || self.count(status).await == count)
            .await;
    }

    pub(crate) async fn count(&self, status: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM Jobs WHERE status = ?").bind(status);
        count.fetch_one(&self.sql).await.unwrap()
    }

    pub(crate) async fn run(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.sql).await.unwrap();
    }

    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.sql).await.unwrap()
    }

    pub(crate) async fn row(&self, id: &DurableId) -> Row {
        let row = "SELECT status, attempts, lock_by, run_at - unixepoch() FROM Jobs WHERE id = ?";
        let row = sqlx::query_as(row).bind(id.as_str()).fetch_one(&self.sql).await.unwrap();
        let (status, attempts, lock_by, pause) = row;
        Row { status, attempts, lock_by, pause }
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) status: String,
    pub(crate) attempts: i64,
    pub(crate) lock_by: Option<String>,
    pub(crate) pause: i64,
}

pub(crate) fn options(path: &PathBuf) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).foreign_keys(false).disable_statement_logging()
}

/// Waits for an event, by looking for it.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut happened: impl FnMut() -> F) {
    let began = Instant::now();
    while !happened().await {
        assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// What handlers have seen.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<(String, DurableContext)>>>);

impl Seen {
    pub(crate) fn add(&self, text: impl Into<String>, context: DurableContext) {
        self.0.lock().unwrap().push((text.into(), context));
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(text, _)| text.clone()).collect()
    }

    pub(crate) fn contexts(&self) -> Vec<DurableContext> {
        self.0.lock().unwrap().iter().map(|(_, context)| context.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(crate) async fn until(&self, count: usize) {
        until(&format!("{count} jobs have run"), async || self.len() >= count).await;
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) text: String,
}

impl DurableJob for Note {
    const KIND: &str = "note";
}

pub(crate) fn note(text: impl Into<String>) -> Note {
    Note { text: text.into() }
}

/// A job that is dead after two failures.
#[derive(Serialize, Deserialize)]
pub(crate) struct Twice {
    pub(crate) text: String,
}

impl DurableJob for Twice {
    const KIND: &str = "twice";
    const MAX_ATTEMPTS: u32 = 2;
    const TIMEOUT: Option<Duration> = Some(Duration::from_millis(50));
}

/// A job that is no JSON object.
#[derive(Serialize, Deserialize)]
pub(crate) struct Number(pub(crate) u32);

impl DurableJob for Number {
    const KIND: &str = "number";
    const MAX_ATTEMPTS: u32 = 2;
}
