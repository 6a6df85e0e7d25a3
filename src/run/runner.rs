//! Running jobs: what the handles of one scheduler share, and the tasks that poll its jobs.

use std::{
    fmt,
    future::Future,
    iter, mem,
    panic::Location,
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Notify,
    task::{self, coop},
    time::Instant,
};

use crate::{
    http::request::Request,
    job::body::{Unpacked, Work},
    job::error::{JobError, Panic, SpawnError},
    job::record::{Extras, JobFailure, Kind, Record},
    job::span::{Entered, JobSpan, SpanLink, in_span},
    report::job_list::Drained,
    rules::config::SchedulerConfig,
    rules::keys::Ticket,
    rules::queue::{Admit, Advance, Call, Effects, More, Next, Queue, Reach, Refusal},
    rules::state::{JobState, Outcome},
    run::idle_runners::{SeatKey, Spare},
    run::inbox::SharedQueue,
    util::clock::Moment,
    util::one_line::OneLine,
    util::panics::{contain, discard, forget_panic, ignore_panic, notify, wake},
    util::sync::{CachePadded, MutexGuard},
};

/// What a runner may do before other tasks of the runtime have their turn.
struct Pace {
    /// How many jobs it finishes.
    jobs: usize,
    /// How long it takes further ones.
    time: Duration,
}

/// tokio looks for I/O after every 61 turns, whatever happens in them. Where there are several
/// threads nothing else makes it look, and so a turn is short.
const SEVERAL_THREADS: Pace = Pace { jobs: 4, time: Duration::from_micros(2) };
const ONE_THREAD: Pace = Pace { jobs: 16, time: Duration::from_micros(10) };
/// While jobs take less than this, the clock is read after every fourth: that takes as long as the
/// shortest of them. Three that take longer than those before may pass unnoticed.
const SHORT: Duration = Duration::from_micros(2);
const UNREAD: usize = 3;
/// How long the runners of the only thread take turns before tokio looks for I/O, if it looks no
/// earlier by itself.
const WITHOUT_IO: Duration = Duration::from_micros(50);

/// How much of an empty table is given back at a time: 320 KB, some 40 µs. (With less, that is mixed
/// with the dropping of jobs where both have to be done, and the allocator is slower at both.)
const PIECE: usize = 32;

pub(crate) type Entry = Arc<Record>;
pub(crate) type Hook = Box<dyn Fn(JobFailure) + Send + Sync>;

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
    queue: SharedQueue<Entry, Work>,
    spare: CachePadded<Spare>,
    /// Notified by every step that leaves the queue idle, if anybody waits for that.
    idle: Notify,
    wait_for_idle: AtomicUsize,
    /// Notified when the end is announced.
    pub(crate) ending: Notify,
    runtime: OnceLock<Handle>,
    span: SpanLink,
    on_failure: Option<Hook>,
    /// When the first drain or close began.
    pub(crate) drain_began: OnceLock<Instant>,
    pub(crate) close_deadline: OnceLock<Instant>,
    pub(crate) drained: OnceLock<Arc<Drained>>,
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
        let mut queue = Queue::new(config.limit, config.pending_limit, config.limit_per_key);
        if let Some(runtime) = &runtime {
            queue.set_threads(threads(runtime));
        }
        Self {
            queue: SharedQueue::new(queue),
            spare: CachePadded(Spare::new()),
            config,
            idle: Notify::new(),
            wait_for_idle: AtomicUsize::new(0),
            ending: Notify::new(),
            runtime: runtime.map(OnceLock::from).unwrap_or_default(),
            span,
            on_failure,
            drain_began: OnceLock::new(),
            close_deadline: OnceLock::new(),
            drained: OnceLock::new(),
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
        self.queue.lock()
    }

    pub(crate) fn runtime(&self) -> Option<&Handle> {
        self.runtime.get()
    }

    /// Settles which runtime jobs run on: the one given, else that of the first spawner.
    #[inline]
    pub(crate) fn bind_runtime(&self) -> Result<(), SpawnError> {
        if self.runtime.get().is_none() { self.bind_to_current() } else { Ok(()) }
    }

    #[cold]
    fn bind_to_current(&self) -> Result<(), SpawnError> {
        let current = Handle::try_current().map_err(|_| SpawnError::NoRuntime)?;
        let runtime = self.runtime.get_or_init(|| current);
        self.queue().set_threads(threads(runtime));
        Ok(())
    }

    /// Has the tasks end that wait for jobs: there will be none, or hardly any.
    pub(crate) fn retire(&self) {
        self.spare.0.retire();
    }

    /// Does what a step of the queue has left to do: mostly nothing.
    #[inline(always)]
    pub(crate) fn follow(self: &Arc<Self>, effects: Effects<Entry, Work>) {
        let Effects { call, more } = effects;
        self.call(call);
        self.follow_up(call == Call::Idle, more);
    }

    #[inline(always)]
    fn follow_up(self: &Arc<Self>, idle: bool, more: Option<Box<More<Entry, Work>>>) {
        if idle || more.is_some() {
            self.do_more(idle, more);
        }
        #[cfg(feature = "testing")]
        if self.mode == Mode::Record {
            notify(&self.idle);
        }
    }

    fn do_more(self: &Arc<Self>, idle: bool, more: Option<Box<More<Entry, Work>>>) {
        if let Some(more) = more {
            let More { wake: wakers, replaced, mut surplus, has_closed } = *more;
            if has_closed {
                self.retire();
            }
            let piece = || {
                let rest = surplus.len().saturating_sub(PIECE);
                (!surplus.is_empty()).then(|| surplus.split_off(rest))
            };
            self.drop_apart(iter::from_fn(piece).collect());
            wakers.into_iter().for_each(wake);
            if let Some((entry, work)) = replaced {
                self.drop_unstarted(&entry, work, JobError::cancelled());
            }
        }
        if idle {
            self.notify_idle();
        }
    }

    /// Takes a job in, or says why not, without having asked for its work.
    pub(crate) fn admit(
        self: &Arc<Self>,
        how: Admit,
        entry: &Entry,
        work: &mut dyn FnMut() -> Work,
    ) -> Result<(), Refusal> {
        self.admit_inline(how, entry, work)
    }

    /// The same, for what must not take a call. (The other is called from code that users' futures
    /// have many copies of.)
    #[inline(always)]
    fn admit_inline(
        self: &Arc<Self>,
        how: Admit,
        entry: &Entry,
        work: impl FnOnce() -> Work,
    ) -> Result<(), Refusal> {
        let now = Moment::now();
        // Cloned, as the reference count is not to be waited for under the lock.
        let entry = entry.clone();
        let admitted = self.queue.admit(how, entry, work, now);
        self.follow(admitted?);
        Ok(())
    }

    /// Takes in the job of a spawner that can wait for a place.
    pub(crate) fn poll_admit(
        self: &Arc<Self>,
        entry: &Entry,
        work: &mut Option<Work>,
        ticket: &mut Option<Ticket>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SpawnError>> {
        self.bind_runtime()?;
        let mut work = || work.take().expect("admitted once");
        let Some(waiting) = *ticket else {
            let admitted = self.admit_inline(Admit::Limited, entry, &mut work);
            if admitted != Err(Refusal::Full) || self.config.pending_limit == Some(0) {
                return Poll::Ready(admitted.map_err(SpawnError::from));
            }
            // A waker is not ours, and is not cloned under the lock.
            let (waker, clone, now) = (cx.waker().clone(), entry.clone(), Moment::now());
            let mut queue = self.queue();
            let admitted = queue.admit(Admit::Limited, clone, work, now);
            if let Err(Refusal::Full) = admitted {
                *ticket = Some(queue.wait(entry, waker));
                return Poll::Pending;
            }
            drop(queue);
            self.follow(admitted?);
            return Poll::Ready(Ok(()));
        };
        let (waker, entry, now) = (cx.waker().clone(), entry.clone(), Moment::now());
        let mut queue = self.queue();
        let Some(admitted) = queue.take_turn(waiting, entry, work, now) else {
            let replaced = queue.wait_on(waiting, waker);
            drop(queue);
            drop(replaced);
            return Poll::Pending;
        };
        drop(queue);
        let effects = admitted?;
        *ticket = None;
        self.follow(effects);
        Poll::Ready(Ok(()))
    }

    /// A spawner gives up its place in the line.
    pub(crate) fn leave(self: &Arc<Self>, ticket: Ticket) {
        let now = Moment::now();
        let (effects, waker) = self.queue().leave(ticket, now);
        drop(waker);
        self.follow(effects);
    }

    #[inline(always)]
    fn call(self: &Arc<Self>, call: Call) {
        if !matches!(call, Call::Nobody | Call::Idle) {
            self.call_runners(call);
        }
    }

    fn call_runners(self: &Arc<Self>, call: Call) {
        match call {
            Call::Nobody | Call::Idle => {}
            Call::One => self.call_runner(Reach::Unknown),
            Call::OneInReach => self.call_runner(Reach::InReach),
            Call::Pair => {
                self.call_runner(Reach::InReach);
                // Not one that waits: it may be about to return on another thread, which has it then,
                // and leave the first where only this thread gets at it.
                self.new_runner(Reach::Unknown);
            }
        }
    }

    fn call_runner(self: &Arc<Self>, reach: Reach) {
        if !self.spare.0.call(reach) {
            self.new_runner(reach);
        }
    }

    fn new_runner(self: &Arc<Self>, reach: Reach) {
        let runtime = self.runtime.get().expect("jobs are accepted once there is a runtime");
        let is_on_one_thread = runtime.runtime_flavor() == RuntimeFlavor::CurrentThread;
        // The task's handle is not needed: a runner accounts for its jobs however it ends.
        drop(runtime.spawn(Runner::new(self.clone(), reach, is_on_one_thread)));
    }

    /// Waits for [`notify_idle`](Self::notify_idle), until the queue is `done`.
    pub(crate) async fn wait_until(&self, done: impl Fn(&Queue<Entry, Work>) -> bool) {
        // Before the queue is asked: whoever leaves it idle after that sees it.
        let _waits = Counted::new(&self.wait_for_idle);
        loop {
            let mut idle = pin!(self.idle.notified());
            idle.as_mut().enable();
            if done(&self.queue()) {
                return;
            }
            idle.await;
        }
    }

    /// After the step, and not under the lock.
    pub(crate) fn notify_idle(&self) {
        if self.wait_for_idle.load(Ordering::SeqCst) > 0 {
            notify(&self.idle);
        }
    }

    /// Makes a job's record, and its span. (To take the options as a whole would be to copy them.)
    pub(crate) fn open(
        &self,
        location: &'static Location<'static>,
        request: Option<Arc<Request>>,
        extras: Option<Box<Extras>>,
        kind: Kind,
    ) -> Unpacked {
        let record = Record::new(location, request, extras, kind);
        let span = JobSpan::new(self.span, &record);
        (record, span)
    }

    /// Reports the failure of a job whose handle has gone.
    #[inline(always)]
    pub(crate) fn settle(&self, entry: &Entry) {
        if let Some(error) = entry.unheard() {
            self.report(entry, error);
        }
    }
}

fn threads(runtime: &Handle) -> u32 {
    u32::try_from(runtime.metrics().num_workers()).unwrap_or(u32::MAX)
}

/// Counts one as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// What handles ask for.
impl Shared {
    /// Tells the job to end; drops it if it has not started, or cannot be told.
    pub(crate) fn close_job(self: &Arc<Self>, job: &Entry) {
        if !self.take_out(job) {
            self.tell_to_end(job);
        }
    }

    /// The same, of one that has started.
    pub(crate) fn tell_to_end(&self, job: &Entry) {
        match job.kind() {
            Kind::Cooperative => job.cancel(),
            _ => job.stop(false),
        }
    }

    /// Ends the job as soon as possible, started or not.
    pub(crate) fn abort_job(self: &Arc<Self>, job: &Entry) {
        if !self.take_out(job) {
            job.stop(false);
        }
    }

    pub(crate) fn state(&self, job: &Record) -> JobState {
        self.queue().state(job.slot(), job.id())
    }

    pub(crate) fn report(&self, job: &Record, error: JobError) {
        let info = || job.info(self.state(job), Moment::now());
        let failure = JobFailure { job: info(), error };
        // The hook is not ours, nor is the error: showing it, or dropping it, may panic.
        let told = match &self.on_failure {
            Some(hook) => contain(|| hook(failure)),
            None => {
                let told = contain(|| log_failure(&failure));
                discard(failure);
                told
            }
        };
        if let Err(payload) = told {
            let error = JobError::panicked(payload);
            let job = info();
            ignore_panic(|| {
                let error = OneLine(&error);
                tracing::error!(%job, %error, "on_failure, or the error it was called with, panicked");
            });
            if let Ok(payload) = error.into_panic() {
                forget_panic(payload);
            }
        }
    }
}

impl Shared {
    /// The response of a deferred job is over.
    pub(crate) fn begin(self: &Arc<Self>, entry: &Entry) {
        let now = Moment::now();
        let effects = self.queue().begin(entry.slot(), entry.id(), now);
        self.follow(effects);
    }

    /// The response of a deferred job is over, and is not what the job waited for.
    pub(crate) fn skip(self: &Arc<Self>, entry: &Entry) {
        self.remove(entry, Outcome::Skipped, JobError::skipped());
    }

    /// Ends a job that has not started. Whether it had not.
    pub(crate) fn take_out(self: &Arc<Self>, entry: &Entry) -> bool {
        self.remove(entry, Outcome::Cancelled, JobError::cancelled())
    }

    fn remove(self: &Arc<Self>, entry: &Entry, outcome: Outcome, error: JobError) -> bool {
        let now = Moment::now();
        let removed = self.queue().remove(entry.slot(), entry.id(), outcome, now);
        let Some((work, effects)) = removed else { return false };
        self.follow(effects);
        self.drop_unstarted(entry, work, error);
        true
    }

    /// The end of a job that was taken out of the queue. Its `Drop` may panic; then that is how
    /// it failed.
    fn drop_unstarted(&self, entry: &Entry, mut work: Work, error: JobError) {
        let (_, span) = work.as_mut().unpack();
        in_span(span.as_ref(), || {
            let dropped = contain(|| drop(work));
            discard(entry.fail(dropped.map_or_else(JobError::panicked, |()| error)));
            self.settle(entry);
        });
        drop(span);
        entry.publish();
    }
}

fn log_failure(failure: &JobFailure) {
    let job = &failure.job;
    tracing::error!(
        target: "tower_jobs",
        {
            job.id = %job.id,
            job.name = %OneLine(&job.name),
            job.request = job.request.as_deref(),
            job.location = %job.location,
        },
        "{}",
        failure.chain()
    );
}

impl From<Refusal> for SpawnError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Self::Full,
            Refusal::Closed => Self::Closed,
            Refusal::Duplicate(id) => Self::Duplicate(id),
        }
    }
}

/// A job that a runner takes, but for its record.
struct Taken {
    work: Work,
    span: Option<JobSpan>,
    /// The job has to let others go first.
    goes_last: bool,
}

/// An active job and its place, or the call that a runner has not answered, or where it waits for
/// one. The only thing that ends an active job: when it does, by [`advance`](Self::advance), or when
/// its runtime does, by `Drop`.
struct Occupied {
    shared: Arc<Shared>,
    entry: Option<Entry>,
    called: Option<Reach>,
    seat: Option<SeatKey>,
    /// That seat, while it waits in it.
    waits: Option<SeatKey>,
    /// How the job ended although its runtime goes away, if it did.
    ended: Option<Outcome>,
}

impl Occupied {
    /// Waits to be called, if it is to. The last that a runner does before it returns.
    fn wait(&mut self, cx: &Context<'_>) -> Poll<()> {
        let spare = &self.shared.spare.0;
        self.seat = self.seat.or_else(|| {
            let enough = self.shared.runtime.get().map_or(0, threads);
            spare.seat(cx.waker(), enough)
        });
        self.waits = self.seat.filter(|seat| spare.wait(*seat));
        if self.waits.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// What a runner that waits is called for, or `None` if it is not to wait any longer. (A waker
    /// of a job that it had may still wake it for nothing.)
    fn poll_call(&mut self, seat: SeatKey) -> Poll<Option<Reach>> {
        let spare = &self.shared.spare.0;
        self.called = spare.called(seat);
        if self.called.is_none() && !spare.is_over(seat) {
            return Poll::Pending;
        }
        self.waits = None;
        Poll::Ready(self.called)
    }

    /// Answers the call, and has the job that is due, if there is one.
    fn come(&mut self, reach: Reach) -> Option<Taken> {
        let (work, call) = self.shared.queue.come(reach);
        self.called = None;
        let taken = work.map(|work| self.occupy(work));
        self.shared.call(call);
        taken
    }

    fn occupy(&mut self, mut work: Work) -> Taken {
        let (entry, span) = work.as_mut().unpack();
        let goes_last = entry.kind() == Kind::Polite;
        self.entry = Some(entry);
        Taken { work, span, goes_last }
    }

    /// Ends the job and, with `may_go_on`, takes the next one, in one step.
    fn advance(&mut self, outcome: Outcome, now: Moment, may_go_on: bool) -> Option<Taken> {
        let entry = self.entry.take()?;
        let (slot, id) = (entry.slot(), entry.id());
        let step = self.shared.queue.advance(slot, id, outcome, now, may_go_on);
        let Advance { call, more, ended, next } = step;
        // All that others rely on comes before wakers, which are not ours.
        let taken = match next {
            Next::Take(work) => Some(self.occupy(work)),
            Next::Yield => {
                self.called = Some(Reach::InReach);
                None
            }
            Next::End => None,
        };
        self.shared.call(call);
        drop(ended);
        entry.publish();
        self.shared.follow_up(call == Call::Idle, more);
        taken
    }
}

impl Drop for Occupied {
    /// Only a runtime that goes away drops a runner with a job in it, or one that waits, or before it
    /// has come, and nothing can run there any more: the scheduler closes.
    fn drop(&mut self) {
        if let Some(seat) = self.waits {
            self.shared.spare.0.leave(seat);
        }
        if self.entry.is_none() && self.waits.is_none() && self.called.is_none() {
            return;
        }
        self.shared.close_now();
        if let Some(entry) = self.entry.take() {
            self.shared.lose(&entry, self.ended);
        }
        // No runner comes any more, not for those that are ready either.
        loop {
            let ready = self.shared.queue().take();
            let Some(mut work) = ready else { break };
            let (entry, span) = work.as_mut().unpack();
            let ended = in_span(span.as_ref(), || self.shared.let_go(&entry, work));
            drop(span);
            self.shared.lose(&entry, ended);
        }
    }
}

impl Shared {
    /// Drops an active job whose runner goes. How that has ended it, if it panicked.
    fn let_go(&self, entry: &Entry, work: Work) -> Option<Outcome> {
        let ended = contain(|| drop(work)).err().map(|payload| panicked(entry, payload));
        self.settle(entry);
        ended
    }

    /// The end of an active job whose runner has gone, and how it ended by itself, if it did.
    fn lose(&self, entry: &Entry, ended: Option<Outcome>) {
        let outcome = ended.unwrap_or_else(|| {
            discard(entry.fail(JobError::cancelled()));
            match entry.kind() {
                // Else no thread will.
                Kind::Blocking if !entry.take_up() => Outcome::Abandoned,
                _ => Outcome::Cancelled,
            }
        });
        self.settle(entry);
        let now = Moment::now();
        let (effects, _ended, _work) = self.queue().finish(entry.slot(), entry.id(), outcome, now);
        entry.publish();
        if effects.call == Call::Idle {
            self.notify_idle();
        }
    }
}

/// The task that polls a job, and, when that ends, the next one in the queue, inside itself.
struct Runner {
    work: Option<Work>,
    span: Option<JobSpan>,
    /// The job has left its waker with [`Record::park`].
    parked: bool,
    /// The job has to let others go first.
    goes_last: bool,
    jobs_are_short: bool,
    is_on_one_thread: bool,
    /// As the clock was read last.
    read: Moment,
    /// When tokio last looked for I/O because of this runner.
    looked: Moment,
    place: Occupied,
}

impl Runner {
    fn new(shared: Arc<Shared>, reach: Reach, is_on_one_thread: bool) -> Self {
        let (called, entry) = (Some(reach), None);
        let place = Occupied { shared, entry, called, seat: None, waits: None, ended: None };
        Self {
            work: None,
            span: None,
            parked: false,
            goes_last: false,
            jobs_are_short: false,
            is_on_one_thread,
            read: Moment::NEVER,
            looked: Moment::NEVER,
            place,
        }
    }

    #[inline(always)]
    fn take_on(&mut self, Taken { work, span, goes_last }: Taken) {
        self.work = Some(work);
        if span.is_some() {
            self.span = span;
        }
        (self.parked, self.goes_last) = (false, goes_last);
    }

    /// Lets other tasks have their turn before the next.
    fn give_way(&mut self, turn: &Turn, cx: &mut Context<'_>) {
        let now = turn.now;
        if self.is_on_one_thread && now > self.looked.plus(WITHOUT_IO) {
            self.looked = now;
            // Wakes this task once I/O has been looked for: when all others have had their turn, or
            // after 61 polls. (Another thread could not take up a task that waits like this.)
            if pin!(task::yield_now()).poll(cx).is_pending() {
                return;
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Polls the job once. When it ends, its future has been dropped, its result is stored and a
    /// failure that nobody awaits is reported, all while it still holds its place.
    #[inline(always)]
    fn poll_job(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Occupied { shared, entry: Some(entry), .. } = &self.place else {
            unreachable!("a runner without a job is finished");
        };
        let entered = Entered::new(self.span.as_ref());
        let work = &mut self.work;
        let mut outcome = if !entry.must_stop() || entry.kind() == Kind::Blocking {
            let polled = contain(|| {
                let job = work.as_mut().expect("a job that has not ended");
                let outcome = ready!(job.as_mut().poll(entry, cx));
                // Here, since to contain it by itself takes as long again.
                drop(work.take());
                Poll::Ready(outcome)
            });
            match polled {
                Ok(Poll::Ready(outcome)) => outcome,
                Ok(Poll::Pending) => {
                    if !self.parked && entry.park(cx.waker().clone()) {
                        cx.waker().wake_by_ref();
                    }
                    self.parked = true;
                    return Poll::Pending;
                }
                Err(payload) => panicked(entry, payload),
            }
        } else if entry.is_overdue() {
            discard(entry.fail(JobError::close_timeout(shared.config.close_timeout)));
            Outcome::TimedOut
        } else {
            discard(entry.fail(JobError::cancelled()));
            Outcome::Cancelled
        };
        if let Some(work) = work.take() {
            if outcome == Outcome::Panicked {
                // What went wrong first is told.
                discard(work);
            } else if let Err(payload) = contain(|| drop(work)) {
                outcome = panicked(entry, payload);
            }
        }
        shared.settle(entry);
        drop(entered);
        if self.span.is_some() {
            self.span = None;
        }
        Poll::Ready(outcome)
    }
}

/// The jobs that end in one poll of a runner.
struct Turn {
    pace: &'static Pace,
    jobs: usize,
    /// As the clock was read last.
    now: Moment,
    end: Moment,
    /// For how many more jobs the clock is not read.
    unread: usize,
}

impl Turn {
    /// `read` is when the clock was last read, and is that again when this is over.
    fn new(is_on_one_thread: bool, jobs_are_short: bool, read: Moment) -> Self {
        let pace = if is_on_one_thread { &ONE_THREAD } else { &SEVERAL_THREADS };
        // Of the first job, too, one must know whether it was long: who awaits it may be kept waiting
        // by the next. If jobs have been short it is enough to know that since the last turn.
        let (now, end) = if jobs_are_short {
            (read, Moment::NEVER)
        } else {
            let now = Moment::now();
            (now, now.plus(pace.time))
        };
        Self { pace, jobs: 0, now, end, unread: 0 }
    }

    /// The time, and whether there is some left. `are_short` is what jobs were like, and are.
    fn job_ended(&mut self, are_short: &mut bool) -> (Moment, bool) {
        self.jobs += 1;
        if self.unread > 0 {
            self.unread -= 1;
        } else {
            let last = mem::replace(&mut self.now, Moment::now());
            *are_short = self.now < last.plus(SHORT);
            if self.end == Moment::NEVER {
                self.end = self.now.plus(self.pace.time);
            }
            self.unread = if *are_short { UNREAD } else { 0 };
        }
        let is_over = self.jobs >= self.pace.jobs || self.now > self.end;
        (self.now, !is_over && coop::has_budget_remaining())
    }
}

impl Future for Runner {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(seat) = self.place.waits {
            if ready!(self.place.poll_call(seat)).is_none() {
                return Poll::Ready(());
            }
        }
        if let Some(reach) = self.place.called {
            let Some(taken) = self.place.come(reach) else { return self.place.wait(cx) };
            self.take_on(taken);
        }
        let mut turn = Turn::new(self.is_on_one_thread, self.jobs_are_short, self.read);
        loop {
            // Over HTTP/2 a response's body is dropped in another task than the one that writes it: a
            // job that blocked this thread at once would hold up the very response it waited for.
            if mem::take(&mut self.goes_last) {
                self.give_way(&turn, cx);
                return Poll::Pending;
            }
            let outcome = ready!(self.poll_job(cx));
            let (now, may_go_on) = turn.job_ended(&mut self.jobs_are_short);
            self.read = now;
            match self.place.advance(outcome, now, may_go_on) {
                Some(taken) => self.take_on(taken),
                None if self.place.called.is_some() => {
                    self.give_way(&turn, cx);
                    return Poll::Pending;
                }
                None => return self.place.wait(cx),
            }
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let is_blocking = |entry: &Entry| entry.kind() == Kind::Blocking;
        if self.work.is_some() && self.place.entry.as_ref().is_some_and(is_blocking) {
            // Its thread may be through with it, and nobody has looked since.
            let seen = self.poll_job(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(outcome) = seen {
                self.place.ended = Some(outcome);
            }
        }
        if let (Some(work), Some(entry)) = (self.work.take(), &self.place.entry) {
            let shared = &self.place.shared;
            self.place.ended = in_span(self.span.as_ref(), || shared.let_go(entry, work));
        }
    }
}

fn panicked(entry: &Entry, payload: Panic) -> Outcome {
    discard(entry.fail(JobError::panicked(payload)));
    Outcome::Panicked
}
