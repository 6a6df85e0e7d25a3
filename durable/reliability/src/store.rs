//! The stores that the tests run on.

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use sqlx::{Connection, Executor, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::time::sleep;
use tower_jobs_durable::{Engine, Postgres, Sqlite};

use crate::postgres::{self, Server};

const FILL_POSTGRES: &str = "\
    select count(*) from graphile_worker.add_jobs(array( \
    select row('work', json_build_object( \
    'n', n, 'takes', json_build_object('secs', 0, 'nanos', 0), 'how', 'Sleep'), \
    null, null, null, null, null, null)::graphile_worker.job_spec \
    from generate_series($1::bigint, $2::bigint - 1) as n))";

/// An id of the engine has 26 characters.
const FILL_SQLITE: &str = "\
    WITH RECURSIVE numbers(n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?2) \
    INSERT INTO Jobs (job, id, job_type, status, attempts, max_attempts, run_at, priority, metadata) \
    SELECT json_object('n', n, 'takes', json_object('secs', 0, 'nanos', 0), 'how', 'Sleep'), \
    printf('%026d', n), 'work', 'Pending', 0, 25, unixepoch(), 0, '{}' FROM numbers";

/// An empty store.
pub enum Store {
    /// A file, in a folder that is removed.
    Sqlite(TempDir),
    /// A database of a server.
    Postgres {
        /// Of the database.
        url: String,
        /// The server, if no other test uses it.
        server: Option<Server>,
    },
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url())
    }
}

/// Opens the engine that a URL names, with its tables.
///
/// # Panics
///
/// If it cannot be opened.
pub async fn open(url: &str) -> Arc<dyn Engine> {
    if url.starts_with("postgres") {
        let engine = Postgres::connect(url).await.expect("the database answers");
        engine.migrate().await.expect("the migrations run");
        Arc::new(engine)
    } else {
        Arc::new(Sqlite::open(url).await.expect("the file can be opened"))
    }
}

impl Store {
    /// Makes a file.
    ///
    /// # Panics
    ///
    /// If there is no temporary folder.
    pub fn sqlite() -> Self {
        Self::Sqlite(TempDir::new().expect("a temporary folder"))
    }

    /// Makes a database. `None` where PostgreSQL is not installed.
    pub async fn postgres() -> Option<Self> {
        let url = postgres::server()?.database().await;
        Some(Self::Postgres { url, server: None })
    }

    /// Makes a database on a server of its own, which can be [away](Self::away_for).
    pub async fn own_postgres() -> Option<Self> {
        let server = Server::start()?;
        let url = server.database().await;
        Some(Self::Postgres { url, server: Some(server) })
    }

    /// Returns the URL, or the path, for [`open`].
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(_) => self.file().display().to_string(),
            Self::Postgres { url, .. } => url.clone(),
        }
    }

    fn file(&self) -> PathBuf {
        match self {
            Self::Sqlite(folder) => folder.path().join("jobs.sqlite"),
            Self::Postgres { .. } => unreachable!("it has no file"),
        }
    }

    /// Opens the store's engine.
    pub async fn engine(&self) -> Arc<dyn Engine> {
        open(&self.url()).await
    }

    /// Stores so many jobs `work` that take no time, as another producer would: by SQL, in one statement.
    ///
    /// # Panics
    ///
    /// If the store does not answer.
    pub async fn fill(&self, numbers: Range<u64>) {
        let (from, to) = (i64::try_from(numbers.start), i64::try_from(numbers.end));
        let (from, to) = (from.expect("a small number"), to.expect("a small number"));
        match self {
            Self::Sqlite(_) => {
                let mut connection =
                    SqliteConnection::connect(&self.url()).await.expect("the file opens");
                let fill = sqlx::query(FILL_SQLITE).bind(from).bind(to);
                fill.execute(&mut connection).await.expect("they are stored");
            }
            Self::Postgres { url, .. } => {
                let mut connection =
                    PgConnection::connect(url).await.expect("the database answers");
                let fill = sqlx::query(FILL_POSTGRES).bind(from).bind(to);
                fill.execute(&mut connection).await.expect("they are stored");
            }
        }
    }

    /// Counts the rows of the application's own table.
    ///
    /// # Panics
    ///
    /// If the store does not answer.
    pub async fn users(&self) -> u64 {
        let count = "SELECT count(*) FROM users";
        let count: i64 = match self {
            Self::Sqlite(_) => {
                let mut connection =
                    SqliteConnection::connect(&self.url()).await.expect("the file opens");
                sqlx::query_scalar(count)
                    .fetch_one(&mut connection)
                    .await
                    .expect("there is a table")
            }
            Self::Postgres { url, .. } => {
                let mut connection =
                    PgConnection::connect(url).await.expect("the database answers");
                sqlx::query_scalar(count)
                    .fetch_one(&mut connection)
                    .await
                    .expect("there is a table")
            }
        };
        count.unsigned_abs()
    }

    /// Makes the store answer nobody for a time: the server is killed, or the file locked.
    ///
    /// # Panics
    ///
    /// If the server is not its own.
    pub async fn away_for(&self, time: Duration) {
        match self {
            Self::Sqlite(_) => {
                let url = format!("sqlite://{}", self.file().display());
                let mut locking = SqliteConnection::connect(&url).await.expect("the file opens");
                locking
                    .execute("PRAGMA busy_timeout = 60000; BEGIN EXCLUSIVE")
                    .await
                    .expect("it can be locked");
                sleep(time).await;
                locking.execute("ROLLBACK").await.expect("it can be unlocked");
            }
            Self::Postgres { server, .. } => {
                let server = server.as_ref().expect("a server of its own");
                server.stop();
                sleep(time).await;
                server.restart();
            }
        }
    }
}
