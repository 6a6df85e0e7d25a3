use std::{
    borrow::Cow,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    job::{error::JobError, info::JobInfo, record::Record, result::BoxedValue},
    rules::state::{JobId, JobState},
    run::{core::Core, deadlines},
    util::panics::drop_contained,
};

/// Awaits, inspects and ends one job.
///
/// Awaiting the handle returns the job's output. Dropping it *detaches* the job: the job runs on, and a
/// failure goes to [`on_failure`]. Every failure is reported exactly once: to the code that awaits (or
/// closes) the handle, else to `on_failure`. If the handle is dropped after the job has failed, that is
/// when `on_failure` is called.
///
/// # Panics
///
/// Awaiting the job of a [`Recorder`](crate::testing::Recorder) panics while the job waits for `run_all`.
///
/// The nearest relatives are aiojobs' `Job` and tokio's [`JoinHandle`](tokio::task::JoinHandle).
///
/// # Cancel safety
///
/// Awaiting the handle, or [`wait`](Self::wait), may be dropped at any point: the job runs on, and its
/// result stays for the next wait. The methods that close a job cancel or abort it at their first poll
/// ([`wait_or_close`](Self::wait_or_close) when its time is over); dropping them after that does not undo
/// it.
///
/// [`on_failure`]: crate::SchedulerBuilder::on_failure
pub struct Job<T> {
    record: Arc<Record>,
    core: Arc<Core>,
    /// The type of its value, which the record does not know.
    value: PhantomData<fn() -> T>,
}

impl<T> Job<T> {
    pub(crate) fn new(record: Arc<Record>, core: Arc<Core>) -> Self {
        Self { record, core, value: PhantomData }
    }

    pub(crate) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.record.result().poll_published(cx)
    }

    /// Reports an error that its taker cannot return, if it is a failure.
    pub(crate) fn report(&self, error: JobError) {
        if error.is_failure() {
            self.core.report(&self.record, error);
        }
    }

    /// Returns the job's id, unique within the process.
    pub fn id(&self) -> JobId {
        self.record.id()
    }

    /// Returns the job's name.
    ///
    /// It is the name given with [`Scheduler::job`](crate::Scheduler::job), by default the place in the code
    /// where the job was spawned: `src/main.rs:12:5`.
    pub fn name(&self) -> Cow<'static, str> {
        self.record.name()
    }

    /// Returns the job's state.
    pub fn state(&self) -> JobState {
        match self.core.state(&self.record) {
            // It has left the queue, and its result is about to be published.
            JobState::Finished if !self.record.is_finished() => JobState::Active,
            state => state,
        }
    }

    /// Returns a snapshot of the job.
    pub fn info(&self) -> JobInfo {
        let info = self.core.info(&self.record);
        JobInfo { state: self.state(), ..info }
    }

    /// Returns whether the job waits for the end of its response.
    pub fn is_deferred(&self) -> bool {
        self.state() == JobState::Deferred
    }

    /// Returns whether the job waits in the queue.
    pub fn is_pending(&self) -> bool {
        self.state() == JobState::Pending
    }

    /// Returns whether the job runs.
    pub fn is_active(&self) -> bool {
        self.state() == JobState::Active
    }

    /// Returns whether the job has ended, with any outcome.
    ///
    /// Awaiting the handle then resolves at once.
    pub fn is_finished(&self) -> bool {
        self.state() == JobState::Finished
    }
}

impl<T: Send + 'static> Job<T> {
    /// Waits for the job's end, and returns its output.
    ///
    /// It does the same as awaiting the handle, and leaves the handle usable.
    ///
    /// # Errors
    ///
    /// See [`JobError`]. The value or failure is returned once; a second wait returns an error that says
    /// so. The error of a cancelled job is returned every time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the returned future leaves the job running, and its result in place.
    pub async fn wait(&mut self) -> Result<T, JobError> {
        self.await
    }

    /// Waits up to `timeout`, then [closes](Self::close) the job.
    ///
    /// It takes at most `timeout` plus the scheduler's `close_timeout`. In aiojobs it is `wait(timeout)`.
    ///
    /// # Errors
    ///
    /// Like [`wait`](Self::wait). If the time ran out, an error that
    /// [`is_timeout`](JobError::is_timeout), even if the job then still returned a value.
    ///
    /// # Panics
    ///
    /// Like [`close`](Self::close).
    ///
    /// # Cancel safety
    ///
    /// If the returned future is dropped before the time ran out, the job runs on.
    pub async fn wait_or_close(&mut self, timeout: Duration) -> Result<T, JobError> {
        if self.ended_within(timeout).await {
            return self.take();
        }
        match self.close().await {
            Err(error) if error.is_failure() && !error.is_close_timeout() => Err(error),
            _ => Err(JobError::wait_timeout(timeout)),
        }
    }

    /// Ends the job within the scheduler's `close_timeout` (default 100 ms).
    ///
    /// A pending job never starts. A running job of [`spawn_with`](crate::Scheduler::spawn_with) is
    /// cancelled, and has that time to end by itself. Any other future is dropped at its next `await`. It
    /// can be called again.
    ///
    /// # Errors
    ///
    /// The job's own failure, if it has not been reported yet. Or an error that
    /// [`is_close_timeout`](JobError::is_close_timeout), if the job did not end in time; it has then been
    /// [aborted](Self::abort). If it panics later, the panic is reported like any failure; that it did not
    /// end is not reported again. A job that was cancelled, or returned a value, is `Ok`.
    ///
    /// # Panics
    ///
    /// If called within a runtime without a timer (`enable_time`).
    ///
    /// # Cancel safety
    ///
    /// The first poll cancels or aborts the job. Dropped after that, it no longer enforces the deadline:
    /// a cancelled job that does not end by itself runs on.
    pub async fn close(&mut self) -> Result<(), JobError> {
        self.close_within(self.core.config.close_timeout).await
    }

    /// Like [`close`](Self::close), with `timeout` instead of `close_timeout`.
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

    /// Aborts the job, without waiting for its end.
    ///
    /// A pending job never starts; the future of an active one is dropped at its next `await`. A blocking
    /// job that has started cannot be ended and runs on.
    ///
    /// Being aborted is not a failure: only code that awaits the handle sees it.
    pub fn abort(&self) {
        if !self.record.is_finished() {
            self.core.abort_job(&self.record);
        }
    }

    /// Takes the job's result, once it is published.
    pub(crate) fn take(&self) -> Result<T, JobError> {
        match self.record.result().take()? {
            Some(value) => value_of(value),
            // The compiler knows this type, and removes the downcast.
            None => value_of(Box::new(())),
        }
    }

    /// Detaches the handle, and takes the result if it has not been taken.
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
        if self.record.result().poll_published(cx).is_pending() {
            self.core.check_awaited(&self.record);
            return Poll::Pending;
        }
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

/// Shows a job its id, name, deadline and cancellation, and takes its progress.
///
/// Passed to jobs of [`spawn_with`](crate::Scheduler::spawn_with).
#[derive(Clone)]
pub struct JobContext {
    record: Arc<Record>,
    core: Arc<Core>,
    /// The end of the run timeout.
    run_until: Option<Instant>,
}

impl JobContext {
    /// The context of a job that starts now.
    pub(crate) fn new(record: Arc<Record>, core: Arc<Core>, timeout: Option<Duration>) -> Self {
        let run_until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self { record, core, run_until }
    }

    /// Returns the job's id, unique within the process.
    pub fn id(&self) -> JobId {
        self.record.id()
    }

    /// Returns the job's name.
    pub fn name(&self) -> Cow<'static, str> {
        self.record.name()
    }

    /// Returns whether the job has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.record.is_cancelled()
    }

    /// Returns the moment by which the job should end: the end of its run timeout, or the deadline of the drain
    /// that has begun, whichever is earlier.
    ///
    /// `None` while there is neither. At the end of its run timeout the job is dropped. At the deadline of the
    /// drain it [is cancelled](Self::cancelled), and has the close timeout to end. The moment may become
    /// earlier when the shutdown begins.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let scheduler = tower_jobs::Scheduler::new();
    /// let job = scheduler.job("export").timeout(Duration::from_secs(60)).spawn_with(async |context| {
    ///     let deadline = context.deadline().expect("it has a run timeout");
    ///     let left = deadline - tokio::time::Instant::now(); // for the timeout of a request of its own
    ///     left.as_secs() > 50
    /// });
    /// assert!(job.await.unwrap().await.unwrap());
    /// # }
    /// ```
    pub fn deadline(&self) -> Option<Instant> {
        [self.run_until, self.core.deadline()].into_iter().flatten().min()
    }

    /// Resolves when the shutdown of the job's scheduler begins.
    ///
    /// That is before the job is [cancelled](Self::cancelled): a drain leaves it time until the
    /// [deadline](Self::deadline). See [`Scheduler::shutting_down`](crate::Scheduler::shutting_down).
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again at any point.
    pub async fn shutting_down(&self) {
        self.core.shutting_down().await;
    }

    /// Says which part of its work the job has done, from 0 to 1, for [`JobInfo::progress`](crate::JobInfo).
    ///
    /// Numbers outside are taken as the nearest one inside, and what is no number changes nothing. It is
    /// cheap, and wakes no task.
    pub fn progress(&self, part: f32) {
        if !part.is_nan() {
            self.record.set_progress(part.clamp(0.0, 1.0));
        }
    }

    /// Resolves when the job is cancelled: its scheduler, its handle or its request's jobs are closed.
    ///
    /// From then on the job has the close timeout to end; after that it is aborted.
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
