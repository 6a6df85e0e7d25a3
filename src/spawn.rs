use std::{
    borrow::Cow,
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    mem,
    panic::{Location, resume_unwind},
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{runtime::Handle, sync::Notify, time::Instant};
use tracing::Span;

use crate::{
    clock, config,
    contain::discard,
    error::{JobError, SpawnError, TrySpawnError},
    job::{Cell, Header, Job, JobContext, JobOutput, Kind, Options, PassThrough, Run, Work},
    lanes::Ticket,
    queue::{Admit, Effects, Refusal, Unique},
    request::{Request, ResponseOutcome},
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
pub struct JobBuilder<'a, S = ()> {
    shared: &'a Arc<Shared>,
    options: Options,
    scope: PhantomData<S>,
}

/// Marks a [`JobBuilder`] made by [`Jobs::job`](crate::Jobs::job), which can also defer a job until
/// the response is over.
#[derive(Clone, Copy, Debug)]
pub enum RequestScope {}

impl<'a, S: 'static> JobBuilder<'a, S> {
    pub(crate) fn new(shared: &'a Arc<Shared>, options: Options) -> Self {
        Self { shared, options, scope: PhantomData }
    }

    /// The job's name in logs, listings and reports. Defaults to where it is spawned.
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// How long the job may run, counted from its start. Defaults to any time.
    ///
    /// A job that runs longer is dropped where it stands, and has failed. A blocking one cannot be
    /// interrupted: it keeps its place until it returns, and has then failed; its time counts from
    /// when a thread takes it up.
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

    /// Names what the job works on, such as a tenant. At most
    /// [`limit_per_key`](crate::SchedulerBuilder::limit_per_key) jobs of one key run at once; the
    /// others wait in the queue, in order, and keep no other key's jobs from running. Without that
    /// setting the key is shown in listings and reports, and limits nothing.
    ///
    /// Shielded work is outside this limit too.
    pub fn key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.options.keys.key = Some(key.into());
        self
    }

    /// Sees to it that there is one job of this key: while one is deferred, pending or active,
    /// another is refused with [`SpawnError::Duplicate`], which has the first one's id.
    ///
    /// These keys have nothing to do with those of [`key`](Self::key).
    pub fn unique(self, key: impl Into<Arc<str>>) -> Self {
        self.set_unique(key.into(), false)
    }

    /// Like [`unique`](Self::unique), but where the other job has not started, this one replaces it,
    /// at the end of the line: the other is dropped and counts as cancelled. One that runs is left
    /// alone, and this one refused.
    pub fn unique_or_replace(self, key: impl Into<Arc<str>>) -> Self {
        self.set_unique(key.into(), true)
    }

    fn set_unique(mut self, key: Arc<str>, replace: bool) -> Self {
        self.options.keys.unique = Some(Unique { key, replace });
        self
    }

    /// Like [`Scheduler::spawn`](crate::Scheduler::spawn).
    #[track_caller]
    pub fn spawn<F>(self, future: F) -> Spawn<Value<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let cell = self.cell(Kind::Plain);
        let run = Run::new(future, cell.clone(), self.options.timeout);
        let span = self.shared.new_span(&cell.header);
        Spawn::new(self.shared, cell, Work { future: Box::pin(run), span })
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
        let cell = self.cell(Kind::Plain);
        let run = Run::new(future, cell.clone(), self.options.timeout);
        match self.admit_now(&cell, run, Admit::Limited) {
            Ok(()) => Ok(Job::new(cell, self.shared.clone())),
            Err(error) => Err(error.map(Run::into_future)),
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
    ) -> impl Future<Output = Result<Job<Value<F>>, SpawnError>> + Send + 'static + use<F, S>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        #[cfg(feature = "testing")]
        let is_inline = self.shared.is_inline();
        let spawn = self.spawn(future);
        async move {
            let deadline = Instant::now().checked_add(timeout);
            // Inline there is no wait for a place, and what takes its time is the job.
            #[cfg(feature = "testing")]
            let deadline = deadline.filter(|_| !is_inline);
            clock::timeout_at(deadline, spawn).await.unwrap_or(Err(SpawnError::TimedOut))
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
        let run = Run::new(future, cell.clone(), self.options.timeout);
        let span = self.shared.new_span(&cell.header);
        Spawn::new(self.shared, cell, Work { future: Box::pin(run), span })
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
        let span = self.shared.new_span(&cell.header);
        let run = run_blocking(closure, cell.clone(), timeout, span.clone());
        Spawn::new(self.shared, cell, Work { future: Box::pin(run), span })
    }

    /// Like [`Scheduler::shield`](crate::Scheduler::shield).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::shield`](crate::Scheduler::shield).
    ///
    /// # Panics
    ///
    /// Like [`Scheduler::shield`](crate::Scheduler::shield).
    #[track_caller]
    pub fn shield<F>(
        self,
        future: F,
    ) -> impl Future<Output = Result<F::Output, JobError>> + Send + 'static + use<F, S>
    where
        F: Future<Output: JobOutput + Send + 'static> + Send + 'static,
    {
        let shared = self.shared.clone();
        let cell = self.cell(Kind::Plain);
        let run = Run::new(future, PassThrough(cell.clone()), self.options.timeout);
        let work = Work { future: Box::pin(run), span: shared.new_span(&cell.header) };
        async move {
            shared.bind_runtime().map_err(JobError::refused)?;
            let entry: Entry = cell.clone();
            // Refused, it is dropped after unlocking: that is user code.
            let mut work: Option<Work> = Some(work);
            let take = || work.take().expect("admitted once");
            let admitted = shared.queue().admit(Admit::Outside, &entry, take, Instant::now());
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

    /// Admits the job without waiting, or gives it back.
    fn admit_now<T, R>(
        &self,
        cell: &Arc<Cell<T>>,
        run: R,
        how: Admit,
    ) -> Result<(), TrySpawnError<R>>
    where
        T: Send + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        if self.shared.bind_runtime().is_err() {
            return Err(TrySpawnError::NoRuntime(run));
        }
        let entry: Entry = cell.clone();
        // Pinned only once it is accepted, so that a refused future can be given back.
        let mut run = Some(Box::new(run));
        let mut span = self.shared.new_span(&cell.header);
        let pin = || {
            let future = run.take().map(Box::into_pin).expect("admitted once");
            Work { future, span: mem::replace(&mut span, Span::none()) }
        };
        let admitted = self.shared.queue().admit(how, &entry, pin, cell.header.spawned());
        match (admitted, run) {
            (Ok(effects), _) => {
                self.shared.follow(effects);
                Ok(())
            }
            (Err(Refusal::Full), Some(run)) => Err(TrySpawnError::Full(*run)),
            (Err(Refusal::Closed), Some(run)) => Err(TrySpawnError::Closed(*run)),
            (Err(Refusal::Duplicate(id)), Some(run)) => Err(TrySpawnError::Duplicate(*run, id)),
            (Err(_), None) => unreachable!("a refused job has not been pinned"),
        }
    }

    #[track_caller]
    fn cell<T>(&self, kind: Kind) -> Arc<Cell<T>> {
        Arc::new(Cell::new(Header::new(self.options.clone(), kind, Location::caller())))
    }
}

/// Jobs that start when the response is over.
impl JobBuilder<'_, RequestScope> {
    /// Like [`Jobs::after_response`](crate::Jobs::after_response).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn after_response<F>(self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let cell = self.cell(Kind::Plain);
        let run = Run::new(future, cell.clone(), self.options.timeout);
        self.defer(cell, run, |_| true).map_err(|error| error.map(Run::into_future))
    }

    /// Like [`Jobs::after_response_with`](crate::Jobs::after_response_with).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn after_response_with<C, F>(self, make: C) -> Result<Job<Value<F>>, TrySpawnError<C>>
    where
        C: FnOnce(ResponseOutcome) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let cell = self.cell(Kind::Plain);
        let told = Told::Make { make: Some(make), request: self.request().clone() };
        let run = Run::new(told, cell.clone(), self.options.timeout);
        self.defer(cell, run, |_| true)
            .map_err(|error| error.map(|run| run.into_future().into_make()))
    }

    /// Like [`Jobs::after_success`](crate::Jobs::after_success).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::try_spawn`](crate::Scheduler::try_spawn).
    #[track_caller]
    pub fn after_success<F>(self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let cell = self.cell(Kind::Plain);
        let run = Run::new(future, cell.clone(), self.options.timeout);
        self.defer(cell, run, ResponseOutcome::is_success)
            .map_err(|error| error.map(Run::into_future))
    }

    fn defer<T, R>(
        &self,
        cell: Arc<Cell<T>>,
        run: R,
        wanted: fn(ResponseOutcome) -> bool,
    ) -> Result<Job<T>, TrySpawnError<R>>
    where
        T: Send + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        self.admit_now(&cell, AfterOthers::new(run), Admit::Deferred)
            .map_err(|error| error.map(|run| run.future))?;
        let entry: Entry = cell.clone();
        let shared = self.shared.clone();
        self.request().when_over(Box::new(move |outcome| {
            if wanted(outcome) { shared.begin(&entry) } else { shared.skip(&entry) }
        }));
        Ok(Job::new(cell, self.shared.clone()))
    }

    fn request(&self) -> &Arc<Request> {
        self.options.request.as_ref().expect("a request's builder has one")
    }
}

pin_project! {
    /// Lets the tasks that are ready go first. Over HTTP/2 a response's body is dropped in another
    /// task than the one that writes it: a job that blocked this thread at once would hold up the
    /// very response it waited for.
    struct AfterOthers<F> {
        waited: bool,
        #[pin]
        future: F,
    }
}

impl<F> AfterOthers<F> {
    fn new(future: F) -> Self {
        Self { waited: false, future }
    }
}

impl<F: Future> Future for AfterOthers<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if mem::replace(this.waited, true) {
            return this.future.poll(cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

pin_project! {
    /// A job's future that is made once the response is over, and told how it ended.
    #[project = ToldProjection]
    enum Told<C, F> {
        Make { make: Option<C>, request: Arc<Request> },
        Made { #[pin] future: F },
    }
}

impl<C, F> Told<C, F> {
    fn into_make(self) -> C {
        match self {
            Self::Make { make: Some(make), .. } => make,
            _ => unreachable!("a job that was not accepted has not run"),
        }
    }
}

impl<C, F> Future for Told<C, F>
where
    C: FnOnce(ResponseOutcome) -> F,
    F: Future,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            let future = match self.as_mut().project() {
                ToldProjection::Made { future } => return future.poll(cx),
                ToldProjection::Make { make, request } => {
                    let outcome =
                        request.outcome().expect("a deferred job starts after its response");
                    make.take().expect("made once")(outcome)
                }
            };
            self.set(Self::Made { future });
        }
    }
}

impl<S> fmt::Debug for JobBuilder<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobBuilder")
            .field("name", &self.options.name)
            .field("timeout", &self.options.timeout)
            .finish_non_exhaustive()
    }
}

async fn run_blocking<C, R>(
    closure: C,
    cell: Arc<Cell<R::Value>>,
    timeout: Option<Duration>,
    span: Span,
) -> Outcome
where
    C: FnOnce() -> R + Send + 'static,
    R: JobOutput + Send + 'static,
{
    let in_thread = cell.clone();
    let run = move || {
        let header = &in_thread.header;
        let runs = !header.must_stop() && header.take_up();
        let began = Instant::now();
        runs.then(|| (closure(), began.elapsed()))
    };
    #[expect(clippy::disallowed_methods, reason = "a job is polled inside its runtime")]
    let runtime = Handle::current();
    let mut thread = runtime.spawn_blocking(move || span.in_scope(run));
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
        (Ok(Some((_, took))), Some(timeout)) if took > timeout => {
            cell.end(JobError::run_timeout(timeout), Outcome::TimedOut)
        }
        (Ok(Some((output, _))), _) => cell.end_with(output.into_result()),
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
            Refusal::Duplicate(id) => Self::Duplicate(id),
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
    /// Spawned, and awaited, since this is a test.
    #[cfg(feature = "testing")]
    inline: Option<Job<T>>,
}

impl<T> Spawn<T> {
    fn new(shared: &Arc<Shared>, cell: Arc<Cell<T>>, work: Work) -> Self {
        Self {
            shared: shared.clone(),
            cell: Some(cell),
            work: Some(work),
            ticket: None,
            #[cfg(feature = "testing")]
            inline: None,
        }
    }

    fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let (effects, waker) = self.shared.queue().leave(ticket, Instant::now());
        drop(waker);
        self.shared.follow(effects);
    }

    fn poll_admit(
        &mut self,
        entry: &Entry,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Effects<Entry, Work>, SpawnError>> {
        let mut work = || self.work.take().expect("a job is admitted once");
        let Some(ticket) = self.ticket else {
            let now = Instant::now();
            let admitted = self.shared.queue().admit(Admit::Limited, entry, &mut work, now);
            if !matches!(admitted, Err(Refusal::Full))
                || self.shared.config.pending_limit == Some(0)
            {
                return Poll::Ready(admitted.map_err(SpawnError::from));
            }
            // A waker is not ours, and is not cloned under the lock.
            let waker = cx.waker().clone();
            let mut queue = self.shared.queue();
            let admitted = queue.admit(Admit::Limited, entry, work, now);
            if !matches!(admitted, Err(Refusal::Full)) {
                return Poll::Ready(admitted.map_err(SpawnError::from));
            }
            self.ticket = Some(queue.wait(entry, waker));
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
        #[cfg(feature = "testing")]
        if let Some(job) = self.inline.take() {
            return self.poll_inline(job, cx);
        }
        self.shared.bind_runtime()?;
        let cell = self.cell.clone().expect("a spawn is not polled after it has resolved");
        let entry: Entry = cell.clone();
        let admitted = ready!(self.poll_admit(&entry, cx));
        self.cell = None;
        self.work = None;
        let effects = match admitted {
            Ok(effects) => effects,
            Err(error) => {
                // A place that it was granted is not held until this is dropped.
                self.leave();
                return Poll::Ready(Err(error));
            }
        };
        self.ticket = None;
        self.shared.follow(effects);
        let job = Job::new(cell, self.shared.clone());
        #[cfg(feature = "testing")]
        if self.shared.is_inline() {
            return self.poll_inline(job, cx);
        }
        Poll::Ready(Ok(job))
    }
}

#[cfg(feature = "testing")]
impl<T: Send + 'static> Spawn<T> {
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

impl<T> Drop for Spawn<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<T> fmt::Debug for Spawn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawn").field("waiting", &self.ticket.is_some()).finish_non_exhaustive()
    }
}
