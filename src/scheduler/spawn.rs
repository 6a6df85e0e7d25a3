use std::{
    borrow::Cow,
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    panic::{Location, resume_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{runtime::Handle, time::Instant};

use crate::{
    http::request::Request,
    job::body::{Body, Keep, Packed, PassThrough, Run, Stored, Unpacked, Work},
    job::error::{JobError, SpawnError, TrySpawnError},
    job::output::JobOutput,
    job::record::{Kind, Options, Record},
    job::span::{JobSpan, in_span},
    rules::config,
    rules::keys::Ticket,
    rules::queue::{Admit, Refusal, Unique},
    rules::state::{Outcome, ResponseOutcome},
    run::runner::Shared,
    scheduler::handle::{Job, JobContext},
    util::clock,
    util::panics::{contain, discard},
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
        self.options.name(name.into());
        self
    }

    /// How long the job may run, counted from its start. Defaults to any time.
    ///
    /// A job that runs longer is dropped where it stands, and has failed. A blocking one cannot be
    /// interrupted: it keeps its place until it returns, and has then failed; its time counts from
    /// when a thread takes it up. On a runtime without a timer (`enable_time`) the job panics when it
    /// first waits.
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
    #[doc(alias = "key")]
    pub fn concurrency_key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.options.key(key.into());
        self
    }

    /// Sees to it that there is one job of this key: while one is deferred, pending or active,
    /// another is refused with [`SpawnError::Duplicate`] ([`TrySpawnError::Duplicate`] from the
    /// verbs that do not wait), which has the first one's id.
    ///
    /// These keys have nothing to do with those of [`concurrency_key`](Self::concurrency_key).
    #[doc(alias = "unique")]
    pub fn unique_key(self, key: impl Into<Arc<str>>) -> Self {
        self.set_unique(key.into(), false)
    }

    /// Like [`unique_key`](Self::unique_key), but where the other job has not started, this one replaces it,
    /// at the end of the line: the other is dropped and counts as cancelled. One that runs is left
    /// alone, and this one refused.
    #[doc(alias = "unique_or_replace")]
    pub fn unique_key_or_replace(self, key: impl Into<Arc<str>>) -> Self {
        self.set_unique(key.into(), true)
    }

    fn set_unique(mut self, key: Arc<str>, replace: bool) -> Self {
        self.options.unique(Unique { key, replace });
        self
    }

    /// Like [`Scheduler::spawn`](crate::Scheduler::spawn).
    // Most calls are of a future of their own type, and become code of their own anyway; what comes
    // back need not be moved then.
    #[inline(always)]
    #[track_caller]
    pub fn spawn<F>(self, future: F) -> SpawnFuture<Value<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let shared = self.shared;
        let (record, run) = self.pack(Kind::Plain, |record| Run::<_, Keep>::new(future, record));
        SpawnFuture::new(shared, record, run.into_work())
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
        let shared = self.shared;
        let (record, run) = self.pack(Kind::Plain, |record| Run::<_, Keep>::new(future, record));
        match admit_now(shared, &record, run, Admit::Limited) {
            Ok(()) => Ok(Job::new(record, shared.clone())),
            Err(error) => Err(error.map(Run::into_future)),
        }
    }

    /// Like [`Scheduler::spawn_within`](crate::Scheduler::spawn_within).
    ///
    /// # Errors
    ///
    /// Like [`Scheduler::spawn_within`](crate::Scheduler::spawn_within).
    ///
    /// # Panics
    ///
    /// Like [`Scheduler::spawn_within`](crate::Scheduler::spawn_within).
    #[track_caller]
    pub fn spawn_within<F>(
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
    pub fn spawn_with<C, F>(self, make: C) -> SpawnFuture<Value<F>>
    where
        C: FnOnce(JobContext) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let shared = self.shared;
        let (record, run) = self.pack(Kind::Cooperative, |record| {
            let context = JobContext::new(record.clone());
            // Made inside the job, so that a panic in there is the job's.
            Run::<_, Keep>::new(async move { make(context).await }, record)
        });
        SpawnFuture::new(shared, record, run.into_work())
    }

    /// Like [`Scheduler::spawn_blocking`](crate::Scheduler::spawn_blocking).
    #[track_caller]
    pub fn spawn_blocking<C, R>(mut self, closure: C) -> SpawnFuture<R::Value>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        let shared = self.shared;
        let timeout = self.options.timeout.take();
        let (record, span) = self.open(Kind::Blocking);
        let run = run_blocking(closure, record.clone(), timeout, span.clone());
        let packed = Packed::new(|| Run::<_, Stored>::new(run, &record), None, span);
        SpawnFuture::new(shared, record, packed.into_work())
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
        let (record, run) =
            self.pack(Kind::Shielded, |record| Run::<_, PassThrough>::new(future, record));
        async move {
            shared.bind_runtime().map_err(JobError::refused)?;
            // Refused, it is dropped after unlocking: that is user code.
            let mut work = Some(run.into_work());
            let mut take = || work.take().expect("admitted once");
            let admitted = shared.admit(Admit::Outside, &record, &mut take);
            admitted.map_err(|refusal| JobError::refused(refusal.into()))?;
            let mut shielded = Shielded(Job::new(record, shared));
            match shielded.0.wait().await.map_err(JobError::into_panic) {
                Ok(output) => Ok(output),
                Err(Ok(payload)) => resume_unwind(payload),
                Err(Err(error)) => Err(error),
            }
        }
    }

    /// A job's record, and its body.
    #[inline(always)]
    #[track_caller]
    fn pack<B: Body + 'static>(
        self,
        kind: Kind,
        body: impl FnOnce(&Arc<Record>) -> B,
    ) -> (Arc<Record>, Packed<B>) {
        let timeout = self.options.timeout;
        let (record, span) = self.open(kind);
        let packed = Packed::new(|| body(&record), timeout, span);
        (record, packed)
    }

    /// A job's record, and its span.
    #[inline(always)]
    #[track_caller]
    fn open(self, kind: Kind) -> Unpacked {
        let Options { request, timeout: _, serves, location, extras } = self.options;
        let kind = if serves { Kind::Serving } else { kind };
        self.shared.open(location.unwrap_or(Location::caller()), request, extras, kind)
    }
}

/// Admits the job without waiting, or gives it back.
fn admit_now<B: Body + 'static>(
    shared: &Arc<Shared>,
    record: &Arc<Record>,
    body: Packed<B>,
    how: Admit,
) -> Result<(), TrySpawnError<B>> {
    if shared.bind_runtime().is_err() {
        return Err(TrySpawnError::NoRuntime(body.into_body()));
    }
    let mut body = Some(body);
    let mut take = || body.take().expect("admitted once").into_work();
    let admitted = shared.admit(how, record, &mut take);
    match (admitted, body.map(Packed::into_body)) {
        (Ok(()), _) => Ok(()),
        (Err(Refusal::Full), Some(body)) => Err(TrySpawnError::Full(body)),
        (Err(Refusal::Closed), Some(body)) => Err(TrySpawnError::Closed(body)),
        (Err(Refusal::Duplicate(id)), Some(body)) => Err(TrySpawnError::Duplicate(body, id)),
        (Err(_), None) => unreachable!("the body of a refused job stays here"),
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
        self.defer(future, |_| true)
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
        let told = Told::Make { make: Some(make), request: self.request().clone() };
        self.defer(told, |_| true).map_err(|error| error.map(Told::into_make))
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
        self.defer(future, ResponseOutcome::is_success)
    }

    #[track_caller]
    fn defer<F>(
        self,
        future: F,
        wanted: fn(ResponseOutcome) -> bool,
    ) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let (shared, request) = (self.shared, self.request().clone());
        let kind = if request.is_multiplexed() { Kind::Polite } else { Kind::Plain };
        let (record, run) = self.pack(kind, |record| Run::<_, Keep>::new(future, record));
        admit_now(shared, &record, run, Admit::Deferred)
            .map_err(|error| error.map(Run::into_future))?;
        let (entry, owner) = (record.clone(), shared.clone());
        request.when_over(Box::new(move |outcome| {
            if wanted(outcome) { owner.begin(&entry) } else { owner.skip(&entry) }
        }));
        Ok(Job::new(record, shared.clone()))
    }

    fn request(&self) -> &Arc<Request> {
        self.options.request.as_ref().expect("a request's builder has one")
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
        self.options.fmt(f)
    }
}

async fn run_blocking<C, R>(
    closure: C,
    record: Arc<Record>,
    timeout: Option<Duration>,
    span: Option<JobSpan>,
) -> Outcome
where
    C: FnOnce() -> R + Send + 'static,
    R: JobOutput + Send + 'static,
{
    let in_thread = record.clone();
    let run = move || {
        let runs = !in_thread.must_stop() && in_thread.take_up();
        let began = Instant::now();
        runs.then(|| (closure(), began.elapsed()))
    };
    #[expect(clippy::disallowed_methods, reason = "a job is polled inside its runtime")]
    let runtime = Handle::current();
    let mut closure = Unrun { closure: Some(run), span };
    let mut thread = runtime.spawn_blocking(move || {
        let run = closure.closure.take();
        in_span(closure.span.as_ref(), || run.and_then(|run| run()))
    });
    let ended = poll_fn(|cx| {
        if record.must_stop() && record.take_up() {
            // No thread will run it, but its handle resolves only when one has had a look.
            thread.abort();
            return Poll::Ready(Ok(None));
        }
        Pin::new(&mut thread).poll(cx)
    })
    .await;
    match (ended, timeout) {
        (Ok(Some((_, took))), Some(timeout)) if took > timeout => {
            record.end(JobError::run_timeout(timeout), Outcome::TimedOut)
        }
        (Ok(Some((output, _))), _) => record.end_with(output.into_result()),
        (Err(error), _) if error.is_panic() => {
            record.end(JobError::panicked(error.into_panic()), Outcome::Panicked)
        }
        (Ok(None) | Err(_), _) => record.end(JobError::cancelled(), Outcome::Cancelled),
    }
}

/// A closure that no thread may ever come to: it is then dropped where it belongs.
struct Unrun<C> {
    closure: Option<C>,
    span: Option<JobSpan>,
}

impl<C> Drop for Unrun<C> {
    fn drop(&mut self) {
        if let Some(closure) = self.closure.take() {
            in_span(self.span.as_ref(), || discard(closure));
        }
    }
}

/// Waits for shielded work. If it goes first, it sees to it that a failure is still told.
struct Shielded<T: JobOutput + Send + 'static>(Job<T>);

impl<T: JobOutput + Send + 'static> Drop for Shielded<T> {
    fn drop(&mut self) {
        let error = match self.0.take_unread() {
            None => return,
            Some(Err(error)) => error,
            Some(Ok(output)) => match contain(|| output.into_result()) {
                Ok(Ok(value)) => return discard(value),
                Ok(Err(error)) => JobError::failed(error),
                Err(payload) => JobError::panicked(payload),
            },
        };
        self.0.report(error);
    }
}

/// Spawns one job: waits for its place, and gives its handle. Made by
/// [`Scheduler::spawn`](crate::Scheduler::spawn) and its like.
///
/// # Cancel safety
///
/// Dropped before it has resolved, it drops the job, which has not run, and gives up its place in
/// the line.
#[doc(alias = "Spawn")]
#[must_use = "a job is spawned only when this is awaited"]
pub struct SpawnFuture<T> {
    /// Present until this resolves.
    target: Option<Target>,
    work: Option<Work>,
    ticket: Option<Ticket>,
    value: PhantomData<fn() -> T>,
    /// Spawned, and awaited, since this is a test.
    #[cfg(feature = "testing")]
    inline: Option<Job<T>>,
}

struct Target {
    shared: Arc<Shared>,
    record: Arc<Record>,
}

impl<T> SpawnFuture<T> {
    #[inline(always)]
    fn new(shared: &Arc<Shared>, record: Arc<Record>, work: Work) -> Self {
        Self {
            target: Some(Target { shared: shared.clone(), record }),
            work: Some(work),
            ticket: None,
            value: PhantomData,
            #[cfg(feature = "testing")]
            inline: None,
        }
    }

    /// Neither its work nor a place that it was granted is held until this is dropped.
    #[cold]
    fn give_up(&mut self) {
        self.leave();
        self.work = None;
        self.target = None;
    }

    fn leave(&mut self) {
        if let (Some(ticket), Some(target)) = (self.ticket.take(), &self.target) {
            target.shared.leave(ticket);
        }
    }
}

impl<T: Send + 'static> Future for SpawnFuture<T> {
    type Output = Result<Job<T>, SpawnError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        #[cfg(feature = "testing")]
        if let Some(job) = self.inline.take() {
            return self.poll_inline(job, cx);
        }
        let this = &mut *self;
        let Target { shared, record } =
            this.target.as_ref().expect("a spawn is not polled after it has resolved");
        let admitted = ready!(shared.poll_admit(record, &mut this.work, &mut this.ticket, cx));
        if let Err(error) = admitted {
            this.give_up();
            return Poll::Ready(Err(error));
        }
        let Target { shared, record } = this.target.take().expect("polled just now");
        #[cfg(feature = "testing")]
        if shared.is_inline() {
            return self.poll_inline(Job::new(record, shared), cx);
        }
        Poll::Ready(Ok(Job::new(record, shared)))
    }
}

#[cfg(feature = "testing")]
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
        self.leave();
    }
}

impl<T> fmt::Debug for SpawnFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnFuture")
            .field("waiting", &self.ticket.is_some())
            .finish_non_exhaustive()
    }
}
