//! Several servers, periodic work and start-up work under one `Shutdown`.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use axum::{Router, extract::State, http::StatusCode, routing};
use http_body_util::Empty;
use hyper::{Request, body::Bytes};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, interval, sleep},
};
use tower_jobs::{
    Jobs, JobsLayer, PartOutcome, Scheduler, ServerOutcome, Shutdown, SpawnError, StopSignal,
};

use super::at_once;
use crate::support::{
    SECOND,
    http::{Connection, get, listen},
    within,
};

/// One application on two addresses.
async fn serve_both(
    [public, admin]: [(TcpListener, Router); 2],
    stop: StopSignal,
) -> io::Result<((), ())> {
    let one = |(listener, app), stop| axum::serve(listener, app).with_graceful_shutdown(stop);
    tokio::try_join!(one(public, stop.clone()).into_future(), one(admin, stop).into_future())
}

async fn is_closed(address: SocketAddr) {
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    within("the end of the listener", closed).await;
}

#[tokio::test]
async fn two_servers_stop_at_one_signal_and_their_jobs_are_drained_once() {
    type Signs = (mpsc::UnboundedSender<()>, watch::Receiver<bool>);
    /// Says that it has begun, and answers when the test says so. Leaves a job of the same kind.
    async fn hold(State((begun, go)): State<Signs>, jobs: Jobs) -> Result<StatusCode, SpawnError> {
        begun.send(()).unwrap();
        let (mut answer, mut end) = (go.clone(), go);
        drop(answer.wait_for(|go| *go).await);
        jobs.spawn(async move { drop(end.wait_for(|go| *go).await) }).await?;
        Ok(StatusCode::ACCEPTED)
    }
    let scheduler = Scheduler::new();
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let (go, gone) = watch::channel(false);
    let app = || {
        Router::new()
            .route("/hold", routing::post(hold))
            .layer(JobsLayer::new(scheduler.clone()))
            .with_state((begun.clone(), gone.clone()))
    };
    let (public, admin) = (listen().await, listen().await);
    let addresses = [public.1, admin.1];
    let servers = [(public.0, app()), (admin.0, app())];
    let (signal, signalled) = oneshot::channel::<()>();
    let shutdown = Shutdown::with_trigger(&scheduler, async { drop(signalled.await) });
    let serving = tokio::spawn(shutdown.serve(|stop| serve_both(servers, stop)));

    let mut answers = Vec::new();
    for address in addresses {
        let mut connection = Connection::<Empty<Bytes>>::open(address).await.unwrap();
        let request = Request::post("/hold").body(Empty::new()).unwrap();
        answers.push(tokio::spawn(async move { connection.send(request).await }));
        within("the request", has_begun.recv()).await.unwrap();
    }
    signal.send(()).unwrap();
    for address in addresses {
        is_closed(address).await;
    }
    assert!(!serving.is_finished(), "both have a request under way");
    go.send_replace(true);
    for answer in answers {
        let answer = within("the answer", answer).await.unwrap().unwrap();
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    }
    let report = within("the report", serving).await.unwrap();
    assert!(matches!(report.server, ServerOutcome::Finished(Ok(((), ())))), "{report}");
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.jobs.completed, 2, "{report}");
}

#[tokio::test]
async fn failure_of_one_server_ends_the_other_and_is_shown() {
    let scheduler = Scheduler::new();
    let (listener, address) = listen().await;
    let app = Router::new().route("/", routing::get(async || "here"));
    let fail = Arc::new(Notify::new());
    let failing = fail.clone();
    let serving = tokio::spawn(Shutdown::with_trigger(&scheduler, std::future::pending()).serve(
        |stop| async move {
            let server = axum::serve(listener, app).with_graceful_shutdown(stop);
            let fails = async {
                failing.notified().await;
                Err::<(), _>(io::Error::other("no certificate"))
            };
            tokio::try_join!(server.into_future(), fails).map(drop)
        },
    ));
    assert_eq!(get(address, "/").await.text, "here");
    fail.notify_one();
    let report = within("the report", serving).await.unwrap();
    is_closed(address).await;
    assert!(!report.signalled && !report.is_clean(), "{report}");
    assert!(report.to_string().starts_with("server finished (no certificate); "), "{report}");
}

#[tokio::test(start_paused = true)]
async fn periodic_work_of_a_part_ends_with_the_shutdown() {
    let (scheduler, began) = (Scheduler::new(), Instant::now());
    let (jobs, runs) = (scheduler.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = runs.clone();
    let report = Shutdown::with_trigger(&scheduler, sleep(35 * SECOND))
        .grace(20 * SECOND)
        .part("every 10 s", |part| async move {
            let mut every = interval(10 * SECOND);
            loop {
                select! {
                    _ = every.tick() => {}
                    () = part.begun() => break,
                }
                let counted = counted.clone();
                let clean = async move {
                    sleep(8 * SECOND).await;
                    counted.fetch_add(1, SeqCst);
                };
                drop(jobs.job("clean").unique_key("clean").try_spawn(clean).expect("room"));
            }
        })
        .serve(|stop| stop)
        .await;
    assert_eq!(runs.load(SeqCst), 4, "the one of 30 s is waited for");
    assert_eq!(began.elapsed().as_secs(), 38);
    assert_eq!(report.parts[0].outcome, PartOutcome::Ended);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.jobs.completed, 1);
}

#[tokio::test(start_paused = true)]
async fn start_up_job_that_still_runs_is_drained() {
    let (scheduler, began) = (Scheduler::new(), Instant::now());
    drop(scheduler.job("warm the cache").spawn(sleep(7 * SECOND)).await.unwrap());
    let report = at_once(&scheduler).grace(20 * SECOND).serve(|stop| stop).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.jobs.completed, began.elapsed().as_secs()), (1, 7));
}

#[tokio::test(start_paused = true)]
async fn start_up_part_that_is_cut_short_is_named() {
    let scheduler = Scheduler::new();
    let report = at_once(&scheduler)
        .part("warm the cache", |part| async move {
            select! {
                () = sleep(7 * SECOND) => Ok(()),
                () = part.begun() => Err("not warm yet"),
            }
        })
        .serve(|stop| stop)
        .await;
    let outcome = PartOutcome::Failed("not warm yet".into());
    assert_eq!(report.parts[0].outcome, outcome);
    assert!(
        report.to_string().contains("part \"warm the cache\" failed (not warm yet)"),
        "{report}"
    );
}
