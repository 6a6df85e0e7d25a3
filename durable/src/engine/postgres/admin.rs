//! Figures and dead letters.
//!
//! Read from the engine's view `jobs`, which has no payloads.

use futures_util::future::BoxFuture;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::timeout;
use tower_jobs::BoxError;

use super::{Postgres, at, connections::Lease};
use crate::{
    engine::{Admin, DeadLetter, Depth},
    envelope::{self, Note},
    job::DurableId,
};

use std::time::Duration;

/// Time for an answer. A count reads all rows.
const ANSWER: Duration = Duration::from_secs(30);

/// A row that is not tried any more, and that no worker holds.
const IS_DEAD: &str = "locked_at is null and attempts >= max_attempts";

impl Admin for Postgres {
    fn depth(&self) -> BoxFuture<'_, Result<Depth, BoxError>> {
        within(async {
            let sql = format!(
                "select count(*) filter (where is_open and run_at <= now()), \
                 count(*) filter (where is_open and run_at > now()), \
                 count(*) filter (where locked_at is not null), count(*) filter (where {IS_DEAD}), \
                 extract(epoch from now() - min(run_at) filter (where is_open and run_at <= now()))::float8 \
                 from (select *, locked_at is null and attempts < max_attempts as is_open from {}) as jobs",
                self.schema.identifier("jobs")
            );
            let mut connection = Lease::of(&self.pool).await?;
            let query = sqlx::query_as::<_, (i64, i64, i64, i64, Option<f64>)>(AssertSqlSafe(sql));
            let (ready, later, running, dead, oldest) = query.fetch_one(&mut *connection).await?;
            connection.give_back();
            let count = |count: i64| u64::try_from(count).unwrap_or_default();
            Ok(Depth {
                ready: count(ready),
                later: count(later),
                running: count(running),
                dead: count(dead),
                oldest_ready: oldest.and_then(|age| Duration::try_from_secs_f64(age).ok()),
            })
        })
    }

    fn dead_letters(&self, most: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, BoxError>> {
        within(async move {
            let sql = format!(
                "select id, task_identifier, last_error, extract(epoch from updated_at)::float8, \
                 attempts, revision from {} where {IS_DEAD} order by updated_at desc, id desc limit $1",
                self.schema.identifier("jobs")
            );
            let mut connection = Lease::of(&self.pool).await?;
            type Row = (i64, String, Option<String>, f64, i16, i32);
            let query = sqlx::query_as::<_, Row>(AssertSqlSafe(sql));
            let query = query.bind(i64::try_from(most).unwrap_or(i64::MAX));
            let rows = query.fetch_all(&mut *connection).await?;
            connection.give_back();
            let letter = |(id, kind, error, ended, starts, revision): Row| DeadLetter {
                id: DurableId::new(id.to_string()),
                kind,
                error: error.unwrap_or_default(),
                // A push that meets the row's key changes the time too.
                ended: if revision == 0 { at(ended) } else { None },
                starts: u32::try_from(starts).unwrap_or_default(),
            };
            Ok(rows.into_iter().map(letter).collect())
        })
    }

    fn retry<'a>(&'a self, id: &'a DurableId) -> BoxFuture<'a, Result<bool, BoxError>> {
        within(async move {
            let Ok(id) = id.as_str().parse() else { return Ok(false) };
            let mut connection = Lease::of(&self.pool).await?;
            let found = self.retry_once(&mut connection, id).await?;
            connection.give_back();
            Ok(found)
        })
    }

    fn discard<'a>(&'a self, id: &'a DurableId) -> BoxFuture<'a, Result<bool, BoxError>> {
        within(async move {
            let Ok(id) = id.as_str().parse::<i64>() else { return Ok(false) };
            // The condition is ours: the function deletes any row that is not held.
            let sql = format!(
                "select count(*) from {}(array(select id from {} where id = $1 and {IS_DEAD} for update))",
                self.schema.function("complete_jobs"),
                self.schema.private_table("jobs")
            );
            let mut connection = Lease::of(&self.pool).await?;
            let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql)).bind(id);
            let deleted = query.fetch_one(&mut *connection).await?;
            connection.give_back();
            Ok(deleted > 0)
        })
    }
}

impl Postgres {
    async fn retry_once(&self, connection: &mut PgConnection, id: i64) -> Result<bool, BoxError> {
        let jobs = self.schema.private_table("jobs");
        let mut transaction = connection.begin().await?;
        // No public query reads one row, or changes its payload, which counts the failures.
        let sql =
            format!("select payload::text from {jobs} where id = $1 and {IS_DEAD} for update");
        let query = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).bind(id);
        let Some(payload) = query.fetch_optional(&mut *transaction).await? else {
            transaction.rollback().await?;
            return Ok(false);
        };
        // One that serde cannot read counts none.
        if let Ok((job, note)) = envelope::unwrap(payload.as_bytes())
            && note.failures > 0
        {
            let payload = envelope::wrap(job, Note { failures: 0, ..note })?;
            let sql = format!("update {jobs} set payload = $2::text::json where id = $1");
            let query = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(String::from_utf8(payload)?);
            query.execute(&mut *transaction).await?;
        }
        let sql = format!(
            "select count(*) from {}(array[$1::bigint], run_at => now(), attempts => 0)",
            self.schema.function("reschedule_jobs")
        );
        sqlx::query(AssertSqlSafe(sql)).bind(id).execute(&mut *transaction).await?;
        // As the engine's `add_job` does.
        let sql = r#"select pg_notify('jobs:insert', '{"r":0,"count":1}')"#;
        sqlx::query(sql).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

fn within<'a, T: 'a>(
    answer: impl Future<Output = Result<T, BoxError>> + Send + 'a,
) -> BoxFuture<'a, Result<T, BoxError>> {
    Box::pin(async {
        match timeout(ANSWER, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer from PostgreSQL within {ANSWER:?}").into()),
        }
    })
}
