//! The future of the spawn verbs that wait.

use std::{
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
    job::{body::Work, error::SpawnError, record::Record},
    report::observer::RefusalReason,
    rules::keys::Ticket,
    run::{
        core::{Core, Mode},
        deadlines,
    },
    scheduler::handle::Job,
};

/// Spawns one job, and resolves to its handle.
///
/// It waits if the queue is full. Made by [`Scheduler::spawn`](crate::Scheduler::spawn) and the other verbs
/// that wait.
///
/// # Cancel safety
///
/// If it is dropped before it has resolved, the job is dropped without having run, and its turn goes to
/// the next caller.
#[doc(alias = "Spawn")]
#[must_use = "a job is spawned only when this is awaited"]
pub struct SpawnFuture<T> {
    /// Present until this resolves.
    target: Option<Target>,
    work: Option<Work>,
    ticket: Option<Ticket>,
    value: PhantomData<fn() -> T>,
    /// The job that an inline scheduler has spawned, and whose end this awaits.
    inline: Option<Job<T>>,
}

struct Target {
    core: Arc<Core>,
    record: Arc<Record>,
}

impl<T> SpawnFuture<T> {
    #[inline(always)]
    pub(super) fn new(core: &Arc<Core>, record: Arc<Record>, work: Work) -> Self {
        Self {
            target: Some(Target { core: core.clone(), record }),
            work: Some(work),
            ticket: None,
            value: PhantomData,
            inline: None,
        }
    }

    /// Waits at most `timeout` for a permit or a place.
    pub(crate) async fn within(
        mut self,
        timeout: Duration,
        is_inline: bool,
    ) -> Result<Job<T>, SpawnError>
    where
        T: Send + 'static,
    {
        let deadline = Instant::now().checked_add(timeout);
        // An inline scheduler has no wait for a permit: the time would be the job's own.
        let deadline = deadline.filter(|_| !is_inline);
        match deadlines::timeout_at(deadline, &mut self).await {
            Ok(spawned) => spawned,
            Err(deadlines::Elapsed) => {
                self.give_up(RefusalReason::TimedOut);
                Err(SpawnError::TimedOut)
            }
        }
    }

    /// Drops the work and gives back a grant, now and not only when this is dropped.
    #[cold]
    fn give_up(&mut self, reason: RefusalReason) {
        self.leave();
        self.work = None;
        if let Some(Target { core, record }) = self.target.take() {
            core.refuse(reason, &record);
        }
    }

    fn leave(&mut self) {
        if let (Some(ticket), Some(target)) = (self.ticket.take(), &self.target) {
            target.core.cancel_wait(ticket);
        }
    }
}

impl<T: Send + 'static> Future for SpawnFuture<T> {
    type Output = Result<Job<T>, SpawnError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(job) = self.inline.take() {
            return self.poll_inline(job, cx);
        }
        let this = &mut *self;
        let Target { core, record } =
            this.target.as_ref().expect("a spawn is not polled after it has resolved");
        let admitted = ready!(core.poll_admit(record, &mut this.work, &mut this.ticket, cx));
        if let Err(error) = admitted {
            this.give_up(RefusalReason::from(&error));
            return Poll::Ready(Err(error));
        }
        let Target { core, record } = this.target.take().expect("polled just now");
        if core.mode == Mode::Inline {
            return self.poll_inline(Job::new(record, core), cx);
        }
        Poll::Ready(Ok(Job::new(record, core)))
    }
}

impl<T: Send + 'static> SpawnFuture<T> {
    fn poll_inline(
        &mut self,
        job: Job<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Job<T>, SpawnError>> {
        if job.poll_ended(cx).is_pending() {
            self.inline = Some(job);
            return Poll::Pending;
        }
        Poll::Ready(Ok(job))
    }
}

impl<T> Drop for SpawnFuture<T> {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.give_up(RefusalReason::Dropped);
        }
    }
}

impl<T> fmt::Debug for SpawnFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnFuture")
            .field("waiting", &self.ticket.is_some())
            .finish_non_exhaustive()
    }
}
