use std::{
    borrow::Cow,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    job::{error::JobError, info::JobInfo, record::Record, result::BoxedValue},
    rules::state::{JobId, JobState},
    run::{core::Core, deadlines},
    util::{clock::Moment, panics::drop_contained},
};

/// A handle to one job: awaits it, watches it, ends it.
///
/// Awaiting gives what the job returned. Dropping the handle *detaches*: the job runs on, and if
/// it fails, [`on_failure`] hears of it. A failure is told exactly once: to whoever awaits (or
/// closes) the handle, else to `on_failure`; if the handle is dropped only after the job has failed,
/// then.
///
/// The nearest relatives are aiojobs' `Job` and tokio's [`JoinHandle`](tokio::task::JoinHandle).
///
/// # Cancel safety
///
/// Awaiting the handle, or [`wait`](Self::wait), may be given up at any point: the job goes on as if
/// nobody had asked, and its result waits for whoever asks next. The methods that close a job tell
/// it to end when they are first polled ([`wait_or_close`](Self::wait_or_close): when its time is
/// over); giving them up does not take that back.
///
/// [`on_failure`]: crate::SchedulerBuilder::on_failure
pub struct Job<T> {
    record: Arc<Record>,
    core: Arc<Core>,
    /// What its value is, whatever the record knows of that.
    value: PhantomData<fn() -> T>,
}

impl<T> Job<T> {
    pub(crate) fn new(record: Arc<Record>, core: Arc<Core>) -> Self {
        Self { record, core, value: PhantomData }
    }

    pub(crate) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.record.result().poll_published(cx)
    }

    /// Reports what its taker has no use for.
    pub(crate) fn report(&self, error: JobError) {
        if error.is_failure() {
            self.core.report(&self.record, error);
        }
    }

    /// The job's id, unique within the process.
    pub fn id(&self) -> JobId {
        self.record.id()
    }

    /// The name given with [`Scheduler::job`](crate::Scheduler::job), by default where the job was
    /// spawned: `src/main.rs:12:5`.
    pub fn name(&self) -> Cow<'static, str> {
        self.record.name()
    }

    /// Where the job is in its life.
    pub fn state(&self) -> JobState {
        match self.core.state(&self.record) {
            // It has left the queue, and who awaits it is about to be told.
            JobState::Finished if !self.record.is_finished() => JobState::Active,
            state => state,
        }
    }

    /// What is known of the job now.
    pub fn info(&self) -> JobInfo {
        self.record.info(self.state(), Moment::now())
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

    /// Whether the job has ended, one way or another. Awaiting it then gives the result at once.
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
    /// # Panics
    ///
    /// Like [`close`](Self::close).
    ///
    /// # Cancel safety
    ///
    /// Dropped before the time ran out, it leaves the job running.
    pub async fn wait_or_close(&mut self, timeout: Duration) -> Result<T, JobError> {
        if self.ended_within(timeout).await {
            return self.take();
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
    /// been [aborted](Self::abort). (If it panics all the same, that is told as any failure is; that
    /// it did not end is not told again.) A job that was cancelled, or returned a value, is `Ok`.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// Dropped early, it has told the job to end, and nothing else: one that does not listen runs
    /// on.
    pub async fn close(&mut self) -> Result<(), JobError> {
        self.close_within(self.core.config.close_timeout).await
    }

    /// [Closes](Self::close) the job, giving it `timeout` to end.
    ///
    /// # Errors
    ///
    /// Like [`close`](Self::close).
    ///
    /// # Panics
    ///
    /// Like [`close`](Self::close).
    ///
    /// # Cancel safety
    ///
    /// Like [`close`](Self::close).
    #[doc(alias = "close_timeout")]
    pub async fn close_within(&mut self, timeout: Duration) -> Result<(), JobError> {
        self.core.close_job(&self.record);
        if self.ended_within(timeout).await {
            return self.record.result().take_failure().map_or(Ok(()), Err);
        }
        self.abort();
        Err(self.record.result().take_failure_or_late(JobError::close_timeout(timeout)))
    }

    /// Ends the job at once, without waiting: a pending one never starts, an active one is dropped
    /// at its next `await`. A blocking job that has started cannot be ended and runs on.
    ///
    /// Being aborted is not a failure: nobody is told but who awaits the handle.
    pub fn abort(&self) {
        if !self.record.is_finished() {
            self.core.abort_job(&self.record);
        }
    }

    /// What the job returned.
    pub(crate) fn take(&self) -> Result<T, JobError> {
        match self.record.result().take()? {
            Some(value) => value_of(value),
            // Known to the compiler, which then need not ask what it is.
            None => value_of(Box::new(())),
        }
    }

    /// What the job returned, if nobody has had it. The handle is detached.
    pub(crate) fn take_result_if_unread(&self) -> Option<Result<T, JobError>> {
        if self.record.result().detach() {
            return None;
        }
        self.record.result().take_remaining().0.map(|result| result.and_then(value_of))
    }

    async fn ended_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let ended = std::future::poll_fn(|cx| self.record.result().poll_published(cx));
        deadlines::timeout_at(deadline, ended).await.is_ok()
    }
}

impl<T: Send + 'static> Future for Job<T> {
    type Output = Result<T, JobError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(self.record.result().poll_published(cx));
        Poll::Ready(self.take())
    }
}

fn value_of<T: 'static>(value: BoxedValue) -> Result<T, JobError> {
    let value = value.downcast().map(|value| *value);
    debug_assert!(value.is_ok(), "a job's value is of the type that its handle has");
    value.map_err(|_| JobError::taken())
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        if self.record.result().detach() {
            return;
        }
        let (result, waiter) = self.record.result().take_remaining();
        match result {
            Some(Err(error)) => self.report(error),
            Some(value) => drop_contained(value),
            None => {}
        }
        drop(waiter);
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
    record: Arc<Record>,
}

impl JobContext {
    pub(crate) fn new(record: Arc<Record>) -> Self {
        Self { record }
    }

    /// The job's id, unique within the process.
    pub fn id(&self) -> JobId {
        self.record.id()
    }

    /// The job's name.
    pub fn name(&self) -> Cow<'static, str> {
        self.record.name()
    }

    /// Whether the job has been told to end.
    pub fn is_cancelled(&self) -> bool {
        self.record.is_cancelled()
    }

    /// Resolves when the job is told to end: its scheduler or its handle is closed. From then on
    /// it has the close timeout to finish; after that it is dropped where it stands.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again at any point.
    pub async fn cancelled(&self) {
        self.record.cancelled().await;
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
