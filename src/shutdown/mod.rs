//! From the signal to the report: a server and its schedulers shut down in order, under one deadline.
//!
//! In reading order:
//!
//! 1. This file: [`Shutdown::serve`], the order.
//! 2. `settings`: the settings.
//! 3. `signals`: the signal thread of the process.
//! 4. `server`: the server, its [`StopSignal`] and its outcome.
//! 5. `parts`: the other parts of the application that end with it.
//! 6. `log`: log lines, on a plain thread.
//! 7. `report`: the [`ShutdownReport`].

mod log;
mod parts;
mod report;
mod server;
mod settings;
mod signals;

use std::{
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{self, Instant},
};

use self::{
    log::Log,
    parts::{Part, Parts},
    server::Server,
    signals::{Listener, Trigger},
};
pub use self::{
    parts::{PartContext, PartOutcome, PartReport},
    report::{PhaseTimings, ShutdownReport, UnfinishedHooks},
    server::{ServerOutcome, ServerOutput, StopSignal},
};
use crate::{
    report::{drain_report::DrainReport, job_list::JobList},
    run::{
        close::HOOK_GRACE,
        deadlines::{real_timeout, timeout_at},
        hooks::Hooks,
    },
    scheduler::Scheduler,
    util::panics::{catch_panic, forget_panic},
};

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
type OnUnstarted = Box<dyn FnOnce(JobList) -> BoxFuture + Send>;

/// The default of [`Shutdown::grace`].
const GRACE: Duration = Duration::from_secs(25);
/// How long `serve` waits for its log lines within the grace, and beyond its end.
const LOG_GRACE: Duration = Duration::from_secs(1);
const LATE_LOG_GRACE: Duration = Duration::from_millis(50);

/// Ends a server and its jobs in order, under one deadline.
///
/// ```no_run
/// # #[cfg(feature = "axum")] mod example {
/// use std::process::ExitCode;
///
/// use axum::{Router, routing::get};
/// use tower_jobs::{JobsLayer, Scheduler, Shutdown};
///
/// fn main() -> ExitCode {
///     let runtime = tokio::runtime::Runtime::new().expect("a runtime");
///     let report = runtime.block_on(async {
///         let scheduler = Scheduler::new();
///         let shutdown = Shutdown::new(&scheduler); // hears SIGTERM and Ctrl-C from here on
///         let app = Router::new()
///             .route("/ready", get(tower_jobs::readiness))
///             .layer(JobsLayer::new(scheduler.clone()));
///         let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await.expect("a port");
///         let serve = axum::serve(listener, app);
///         shutdown.serve(|stop| serve.with_graceful_shutdown(stop).into_future()).await
///     });
///     runtime.shutdown_background(); // a blocking job may still hold a thread
///     report.print();
///     ExitCode::from(report)
/// }
/// # }
/// ```
///
/// This `main` returns about a second after the grace at the latest, also if a blocking job is still at
/// work and standard output is a full pipe. Guards of log writers are dropped as it returns, so their
/// buffers are written: hold them in `main`, and do not call `std::process::exit`.
///
/// # The order
///
/// 1. The signal: SIGTERM or SIGINT (on Windows Ctrl-C, Break, Close or Shutdown), or the trigger of
///    [`with_trigger`](Self::with_trigger). The clock of [`grace`](Self::grace) starts, for all that
///    follows.
/// 2. [`Scheduler::is_draining`] turns true, so a readiness probe fails. [`Scheduler::shutting_down`]
///    resolves, so long streams can end themselves. The server goes on accepting for
///    [`readiness_delay`](Self::readiness_delay), until the load balancer has noticed.
/// 3. The stop signal: the server stops accepting, and has [`connection_grace`](Self::connection_grace)
///    to finish its connections. Their handlers may still spawn jobs. A server that has not finished by
///    then is dropped, and jobs that wait for the end of their response start.
/// 4. Jobs have the rest of the grace, less the scheduler's `close_timeout`, 20 ms,
///    [`unstarted_grace`](Self::unstarted_grace) and [`part_grace`](Self::part_grace). The scheduler's own `wait_timeout` does not apply.
/// 5. Jobs still running then are cancelled, and dropped if they do not end: [`Scheduler::close`].
/// 6. With [`and_scheduler`](Self::and_scheduler), the next scheduler goes through 4 and 5.
/// 7. Each [`part`](Self::part) of the application that waits for the end of the jobs goes on, and has
///    [`part_grace`](Self::part_grace) at least.
///
/// A server that ends by itself, fails or panics goes to 4, with the whole grace ahead of it. A first
/// signal then changes nothing.
///
/// # Signals
///
/// One thread of the process hears them, from [`new`](Self::new) on: before `serve`, as the first process
/// of a container, and while a job blocks a worker.
///
/// - A signal before `serve` is polled: the server is not started, and the jobs are drained.
/// - Another one within a second is a repeat of the same, such as that of `timeout`, which signals its
///   child and the child's group.
/// - A later one goes straight to 5, for one scheduler after the other. No job starts from then on.
/// - The next one ends the process as the signal does by default (exit code 128 + n for the first
///   process of a container). So does the next one once `serve` has returned, and one that comes after
///   the grace if `serve` has not been polled. Another `Shutdown` that can use the signal prevents it,
///   and so does [`late_signals_end_process(false)`](Self::late_signals_end_process).
///
/// # Guarantees
///
/// [`serve`](Self::serve) returns when the grace ends, at most 20 ms later per scheduler, 20 ms later for the
/// parts and 50 ms later for the log, as long as one worker of the runtime is free: on a current-thread runtime a job that never
/// awaits stops this too. That holds while log lines cannot be written, and while hooks block: log lines
/// and hooks have plain threads.
///
/// # What it does not do
///
/// - It does not end the process. A blocking thread that is still at work holds up the drop of a runtime:
///   end it with [`shutdown_background`](tokio::runtime::Runtime::shutdown_background), as above.
/// - It cannot end connections that a server runs in tasks of its own, as `axum::serve` does. They live
///   until the process ends, and the jobs that they spawn once the scheduler is closed are refused.
/// - It does not protect itself from the server: dropping the server's future runs its `Drop`.
/// - A liveness probe is refused once the server has stopped accepting, while jobs drain. Kubernetes does
///   not probe a terminating pod; where another supervisor does, serve `/live` from a listener of its own.
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
///
#[doc = picture!("shutdown")]
#[must_use = "nothing is served until `serve` is awaited"]
pub struct Shutdown {
    /// In the order in which they are closed. There is one at least.
    schedulers: Vec<Scheduler>,
    grace: Duration,
    connection_grace: Duration,
    readiness_delay: Duration,
    unstarted_grace: Duration,
    part_grace: Duration,
    trigger: Trigger,
    on_unstarted: Option<OnUnstarted>,
    parts: Vec<Part>,
}

impl Shutdown {
    /// Creates a shutdown of `scheduler` on SIGTERM and SIGINT, which are heard from here on.
    ///
    /// Call it early: a signal during the start of the application is then answered in order. Needs no
    /// runtime.
    ///
    /// # Panics
    ///
    /// If the system refuses a signal handler, or the thread that hears signals.
    #[track_caller]
    pub fn new(scheduler: &Scheduler) -> Self {
        match Listener::new(GRACE) {
            Ok(listener) => Self::triggered_by(scheduler, Trigger::Signals(listener)),
            Err(error) => panic!(
                "cannot hear signals: {error}; name another trigger with \
                 Shutdown::with_trigger(&scheduler, future)"
            ),
        }
    }

    /// Creates a shutdown of `scheduler` when `trigger` resolves. No signal is touched.
    ///
    /// There is no second trigger that would close at once.
    #[doc(alias = "on")]
    pub fn with_trigger(
        scheduler: &Scheduler,
        trigger: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self::triggered_by(scheduler, Trigger::Once(Some(Box::pin(trigger))))
    }

    fn triggered_by(scheduler: &Scheduler, trigger: Trigger) -> Self {
        Self {
            schedulers: vec![scheduler.clone()],
            grace: GRACE,
            connection_grace: Duration::from_secs(10),
            readiness_delay: Duration::ZERO,
            unstarted_grace: Duration::from_secs(2),
            part_grace: Duration::from_secs(2),
            trigger,
            on_unstarted: None,
            parts: Vec::new(),
        }
    }

    /// Runs the server that `serve` makes until the signal, then ends it and the jobs.
    ///
    /// `serve` is called with the [`StopSignal`] that ends the server in order. The server may be any
    /// future with a [`ServerOutput`], which is in the report. The report is logged too, in one event of
    /// the target `tower_jobs`: at level `INFO`, or `WARN` if it is not
    /// [clean](ShutdownReport::is_clean).
    ///
    /// # Panics
    ///
    /// At once, outside a tokio runtime, in one without a timer, and with a
    /// [`readiness_delay`](Self::readiness_delay) as long as the grace. If `serve` itself panics, or the
    /// trigger of [`with_trigger`](Self::with_trigger). A panic of the server's future is in the report.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, it drops the server and the parts, and leaves the jobs running. After the signal the scheduler stays
    /// draining, or closed. See [`Scheduler::wait_and_close`].
    pub async fn serve<S>(self, serve: impl FnOnce(StopSignal) -> S) -> ShutdownReport<S::Output>
    where
        S: Future<Output: ServerOutput>,
    {
        // There must be a timer. At the end it would be too late to find none.
        drop(time::sleep(Duration::ZERO));
        self.refuse_long_delay();
        let (unstarted_grace, part_grace) = self.used_graces();
        let Self { schedulers, grace, mut trigger, on_unstarted, parts, .. } = self;
        if let Some(listener) = trigger.listener() {
            listener.start_serving();
        }
        let is_early = trigger.listener().is_some_and(Listener::has_heard);
        let mut parts = Parts::start(parts);
        let mut server = if is_early { Server::not_started() } else { Server::start(serve) };
        let signalled = first(trigger.next(), server.run()).await.is_some();

        let began = Instant::now();
        let deadline = began + grace;
        parts.begin(deadline);
        let ends = ends(&schedulers, deadline - unstarted_grace - part_grace);
        // The time that closing takes is the jobs', however long the server takes.
        let before_closing = schedulers[0].core().latest_close(ends[0]);
        for (scheduler, end) in schedulers.iter().zip(&ends) {
            // By this moment its jobs must have ended: closing takes the rest of the time.
            scheduler.core().set_deadline(scheduler.core().latest_close(*end));
            scheduler.start_draining();
        }
        let jobs = || schedulers.iter().map(Scheduler::len).sum::<usize>();
        let (log, count) = (Log::start(), jobs());
        log.line(move || {
            tracing::info!(target: "tower_jobs", signalled, jobs = count, "shutting down");
        });
        let mut phases = PhaseTimings::default();
        let in_order = async {
            if signalled {
                let delay = (began + self.readiness_delay).min(before_closing);
                drop(timeout_at(Some(delay), server.run()).await);
                phases.readiness = began.elapsed();
                server.stop();
            }
            let connections = (Instant::now() + self.connection_grace).min(before_closing);
            if signalled {
                // However late it is, the server is polled once.
                drop(timeout_at(Some(connections), server.run()).await);
                phases.connections = began.elapsed() - phases.readiness;
            }
            let give_up_at = if server.has_ended() { connections } else { began };
            server.drop_future();
            let count = jobs();
            log.line(move || {
                tracing::info!(target: "tower_jobs", jobs = count, "draining jobs");
            });
            let give_up = async {
                drop(timeout_at(Some(give_up_at), pending::<()>()).await);
                schedulers.iter().for_each(|scheduler| scheduler.core().give_up_responses());
                pending::<()>().await;
            };
            let drain = async {
                let mut reports = Vec::new();
                for (scheduler, end) in schedulers.iter().zip(&ends) {
                    reports.push(scheduler.core().wait_and_close_by(*end).await);
                }
                reports
            };
            last(give_up, drain).await.unwrap_or_default()
        };
        // If the server ended by itself, the first signal changes nothing.
        let mut is_first = !signalled;
        let closed_in_order = last(trigger.next_that_hurries(&mut is_first), in_order).await;
        let is_hurried = closed_in_order.is_none();
        let mut reports = match closed_in_order {
            Some(reports) => reports,
            None => {
                log.line(|| tracing::warn!(target: "tower_jobs", "signalled again: closing now"));
                server.drop_future();
                // All at once, so that none starts a job while another ends.
                schedulers.iter().for_each(|scheduler| scheduler.core().close_now());
                let mut reports = Vec::new();
                for (scheduler, end) in schedulers.iter().zip(&ends) {
                    reports.push(scheduler.core().close_by(*end).await);
                }
                reports
            }
        };
        phases.jobs = began.elapsed() - phases.readiness - phases.connections;

        let unstarted = run_on_unstarted(on_unstarted, &reports);
        let left = (deadline - part_grace).saturating_duration_since(Instant::now());
        let left = if is_hurried { left.min(unstarted_grace) } else { left };
        let hooks =
            || schedulers.iter().map(|scheduler| &scheduler.core().hooks).chain([&unstarted]);
        let all_ended = async {
            for hooks in hooks() {
                hooks.all_ended().await;
            }
        };
        drop(real_timeout(left.max(HOOK_GRACE), all_ended).await);
        parts.tell_jobs_over(deadline);
        let end = deadline.max(Instant::now() + HOOK_GRACE);
        let mut is_cut_short = is_hurried;
        if !is_cut_short {
            let ended = timeout_at(Some(end), parts.all_ended());
            let hurry = trigger.next_that_hurries(&mut is_first);
            is_cut_short = last(hurry, ended).await.is_none();
        }
        // A signal leaves them no more than their own grace.
        if is_cut_short {
            let end = end.min(Instant::now() + part_grace);
            parts.tell_jobs_over(end);
            drop(timeout_at(Some(end), parts.all_ended()).await);
        }
        let report = ShutdownReport {
            server: server.into_outcome(),
            signalled,
            jobs: reports.remove(0),
            others: reports,
            totals: schedulers.iter().map(Scheduler::stats).collect(),
            phases,
            parts: parts.into_reports().await,
            unfinished_hooks: UnfinishedHooks {
                on_failure: schedulers.iter().map(|each| each.core().hooks.unfinished()).sum(),
                on_unstarted: unstarted.unfinished() > 0,
            },
        };
        log.report(&report);
        let left = deadline.saturating_duration_since(Instant::now());
        log.flush(left.clamp(LATE_LOG_GRACE, LOG_GRACE)).await;
        report
    }
}

/// Starts the hook on a thread, if there are jobs for it.
fn run_on_unstarted(hook: Option<OnUnstarted>, reports: &[DrainReport]) -> Hooks {
    let hooks = Hooks::default();
    let jobs = JobList::merge(reports.iter().map(|report| &report.never_started));
    let (Some(hook), Ok(runtime), false) = (hook, Handle::try_current(), jobs.is_empty()) else {
        return hooks;
    };
    hooks.run(None, move || {
        #[expect(clippy::disallowed_methods, reason = "on a thread of its own")]
        let run = || runtime.block_on(async { hook(jobs).await });
        if let Err(payload) = catch_panic(run) {
            tracing::error!(target: "tower_jobs", "on_unstarted panicked");
            forget_panic(payload);
        }
    });
    hooks
}

/// The end of each scheduler's time, so that closing the last is over by `deadline`.
fn ends(schedulers: &[Scheduler], mut deadline: Instant) -> Vec<Instant> {
    let mut ends = Vec::new();
    for scheduler in schedulers.iter().rev() {
        ends.push(deadline);
        deadline = scheduler.core().latest_close(deadline);
    }
    ends.reverse();
    ends
}

/// Output of `event`, unless `other` resolves first. If both are ready, `event` is.
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

/// Output of `work`, unless `event` resolves first.
async fn last<T>(event: impl Future, work: impl Future<Output = T>) -> Option<T> {
    let mut given = None;
    first(event, async { given = Some(work.await) }).await;
    given
}
