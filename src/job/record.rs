//! What is known of one job, and its result: shared by its handle, the queue and its runner.
//!
//! There may be a million, so it is small: 72 bytes with the counts of its `Arc`. What few jobs
//! need (names, keys), or only at times (a waker, a result to be fetched), is allocated when there
//! is some.

use std::{
    any::{Any, TypeId},
    borrow::Cow,
    cell::Cell,
    collections::HashMap,
    error::Error as _,
    fmt,
    panic::Location,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
    time::Duration,
};

use once_cell::race::OnceBox;
use tokio::sync::Notify;

use crate::{
    http::request::Request,
    job::error::{BoxError, JobError},
    rules::queue::{Entry, Unique},
    rules::state::{JobId, JobState, Outcome},
    rules::table::{Key, NONE},
    util::clock::Moment,
    util::one_line::OneLine,
    util::panics::{notify, wake},
    util::sync::{
        Mutex,
        atomic::{AtomicI64, AtomicU8, AtomicU32, Ordering},
        lock,
    },
};

/// What is known of a job at one moment.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct JobInfo {
    /// The job's id.
    pub id: JobId,
    /// The name it was given; by default, where it was spawned.
    pub name: Cow<'static, str>,
    /// Where it is in its life.
    pub state: JobState,
    /// The request that spawned it, as `METHOD /path`; none if it was spawned on the scheduler.
    pub request: Option<Arc<str>>,
    /// The key it shares with others: see [`JobBuilder::concurrency_key`](crate::JobBuilder::key).
    pub key: Option<Arc<str>>,
    /// Where in the source it was spawned, as `file:line:column`.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_display"))]
    pub location: &'static Location<'static>,
    /// How long ago it was accepted.
    pub age: Duration,
}

#[cfg(feature = "serde")]
fn serialize_display<S: serde::Serializer>(
    value: &impl fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl fmt::Display for JobInfo {
    /// `job 7 "welcome e-mail" of POST /signup (src/main.rs:12:5)`. In one line, as what would break
    /// it is escaped; so it is with all that is shown of jobs in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.id)?;
        if self.name != name_of(self.location) {
            write!(f, " {:?}", self.name)?;
        }
        if let Some(request) = &self.request {
            write!(f, " of {}", OneLine(request))?;
        }
        write!(f, " ({})", self.location)
    }
}

/// A job that failed, and nobody awaited it: what [`on_failure`] is called with.
///
/// [`on_failure`]: crate::SchedulerBuilder::on_failure
#[derive(Debug)]
#[non_exhaustive]
pub struct JobFailure {
    /// The job.
    pub job: JobInfo,
    /// How it failed.
    pub error: JobError,
}

impl JobFailure {
    /// The error and what caused it, in one line.
    pub(crate) fn chain(&self) -> String {
        let mut chain = self.error.to_string();
        let mut cause = self.error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many errors repeat their cause at the end of their own text.
            if !text.is_empty() && !chain.ends_with(&format!(": {text}")) {
                chain = format!("{chain}: {text}");
            }
            cause = error.source();
        }
        OneLine(chain).to_string()
    }
}

impl fmt::Display for JobFailure {
    /// The job, its error and what caused that, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.job, self.chain())
    }
}

/// The name of jobs that were given none: where they are spawned. Kept for good, once for each such
/// place in the source.
fn name_of(location: &'static Location<'static>) -> &'static str {
    static NAMES: OnceLock<Mutex<HashMap<&'static Location<'static>, &'static str>>> =
        OnceLock::new();
    type Last = Option<(&'static Location<'static>, &'static str)>;
    // Most listings have many jobs of one place in a row.
    thread_local!(static LAST: Cell<Last> = const { Cell::new(None) });
    match LAST.get() {
        Some((last, name)) if std::ptr::eq(last, location) => return name,
        _ => {}
    }
    let mut names = lock(NAMES.get_or_init(Mutex::default));
    let name = *names.entry(location).or_insert_with(|| location.to_string().leak());
    drop(names);
    LAST.set(Some((location, name)));
    name
}

/// What a job is given when it is made.
#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) request: Option<Arc<Request>>,
    pub(crate) timeout: Option<Duration>,
    /// Not one of its request's own jobs, but what serves the request.
    pub(crate) serves: bool,
    /// Where it is spawned, unless that is the caller.
    pub(crate) location: Option<&'static Location<'static>>,
    pub(crate) extras: Option<Box<Extras>>,
}

/// What most jobs do not have.
#[derive(Clone, Default)]
pub(crate) struct Extras {
    name: Option<Cow<'static, str>>,
    key: Option<Arc<str>>,
    unique: Option<Unique>,
}

impl Options {
    pub(crate) fn name(&mut self, name: Cow<'static, str>) {
        self.extras().name = Some(name);
    }

    pub(crate) fn key(&mut self, key: Arc<str>) {
        self.extras().key = Some(key);
    }

    pub(crate) fn unique(&mut self, unique: Unique) {
        self.extras().unique = Some(unique);
    }

    fn extras(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.extras.as_ref().and_then(|extras| extras.name.as_ref());
        f.debug_struct("JobBuilder")
            .field("name", &name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// How a job runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ends by having its future dropped.
    Plain,
    /// Like plain, after a response that another task writes: lets the tasks that are ready go first.
    Polite,
    /// Is told to end, and has its future dropped when it does not listen.
    Cooperative,
    /// Cannot be ended, once it has been [taken up](Record::take_up) by a thread.
    Blocking,
    /// Like plain, outside the limit.
    Shielded,
    /// Shielded, and not one of its request's own jobs: it serves the request.
    Serving,
}

/// What a job has when it waits, is awaited, or fails.
#[derive(Default)]
struct Rest {
    /// Tells a cooperative job to end.
    signal: Notify,
    /// Wakes whoever polls the job, once that has returned `Pending`.
    runner: Mutex<Option<Waker>>,
    output: Mutex<Output>,
}

#[derive(Default)]
struct Output {
    /// A value, or a failure. That a job was cancelled is a mark.
    result: Option<Result<Value, JobError>>,
    /// A failure has left to be reported, or is about to; whatever goes wrong after it is not.
    told: bool,
    /// So has, to who closed the job, that it did not end in time.
    told_late: bool,
    /// The result is a failure, though it passes through as a value.
    is_failure: bool,
    waiter: Option<Waker>,
}

/// What a job returned; its handle knows the type.
pub(crate) type Value = Box<dyn Any + Send>;

impl Output {
    fn take_failure(&mut self) -> Option<JobError> {
        match self.result.take() {
            Some(Err(error)) => Some(error),
            value => {
                self.result = value;
                None
            }
        }
    }

    /// Whether there is nothing in this failure that has not been told.
    fn has_told(&self, failure: &Result<Value, JobError>) -> bool {
        let is_late = failure.as_ref().is_err_and(JobError::is_close_timeout);
        self.told || (self.told_late && is_late)
    }
}

/// What a job has been told to do.
mod told {
    pub(super) const CANCEL: u8 = 1;
    pub(super) const ABORT: u8 = 2;
    /// Aborted because it did not end in time: a failure.
    pub(super) const OVERDUE: u8 = 4;
    /// A thread runs it, or never will.
    pub(super) const TAKEN_UP: u8 = 8;
}

/// What has become of a job's result. Each is set once and never taken back; whoever sets one is
/// told which others were set before, and so which of the two does what is left to do. (The last is
/// the handle's alone: after it nothing is marked but that the handle has gone.)
mod mark {
    /// The handle has gone.
    pub(super) const DETACHED: u8 = 1;
    /// There is, or was, a result to be taken.
    pub(super) const STORED: u8 = 2;
    /// Somebody has left a waker.
    pub(super) const AWAITED: u8 = 4;
    /// The result is final, and the handle may have it.
    pub(super) const PUBLISHED: u8 = 8;
    /// The job ended without a result, and nobody is to blame.
    pub(super) const CANCELLED: u8 = 16;
    /// Cancelled, since its response was not what it waited for.
    pub(super) const SKIPPED: u8 = 32;
    /// Somebody has had the `()` of a job that returned that, and so has left no mark.
    pub(super) const UNIT_TAKEN: u8 = 64;
}

/// Everything about a job but its future.
pub(crate) struct Record {
    id: JobId,
    location: &'static Location<'static>,
    request: Option<Arc<Request>>,
    extras: Option<Box<Extras>>,
    /// When it was accepted.
    spawned: AtomicI64,
    /// Where the queue keeps the job: for who holds its lock, or has run it; `NONE` before.
    slot: AtomicU32,
    kind: Kind,
    told: AtomicU8,
    marks: AtomicU8,
    rest: OnceBox<Rest>,
}

impl Record {
    #[inline]
    pub(crate) fn new(
        location: &'static Location<'static>,
        request: Option<Arc<Request>>,
        extras: Option<Box<Extras>>,
        kind: Kind,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: JobId::next(),
            location,
            request,
            extras,
            spawned: AtomicI64::new(Moment::NEVER.as_nanos()),
            slot: AtomicU32::new(NONE),
            kind,
            told: AtomicU8::new(0),
            marks: AtomicU8::new(0),
            rest: OnceBox::new(),
        })
    }

    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn slot(&self) -> Key {
        self.slot.load(Ordering::Relaxed)
    }

    pub(crate) fn belongs_to(&self, request: &Arc<Request>) -> bool {
        self.own_request().is_some_and(|own| Arc::ptr_eq(own, request))
    }

    pub(crate) fn request_label(&self) -> Option<&Arc<str>> {
        self.request.as_ref().map(|request| request.label())
    }

    fn own_request(&self) -> Option<&Arc<Request>> {
        self.request.as_ref().filter(|_| self.kind != Kind::Serving)
    }

    pub(crate) fn name(&self) -> Cow<'static, str> {
        let given = self.extras.as_ref().and_then(|extras| extras.name.clone());
        given.unwrap_or_else(|| Cow::Borrowed(name_of(self.location)))
    }

    fn key(&self) -> Option<&Arc<str>> {
        self.extras.as_ref()?.key.as_ref()
    }

    /// Whether the job has ended, and its handle may know.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_marked(mark::PUBLISHED)
    }

    /// The queue knows the state.
    pub(crate) fn info(&self, state: JobState, now: Moment) -> JobInfo {
        let spawned = Moment::from_nanos(self.spawned.load(Ordering::Relaxed));
        JobInfo {
            id: self.id,
            name: self.name(),
            state,
            request: self.request_label().cloned(),
            key: self.key().cloned(),
            location: self.location,
            age: if spawned == Moment::NEVER { Duration::ZERO } else { now.since(spawned) },
        }
    }

    fn rest(&self) -> &Rest {
        self.rest.get_or_init(Box::default)
    }
}

/// Being told to end.
impl Record {
    fn was_told(&self, what: u8) -> bool {
        self.told.load(Ordering::Acquire) & what != 0
    }

    /// Tells the job to end. Only a cooperative one can hear it.
    pub(crate) fn cancel(&self) {
        self.told.fetch_or(told::CANCEL, Ordering::AcqRel);
        if self.kind == Kind::Cooperative {
            notify(&self.rest().signal);
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.was_told(told::CANCEL)
    }

    /// Resolves when a cooperative job is told to end.
    pub(crate) async fn cancelled(&self) {
        if self.kind != Kind::Cooperative {
            return std::future::pending().await;
        }
        let mut notified = std::pin::pin!(self.rest().signal.notified());
        notified.as_mut().enable();
        if !self.is_cancelled() {
            notified.await;
        }
    }

    /// Has the runner drop the job's future.
    pub(crate) fn stop(&self, overdue: bool) {
        let what = if overdue { told::ABORT | told::OVERDUE } else { told::ABORT };
        self.told.fetch_or(what, Ordering::AcqRel);
        self.cancel();
        let runner = lock(&self.rest().runner).take();
        if let Some(runner) = runner {
            wake(runner);
        }
    }

    /// Whether the caller is the first to take up this blocking job, to run it or to give it up.
    pub(crate) fn take_up(&self) -> bool {
        let before = self.told.fetch_or(told::TAKEN_UP, Ordering::AcqRel);
        before & told::TAKEN_UP == 0
    }

    pub(crate) fn must_stop(&self) -> bool {
        self.was_told(told::ABORT)
    }

    pub(crate) fn is_overdue(&self) -> bool {
        self.was_told(told::OVERDUE)
    }

    /// Leaves the waker for [`stop`](Self::stop), which either finds it or is seen here.
    pub(crate) fn park(&self, runner: Waker) -> bool {
        let previous = lock(&self.rest().runner).replace(runner);
        drop(previous);
        self.must_stop()
    }
}

/// The result.
impl Record {
    fn mark(&self, what: u8) -> u8 {
        self.marks.fetch_or(what, Ordering::AcqRel)
    }

    #[inline]
    fn is_marked(&self, what: u8) -> bool {
        self.marks.load(Ordering::Acquire) & what != 0
    }

    /// Keeps what the job returned, if anybody may ask for it. What is not kept comes back, for the
    /// caller to drop.
    pub(crate) fn keep<T: Send + 'static>(&self, value: T) -> Option<T> {
        self.keep_as(value, false)
    }

    /// The same, of a value that may be a failure to whoever fetches it.
    pub(crate) fn keep_as<T: Send + 'static>(&self, value: T, is_failure: bool) -> Option<T> {
        if self.is_marked(mark::DETACHED | mark::PUBLISHED) {
            return Some(value);
        }
        if TypeId::of::<T>() == TypeId::of::<()>() {
            // That takes no room: who finds no mark of another end knows.
            return None;
        }
        let back = self.store(Ok(Box::new(value)), is_failure)?.ok()?;
        back.downcast().ok().map(|value| *value)
    }

    /// The job ends with `error`, whatever it has returned. What it has comes back.
    pub(crate) fn fail(&self, error: JobError) -> Option<Result<Value, JobError>> {
        if error.is_skipped() {
            self.mark(mark::CANCELLED | mark::SKIPPED);
        } else if !error.is_failure() {
            self.mark(mark::CANCELLED);
        } else {
            return self.store(Err(error), true);
        }
        None
    }

    /// What was there before, or cannot be kept, comes back.
    fn store(
        &self,
        result: Result<Value, JobError>,
        is_failure: bool,
    ) -> Option<Result<Value, JobError>> {
        let mut output = lock(&self.rest().output);
        let unless_published =
            |marks: u8| (marks & mark::PUBLISHED == 0).then_some(marks | mark::STORED);
        match self.marks.fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_published) {
            Err(_) => Some(result),
            Ok(before) if before & mark::DETACHED != 0 && result.is_ok() => Some(result),
            Ok(_) if is_failure && output.has_told(&result) => Some(result),
            Ok(_) => {
                output.is_failure = is_failure;
                output.result.replace(result)
            }
        }
    }

    /// The handle goes. Whether it leaves nothing behind, as most do: else
    /// [`leave`](Self::leave) has it.
    #[inline]
    pub(crate) fn detach(&self) -> bool {
        let marks = self.marks.load(Ordering::Acquire);
        let left = mark::STORED | mark::AWAITED;
        // Where there was never a result, nobody asks any more whether there is a handle.
        let is_over = marks & (mark::PUBLISHED | left) == mark::PUBLISHED;
        is_over || self.mark(mark::DETACHED) & left == 0
    }

    /// What the handle takes along: whoever has the result must report it.
    pub(crate) fn leave(&self) -> (Option<Result<Value, JobError>>, Option<Waker>) {
        let mut output = lock(&self.rest().output);
        let result = output.result.take();
        output.told |= result.is_some() && output.is_failure;
        (result, output.waiter.take())
    }

    /// The job's failure, if no handle is left to give it to.
    #[inline]
    pub(crate) fn unheard(&self) -> Option<JobError> {
        let marks = self.marks.load(Ordering::Acquire);
        if marks & mark::DETACHED == 0 || marks & mark::STORED == 0 {
            return None;
        }
        self.take_unheard()
    }

    #[cold]
    fn take_unheard(&self) -> Option<JobError> {
        let mut output = lock(&self.rest().output);
        let failure = output.take_failure();
        output.told |= failure.is_some();
        failure
    }

    /// Lets the handle have the result, for good.
    #[inline(always)]
    pub(crate) fn publish(&self) {
        self.publish_marked(mark::PUBLISHED);
    }

    /// The job ends without having started, and the handle may know.
    pub(crate) fn publish_cancelled(&self) {
        self.publish_marked(mark::PUBLISHED | mark::CANCELLED);
    }

    #[inline(always)]
    fn publish_marked(&self, marks: u8) {
        let waiter = if self.is_marked(mark::STORED) {
            // Under the lock, so that nothing replaces what is final.
            let mut output = lock(&self.rest().output);
            self.mark(marks);
            output.waiter.take()
        } else if self.mark(marks) & mark::AWAITED != 0 {
            lock(&self.rest().output).waiter.take()
        } else {
            None
        };
        if let Some(waiter) = waiter {
            wake(waiter);
        }
        if let Some(request) = self.own_request() {
            request.notify_ended();
        }
    }

    #[inline]
    pub(crate) fn poll_published(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_marked(mark::PUBLISHED) {
            return Poll::Ready(());
        }
        self.await_published(cx)
    }

    fn await_published(&self, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let previous = lock(&self.rest().output).waiter.replace(waker);
        drop(previous);
        if self.mark(mark::AWAITED) & mark::PUBLISHED != 0 {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The published result; none if that is `()`. That a job was cancelled can be told any number
    /// of times.
    #[inline]
    pub(crate) fn take(&self) -> Result<Option<Value>, JobError> {
        let marks = self.marks.load(Ordering::Acquire);
        if marks & !(mark::DETACHED | mark::AWAITED) == mark::PUBLISHED {
            // Nobody else marks a job any more that has ended without a result.
            self.marks.store(marks | mark::UNIT_TAKEN, Ordering::Release);
            return Ok(None);
        }
        self.take_stored(marks)
    }

    fn take_stored(&self, marks: u8) -> Result<Option<Value>, JobError> {
        if marks & mark::STORED != 0 {
            let result = lock(&self.rest().output).result.take();
            return result.unwrap_or_else(|| Err(JobError::taken())).map(Some);
        }
        if marks & mark::SKIPPED != 0 {
            return Err(JobError::skipped());
        }
        if marks & mark::CANCELLED != 0 {
            return Err(JobError::cancelled());
        }
        Err(JobError::taken())
    }

    pub(crate) fn take_failure(&self) -> Option<JobError> {
        lock(&self.rest().output).take_failure()
    }

    /// What who closed the job is told: it did not end in time, unless it has failed by now.
    pub(crate) fn take_failure_or_late(&self, late: JobError) -> JobError {
        let mut output = lock(&self.rest().output);
        if let Some(failure) = output.take_failure() {
            output.told = true;
            return failure;
        }
        output.told_late = true;
        late
    }
}

/// How a job ended, to be stored.
impl Record {
    /// The job returned.
    pub(crate) fn end_with<T: Send + 'static>(&self, result: Result<T, BoxError>) -> Outcome {
        match result {
            Ok(value) => {
                drop(self.keep(value));
                Outcome::Completed
            }
            Err(error) => self.end(JobError::failed(error), Outcome::Failed),
        }
    }

    /// The job ended with no output.
    pub(crate) fn end(&self, error: JobError, outcome: Outcome) -> Outcome {
        drop(self.fail(error));
        outcome
    }
}

impl Entry for Arc<Record> {
    fn id(&self) -> JobId {
        self.id
    }

    fn has_place(&self) -> bool {
        !matches!(self.kind, Kind::Shielded | Kind::Serving)
    }

    fn key(&self) -> Option<&Arc<str>> {
        Record::key(self)
    }

    fn unique(&self) -> Option<&Unique> {
        self.extras.as_ref()?.unique.as_ref()
    }

    fn accepted(&self, now: Moment) {
        self.spawned.store(now.as_nanos(), Ordering::Relaxed);
        if let Some(request) = self.own_request() {
            request.job_joined();
        }
    }

    fn placed(&self, slot: Key) {
        self.slot.store(slot, Ordering::Relaxed);
    }

    fn ended(&self) {
        if let Some(request) = self.own_request() {
            request.job_left();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_small() {
        // With the two counts of its `Arc`. The allocators of most systems serve up to about 120
        // bytes several times as fast as more.
        assert_eq!(size_of::<Record>() + 16, 72);
        assert!(size_of::<Rest>() <= 120, "{}", size_of::<Rest>());
    }
}

/// All orders of events between a job's runner and its handle.
#[cfg(all(test, tower_jobs_loom))]
mod all_orders {
    use std::future::poll_fn;

    use loom::future::block_on;

    use super::*;
    use crate::util::sync::{beside, in_all_orders};

    fn record() -> Arc<Record> {
        Record::new(Location::caller(), None, None, Kind::Plain)
    }

    /// The end of the job, as its runner has it. Whether the runner has a failure to tell.
    fn end(record: &Record, result: Result<(), BoxError>) -> bool {
        record.end_with(result);
        let tells = record.unheard().is_some();
        record.publish();
        tells
    }

    /// What goes with the handle. Whether that has a failure to tell.
    fn drop_handle(record: &Record) -> bool {
        !record.detach() && matches!(record.leave(), (Some(Err(_)), _))
    }

    #[test]
    fn a_failure_is_told_once_when_the_handle_goes_meanwhile() {
        in_all_orders(|| {
            let record = record();
            let runner = beside(&record, |record| end(record, Err("no mail today".into())));
            let handle_tells = drop_handle(&record);
            assert_ne!(runner.join().expect("no panic"), handle_tells);
            assert!(record.unheard().is_none());
        });
    }

    #[test]
    fn a_failure_that_is_awaited_is_told_to_who_awaits_it() {
        in_all_orders(|| {
            let record = record();
            let runner = beside(&record, |record| end(record, Err("no mail today".into())));
            block_on(poll_fn(|cx| record.poll_published(cx)));
            let error = record.take().expect_err("it failed");
            assert_eq!(error.to_string(), JobError::failed("no mail today".into()).to_string());
            assert!(!drop_handle(&record) && !runner.join().expect("no panic"));
        });
    }

    #[test]
    fn who_awaits_a_job_that_returns_nothing_hears_of_its_end() {
        in_all_orders(|| {
            let record = record();
            let runner = beside(&record, |record| end(record, Ok(())));
            block_on(poll_fn(|cx| record.poll_published(cx)));
            assert!(matches!(record.take(), Ok(None)));
            assert!(!drop_handle(&record) && !runner.join().expect("no panic"));
        });
    }

    #[test]
    fn a_runner_that_parks_while_its_job_is_stopped_stops() {
        in_all_orders(|| {
            let record = record();
            let stop = beside(&record, |record| record.stop(false));
            block_on(poll_fn(|cx| {
                if record.must_stop() || record.park(cx.waker().clone()) {
                    return Poll::Ready(());
                }
                Poll::Pending
            }));
            stop.join().expect("no panic");
        });
    }
}
