//! `Shutdown`: its order, its one deadline, and what gets in its way.
#![allow(clippy::disallowed_methods, reason = "a test may start tasks and hold threads")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{
    future::{pending, ready},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc as blocking,
    },
    thread::{self, ThreadId},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Request, StatusCode},
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty};
use support::{Connection, send, within};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, oneshot},
    task::{spawn_blocking, yield_now},
    time::{Instant, sleep},
};
use tower_jobs::{
    BoxError, JobList, Jobs, JobsLayer, Scheduler, ServerOutcome, ServerOutput, Shutdown,
    ShutdownReport, SpawnError, StopSignal, liveness, readiness,
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// What closing keeps back for jobs that do not let themselves be dropped.
const LANDING: Duration = Duration::from_millis(20);

/// A shutdown that begins now.
fn at_once(scheduler: &Scheduler) -> Shutdown {
    Shutdown::with_trigger(scheduler, ready(()))
}

/// The jobs of that outcome, by name.
fn names(jobs: &[tower_jobs::JobInfo]) -> Vec<&str> {
    jobs.iter().map(|job| &*job.name).collect()
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn status(from: SocketAddr, path: &str) -> StatusCode {
    let request = Request::get(path).body(Empty::<Bytes>::new()).unwrap();
    send(from, request).await.unwrap().status
}

/// Keeps a paused clock from advancing by itself, so that sockets can be waited for.
struct Frozen(#[allow(dead_code, reason = "its drop ends the thread")] blocking::Sender<()>);

fn freeze() -> Frozen {
    let (sender, receiver) = blocking::channel::<()>();
    drop(spawn_blocking(move || receiver.recv()));
    Frozen(sender)
}

fn is_closed(error: &SpawnError) -> bool {
    matches!(error, SpawnError::Closed)
}

// The order.

#[tokio::test(start_paused = true)]
async fn readiness_goes_off_while_the_server_still_accepts_and_requests_under_way_may_spawn() {
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
        .route("/ready", get(readiness))
        .route("/live", get(liveness))
        .route("/hold", post(hold))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(signs.clone());
    let (listener, address) = listener().await;
    let (signal, signalled) = oneshot::channel::<()>();
    let (told, stopping) = oneshot::channel();
    let shutdown = Shutdown::with_trigger(&scheduler, async { drop(signalled.await) })
        .readiness_delay(5 * SECOND);
    let serving = tokio::spawn(shutdown.serve(|stop| {
        let stop = async move {
            stop.await;
            told.send(()).unwrap();
        };
        axum::serve(listener, app).with_graceful_shutdown(stop).into_future()
    }));

    let frozen = freeze();
    assert_eq!(status(address, "/ready").await, StatusCode::OK);
    assert_eq!(status(address, "/live").await, StatusCode::OK);
    let under_way =
        tokio::spawn(send(address, Request::post("/hold").body(Empty::<Bytes>::new()).unwrap()));
    begun.notified().await;
    assert!(!scheduler.is_draining());

    signal.send(()).unwrap();
    scheduler.shutting_down().await;
    assert!(scheduler.is_draining());
    // Over connections of their own: it still accepts.
    assert_eq!(status(address, "/ready").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status(address, "/live").await, StatusCode::OK);

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
            note("jobs told to end", &events);
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
    // 1 s until the signal, 25 s of grace, 120 ms of which are kept for closing.
    assert_eq!(
        order,
        [("draining", 1), ("stop accepting", 3), ("server dropped", 7), ("jobs told to end", 25)]
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_pending_starts_once_jobs_are_told_to_end() {
    let scheduler = Scheduler::builder().limit(1).build();
    let ends_when_told = async |context: tower_jobs::JobContext| context.cancelled().await;
    scheduler.job("running").spawn_with(ends_when_told).await.unwrap();
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

/// A scheduler with a job that never ends, one that is told and never ends, and one that waits.
async fn stubborn(close_timeout: Duration) -> Scheduler {
    let scheduler = Scheduler::builder().limit(2).close_timeout(close_timeout).build();
    scheduler.job("endless").spawn(pending::<()>()).await.unwrap();
    scheduler.job("deaf").spawn_with(async |_context| pending::<()>().await).await.unwrap();
    scheduler.job("waiting").spawn(async {}).await.unwrap();
    yield_now().await;
    scheduler
}

#[tokio::test(start_paused = true)]
async fn the_phases_share_one_deadline() {
    // grace, readiness_delay, connection_grace, and what each phase then takes, in ms
    for (settings, phases) in [
        ([10_000, 3_000, 4_000], [3_000, 4_000, 3_000 - 20]),
        ([10_000, 0, 4_000], [0, 4_000, 6_000 - 20]),
        // The time that closing takes is left to the jobs.
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
async fn jobs_of_the_first_scheduler_may_spawn_jobs_of_the_next_to_the_last() {
    let (scheduler, mail) = (Scheduler::new(), Scheduler::new());
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
         drained in 5000 ms: 2 completed; in all: 3 completed"
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
    // What the jobs that are told do not use of their 20 ms is nobody's.
    // Less the time for `on_unstarted`.
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
async fn a_shutdown_is_clean_if_it_is_for_all_schedulers() {
    let (scheduler, mail) = (Scheduler::new(), Scheduler::new());
    mail.job("failing").spawn(async { Err::<(), _>("no mail today") }).await.unwrap();
    let report = at_once(&scheduler).and_scheduler(&mail).serve(async |stop| stop.await).await;
    assert!(report.jobs.is_clean() && !report.is_clean(), "{report}");
    assert_eq!(names(&report.others[0].failed), ["failing"], "{report}");
}

#[test]
#[should_panic(expected = "ends each scheduler once")]
fn the_same_scheduler_again_is_refused() {
    let scheduler = Scheduler::new();
    let _shutdown = Shutdown::new(&scheduler).and_scheduler(&scheduler.clone());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_stays_open_does_not_take_the_time_of_the_jobs() {
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
async fn a_grace_of_nothing_closes_at_once() {
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
async fn a_server_that_ends_as_soon_as_it_is_told_has_finished_without_any_grace() {
    for on in [0, 1, 1000].map(Duration::from_micros) {
        let scheduler = Scheduler::new();
        let shutdown =
            Shutdown::with_trigger(&scheduler, sleep(on)).connection_grace(Duration::ZERO);
        let report = shutdown.serve(|stop| stop).await;
        assert!(report.is_clean(), "{report}");
    }
}

/// As one under a flood of connections, whose every accept takes of the task's budget.
#[tokio::test]
async fn a_server_that_is_never_idle_does_not_put_off_the_end() {
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
async fn who_has_begun_to_close_before_does_not_put_off_the_end() {
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

// Servers.

#[tokio::test(start_paused = true)]
async fn an_event_stream_that_heeds_shutting_down_lets_the_server_finish() {
    let scheduler = Scheduler::new();
    let events = async |jobs: Jobs| {
        let ticks = stream::unfold((), async |()| {
            sleep(SECOND).await;
            Some((Ok::<_, BoxError>("tick\n"), ()))
        });
        Body::from_stream(Box::pin(ticks).take_until(Box::pin(async move {
            jobs.shutting_down().await;
        })))
    };
    let app = Router::new().route("/events", get(events)).layer(JobsLayer::new(scheduler.clone()));
    let (listener, address) = listener().await;
    let (signal, signalled) = oneshot::channel::<()>();
    let shutdown = Shutdown::with_trigger(&scheduler, async { drop(signalled.await) });
    let serving = tokio::spawn(
        shutdown
            .serve(|stop| axum::serve(listener, app).with_graceful_shutdown(stop).into_future()),
    );
    let mut connection = Connection::open(address).await.unwrap();
    let request = Request::get("/events").body(Empty::<Bytes>::new()).unwrap();
    let mut stream = connection.begin(request).await.unwrap().into_body();
    for _ in 0..3 {
        stream.frame().await.unwrap().unwrap();
    }
    signal.send(()).unwrap();
    stream.collect().await.expect("the stream ends in good order");
    let report = serving.await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(report.jobs.elapsed < SECOND, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_returns_is_left_behind() {
    let scheduler = Scheduler::new();
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    async fn stuck(State(begun): State<mpsc::UnboundedSender<Jobs>>, jobs: Jobs) {
        jobs.spawn(sleep(5 * SECOND)).await.unwrap();
        begun.send(jobs).unwrap();
        pending::<()>().await;
    }
    let app = Router::new()
        .route("/", get(stuck))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(begun);
    let (listener, address) = listener().await;
    let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    drop(tokio::spawn(async move {
        let mut connection = Connection::open(address).await.unwrap();
        drop(connection.begin(request).await);
    }));
    let (jobs, seen) = oneshot::channel();
    let trigger = async move { jobs.send(has_begun.recv().await.unwrap()).unwrap() };
    let report = Shutdown::with_trigger(&scheduler, trigger)
        .connection_grace(2 * SECOND)
        .serve(|stop| axum::serve(listener, app).with_graceful_shutdown(stop).into_future())
        .await;
    assert!(matches!(report.server, ServerOutcome::Unfinished));
    assert_eq!(report.phases.connections, 2 * SECOND);
    assert!(report.jobs.is_clean() && report.jobs.completed == 1, "{report}");
    let late = seen.await.unwrap().spawn(async {}).await.unwrap_err();
    assert!(is_closed(&late), "{late}");
}

/// What is reported of a server that ends before anything else did, with a job of 20 s under way.
async fn after<S: Future<Output: ServerOutput>>(server: S) -> ShutdownReport<S::Output> {
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(20 * SECOND)).await.unwrap();
    let report = Shutdown::with_trigger(&scheduler, pending()).serve(|_| server).await;
    assert_eq!(report.jobs.completed, 1, "its job has the whole grace: {report}");
    assert_eq!(report.phases.jobs, 20 * SECOND);
    report
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_fails_or_panics_still_drains_the_jobs() {
    let report = after(ready(Ok::<_, io::Error>(()))).await;
    assert!(report.is_clean(), "{report}");

    let report = after(ready(Err::<(), _>(io::Error::other("no more files")))).await;
    assert!(!report.is_clean(), "{report}");
    let ServerOutcome::Finished(Err(error)) = report.server else { panic!("{report}") };
    assert_eq!(error.to_string(), "no more files");

    let report = after(async { panic!("out of luck") }).await;
    let report: ShutdownReport<()> = report;
    assert!(!report.is_clean(), "{report}");
    assert!(report.to_string().contains("out of luck"), "{report}");
    let ServerOutcome::Panicked(error) = report.server else { panic!("{error:?}", error = report) };
    assert!(error.is_panic());
}

#[tokio::test(start_paused = true)]
async fn a_first_signal_after_the_servers_own_end_does_not_hurry_the_jobs() {
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(10 * SECOND)).await.unwrap();
    let report = Shutdown::with_trigger(&scheduler, sleep(SECOND)).serve(|_| ready(())).await;
    assert_eq!(report.jobs.completed, 1, "{report}");
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_panics_when_told_or_when_dropped_is_contained() {
    let scheduler = Scheduler::new();
    let stumbles = async |stop: StopSignal| {
        stop.await;
        panic!("stumbled");
    };
    let report: ShutdownReport<()> = at_once(&scheduler).serve(stumbles).await;
    assert!(matches!(report.server, ServerOutcome::Panicked(_)), "{report}");

    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("went off");
        }
    }
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(20 * SECOND)).await.unwrap();
    let report = at_once(&scheduler)
        .serve(|_| async {
            let _bomb = Bomb;
            pending::<()>().await;
        })
        .await;
    assert!(matches!(report.server, ServerOutcome::Unfinished), "{report}");
    assert_eq!(report.jobs.completed, 1, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_signal_before_the_server_is_up_ends_it_in_order() {
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(SECOND)).await.unwrap();
    let (listener, _) = listener().await;
    let app = Router::new().layer(JobsLayer::new(scheduler.clone()));
    let report = at_once(&scheduler)
        .serve(|stop| axum::serve(listener, app).with_graceful_shutdown(stop).into_future())
        .await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.jobs.completed, 1);

    let starts_slowly = async |stop: StopSignal| {
        sleep(3 * SECOND).await;
        stop.await;
    };
    let report = at_once(&Scheduler::new()).serve(starts_slowly).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.phases.connections, 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn the_server_may_be_any_future_and_give_anything() {
    struct Connections(#[allow(dead_code, reason = "only its type matters")] usize);
    impl ServerOutput for Connections {}
    let scheduler = Scheduler::new();
    let report = at_once(&scheduler).serve(|_| ready(Connections(7))).await;
    assert!(report.is_clean());

    // Not `Send`, nor `'static`.
    struct Own<'a>(&'a str);
    impl ServerOutput for Own<'_> {}
    let text = String::from("mine");
    let local = std::rc::Rc::new(());
    let report = at_once(&Scheduler::new())
        .serve(|stop| async {
            stop.await;
            drop(local);
            Own(&text)
        })
        .await;
    let ServerOutcome::Finished(Own(text)) = report.server else { panic!("it ended") };
    assert_eq!(text, "mine");
    assert!(report.jobs.is_clean());
}

#[tokio::test(start_paused = true)]
async fn stop_can_be_cloned_and_sent_to_tasks() {
    fn can_be_shared<T: Clone + Send + 'static>(_: &T) {}
    fn can_be_sent<T: Send>(future: T) -> T {
        future
    }
    let scheduler = Scheduler::new();
    let shutdown = Shutdown::with_trigger(&scheduler, sleep(SECOND));
    let serving = shutdown.serve(|stop| async move {
        can_be_shared(&stop);
        let early = stop.clone();
        let tasks = [tokio::spawn(early.clone()), tokio::spawn(early)];
        stop.clone().await;
        for task in tasks {
            task.await.unwrap();
        }
        stop.await;
        Instant::now()
    });
    let began = Instant::now();
    let report = can_be_sent(serving).await;
    let ServerOutcome::Finished(stopped) = report.server else { panic!("it ended") };
    assert_eq!((stopped - began).as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_tasks_of_a_server_that_ends_by_itself_are_told_to_stop() {
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(20 * SECOND)).await.unwrap();
    let began = Instant::now();
    let mut accepting = None;
    let accepts = &mut accepting;
    let serve = |stop: StopSignal| {
        let accept = async move {
            stop.await;
            began.elapsed()
        };
        *accepts = Some(tokio::spawn(accept));
        sleep(SECOND)
    };
    let report = Shutdown::with_trigger(&scheduler, pending()).serve(serve).await;
    assert_eq!(report.phases.jobs, 19 * SECOND);
    assert_eq!(accepting.unwrap().await.unwrap().as_secs(), 1);
}

/// The only one here that awaits real signals: they go to all of the process.
#[cfg(unix)]
#[tokio::test]
async fn a_second_signal_stops_the_servers_tasks_and_closes_all_before_jobs_have_ended() {
    async fn terminate() {
        let own = std::process::id().to_string();
        let kill = tokio::process::Command::new("kill").args(["-TERM", &own]).status();
        assert!(kill.await.unwrap().success());
    }
    let scheduler = Scheduler::builder().close_timeout(20 * SECOND).build();
    let mail = Scheduler::builder().limit(1).build();
    let (go, goes) = oneshot::channel();
    let runs = mail.spawn(goes).await.unwrap();
    drop(mail.job("waiting").spawn(async {}).await.unwrap());
    let (tell, told) = oneshot::channel();
    let job = scheduler.spawn_with(|context| async move {
        context.cancelled().await;
        go.send(()).unwrap();
        runs.await.unwrap();
        told.await
    });
    job.await.unwrap();
    let shutdown = Shutdown::new(&scheduler).and_scheduler(&mail).readiness_delay(20 * SECOND);
    let serving = shutdown.serve(|stop| async {
        tokio::spawn(async {
            stop.await;
            tell.send(())
        });
        terminate().await;
        scheduler.shutting_down().await;
        // Within a second it would be a repeat.
        sleep(1100 * MS).await;
        terminate().await;
        pending::<()>().await;
    });
    let report = serving.await;
    assert!(matches!(report.server, ServerOutcome::Unfinished), "{report}");
    assert_eq!((report.jobs.completed, report.others[0].completed), (1, 1), "{report}");
    assert_eq!(names(&report.others[0].never_started), ["waiting"], "{report}");
}

// Jobs that hold threads: these need the real clock.

/// The name of the one job that is left behind by a shutdown that must not take long.
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
async fn a_blocking_thread_is_left_behind() {
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
async fn a_job_that_never_yields_is_left_behind_where_there_is_another_thread() {
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

// What is said of it.

#[tokio::test(start_paused = true)]
async fn on_unstarted_is_called_once_with_all_unstarted_jobs_and_its_panic_is_contained() {
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
            // The timer is the runtime's, whose clock is paused.
            sleep(SECOND).await;
            saved
                .lock()
                .unwrap()
                .push(names(&jobs).into_iter().map(str::to_owned).collect::<Vec<_>>());
            panic!("no room on the disk");
        }
    };
    let [scheduler, mail] = &schedulers;
    let shutdown = at_once(scheduler).and_scheduler(mail).on_unstarted(hook);
    let report = shutdown.serve(async |stop| stop.await).await;
    assert_eq!(*saved.lock().unwrap(), [waiting]);
    assert!(!report.unfinished_hooks.on_unstarted, "{report}");
}

/// A hook that holds its thread until the test's end.
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
    // All hooks meet in the barrier, so each needs the others to be called.
    let barrier = std::sync::Barrier::new(13);
    let (met, mut has_met) = mpsc::unbounded_channel();
    let meet = move |_| {
        barrier.wait();
        met.send(()).unwrap();
    };
    let scheduler = Scheduler::builder().on_failure(meet).build();
    let (release, _) = tokio::sync::broadcast::channel::<()>(1);
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
async fn the_report_is_one_line_and_serializes() {
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
    assert_eq!(json["phases"]["readiness"]["secs"], 0, "{json}");
    assert!(json["server"].is_string(), "{json}");

    let panics = async { assert_eq!(1, 2, "no port") };
    let report = Shutdown::with_trigger(&Scheduler::new(), pending()).serve(|_| panics).await;
    let line = report.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    let begins = r"server panicked (assertion `left == right` failed: no port\n  left: 1\n";
    assert!(line.starts_with(begins), "{line}");
}

/// Panics without a backtrace, which takes its time.
fn silent_panic() {
    std::panic::resume_unwind(Box::new("nowhere to write to"));
}

/// Panics whenever a shutdown is logged: its output has gone, say.
struct Broken {
    events: Arc<AtomicU32>,
    /// The thread of `serve`, which must not log.
    serves: ThreadId,
}

impl<S: tracing::Subscriber> Layer<S> for Broken {
    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        let here = thread::current();
        assert_ne!(here.id(), self.serves);
        if here.name().is_some_and(|name| name.starts_with("tower-jobs")) {
            self.events.fetch_add(1, Ordering::Relaxed);
        }
        silent_panic();
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_stops_no_shutdown() {
    let events = Arc::new(AtomicU32::new(0));
    let broken = Broken { serves: thread::current().id(), events: events.clone() };
    let _default = Registry::default().with(broken).set_default();
    let scheduler = Scheduler::builder().limit(1).build();
    scheduler.spawn(sleep(SECOND)).await.unwrap();
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
    // It shuts down, drains, could not store jobs, and is over.
    assert_eq!(events.load(Ordering::Relaxed), 4);
}

// Settings.

/// What `change` panics with.
fn refusal(change: fn(Shutdown, Duration) -> Shutdown) -> String {
    let shutdown = Shutdown::with_trigger(&Scheduler::new(), pending());
    let longest = Duration::from_secs(365 * 24 * 60 * 60);
    let shutdown = change(shutdown, longest);
    let change = std::panic::AssertUnwindSafe(|| change(shutdown, longest + MS));
    let payload = std::panic::catch_unwind(change).expect_err("it is too long");
    *payload.downcast::<String>().unwrap()
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
async fn the_longest_times_work() {
    let longest = Duration::from_secs(365 * 24 * 60 * 60);
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(100 * 24 * 60 * 60 * SECOND)).await.unwrap();
    let shutdown =
        at_once(&scheduler).grace(longest).connection_grace(longest).readiness_delay(SECOND);
    let report = shutdown.serve(async |stop| stop.await).await;
    assert!(report.is_clean(), "{report}");
}
