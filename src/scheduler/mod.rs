//! The types that applications hold: the scheduler, its builder, and handles to jobs.
//!
//! In reading order:
//!
//! 1. This file: [`Scheduler`], for spawning, closing and inspecting.
//! 2. `builder`: the settings, in code.
//! 3. `spawn`: [`JobBuilder`], which makes a job and admits it.
//! 4. `handle`: [`Job`], the handle of a job, and [`JobContext`], its view from the inside.
//! 5. `spawn_future`: the future of the spawn verbs that wait.
//! 6. `shield` and `blocking`: shielded work, and blocking closures, as jobs.
//! 7. `permit`: permits that are reserved before there is a job.
//! 8. `steer`: changing limits, pausing, and single jobs by id.
//! 9. `weak`: a handle that does not keep the scheduler open.

mod blocking;
pub(crate) mod builder;
pub(crate) mod handle;
pub(crate) mod permit;
pub(crate) mod shield;
pub(crate) mod spawn;
pub(crate) mod spawn_future;
mod steer;
pub(crate) mod weak;

use std::{borrow::Cow, fmt, future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    job::{
        boxed::{box_large, box_large_closure},
        error::{JobError, SpawnError, TrySpawnError},
        info::JobInfo,
        options::Options,
        output::JobOutput,
    },
    report::{
        drain_report::DrainReport,
        stats::{Refusals, Stats},
    },
    rules::{state::Outcome, step::Phase},
    run::core::{Core, Mode},
    scheduler::{
        handle::{Job, JobContext},
        spawn::{JobBuilder, Value},
        spawn_future::SpawnFuture,
    },
    util::{clock::Moment, panics::ignore_panic},
};

/// Runs jobs in the background, up to a limit at once, and accounts for each.
///
/// An application makes one scheduler, shares clones of it (a clone is cheap, and a handle to the same
/// scheduler) and closes it at the end. [`new`](Self::new) and [`builder`](Self::builder) need no runtime.
///
/// # Guarantees
///
/// - At most [`limit`](Self::limit) jobs run at once. Work started with [`shield`](Self::shield) or
///   [`AtomicLayer`](crate::AtomicLayer) does not count. Other jobs wait in the queue, and start in the
///   order in which they came. A job that waits for its response joins the queue when the response is
///   over. A job whose key is at its limit does not block other keys.
/// - While [`pending_limit`](Self::pending_limit) jobs wait in the queue, spawners wait too, in order.
/// - A job's panic, failure, abort or slowness does not affect other jobs.
/// - Every failure is reported exactly once: to the code that awaits the job's [handle](Job), else to
///   [`on_failure`](crate::SchedulerBuilder::on_failure).
/// - Every accepted job is accounted for: at every moment the counts of [`stats`](Self::stats) add up,
///   and the report of closing says how each job ended.
/// - `close` and `wait_and_close` return by their deadline, whatever jobs do, while one thread of the
///   caller's runtime is free, also if a job blocks the thread that drives tokio's timers. On a
///   current-thread runtime a job that never awaits stops everything. Run timeouts are timers of tokio, and
///   late while the thread that drives these is blocked.
///
/// # What it does not do
///
/// - It does not survive the process: a job lives in memory. Work that must survive belongs in a durable
///   queue.
/// - It does not interrupt code that never awaits, or a blocking closure. Such a job is reported as
///   *abandoned* at the deadline.
/// - It does not start a job in place: a job never runs inside the call that spawns it.
///
/// # The runtime
///
/// A scheduler belongs to one tokio runtime, with time enabled: the one given to
/// [`runtime`](crate::SchedulerBuilder::runtime), else the one in which its first job is spawned.
/// A job that is spawned later from another runtime, or from a plain thread, also runs on that runtime.
///
/// If that runtime goes away, the scheduler closes and accounts for its jobs as for any others. The
/// result of a blocking closure that still runs then is lost. A scheduler that has had no job does not
/// notice that its runtime is gone; its first job is accepted and then cancelled.
///
/// # Tasks
///
/// A job is not a task of its own: one of the scheduler's tasks, a *runner*, polls it. Each job is
/// polled as a task of its own would be:
///
/// - A runner polls one job in a poll. When a job ends, the runner takes the next ready one and
///   re-queues itself, so other tasks have their turn after each job. While all threads are busy, tokio
///   looks for I/O after 61 polls, or after the number set by
///   [`event_interval`](tokio::runtime::Builder::event_interval).
/// - A re-queued runner is behind the tasks that its last job has woken, so those run before the same
///   thread begins the runner's next job.
/// - Each job has its own cooperative budget, span, panics and drop.
///
/// A job that waits keeps its runner. While jobs are ready, any free thread finds a runner for them. As
/// with [`tokio::spawn`], a single ready job may have to wait for the thread that spawned it, if that
/// thread blocks.
///
/// Without jobs, runners are parked until the next job: at most as many as the runtime has threads, and
/// at most 63. They end when the scheduler is closed, or its last handle is dropped.
///
/// [`tokio::task::id`] identifies the runner and says nothing about a job.
///
/// # Dropping
///
/// Rust has no asynchronous `Drop`. If the last handle of an open scheduler is dropped while it has jobs,
/// it logs a warning and the jobs run on. Use [`wait_and_close`](Self::wait_and_close).
///
/// # Example
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_jobs::SpawnError> {
/// let scheduler = tower_jobs::Scheduler::builder().limit(10).build();
/// let job = scheduler.spawn(async { 6 * 7 }).await?;
/// assert_eq!(job.await.unwrap(), 42);
/// let report = scheduler.wait_and_close().await;
/// assert!(report.is_clean());
/// # Ok(()) }
/// ```
///
/// The idea, the defaults and most of the names are those of aiojobs. The nearest relatives in Rust are
/// tokio-util's `TaskTracker` and tokio's [`JoinSet`](tokio::task::JoinSet); they have no limit, no queue
/// and no reports.
#[derive(Clone)]
pub struct Scheduler {
    handle: Arc<Handle>,
}

/// The part that the clones of a scheduler share. Jobs do not hold it.
pub(crate) struct Handle {
    core: Arc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.shutdown_idle_runners();
        let queue = self.core.queue();
        let (open, jobs) = (queue.phase() == Phase::Open, queue.len());
        drop(queue);
        if open && jobs > 0 {
            ignore_panic(|| {
                tracing::warn!(
                    jobs,
                    "the last handle of an open scheduler was dropped; its jobs run on, and \
                     nothing waits for them: call wait_and_close() first"
                );
            });
        }
    }
}

impl Scheduler {
    /// Makes a scheduler with the default settings.
    ///
    /// They are: `limit` 100, `pending_limit` 10 000, `deferred_limit` 10 000, no `deferred_timeout`, no
    /// `limit_per_key`, `close_timeout` 100 ms, `wait_timeout` 60 s.
    pub fn new() -> Self {
        Self::builder().build()
    }

    pub(crate) fn from_core(core: Arc<Core>) -> Self {
        Self { handle: Arc::new(Handle { core }) }
    }

    pub(crate) fn with_options(&self, options: Options) -> JobBuilder<'_> {
        JobBuilder::new(self.core(), options, ())
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }

    #[cfg(feature = "shutdown")]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }
}

/// Spawning.
impl Scheduler {
    /// Spawns a job; waits if the queue is full.
    ///
    /// The job starts at once while fewer than [`limit`](Self::limit) jobs run. Else it waits in the
    /// queue, while fewer than [`pending_limit`](Self::pending_limit) jobs wait there. If the queue is
    /// full too, the *caller* waits, in order with other callers. With a `pending_limit` of 0 there is no
    /// queue, and the job is refused instead.
    ///
    /// Nothing happens until the returned future is polled. The job outlives that future, and its handle.
    ///
    /// # Errors
    ///
    /// [`SpawnError::Closed`] if the scheduler is closed, or closes while this waits;
    /// [`SpawnError::Full`] with a `pending_limit` of 0; [`SpawnError::NoRuntime`] if the scheduler
    /// has no runtime yet and this is polled outside one.
    ///
    /// # Cancel safety
    ///
    /// If the returned future is dropped before it has resolved, the job is dropped without having run,
    /// and its turn goes to the next caller.
    #[inline(always)]
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> SpawnFuture<Value<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        box_large!(future: F => self.with_options(Options::default()).spawn_boxed(future))
    }

    /// Spawns a job if it can start or wait in the queue now.
    ///
    /// Never waits.
    ///
    /// # Errors
    ///
    /// [`TrySpawnError::Full`] if the queue is full or other callers wait;
    /// [`TrySpawnError::Closed`] if the scheduler is closed; [`TrySpawnError::NoRuntime`] if it has no
    /// runtime yet and this is called outside one. Each returns the future.
    #[inline(always)]
    #[track_caller]
    pub fn try_spawn<F>(&self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        box_large!(future: F => self.with_options(Options::default()).try_spawn_boxed(future))
    }

    /// Spawns a job; waits at most `timeout` if the queue is full.
    ///
    /// A zero `timeout` tries once.
    ///
    /// # Errors
    ///
    /// Like [`spawn`](Self::spawn), and [`SpawnError::TimedOut`] if `timeout` passes first.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// Like [`spawn`](Self::spawn).
    #[doc(alias = "spawn_timeout")]
    #[track_caller]
    pub fn spawn_within<F>(
        &self,
        timeout: Duration,
        future: F,
    ) -> impl Future<Output = Result<Job<Value<F>>, SpawnError>> + Send + 'static + use<F>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let is_inline = self.core().mode == Mode::Inline;
        box_large!(future: F => self.with_options(Options::default()).spawn_boxed(future))
            .within(timeout, is_inline)
    }

    /// Spawns a job that can see its own cancellation, id and name.
    ///
    /// When its scheduler or its handle is closed, such a job is *cancelled*: it sees that through
    /// [`JobContext::cancelled`], and has the close timeout to end by itself. Any other job is aborted
    /// instead: its future is dropped at its next `await`.
    ///
    /// A cancelled job that does not end in time is aborted too. If its scheduler was closed, it counts
    /// as timed out, which is a failure. If its handle or its request's [`Jobs`](crate::Jobs) was closed,
    /// it counts as cancelled, and [`Job::close`] returns an error that
    /// [`is_close_timeout`](JobError::is_close_timeout).
    ///
    /// ```
    /// # async fn example(scheduler: tower_jobs::Scheduler) -> Result<(), tower_jobs::SpawnError> {
    /// # async fn step() {}
    /// # async fn save_progress() {}
    /// scheduler
    ///     .spawn_with(|context| async move {
    ///         while !context.is_cancelled() {
    ///             step().await;
    ///         }
    ///         save_progress().await;
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`spawn`](Self::spawn).
    ///
    /// # Cancel safety
    ///
    /// Like [`spawn`](Self::spawn).
    #[track_caller]
    pub fn spawn_with<C, F>(&self, make: C) -> SpawnFuture<Value<F>>
    where
        C: FnOnce(JobContext) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        box_large_closure!(make: C => self.with_options(Options::default()).spawn_with_boxed(make))
    }

    /// Spawns a blocking closure on one of the runtime's blocking threads.
    ///
    /// It is counted, limited, listed and drained like any job. Once a thread has begun the closure, it
    /// cannot be ended. If the scheduler closes and the closure does not end within the close timeout, the
    /// job is reported as *abandoned*, and the scheduler no longer waits for it. The runtime itself waits
    /// for such threads when it is dropped: see
    /// [`shutdown_background`](tokio::runtime::Runtime::shutdown_background).
    ///
    /// # Errors
    ///
    /// Like [`spawn`](Self::spawn).
    ///
    /// # Cancel safety
    ///
    /// Like [`spawn`](Self::spawn).
    #[track_caller]
    pub fn spawn_blocking<C, R>(&self, closure: C) -> SpawnFuture<R::Value>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        box_large_closure!(closure: C => self.with_options(Options::default()).spawn_blocking_boxed(closure))
    }

    /// Runs a future to its end, even if the caller is dropped.
    ///
    /// The future runs as a job outside the limit, and its output is returned unchanged. If the caller is
    /// dropped, the job goes on, detached. It is listed and counted like any job, and closing waits for
    /// it. It holds no permit, so it does not wait for one, and is never refused because the queue is
    /// full.
    ///
    /// # Errors
    ///
    /// A [`JobError`] that [`is_cancelled`](JobError::is_cancelled) if the scheduler is closed, or
    /// closes before the future has ended. The same if the job was not accepted for another reason, which
    /// is then the error's [`source`](std::error::Error::source): no runtime, or a
    /// [unique key](JobBuilder::unique_key) of another job. An error that
    /// [`is_timeout`](JobError::is_timeout) if the future ran longer than its timeout, or did not end
    /// when the scheduler closed.
    ///
    /// # Panics
    ///
    /// If the future panics.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the first poll, it drops the future, which has not run. Dropped later, it detaches
    /// the job.
    #[track_caller]
    pub fn shield<F>(
        &self,
        future: F,
    ) -> impl Future<Output = Result<F::Output, JobError>> + Send + 'static + use<F>
    where
        F: Future<Output: JobOutput + Send + 'static> + Send + 'static,
    {
        box_large!(future: F => self.with_options(Options::default()).shield_boxed(future)).run()
    }

    /// Begins a job with options, such as a name and a run timeout.
    ///
    /// One of the spawn verbs ends it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # async fn send() {}
    /// # async fn example(scheduler: tower_jobs::Scheduler) -> Result<(), tower_jobs::SpawnError> {
    /// scheduler.job("welcome e-mail").timeout(Duration::from_secs(30)).spawn(send()).await?;
    /// # Ok(()) }
    /// ```
    pub fn job(&self, name: impl Into<Cow<'static, str>>) -> JobBuilder<'_> {
        self.with_options(Options::default()).name(name)
    }
}

/// Closing.
impl Scheduler {
    /// Resolves when no job runs or waits, and no spawner waits.
    ///
    /// It closes nothing, and new jobs may come at once. Do not await this inside a job of the same
    /// scheduler: it would wait for itself.
    ///
    /// All jobs have run to their end by then. On several threads, the handle of the last job may show
    /// that an instant later: await the handle.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn wait_idle(&self) {
        self.core().wait_idle().await;
    }

    /// Closes the scheduler now; running jobs have the close timeout to end.
    ///
    /// - New jobs are refused from here on, and so are the jobs of waiting spawners.
    /// - Pending jobs, and jobs that wait for their response, are reported as never started. Their futures
    ///   are dropped on the runtime's blocking pool, which may go on after this has returned.
    /// - Running jobs of [`spawn_with`](Self::spawn_with) are cancelled, and have
    ///   [`close_timeout`](Self::close_timeout) to end. All other running jobs are aborted: their futures
    ///   are dropped at their next `await`.
    /// - Jobs still running at the deadline are aborted. One that cannot be dropped within another 20 ms
    ///   (it never awaits, or blocks its thread) is reported as *abandoned*.
    ///
    /// It can be called again: every caller gets the same report.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// Once polled, it is carried through, although it is dropped, or awaited by one of the jobs. Call it
    /// again for the report.
    pub async fn close(&self) -> DrainReport {
        self.core().close().await
    }

    /// Announces the shutdown, and changes nothing else.
    ///
    /// From here on [`is_draining`](Self::is_draining) is true, so that a readiness probe fails, and the
    /// report of the later [`wait_and_close`](Self::wait_and_close) or [`close`](Self::close) covers the
    /// time from this call. Jobs are accepted as before. It is meant for the time between a signal and the
    /// end of the last connection.
    pub fn start_draining(&self) {
        self.core().start_draining();
    }

    /// Lets jobs finish for up to [`wait_timeout`](Self::wait_timeout), then [closes](Self::close).
    ///
    /// Until then the scheduler *drains*: it still accepts jobs from all callers, such as running jobs and
    /// requests in flight, and waits for those too. It closes in the very step that leaves it idle, so no
    /// job slips in between, or when the time is over. A spawner that has been granted a permit or a place
    /// in the queue, and has not been polled since, is waited for like a job.
    ///
    /// Returns after at most `wait_timeout` plus [`close_timeout`](Self::close_timeout), plus the 20 ms of
    /// [`close`](Self::close) if jobs cannot be dropped in time.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// Once polled, it is carried through with its deadline, although it is dropped. Call it again for
    /// the report, or call [`close`](Self::close) for an earlier end.
    pub async fn wait_and_close(&self) -> DrainReport {
        self.wait_and_close_within(self.wait_timeout()).await
    }

    /// Like [`wait_and_close`](Self::wait_and_close), with `timeout` instead of `wait_timeout`.
    ///
    /// A `timeout` too long for the clock, such as `Duration::MAX`, means no deadline.
    ///
    /// # Panics
    ///
    /// Like [`wait_and_close`](Self::wait_and_close).
    ///
    /// # Cancel safety
    ///
    /// Like [`wait_and_close`](Self::wait_and_close).
    #[doc(alias = "wait_and_close_timeout")]
    pub async fn wait_and_close_within(&self, timeout: Duration) -> DrainReport {
        self.core().wait_and_close(timeout).await
    }
}

/// Inspecting.
impl Scheduler {
    /// Returns the number of jobs: deferred, pending and active.
    pub fn len(&self) -> usize {
        self.core().queue().len()
    }

    /// Returns whether there are no jobs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of running jobs.
    ///
    /// Shielded work runs outside the limit, so this can exceed it.
    pub fn active_count(&self) -> usize {
        self.core().queue().active_count()
    }

    /// Returns the number of jobs that wait in the queue.
    pub fn pending_count(&self) -> usize {
        self.core().queue().pending_count()
    }

    /// Returns the maximum number of jobs that run at once; `None` = any number.
    pub fn limit(&self) -> Option<usize> {
        limit_of(self.core().queue().limit())
    }

    /// Returns the maximum number of waiting jobs; `None` = any number, 0 = no queue.
    pub fn pending_limit(&self) -> Option<usize> {
        limit_of(self.core().queue().pending_limit())
    }

    /// Returns the maximum number of deferred jobs; `None` = any number.
    pub fn deferred_limit(&self) -> Option<usize> {
        self.core().config.deferred_limit
    }

    /// Returns the maximum time that a job is deferred, if there is one.
    pub fn deferred_timeout(&self) -> Option<Duration> {
        self.core().config.deferred_timeout
    }

    /// Returns the maximum number of jobs of one key that run at once; `None` = any number.
    pub fn limit_per_key(&self) -> Option<usize> {
        limit_of(self.core().queue().limit_per_key())
    }

    /// Returns the run timeout of jobs that have none of their own.
    pub fn job_timeout(&self) -> Option<Duration> {
        self.core().config.job_timeout
    }

    /// Returns the scheduler's name, if it was given one.
    pub fn name(&self) -> Option<&str> {
        self.core().name.as_deref()
    }

    /// Returns the deadline of the drain, once it has one.
    ///
    /// [`wait_and_close`](Self::wait_and_close) and [`close`](Self::close) set it when they begin, and
    /// [`Shutdown`](crate::Shutdown) sets it at the signal.
    pub fn deadline(&self) -> Option<Instant> {
        self.core().deadline()
    }

    /// Returns the maximum time for a job to end once it is closed.
    pub fn close_timeout(&self) -> Duration {
        self.core().config.close_timeout
    }

    /// Returns the maximum time for jobs to finish in [`wait_and_close`](Self::wait_and_close).
    pub fn wait_timeout(&self) -> Duration {
        self.core().config.wait_timeout
    }

    /// Resolves when the shutdown has begun: when [`is_draining`](Self::is_draining) turns true.
    ///
    /// It is meant for streams and loops that must end by themselves.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn shutting_down(&self) {
        self.core().shutting_down().await;
    }

    /// Returns whether the shutdown has begun.
    ///
    /// It is true from the first call of `start_draining`, `wait_and_close` or `close` on, and never
    /// false again. Readiness probes ask for it.
    pub fn is_draining(&self) -> bool {
        self.core().queue().phase() != Phase::Open
    }

    /// Returns whether new jobs are refused, because the scheduler is closed.
    pub fn is_closed(&self) -> bool {
        self.core().queue().phase() == Phase::Closed
    }

    /// Lists all jobs, oldest first.
    ///
    /// It reads them in several steps, so jobs that start or end meanwhile may be missing or listed. The
    /// numbers of [`stats`](Self::stats) agree with each other.
    pub fn jobs(&self) -> Vec<JobInfo> {
        let now = Moment::now();
        let mut jobs = Vec::new();
        self.core().for_each_job(|(record, state)| jobs.push(record.info(state, now)));
        jobs.sort_unstable_by_key(|job| job.id);
        jobs
    }

    /// Returns all counts, taken at one moment.
    pub fn stats(&self) -> Stats {
        let now = Moment::now();
        let queue = self.core().queue();
        let totals = queue.totals();
        let [deferred, pending, active] = queue.oldest();
        Stats {
            accepted: totals.accepted,
            deferred: queue.deferred_count() as u64,
            pending: queue.pending_count() as u64,
            active: queue.active_count() as u64,
            completed: totals.of(Outcome::Completed),
            failed: totals.of(Outcome::Failed),
            panicked: totals.of(Outcome::Panicked),
            timed_out: totals.of(Outcome::TimedOut),
            cancelled: totals.of(Outcome::Cancelled),
            skipped: totals.of(Outcome::Skipped),
            never_started: totals.of(Outcome::NeverStarted),
            abandoned: totals.of(Outcome::Abandoned),
            waiting_spawners: queue.waiting_count() as u64,
            reserved: queue.reserved_count() as u64,
            granted: queue.granted_count() as u64,
            outside_limit: queue.outside_limit_count() as u64,
            refused: Refusals::from_counts(self.core().refusals()),
            oldest_deferred: deferred.map(|since| now.since(since)),
            oldest_pending: pending.map(|since| now.since(since)),
            oldest_active: active.map(|since| now.since(since)),
        }
    }
}

#[cfg(tower_jobs_count_locks)]
impl Scheduler {
    /// Returns how many locks of this crate the process has taken, and how many were contended.
    #[doc(hidden)]
    pub fn locks() -> (u64, u64) {
        crate::util::sync::counting::counts()
    }
}

/// The limit as users set it.
fn limit_of(limit: usize) -> Option<usize> {
    Some(limit).filter(|limit| *limit < usize::MAX)
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.core().queue();
        let (phase, active, pending) = (queue.phase(), queue.active_count(), queue.pending_count());
        drop(queue);
        f.debug_struct("Scheduler")
            .field("state", &phase)
            .field("active", &active)
            .field("pending", &pending)
            .field("limit", &self.limit())
            .field("pending_limit", &self.pending_limit())
            .finish_non_exhaustive()
    }
}
