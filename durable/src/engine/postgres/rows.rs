//! Claiming and settling rows.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    pin::pin,
    rc::Rc,
    time::{Duration, SystemTime},
};

use futures_util::future::select;
use graphile_worker_database::Schema;
use graphile_worker_job::Job;
use graphile_worker_queries::{
    batch_get_jobs::batch_get_jobs,
    fail_job::single::fail_job,
    return_jobs::recovery::return_job_for_recovery,
    task_identifiers::{TaskDetails, get_tasks_details},
    worker_heartbeat::registration::{worker_deregister, worker_heartbeat},
};
use serde_json::json;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tower_jobs::BoxError;

use super::{Postgres, at, connections::Lease};
use crate::{
    door::Door,
    engine::{
        Claimed, Verdict,
        rows::{self, Rows},
        together::{Together, Waiting},
    },
    job::DurableId,
};

/// Channel on which the engine tells of new jobs.
const CHANNEL: &str = "jobs:insert";
/// Longest time until a row that became due without a notification is seen.
const POLL: Duration = Duration::from_secs(2);
/// Pause before the channel is listened to again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// Time to take a connection. It is shorter than that of a statement.
const CONNECT: Duration = Duration::from_secs(4);
/// Age of the kinds' ids after which they are read again, because other workers may delete an unused kind.
const TASKS: Duration = Duration::from_secs(60);
const SETTLING: u32 = 3;

/// Runs rows until the door is stopping and everything is settled.
pub(super) async fn run(engine: &Postgres, door: &Door) {
    let rows = PostgresRows::new(engine, door);
    select(pin!(rows::run(&rows, door)), pin!(rows.listen())).await;
}

/// The rows of one worker.
pub(super) struct PostgresRows<'a> {
    pub(super) worker: &'a str,
    pub(super) dead_after: Duration,
    pub(super) schema: &'a Schema,
    pub(super) jobs: String,
    /// Of one connection each, so that none waits for the work of another.
    pub(super) beats: PgPool,
    claims: PgPool,
    listens: PgPool,
    settles: PgPool,
    completions: Together<i64, bool>,
    kinds: Vec<&'static str>,
    tasks: RefCell<Option<(Instant, TaskDetails)>>,
    /// Queues of held rows that are in one. Other producers make such rows.
    queues: RefCell<HashMap<DurableId, i32>>,
    ready: Notify,
}

impl<'a> PostgresRows<'a> {
    fn new(engine: &'a Postgres, door: &'a Door) -> Self {
        let options = (*engine.pool.connect_options()).clone().disable_statement_logging();
        let pool = |most| {
            PgPoolOptions::new()
                .max_connections(most)
                // A statement that fails is tried again; a ping before each would double the round trips.
                .test_before_acquire(false)
                .acquire_timeout(CONNECT)
                .connect_lazy_with(options.clone())
        };
        Self {
            worker: door.worker(),
            dead_after: door.dead_after(),
            schema: &engine.schema,
            jobs: engine.schema.private_table("jobs"),
            beats: pool(1),
            claims: pool(1),
            listens: pool(1),
            settles: pool(SETTLING),
            completions: Together::new(),
            kinds: door.kinds(),
            tasks: RefCell::default(),
            queues: RefCell::default(),
            ready: Notify::new(),
        }
    }

    /// Never ends.
    async fn listen(&self) {
        loop {
            if let Err(error) = self.listen_once().await {
                tracing::debug!(%error, "new durable jobs are seen by polling");
            }
            sleep(LISTEN_AGAIN).await;
        }
    }

    /// Ends when the connection is lost.
    async fn listen_once(&self) -> Result<(), sqlx::Error> {
        let mut listener = PgListener::connect_with(&self.listens).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        // For rows that were pushed before.
        self.ready.notify_one();
        while listener.try_recv().await?.is_some() {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// The ids of these kinds.
    async fn tasks(
        &self,
        connection: &mut PgConnection,
        kinds: &[&'static str],
    ) -> Result<TaskDetails, BoxError> {
        let is_young = matches!(&*self.tasks.borrow(), Some((since, _)) if since.elapsed() < TASKS);
        if !is_young {
            let names = self.kinds.iter().map(|kind| (*kind).to_owned()).collect();
            let all = get_tasks_details(connection, self.schema, names).await?;
            self.tasks.replace(Some((Instant::now(), all)));
        }
        let mut tasks = TaskDetails::new();
        let all = self.tasks.borrow();
        for kind in kinds {
            if let Some(id) = all.as_ref().and_then(|(_, all)| all.get_id(kind)) {
                tasks.insert(id, (*kind).to_owned());
            }
        }
        Ok(tasks)
    }

    async fn claim_of(
        &self,
        connection: &mut PgConnection,
        kinds: &[&'static str],
        most: usize,
    ) -> Result<Vec<Job>, BoxError> {
        if kinds.is_empty() || most == 0 {
            return Ok(Vec::new());
        }
        let tasks = self.tasks(connection, kinds).await?;
        let most = i32::try_from(most).unwrap_or(i32::MAX);
        let mut jobs =
            batch_get_jobs(connection, &tasks, self.schema, self.worker, &[], most, None).await?;
        jobs.sort_by_key(|job| (*job.priority(), *job.run_at(), *job.id()));
        Ok(jobs)
    }

    fn claimed(&self, job: &Job) -> Result<Claimed, BoxError> {
        let payload = serde_json::to_vec(job.payload())?;
        let ready_since = Some(SystemTime::from(*job.run_at()));
        let row = (*job.id(), job.task_identifier().clone(), *job.attempts(), *job.job_queue_id());
        Ok(self.held_row(row, payload, ready_since))
    }

    fn held_row(
        &self,
        (id, kind, attempts, queue): (i64, String, i16, Option<i32>),
        payload: Vec<u8>,
        ready_since: Option<SystemTime>,
    ) -> Claimed {
        let id = DurableId::new(id.to_string());
        if let Some(queue) = queue {
            self.queues.borrow_mut().insert(id.clone(), queue);
        }
        let starts = u32::try_from(attempts).unwrap_or_default().max(1);
        Claimed { id, kind, payload, starts, ready_since }
    }

    /// The part of a job that the engine's queries read.
    fn job(&self, row: &Claimed) -> Result<Job, BoxError> {
        let job = Job::builder().id(row.id.as_str().parse()?);
        Ok(match self.queues.borrow().get(&row.id) {
            Some(queue) => job.job_queue_id(*queue).build(),
            None => job.build(),
        })
    }

    /// The engine's `complete_job`, with the condition that this worker still holds the row. That deletes by the id
    /// alone, so also a row that was freed and is running elsewhere.
    async fn complete(&self, connection: &mut PgConnection, job: &Job) -> Result<(), BoxError> {
        let (jobs, queues) = (&self.jobs, self.schema.private_table("job_queues"));
        let sql = format!(
            "with done as (delete from {jobs} where id = $1 and locked_by = $2 returning job_queue_id) \
             update {queues} as queues set locked_by = null, locked_at = null from done \
             where queues.id = done.job_queue_id and queues.locked_by = $2"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(job.id())
            .bind(self.worker)
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Completes rows, and answers whether each was free to be completed.
    async fn complete_all(&self, batch: &[Rc<Waiting<i64, bool>>]) {
        let ids = batch.iter().map(|one| one.item).collect();
        let completed = self.complete_unlocked(ids).await.map_err(|error| error.to_string());
        for one in batch {
            one.answer(completed.clone().map(|completed| completed.contains(&one.item)));
        }
    }

    /// As [`complete`](Self::complete), for many rows, except for rows in a queue, and rows that another connection
    /// has locked: a locked row must not hold up the others.
    async fn complete_unlocked(&self, ids: Vec<i64>) -> Result<HashSet<i64>, sqlx::Error> {
        let jobs = &self.jobs;
        let sql = format!(
            "with done as (select id from {jobs} where id = any($1) and locked_by = $2 \
             and job_queue_id is null order by id for update skip locked) \
             delete from {jobs} as jobs using done where jobs.id = done.id returning jobs.id"
        );
        let mut connection = Lease::of(&self.settles).await?;
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(ids).bind(self.worker);
        let completed = query.fetch_all(&mut *connection).await?;
        connection.give_back();
        Ok(completed.into_iter().collect())
    }

    /// Locks a row until the transaction ends, if this worker holds it. The engine has no query for that.
    async fn is_held(&self, connection: &mut PgConnection, job: &Job) -> Result<bool, BoxError> {
        let jobs = &self.jobs;
        let sql = format!("select 1 from {jobs} where id = $1 and locked_by = $2 for update");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(job.id()).bind(self.worker);
        Ok(query.fetch_optional(connection).await?.is_some())
    }

    /// Stores a payload as text. The engine's `fail_job` sends it as `jsonb`, which refuses U+0000.
    async fn replace(
        &self,
        connection: &mut PgConnection,
        job: &Job,
        payload: &[u8],
    ) -> Result<(), BoxError> {
        let sql = format!("update {} set payload = $2::text::json where id = $1", self.jobs);
        let query =
            sqlx::query(AssertSqlSafe(sql)).bind(job.id()).bind(std::str::from_utf8(payload)?);
        query.execute(connection).await?;
        Ok(())
    }

    /// Ends a failed try: another follows if there is a payload for it.
    async fn fail(
        &self,
        connection: &mut PgConnection,
        job: &Job,
        error: &str,
        next: Option<&[u8]>,
    ) -> Result<(), BoxError> {
        let mut transaction = connection.begin().await?;
        if !self.is_held(&mut transaction, job).await? {
            return Ok(transaction.rollback().await?);
        }
        if let Some(payload) = next {
            self.replace(&mut transaction, job, payload).await?;
        }
        fail_job(&mut transaction, job, self.schema, self.worker, error, None).await?;
        if next.is_none() {
            give_up(&mut transaction, self.schema, *job.id(), error).await?;
        }
        Ok(transaction.commit().await?)
    }
}

/// Makes a row that no worker holds a dead letter.
pub(super) async fn give_up(
    connection: &mut PgConnection,
    schema: &Schema,
    id: i64,
    error: &str,
) -> Result<(), BoxError> {
    let sql = format!("select count(*) from {}($1, $2)", schema.function("permanently_fail_jobs"));
    sqlx::query(AssertSqlSafe(sql)).bind(vec![id]).bind(error).execute(connection).await?;
    Ok(())
}

impl Rows for PostgresRows<'_> {
    async fn beat(&self) -> Result<(), BoxError> {
        let mut connection = Lease::of(&self.beats).await?;
        let dead_after = u64::try_from(self.dead_after.as_millis()).unwrap_or(u64::MAX);
        let metadata = json!({ super::sweep::DEAD_AFTER_MS: dead_after });
        worker_heartbeat(&mut *connection, self.schema, self.worker, Some(metadata)).await?;
        connection.give_back();
        Ok(())
    }

    async fn sweep(&self) -> Result<u64, BoxError> {
        let mut connection = Lease::of(&self.beats).await?;
        let freed = self.free_rows_of_the_dead(&mut connection).await?;
        connection.give_back();
        if freed > 0 {
            self.ready.notify_one();
        }
        Ok(freed)
    }

    async fn claim(
        &self,
        kinds: &[(&'static str, usize)],
        most: usize,
    ) -> Result<Vec<Claimed>, BoxError> {
        let mut connection = Lease::of(&self.claims).await?;
        // A limit that cannot be reached now is none, so that such kinds are ordered by priority among each other.
        let (limited, unlimited): (Vec<_>, Vec<_>) =
            kinds.iter().copied().partition(|(_, limit)| *limit < most);
        let mut jobs = Vec::new();
        for (kind, limit) in limited {
            let left = limit.min(most - jobs.len());
            jobs.extend(self.claim_of(&mut connection, &[kind], left).await?);
        }
        let unlimited: Vec<_> = unlimited.into_iter().map(|(kind, _)| kind).collect();
        jobs.extend(self.claim_of(&mut connection, &unlimited, most - jobs.len()).await?);
        connection.give_back();
        if jobs.len() < most && jobs.iter().any(|job| job.job_queue_id().is_some()) {
            // The engine claims one row of a queue; others of the queue may have hidden rows that are free.
            self.ready.notify_one();
        }
        jobs.iter().map(|job| self.claimed(job)).collect()
    }

    /// Not by the engine's query: that fails for all rows if the payload of one is JSON for the database, and not for
    /// serde, such as `1e400`. A claim that has met such a row ends here, and the row's job says why it is dead.
    async fn held(&self) -> Result<Vec<Claimed>, BoxError> {
        type Row = (i64, String, i16, Option<i32>, String, f64);
        let mut connection = Lease::of(&self.claims).await?;
        let sql = format!(
            "select jobs.id, tasks.identifier, jobs.attempts, jobs.job_queue_id, jobs.payload::text, \
             extract(epoch from jobs.run_at)::float8 from {} as jobs \
             join {} as tasks on tasks.id = jobs.task_id where jobs.locked_by = $1 \
             order by jobs.priority, jobs.run_at, jobs.id",
            self.jobs,
            self.schema.private_table("tasks")
        );
        let query = sqlx::query_as::<_, Row>(AssertSqlSafe(sql)).bind(self.worker);
        let rows = query.fetch_all(&mut *connection).await?;
        connection.give_back();
        let held = |(id, kind, attempts, queue, payload, run_at): Row| {
            self.held_row((id, kind, attempts, queue), payload.into_bytes(), at(run_at))
        };
        Ok(rows.into_iter().map(held).collect())
    }

    async fn settle(&self, row: &Claimed, verdict: &Verdict) -> Result<(), BoxError> {
        let job = self.job(row)?;
        if matches!(verdict, Verdict::Done) && job.job_queue_id().is_none() {
            let id = *job.id();
            if self.completions.write(id, async |batch| self.complete_all(batch).await).await? {
                return Ok(());
            }
        }
        let mut connection = Lease::of(&self.settles).await?;
        match verdict {
            Verdict::Done => self.complete(&mut connection, &job).await?,
            Verdict::Retry { payload, error, .. } => {
                self.fail(&mut connection, &job, error, Some(payload)).await?;
            }
            Verdict::Dead { error } => self.fail(&mut connection, &job, error, None).await?,
            Verdict::Release { after } => {
                let delay = (!after.is_zero()).then_some(*after);
                let (schema, worker) = (self.schema, self.worker);
                return_job_for_recovery(&mut *connection, &job, schema, worker, delay, None)
                    .await?;
            }
            Verdict::Leave => {}
        }
        connection.give_back();
        if self.queues.borrow_mut().remove(&row.id).is_some() {
            // The next row of the queue is free.
            self.ready.notify_one();
        }
        Ok(())
    }

    async fn pushed(&self) {
        // The time is over, or a row was pushed: both are looked into.
        timeout(POLL, self.ready.notified()).await.unwrap_or_default();
    }

    async fn leave(&self) -> Result<(), BoxError> {
        let mut connection = Lease::of(&self.beats).await?;
        worker_deregister(&mut *connection, self.schema, self.worker).await?;
        connection.give_back();
        Ok(())
    }
}
