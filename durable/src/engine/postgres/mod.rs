//! Rows of Graphile Worker, in PostgreSQL.
//!
//! Its own worker is not used: after an outage of the database it runs jobs again that had completed, and it logs
//! payloads. Statements are the engine's public queries and SQL functions. Those of ours say why.

mod admin;
mod connections;
mod errors;
mod migrations;
mod rows;
mod sweep;

use std::{
    any::Any,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::{BoxFuture, LocalBoxFuture};
use graphile_worker_database::Schema;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::time::timeout;

use self::{
    connections::Lease,
    errors::{as_push_error, no_answer},
};
use crate::{
    door::Door,
    engine::{Admin, Engine, NewRow},
    error::PushError,
    job::DurableId,
};

/// Time for a push, from taking a connection to the answer.
const PUSH: Duration = Duration::from_secs(5);

/// Jobs in a PostgreSQL database: the tables of Graphile Worker.
///
/// Producers in other languages store jobs with Graphile Worker's own means, such as its SQL function:
/// `select graphile_worker.add_job('send_email', '{"to": "a@b"}')`. Its first argument is the job's
/// [`KIND`](crate::DurableJob::KIND). Workers in other languages run the kinds that they register.
///
/// # Tables
///
/// They must exist: call [`migrate`](Self::migrate), or run the statements of
/// [`migrations_sql`](Self::migrations_sql).
/// The role must own them, because they have row level security without policies.
///
/// # Connections
///
/// A push takes a connection of the given pool. A process that runs jobs also opens up to 6 connections of
/// its own, with the pool's connect options; the pool's hooks, such as `after_connect`, are not called for them.
/// They must reach the server itself, or a proxy with session pooling, because they use `LISTEN`.
///
/// # Limits
///
/// - A kind has at most 128 characters.
/// - A unique key is stored as `kind:key`, of at most 512 characters. The engine's keys are unique over all kinds,
///   so another producer writes the same. A `\` or `:` of the kind has a `\` before it there.
/// - Tries and crashes of a job end together at 32 767.
/// - A job that another producer stores is started at most 25 times, or as often as that producer says,
///   crashes included.
/// - A failure in a worker of another language counts here as a crash.
/// - Node's Graphile Worker frees jobs that have run for 4 hours, in any worker.
/// - A failed job waits for e^n seconds after its n-th start, at most 6 hours.
/// - The very first push of a kind stores the kind too. In a transaction, it holds up other pushes of that kind
///   until the commit. A process that runs the kind has stored it before.
/// - A job that becomes due starts up to 2 s later; one that is pushed to start now does not wait for that.
pub struct Postgres {
    pool: PgPool,
    schema: Schema,
    add_job: String,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("schema", &self.schema.escaped()).finish_non_exhaustive()
    }
}

impl Postgres {
    /// Uses the application's pool to push, and its connect options to run jobs.
    pub fn new(pool: PgPool) -> Self {
        let schema = Schema::default();
        let add_job = add_job(&schema);
        Self { pool, schema, add_job }
    }

    /// Connects with a pool of its own, of at most 10 connections.
    ///
    /// # Errors
    ///
    /// If the database does not answer within 5 s, or refuses the connection.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn connect(url: &str) -> Result<Self, sqlx::Error> {
        let pool = PgPoolOptions::new().acquire_timeout(PUSH).connect(url).await?;
        Ok(Self::new(pool))
    }

    /// Sets the schema of the tables. Defaults to `graphile_worker`.
    #[must_use]
    pub fn schema(mut self, schema: &str) -> Self {
        self.schema = Schema::new(schema);
        self.add_job = add_job(&self.schema);
        self
    }

    /// Returns the pool that pushes use.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    async fn add(
        &self,
        connection: &mut PgConnection,
        row: &NewRow,
    ) -> Result<DurableId, PushError> {
        let payload = std::str::from_utf8(&row.payload)
            .map_err(|_| PushError::Refused("the payload is not UTF-8".into()))?;
        let query = sqlx::query_as::<_, (i64, i32)>(AssertSqlSafe(self.add_job.as_str()))
            .bind(row.kind)
            .bind(payload)
            .bind(row.run_at.map(seconds))
            .bind(i32::from(i16::try_from(row.max_starts).unwrap_or(i16::MAX).max(1)))
            .bind(row.unique_key.as_deref().map(|key| whole_key(row.kind, key)))
            .bind(i32::from(row.priority.saturating_neg()));
        let (id, revision) = query.fetch_one(connection).await.map_err(as_push_error)?;
        let id = DurableId::new(id.to_string());
        // The engine counts there how many pushes have met the key.
        if revision > 0 { Err(PushError::Duplicate(id)) } else { Ok(id) }
    }
}

impl Engine for Postgres {
    fn push(&self, row: NewRow) -> BoxFuture<'_, Result<DurableId, PushError>> {
        let pushed = async move {
            let mut connection = Lease::of(&self.pool).await.map_err(as_push_error)?;
            let pushed = self.add(&mut connection, &row).await;
            if matches!(pushed, Ok(_) | Err(PushError::Duplicate(_))) {
                connection.give_back();
            }
            pushed
        };
        Box::pin(
            async move { timeout(PUSH, pushed).await.unwrap_or_else(|_| Err(no_answer(PUSH))) },
        )
    }

    fn push_in<'a>(
        &'a self,
        connection: &'a mut (dyn Any + Send),
        row: NewRow,
    ) -> BoxFuture<'a, Result<DurableId, PushError>> {
        Box::pin(async move {
            let Some(connection) = connection.downcast_mut::<PgConnection>() else {
                return Err(PushError::WrongDatabase(
                    "the transaction given to `push_in` is not one of PostgreSQL, where the engine \
                     `Postgres` stores its jobs: begin it on an `sqlx::PgPool`"
                        .into(),
                ));
            };
            let pushed = self.add(connection, &row);
            timeout(PUSH, pushed).await.unwrap_or_else(|_| Err(no_answer(PUSH)))
        })
    }

    fn run(self: Arc<Self>, door: Door) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move { rows::run(&self, &door).await })
    }

    fn admin(&self) -> Option<&dyn Admin> {
        Some(self)
    }
}

/// The engine's public function. Its Rust query is not used, because that logs the payload.
fn add_job(schema: &Schema) -> String {
    // As text, because the engine stores `json`, and the driver's `jsonb` refuses the character U+0000.
    format!(
        "select job.id, job.revision from {}(identifier => $1, payload => $2::text::json, \
         run_at => to_timestamp($3::float8), max_attempts => $4::int, job_key => $5, \
         priority => $6::int, job_key_mode => 'unsafe_dedupe') as job",
        schema.function("add_job")
    )
}

/// Two kinds never have the same whole key.
fn whole_key(kind: &str, key: &str) -> String {
    format!("{}:{key}", kind.replace('\\', "\\\\").replace(':', "\\:"))
}

/// Since 1970.
fn seconds(at: SystemTime) -> f64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

/// `None` for a time that the clock does not have, such as PostgreSQL's `-infinity`.
fn at(seconds: f64) -> Option<SystemTime> {
    let distance = Duration::try_from_secs_f64(seconds.abs()).ok()?;
    if seconds < 0.0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_keys_of_two_kinds_differ() {
        assert_eq!(whole_key("send_email", "a:b"), "send_email:a:b");
        assert_ne!(whole_key("mail:send", "1"), whole_key("mail", "send:1"));
        assert_ne!(whole_key("mail\\", "1"), whole_key("mail", "\\:1"));
        assert_ne!(whole_key("mail\\:a", "1"), whole_key("mail\\", "a:1"));
    }

    #[test]
    fn time_of_the_database_is_read_or_none() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_000_000_250);
        assert_eq!(at(seconds(now)), Some(now));
        assert_eq!(at(f64::NEG_INFINITY), None);
        assert_eq!(at(f64::NAN), None);
    }
}
