//! The types that applications hold: the scheduler, its builder, and handles to jobs.
//!
//! In reading order:
//!
//! 1. This file: [`Scheduler`], and spawning. `closing` and `inspect` have its other verbs.
//! 2. `builder`: the settings, in code.
//! 3. `spawn`: [`JobBuilder`], which makes a job and admits it.
//! 4. `handle`: [`Job`], the handle of a job, and [`JobContext`], its view from the inside.
//! 5. `spawn_future`: the future of the spawn verbs that wait.
//! 6. `shield` and `blocking`: shielded work, and blocking closures, as jobs.
//! 7. `permit`: permits that are reserved before there is a job.
//! 8. `steer`: changing limits, pausing, and single jobs by id.
//! 9. `weak`: a handle that does not keep the scheduler open.
//! 10. `metrics`: schedulers whose gauges are published.

pub(crate) mod blocking;
pub(crate) mod builder;
mod closing;
pub(crate) mod handle;
mod inspect;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod permit;
pub(crate) mod shield;
pub(crate) mod spawn;
pub(crate) mod spawn_future;
mod steer;
pub(crate) mod weak;

use std::{borrow::Cow, fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    job::{
        boxed::{box_large, box_large_closure},
        error::{JobError, SpawnError, TrySpawnError},
        options::Options,
        output::JobOutput,
    },
    rules::state::Phase,
    run::core::{Core, Mode},
    scheduler::{
        handle::{Job, JobContext},
        spawn::{JobBuilder, Value},
        spawn_future::SpawnFuture,
    },
    util::panics::ignore_panic,
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
    /// A job that awaits a job which it has spawned holds its permit meanwhile. When as many such jobs run as
    /// the limit allows, all of them wait for ever. Use [`shield`](Self::shield) there: it needs no permit.
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
    /// [`is_timeout`](JobError::is_timeout) if the future ran longer than its timeout, and one that
    /// [`is_abandoned`](JobError::is_abandoned) if it did not end when the scheduler closed.
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
