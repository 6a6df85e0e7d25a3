//! The core of a scheduler: its state, which all handles share.
//!
//! The queue decides, and the core applies: lock, one step of the queue, unlock, [`Core::apply`].

use std::{
    fmt, iter, mem,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{runtime::Handle, sync::Notify, task, time::Instant};

use crate::{
    job::{
        body::Work,
        error::{JobError, SpawnError},
        record::Record,
        surroundings::Ties,
    },
    report::{
        failure::JobFailure,
        job_list::Drained,
        memory::Memory,
        observer::{Observer, RefusalReason},
    },
    rules::{
        config::SchedulerConfig,
        queue::Queue,
        state::Outcome,
        step::{Effects, RareEffects, Stealable, Wake},
    },
    run::{
        hooks::Hooks, idle_runners::IdleRunners, observers::Observers, runner::Runner,
        standard_error::StandardError,
    },
    util::{
        clock::Moment,
        panics::wake,
        sync::{CachePadded, Mutex, MutexGuard, lock},
        waiting::Counted,
    },
};

/// Chunks of an empty table that one task drops at a time: 320 KB, some 40 µs. Smaller pieces take
/// longer in all, since the allocator then mixes them with the futures being dropped.
const CHUNKS_FREED_PER_TASK: usize = 32;

pub(crate) type FailureHook = Arc<dyn Fn(JobFailure) + Send + Sync>;
pub(crate) type JobQueue = Queue<Arc<Record>, Work>;
pub(crate) type JobEffects = Effects<Arc<Record>, Work>;

/// How the schedulers of the module `testing` differ from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Run,
    /// No job starts by itself.
    Record,
    /// Spawning waits for the job's end.
    Inline,
}

/// The settings that are no plain data.
#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) ties: Ties,
    pub(crate) on_failure: Option<FailureHook>,
    pub(crate) runtime: Option<Handle>,
    pub(crate) observers: Vec<Arc<dyn Observer>>,
    pub(crate) remember: usize,
    pub(crate) name: Option<Arc<str>>,
}

/// The state that all handles of one scheduler share.
pub(crate) struct Core {
    pub(crate) config: SchedulerConfig,
    pub(crate) mode: Mode,
    pub(crate) name: Option<Arc<str>>,
    queue: CachePadded<Mutex<JobQueue>>,
    pub(super) idle_runners: CachePadded<IdleRunners>,
    /// Notified by each step that leaves the queue idle, while a task waits for that.
    idle: Counted<Notify>,
    pub(super) shutdown_started: Notify,
    runtime: OnceLock<Handle>,
    pub(crate) ties: Ties,
    pub(super) on_failure: Option<FailureHook>,
    pub(crate) hooks: Hooks,
    pub(crate) standard_error: StandardError,
    /// The moment of the first drain or close.
    pub(super) drain_began: OnceLock<Instant>,
    pub(super) close_deadline: OnceLock<Instant>,
    pub(super) drained: OnceLock<Arc<Drained>>,
    pub(crate) observers: Observers,
    pub(crate) memory: Option<Arc<Memory>>,
    refused: [AtomicU64; RefusalReason::ALL.len()],
    /// The deadline of the drain, if it has one.
    pub(super) deadline: Mutex<Option<Instant>>,
    pub(super) gives_up_responses: AtomicBool,
    /// A task watches `deferred_timeout`.
    pub(super) watches_deferred: AtomicBool,
}

impl Core {
    pub(crate) fn new(config: SchedulerConfig, mode: Mode, setup: Setup) -> Self {
        let Setup { ties, on_failure, runtime, mut observers, remember, name } = setup;
        let memory = (remember > 0).then(|| Arc::new(Memory::new(remember, config.job_timeout)));
        observers.extend(memory.clone().map(|memory| memory as Arc<dyn Observer>));
        let SchedulerConfig { limit, pending_limit, deferred_limit, limit_per_key, .. } = config;
        let mut queue = Queue::new(limit, pending_limit, deferred_limit, limit_per_key);
        if let Some(runtime) = &runtime {
            queue.set_threads(thread_count(runtime));
        }
        Self {
            config,
            mode,
            name: name.clone(),
            queue: CachePadded(Mutex::new(queue)),
            idle_runners: CachePadded(IdleRunners::new()),
            idle: Counted::new(Notify::new()),
            shutdown_started: Notify::new(),
            runtime: runtime.map(OnceLock::from).unwrap_or_default(),
            ties,
            on_failure,
            hooks: Hooks::default(),
            standard_error: StandardError::default(),
            drain_began: OnceLock::new(),
            close_deadline: OnceLock::new(),
            drained: OnceLock::new(),
            observers: Observers::new(observers, name),
            memory,
            refused: Default::default(),
            deadline: Mutex::new(None),
            gives_up_responses: AtomicBool::new(false),
            watches_deferred: AtomicBool::new(false),
        }
    }

    #[inline(always)]
    pub(crate) fn queue(&self) -> MutexGuard<'_, JobQueue> {
        lock(&self.queue.0)
    }

    /// Counts a refusal, and tells the observers.
    #[cold]
    pub(crate) fn refuse(&self, reason: RefusalReason, record: &Record) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.observers.refused(reason, record.name_str());
    }

    /// The number of refusals for each of [`RefusalReason::ALL`].
    pub(crate) fn refusals(&self) -> [u64; RefusalReason::ALL.len()] {
        self.refused.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    // The runtime.

    pub(crate) fn runtime(&self) -> Option<&Handle> {
        self.runtime.get()
    }

    /// Binds the scheduler to the runtime that it was given, else to that of the first spawner.
    #[inline]
    pub(crate) fn bind_runtime(&self) -> Result<(), SpawnError> {
        if self.runtime.get().is_none() { self.bind_current_runtime() } else { Ok(()) }
    }

    #[cold]
    fn bind_current_runtime(&self) -> Result<(), SpawnError> {
        let current = Handle::try_current().map_err(|_| SpawnError::NoRuntime)?;
        let runtime = self.runtime.get_or_init(|| current);
        self.queue().set_threads(thread_count(runtime));
        Ok(())
    }

    pub(super) fn threads(&self) -> u32 {
        self.runtime().map_or(0, thread_count)
    }

    // Effects.

    /// Applies the effects of a step, which mostly are none.
    #[inline(always)]
    pub(crate) fn apply(self: &Arc<Self>, effects: Effects<Arc<Record>, Work>) {
        let Effects { wake, rare } = effects;
        self.wake(wake);
        self.apply_rest(wake, rare);
    }

    /// Applies all effects but the requests for runners.
    #[inline(always)]
    pub(super) fn apply_rest(
        self: &Arc<Self>,
        wake: Wake,
        rare: Option<Box<RareEffects<Arc<Record>, Work>>>,
    ) {
        if let Some(rare) = rare {
            self.apply_rare(*rare);
        }
        if wake == Wake::IdleWaiters || self.mode == Mode::Record {
            self.notify_idle();
        }
    }

    #[cold]
    fn apply_rare(self: &Arc<Self>, rare: RareEffects<Arc<Record>, Work>) {
        let RareEffects { wakers, replaced, mut surplus, has_closed, is_unfinished } = rare;
        if has_closed {
            self.close_now();
        }
        let piece = || {
            let rest = surplus.len().saturating_sub(CHUNKS_FREED_PER_TASK);
            (!surplus.is_empty()).then(|| surplus.split_off(rest))
        };
        self.drop_in_background(iter::from_fn(piece).collect());
        wakers.into_iter().for_each(wake);
        if let Some((_, work)) = replaced {
            self.drop_unstarted(work, Outcome::Cancelled, JobError::cancelled());
        }
        if is_unfinished {
            self.go_on();
        }
    }

    /// Carries a changed limit out, in bounded steps of the queue.
    pub(super) fn go_on(self: &Arc<Self>) {
        loop {
            let now = Moment::now();
            let mut effects = self.queue().go_on(now);
            let rare = effects.rare.as_mut();
            let is_unfinished = rare.is_some_and(|rare| mem::take(&mut rare.is_unfinished));
            self.apply(effects);
            if !is_unfinished {
                return;
            }
        }
    }

    #[inline(always)]
    pub(super) fn wake(self: &Arc<Self>, wake: Wake) {
        if !matches!(wake, Wake::None | Wake::IdleWaiters) {
            self.wake_runners(wake);
        }
    }

    fn wake_runners(self: &Arc<Self>, wake: Wake) {
        match wake {
            Wake::None | Wake::IdleWaiters => {}
            Wake::One => self.wake_runner(Stealable::Unknown),
            Wake::OneStealable => self.wake_runner(Stealable::Yes),
            Wake::Two => {
                self.wake_runner(Stealable::Yes);
                // A new one, not a parked one: that may be about to return on another thread, which
                // then takes it, and the first stays in this thread's LIFO slot.
                self.spawn_runner(Stealable::Unknown);
            }
        }
    }

    fn wake_runner(self: &Arc<Self>, stealable: Stealable) {
        if !self.idle_runners.0.unpark_one(stealable) {
            self.spawn_runner(stealable);
        }
    }

    fn spawn_runner(self: &Arc<Self>, stealable: Stealable) {
        let runtime = self.runtime().expect("jobs are accepted once there is a runtime");
        // The task's handle is not needed: a runner accounts for its jobs however it ends.
        drop(runtime.spawn(Runner::new(self.clone(), stealable)));
    }

    /// Shuts down the idle runners; no more jobs are expected.
    pub(crate) fn shutdown_idle_runners(&self) {
        self.idle_runners.0.shutdown();
    }

    /// Drops these in a task of its own, one piece in each poll: they may be many, and user code that
    /// blocks.
    pub(crate) fn drop_in_background<T: Send + 'static>(&self, pieces: Vec<T>) {
        let Some(runtime) = self.runtime().filter(|_| !pieces.is_empty()) else {
            return;
        };
        // No code waits for the task. A runtime that is gone drops it here.
        drop(runtime.spawn(async move {
            // In the order in which they were allocated.
            for piece in pieces {
                drop(piece);
                task::yield_now().await;
            }
        }));
    }

    // Waiting for an idle queue.

    /// Resolves when `done` is true of the queue. It is asked at each [`notify_idle`](Self::notify_idle).
    pub(crate) async fn wait_until(&self, done: impl Fn(&JobQueue) -> bool) {
        self.idle.wait_until(|| done(&self.queue())).await;
    }

    /// Resolves when no job runs or waits.
    pub(crate) async fn wait_idle(&self) {
        self.wait_until(Queue::is_idle).await;
    }

    /// Wakes the tasks that wait for an idle queue. Not under the lock, since wakers run.
    pub(super) fn notify_idle(&self) {
        self.idle.announce();
    }
}

fn thread_count(runtime: &Handle) -> u32 {
    u32::try_from(runtime.metrics().num_workers()).unwrap_or(u32::MAX)
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}
