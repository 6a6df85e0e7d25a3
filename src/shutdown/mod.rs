//! From the signal to the report: a server and its schedulers shut down in order, under one deadline.
//!
//! This file has all of it, in reading order: [`Shutdown`] with its settings and its order, the
//! [`StopSignal`], the trigger and its signals, the server and its [`ServerOutcome`], and the
//! [`ShutdownReport`].

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{self, Instant},
};

use crate::{
    job::{error::JobError, info::JobInfo, output::JobOutput},
    report::drain_report::DrainReport,
    rules::config,
    scheduler::Scheduler,
    util::{
        one_line::OneLine,
        panics::{catch_panic, drop_contained, forget_panic, ignore_panic},
    },
};

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
type OnUnstarted = Box<dyn Fn(JobInfo) + Send + Sync>;

/// Ends a server and its jobs in order, under one deadline.
///
/// ```no_run
/// # #[cfg(feature = "axum")] mod example {
/// use axum::{Router, routing::get};
/// use tower_jobs::{JobsLayer, Scheduler, Shutdown};
///
/// # async fn main() -> std::io::Result<()> {
/// let scheduler = Scheduler::new();
/// let app = Router::new()
///     .route("/ready", get(tower_jobs::readiness))
///     .layer(JobsLayer::new(scheduler.clone()));
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
///
/// let report = Shutdown::new(&scheduler)
///     .serve(|stop| axum::serve(listener, app).with_graceful_shutdown(stop).into_future())
///     .await;
/// println!("{report}");
/// std::process::exit(if report.is_clean() { 0 } else { 1 });
/// # }
/// # }
/// ```
///
/// # The order
///
/// 1. The signal: SIGTERM or Ctrl-C, or what [`with_trigger`](Self::with_trigger) says. The clock of
///    [`grace`](Self::grace) starts, once and for all that follows.
/// 2. [`Scheduler::is_draining`] turns true, so a readiness probe fails, and
///    [`Scheduler::shutting_down`] resolves, so long streams can end themselves. The server goes
///    on as before for [`readiness_delay`](Self::readiness_delay), until the load balancer has
///    noticed.
/// 3. The server is told to stop accepting, and has [`connection_grace`](Self::connection_grace) to
///    finish its connections. Their handlers may still spawn jobs. A server that has not finished by
///    then is dropped.
/// 4. Jobs have what is left of the grace, less the scheduler's `close_timeout` and 20 ms:
///    [`Scheduler::wait_and_close_within`].
/// 5. What then still runs is told to end, and dropped when it does not: [`Scheduler::close`].
/// 6. With [`and_scheduler`](Self::and_scheduler), the next scheduler goes through 4 and 5.
///
/// A second signal goes straight to 5, for one scheduler after the other; none of them starts a job
/// from then on. A server that ends by itself, fails or panics goes to 4, with the whole grace ahead
/// of it; a first signal then changes nothing.
///
/// # Guarantees
///
/// [`serve`](Self::serve) comes back by the end of the grace (up to 20 ms later for each scheduler if
/// what is left of that is shorter), whatever connections and jobs do, as long as something on this
/// runtime can run: on a current-thread runtime a job that never awaits stops this too. The
/// [`ShutdownReport`] tells what became of everything.
///
/// # What it does not do
///
/// - It does not end the process. A blocking thread that is still at work then holds up the end of
///   the runtime: call [`std::process::exit`], as above, or
///   [`shutdown_timeout`](tokio::runtime::Runtime::shutdown_timeout).
/// - It cannot end connections that a server runs in tasks of its own, as `axum::serve` does. They
///   live until the process ends, and what they spawn once the scheduler is closed is refused.
///
/// # In Kubernetes
///
/// The kubelet runs `preStop`, sends SIGTERM, and kills `terminationGracePeriodSeconds` after it
/// *began*. So the period must hold the hook, the grace, and some room to exit:
///
/// ```yaml
/// spec:
///   terminationGracePeriodSeconds: 35      # 5 (preStop) + 25 (grace) + 5 to spare
///   containers:
///     - name: web
///       lifecycle:
///         preStop: { sleep: { seconds: 5 } }   # until the endpoint is out of the balancers
///       readinessProbe:
///         httpGet: { path: /ready, port: 3000 }
///         periodSeconds: 2
/// ```
///
/// With `preStop` no `readiness_delay` is needed; without it, set one of about two probe periods
/// (it is part of the grace). systemd: `TimeoutStopSec=30` and `KillMode=mixed`. Docker:
/// `docker stop --timeout 30`, and `exec` in the entry point so that the signal arrives.
#[must_use = "nothing is served until `serve` is awaited"]
pub struct Shutdown {
    /// In the order in which they are closed. There is one at least.
    schedulers: Vec<Scheduler>,
    grace: Duration,
    connection_grace: Duration,
    readiness_delay: Duration,
    trigger: Option<Trigger>,
    on_unstarted: Option<OnUnstarted>,
}

impl Shutdown {
    /// A shutdown of `scheduler`, on SIGTERM or Ctrl-C.
    pub fn new(scheduler: &Scheduler) -> Self {
        Self {
            schedulers: vec![scheduler.clone()],
            grace: Duration::from_secs(25),
            connection_grace: Duration::from_secs(10),
            readiness_delay: Duration::ZERO,
            trigger: None,
            on_unstarted: None,
        }
    }

    /// A shutdown of `scheduler` when `trigger` resolves, instead of on a signal. There is then no
    /// second one.
    #[doc(alias = "on")]
    pub fn with_trigger(
        scheduler: &Scheduler,
        trigger: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self { trigger: Some(Trigger::Once(Some(Box::pin(trigger)))), ..Self::new(scheduler) }
    }

    /// Ends another scheduler, too: after the first, so that whose jobs may spawn jobs there to the
    /// last. Its jobs run on until then, and its end is announced at the signal as well.
    ///
    /// Several are ended in the order in which they are given, within the one [`grace`](Self::grace):
    /// each has what is left of that, less the time that closing those after it may take, which is their
    /// `close_timeout` and 20 ms. (All of it together is taken off what connections have.)
    ///
    /// ```
    /// # use tower_jobs::{Scheduler, Shutdown};
    /// let (scheduler, mail) = (Scheduler::new(), Scheduler::builder().limit(5).build());
    /// let shutdown = Shutdown::new(&scheduler).and_scheduler(&mail);
    /// ```
    ///
    /// # Panics
    ///
    /// If it has been given before.
    #[doc(alias = "also")]
    #[track_caller]
    pub fn and_scheduler(mut self, scheduler: &Scheduler) -> Self {
        let is_known = self.schedulers.iter().any(|known| known.is_same(scheduler));
        assert!(!is_known, "a Shutdown ends each scheduler once: {scheduler:?} was given before");
        self.schedulers.push(scheduler.clone());
        self
    }

    /// How long everything together may take, counted from the signal. Defaults to 25 s:
    /// Kubernetes kills after 30. The scheduler's `close_timeout` is taken off first: if that leaves
    /// nothing, the server is dropped and jobs are told to end at the signal.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = accept("grace", grace);
        self
    }

    /// How long connections may take to finish after the server has stopped accepting, within the
    /// grace less the scheduler's `close_timeout` and 20 ms, which are the jobs' own. Defaults to
    /// 10 s.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn connection_grace(mut self, grace: Duration) -> Self {
        self.connection_grace = accept("connection_grace", grace);
        self
    }

    /// How long the server goes on accepting after the signal, within the grace, so that load
    /// balancers can notice. Defaults to none.
    ///
    /// # Panics
    ///
    /// If it is longer than 365 days.
    #[track_caller]
    pub fn readiness_delay(mut self, delay: Duration) -> Self {
        self.readiness_delay = accept("readiness_delay", delay);
        self
    }

    /// Is given every job that never started, once all is over, to save it elsewhere.
    pub fn on_unstarted(mut self, hook: impl Fn(JobInfo) + Send + Sync + 'static) -> Self {
        self.on_unstarted = Some(Box::new(hook));
        self
    }

    /// Runs the server that `serve` makes until it is time to stop, then ends it and the jobs.
    ///
    /// `serve` is given what the server must wait for to stop accepting: see [`Stop`]. The server
    /// may be any future, and give anything; what it gives is in the report. That is logged, too, in
    /// one event of the target `tower_jobs`: at level `INFO`, or `WARN` if the server did not finish
    /// or a job did not end well.
    ///
    /// # Panics
    ///
    /// At once, outside a tokio runtime, and in one without a timer or, if signals are awaited,
    /// without IO. If `serve` itself panics, or what was given to [`with_trigger`](Self::with_trigger). (That the
    /// server's future panics is in the report.)
    ///
    /// # Cancel safety
    ///
    /// Dropped early, it drops the server and leaves the jobs running. After the signal the
    /// scheduler also stays draining, or closed: see [`Scheduler::wait_and_close`].
    pub async fn serve<S: Future>(
        self,
        serve: impl FnOnce(StopSignal) -> S,
    ) -> ShutdownReport<S::Output> {
        // There must be a timer, and to find none at the end would be too late.
        drop(time::sleep(Duration::ZERO));
        // Before the server, so that no signal is missed.
        let mut trigger = self.trigger.unwrap_or_else(Trigger::signals);
        let (stopping, stopped) = watch::channel(false);
        let mut server = Server::new(serve(StopSignal::new(stopped)), stopping);
        let signalled = first(trigger.next(), server.run()).await.is_some();

        let began = Instant::now();
        let deadline = began + self.grace;
        let ends = ends(&self.schedulers, deadline);
        // The time that closing takes is the jobs', whatever else takes its time.
        let before_closing = self.schedulers[0].core().latest_close(ends[0]);
        self.schedulers.iter().for_each(Scheduler::start_draining);
        let jobs = || self.schedulers.iter().map(Scheduler::len).sum::<usize>();
        ignore_panic(
            || tracing::info!(target: "tower_jobs", signalled, jobs = jobs(), "shutting down"),
        );
        let mut phases = PhaseTimings::default();
        let in_order = async {
            if signalled {
                let delay = (began + self.readiness_delay).min(before_closing);
                drop(time::timeout_at(delay, server.run()).await);
                phases.readiness = began.elapsed();
                server.stop();
                let connections = (Instant::now() + self.connection_grace).min(before_closing);
                // However late it is, it is polled once.
                drop(time::timeout_at(connections, server.run()).await);
                phases.connections = began.elapsed() - phases.readiness;
            }
            server.drop_future();
            ignore_panic(|| tracing::info!(target: "tower_jobs", jobs = jobs(), "draining jobs"));
            let mut reports = Vec::new();
            for (scheduler, end) in self.schedulers.iter().zip(&ends) {
                reports.push(scheduler.core().wait_and_close_by(*end).await);
            }
            reports
        };
        let hurry = async {
            if !signalled {
                // The server ended by itself: this is the first signal, and all is in hand.
                trigger.next().await;
            }
            trigger.next().await;
        };
        let closed_in_order = last(hurry, in_order).await;
        let mut reports = match closed_in_order {
            Some(reports) => reports,
            None => {
                ignore_panic(
                    || tracing::warn!(target: "tower_jobs", "signalled again: closing now"),
                );
                server.drop_future();
                // All at once, so that none starts what waits while another ends.
                self.schedulers.iter().for_each(|scheduler| scheduler.core().close_now());
                let mut reports = Vec::new();
                for (scheduler, end) in self.schedulers.iter().zip(&ends) {
                    reports.push(scheduler.core().close_by(*end).await);
                }
                reports
            }
        };
        phases.jobs = began.elapsed() - phases.readiness - phases.connections;

        if let Some(hook) = &self.on_unstarted {
            for job in reports.iter().flat_map(|jobs| jobs.never_started.infos()) {
                if let Err(payload) = catch_panic(|| hook(job.clone())) {
                    ignore_panic(
                        || tracing::error!(target: "tower_jobs", %job, "on_unstarted panicked"),
                    );
                    forget_panic(payload);
                }
            }
        }
        let others = reports.split_off(1);
        let jobs = reports.remove(0);
        let report = ShutdownReport { server: server.end(), jobs, others, phases };
        ignore_panic(|| report.log());
        report
    }
}

/// When each scheduler is to be done, so that closing the last is over by `deadline`.
fn ends(schedulers: &[Scheduler], mut deadline: Instant) -> Vec<Instant> {
    let mut ends = Vec::new();
    for scheduler in schedulers.iter().rev() {
        ends.push(deadline);
        deadline = scheduler.core().latest_close(deadline);
    }
    ends.reverse();
    ends
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown")
            .field("schedulers", &self.schedulers)
            .field("grace", &self.grace)
            .field("connection_grace", &self.connection_grace)
            .field("readiness_delay", &self.readiness_delay)
            .finish_non_exhaustive()
    }
}

#[track_caller]
fn accept(setting: &str, value: Duration) -> Duration {
    if let Err(error) = config::timeout(setting, value) {
        panic!("{error}");
    }
    value
}

/// What `event` gave, unless `other` came first. (Of two that have come, it is `event`.)
async fn first<T>(event: impl Future<Output = T>, other: impl Future) -> Option<T> {
    let (mut event, mut other) = (pin!(event), pin!(other));
    poll_fn(|cx| {
        if let Poll::Ready(value) = event.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        other.as_mut().poll(cx).map(|_| None)
    })
    .await
}

/// What `work` gave, unless `event` came first.
async fn last<T>(event: impl Future, work: impl Future<Output = T>) -> Option<T> {
    let mut given = None;
    first(event, async { given = Some(work.await) }).await;
    given
}

/// Resolves when the server must stop accepting, or has ended: what
/// `axum::serve(..).with_graceful_shutdown(..)` takes. Clones resolve together.
pub struct StopSignal {
    stopped: watch::Receiver<bool>,
    waiting: BoxFuture,
}

impl StopSignal {
    fn new(stopped: watch::Receiver<bool>) -> Self {
        let mut receiver = stopped.clone();
        // The sender goes with the server, and that when all is over.
        let waiting = Box::pin(async move { drop(receiver.wait_for(|stopped| *stopped).await) });
        Self { stopped, waiting }
    }
}

impl Clone for StopSignal {
    fn clone(&self) -> Self {
        Self::new(self.stopped.clone())
    }
}

impl Future for StopSignal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting.as_mut().poll(cx)
    }
}

impl fmt::Debug for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopSignal").field("stopped", &*self.stopped.borrow()).finish()
    }
}

/// When to shut down, and when to hurry.
enum Trigger {
    Once(Option<BoxFuture>),
    Signals(Signals),
}

impl Trigger {
    fn signals() -> Self {
        match Signals::new() {
            Ok(signals) => Self::Signals(signals),
            Err(error) => panic!(
                "cannot await signals: {error}; name another trigger with Shutdown::with_trigger(&scheduler, future)"
            ),
        }
    }

    async fn next(&mut self) {
        match self {
            Self::Signals(signals) => signals.next().await,
            Self::Once(trigger) => {
                match trigger {
                    Some(future) => future.await,
                    None => return std::future::pending().await,
                }
                *trigger = None;
            }
        }
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Self { interrupt: signal(interrupt)?, terminate: signal(terminate)? })
    }

    async fn next(&mut self) {
        first(self.interrupt.recv(), self.terminate.recv()).await;
    }
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn new() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// The server, and how it ended.
struct Server<S: Future> {
    future: Option<Pin<Box<S>>>,
    stopping: watch::Sender<bool>,
    end: ServerOutcome<S::Output>,
}

impl<S: Future> Server<S> {
    fn new(future: S, stopping: watch::Sender<bool>) -> Self {
        Self { future: Some(Box::pin(future)), stopping, end: ServerOutcome::Unfinished }
    }

    /// Tells it to stop accepting.
    fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Resolves when the server has ended.
    async fn run(&mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(future) = &mut self.future else { return Poll::Ready(()) };
        self.end = match catch_panic(|| future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => ServerOutcome::Finished(output),
            Err(payload) => ServerOutcome::Panicked(JobError::panicked(payload)),
        };
        self.drop_future();
        Poll::Ready(())
    }

    fn drop_future(&mut self) {
        // It may have tasks that go on without it.
        self.stop();
        drop_contained(self.future.take());
    }

    fn end(self) -> ServerOutcome<S::Output> {
        self.end
    }
}

/// How the server of a [`Shutdown`] ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServerOutcome<T> {
    /// By itself, with this.
    Finished(T),
    /// Not in time: it was dropped with connections still open.
    Unfinished,
    /// It panicked.
    Panicked(JobError),
}

impl<T> ServerOutcome<T> {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Finished(_) => "finished",
            Self::Unfinished => "unfinished",
            Self::Panicked(_) => "panicked",
        }
    }
}

/// How long the phases of a shutdown took. Together they are all the time from the signal on; if
/// the server ended by itself, from then on, all in `jobs`. So is the time of a phase that a second
/// signal broke off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PhaseTimings {
    /// From the signal until the server was told to stop accepting.
    pub readiness: Duration,
    /// From then until the server ended, or was dropped.
    pub connections: Duration,
    /// From then until the last job ended, or was given up.
    pub jobs: Duration,
}

/// What a [`Shutdown`] did. `Display` is one line; it says of a server that gave an error that it
/// finished, since only the caller knows what an output means: see [`is_clean`](Self::is_clean).
#[derive(Debug)]
#[non_exhaustive]
pub struct ShutdownReport<T> {
    /// How the server ended.
    pub server: ServerOutcome<T>,
    /// What became of the jobs, from the signal on.
    pub jobs: DrainReport,
    /// What became of those of the schedulers given to [`Shutdown::and_scheduler`], in that order.
    pub others: Vec<DrainReport>,
    /// How long it took.
    pub phases: PhaseTimings,
}

impl<T: JobOutput> ShutdownReport<T> {
    /// Whether the server finished without an error and every job ended well. What an exit code of
    /// 0 should mean. (Of a server in a task of its own the output is the `Result` of its `JoinHandle`:
    /// an error inside that is none here.)
    pub fn is_clean(&self) -> bool {
        matches!(&self.server, ServerOutcome::Finished(output) if !output.is_failure())
            && self.ended_well()
    }
}

impl<T> ShutdownReport<T> {
    fn ended_well(&self) -> bool {
        self.jobs.is_clean() && self.others.iter().all(DrainReport::is_clean)
    }

    fn log(&self) {
        let PhaseTimings { readiness, connections, jobs } = self.phases;
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    target: "tower_jobs",
                    server = self.server.as_str(),
                    ?readiness,
                    ?connections,
                    ?jobs,
                    "{self}"
                )
            };
        }
        let well = matches!(self.server, ServerOutcome::Finished(_)) && self.ended_well();
        if well { event!(info) } else { event!(warn) }
    }
}

impl<T> fmt::Display for ShutdownReport<T> {
    /// `server finished; drained in 12 ms: 3 completed`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {}", self.server.as_str())?;
        let panic = match &self.server {
            ServerOutcome::Panicked(error) => error.panic_text(),
            _ => None,
        };
        if let Some(text) = panic {
            write!(f, " ({})", OneLine(text))?;
        }
        write!(f, "; {}", self.jobs)?;
        self.others.iter().try_for_each(|jobs| write!(f, "; {jobs}"))
    }
}

#[cfg(feature = "serde")]
impl<T> serde::Serialize for ShutdownReport<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut report = serializer.serialize_struct("ShutdownReport", 4)?;
        report.serialize_field("server", self.server.as_str())?;
        report.serialize_field("jobs", &self.jobs)?;
        report.serialize_field("others", &self.others)?;
        report.serialize_field("phases", &self.phases)?;
        report.end()
    }
}
