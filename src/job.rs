use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    convert::Infallible,
    error::Error,
    ffi::OsString,
    fmt,
    future::Future,
    panic::Location,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    sync::Notify,
    task::coop,
    time::{self, Instant, Sleep},
};
use tracing::Span;

use crate::{
    clock,
    contain::{discard, wake},
    error::{BoxError, JobError},
    lock::lock,
    queue::{Entry, Unique},
    request::{Request, ResponseOutcome},
    state::{JobId, JobState, Outcome},
};

/// A job's future, with everything that is typed inside. It has stored its result when it is ready.
pub(crate) type JobFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What a job has to do, and the span to do it in. It leaves the job as it ends, so that the span
/// closes then, whoever still holds a handle.
pub(crate) struct Work {
    pub(crate) future: JobFuture,
    pub(crate) span: Span,
}

impl Work {
    /// Drops what will never run, where it belongs.
    pub(crate) fn discard(self) {
        let Self { future, span } = self;
        span.in_scope(|| discard(future));
    }
}

/// What a job may return, so that a failure is told from a value.
///
/// `Result<T, E>` fails with its `Err`, for every `E` that converts into a boxed error (so
/// `anyhow::Error` and `eyre::Report` do). Everything else is a plain value: the implementations
/// cover `()`, `!` and the usual types of the standard library; for one of your own write
///
/// ```
/// use tower_jobs::{BoxError, JobOutput};
///
/// struct Receipt(u64);
///
/// impl JobOutput for Receipt {
///     type Value = Self;
///     fn into_result(self) -> Result<Self, BoxError> {
///         Ok(self)
///     }
///     fn is_failure(&self) -> bool {
///         false
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a job cannot return `{Self}`",
    note = "a job returns `()`, a plain value, or a `Result` whose error converts into \
            `Box<dyn Error + Send + Sync>`",
    note = "implement `tower_jobs::JobOutput` for a type of your own, or end the job with `;`"
)]
pub trait JobOutput {
    /// What awaiting the job gives.
    type Value: Send + 'static;

    /// The value, or why there is none.
    ///
    /// # Errors
    ///
    /// The error that makes this job a failed one.
    fn into_result(self) -> Result<Self::Value, Box<dyn Error + Send + Sync>>;

    /// Whether [`into_result`](Self::into_result) would give an error.
    fn is_failure(&self) -> bool;
}

impl<T: Send + 'static, E: Into<BoxError>> JobOutput for Result<T, E> {
    type Value = T;

    fn into_result(self) -> Result<T, BoxError> {
        self.map_err(Into::into)
    }

    fn is_failure(&self) -> bool {
        self.is_err()
    }
}

macro_rules! plain_values {
    ($(<$($generic:ident),*> $type:ty;)*) => {$(
        impl<$($generic: Send + 'static),*> JobOutput for $type
        where
            $type: Send + 'static,
        {
            type Value = Self;

            #[allow(unreachable_code, reason = "there is no value of type `!`")]
            fn into_result(self) -> Result<Self, BoxError> {
                Ok(self)
            }

            fn is_failure(&self) -> bool {
                false
            }
        }
    )*};
}

plain_values! {
    <> (); <> bool; <> char; <> &'static str; <> String; <> PathBuf; <> OsString;
    <> u8; <> u16; <> u32; <> u64; <> u128; <> usize; <> f32;
    <> i8; <> i16; <> i32; <> i64; <> i128; <> isize; <> f64;
    <> Duration; <> Instant;
    <> Infallible; <> Returned<fn() -> !>;
    <T> Option<T>; <T> Vec<T>; <T> VecDeque<T>; <T> Box<[T]>;
    <T> BTreeSet<T>; <T, S> HashSet<T, S>; <K, V> BTreeMap<K, V>; <K, V, S> HashMap<K, V, S>;
    <A> (A,); <A, B> (A, B); <A, B, C> (A, B, C); <A, B, C, D> (A, B, C, D);
    <> ResponseOutcome; <> http::StatusCode; <> http::HeaderMap; <B> http::Request<B>; <B> http::Response<B>;
}

impl<T: ?Sized> JobOutput for Arc<T>
where
    Arc<T>: Send + 'static,
{
    type Value = Self;

    fn into_result(self) -> Result<Self, BoxError> {
        Ok(self)
    }

    fn is_failure(&self) -> bool {
        false
    }
}

impl<T: Send + 'static, const N: usize> JobOutput for [T; N] {
    type Value = Self;

    fn into_result(self) -> Result<Self, BoxError> {
        Ok(self)
    }

    fn is_failure(&self) -> bool {
        false
    }
}

/// Names the type `!` in stable Rust, for jobs that loop until they are cancelled. (A trait of our
/// own would do here, but to other crates its impls are not final: theirs of `JobOutput` would
/// conflict with that for `!`. Those of `FnOnce` are.)
#[allow(type_alias_bounds, reason = "what the bound is for is the name `Output`")]
type Returned<F: FnOnce()> = F::Output;

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
    /// The key it shares with others: see [`JobBuilder::key`](crate::JobBuilder::key).
    pub key: Option<Arc<str>>,
    /// Where in the source it was spawned, as `file:line:column`.
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize_display"))]
    pub location: &'static Location<'static>,
    /// How long ago it was spawned.
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
    /// `job 7 "welcome e-mail" of POST /signup (src/main.rs:12:5)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.id)?;
        if self.name != self.location.to_string() {
            write!(f, " {:?}", self.name)?;
        }
        if let Some(request) = &self.request {
            write!(f, " of {request}")?;
        }
        write!(f, " ({})", self.location)
    }
}

/// A job that failed, and nobody awaited it: what [`on_failure`] is called with.
///
/// [`on_failure`]: crate::SchedulerBuilder::on_failure
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The job.
    pub job: JobInfo,
    /// How it failed.
    pub error: JobError,
}

impl Failure {
    /// The error and what caused it, in one line.
    pub(crate) fn chain(&self) -> String {
        let mut chain = self.error.to_string();
        let mut cause = self.error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many errors repeat their cause in their own text.
            if !chain.ends_with(&text) {
                chain = format!("{chain}: {text}");
            }
            cause = error.source();
        }
        chain
    }
}

impl fmt::Display for Failure {
    /// The job, its error and what caused that, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.job, self.chain())
    }
}

/// What a job is given when it is made.
#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) request: Option<Arc<Request>>,
    pub(crate) timeout: Option<Duration>,
    /// Not one of its request's own jobs, but what serves the request.
    pub(crate) serves: bool,
    pub(crate) keys: Keys,
    /// Where it is spawned, unless that is the caller.
    pub(crate) location: Option<&'static Location<'static>>,
}

/// Which other jobs a job must not run beside.
#[derive(Clone, Default)]
pub(crate) struct Keys {
    pub(crate) key: Option<Arc<str>>,
    pub(crate) unique: Option<Unique>,
}

/// How a job can be made to end.
pub(crate) enum Kind {
    /// By dropping its future.
    Plain,
    /// By telling it, and dropping its future when it does not listen.
    Cooperative(Box<Notify>),
    /// Not at all, once it has been [taken up](Header::take_up) by a thread.
    Blocking(AtomicBool),
}

const RUN_ON: u8 = 0;
const ABORT: u8 = 1;
/// Aborted because it did not end in time: a failure.
const OVERDUE: u8 = 2;

/// Everything about a job that has no type parameter.
pub(crate) struct Header {
    id: JobId,
    name: Option<Cow<'static, str>>,
    request: Option<Arc<Request>>,
    serves: bool,
    // Boxed, since most jobs have none.
    keys: Option<Box<Keys>>,
    location: &'static Location<'static>,
    spawned: Instant,
    pub(crate) kind: Kind,
    state: AtomicU8,
    /// Where the queue keeps the job; `usize::MAX` before it is accepted.
    slot: AtomicUsize,
    stop: AtomicU8,
    cancelled: AtomicBool,
    /// Wakes whoever polls the job, once that has returned `Pending`.
    runner: Mutex<Option<Waker>>,
}

impl Header {
    pub(crate) fn new(options: Options, kind: Kind, caller: &'static Location<'static>) -> Self {
        let Options { name, request, serves, keys, location, timeout: _ } = options;
        let has_keys = keys.key.is_some() || keys.unique.is_some();
        let location = location.unwrap_or(caller);
        Self {
            id: JobId::next(),
            name,
            request,
            serves,
            keys: has_keys.then(|| Box::new(keys)),
            location,
            spawned: Instant::now(),
            kind,
            state: AtomicU8::new(JobState::Pending as u8),
            slot: AtomicUsize::new(usize::MAX),
            stop: AtomicU8::new(RUN_ON),
            cancelled: AtomicBool::new(false),
            runner: Mutex::new(None),
        }
    }

    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    pub(crate) fn slot(&self) -> usize {
        self.slot.load(Ordering::Relaxed)
    }

    pub(crate) fn spawned(&self) -> Instant {
        self.spawned
    }

    pub(crate) fn belongs_to(&self, request: &Arc<Request>) -> bool {
        self.own_request().is_some_and(|own| Arc::ptr_eq(own, request))
    }

    pub(crate) fn request_label(&self) -> Option<&Arc<str>> {
        self.request.as_ref().map(|request| request.label())
    }

    fn own_request(&self) -> Option<&Arc<Request>> {
        self.request.as_ref().filter(|_| !self.serves)
    }

    pub(crate) fn name(&self) -> Cow<'static, str> {
        self.name.clone().unwrap_or_else(|| Cow::Owned(self.location.to_string()))
    }

    pub(crate) fn state(&self) -> JobState {
        match self.state.load(Ordering::Acquire) {
            0 => JobState::Deferred,
            1 => JobState::Pending,
            2 => JobState::Active,
            _ => JobState::Finished,
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.state() == JobState::Finished
    }

    pub(crate) fn info(&self, now: Instant) -> JobInfo {
        JobInfo {
            id: self.id,
            name: self.name(),
            state: self.state(),
            request: self.request_label().cloned(),
            key: self.keys.as_ref().and_then(|keys| keys.key.clone()),
            location: self.location,
            age: now.saturating_duration_since(self.spawned),
        }
    }

    /// Tells the job to end. Only a cooperative one can hear it.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        if let Kind::Cooperative(signal) = &self.kind {
            signal.notify_waiters();
        }
    }

    /// Has the runner drop the job's future.
    pub(crate) fn stop(&self, overdue: bool) {
        self.stop.fetch_or(if overdue { ABORT | OVERDUE } else { ABORT }, Ordering::AcqRel);
        self.cancel();
        let runner = lock(&self.runner).take();
        if let Some(runner) = runner {
            runner.wake();
        }
    }

    /// Whether the caller is the first to take up this blocking job, to run it or to give it up.
    pub(crate) fn take_up(&self) -> bool {
        match &self.kind {
            Kind::Blocking(taken_up) => !taken_up.swap(true, Ordering::AcqRel),
            Kind::Plain | Kind::Cooperative(_) => false,
        }
    }

    pub(crate) fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire) != RUN_ON
    }

    pub(crate) fn is_overdue(&self) -> bool {
        self.stop.load(Ordering::Acquire) & OVERDUE != 0
    }

    /// Leaves the waker for [`stop`](Self::stop), which either finds it or is seen here.
    pub(crate) fn park(&self, runner: Waker) -> bool {
        let previous = lock(&self.runner).replace(runner);
        drop(previous);
        self.must_stop()
    }
}

/// A job of any type, as the scheduler sees it.
pub(crate) trait Record: Send + Sync {
    fn header(&self) -> &Header;
    /// The job ends with `error`, whatever it has returned.
    fn fail(&self, error: JobError);
    /// The job's failure, if no handle is left to give it to.
    fn unheard(&self) -> Option<JobError>;
    /// Lets the handle have the result, for good.
    fn publish(&self);
}

impl Entry for Arc<dyn Record> {
    fn id(&self) -> JobId {
        self.header().id
    }

    fn key(&self) -> Option<&Arc<str>> {
        self.header().keys.as_ref()?.key.as_ref()
    }

    fn unique(&self) -> Option<&Unique> {
        self.header().keys.as_ref()?.unique.as_ref()
    }

    fn moved(&self, state: JobState, slot: usize) {
        let header = self.header();
        // Written under the queue's lock only, so this need not be one step.
        let first = header.slot.load(Ordering::Relaxed) == usize::MAX;
        header.slot.store(slot, Ordering::Relaxed);
        header.state.store(state as u8, Ordering::Release);
        if let Some(request) = header.own_request() {
            if first {
                request.job_joined();
            } else if state == JobState::Finished {
                request.job_left();
            }
        }
    }
}

/// One job: what is known of it, and its result.
pub(crate) struct Cell<T> {
    pub(crate) header: Header,
    output: Mutex<Output<T>>,
}

struct Output<T> {
    result: Option<Result<T, JobError>>,
    /// The result is final, and the handle may have it.
    published: bool,
    /// The handle has gone.
    detached: bool,
    /// A failure has left to be reported; whatever goes wrong after it is not.
    told: bool,
    waiter: Option<Waker>,
}

impl<T> Output<T> {
    fn take_failure(&mut self) -> Option<JobError> {
        match &self.result {
            Some(Err(error)) if error.is_failure() => {
                self.result.take().and_then(|result| result.err())
            }
            _ => None,
        }
    }
}

impl<T> Cell<T> {
    pub(crate) fn new(header: Header) -> Self {
        let output =
            Output { result: None, published: false, detached: false, told: false, waiter: None };
        Self { header, output: Mutex::new(output) }
    }

    /// Keeps the result if anybody may ask for it. What is not kept is for the caller to drop.
    pub(crate) fn store(&self, result: Result<T, JobError>) -> Option<Result<T, JobError>> {
        let mut output = lock(&self.output);
        if output.published || output.told || (output.detached && result.is_ok()) {
            Some(result)
        } else {
            output.result.replace(result)
        }
    }

    /// The job returned.
    pub(crate) fn end_with(&self, result: Result<T, BoxError>) -> Outcome {
        let outcome = if result.is_ok() { Outcome::Completed } else { Outcome::Failed };
        drop(self.store(result.map_err(JobError::failed)));
        outcome
    }

    /// The job ended with no output.
    pub(crate) fn end(&self, error: JobError, outcome: Outcome) -> Outcome {
        drop(self.store(Err(error)));
        outcome
    }

    /// The handle goes, and takes along what result there is: whoever has it must report it.
    pub(crate) fn detach(&self) -> (Option<Result<T, JobError>>, Option<Waker>) {
        let mut output = lock(&self.output);
        output.detached = true;
        let result = output.result.take();
        output.told |= matches!(&result, Some(Err(error)) if error.is_failure());
        (result, output.waiter.take())
    }

    fn poll_published(&self, cx: &mut Context<'_>) -> Poll<()> {
        if lock(&self.output).published {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let mut output = lock(&self.output);
        if output.published {
            return Poll::Ready(());
        }
        let previous = output.waiter.replace(waker);
        drop(output);
        drop(previous);
        Poll::Pending
    }

    fn take(&self) -> Result<T, JobError> {
        let mut output = lock(&self.output);
        match output.result.take() {
            Some(Err(error)) if error.is_cancelled() => {
                // This can be told any number of times.
                let again =
                    if error.is_skipped() { JobError::skipped() } else { JobError::cancelled() };
                output.result = Some(Err(again));
                Err(error)
            }
            Some(result) => result,
            None => Err(JobError::taken()),
        }
    }

    fn take_failure(&self) -> Option<JobError> {
        lock(&self.output).take_failure()
    }
}

impl<T: Send> Record for Cell<T> {
    fn header(&self) -> &Header {
        &self.header
    }

    fn fail(&self, error: JobError) {
        discard(self.store(Err(error)));
    }

    fn unheard(&self) -> Option<JobError> {
        let mut output = lock(&self.output);
        let failure = if output.detached { output.take_failure() } else { None };
        output.told |= failure.is_some();
        failure
    }

    fn publish(&self) {
        let mut output = lock(&self.output);
        output.published = true;
        let waiter = output.waiter.take();
        drop(output);
        if let Some(waiter) = waiter {
            wake(waiter);
        }
        if let Some(request) = self.header.own_request() {
            request.notify_ended();
        }
    }
}

pin_project! {
    /// A job's own future: stores what it returns, and ends it when its time is over.
    pub(crate) struct Run<F, C> {
        #[pin]
        future: F,
        // Says what to do with the output.
        complete: C,
        timer: Option<Box<Timer>>,
    }
}

/// The clock starts when the job does: at the first poll.
struct Timer {
    after: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let after = self.after;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(time::sleep(after)));
        // A job that uses up its cooperative budget in every poll must not put off its end.
        Pin::new(&mut coop::unconstrained(sleep)).poll(cx)
    }
}

impl<F, C> Run<F, C> {
    pub(crate) fn new(future: F, complete: C, timeout: Option<Duration>) -> Self {
        let timer = timeout.map(|after| Box::new(Timer { after, sleep: None }));
        Self { future, complete, timer }
    }

    pub(crate) fn into_future(self) -> F {
        self.future
    }
}

impl<F: Future, C: Complete<F::Output>> Future for Run<F, C> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(this.complete.complete(output));
        }
        let Some(timer) = this.timer else {
            return Poll::Pending;
        };
        ready!(timer.poll(cx));
        Poll::Ready(this.complete.time_out(timer.after))
    }
}

/// Where a job's output goes.
pub(crate) trait Complete<T> {
    fn complete(&self, output: T) -> Outcome;
    fn time_out(&self, after: Duration) -> Outcome;
}

/// The output is the job's result.
impl<T: JobOutput> Complete<T> for Arc<Cell<T::Value>> {
    fn complete(&self, output: T) -> Outcome {
        self.end_with(output.into_result())
    }

    fn time_out(&self, after: Duration) -> Outcome {
        self.end(JobError::run_timeout(after), Outcome::TimedOut)
    }
}

/// The output passes through to a caller, as it is.
pub(crate) struct PassThrough<T>(pub(crate) Arc<Cell<T>>);

impl<T: JobOutput + Send> Complete<T> for PassThrough<T> {
    fn complete(&self, output: T) -> Outcome {
        let outcome = if output.is_failure() { Outcome::Failed } else { Outcome::Completed };
        match self.0.store(Ok(output)) {
            // The caller has gone: a failure is told as any job's.
            Some(Ok(output)) => match output.into_result() {
                Ok(_) => outcome,
                Err(error) => self.0.end(JobError::failed(error), Outcome::Failed),
            },
            _ => outcome,
        }
    }

    fn time_out(&self, after: Duration) -> Outcome {
        self.0.end(JobError::run_timeout(after), Outcome::TimedOut)
    }
}

/// What a handle asks of the scheduler that runs its job.
pub(crate) trait Owner: Send + Sync {
    /// Tells the job to end; drops it if it has not started, or cannot be told.
    fn close(self: Arc<Self>, job: Arc<dyn Record>);
    /// Ends the job as soon as possible, started or not.
    fn abort(self: Arc<Self>, job: Arc<dyn Record>);
    fn report(&self, job: &Header, error: JobError);
    fn close_timeout(&self) -> Duration;
}

/// A handle to one job: awaits it, watches it, ends it.
///
/// Awaiting gives what the job returned. Dropping the handle *detaches*: the job runs on, and if
/// it fails, [`on_failure`] hears of it. A failure is told exactly once: to who awaits (or closes)
/// the handle, else to `on_failure`; if the handle is dropped only after the job has failed, then.
///
/// The nearest relatives are aiojobs' `Job` and tokio's [`JoinHandle`](tokio::task::JoinHandle).
///
/// # Cancel safety
///
/// Awaiting the handle, and every method that returns a future, may be given up at any point:
/// the job goes on as if nobody had asked, and its result waits for who asks next.
///
/// [`on_failure`]: crate::SchedulerBuilder::on_failure
pub struct Job<T> {
    cell: Arc<Cell<T>>,
    owner: Arc<dyn Owner>,
}

impl<T> Job<T> {
    pub(crate) fn new(cell: Arc<Cell<T>>, owner: Arc<dyn Owner>) -> Self {
        Self { cell, owner }
    }

    pub(crate) fn take_unread(&self) -> Option<Result<T, JobError>> {
        self.cell.detach().0
    }

    #[cfg(feature = "testing")]
    pub(crate) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.cell.poll_published(cx)
    }

    /// Reports what its taker has no use for.
    pub(crate) fn report(&self, error: JobError) {
        if error.is_failure() {
            self.owner.report(&self.cell.header, error);
        }
    }

    /// The job's id, unique within the process.
    pub fn id(&self) -> JobId {
        self.cell.header.id
    }

    /// The name given with [`Scheduler::job`](crate::Scheduler::job), by default where the job was
    /// spawned: `src/main.rs:12:5`.
    pub fn name(&self) -> Cow<'static, str> {
        self.cell.header.name()
    }

    /// Where the job is in its life.
    pub fn state(&self) -> JobState {
        self.cell.header.state()
    }

    /// What is known of the job now.
    pub fn info(&self) -> JobInfo {
        self.cell.header.info(Instant::now())
    }

    /// Whether the job waits for the end of its response.
    pub fn is_deferred(&self) -> bool {
        self.state() == JobState::Deferred
    }

    /// Whether the job waits for a running place.
    pub fn is_pending(&self) -> bool {
        self.state() == JobState::Pending
    }

    /// Whether the job runs.
    pub fn is_active(&self) -> bool {
        self.state() == JobState::Active
    }

    /// Whether the job has ended, one way or another.
    pub fn is_finished(&self) -> bool {
        self.state() == JobState::Finished
    }
}

impl<T: Send + 'static> Job<T> {
    /// Waits for the job's end and gives what it returned. The same as awaiting the handle, which
    /// stays usable.
    ///
    /// # Errors
    ///
    /// See [`JobError`]. The value or failure is given once; a second wait is told so. That a job
    /// was cancelled is told every time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the wait leaves the job running, and its result in place.
    pub async fn wait(&mut self) -> Result<T, JobError> {
        self.await
    }

    /// Waits up to `timeout`, then [closes](Self::close) the job: aiojobs' `wait(timeout)`.
    ///
    /// Takes `timeout` plus the scheduler's `close_timeout` at the longest.
    ///
    /// # Errors
    ///
    /// What [`wait`](Self::wait) gives, or, if the time ran out, an error that
    /// [`is_timeout`](JobError::is_timeout), even if the job then still returned a value.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the time ran out, it leaves the job running.
    pub async fn wait_or_close(&mut self, timeout: Duration) -> Result<T, JobError> {
        if self.ended_within(timeout).await {
            return self.cell.take();
        }
        match self.close().await {
            Err(error) if error.is_failure() && !error.is_close_timeout() => Err(error),
            _ => Err(JobError::wait_timeout(timeout)),
        }
    }

    /// Ends the job within the scheduler's `close_timeout` (100 ms unless set).
    ///
    /// A pending job never starts. A job of [`spawn_with`](crate::Scheduler::spawn_with) is told,
    /// and may take that long to end by itself. Any other future is dropped where it stands, at
    /// its next `await`. Closing twice is fine.
    ///
    /// # Errors
    ///
    /// The job's own failure, if nobody has had it yet; or an error that
    /// [`is_close_timeout`](JobError::is_close_timeout) if it did not end in time: it has then
    /// been [aborted](Self::abort). A job that was cancelled, or returned a value, is `Ok`.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, it has told the job to end, and nothing else: one that does not listen runs
    /// on.
    pub async fn close(&mut self) -> Result<(), JobError> {
        self.close_timeout(self.owner.close_timeout()).await
    }

    /// [Closes](Self::close) the job, giving it `timeout` to end.
    ///
    /// # Errors
    ///
    /// Like [`close`](Self::close).
    ///
    /// # Cancel safety
    ///
    /// Like [`close`](Self::close).
    pub async fn close_timeout(&mut self, timeout: Duration) -> Result<(), JobError> {
        self.owner.clone().close(self.cell.clone());
        if self.ended_within(timeout).await {
            return self.cell.take_failure().map_or(Ok(()), Err);
        }
        self.abort();
        Err(JobError::close_timeout(timeout))
    }

    /// Ends the job at once, without waiting: a pending one never starts, an active one is dropped
    /// at its next `await`. A blocking job that has started cannot be ended and runs on.
    ///
    /// Being aborted is not a failure: nobody is told but who awaits the handle.
    pub fn abort(&self) {
        if !self.is_finished() {
            self.owner.clone().abort(self.cell.clone());
        }
    }

    async fn ended_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let ended = std::future::poll_fn(|cx| self.cell.poll_published(cx));
        clock::timeout_at(deadline, ended).await.is_ok()
    }
}

impl<T: Send + 'static> Future for Job<T> {
    type Output = Result<T, JobError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(self.cell.poll_published(cx));
        Poll::Ready(self.cell.take())
    }
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        match self.take_unread() {
            Some(Err(error)) => self.report(error),
            value => discard(value),
        }
    }
}

impl<T> fmt::Debug for Job<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id())
            .field("name", &self.name())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// What a job of [`spawn_with`](crate::Scheduler::spawn_with) knows of itself, above all whether
/// it has been told to end.
#[derive(Clone)]
pub struct JobContext {
    record: Arc<dyn Record>,
}

impl JobContext {
    pub(crate) fn new(record: Arc<dyn Record>) -> Self {
        Self { record }
    }

    /// The job's id, unique within the process.
    pub fn id(&self) -> JobId {
        self.record.header().id
    }

    /// The job's name.
    pub fn name(&self) -> Cow<'static, str> {
        self.record.header().name()
    }

    /// Whether the job has been told to end.
    pub fn is_cancelled(&self) -> bool {
        self.record.header().cancelled.load(Ordering::Acquire)
    }

    /// Resolves when the job is told to end: its scheduler or its handle is closed. From then on
    /// it has the close timeout to finish; after that it is dropped where it stands.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again at any point.
    pub async fn cancelled(&self) {
        let Kind::Cooperative(signal) = &self.record.header().kind else {
            return std::future::pending().await;
        };
        let notified = signal.notified();
        let mut notified = std::pin::pin!(notified);
        notified.as_mut().enable();
        if !self.is_cancelled() {
            notified.await;
        }
    }
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobContext")
            .field("id", &self.id())
            .field("name", &self.name())
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}
