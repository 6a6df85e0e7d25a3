//! Storing jobs.

use std::{any::Any, time::Duration};

use sqlx::{SqliteConnection, SqlitePool};
use tokio::time::timeout;
use ulid::Ulid;

use super::sql::{BEGIN, push_error, timestamp};
use crate::{engine::NewRow, error::PushError, job::DurableId};

const LIMIT: Duration = Duration::from_secs(5);

/// As `push_tasks` does, which takes no priority below 0.
const INSERT: &str = "\
    INSERT INTO Jobs (job, id, job_type, status, attempts, max_attempts, run_at, priority, metadata, idempotency_key) \
    VALUES (?, ?, ?, 'Pending', 0, ?, coalesce(?, unixepoch()), ?, '{}', ?) \
    ON CONFLICT (job_type, idempotency_key) DO NOTHING";

/// The engine's key stays with a finished row until its vacuum, so that no second job could have it.
const FREE_KEY: &str = "\
    UPDATE Jobs SET idempotency_key = NULL \
    WHERE job_type = ? AND idempotency_key = ? AND status = 'Done'";

const KEY_OWNER: &str = "SELECT id FROM Jobs WHERE job_type = ? AND idempotency_key = ?";

pub(super) async fn push(pool: &SqlitePool, row: NewRow) -> Result<DurableId, PushError> {
    let pushed = async {
        let mut transaction = pool.begin_with(BEGIN).await.map_err(push_error)?;
        let id = insert(&mut transaction, row).await?;
        transaction.commit().await.map_err(push_error)?;
        Ok(id)
    };
    match timeout(LIMIT, pushed).await {
        Ok(pushed) => pushed,
        Err(_) => Err(PushError::Unavailable(format!("no answer within {LIMIT:?}").into())),
    }
}

pub(super) async fn push_in(
    connection: &mut (dyn Any + Send),
    row: NewRow,
) -> Result<DurableId, PushError> {
    #[cfg(feature = "postgres")]
    let given =
        if connection.is::<sqlx::PgConnection>() { "PostgreSQL" } else { "another database" };
    #[cfg(not(feature = "postgres"))]
    let given = "another database";
    match connection.downcast_mut::<SqliteConnection>() {
        Some(connection) => insert(connection, row).await,
        None => Err(PushError::WrongDatabase(format!(
            "the transaction is of {given}, and the durable jobs are in SQLite: begin it in the jobs' own file"
        ))),
    }
}

async fn insert(connection: &mut SqliteConnection, row: NewRow) -> Result<DurableId, PushError> {
    let NewRow { kind, payload, run_at, unique_key, max_starts, priority } = row;
    if let Some(key) = &unique_key {
        let freed = sqlx::query(FREE_KEY).bind(kind).bind(key).execute(&mut *connection);
        freed.await.map_err(push_error)?;
    }
    let id = Ulid::new().to_string();
    let inserted = sqlx::query(INSERT)
        .bind(payload)
        .bind(&id)
        .bind(kind)
        .bind(max_starts)
        .bind(run_at.map(timestamp))
        .bind(priority)
        .bind(&unique_key)
        .execute(&mut *connection);
    if inserted.await.map_err(push_error)?.rows_affected() > 0 {
        return Ok(DurableId::new(id));
    }
    let owner = sqlx::query_scalar::<_, String>(KEY_OWNER).bind(kind).bind(unique_key);
    let owner = owner.fetch_one(connection).await.map_err(push_error)?;
    Err(PushError::Duplicate(DurableId::new(owner)))
}
