//! The engine's schema, and migrations beside those of an application.

use std::path::PathBuf;

use apalis_sqlite::SqliteStorage;
use sqlx::{
    SqlSafeStr, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
};
use tower_jobs_durable::Sqlite;

use crate::support::options;

async fn empty(folder: &tempfile::TempDir, name: &str) -> (PathBuf, SqlitePool) {
    let path = folder.path().join(name);
    let options = options(&path).create_if_missing(true).foreign_keys(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    (path, pool)
}

fn of_application() -> Migrator {
    let sql = "CREATE TABLE users (name TEXT)".into_sql_str();
    let users = Migration::new(1, "users".into(), MigrationType::Simple, sql, false);
    Migrator::with_migrations(vec![users])
}

async fn schema(pool: &SqlitePool) -> Vec<(String, String)> {
    let schema = "SELECT name, coalesce(sql, '') FROM sqlite_schema \
        WHERE name NOT LIKE '%migrations%' AND name <> 'users' ORDER BY name";
    sqlx::query_as(schema).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn migrations_run_beside_those_of_the_application() {
    let folder = tempfile::tempdir().unwrap();
    let (_, pool) = empty(&folder, "app-first.db").await;
    let sqlite = Sqlite::new(pool.clone()).unwrap();
    of_application().run(&pool).await.unwrap();
    for _ in 0..2 {
        sqlite.migrate().await.unwrap();
        of_application().run(&pool).await.unwrap();
    }
    let (_, other) = empty(&folder, "jobs-first.db").await;
    Sqlite::new(other.clone()).unwrap().migrate().await.unwrap();
    of_application().run(&other).await.unwrap();
    assert_eq!(schema(&pool).await, schema(&other).await);
}

#[tokio::test]
async fn printed_migrations_make_what_run_ones_make() {
    let folder = tempfile::tempdir().unwrap();
    let (_, printed) = empty(&folder, "printed.db").await;
    let text = sqlx::AssertSqlSafe(Sqlite::migrations_sql());
    sqlx::raw_sql(text).execute(&printed).await.unwrap();
    let (_, run) = empty(&folder, "run.db").await;
    Sqlite::new(run.clone()).unwrap().migrate().await.unwrap();
    assert_eq!(schema(&printed).await, schema(&run).await);
    // And they count as run.
    Sqlite::new(printed).unwrap().migrate().await.unwrap();
}

#[tokio::test]
async fn file_set_up_by_the_engine_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let (_, pool) = empty(&folder, "apalis.db").await;
    SqliteStorage::setup(&pool).await.unwrap();
    Sqlite::new(pool.clone()).unwrap().migrate().await.unwrap();
}

#[tokio::test]
async fn programs_that_start_at_once_migrate_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let opened = (0..4).map(|_| tokio::spawn(Sqlite::open(path.clone())));
    for opened in opened.collect::<Vec<_>>() {
        opened.await.unwrap().unwrap();
    }
}

/// The facts of the engine's schema that our statements use. If it fails after an update of apalis-sqlite, read
/// its migrations before the versions are changed here.
#[tokio::test]
async fn engine_still_has_the_columns_and_indices_we_use() {
    let folder = tempfile::tempdir().unwrap();
    let (_, pool) = empty(&folder, "jobs.db").await;
    Sqlite::new(pool.clone()).unwrap().migrate().await.unwrap();
    let columns = "SELECT m.name || '.' || c.name || ' ' || c.type || iif(c.\"notnull\", ' NOT NULL', '') \
        || coalesce(' ' || c.dflt_value, '') \
        FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.name IN ('Jobs', 'Workers') \
        ORDER BY m.name, c.cid";
    let columns: Vec<String> = sqlx::query_scalar(columns).fetch_all(&pool).await.unwrap();
    assert_eq!(
        columns,
        [
            "Jobs.job BLOB NOT NULL",
            "Jobs.id TEXT NOT NULL",
            "Jobs.job_type TEXT NOT NULL",
            "Jobs.status TEXT NOT NULL 'Pending'",
            "Jobs.attempts INTEGER NOT NULL 0",
            "Jobs.max_attempts INTEGER NOT NULL 25",
            "Jobs.run_at INTEGER NOT NULL strftime('%s', 'now')",
            "Jobs.last_result TEXT",
            "Jobs.lock_at INTEGER",
            "Jobs.lock_by TEXT",
            "Jobs.done_at INTEGER",
            "Jobs.priority INTEGER NOT NULL 0",
            "Jobs.metadata TEXT",
            "Jobs.idempotency_key TEXT",
            "Workers.id TEXT NOT NULL",
            "Workers.worker_type TEXT NOT NULL",
            "Workers.storage_name TEXT NOT NULL",
            "Workers.layers TEXT",
            "Workers.last_seen INTEGER NOT NULL strftime('%s', 'now')",
            "Workers.started_at INTEGER",
        ]
    );
    let sql = "SELECT sql FROM sqlite_schema WHERE name IN \
        ('idx_jobs_pending', 'idx_jobs_completed_done_at', 'idx_jobs_idempotency_key') ORDER BY name";
    let indices: Vec<String> = sqlx::query_scalar(sql).fetch_all(&pool).await.unwrap();
    let plain = |sql: &String| sql.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        indices.iter().map(plain).collect::<Vec<_>>(),
        [
            "CREATE INDEX idx_jobs_completed_done_at ON Jobs(status, done_at, run_at) \
             WHERE status IN ('Done', 'Failed', 'Killed') AND done_at IS NOT NULL",
            "CREATE UNIQUE INDEX idx_jobs_idempotency_key ON Jobs(job_type, idempotency_key)",
            "CREATE INDEX idx_jobs_pending ON Jobs (job_type, priority DESC, run_at ASC, id ASC) \
             WHERE status = 'Pending' AND lock_by IS NULL",
        ]
    );
    let versions: Vec<i64> =
        SqliteStorage::migrations().iter().map(|migration| migration.version).collect();
    assert_eq!((versions.len(), versions.last()), (11, Some(&20_260_804_103_122)));
}
