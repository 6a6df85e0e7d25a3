use std::{
    borrow::Cow,
    fmt,
    future::Future,
    marker::PhantomData,
    panic::{Location, resume_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    job::{
        body::{AsResult, Body, Packed, PassThrough, Run, Stored, Unpacked, Work},
        error::{JobError, SpawnError, TrySpawnError},
        options::{JobFlags, JobKind, Options},
        output::JobOutput,
        record::Record,
        span::JobSpan,
    },
    rules::{
        config,
        keys::Ticket,
        step::{Admit, Refusal, UniqueKey},
    },
    run::{
        core::{Core, Mode},
        deadlines,
    },
    scheduler::{
        blocking::run_blocking,
        handle::{Job, JobContext},
    },
    util::panics::{catch_panic, drop_contained},
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
    pub(crate) core: &'a Arc<Core>,
    options: Options,
    pub(crate) scope: S,
}

impl<'a, S: 'static> JobBuilder<'a, S> {
    pub(crate) fn new(core: &'a Arc<Core>, options: Options, scope: S) -> Self {
        Self { core, options, scope }
    }

    /// The job's name in logs, listings and reports. Defaults to where it is spawned.
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.options.set_name(name.into());
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
        self.options.set_key(key.into());
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

    /// Like [`unique_key`](Self::unique_key), but this job replaces the other if that has not started.
    ///
    /// The other job is dropped and counts as cancelled. If both are pending jobs, this one keeps the
    /// other's turn. If either is deferred, this one joins the line at its own time. A running job is
    /// not replaced: this one is refused.
    #[doc(alias = "unique_or_replace")]
    pub fn unique_key_or_replace(self, key: impl Into<Arc<str>>) -> Self {
        self.set_unique(key.into(), true)
    }

    fn set_unique(mut self, key: Arc<str>, replace: bool) -> Self {
        self.options.set_unique(UniqueKey { key, replace });
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
        let core = self.core;
        let (record, run) =
            self.pack(JobKind::Plain, |record| Run::<_, AsResult>::new(future, record));
        SpawnFuture::new(core, record, run.into_work())
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
        let core = self.core;
        let (record, run) =
            self.pack(JobKind::Plain, |record| Run::<_, AsResult>::new(future, record));
        match admit_now(core, &record, run, Admit::Limited) {
            Ok(()) => Ok(Job::new(record, core.clone())),
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
        let is_inline = self.core.mode == Mode::Inline;
        let spawn = self.spawn(future);
        async move {
            let deadline = Instant::now().checked_add(timeout);
            // Inline there is no wait for a place, and what takes its time is the job.
            let deadline = deadline.filter(|_| !is_inline);
            deadlines::timeout_at(deadline, spawn).await.unwrap_or(Err(SpawnError::TimedOut))
        }
    }

    /// Like [`Scheduler::spawn_with`](crate::Scheduler::spawn_with).
    #[track_caller]
    pub fn spawn_with<C, F>(self, make: C) -> SpawnFuture<Value<F>>
    where
        C: FnOnce(JobContext) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let core = self.core;
        let (record, run) = self.pack(JobKind::Cooperative, |record| {
            let context = JobContext::new(record.clone());
            // Made inside the job, so that a panic in there is the job's.
            Run::<_, AsResult>::new(async move { make(context).await }, record)
        });
        SpawnFuture::new(core, record, run.into_work())
    }

    /// Like [`Scheduler::spawn_blocking`](crate::Scheduler::spawn_blocking).
    #[track_caller]
    pub fn spawn_blocking<C, R>(mut self, closure: C) -> SpawnFuture<R::Value>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        let core = self.core;
        let timeout = self.options.timeout.take();
        let (record, span) = self.open(JobKind::Blocking);
        let run = run_blocking(closure, record.clone(), timeout, span.clone());
        let packed = Packed::new(|| Run::<_, Stored>::new(run, &record), None, span);
        SpawnFuture::new(core, record, packed.into_work())
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
        let core = self.core.clone();
        let (record, run) =
            self.pack(JobKind::Shielded, |record| Run::<_, PassThrough>::new(future, record));
        async move {
            core.bind_runtime().map_err(JobError::refused)?;
            // Refused, it is dropped after unlocking: that is user code.
            let mut work = Some(run.into_work());
            let mut take = || work.take().expect("admitted once");
            let admitted = core.admit(Admit::Outside, &record, &mut take);
            admitted.map_err(|refusal| JobError::refused(refusal.into()))?;
            let mut shielded = Shielded(Job::new(record, core));
            match shielded.0.wait().await.map_err(JobError::into_panic) {
                Ok(output) => Ok(output),
                Err(Ok(payload)) => resume_unwind(payload),
                Err(Err(error)) => Err(error),
            }
        }
    }

    pub(crate) fn flags(mut self, flags: JobFlags) -> Self {
        self.options.flags = flags;
        self
    }

    /// Makes the job's record and body.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn pack<B: Body + 'static>(
        self,
        kind: JobKind,
        body: impl FnOnce(&Arc<Record>) -> B,
    ) -> (Arc<Record>, Packed<B>) {
        let timeout = self.options.timeout;
        let (record, span) = self.open(kind);
        let packed = Packed::new(|| body(&record), timeout, span);
        (record, packed)
    }

    /// Makes the job's record and span. Takes the options apart, since copying them costs more.
    #[inline(always)]
    #[track_caller]
    fn open(self, kind: JobKind) -> Unpacked {
        let Options { group, timeout: _, flags, location, extras } = self.options;
        let location = location.unwrap_or(Location::caller());
        let record = Record::new(location, group, extras, kind, flags);
        let span = JobSpan::new(self.core.span, &record);
        (record, span)
    }
}

/// Admits the job without waiting, or gives it back.
pub(crate) fn admit_now<B: Body + 'static>(
    core: &Arc<Core>,
    record: &Arc<Record>,
    body: Packed<B>,
    how: Admit,
) -> Result<(), TrySpawnError<B>> {
    if core.bind_runtime().is_err() {
        return Err(TrySpawnError::NoRuntime(body.into_body()));
    }
    let mut body = Some(body);
    let mut take = || body.take().expect("admitted once").into_work();
    let admitted = core.admit(how, record, &mut take);
    match (admitted, body.map(Packed::into_body)) {
        (Ok(()), _) => Ok(()),
        (Err(Refusal::Full), Some(body)) => Err(TrySpawnError::Full(body)),
        (Err(Refusal::DeferredFull), Some(body)) => Err(TrySpawnError::DeferredFull(body)),
        (Err(Refusal::Closed), Some(body)) => Err(TrySpawnError::Closed(body)),
        (Err(Refusal::Duplicate(id)), Some(body)) => Err(TrySpawnError::Duplicate(body, id)),
        (Err(_), None) => unreachable!("the body of a refused job stays here"),
    }
}

impl<S> fmt::Debug for JobBuilder<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(f)
    }
}

/// Waits for shielded work. If it goes first, it sees to it that a failure is still told.
struct Shielded<T: JobOutput + Send + 'static>(Job<T>);

impl<T: JobOutput + Send + 'static> Drop for Shielded<T> {
    fn drop(&mut self) {
        let error = match self.0.take_result_if_unread() {
            None => return,
            Some(Err(error)) => error,
            Some(Ok(output)) => match catch_panic(|| output.into_result()) {
                Ok(Ok(value)) => return drop_contained(value),
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
    inline: Option<Job<T>>,
}

struct Target {
    core: Arc<Core>,
    record: Arc<Record>,
}

impl<T> SpawnFuture<T> {
    #[inline(always)]
    fn new(core: &Arc<Core>, record: Arc<Record>, work: Work) -> Self {
        Self {
            target: Some(Target { core: core.clone(), record }),
            work: Some(work),
            ticket: None,
            value: PhantomData,
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
            this.give_up();
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
