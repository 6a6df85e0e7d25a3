//! Running stored jobs: the builder, the threads, and the end.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use futures_util::future::{BoxFuture, join};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::watch,
    time::{Instant, sleep},
};
use tower_jobs::{BoxError, JobOutput, PartContext, Scheduler};

#[cfg(feature = "metrics")]
use crate::figures;
use crate::{
    context::DurableContext,
    door::{Door, Tally},
    engine::{Admin, Engine},
    error::PushError,
    handlers::{Handlers, one_line},
    job::DurableJob,
    outbox::{Outbox, OutboxLayer},
    rescue::Rescue,
    stage::Stage,
};

/// Most time of the end that is kept for settling rows.
const SETTLE: Duration = Duration::from_secs(2);
/// The rest of the settling time, from which on rows are given up.
const LAST: Duration = Duration::from_millis(100);
/// Pause before a worker that has panicked is started again.
const RESTART: Duration = Duration::from_secs(1);

/// Settings of a [`Durable`].
#[must_use = "call `start`"]
pub struct DurableBuilder {
    engine: Arc<dyn Engine>,
    handlers: Handlers,
    limit: usize,
    threads: usize,
    runtime: Option<Handle>,
    dead_after: Duration,
    #[cfg(feature = "metrics")]
    metrics: Option<tower_jobs::JobMetrics>,
}

impl fmt::Debug for DurableBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableBuilder").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl DurableBuilder {
    /// Registers the handler of a kind. A kind without a handler is left to other processes.
    ///
    /// The handler must be idempotent: a job runs at least once, and may run again after a crash, an outage of
    /// the store, or a shutdown. [`DurableContext::id`] is the same each time.
    ///
    /// # Panics
    ///
    /// If the kind is registered already. The text names both places.
    #[track_caller]
    pub fn register<J, F, Fut>(mut self, handler: F) -> Self
    where
        J: DurableJob,
        F: Fn(J, DurableContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: JobOutput> + Send + 'static,
    {
        self.handlers.register(handler, None);
        self
    }

    /// Registers the handler of a kind of which at most `limit` jobs run at once in this process.
    ///
    /// # Panics
    ///
    /// Like [`register`](Self::register), and if `limit` is 0.
    #[track_caller]
    pub fn register_limited<J, F, Fut>(mut self, limit: usize, handler: F) -> Self
    where
        J: DurableJob,
        F: Fn(J, DurableContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: JobOutput> + Send + 'static,
    {
        assert!(
            limit > 0,
            "the limit of \"{}\" is 0: do not register the kind, or set at least 1",
            J::KIND
        );
        self.handlers.register(handler, Some(limit));
        self
    }

    /// Sets the maximum number of jobs that run at once in this process. Defaults to 20.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[track_caller]
    pub fn limit(mut self, limit: usize) -> Self {
        assert!(limit > 0, "the limit of durable jobs is 0: set at least 1");
        self.limit = limit;
        self
    }

    /// Sets the number of threads that run the jobs. Defaults to 2.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[track_caller]
    pub fn threads(mut self, threads: usize) -> Self {
        assert!(threads > 0, "durable jobs have 0 threads: set at least 1");
        self.threads = threads;
        self
    }

    /// Runs the jobs on this runtime, in place of one of their own.
    ///
    /// A job that blocks then holds up the other work of that runtime.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Sets after how long without a sign of life a process counts as dead. Defaults to 30 s.
    ///
    /// The jobs of a dead process are free after that time. A process frees jobs only after it has itself been
    /// connected for that long. Set the same value in all processes of a store.
    ///
    /// # Panics
    ///
    /// If it is below 3 s.
    #[track_caller]
    pub fn dead_after(mut self, dead_after: Duration) -> Self {
        assert!(
            dead_after >= Duration::from_secs(3),
            "dead_after is {dead_after:?}: set at least 3 s, or a pause of the database kills workers that live"
        );
        self.dead_after = dead_after;
        self
    }

    /// Publishes the jobs' metrics with those of other schedulers, and the store's.
    ///
    /// The store's are looked at every 15 s, and are those of all processes:
    ///
    /// | metric | |
    /// |---|---|
    /// | `tower_jobs_durable_jobs{state}` | gauge: stored jobs that are `ready`, `later`, `running`, `dead` |
    /// | `tower_jobs_durable_oldest_ready_seconds` | gauge: how long the oldest ready job has been ready |
    /// | `tower_jobs_durable_start_seconds{kind}` | histogram: from when a job was ready to its start |
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self, metrics: &tower_jobs::JobMetrics) -> Self {
        self.metrics = Some(metrics.clone());
        self
    }

    /// Starts the worker. Without handlers there is none, and jobs are only pushed.
    ///
    /// # Panics
    ///
    /// If the system gives no thread.
    pub fn start(self) -> Durable {
        let (stage, _) = watch::channel(Stage::Open);
        let own_runtime = self.runtime.is_none().then(|| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(self.threads).thread_name("durable-jobs").enable_all();
            builder.build().expect("the system gives threads for the durable jobs")
        });
        let runtime = self.runtime.unwrap_or_else(|| {
            own_runtime.as_ref().map(Runtime::handle).expect("made above").clone()
        });
        let scheduler =
            Scheduler::builder().name("durable").limit(self.limit).runtime(runtime.clone());
        #[cfg(feature = "metrics")]
        let scheduler = match &self.metrics {
            Some(metrics) => {
                let published = figures::publish(self.engine.clone());
                runtime.spawn(until_stopping(stage.subscribe(), published));
                scheduler.metrics(metrics)
            }
            None => scheduler,
        };
        let scheduler = scheduler.build();
        let inner = Inner {
            engine: self.engine,
            scheduler,
            rescue: Arc::new(Rescue::new(stage.subscribe())),
            stage,
            tally: Arc::default(),
            ended: watch::channel(true).0,
            runtime: own_runtime,
        };
        let durable = Durable(Arc::new(inner));
        if !self.handlers.is_empty() {
            durable.0.spawn_worker(Arc::new(self.handlers), self.dead_after);
        }
        durable
    }
}

/// Stored jobs: pushes them, and runs them. Cheap to clone.
///
/// Dropped without [`part`](Self::part), it stops, and its running jobs are cut off.
#[derive(Clone)]
pub struct Durable(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    scheduler: Scheduler,
    rescue: Arc<Rescue>,
    stage: watch::Sender<Stage>,
    tally: Arc<Mutex<Tally>>,
    /// Whether the worker's thread has ended.
    ended: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stage.send_replace(Stage::Over);
        if let Some(runtime) = self.runtime.take() {
            // An ordinary drop panics in async code.
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    async fn worker_ended(&self) {
        // `self` keeps the sender.
        drop(self.ended.subscribe().wait_for(|ended| *ended).await);
    }

    fn spawn_worker(&self, handlers: Arc<Handlers>, dead_after: Duration) {
        let (engine, scheduler) = (self.engine.clone(), self.scheduler.clone());
        let (stage, tally, ended) =
            (self.stage.subscribe(), self.tally.clone(), self.ended.clone());
        ended.send_replace(false);
        let work = move || {
            let door = || {
                let worker = format!("tower-jobs-{}", ulid::Ulid::new());
                Door::new(
                    handlers.clone(),
                    scheduler.clone(),
                    stage.clone(),
                    worker,
                    dead_after,
                    tally.clone(),
                )
            };
            run_worker(&engine, door);
            ended.send_replace(true);
        };
        thread::Builder::new()
            .name("durable-worker".into())
            .spawn(work)
            .expect("the system gives a thread for the durable worker");
    }
}

/// Runs the engine until its door is stopping. A worker that ends before gets a new name, and starts again.
fn run_worker(engine: &Arc<dyn Engine>, door: impl Fn() -> Door) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return tracing::error!(%error, "the durable worker has no runtime, and no job runs");
        }
    };
    loop {
        let (ran, watched) = (door(), door());
        let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(engine.clone().run(ran))));
        if watched.is_stopping() || watched.is_closed() {
            return;
        }
        let how = if ran.is_ok() { "ended" } else { "panicked" };
        tracing::error!("the durable worker {how}, and starts again in {RESTART:?}");
        runtime.block_on(async {
            tokio::select! { () = sleep(RESTART) => {}, () = watched.stopping() => {} }
        });
        if watched.is_stopping() {
            return;
        }
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").field("scheduler", &self.0.scheduler).finish_non_exhaustive()
    }
}

impl Durable {
    /// Builds on an engine, such as [`Postgres`](crate::Postgres) or [`Sqlite`](crate::Sqlite).
    pub fn builder(engine: impl Engine) -> DurableBuilder {
        Self::builder_of(Arc::new(engine))
    }

    /// Builds on an engine that was chosen while the program runs.
    pub fn builder_of(engine: Arc<dyn Engine>) -> DurableBuilder {
        DurableBuilder {
            engine,
            handlers: Handlers::default(),
            limit: 20,
            threads: 2,
            runtime: None,
            dead_after: Duration::from_secs(30),
            #[cfg(feature = "metrics")]
            metrics: None,
        }
    }

    /// Returns the layer that gives each request its [`Outbox`].
    pub fn layer(&self) -> OutboxLayer {
        OutboxLayer(self.outbox())
    }

    /// Returns an outbox without a request.
    pub fn outbox(&self) -> Outbox {
        Outbox::new(self.0.engine.clone(), self.0.rescue.clone())
    }

    /// Returns the scheduler that runs the jobs, to observe and to steer it.
    ///
    /// A job that is cancelled there counts as failed.
    pub fn scheduler(&self) -> &Scheduler {
        &self.0.scheduler
    }

    /// Returns the store's figures and dead letters, if the engine has such.
    pub fn admin(&self) -> Option<&dyn Admin> {
        self.0.engine.admin()
    }

    /// Returns the [part](tower_jobs::Shutdown::part) that ends the jobs with the rest of the application.
    ///
    /// From the signal on nothing more is claimed. A running job has until the deadline, less the time to settle
    /// rows: 2 s, at most a quarter of the time left. Then it is cut off, its row is free for another process at
    /// once, and the try does not count. The report says how many were released. A job whose code cannot be
    /// stopped is left to the sweep, and makes the report unclean.
    pub fn part(
        &self,
    ) -> impl FnOnce(PartContext) -> BoxFuture<'static, Result<(), BoxError>> + Send + 'static + use<>
    {
        let durable = self.clone();
        |part| {
            Box::pin(async move {
                part.begun().await;
                durable.0.stop_claiming();
                let ((), (pushed, not_pushed)) =
                    join(durable.0.drain(&part), durable.0.push_unstarted(&part)).await;
                let Tally { released, left, not_stored } = *lock(&durable.0.tally);
                let mut became = Vec::new();
                for (count, what) in [
                    (released, "released"),
                    (pushed, "pushed unstarted"),
                    (left, "still running, left to the sweep"),
                    (not_stored, "ended, and not stored"),
                    (not_pushed, "unstarted, and not pushed"),
                ] {
                    if count > 0 {
                        became.push(format!("{count} {what}"));
                    }
                }
                match became.join(", ") {
                    became if left + not_stored + not_pushed > 0 => Err(became.into()),
                    became if became.is_empty() => Ok(()),
                    became => {
                        part.note(became);
                        Ok(())
                    }
                }
            })
        }
    }
}

impl Inner {
    fn stop_claiming(&self) {
        self.stage.send_replace(Stage::Stopping);
    }

    /// Ends the jobs, and settles their rows.
    async fn drain(&self, part: &PartContext) {
        self.scheduler.start_draining();
        let left = part.deadline().map(|end| end.saturating_duration_since(Instant::now()));
        let settle = SETTLE.min(left.unwrap_or_default() / 4);
        tokio::select! {
            () = self.scheduler.wait_idle() => {}
            () = part.left(settle) => {}
        }
        self.scheduler.close().await;
        tokio::select! {
            () = self.worker_ended() => {}
            () = part.left(LAST.min(settle / 2)) => {
                self.stage.send_replace(Stage::Over);
                self.worker_ended().await;
            }
        }
    }

    /// Pushes the jobs that were dropped unstarted. Returns how many it pushed, and how many it could not.
    async fn push_unstarted(&self, part: &PartContext) -> (usize, usize) {
        part.jobs_over().await;
        let (mut pushed, mut failed) = (0, 0);
        let pushing = async {
            while let Some(make_row) = self.rescue.next().await {
                // Counted as failed if there is no time for it.
                failed += 1;
                let push = async { self.engine.push(make_row()?).await };
                match push.await {
                    // One with the same key does the work.
                    Ok(_) | Err(PushError::Duplicate(_)) => {
                        (failed, pushed) = (failed - 1, pushed + 1);
                    }
                    Err(error) => {
                        tracing::error!(
                            error = one_line(&error),
                            "an unstarted job was not pushed"
                        );
                    }
                }
            }
        };
        tokio::select! {
            () = pushing => {}
            () = part.left(LAST) => {}
        }
        (pushed, failed)
    }
}

#[cfg(feature = "metrics")]
async fn until_stopping(mut stage: watch::Receiver<Stage>, work: impl Future<Output = ()>) {
    tokio::select! {
        _ = stage.wait_for(|stage| *stage >= Stage::Stopping) => {}
        () = work => {}
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
