//! `Shutdown` and its server: any future, any end, and tasks beside it.

use std::{
    future::{pending, ready},
    io,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::Request,
    routing,
};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};
use tower_jobs::{
    BoxError, Jobs, JobsLayer, Scheduler, ServerOutcome, ServerOutput, Shutdown, ShutdownReport,
    SpawnError, StopSignal,
};

use super::at_once;
use crate::support::{
    Grenade, SECOND,
    http::{Connection, listen},
};

#[tokio::test(start_paused = true)]
async fn event_stream_that_ends_on_shutting_down_frees_the_server() {
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
    let app = Router::new()
        .route("/events", routing::get(events))
        .layer(JobsLayer::new(scheduler.clone()));
    let (listener, address) = listen().await;
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
async fn handler_that_never_returns_is_left_behind() {
    let scheduler = Scheduler::new();
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    async fn stuck(State(begun): State<mpsc::UnboundedSender<Jobs>>, jobs: Jobs) {
        jobs.spawn(sleep(5 * SECOND)).await.unwrap();
        begun.send(jobs).unwrap();
        pending::<()>().await;
    }
    let app = Router::new()
        .route("/", routing::get(stuck))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(begun);
    let (listener, address) = listen().await;
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
    assert_eq!(late, SpawnError::Closed);
}

/// The report of a server that ends by itself while a job of 20 s runs.
async fn after<S: Future<Output: ServerOutput>>(server: S) -> ShutdownReport<S::Output> {
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(20 * SECOND)).await.unwrap();
    let report = Shutdown::with_trigger(&scheduler, pending()).serve(|_| server).await;
    assert_eq!(report.jobs.completed, 1, "its job has the whole grace: {report}");
    assert_eq!(report.phases.jobs, 20 * SECOND);
    report
}

#[tokio::test(start_paused = true)]
async fn server_that_ends_fails_or_panics_still_drains_the_jobs() {
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
async fn signal_after_the_end_of_the_server_does_not_hurry_jobs() {
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(10 * SECOND)).await.unwrap();
    let report = Shutdown::with_trigger(&scheduler, sleep(SECOND)).serve(|_| ready(())).await;
    assert_eq!(report.jobs.completed, 1, "{report}");
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn server_that_panics_at_stop_or_at_drop_is_contained() {
    let scheduler = Scheduler::new();
    let stumbles = async |stop: StopSignal| {
        stop.await;
        panic!("stumbled");
    };
    let report: ShutdownReport<()> = at_once(&scheduler).serve(stumbles).await;
    assert!(matches!(report.server, ServerOutcome::Panicked(_)), "{report}");

    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(20 * SECOND)).await.unwrap();
    let report = at_once(&scheduler)
        .serve(|_| async {
            let _held = Grenade;
            pending::<()>().await;
        })
        .await;
    assert!(matches!(report.server, ServerOutcome::Unfinished), "{report}");
    assert_eq!(report.jobs.completed, 1, "{report}");
}

#[tokio::test(start_paused = true)]
async fn signal_before_the_server_is_up_ends_it_in_order() {
    let scheduler = Scheduler::new();
    scheduler.spawn(sleep(SECOND)).await.unwrap();
    let (listener, _) = listen().await;
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
async fn server_may_be_any_future_and_give_anything() {
    struct Connections(#[allow(dead_code, reason = "only its type matters")] usize);
    impl ServerOutput for Connections {}
    let scheduler = Scheduler::new();
    let report = at_once(&scheduler).serve(|_| ready(Connections(7))).await;
    assert!(report.is_clean());

    // Neither `Send` nor `'static`.
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
async fn stop_resolves_in_tasks_of_a_server_that_ends_by_itself() {
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
