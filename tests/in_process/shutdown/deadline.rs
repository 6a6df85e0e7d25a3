//! `Shutdown`: its order, its one deadline, its report and its settings.

use std::{
    future::{pending, ready},
    io,
    panic::resume_unwind,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc as blocking,
    },
    thread::{self, Thread},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Request, StatusCode},
    routing,
};
use http_body_util::Empty;
use tokio::{
    net::TcpStream,
    sync::{Notify, broadcast, mpsc, oneshot},
    task::{spawn_blocking, yield_now},
    time::{Instant, sleep},
};
use tower_jobs::{
    JobList, Jobs, JobsLayer, Scheduler, ServerOutcome, Shutdown, ShutdownReport, SpawnError,
    liveness, readiness,
};
use tracing::{Event, Subscriber};
use tracing_subscriber::{Layer, layer::Context};

use super::at_once;
use crate::support::{
    SECOND, YEAR,
    http::{get, listen, send},
    logs::subscribe,
    names, panic_text, within,
};

const MS: Duration = Duration::from_millis(1);
/// The time that closing keeps for the drop of aborted jobs.
const LANDING: Duration = Duration::from_millis(20);

/// Keeps a paused clock from advancing by itself while the test waits for sockets.
struct Frozen(#[allow(dead_code, reason = "its drop ends the thread")] blocking::Sender<()>);

fn freeze() -> Frozen {
    let (sender, receiver) = blocking::channel::<()>();
    drop(spawn_blocking(move || receiver.recv()));
    Frozen(sender)
}

// The order.

#[tokio::test(start_paused = true)]
async fn readiness_goes_off_while_the_server_still_accepts() {
    let scheduler = Scheduler::new();
    let signs = Arc::new([Notify::new(), Notify::new()]);
    let [begun, go] = &*signs;
    type Signs = Arc<[Notify; 2]>;
    async fn hold(State(signs): State<Signs>, jobs: Jobs) -> Result<StatusCode, SpawnError> {
        signs[0].notify_one();
        signs[1].notified().await;
        jobs.spawn(sleep(SECOND)).await?;
        Ok(StatusCode::ACCEPTED)
    }
    let app = Router::new()
        .route("/ready", routing::get(readiness))
        .route("/live", routing::get(liveness))
        .route("/hold", routing::post(hold))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(signs.clone());
    let (listener, address) = listen().await;
    let (signal, signalled) = oneshot::channel::<()>();
    let (stopped, stopping) = oneshot::channel();
    let shutdown = Shutdown::with_trigger(&scheduler, async { drop(signalled.await) })
        .readiness_delay(5 * SECOND);
    let serving = tokio::spawn(shutdown.serve(|stop| {
        let stop = async move {
            stop.await;
            stopped.send(()).unwrap();
        };
        axum::serve(listener, app).with_graceful_shutdown(stop).into_future()
    }));

    let frozen = freeze();
    assert_eq!(get(address, "/ready").await.status, StatusCode::OK);
    assert_eq!(get(address, "/live").await.status, StatusCode::OK);
    let under_way =
        tokio::spawn(send(address, Request::post("/hold").body(Empty::<Bytes>::new()).unwrap()));
    begun.notified().await;
    assert!(!scheduler.is_draining());

    signal.send(()).unwrap();
    scheduler.shutting_down().await;
    assert!(scheduler.is_draining());
    // Each request has a connection of its own, so the server still accepts.
    assert_eq!(get(address, "/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(address, "/live").await.status, StatusCode::OK);

    drop(frozen);
    stopping.await.unwrap();
    let frozen = freeze();
    while TcpStream::connect(address).await.is_ok() {
        yield_now().await;
    }
    assert!(!scheduler.is_closed());
    go.notify_one();
    let answer = under_way.await.unwrap().unwrap();
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    drop(frozen);

    let report = serving.await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.jobs.completed, 1);
    assert_eq!(report.phases.readiness, 5 * SECOND);
    assert!(scheduler.is_closed());
}

#[tokio::test(start_paused = true)]
async fn each_step_comes_at_its_time() {
    let scheduler = Scheduler::new();
    let (events, mut seen) = mpsc::unbounded_channel();
    let began = Instant::now();
    let note = move |event: &'static str, events: &Events| {
        events.send((event, began.elapsed().as_secs())).unwrap();
    };
    type Events = mpsc::UnboundedSender<(&'static str, u64)>;
    let job = {
        let events = events.clone();
        async move |context: tower_jobs::JobContext| {
            context.cancelled().await;
            note("jobs cancelled", &events);
        }
    };
    scheduler.spawn_with(job).await.unwrap();
    let watch = {
        let (scheduler, events) = (scheduler.clone(), events.clone());
        async move {
            scheduler.shutting_down().await;
            note("draining", &events);
        }
    };
    tokio::spawn(watch);
    struct Dropped(Events, Instant);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.send(("server dropped", self.1.elapsed().as_secs())).unwrap();
        }
    }
    let report = Shutdown::with_trigger(&scheduler, sleep(SECOND))
        .readiness_delay(2 * SECOND)
        .connection_grace(4 * SECOND)
        .serve(|stop| async move {
            let _dropped = Dropped(events.clone(), began);
            stop.await;
            note("stop accepting", &events);
            pending::<()>().await;
        })
        .await;
    assert!(matches!(report.server, ServerOutcome::Unfinished));
    let mut order = Vec::new();
    while let Some(event) = seen.recv().await {
        order.push(event);
    }
    // The signal comes after 1 s. Of the grace of 25 s, 120 ms are kept for closing.
    assert_eq!(
        order,
        [("draining", 1), ("stop accepting", 3), ("server dropped", 7), ("jobs cancelled", 25)]
    );
}

#[tokio::test(start_paused = true)]
async fn pending_jobs_do_not_start_once_running_ones_are_cancelled() {
    let scheduler = Scheduler::builder().limit(1).build();
    let ends_when_cancelled = async |context: tower_jobs::JobContext| context.cancelled().await;
    scheduler.job("running").spawn_with(ends_when_cancelled).await.unwrap();
    let started = Arc::new(Mutex::new(Vec::new()));
    for name in ["second", "third"] {
        let started = started.clone();
        let job = async move { started.lock().unwrap().push(name) };
        scheduler.job(name).spawn(job).await.unwrap();
    }
    let report = at_once(&scheduler).serve(async |stop| stop.await).await;
    assert_eq!(*started.lock().unwrap(), [""; 0]);
    assert_eq!(names(&report.jobs.never_started), ["second", "third"]);
    assert_eq!(report.jobs.completed, 1, "{report}");
}

// The deadline.

/// A scheduler with an endless job, one that ignores its cancellation, and a pending one.
async fn stubborn(close_timeout: Duration) -> Scheduler {
    let scheduler = Scheduler::builder().limit(2).close_timeout(close_timeout).build();
    scheduler.job("endless").spawn(pending::<()>()).await.unwrap();
    scheduler.job("deaf").spawn_with(async |_context| pending::<()>().await).await.unwrap();
    scheduler.job("waiting").spawn(async {}).await.unwrap();
    yield_now().await;
    scheduler
}

#[tokio::test(start_paused = true)]
async fn phases_share_one_deadline() {
    // Grace, readiness delay and connection grace, then the time of each phase, in ms.
    for (settings, phases) in [
        ([10_000, 3_000, 4_000], [3_000, 4_000, 3_000 - 20]),
        ([10_000, 0, 4_000], [0, 4_000, 6_000 - 20]),
        // The time of closing is kept for the jobs.
        ([10_000, 0, 10_000], [0, 9_000 - 20, 1_000]),
        ([10_000, 9_999, 30_000], [9_000 - 20, 0, 1_000]),
        ([10_000, 6_000, 30_000], [6_000, 3_000 - 20, 1_000]),
        ([0, 0, 1_000], [0, 0, 0]),
    ] {
        let [grace, delay, connections] = settings.map(|ms| ms * MS);
        let scheduler = stubborn(SECOND).await;
        let began = Instant::now();
        let report = at_once(&scheduler)
            .grace(grace)
            .connection_grace(connections)
            .readiness_delay(delay)
            .serve(|_| pending::<()>())
            .await;
        let took = report.phases;
        assert_eq!([took.readiness, took.connections, took.jobs], phases.map(|ms| ms * MS));
        assert_eq!(took.readiness + took.connections + took.jobs, began.elapsed());
        assert!(matches!(report.server, ServerOutcome::Unfinished), "{report}");
        assert_eq!(names(&report.jobs.cancelled), ["endless"], "{report}");
        assert_eq!(names(&report.jobs.timed_out), ["deaf"], "{report}");
        assert_eq!(names(&report.jobs.never_started), ["waiting"], "{report}");
    }
}

// Several schedulers.

#[tokio::test(start_paused = true)]
async fn jobs_of_one_scheduler_may_spawn_in_the_next_until_the_end() {
    let (scheduler, mail) = (Scheduler::new(), Scheduler::builder().name("mail").build());
    let outbox = mail.clone();
    let job = scheduler.spawn(async move {
        sleep(2 * SECOND).await;
        assert!(outbox.is_draining());
        outbox.spawn(sleep(3 * SECOND)).await.map(drop)
    });
    job.await.unwrap();
    mail.spawn(sleep(SECOND)).await.unwrap();
    let report = at_once(&scheduler).and_scheduler(&mail).serve(async |stop| stop.await).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.phases.jobs, 5 * SECOND);
    assert_eq!((report.jobs.completed, report.others[0].completed), (1, 2));
    assert_eq!(
        report.to_string(),
        "server finished; since the signal: drained in 2000 ms: 1 completed; \
         \"mail\" drained in 5000 ms: 2 completed; in all: 3 completed"
    );
    assert!(scheduler.is_closed() && mail.is_closed());
}

#[tokio::test(start_paused = true)]
async fn all_schedulers_are_closed_by_the_end_of_the_one_grace() {
    let (scheduler, mail) = (stubborn(2 * SECOND).await, stubborn(SECOND).await);
    let unstarted = Arc::new(AtomicU32::new(0));
    let counted = unstarted.clone();
    let began = Instant::now();
    let report = at_once(&scheduler)
        .and_scheduler(&mail)
        .grace(10 * SECOND)
        .connection_grace(10 * SECOND)
        .unstarted_grace(SECOND)
        .on_unstarted(async move |jobs| {
            counted.fetch_add(u32::try_from(jobs.len()).unwrap(), Ordering::Relaxed);
        })
        .serve(|_| pending::<()>())
        .await;
    // The cancelled jobs do not use their last 20 ms, and no other phase gets them.
    // A second of the grace is kept for `on_unstarted`.
    assert_eq!(began.elapsed(), 9 * SECOND - LANDING, "{report}");
    assert_eq!(report.phases.connections, 6 * SECOND - 2 * LANDING);
    for jobs in [&report.jobs, &report.others[0]] {
        assert_eq!(names(&jobs.cancelled), ["endless"], "{report}");
        assert_eq!(names(&jobs.timed_out), ["deaf"], "{report}");
        assert_eq!(names(&jobs.never_started), ["waiting"], "{report}");
    }
    assert_eq!(unstarted.load(Ordering::Relaxed), 2);
    assert!(!report.is_clean());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["others"][0]["cancelled"][0]["name"], "endless", "{json}");
}

#[tokio::test(start_paused = true)]
async fn shutdown_is_clean_if_it_is_for_all_schedulers() {
    let (scheduler, mail) = (Scheduler::new(), Scheduler::new());
    mail.job("failing").spawn(async { Err::<(), _>("no mail today") }).await.unwrap();
    let report = at_once(&scheduler).and_scheduler(&mail).serve(async |stop| stop.await).await;
    assert!(report.jobs.is_clean() && !report.is_clean(), "{report}");
    assert_eq!(names(&report.others[0].failed), ["failing"], "{report}");
}

#[test]
#[should_panic(expected = "ends each scheduler once")]
fn same_scheduler_again_is_refused() {
    let scheduler = Scheduler::new();
    let _shutdown = at_once(&scheduler).and_scheduler(&scheduler.clone());
}

#[tokio::test(start_paused = true)]
async fn open_connection_does_not_take_the_time_of_the_jobs() {
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(8 * SECOND)).await.unwrap();
    let report = at_once(&scheduler)
        .grace(10 * SECOND)
        .connection_grace(SECOND)
        .serve(|_| pending::<io::Result<()>>())
        .await;
    assert_eq!(report.jobs.completed, 1);
    assert!(report.jobs.is_clean() && !report.is_clean(), "{report}");
    assert_eq!(report.phases.jobs, 7 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn with_nothing_to_do_it_takes_no_time() {
    let scheduler = Scheduler::new();
    let report = at_once(&scheduler).serve(async |stop| stop.await).await;
    assert!(report.is_clean());
    assert!(report.jobs.elapsed <= MS, "{report}");
}

#[tokio::test(start_paused = true)]
async fn grace_of_nothing_closes_at_once() {
    let scheduler = Scheduler::builder().limit(1).build();
    scheduler.job("running").spawn(sleep(SECOND)).await.unwrap();
    scheduler.job("waiting").spawn(sleep(SECOND)).await.unwrap();
    yield_now().await;
    let report = at_once(&scheduler).grace(Duration::ZERO).serve(async |stop| stop.await).await;
    assert_eq!(names(&report.jobs.cancelled), ["running"]);
    assert_eq!(names(&report.jobs.never_started), ["waiting"]);
    assert!(report.jobs.elapsed <= LANDING, "{report}");
}

#[tokio::test(start_paused = true)]
async fn server_that_ends_at_once_has_finished_without_any_grace() {
    for on in [0, 1, 1000].map(Duration::from_micros) {
        let scheduler = Scheduler::new();
        let shutdown =
            Shutdown::with_trigger(&scheduler, sleep(on)).connection_grace(Duration::ZERO);
        let report = shutdown.serve(|stop| stop).await;
        assert!(report.is_clean(), "{report}");
    }
}

/// As under a flood of connections, where every accept takes from the budget of the task.
#[tokio::test]
async fn server_that_is_never_idle_does_not_put_off_the_end() {
    let scheduler = Scheduler::new();
    let busy = async {
        loop {
            tokio::task::consume_budget().await;
        }
    };
    let serving = at_once(&scheduler).readiness_delay(MS).connection_grace(MS).serve(|_| busy);
    let report: ShutdownReport<()> = within("the end", serving).await;
    assert!(matches!(report.server, ServerOutcome::Unfinished), "{report}");
}

#[tokio::test(start_paused = true)]
async fn earlier_close_does_not_put_off_the_end() {
    let scheduler = Scheduler::builder().close_timeout(10 * SECOND).build();
    scheduler.job("deaf").spawn_with(async |_context| pending::<()>().await).await.unwrap();
    yield_now().await;
    {
        let mut close = tokio_test::task::spawn(scheduler.close());
        tokio_test::assert_pending!(close.poll());
    }
    sleep(SECOND).await;
    let began = Instant::now();
    let report = at_once(&scheduler).grace(5 * SECOND).serve(async |stop| stop.await).await;
    assert_eq!(names(&report.jobs.timed_out), ["deaf"], "{report}");
    assert_eq!(began.elapsed(), 5 * SECOND - LANDING);
}

// Jobs that hold threads, on the real clock.

/// The name of the one job that a quick shutdown abandons.
async fn abandoned(scheduler: &Scheduler) -> String {
    let began = Instant::now();
    let shutdown = at_once(scheduler).grace(300 * MS);
    let report = within("the end", shutdown.serve(async |stop| stop.await)).await;
    assert!(began.elapsed() < 10 * SECOND, "{report}");
    assert_eq!(report.jobs.abandoned.len(), 1, "{report}");
    assert!(!report.is_clean());
    report.jobs.abandoned[0].name.clone().into_owned()
}

#[tokio::test]
async fn blocking_thread_is_left_behind() {
    let scheduler = Scheduler::new();
    let (release, held) = blocking::channel::<()>();
    let (started, has_started) = oneshot::channel();
    let job = move || {
        started.send(()).unwrap();
        held.recv().unwrap_err();
    };
    scheduler.job("blocking").spawn_blocking(job).await.unwrap();
    has_started.await.unwrap();
    assert_eq!(abandoned(&scheduler).await, "blocking");
    drop(release);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn job_that_never_yields_is_left_behind() {
    let scheduler = Scheduler::new();
    let (release, held) = blocking::channel::<()>();
    let (started, has_started) = oneshot::channel();
    let job = async move {
        started.send(()).unwrap();
        held.recv().unwrap_err();
    };
    scheduler.job("never yields").spawn(job).await.unwrap();
    has_started.await.unwrap();
    assert_eq!(abandoned(&scheduler).await, "never yields");
    drop(release);
}

// Its report, its hook and its log.

#[tokio::test(start_paused = true)]
async fn on_unstarted_gets_all_unstarted_jobs_once_and_may_panic() {
    let schedulers = [(); 2].map(|()| Scheduler::builder().limit(1).build());
    let waiting: Vec<_> = (0..300).map(|n| format!("waiting {n}")).collect();
    for scheduler in &schedulers {
        scheduler.job("running").spawn(pending::<()>()).await.unwrap();
    }
    for (n, name) in waiting.iter().enumerate() {
        schedulers[n / 200].job(name.clone()).spawn(async {}).await.unwrap();
    }
    let saved = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let saved = saved.clone();
        async move |jobs: JobList| {
            // A timer of the runtime, whose clock is paused.
            sleep(SECOND).await;
            let names: Vec<_> = names(&jobs).into_iter().map(str::to_owned).collect();
            saved.lock().unwrap().push(names);
            panic!("no room on the disk");
        }
    };
    let [scheduler, mail] = &schedulers;
    let shutdown = at_once(scheduler).and_scheduler(mail).on_unstarted(hook);
    let report = shutdown.serve(async |stop| stop.await).await;
    assert_eq!(names(&report.jobs.never_started), waiting[..200]);
    assert_eq!(names(&report.others[0].never_started), waiting[200..]);
    assert_eq!(*saved.lock().unwrap(), [waiting]);
    assert!(!report.unfinished_hooks.on_unstarted, "{report}");
}

/// A hook that holds its thread until the sender is dropped.
fn holds(release: blocking::Receiver<()>) -> impl Fn() + Send + Sync + 'static {
    let release = Mutex::new(release);
    move || _ = release.lock().unwrap().recv()
}

#[tokio::test]
async fn unfinished_hooks_are_counted_and_do_not_hold_up_the_end() {
    let [(first, held), (second, held_too)] = [(); 2].map(|()| blocking::channel::<()>());
    let (fails, stores) = (holds(held), holds(held_too));
    let scheduler = Scheduler::builder().limit(1).on_failure(move |_| fails()).build();
    drop(scheduler.spawn_with(async |_context| pending::<()>().await).await.unwrap());
    drop(scheduler.spawn(async {}).await.unwrap());
    let began = Instant::now();
    let shutdown = at_once(&scheduler).grace(800 * MS).on_unstarted(async move |_| stores());
    let report = within("the end", shutdown.serve(async |stop| stop.await)).await;
    assert!(began.elapsed() < 10 * SECOND, "{report}");
    let unfinished = report.unfinished_hooks;
    assert_eq!((unfinished.on_failure, unfinished.on_unstarted), (1, true), "{report}");
    let line = report.to_string();
    assert!(line.contains("1 on_failure unfinished; on_unstarted unfinished"), "{line}");
    drop((first, second));
}

#[tokio::test]
async fn hooks_of_overdue_jobs_run_side_by_side() {
    // Each hook waits in the barrier for all the others.
    let barrier = Barrier::new(13);
    let (met, mut has_met) = mpsc::unbounded_channel();
    let meet = move |_| {
        barrier.wait();
        met.send(()).unwrap();
    };
    let scheduler = Scheduler::builder().on_failure(meet).build();
    let (release, _) = broadcast::channel::<()>(1);
    for _ in 0..13 {
        let mut held = release.subscribe();
        let job = scheduler.spawn_blocking(move || _ = held.blocking_recv());
        drop(job.await.unwrap());
    }
    let serve = at_once(&scheduler).grace(2 * SECOND).serve(async |stop| stop.await);
    let report = within("the end", serve).await;
    assert_eq!(report.jobs.abandoned.len(), 13, "{report}");
    drop(release);
    for _ in 0..13 {
        within("the hooks", has_met.recv()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn report_is_one_line_and_serializes() {
    let scheduler = Scheduler::builder().limit(2).build();
    scheduler.spawn(sleep(SECOND)).await.unwrap();
    scheduler.job("endless").spawn(pending::<()>()).await.unwrap();
    let report = at_once(&scheduler)
        .grace(3 * SECOND)
        .serve(|_| ready(Err::<(), _>(io::Error::other("two\nlines"))))
        .await;
    let line = report.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    let error = r"server finished (two\nlines); since the signal: drained in ";
    for part in [error, "1 completed", "1 cancelled (job ", "\"endless\"", "; in all: 1 completed"]
    {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["jobs"]["completed"], 1, "{json}");
    assert_eq!(json["jobs"]["cancelled"][0]["name"], "endless", "{json}");
    assert_eq!(json["phases"]["readiness"], 0.0, "{json}");
    assert!(json["server"].is_string(), "{json}");

    let panics = async { assert_eq!(1, 2, "no port") };
    let report = Shutdown::with_trigger(&Scheduler::new(), pending()).serve(|_| panics).await;
    let line = report.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    let begins = r"server panicked (assertion `left == right` failed: no port\n  left: 1\n";
    assert!(line.starts_with(begins), "{line}");
}

/// Panics without a backtrace, which would take a while.
fn silent_panic() {
    resume_unwind(Box::new("a silent panic"));
}

/// Panics at each event, and keeps its thread.
#[derive(Clone, Default)]
struct Broken(Arc<Mutex<Vec<Thread>>>);

impl<S: Subscriber> Layer<S> for Broken {
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        self.0.lock().unwrap().push(thread::current());
        silent_panic();
    }
}

#[tokio::test(start_paused = true)]
async fn log_that_panics_stops_no_shutdown() {
    let broken = Broken::default();
    let _guard = subscribe(broken.clone());
    let scheduler = Scheduler::builder().limit(1).build();
    scheduler.spawn(sleep(SECOND)).await.unwrap();
    scheduler.spawn(async { panic!("at the wrong moment") }).await.unwrap().await.unwrap_err();
    for _ in 0..2 {
        scheduler.spawn(pending::<()>()).await.unwrap();
    }
    let report = at_once(&scheduler)
        .grace(4 * SECOND)
        .on_unstarted(async |_| silent_panic())
        .serve(async |stop| stop.await)
        .await;
    let ended = (report.jobs.cancelled.len(), report.jobs.never_started.len());
    assert_eq!(ended, (1, 1), "{report}");
    // The signal, the drain, the panic of the hook, and the end, none in this thread.
    let threads = broken.0.lock().unwrap();
    let is_of_shutdown =
        |thread: &Thread| thread.name().is_some_and(|name| name.starts_with("tower-jobs"));
    assert!(threads.iter().all(is_of_shutdown), "{threads:?}");
    assert_eq!(threads.len(), 4);
}

// Settings.

/// The panic of `change` for a time that is too long.
fn refusal(change: fn(Shutdown, Duration) -> Shutdown) -> String {
    let shutdown = Shutdown::with_trigger(&Scheduler::new(), pending());
    let shutdown = change(shutdown, YEAR);
    panic_text(|| change(shutdown, YEAR + MS))
}

#[test]
fn times_longer_than_a_year_are_refused_by_name() {
    assert!(refusal(Shutdown::grace).starts_with("grace "));
    assert!(refusal(Shutdown::connection_grace).starts_with("connection_grace "));
    assert!(refusal(Shutdown::readiness_delay).starts_with("readiness_delay "));
    assert!(refusal(Shutdown::unstarted_grace).starts_with("unstarted_grace "));
}

#[tokio::test]
#[should_panic(expected = "set a shorter delay, or a grace")]
async fn delay_as_long_as_the_grace_is_refused_with_the_cure() {
    let shutdown = at_once(&Scheduler::new()).grace(SECOND).readiness_delay(SECOND);
    drop(shutdown.serve(async |stop| stop.await).await);
}

#[tokio::test(start_paused = true)]
async fn longest_times_work() {
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(100 * 24 * 60 * 60 * SECOND)).await.unwrap();
    let shutdown = at_once(&scheduler).grace(YEAR).connection_grace(YEAR).readiness_delay(SECOND);
    let report = shutdown.serve(async |stop| stop.await).await;
    assert!(report.is_clean(), "{report}");
}
