//! Rows of apalis-sqlite, in an SQLite file.
//!
//! Schema, migrations and the workers' heartbeat are the engine's. The engine's own worker is not used, and a
//! statement on its tables is ours where its query cannot be used; each says why.

mod admin;
mod migrations;
mod push;
mod settle;
mod sql;
mod worker;

use std::{any::Any, path::Path, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, LocalBoxFuture};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::Notify;
use tower_jobs::BoxError;

use crate::{
    door::Door,
    engine::{Admin, Engine, NewRow, rows},
    error::PushError,
    job::DurableId,
};

const BUSY: Duration = Duration::from_secs(5);
const KEEP_FINISHED: Duration = Duration::from_secs(24 * 60 * 60);

/// An SQLite file of jobs, on the tables of apalis-sqlite 1.0. Cheap to clone.
///
/// Several processes of one machine may share the file. The file must not be on a network file system.
///
/// # Limits
///
/// * Times are whole seconds. A delay or a pause is rounded up.
/// * SQLite has one writer at a time, so a push waits for other transactions, at most 5 s.
/// * Other processes see a push, and this one a [`push_in`](crate::Outbox::push_in), within 250 ms.
/// * Each kind is a queue of apalis (`job_type`). A job of another producer is a row with that `job_type`.
#[derive(Clone, Debug)]
pub struct Sqlite {
    pool: SqlitePool,
    /// A job was pushed by this process.
    pushed: Arc<Notify>,
    keep_finished: Duration,
}

impl Sqlite {
    /// Opens a file, creates it if it is missing, and runs the engine's migrations.
    ///
    /// The file is set to write-ahead logging, with `synchronous = FULL`: a job that was pushed survives a
    /// power failure.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened or migrated, or is locked for more than 5 s.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, BoxError> {
        let options = SqliteConnectOptions::new()
            .filename(path.as_ref())
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let named = |error: BoxError| -> BoxError {
            format!("{} cannot be opened: {error}", path.as_ref().display()).into()
        };
        let pool = SqlitePoolOptions::new().acquire_timeout(BUSY).connect_with(options);
        let pool = pool.await.map_err(|error| named(error.into()))?;
        let sqlite = Self::new(pool)?;
        sqlite.migrate().await.map_err(named)?;
        Ok(sqlite)
    }

    /// Uses the file of a pool, and the pool for pushes. The worker opens connections of its own.
    ///
    /// It runs no migrations: call [`migrate`](Self::migrate). A push is as durable as the pool's `synchronous`
    /// makes it; the default of SQLite is `FULL`. The file should be in the journal mode WAL.
    ///
    /// # Errors
    ///
    /// If the pool's database is in memory, which the worker's connections could not see.
    pub fn new(pool: SqlitePool) -> Result<Self, BoxError> {
        let options = pool.connect_options();
        let name = options.get_filename();
        let is_in_memory = name.as_os_str().is_empty()
            || name == Path::new(":memory:")
            || name.to_string_lossy().starts_with("file:sqlx-in-memory-");
        if is_in_memory {
            return Err("the pool's database is in memory, and the worker opens connections of its own, which \
                would not see it: give a file, such as `sqlite://jobs.db?mode=rwc`, or one in a temporary \
                folder for tests"
                .into());
        }
        Ok(Self { pool, pushed: Arc::default(), keep_finished: KEEP_FINISHED })
    }

    /// Sets how long a completed job's row is kept. Defaults to 24 h. Dead letters are kept until they are
    /// retried or discarded.
    #[must_use]
    pub fn keep_finished(mut self, keep: Duration) -> Self {
        self.keep_finished = keep;
        self
    }

    /// Returns the pool that pushes use, for the application's own tables in the same file.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Runs the engine's migrations that the file does not have yet, in one transaction.
    ///
    /// They are noted in the table `_apalis_sqlite_migrations`, so that the application's own migrations, in
    /// `_sqlx_migrations`, stay apart. If apalis itself has set up the file, its notes are used.
    ///
    /// # Errors
    ///
    /// If a statement fails, or the file is locked for longer than the pool's busy timeout.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has run all of them or none.
    pub async fn migrate(&self) -> Result<(), BoxError> {
        migrations::run(&self.pool).await
    }

    /// Returns the engine's migrations as SQL, with the notes that [`migrate`](Self::migrate) would make.
    ///
    /// It is for an empty file, such as by `sqlite3 jobs.db < jobs.sql`.
    pub fn migrations_sql() -> String {
        migrations::printed()
    }
}

impl Engine for Sqlite {
    fn push(&self, row: NewRow) -> BoxFuture<'_, Result<DurableId, PushError>> {
        Box::pin(async move {
            let pushed = push::push(&self.pool, row).await;
            if pushed.is_ok() {
                self.pushed.notify_one();
            }
            pushed
        })
    }

    fn push_in<'a>(
        &'a self,
        connection: &'a mut (dyn Any + Send),
        row: NewRow,
    ) -> BoxFuture<'a, Result<DurableId, PushError>> {
        Box::pin(push::push_in(connection, row))
    }

    fn run(self: Arc<Self>, door: Door) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            let rows = worker::SqliteRows::new(&self, &door);
            rows::run(&rows, &door).await;
        })
    }

    fn admin(&self) -> Option<&dyn Admin> {
        Some(self)
    }
}
