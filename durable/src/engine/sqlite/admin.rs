//! Figures and dead letters of the file.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tower_jobs::BoxError;

use super::{
    Sqlite,
    sql::{BEGIN, explained, time},
};
use crate::{
    engine::{Admin, DeadLetter, Depth},
    envelope::{self, Note},
    job::DurableId,
};

const DEPTH: &str = "\
    SELECT count(*) FILTER (WHERE status = 'Pending' AND run_at <= unixepoch()), \
        count(*) FILTER (WHERE status = 'Pending' AND run_at > unixepoch()), \
        count(*) FILTER (WHERE status IN ('Queued', 'Running')), \
        count(*) FILTER (WHERE status = 'Killed'), \
        unixepoch() - min(CAST(run_at AS INTEGER)) FILTER (WHERE status = 'Pending' AND run_at <= unixepoch()) \
    FROM Jobs WHERE status IN ('Pending', 'Queued', 'Running', 'Killed')";

const DEAD_LETTERS: &str = "\
    SELECT id, job_type, coalesce(CAST(last_result AS TEXT), ''), CAST(done_at AS INTEGER), \
        CAST(attempts AS INTEGER) \
    FROM Jobs WHERE status = 'Killed' ORDER BY done_at DESC, id DESC LIMIT ?";

impl Admin for Sqlite {
    fn depth(&self) -> BoxFuture<'_, Result<Depth, BoxError>> {
        Box::pin(async move {
            let counted = sqlx::query_as::<_, (i64, i64, i64, i64, Option<i64>)>(DEPTH);
            let (ready, later, running, dead, oldest) =
                counted.fetch_one(&self.pool).await.map_err(explained)?;
            Ok(Depth {
                ready: ready.unsigned_abs(),
                later: later.unsigned_abs(),
                running: running.unsigned_abs(),
                dead: dead.unsigned_abs(),
                oldest_ready: oldest.map(|age| Duration::from_secs(age.max(0).unsigned_abs())),
            })
        })
    }

    fn dead_letters(&self, most: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, BoxError>> {
        Box::pin(async move {
            let rows: Vec<(String, String, String, Option<i64>, i64)> =
                sqlx::query_as(DEAD_LETTERS)
                    .bind(i64::try_from(most).unwrap_or(i64::MAX))
                    .fetch_all(&self.pool)
                    .await
                    .map_err(explained)?;
            let letters = rows.into_iter().map(|(id, kind, result, ended, starts)| DeadLetter {
                id: DurableId::new(id),
                kind,
                error: error_of(result),
                ended: ended.and_then(time),
                starts: u32::try_from(starts.max(0)).unwrap_or(u32::MAX),
            });
            Ok(letters.collect())
        })
    }

    fn retry<'a>(&'a self, id: &'a DurableId) -> BoxFuture<'a, Result<bool, BoxError>> {
        const READ: &str = "SELECT CAST(job AS BLOB) FROM Jobs WHERE id = ? AND status = 'Killed'";
        const RETRY: &str = "\
            UPDATE Jobs SET status = 'Pending', attempts = 0, job = ?2, run_at = unixepoch(), \
                last_result = NULL, done_at = NULL, lock_by = NULL, lock_at = NULL \
            WHERE id = ?1";
        Box::pin(async move {
            let mut transaction = self.pool.begin_with(BEGIN).await.map_err(explained)?;
            let read = sqlx::query_scalar::<_, Vec<u8>>(READ).bind(id.as_str());
            let read = read.fetch_optional(&mut *transaction).await.map_err(explained)?;
            let Some(payload) = read else { return Ok(false) };
            let payload = without_failures(payload)?;
            let retried = sqlx::query(RETRY).bind(id.as_str()).bind(payload);
            retried.execute(&mut *transaction).await?;
            transaction.commit().await?;
            self.pushed.notify_one();
            Ok(true)
        })
    }

    fn discard<'a>(&'a self, id: &'a DurableId) -> BoxFuture<'a, Result<bool, BoxError>> {
        const DISCARD: &str = "DELETE FROM Jobs WHERE id = ? AND status = 'Killed'";
        Box::pin(async move {
            let discarded = sqlx::query(DISCARD).bind(id.as_str()).execute(&self.pool).await;
            Ok(discarded.map_err(explained)?.rows_affected() > 0)
        })
    }
}

fn without_failures(payload: Vec<u8>) -> Result<Vec<u8>, serde_json::Error> {
    match envelope::unwrap(&payload) {
        Ok((job, note)) if note.failures > 0 => envelope::wrap(job, Note { failures: 0, ..note }),
        // Not JSON: it is as dead as before.
        Ok(_) | Err(_) => Ok(payload),
    }
}

/// The engine stores `{"Err": "text"}`; other producers anything.
fn error_of(result: String) -> String {
    match serde_json::from_str::<Value>(&result) {
        Ok(Value::Object(mut fields)) => match fields.remove("Err") {
            Some(Value::String(error)) => error,
            _ => result,
        },
        _ => result,
    }
}
