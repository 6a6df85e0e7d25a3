//! Running jobs: what the handles of one scheduler share, and the tasks that poll its jobs.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify, task::coop, time::Instant};
use tracing::Span;

use crate::{
    config::SchedulerConfig,
    contain::{contain, discard, forget_panic, wake},
    error::{JobError, SpawnError},
    job::{Failure, Header, JobFuture, Kind, Owner, Record, Work},
    lock::lock,
    queue::{Effects, Queue, Start},
    report::DrainReport,
    state::Outcome,
};

/// How many jobs a runner finishes before other tasks of the runtime have their turn.
const JOBS_PER_TURN: usize = 32;
/// How long a runner starts further jobs before other tasks have their turn.
const TURN: Duration = Duration::from_micros(200);

pub(crate) type Entry = Arc<dyn Record>;
pub(crate) type Hook = Box<dyn Fn(Failure) + Send + Sync>;

/// How the span of a job is tied to the span in which it was spawned.
///
/// Every job runs in a span of its own, `job`, with the fields `id`, `name` and `request`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpanLink {
    /// It follows from that span, which may close before the job ends. The default.
    #[default]
    FollowsFrom,
    /// It is a child of that span, which then stays open until the job has ended.
    Child,
    /// It is a root, with no tie.
    None,
}

/// How a scheduler of the module `testing` differs from a real one.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Run,
    /// Nothing starts by itself.
    Record,
    /// Spawning waits for the job's end.
    Inline,
}

/// What all handles of one scheduler share.
pub(crate) struct Shared {
    pub(crate) config: SchedulerConfig,
    queue: Mutex<Queue<Entry, Work>>,
    /// Notified by every step that leaves the queue idle.
    pub(crate) idle: Notify,
    /// Notified when the end is announced.
    pub(crate) ending: Notify,
    runtime: OnceLock<Handle>,
    span: SpanLink,
    on_failure: Option<Hook>,
    /// When the first drain or close began.
    pub(crate) drain_began: OnceLock<Instant>,
    pub(crate) close_deadline: OnceLock<Instant>,
    pub(crate) report: OnceLock<DrainReport>,
    #[cfg(feature = "testing")]
    mode: Mode,
}

impl Shared {
    pub(crate) fn new(
        config: SchedulerConfig,
        span: SpanLink,
        on_failure: Option<Hook>,
        runtime: Option<Handle>,
    ) -> Self {
        Self {
            queue: Mutex::new(Queue::new(config.limit, config.pending_limit, config.limit_per_key)),
            config,
            idle: Notify::new(),
            ending: Notify::new(),
            runtime: runtime.map(OnceLock::from).unwrap_or_default(),
            span,
            on_failure,
            drain_began: OnceLock::new(),
            close_deadline: OnceLock::new(),
            report: OnceLock::new(),
            #[cfg(feature = "testing")]
            mode: Mode::Run,
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn for_tests(mode: Mode, on_failure: Option<Hook>) -> Self {
        let config = SchedulerConfig { limit: None, pending_limit: None, ..Default::default() };
        let shared = Self { mode, ..Self::new(config, SpanLink::default(), on_failure, None) };
        if mode == Mode::Record {
            shared.queue().hold();
        }
        shared
    }

    #[cfg(feature = "testing")]
    pub(crate) fn is_inline(&self) -> bool {
        self.mode == Mode::Inline
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue<Entry, Work>> {
        lock(&self.queue)
    }

    pub(crate) fn runtime(&self) -> Option<&Handle> {
        self.runtime.get()
    }

    /// Settles which runtime jobs run on: the one given, else that of the first spawner.
    pub(crate) fn bind_runtime(&self) -> Result<(), SpawnError> {
        if self.runtime.get().is_none() {
            let current = Handle::try_current().map_err(|_| SpawnError::NoRuntime)?;
            self.runtime.get_or_init(|| current);
        }
        Ok(())
    }

    /// Does what a step of the queue has left to do.
    pub(crate) fn follow(self: &Arc<Self>, effects: Effects<Entry, Work>) {
        if let Some(start) = self.follow_but_start(effects) {
            let runtime = self.runtime.get().expect("jobs are accepted once there is a runtime");
            // The task's handle is not needed: a runner accounts for its jobs however it ends.
            drop(runtime.spawn(Runner::new(self.clone(), start)));
        }
    }

    fn follow_but_start(&self, effects: Effects<Entry, Work>) -> Option<Start<Entry, Work>> {
        effects.wake.into_iter().for_each(wake);
        if let Some((entry, work)) = effects.replaced {
            self.drop_unstarted(&entry, work, JobError::cancelled());
        }
        #[cfg(feature = "testing")]
        if self.mode == Mode::Record {
            self.idle.notify_waiters();
        }
        if effects.idle {
            self.idle.notify_waiters();
        }
        effects.start
    }

    pub(crate) fn new_span(&self, job: &Header) -> Span {
        macro_rules! job_span {
            ($($parent:tt)*) => {
                tracing::info_span!(
                    target: "tower_jobs", $($parent)* "job", id = %job.id(), name = %job.name(),
                    request = job.request_label().map(|label| &**label)
                )
            };
        }
        match self.span {
            SpanLink::Child => job_span!(),
            SpanLink::None => job_span!(parent: None,),
            SpanLink::FollowsFrom => {
                let span = job_span!(parent: None,);
                if !span.is_disabled() {
                    span.follows_from(Span::current().id());
                }
                span
            }
        }
    }

    /// Reports the failure of a job whose handle has gone.
    pub(crate) fn settle(&self, entry: &Entry) {
        if let Some(error) = entry.unheard() {
            self.report(entry.header(), error);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Owner for Shared {
    fn close(self: Arc<Self>, job: Entry) {
        if self.take_out(&job) {
            return;
        }
        match &job.header().kind {
            Kind::Cooperative(_) => job.header().cancel(),
            Kind::Plain | Kind::Blocking(_) => job.header().stop(false),
        }
    }

    fn abort(self: Arc<Self>, job: Entry) {
        if !self.take_out(&job) {
            job.header().stop(false);
        }
    }

    fn report(&self, job: &Header, error: JobError) {
        let failure = Failure { job: job.info(Instant::now()), error };
        // The hook is not ours, nor is the error: showing it, or dropping it, may panic.
        let tell = || match &self.on_failure {
            Some(hook) => hook(failure),
            None => log_failure(failure),
        };
        if let Err(payload) = contain(tell) {
            let error = JobError::panicked(payload);
            let job = job.info(Instant::now());
            tracing::error!(%job, %error, "on_failure, or the error it was called with, panicked");
            if let Ok(payload) = error.into_panic() {
                forget_panic(payload);
            }
        }
    }

    fn close_timeout(&self) -> Duration {
        self.config.close_timeout
    }
}

impl Shared {
    /// The response of a deferred job is over.
    pub(crate) fn begin(self: &Arc<Self>, entry: &Entry) {
        let (slot, id) = (entry.header().slot(), entry.header().id());
        let effects = self.queue().begin(slot, id, Instant::now());
        self.follow(effects);
    }

    /// The response of a deferred job is over, and is not what the job waited for.
    pub(crate) fn skip(self: &Arc<Self>, entry: &Entry) {
        let (slot, id) = (entry.header().slot(), entry.header().id());
        let removed = self.queue().remove(slot, id, Outcome::Skipped, Instant::now());
        if let Some((work, effects)) = removed {
            self.follow(effects);
            self.drop_unstarted(entry, work, JobError::skipped());
        }
    }

    /// Ends a job that has not started. Whether it had not.
    fn take_out(self: &Arc<Self>, job: &Entry) -> bool {
        let (slot, id) = (job.header().slot(), job.header().id());
        let removed = self.queue().remove(slot, id, Outcome::Cancelled, Instant::now());
        let Some((work, effects)) = removed else { return false };
        self.follow(effects);
        self.drop_unstarted(job, work, JobError::cancelled());
        true
    }

    /// The end of a job that was taken out of the queue. Its `Drop` may panic; then that is how
    /// it failed.
    fn drop_unstarted(&self, entry: &Entry, work: Work, error: JobError) {
        let Work { future, span } = work;
        let dropped = span.in_scope(|| contain(|| drop(future)));
        entry.fail(dropped.map_or_else(JobError::panicked, |()| error));
        self.settle(entry);
        entry.publish();
    }
}

#[allow(clippy::needless_pass_by_value, reason = "who reports a failure drops it")]
fn log_failure(failure: Failure) {
    let job = &failure.job;
    tracing::error!(
        target: "tower_jobs",
        {
            job.id = %job.id,
            job.name = %job.name,
            job.request = job.request.as_deref(),
            job.location = %job.location,
        },
        "{}",
        failure.chain()
    );
}

/// An active job and its place. The only thing that ends an active job: when it does, by
/// [`advance`](Self::advance), or when its runtime does, by `Drop`.
struct Occupied {
    shared: Arc<Shared>,
    entry: Option<Entry>,
}

impl Occupied {
    /// Ends the job and takes the next one into its place, in one step.
    fn advance(&mut self, outcome: Outcome, now: Instant) -> Option<Work> {
        let entry = self.entry.take()?;
        let (slot, id) = (entry.header().slot(), entry.header().id());
        let effects = self.shared.queue().finish(slot, id, outcome, now);
        entry.publish();
        let Start { entry, work } = self.shared.follow_but_start(effects)?;
        self.entry = Some(entry);
        Some(work)
    }
}

impl Drop for Occupied {
    /// Only a runtime that goes away drops a runner with a job in it, and nothing can run there
    /// any more: the scheduler closes.
    fn drop(&mut self) {
        let Some(entry) = &self.entry else { return };
        let outcome = match &entry.header().kind {
            Kind::Blocking(begun) if begun.load(Ordering::Acquire) => Outcome::Abandoned,
            _ => Outcome::Cancelled,
        };
        entry.fail(JobError::cancelled());
        self.shared.settle(entry);
        self.shared.close_now();
        let next = self.advance(outcome, Instant::now());
        debug_assert!(next.is_none(), "a closed queue starts nothing");
    }
}

/// The task that polls a job, and, when that ends, the next one in the queue, inside itself.
struct Runner {
    future: Option<JobFuture>,
    span: Span,
    /// The job has left its waker with [`Header::park`].
    parked: bool,
    place: Occupied,
}

impl Runner {
    fn new(shared: Arc<Shared>, start: Start<Entry, Work>) -> Self {
        let Start { entry, work: Work { future, span } } = start;
        let place = Occupied { shared, entry: Some(entry) };
        Self { future: Some(future), span, parked: false, place }
    }

    /// Polls the job once. When it ends, its future has been dropped, its result is stored and a
    /// failure that nobody awaits is reported, all while it still holds its place.
    fn poll_job(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Occupied { shared, entry: Some(entry) } = &self.place else {
            unreachable!("a runner without a job is finished");
        };
        let header = entry.header();
        let entered = self.span.enter();
        let mut outcome = match &mut self.future {
            Some(future) if !header.must_stop() || matches!(header.kind, Kind::Blocking(_)) => {
                match contain(|| future.as_mut().poll(cx)) {
                    Ok(Poll::Ready(outcome)) => outcome,
                    Ok(Poll::Pending) => {
                        if !self.parked && header.park(cx.waker().clone()) {
                            cx.waker().wake_by_ref();
                        }
                        self.parked = true;
                        return Poll::Pending;
                    }
                    Err(payload) => {
                        entry.fail(JobError::panicked(payload));
                        Outcome::Panicked
                    }
                }
            }
            _ if header.is_overdue() => {
                entry.fail(JobError::close_timeout(shared.config.close_timeout));
                Outcome::TimedOut
            }
            _ => {
                entry.fail(JobError::cancelled());
                Outcome::Cancelled
            }
        };
        let future = self.future.take();
        if let Err(payload) = contain(|| drop(future)) {
            entry.fail(JobError::panicked(payload));
            outcome = Outcome::Panicked;
        }
        shared.settle(entry);
        drop(entered);
        self.span = Span::none();
        Poll::Ready(outcome)
    }
}

impl Future for Runner {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut first_end = None;
        for _ in 0..JOBS_PER_TURN {
            let outcome = ready!(self.poll_job(cx));
            let now = Instant::now();
            let Some(Work { future, span }) = self.place.advance(outcome, now) else {
                return Poll::Ready(());
            };
            self.future = Some(future);
            self.span = span;
            self.parked = false;
            if now - *first_end.get_or_insert(now) > TURN || !coop::has_budget_remaining() {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else { return };
        self.span.in_scope(|| discard(future));
    }
}
