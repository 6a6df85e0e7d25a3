//! The rows of one worker.

use std::{cell::Cell, io::ErrorKind, sync::Arc, time::Duration};

use apalis_core::worker::context::WorkerContext;
use apalis_sqlite::{Config, queries};
use futures_util::future::{Either, select};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Error, Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tower_jobs::BoxError;

use super::{
    Sqlite,
    settle::Settlements,
    sql::{BEGIN, err_result, explained, seconds, time},
};
use crate::{
    door::Door,
    engine::{Claimed, Verdict, rows::Rows},
    envelope,
    job::DurableId,
};

/// How often the file is looked at for jobs of other processes, and for those whose time has come.
const POLL: Duration = Duration::from_millis(250);
/// Below the limit of a statement, so that a locked file is an error of its own.
const BUSY: Duration = Duration::from_secs(4);
/// Rows of one step of the vacuum, and its time.
const VACUUMED: i64 = 1_000;
const VACUUM: Duration = Duration::from_millis(500);
/// The `worker_type` of our workers. In the engine it is the queue, of which a worker of ours has many; so its
/// own sweep leaves our workers alone, and ours leaves its workers alone.
const WORKER_TYPE: &str = "tower-jobs";
const SWEPT: &str = "its process gave no sign of life";
/// A step of the system's clock from which on beats are not compared with it.
const STEP: f64 = 1.0;

pub(super) struct SqliteRows {
    worker: String,
    context: WorkerContext,
    config: Config,
    dead_after: i64,
    keep_finished: i64,
    pushed: Arc<Notify>,
    /// Connections of their own, so that beats wait for no claim and no settlement.
    beats: SqlitePool,
    claims: SqlitePool,
    settlements: Settlements,
    clock: Cell<Option<Clock>>,
}

/// The system's clock beside the monotonic one.
#[derive(Clone, Copy)]
struct Clock {
    system: f64,
    monotonic: Instant,
    steady_since: Instant,
}

impl SqliteRows {
    pub(super) fn new(sqlite: &Sqlite, door: &Door) -> Self {
        let options = (*sqlite.pool.connect_options())
            .clone()
            .create_if_missing(false)
            // Rows are claimed before the first beat has registered the worker.
            .foreign_keys(false)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .disable_statement_logging();
        Self {
            worker: door.worker().to_owned(),
            context: WorkerContext::new(door.worker()),
            config: Config::default().queue(WORKER_TYPE),
            dead_after: seconds(door.dead_after()),
            keep_finished: seconds(sqlite.keep_finished),
            pushed: sqlite.pushed.clone(),
            beats: one_connection(options.clone()),
            claims: one_connection(options.clone()),
            settlements: Settlements::new(one_connection(options), door.worker()),
            clock: Cell::default(),
        }
    }

    async fn watch_clock(&self) -> Result<(), Error> {
        let system: f64 =
            sqlx::query_scalar("SELECT unixepoch('subsec')").fetch_one(&self.beats).await?;
        let monotonic = Instant::now();
        let steady_since = match self.clock.get() {
            Some(last) => {
                let passed = monotonic.duration_since(last.monotonic).as_secs_f64();
                let is_steady = (system - last.system - passed).abs() < STEP;
                if is_steady { last.steady_since } else { monotonic }
            }
            None => monotonic,
        };
        self.clock.set(Some(Clock { system, monotonic, steady_since }));
        Ok(())
    }

    /// Whether the ages of beats can be told. After a step of the system's clock, or a sleep of the machine, all
    /// workers seem to be dead.
    fn clock_is_steady(&self) -> bool {
        let limit = self.dead_limit();
        self.clock.get().is_some_and(|clock| clock.steady_since.elapsed() >= limit)
    }

    fn dead_limit(&self) -> Duration {
        Duration::from_secs(self.dead_after.unsigned_abs())
    }

    /// As `reenqueue_orphaned` does, which counts a second too early, knows one queue, leaves the rows of workers
    /// that are gone, and has no pause, so that a job that kills its process is run at once again.
    async fn free_rows_of_the_dead(&self) -> Result<u64, Error> {
        /// Times are whole seconds, each rounded down: only a difference above the limit is an age above it.
        const ORPHANS: &str = "\
            SELECT id, CAST(job AS BLOB), CAST(attempts AS INTEGER) FROM Jobs \
            WHERE status IN ('Queued', 'Running') AND lock_by <> ?1 AND (\
                lock_by IN (SELECT id FROM Workers WHERE worker_type = ?2 AND last_seen < unixepoch() - ?3) \
                OR (lock_by GLOB ?2 || '-*' AND lock_at < unixepoch() - ?3 \
                    AND lock_by NOT IN (SELECT id FROM Workers)))";
        const FREE: &str = "\
            UPDATE Jobs SET status = 'Pending', attempts = attempts + 1, lock_by = NULL, lock_at = NULL, \
                done_at = NULL, last_result = ?2, \
                run_at = CASE ?3 WHEN 0 THEN run_at ELSE unixepoch() + 1 + ?3 END \
            WHERE id = ?1";
        const BURY: &str = "DELETE FROM Workers WHERE worker_type = ?2 AND id <> ?1 AND last_seen < unixepoch() - ?3";
        let asked = Instant::now();
        let mut transaction = self.beats.begin_with(BEGIN).await?;
        if asked.elapsed() > self.dead_limit() / 3 {
            // The file was locked, so the others could not beat either.
            return Ok(0);
        }
        let orphans: Vec<(String, Vec<u8>, i64)> = sqlx::query_as(ORPHANS)
            .bind(&self.worker)
            .bind(WORKER_TYPE)
            .bind(self.dead_after)
            .fetch_all(&mut *transaction)
            .await?;
        for (id, payload, attempts) in &orphans {
            let failures = envelope::unwrap(payload).map_or(0, |(_, note)| note.failures);
            let crashes = attempts.saturating_add(1).saturating_sub(failures.into());
            sqlx::query(FREE)
                .bind(id)
                .bind(err_result(SWEPT))
                .bind(crash_pause(crashes))
                .execute(&mut *transaction)
                .await?;
        }
        sqlx::query(BURY)
            .bind(&self.worker)
            .bind(WORKER_TYPE)
            .bind(self.dead_after)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(orphans.len() as u64)
    }

    /// As the engine's `vacuum_before` does, which compares a number with a text, deletes dead letters, and locks
    /// the file for a `VACUUM`.
    async fn vacuum(&self) -> Result<(), Error> {
        /// The condition on three states is that of the engine's partial index.
        const DELETE: &str = "\
            DELETE FROM Jobs WHERE rowid IN (\
                SELECT rowid FROM Jobs \
                WHERE status IN ('Done', 'Failed', 'Killed') AND done_at IS NOT NULL \
                    AND status = 'Done' AND done_at < unixepoch() - ?1 LIMIT ?2)";
        let began = Instant::now();
        loop {
            let deleted =
                sqlx::query(DELETE).bind(self.keep_finished).bind(VACUUMED).execute(&self.beats);
            let is_last = deleted.await?.rows_affected() < VACUUMED.unsigned_abs();
            if is_last || began.elapsed() > VACUUM {
                return Ok(());
            }
        }
    }
}

impl Rows for SqliteRows {
    async fn beat(&self) -> Result<(), BoxError> {
        match queries::keep_alive(&self.beats, &self.config, &self.context).await {
            // Not there yet, or swept while this process was stopped.
            Err(Error::Io(error)) if error.kind() == ErrorKind::NotFound => {
                let registered = queries::register_worker(
                    &self.beats,
                    &self.config,
                    &self.context,
                    env!("CARGO_PKG_NAME"),
                );
                registered.await.map_err(explained)?;
            }
            beaten => beaten.map_err(explained)?,
        }
        Ok(self.watch_clock().await?)
    }

    async fn sweep(&self) -> Result<u64, BoxError> {
        let freed = if self.clock_is_steady() { self.free_rows_of_the_dead().await? } else { 0 };
        self.vacuum().await?;
        Ok(freed)
    }

    /// As `fetch_next` and `lock_tasks` do. Those fail for ever at a row whose id is no ULID or whose job is no
    /// text, and know one queue.
    async fn claim(
        &self,
        kinds: &[(&'static str, usize)],
        most: usize,
    ) -> Result<Vec<Claimed>, BoxError> {
        if kinds.is_empty() || most == 0 {
            return Ok(Vec::new());
        }
        // A look takes no lock, so idle processes do not keep others from writing.
        let mut look = sqlx::query_scalar::<_, bool>(AssertSqlSafe(look(kinds.len())));
        for (kind, _) in kinds {
            look = look.bind(*kind);
        }
        if !look.fetch_one(&self.claims).await.map_err(explained)? {
            return Ok(Vec::new());
        }
        let candidates = candidates(kinds.len());
        let claim = AssertSqlSafe(format!(
            "UPDATE Jobs SET status = 'Running', lock_at = unixepoch(), lock_by = ? \
             WHERE rowid IN ({candidates}) RETURNING {CLAIMED}"
        ));
        let mut claim = sqlx::query(claim).bind(&self.worker);
        for (kind, limit) in kinds {
            claim = claim.bind(*kind).bind(number((*limit).min(most)));
        }
        let rows = claim.bind(number(most)).fetch_all(&self.claims).await?;
        Ok(claimed(&rows))
    }

    async fn held(&self) -> Result<Vec<Claimed>, BoxError> {
        let held = AssertSqlSafe(format!(
            "SELECT {CLAIMED} FROM Jobs WHERE lock_by = ? AND status IN ('Queued', 'Running')"
        ));
        Ok(claimed(&sqlx::query(held).bind(&self.worker).fetch_all(&self.claims).await?))
    }

    async fn settle(&self, row: &Claimed, verdict: &Verdict) -> Result<(), BoxError> {
        self.settlements.settle(row, verdict).await
    }

    async fn pushed(&self) {
        let (pushed, slept) = (self.pushed.notified(), sleep(POLL));
        match select(std::pin::pin!(pushed), std::pin::pin!(slept)).await {
            Either::Left(_) | Either::Right(_) => {}
        }
    }

    async fn leave(&self) -> Result<(), BoxError> {
        const LEAVE: &str = "DELETE FROM Workers WHERE id = ?";
        sqlx::query(LEAVE).bind(&self.worker).execute(&self.beats).await?;
        Ok(())
    }
}

fn one_connection(options: SqliteConnectOptions) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(BUSY)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_lazy_with(options)
}

fn look(kinds: usize) -> String {
    let kinds = vec!["?"; kinds].join(", ");
    format!(
        "SELECT EXISTS(SELECT 1 FROM Jobs \
         WHERE job_type IN ({kinds}) AND status = 'Pending' AND lock_by IS NULL AND run_at <= unixepoch())"
    )
}

/// Row numbers of the rows to start, first those of the highest priority, then the oldest, over all kinds.
fn candidates(kinds: usize) -> String {
    // The sign makes SQLite use the engine's index `idx_jobs_pending`, which has the order; by time it would sort
    // the whole backlog. A row whose id is no text is left alone: it could not be settled.
    const ARM: &str = "\
        SELECT * FROM (SELECT rowid, priority, run_at, id FROM Jobs \
            WHERE job_type = ? AND status = 'Pending' AND lock_by IS NULL AND +run_at <= unixepoch() \
                AND typeof(id) = 'text' \
            ORDER BY priority DESC, run_at ASC, id ASC LIMIT ?)";
    let arms = vec![ARM; kinds].join(" UNION ALL ");
    format!("SELECT rowid FROM ({arms}) ORDER BY priority DESC, run_at ASC, id ASC LIMIT ?")
}

/// Other producers may store any type in any column.
const CLAIMED: &str = "\
    id, job_type, CAST(job AS BLOB) AS job, CAST(attempts AS INTEGER) AS attempts, \
    CAST(run_at AS INTEGER) AS run_at, CAST(priority AS INTEGER) AS priority";

/// In the order of their start, which `RETURNING` does not keep.
fn claimed(rows: &[SqliteRow]) -> Vec<Claimed> {
    let one = |row: &SqliteRow| -> Result<(i64, i64, Claimed), Error> {
        let run_at: i64 = row.try_get("run_at")?;
        let attempts: i64 = row.try_get("attempts")?;
        let starts = attempts.saturating_add(1).clamp(1, u32::MAX.into());
        let claimed = Claimed {
            id: DurableId::new(row.try_get::<String, _>("id")?),
            kind: row.try_get("job_type")?,
            payload: row.try_get("job")?,
            starts: u32::try_from(starts).unwrap_or(u32::MAX),
            ready_since: time(run_at),
        };
        Ok((row.try_get("priority")?, run_at, claimed))
    };
    let mut found: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let read = one(row);
            read.inspect_err(|error| tracing::error!(%error, "a durable job cannot be read")).ok()
        })
        .collect();
    found.sort_by(|(priority, run_at, one), (other_priority, other_run_at, other)| {
        (other_priority, run_at, &one.id).cmp(&(priority, other_run_at, &other.id))
    });
    found.into_iter().map(|(_, _, claimed)| claimed).collect()
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Seconds until a row is free, after so many crashes: none after the first, then 1 to 60.
fn crash_pause(crashes: i64) -> i64 {
    match crashes {
        ..=1 => 0,
        2..8 => 1 << (crashes - 2),
        _ => 60,
    }
}
