//! The types that applications hold: the scheduler, its builder, and handles to jobs.
//!
//! In reading order:
//!
//! 1. This file: [`Scheduler`], for spawning, closing and looking.
//! 2. `builder`: the settings, in code.
//! 3. `spawn`: [`JobBuilder`], which makes a job and admits it.
//! 4. `handle`: [`Job`], the handle of a job, and [`JobContext`], its view from the inside.
//! 5. `blocking`: blocking closures as jobs.

mod blocking;
pub(crate) mod builder;
pub(crate) mod handle;
pub(crate) mod spawn;

use std::{borrow::Cow, fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    job::{
        error::{JobError, SpawnError, TrySpawnError},
        info::JobInfo,
        options::Options,
        output::JobOutput,
    },
    report::{drain_report::DrainReport, stats::Stats},
    rules::{state::Outcome, step::Phase},
    run::core::Core,
    scheduler::{
        handle::{Job, JobContext},
        spawn::{JobBuilder, SpawnFuture, Value},
    },
    util::{clock::Moment, panics::ignore_panic},
};

/// Runs jobs in the background, so many at a time, and accounts for every one of them.
///
/// A scheduler is made once, held by the whole application (clones are cheap and share
/// everything) and closed at its end. [`new`](Self::new) and [`builder`](Self::builder) need no
/// runtime.
///
/// # Guarantees
///
/// - At most [`limit`](Self::limit) jobs run at once, shielded and atomic work aside; the others
///   wait in line, first come, first served. (A job that waits for its response joins the line when
///   that is over; one whose key is at its limit lets others pass.) While
///   [`pending_limit`](Self::pending_limit) jobs wait, spawners wait too, likewise.
/// - A job's panic, failure, abort or slowness is its own: no other job is touched.
/// - Every failure is reported exactly once: to whoever awaits the job's [handle](Job), else to
///   [`on_failure`](crate::SchedulerBuilder::on_failure).
/// - Every accepted job is accounted for: at every moment [`stats`](Self::stats) adds up, and
///   closing tells what became of each.
/// - `close` and `wait_and_close` come back in time, whatever jobs do, as long as a thread of the
///   caller's runtime is free to run them: on a current-thread runtime a job that never awaits
///   stops everything.
///
/// # What it does not do
///
/// - A job lives in this process: killed with it, the job is lost. Work that must survive belongs
///   in a durable queue.
/// - It does not interrupt code that never awaits, nor a blocking closure; such a job is
///   *abandoned* at the deadline, and says so in the report.
/// - It does not start a job in place: a job never runs inside the call that spawns it.
///
/// # The runtime
///
/// A scheduler belongs to one tokio runtime, with time enabled: the one given to
/// [`runtime`](crate::SchedulerBuilder::runtime), else the one in which its first job is spawned.
/// Spawning from another runtime or from a plain thread afterwards runs the job there. When that
/// runtime goes away the scheduler closes, and accounts for its jobs as for any others. (What a
/// blocking closure that still runs then returns, nobody hears of. And one that has had no job yet
/// does not notice: its first is accepted, and cancelled.)
///
/// # Tasks
///
/// A job is not a task of its own. It is polled by one of the scheduler's tasks, and one that ends
/// is followed by the next in the same task; one that waits keeps that task to itself. While jobs
/// are ready, a task is there for any free thread to take up. (As with [`tokio::spawn`], a job that
/// is alone may have to wait for the thread that spawned it, if that blocks.) Without jobs, about as
/// many tasks as the runtime has threads wait for the next one, 63 at the most; they end when the
/// scheduler is closed, or its last handle dropped.
///
/// Other tasks have their turn after 4 jobs or 2 µs: tokio looks for I/O after 61 such turns, or
/// what the runtime's [`event_interval`](tokio::runtime::Builder::event_interval) says, as long as all
/// threads have something to do (with 20, a route beside a backlog of very short jobs answered in half
/// the time, and the jobs took no longer). On a
/// runtime of one thread it is after 16 jobs or 10 µs, and the scheduler has tokio look about every
/// 50 µs. (While jobs take less than 2 µs, the time is looked at after every fourth.) Who awaits one
/// of them may have to wait for the end of its turn. So what is a task's is not a job's:
/// [`tokio::task::id`] says nothing about it, and the jobs of one turn share the cooperative budget (a
/// used-up one ends the turn). A job's span, panics and drop are its own.
///
/// # Dropping
///
/// There is no asynchronous `Drop`: dropping the last handle of an open scheduler that still has
/// jobs logs a warning and leaves them running. Use [`wait_and_close`](Self::wait_and_close).
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
/// The idea, its defaults and most of the names are aiojobs'. The nearest relatives in Rust are
/// tokio-util's `TaskTracker` and tokio's [`JoinSet`](tokio::task::JoinSet), without the limit, the
/// queue and the reports.
#[derive(Clone)]
pub struct Scheduler {
    handle: Arc<Handle>,
}

/// What the clones of a scheduler share; jobs do not hold it.
struct Handle {
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
    /// A scheduler with the default settings: 100 jobs at once, 10 000 pending, 100 ms to close,
    /// 60 s to wait.
    pub fn new() -> Self {
        Self::builder().build()
    }

    pub(crate) fn from_core(core: Core) -> Self {
        Self { handle: Arc::new(Handle { core: Arc::new(core) }) }
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
    /// Spawns a job, waiting for a place if there is none.
    ///
    /// It starts at once while fewer than [`limit`](Self::limit) jobs run; else it queues while
    /// fewer than [`pending_limit`](Self::pending_limit) wait; else this waits until a place is
    /// free, in turn with others who wait. (With a `pending_limit` of 0 there is nothing to wait
    /// in: it refuses.)
    ///
    /// Nothing happens until the returned future is polled. The job outlives it, and the handle.
    ///
    /// # Errors
    ///
    /// [`SpawnError::Closed`] if the scheduler is closed, or closes while this waits;
    /// [`SpawnError::Full`] with a `pending_limit` of 0; [`SpawnError::NoRuntime`] if the scheduler
    /// has no runtime yet and this is polled outside one.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it has resolved, it drops the job, which has not run, and gives up its place
    /// in the line.
    #[inline(always)]
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> SpawnFuture<Value<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.with_options(Options::default()).spawn(future)
    }

    /// Spawns a job if there is a place for it now. Never waits.
    ///
    /// # Errors
    ///
    /// [`TrySpawnError::Full`] if all places are taken or others wait for one,
    /// [`TrySpawnError::Closed`] if the scheduler is closed, [`TrySpawnError::NoRuntime`] if it has
    /// no runtime yet and this is called outside one. All give the future back.
    #[inline(always)]
    #[track_caller]
    pub fn try_spawn<F>(&self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        self.with_options(Options::default()).try_spawn(future)
    }

    /// Spawns a job, waiting at most `timeout` for a place. A zero `timeout` tries once.
    ///
    /// # Errors
    ///
    /// Like [`spawn`](Self::spawn), and [`SpawnError::TimedOut`] if no place came free in time.
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
        self.with_options(Options::default()).spawn_within(timeout, future)
    }

    /// Spawns a job that can see when it is told to end, and its id and name.
    ///
    /// When its scheduler or handle is closed, such a job is told (see
    /// [`JobContext::cancelled`]) and has the close timeout to end by itself; any other job is
    /// dropped at once, at the `await` where it stands. One that does not end in time is dropped
    /// too. It then counts as timed out, a failure, if its scheduler was closed; as cancelled if its
    /// handle or its request's [`Jobs`](crate::Jobs) was ([`Job::close`] then gives an error that
    /// [`is_close_timeout`](JobError::is_close_timeout)).
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
        self.with_options(Options::default()).spawn_with(make)
    }

    /// Spawns a blocking closure, on one of the runtime's blocking threads. It is counted,
    /// limited, listed and drained like any job.
    ///
    /// Once a thread has taken it up it cannot be ended. If it is then told to end and does not
    /// within the close timeout, it is reported as *abandoned*, and nobody waits on. (The runtime
    /// itself waits for such threads when it is dropped: see
    /// [`shutdown_background`](tokio::runtime::Runtime::shutdown_background).)
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
        self.with_options(Options::default()).spawn_blocking(closure)
    }

    /// Runs a future as a job outside the limit, and gives what it returns, unchanged.
    ///
    /// If the caller is dropped, the future goes on as a detached job: what must not be cut in
    /// half is not. Like every job it is listed and counted, and closing waits for it. It holds
    /// no place, so it can neither be refused for lack of one nor wait for one.
    ///
    /// # Errors
    ///
    /// A [`JobError`] that [`is_cancelled`](JobError::is_cancelled) if the scheduler is closed, or
    /// closes before the future has ended; or if the work was not accepted for another reason, which
    /// is then its [`source`](std::error::Error::source): no runtime, or a
    /// [unique](JobBuilder::unique_key) key that is taken. One that
    /// [`is_timeout`](JobError::is_timeout) if it ran longer than its timeout, or would not end when
    /// the scheduler closed.
    ///
    /// # Panics
    ///
    /// If the future panics, so does this.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its first poll, it drops the future, which has not run. Dropped later, it
    /// detaches it.
    #[track_caller]
    pub fn shield<F>(
        &self,
        future: F,
    ) -> impl Future<Output = Result<F::Output, JobError>> + Send + 'static + use<F>
    where
        F: Future<Output: JobOutput + Send + 'static> + Send + 'static,
    {
        self.with_options(Options::default()).shield(future)
    }

    /// Begins a job with options: a name, a run timeout; then any of the spawn verbs.
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
    /// Resolves when no job runs or waits, and no spawner waits for a place. Closes nothing; jobs
    /// may come again at once. Awaited by a job of this scheduler, it waits for that job, and so for
    /// ever. (All that the jobs did has been done by then, but where there are several threads the
    /// handle of the last may say so an instant later: await it.)
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn wait_idle(&self) {
        self.core().wait_idle().await;
    }

    /// Closes now, giving running jobs the close timeout to end.
    ///
    /// New jobs are refused from here on, and so are spawners that wait for a place. Pending jobs,
    /// and those that wait for their response, are reported as never started, and dropped piece by
    /// piece in a task, which may go on when this has returned. Running
    /// jobs are told to end: those of [`spawn_with`](Self::spawn_with) have
    /// [`close_timeout`](Self::close_timeout) to do so, all others are dropped at their next
    /// `await`. What has not ended at the deadline is dropped too, and has some 20 ms to be so; a
    /// job that then still holds on, since it does not await or blocks a thread, is *abandoned*.
    ///
    /// Closing again is fine: every caller gets the report of the first.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// Once polled, the scheduler is closed and its jobs have been told. Dropped after that, it
    /// does not see to it that they heed; calling `close` again does.
    pub async fn close(&self) -> DrainReport {
        self.core().close().await
    }

    /// Says that the end is near, and changes nothing else: [`is_draining`](Self::is_draining) is
    /// true from here on, so that a readiness probe fails, and the report of the later
    /// [`wait_and_close`](Self::wait_and_close) or [`close`](Self::close) begins here. Jobs are
    /// accepted as before. For the time between a signal and the end of the last connection.
    pub fn start_draining(&self) {
        self.core().start_draining();
    }

    /// Lets jobs finish for up to [`wait_timeout`](Self::wait_timeout), then [closes](Self::close).
    ///
    /// Until then the scheduler *drains*: it still accepts jobs, of running jobs, of requests
    /// still being served, of anyone, and waits for them too. It closes in the very step that
    /// leaves it idle, so no job slips in between; or when the time is over. A spawner that has been
    /// granted a place, and is not polled, is waited for like a job.
    ///
    /// Returns after `wait_timeout` and [`close_timeout`](Self::close_timeout) at the latest, and the
    /// 20 ms of [`close`](Self::close) where jobs do not let themselves be dropped.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// Once polled, the scheduler drains. Dropped after that, it goes on draining and closes when
    /// idle, but no deadline ends it; calling `wait_and_close` or `close` again sets one.
    pub async fn wait_and_close(&self) -> DrainReport {
        self.wait_and_close_within(self.wait_timeout()).await
    }

    /// [`wait_and_close`](Self::wait_and_close) with another time to wait. A `timeout` too long
    /// for the clock, as `Duration::MAX`, is no timeout.
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

/// Looking.
impl Scheduler {
    /// How many jobs there are: deferred, pending and active.
    pub fn len(&self) -> usize {
        self.core().queue().len()
    }

    /// Whether there are no jobs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many jobs run. Shielded work runs outside the limit and can take this beyond it.
    pub fn active_count(&self) -> usize {
        self.core().queue().active_count()
    }

    /// How many jobs wait for a running place.
    pub fn pending_count(&self) -> usize {
        self.core().queue().pending_count()
    }

    /// How many jobs run at once; `None` = any number.
    pub fn limit(&self) -> Option<usize> {
        self.core().config.limit
    }

    /// How many jobs may wait; `None` = any number, 0 = none.
    pub fn pending_limit(&self) -> Option<usize> {
        self.core().config.pending_limit
    }

    /// Maximum number of deferred jobs; `None` = any number.
    pub fn deferred_limit(&self) -> Option<usize> {
        self.core().config.deferred_limit
    }

    /// Maximum time that a job is deferred; `None` = no maximum.
    pub fn deferred_timeout(&self) -> Option<Duration> {
        self.core().config.deferred_timeout
    }

    /// How long a job that is told to end may take.
    pub fn close_timeout(&self) -> Duration {
        self.core().config.close_timeout
    }

    /// How long [`wait_and_close`](Self::wait_and_close) lets jobs finish.
    pub fn wait_timeout(&self) -> Duration {
        self.core().config.wait_timeout
    }

    /// Resolves when the end has begun: when [`is_draining`](Self::is_draining) turns true. For
    /// streams and loops that must end by themselves.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn shutting_down(&self) {
        self.core().shutting_down().await;
    }

    /// Whether the end has begun: true from the first call of `start_draining`, `wait_and_close` or
    /// `close` on, and for good. What a readiness probe asks.
    pub fn is_draining(&self) -> bool {
        self.core().queue().phase() != Phase::Open
    }

    /// Whether jobs are no longer accepted.
    pub fn is_closed(&self) -> bool {
        self.core().queue().phase() == Phase::Closed
    }

    /// All jobs there are, oldest first. Taken piece by piece, so jobs that start or end meanwhile
    /// may be missing or listed; ask [`stats`](Self::stats) for numbers that agree.
    pub fn jobs(&self) -> Vec<JobInfo> {
        let now = Moment::now();
        let mut jobs = Vec::new();
        self.core().for_each_job(|(record, state)| jobs.push(record.info(state, now)));
        jobs.sort_unstable_by_key(|job| job.id);
        jobs
    }

    /// All counts, of one and the same moment.
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
            oldest_deferred: deferred.map(|since| now.since(since)),
            oldest_pending: pending.map(|since| now.since(since)),
            oldest_active: active.map(|since| now.since(since)),
        }
    }
}

#[cfg(tower_jobs_count_locks)]
impl Scheduler {
    /// Locks of this crate that the process has taken so far, and how many of them were contended.
    #[doc(hidden)]
    pub fn locks() -> (u64, u64) {
        crate::util::sync::counting::counts()
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
