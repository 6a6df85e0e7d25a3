//! How rows end.

use std::rc::Rc;

use sqlx::{SqliteConnection, SqlitePool};
use tower_jobs::BoxError;

use super::sql::{BEGIN, err_result};
use crate::engine::{
    Claimed, Verdict,
    together::{Together, Waiting},
};

/// A verdict changes nothing if another worker holds the row by now.
macro_rules! of_held {
    ($change:literal) => {
        concat!(
            "UPDATE Jobs SET lock_by = NULL, lock_at = NULL, ",
            $change,
            " WHERE id = ?1 AND lock_by = ?2 AND status IN ('Queued', 'Running')"
        )
    };
}

// `ack_tasks` would keep `lock_by`, and so name workers that are gone; it takes no id that is no ULID.

/// `wait_for` of the engine panics at a finished row without a result.
const DONE: &str = of_held!(
    "status = 'Done', attempts = attempts + 1, done_at = unixepoch(), last_result = '{\"Ok\":null}'"
);
const DEAD: &str =
    of_held!("status = 'Killed', attempts = attempts + 1, done_at = unixepoch(), last_result = ?3");
/// The engine has no retry with a pause that works: its `retry.sql` names a column that does not exist, and a
/// row that it fails is fetched at once again.
const RETRY: &str = of_held!(
    "status = 'Pending', attempts = attempts + 1, done_at = NULL, last_result = ?3, job = ?4, \
     run_at = CAST(unixepoch('subsec') + ?5 + 0.999 AS INTEGER)"
);
/// The engine's release, `reenqueue_abandoned`, counts an attempt, and takes rows only before they run.
const RELEASE: &str = of_held!(
    "status = 'Pending', done_at = NULL, \
     run_at = CASE WHEN ?3 > 0 THEN CAST(unixepoch('subsec') + ?3 + 0.999 AS INTEGER) ELSE run_at END"
);

/// Writes verdicts, those that came meanwhile in one transaction, since each commit waits for the disk.
pub(super) struct Settlements {
    pool: SqlitePool,
    worker: String,
    together: Together<(Claimed, Verdict), ()>,
}

type Settlement = Rc<Waiting<(Claimed, Verdict), ()>>;

impl Settlements {
    pub(super) fn new(pool: SqlitePool, worker: &str) -> Self {
        Self { pool, worker: worker.to_owned(), together: Together::new() }
    }

    pub(super) async fn settle(&self, row: &Claimed, verdict: &Verdict) -> Result<(), BoxError> {
        let item = (row.clone(), verdict.clone());
        self.together.write(item, async |batch| self.write_or_each(batch).await).await
    }

    async fn write_or_each(&self, batch: &[Settlement]) {
        let written = self.write(batch).await.map_err(|error| error.to_string());
        if written.is_err() && batch.len() > 1 {
            // One row that cannot be written must not keep the others.
            for one in batch {
                let written = self.write(std::slice::from_ref(one)).await;
                one.answer(written.map_err(|error| error.to_string()));
            }
        } else {
            batch.iter().for_each(|one| one.answer(written.clone()));
        }
    }

    async fn write(&self, batch: &[Settlement]) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin_with(BEGIN).await?;
        for one in batch {
            self.write_one(&mut transaction, one).await?;
        }
        transaction.commit().await
    }

    async fn write_one(
        &self,
        connection: &mut SqliteConnection,
        settlement: &Settlement,
    ) -> Result<(), sqlx::Error> {
        let (row, verdict) = &settlement.item;
        let of_row = |sql: &'static str| sqlx::query(sql).bind(row.id.as_str()).bind(&self.worker);
        let query = match verdict {
            Verdict::Done => of_row(DONE),
            Verdict::Dead { error } => of_row(DEAD).bind(err_result(error)),
            Verdict::Retry { payload, error, after } => {
                of_row(RETRY).bind(err_result(error)).bind(payload).bind(after.as_secs_f64())
            }
            Verdict::Release { after } => of_row(RELEASE).bind(after.as_secs_f64()),
            Verdict::Leave => return Ok(()),
        };
        query.execute(connection).await.map(drop)
    }
}
