//! Freeing the rows of dead workers.

use std::{collections::HashMap, time::Duration};

use graphile_worker_queries::worker_heartbeat::{
    active::list_active_workers,
    lock::try_acquire_sweep_lock,
    stale::{delete_stale_workers, list_orphan_locked_workers, list_stale_workers},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tower_jobs::BoxError;

use super::rows::{PostgresRows, give_up};
use crate::envelope;

/// Field of a worker's metadata: its own dead limit. Another process may have a shorter one.
pub(super) const DEAD_AFTER_MS: &str = "tower_jobs_dead_after_ms";
/// Begin of the names of our workers. Each keeps a heartbeat from before its first claim.
const OURS: &str = "tower-jobs-";
/// Dead limit of other software, which may keep no heartbeat: that of Node's Graphile Worker.
const DEAD_AFTER_OF_OTHERS: Duration = Duration::from_secs(4 * 60 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl PostgresRows<'_> {
    /// Returns how many rows were freed.
    pub(super) async fn free_rows_of_the_dead(
        &self,
        connection: &mut PgConnection,
    ) -> Result<u64, BoxError> {
        let mut transaction = connection.begin().await?;
        let mut dead = match try_acquire_sweep_lock(&mut transaction).await? {
            true => self.dead_workers(&mut transaction).await?,
            // Another process sweeps.
            false => Vec::new(),
        };
        if !dead.is_empty() {
            self.lock_rows(&mut transaction, &dead).await?;
            // That may have waited for a worker that lives after all.
            let still_dead = self.dead_workers(&mut transaction).await?;
            dead.retain(|worker| still_dead.contains(worker));
        }
        if dead.is_empty() {
            transaction.rollback().await?;
            return Ok(0);
        }
        let freed = self.free(&mut transaction, &dead).await?;
        delete_stale_workers(&mut transaction, self.schema, &dead).await?;
        transaction.commit().await?;
        Ok(freed)
    }

    async fn dead_workers(&self, connection: &mut PgConnection) -> Result<Vec<String>, BoxError> {
        let schema = self.schema;
        let mut dead = Vec::new();
        let stale = list_stale_workers(&mut *connection, schema, self.dead_after).await?;
        if !stale.is_empty() {
            let limits = self.limits(connection).await?;
            for worker in stale {
                let limit = limits.get(&worker).copied().unwrap_or(DEAD_AFTER_OF_OTHERS);
                let is_dead = limit <= self.dead_after
                    || list_stale_workers(&mut *connection, schema, limit).await?.contains(&worker);
                if is_dead {
                    dead.push(worker);
                }
            }
        }
        // Of workers without a heartbeat row, which another sweep has removed while they lived.
        let orphans = list_orphan_locked_workers(&mut *connection, schema, self.dead_after).await?;
        dead.extend(orphans.into_iter().filter(|worker| worker.starts_with(OURS)));
        let orphans = list_orphan_locked_workers(connection, schema, DEAD_AFTER_OF_OTHERS).await?;
        dead.extend(orphans.into_iter().filter(|worker| !worker.starts_with(OURS)));
        dead.retain(|worker| worker != self.worker);
        Ok(dead)
    }

    /// The dead limits of the workers that tell theirs.
    async fn limits(
        &self,
        connection: &mut PgConnection,
    ) -> Result<HashMap<String, Duration>, BoxError> {
        let workers = list_active_workers(connection, self.schema, self.dead_after).await?;
        let limits = workers.into_iter().filter_map(|worker| {
            let limit = worker.metadata?.get(DEAD_AFTER_MS)?.as_u64()?;
            Some((worker.worker_id, Duration::from_millis(limit)))
        });
        Ok(limits.collect())
    }

    /// Keeps workers from settling their rows until the transaction ends.
    async fn lock_rows(
        &self,
        connection: &mut PgConnection,
        workers: &[String],
    ) -> Result<(), sqlx::Error> {
        let sql =
            format!("select 1 from {} where locked_by = any($1) order by id for update", self.jobs);
        sqlx::query(AssertSqlSafe(sql)).bind(workers).execute(connection).await?;
        Ok(())
    }

    /// Frees rows, and leaves their starts counted. The engine's `recover_dead_worker_jobs` takes the start back, so a
    /// job that kills its process would run for ever.
    async fn free(&self, connection: &mut PgConnection, dead: &[String]) -> Result<u64, BoxError> {
        // The engine's query fails for all rows if serde cannot read one.
        let sql = format!(
            "select id, attempts, max_attempts, payload::text from {} where locked_by = any($1) order by id",
            self.jobs
        );
        let query = sqlx::query_as::<_, (i64, i16, i16, String)>(AssertSqlSafe(sql)).bind(dead);
        let rows = query.fetch_all(&mut *connection).await?;
        let unlock = self.schema.function("force_unlock_workers");
        let sql = format!("select {unlock}($1)");
        sqlx::query(AssertSqlSafe(sql)).bind(dead).execute(&mut *connection).await?;
        let mut freed = 0;
        for (id, attempts, max_attempts, payload) in rows {
            freed += 1;
            let crashes = crashes(attempts, payload.as_bytes());
            if attempts >= max_attempts {
                let error = format!("the process died in the last of {attempts} starts");
                tracing::error!(id, error, "a durable job is dead");
                give_up(connection, self.schema, id, &error).await?;
            } else if let Some(pause) = pause(crashes) {
                self.postpone(connection, id, pause).await?;
            }
        }
        Ok(freed)
    }

    async fn postpone(
        &self,
        connection: &mut PgConnection,
        id: i64,
        pause: Duration,
    ) -> Result<(), BoxError> {
        let sql = format!(
            "select count(*) from {}($1, run_at => now() + $2 * interval '1 second')",
            self.schema.function("reschedule_jobs")
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(vec![id]).bind(pause.as_secs_f64());
        query.execute(connection).await?;
        Ok(())
    }
}

/// How many processes have died while a job ran, after so many starts.
fn crashes(starts: i16, payload: &[u8]) -> u32 {
    let failures = envelope::unwrap(payload).map_or(0, |(_, note)| note.failures);
    u32::try_from(starts).unwrap_or_default().saturating_sub(failures)
}

/// None after the first crash, then 1 s, doubling.
fn pause(crashes: u32) -> Option<Duration> {
    let doublings = crashes.checked_sub(2)?;
    let pause = Duration::from_secs(1).saturating_mul(1 << doublings.min(6));
    Some(pause.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_grows_with_the_crashes() {
        let seconds = |crashes| pause(crashes).map(|pause| pause.as_secs());
        assert_eq!(
            [0, 1, 2, 3, 7, 8, 1_000].map(seconds),
            [None, None, Some(1), Some(2), Some(32), Some(60), Some(60)]
        );
    }

    #[test]
    fn failures_are_no_crashes() {
        assert_eq!(crashes(3, br#"{"_tower_jobs":{"failures":2}}"#), 1);
        assert_eq!(crashes(3, br#"{"to":"a"}"#), 3);
        assert_eq!(crashes(1, b"1e400"), 1);
    }
}
