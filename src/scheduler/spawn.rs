use std::{
    borrow::Cow, fmt, future::Future, marker::PhantomData, panic::Location, sync::Arc,
    time::Duration,
};

use crate::{
    job::{
        body::{AsResult, Body, Packed, PassThrough, Run, Unpacked},
        boxed::{GiveBack, box_large, box_large_closure, is_large},
        error::{JobError, SpawnError, TrySpawnError},
        options::{JobFlags, JobKind, Options},
        output::JobOutput,
        record::Record,
        surroundings::Surroundings,
    },
    report::observer::RefusalReason,
    rules::{
        config,
        step::{Admit, Refusal, UniqueKey},
    },
    run::core::{Core, Mode},
    scheduler::{
        blocking::{BlockingBody, BlockingCall, BlockingRun},
        handle::{Job, JobContext},
        shield::ShieldedWork,
        spawn_future::SpawnFuture,
    },
};

/// The value of a job made of the future `F`.
pub(crate) type Value<F> = <<F as Future>::Output as JobOutput>::Value;

/// Spawns one job with options; made by [`Scheduler::job`] or [`Jobs::job`].
///
/// Each verb does the same as the verb of that name of the scheduler.
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

    /// Sets the job's name in logs, listings and reports.
    ///
    /// Defaults to the place in the code where it is spawned: `src/main.rs:12:5`.
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.options.set_name(name.into());
        self
    }

    /// Sets the job's label in logs, listings and reports, where the label of its request is otherwise.
    ///
    /// It is for work that another process or a message asked for: the label tells where it comes from. Like a
    /// request's, it holds no personal data. Defaults to the request's label, or none.
    pub fn label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.options.set_label(label.into());
        self
    }

    /// Sets the maximum time that the job may run, from its start.
    ///
    /// Defaults to no limit. A job that runs longer is dropped at its current `await`, and has failed. A
    /// blocking job cannot be interrupted: it keeps its permit until it returns, and has then failed; its
    /// time counts from when a thread begins it. On a runtime without a timer (`enable_time`) the job
    /// panics when it first waits.
    ///
    /// It is a timer of tokio: while a job blocks the thread that drives those, it is late. A job that returns
    /// only after its time was over has failed with a timeout too, and its result is dropped.
    ///
    /// Do not use it around a client that keeps a connection whose exchange was cut short, such as the default
    /// `pool` of `lettre` 0.11: the next user of that connection reads the answers of the last. Set the client's
    /// own timeout instead. A `tokio::task::spawn_blocking` inside the job runs on after the timeout, outside
    /// the [`limit`](crate::SchedulerBuilder::limit): use the verb [`spawn_blocking`](Self::spawn_blocking).
    ///
    /// # Panics
    ///
    /// If `timeout` is zero, or longer than 365 days.
    #[track_caller]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        if let Err(error) = config::run_timeout(timeout) {
            panic!("{error}");
        }
        self.options.set_timeout(timeout);
        self
    }

    /// Sets a key, such as a tenant, whose jobs share a limit.
    ///
    /// At most [`limit_per_key`](crate::SchedulerBuilder::limit_per_key) jobs of one key run at once. The
    /// others wait in the queue, in order, and do not block jobs of other keys. Without that setting the
    /// key is shown in listings and reports, and limits nothing.
    ///
    /// Shielded work is outside this limit too.
    #[doc(alias = "key")]
    pub fn concurrency_key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.options.set_key(key.into());
        self
    }

    /// Allows at most one unfinished job with this key.
    ///
    /// While one is deferred, pending or active, another is refused with [`SpawnError::Duplicate`], or
    /// with [`TrySpawnError::Duplicate`] by the verbs that do not wait. The error has the id of the
    /// unfinished job.
    ///
    /// These keys are unrelated to those of [`concurrency_key`](Self::concurrency_key).
    #[doc(alias = "unique")]
    pub fn unique_key(self, key: impl Into<Arc<str>>) -> Self {
        self.set_unique(key.into(), false)
    }

    /// Like [`unique_key`](Self::unique_key), and replaces an unstarted job of the key.
    ///
    /// The replaced job is dropped and counts as cancelled. If both are pending jobs, the new job keeps the
    /// other's turn. If either is deferred, the new one joins the queue at its own time. If the other job runs, it goes on, and the new one is refused.
    #[doc(alias = "unique_or_replace")]
    pub fn unique_key_or_replace(self, key: impl Into<Arc<str>>) -> Self {
        self.set_unique(key.into(), true)
    }

    fn set_unique(mut self, key: Arc<str>, replace: bool) -> Self {
        self.options.set_unique(UniqueKey { key, replace });
        self
    }

    /// Like [`Scheduler::spawn`](crate::Scheduler::spawn).
    // Most calls have a future type of their own, so this code is duplicated anyway. Inlined, its result
    // is not moved.
    #[inline(always)]
    #[track_caller]
    pub fn spawn<F>(self, future: F) -> SpawnFuture<Value<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        box_large!(future: F => self.spawn_boxed(future))
    }

    #[inline(always)]
    #[track_caller]
    pub(crate) fn spawn_boxed<F>(self, future: F) -> SpawnFuture<Value<F>>
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
        box_large!(future: F => self.try_spawn_boxed(future))
    }

    #[inline(always)]
    #[track_caller]
    pub(crate) fn try_spawn_boxed<F, G>(self, future: G) -> Result<Job<Value<G>>, TrySpawnError<F>>
    where
        G: Future<Output: JobOutput> + GiveBack<F> + Send + 'static,
    {
        self.try_spawn_as(Some(Admit::Limited), future)
    }

    #[inline(always)]
    #[track_caller]
    pub(super) fn try_spawn_as<F, G>(
        self,
        how: Option<Admit>,
        future: G,
    ) -> Result<Job<Value<G>>, TrySpawnError<F>>
    where
        G: Future<Output: JobOutput> + GiveBack<F> + Send + 'static,
    {
        let core = self.core;
        let (record, run) =
            self.pack(JobKind::Plain, |record| Run::<_, AsResult>::new(future, record));
        match admit_now(core, &record, run, how) {
            Ok(()) => Ok(Job::new(record, core.clone())),
            Err(error) => Err(error.map(|run| run.into_future().give_back())),
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
    #[doc(alias = "spawn_timeout")]
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
        box_large!(future: F => self.spawn_boxed(future)).within(timeout, is_inline)
    }

    /// Like [`Scheduler::spawn_with`](crate::Scheduler::spawn_with).
    #[track_caller]
    pub fn spawn_with<C, F>(self, make: C) -> SpawnFuture<Value<F>>
    where
        C: FnOnce(JobContext) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        box_large_closure!(make: C => self.spawn_with_boxed(make))
    }

    #[track_caller]
    pub(crate) fn spawn_with_boxed<C, F>(self, make: C) -> SpawnFuture<Value<F>>
    where
        C: FnOnce(JobContext) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        if const { is_large::<F>() } {
            return self.spawn_with_small(|context| Box::pin(make(context)));
        }
        self.spawn_with_small(make)
    }

    #[track_caller]
    fn spawn_with_small<C, F>(self, make: C) -> SpawnFuture<Value<F>>
    where
        C: FnOnce(JobContext) -> F + Send + 'static,
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let (core, timeout) = (self.core, self.timeout_for(JobKind::Cooperative));
        let (record, run) = self.pack(JobKind::Cooperative, |record| {
            // An unstarted job must not keep its scheduler.
            let (core, in_job) = (Arc::downgrade(core), record.clone());
            // Called inside the job, so that its time counts from there, and a panic of `make` is the job's.
            let future = async move {
                let core = core.upgrade().expect("a runner has it");
                make(JobContext::new(in_job, core, timeout)).await
            };
            Run::<_, AsResult>::new(future, record)
        });
        SpawnFuture::new(core, record, run.into_work())
    }

    /// Like [`Scheduler::spawn_blocking`](crate::Scheduler::spawn_blocking).
    #[track_caller]
    pub fn spawn_blocking<C, R>(self, closure: C) -> SpawnFuture<R::Value>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        box_large_closure!(closure: C => self.spawn_blocking_boxed(closure))
    }

    #[track_caller]
    pub(crate) fn spawn_blocking_boxed<C, R>(self, closure: C) -> SpawnFuture<R::Value>
    where
        C: FnOnce() -> R + Send + 'static,
        R: JobOutput + Send + 'static,
    {
        let core = self.core;
        let call = |closure: C, ()| closure();
        let (record, run) = self.pack_blocking(BlockingCall { closure, input: (), call });
        SpawnFuture::new(core, record, run.into_work())
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
        box_large!(future: F => self.shield_boxed(future)).run()
    }

    #[track_caller]
    pub(crate) fn shield_boxed<F>(self, future: F) -> ShieldedWork<F::Output>
    where
        F: Future<Output: JobOutput + Send + 'static> + Send + 'static,
    {
        let core = self.core.clone();
        let (record, run) =
            self.pack(JobKind::Shielded, |record| Run::<_, PassThrough>::new(future, record));
        ShieldedWork { core, record, work: run.into_work(), output: PhantomData }
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
        let timeout = self.timeout_for(kind);
        let (record, surroundings) = self.open(kind);
        let packed = Packed::new(|| body(&record), timeout, surroundings);
        (record, packed)
    }

    /// Makes the record and body of a blocking job. The thread that runs it keeps its run timeout.
    #[track_caller]
    pub(crate) fn pack_blocking<C, I, R>(
        self,
        call: BlockingCall<C, I, R>,
    ) -> (Arc<Record>, Packed<BlockingBody<C, I, R>>)
    where
        C: Send + 'static,
        I: Send + 'static,
        R: JobOutput + Send + 'static,
    {
        let timeout = self.timeout_for(JobKind::Blocking);
        let (record, surroundings) = self.open(JobKind::Blocking);
        let run = BlockingRun::new(call, record.clone(), timeout, surroundings.clone());
        let packed = Packed::new(|| Run::new(run, &record), None, surroundings);
        (record, packed)
    }

    /// The job's run timeout: its own, else the scheduler's, unless its output belongs to a caller.
    #[inline(always)]
    fn timeout_for(&self, kind: JobKind) -> Option<Duration> {
        let default = self.core.config.job_timeout.filter(|_| kind != JobKind::Shielded);
        self.options.timeout().or(default)
    }

    /// Makes the job's record and surroundings. Takes the options apart, since copying them costs more.
    #[inline(always)]
    #[track_caller]
    fn open(self, kind: JobKind) -> Unpacked {
        let Options { group, flags, location, extras } = self.options;
        let location = location.unwrap_or(Location::caller());
        let record = Record::new(location, group, extras, kind, flags);
        let surroundings = Surroundings::new(&self.core.ties, &record);
        (record, surroundings)
    }
}

/// Admits the job without waiting, or gives it back. `None` admits it with a held permit.
pub(crate) fn admit_now<B: Body + 'static>(
    core: &Arc<Core>,
    record: &Arc<Record>,
    body: Packed<B>,
    how: Option<Admit>,
) -> Result<(), TrySpawnError<B>> {
    if core.bind_runtime().is_err() {
        core.refuse(RefusalReason::NoRuntime, record);
        return Err(TrySpawnError::NoRuntime(body.into_body()));
    }
    let mut body = Some(body);
    let mut take = || body.take().expect("admitted once").into_work();
    let admitted = match how {
        Some(how) => core.admit(how, record, &mut take),
        None => core.admit_reserved(record, &mut take),
    };
    if let Err(refusal) = admitted {
        core.refuse(refusal.reason(), record);
    }
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
