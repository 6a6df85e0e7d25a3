use std::{
    borrow::Cow,
    fmt,
    future::{Future, poll_fn},
    panic::{Location, resume_unwind},
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify, time::Instant};

use crate::{
    clock, config,
    contain::discard,
    error::{JobError, SpawnError, TrySpawnError},
    job::{Cell, Header, Job, JobContext, JobOutput, Kind, Options, Owner, PassThrough, Run, Work},
    queue::{Effects, Refusal, Ticket},
    runner::{Entry, Shared},
    state::Outcome,
};

/// What a job made of the future `F` gives.
pub(crate) type Value<F> = <<F as Future>::Output as JobOutput>::Value;

/// One job about to be spawned, with its options: made by [`Scheduler::job`] or [`Jobs::job`].
///
/// Every verb does what the scheduler's own does.
///
/// [`Scheduler::job`]: crate::Scheduler::job
/// [`Jobs::job`]: crate::Jobs::job
#[derive(Clone)]
#[must_use = "a job runs once it is spawned, with one of the spawn verbs"]
pub struct JobBuilder<'a> {
    shared: &'a Arc<Shared>,
    options: Options,
}

impl<'a> JobBuilder<'a> {
    pub(crate) fn new(shared: &'a Arc<Shared>, options: Options) -> Self {
        Self { shared, options }
    }

    /// The job's name in logs, listings and reports. Defaults to where it is spawned.
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// How long the job may run, counted from its start. Defaults to any time.
    ///
    /// A job that runs longer is dropped where it stands, and has failed. A blocking one cannot be
    /// interrupted: it keeps its place until it returns, and has then failed.
    ///
    /// # Panics
    ///
    /// If `timeout` is zero, or longer than 365 days.
    #[track_caller]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        if let Err(error) = config::run_timeout(timeout) {
            panic!("{error}");
        }
        self.options.timeout = Some(timeout);
        self
    }

    /// Like [`Scheduler::spawn`](crate::Scheduler::spawn).
    #[track_caller]
    pub fn spawn<F>(self, future: F) -> Spawn<Value<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let cell = self.cell(Kind::Plain);
        let work = Box::pin(Run::new(future, cell.clone(), self.options.timeout));
        Spawn::new(self.shared, cell, work)
    }

    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn try_spawn<F>(self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        if self.shared.bind_runtime().is_err() {
            return Err(TrySpawnError::NoRuntime(future));
        }
        let cell = self.cell(Kind::Plain);
        let entry: Entry = cell.clone();
        // Pinned only once it is accepted, so that a refused future can be given back.
        let mut run = Some(Box::new(Run::new(future, cell.clone(), self.options.timeout)));
        let pin = || -> Work { run.take().map(Box::into_pin).expect("a job is admitted once") };
        let admitted = self.shared.queue().admit(&entry, pin, cell.header.spawned());
        match (admitted, run) {
            (Ok(effects), _) => {
                self.shared.follow(effects);
                Ok(Job::new(cell, self.shared.clone()))
            }
            (Err(Refusal::Full), Some(run)) => Err(TrySpawnError::Full(run.into_future())),
            (Err(Refusal::Closed), Some(run)) => Err(TrySpawnError::Closed(run.into_future())),
            (Err(_), None) => unreachable!("a refused job has not been pinned"),
        }
    }

    /// Like [`Scheduler::spawn_timeout`](crate::Scheduler::spawn_timeout).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn_timeout`](crate::Scheduler::spawn_timeout).
    #[track_caller]
    pub fn spawn_timeout<F>(
        self,
        timeout: Duration,
        future: F,
    ) -> impl Future<Output = Result<Job<Value<F>>, SpawnError>> + Send + 'static + use<F>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let shared = self.shared.clone();
        let spawn = self.spawn(future);
        async move {
            let deadline = Instant::now().checked_add(timeout);
            clock::timeout_at(shared.runtime(), deadline, spawn)
                .await
                .unwrap_or(Err(SpawnError::TimedOut))
        }
    }

    /// Like [`Scheduler::spawn_with`](crate::Scheduler::spawn_with).
    #[track_caller]
    pub fn spawn_with<C, F>(self, make: C) -> Spawn<Value<F>>
    where
        C: FnOnce(JobContext) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let cell = self.cell(Kind::Cooperative(Box::new(Notify::new())));
        let context = JobContext::new(cell.clone());
        // Made inside the job, so that a panic in there is the job's.
        let future = async move { make(context).await };
        let work = Box::pin(Run::new(future, cell.clone(), self.options.timeout));
        Spawn::new(self.shared, cell, work)
    }

    /// Like [`Scheduler::spawn_blocking`](crate::Scheduler::spawn_blocking).
    #[track_caller]
    pub fn spawn_blocking<C, R>(self, closure: C) -> Spawn<R::Value>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        let timeout = self.options.timeout;
        let cell = self.cell(Kind::Blocking(AtomicBool::new(false)));
        let work = Box::pin(run_blocking(closure, cell.clone(), timeout));
        Spawn::new(self.shared, cell, work)
    }

    /// Like [`Scheduler::shield`](crate::Scheduler::shield).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::shield`](crate::Scheduler::shield).
    #[track_caller]
    pub fn shield<F>(
        self,
        future: F,
    ) -> impl Future<Output = Result<F::Output, JobError>> + Send + 'static + use<F>
    where
        F: Future<Output: JobOutput + Send + 'static> + Send + 'static,
    {
        let shared = self.shared.clone();
        let cell = self.cell(Kind::Plain);
        let work = Box::pin(Run::new(future, PassThrough(cell.clone()), self.options.timeout));
        async move {
            shared.bind_runtime().map_err(JobError::refused)?;
            let entry: Entry = cell.clone();
            let admitted = shared.queue().admit_outside(&entry, || work, Instant::now());
            let effects = admitted.map_err(|refusal| JobError::refused(refusal.into()))?;
            shared.follow(effects);
            let mut shielded = Shielded(Job::new(cell, shared));
            match shielded.0.wait().await.map_err(JobError::into_panic) {
                Ok(output) => Ok(output),
                Err(Ok(payload)) => resume_unwind(payload),
                Err(Err(error)) => Err(error),
            }
        }
    }

    #[track_caller]
    fn cell<T>(&self, kind: Kind) -> Arc<Cell<T>> {
        let new_span = |id, name: &dyn fmt::Display, request: Option<&str>| {
            self.shared.new_span(id, name, request)
        };
        let header = Header::new(self.options.clone(), kind, Location::caller(), new_span);
        Arc::new(Cell::new(header))
    }
}

impl fmt::Debug for JobBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

async fn run_blocking<C, R>(
    closure: C,
    cell: Arc<Cell<R::Value>>,
    timeout: Option<Duration>,
) -> Outcome
where
    C: FnOnce() -> R + Send + 'static,
    R: JobOutput + Send + 'static,
{
    let began = Instant::now();
    let in_thread = cell.clone();
    let mut thread = Handle::current().spawn_blocking(move || {
        let header = &in_thread.header;
        let runs = !header.must_stop() && header.take_up();
        runs.then(|| header.span.in_scope(closure))
    });
    let ended = poll_fn(|cx| {
        if cell.header.must_stop() && cell.header.take_up() {
            // No thread will run it, but its handle resolves only when one has had a look.
            thread.abort();
            return Poll::Ready(Ok(None));
        }
        Pin::new(&mut thread).poll(cx)
    })
    .await;
    match (ended, timeout) {
        (Ok(Some(_)), Some(timeout)) if began.elapsed() > timeout => {
            cell.end(JobError::run_timeout(timeout), Outcome::TimedOut)
        }
        (Ok(Some(output)), _) => cell.end_with(output.into_result()),
        (Err(error), _) if error.is_panic() => {
            cell.end(JobError::panicked(error.into_panic()), Outcome::Panicked)
        }
        (Ok(None) | Err(_), _) => cell.end(JobError::cancelled(), Outcome::Cancelled),
    }
}

/// Waits for shielded work. If it goes first, it sees to it that a failure is still told.
struct Shielded<T: JobOutput + Send + 'static>(Job<T>);

impl<T: JobOutput + Send + 'static> Drop for Shielded<T> {
    fn drop(&mut self) {
        let unread = self.0.take_unread().map(|result| {
            result.and_then(|output| output.into_result().map(discard).map_err(JobError::failed))
        });
        if let Some(Err(error)) = unread {
            self.0.report(error);
        }
    }
}

impl From<Refusal> for SpawnError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Self::Full,
            Refusal::Closed => Self::Closed,
        }
    }
}

/// Spawns one job: waits for its place, and gives its handle. Made by
/// [`Scheduler::spawn`](crate::Scheduler::spawn) and its like.
///
/// # Cancel safety
///
/// Dropped before it has resolved, it drops the job, which has not run, and gives up its place in
/// the line.
#[must_use = "a job is spawned only when this is awaited"]
pub struct Spawn<T> {
    shared: Arc<Shared>,
    cell: Option<Arc<Cell<T>>>,
    work: Option<Work>,
    ticket: Option<Ticket>,
}

impl<T> Spawn<T> {
    fn new(shared: &Arc<Shared>, cell: Arc<Cell<T>>, work: Work) -> Self {
        Self { shared: shared.clone(), cell: Some(cell), work: Some(work), ticket: None }
    }

    fn poll_admit(
        &mut self,
        entry: &Entry,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Effects<Entry, Work>, SpawnError>> {
        let mut work = || self.work.take().expect("a job is admitted once");
        let Some(ticket) = self.ticket else {
            let spawned = entry.header().spawned();
            let admitted = self.shared.queue().admit(entry, &mut work, spawned);
            if !matches!(admitted, Err(Refusal::Full))
                || self.shared.config.pending_limit == Some(0)
            {
                return Poll::Ready(admitted.map_err(SpawnError::from));
            }
            // A waker is not ours, and is not cloned under the lock.
            let waker = cx.waker().clone();
            let mut queue = self.shared.queue();
            let admitted = queue.admit(entry, work, spawned);
            if !matches!(admitted, Err(Refusal::Full)) {
                return Poll::Ready(admitted.map_err(SpawnError::from));
            }
            self.ticket = Some(queue.wait(waker));
            return Poll::Pending;
        };
        let waker = cx.waker().clone();
        let mut queue = self.shared.queue();
        if let Some(admitted) = queue.take_turn(ticket, entry, work, Instant::now()) {
            return Poll::Ready(admitted.map_err(SpawnError::from));
        }
        let replaced = queue.wait_on(ticket, waker);
        drop(queue);
        drop(replaced);
        Poll::Pending
    }
}

impl<T: Send + 'static> Future for Spawn<T> {
    type Output = Result<Job<T>, SpawnError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.shared.bind_runtime()?;
        let cell = self.cell.clone().expect("a spawn is not polled after it has resolved");
        let entry: Entry = cell.clone();
        let admitted = ready!(self.poll_admit(&entry, cx));
        self.cell = None;
        self.work = None;
        self.shared.follow(admitted?);
        self.ticket = None;
        Poll::Ready(Ok(Job::new(cell, self.shared.clone())))
    }
}

impl<T> Drop for Spawn<T> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let (effects, waker) = self.shared.queue().leave(ticket, Instant::now());
        drop(waker);
        if let Some(effects) = effects {
            self.shared.follow(effects);
        }
    }
}

impl<T> fmt::Debug for Spawn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawn").field("waiting", &self.ticket.is_some()).finish_non_exhaustive()
    }
}
