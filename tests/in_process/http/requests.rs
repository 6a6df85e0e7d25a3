//! Jobs of axum handlers over real connections: after the response, after a client that leaves, and
//! in the drain.
//!
//! The rows of aiojobs shown here:
//!
//! | row | test |
//! |---|---|
//! | 29 | `scheduler_set_up_before_the_server_is_drained_after_it` |
//! | 30 | `every_verb_runs_its_job_after_the_response`, `shield_passes_its_result_through_a_handler` |
//! | 34 | `scheduler_set_up_before_the_server_is_drained_after_it`, `handler_in_flight_may_spawn_while_draining` |
//!
//! 31 is in `extractor.rs`, 32 in `layer.rs`.

use std::{future::pending, io, net::SocketAddr};

use axum::{Router, extract::State, http::StatusCode, routing};
use tokio::{
    net::TcpStream,
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tower_jobs::{JobState, Jobs, JobsLayer, Scheduler, SpawnError, TrySpawnError};

use crate::support::{
    PLENTY, SECOND,
    http::{connect, get, listen},
    limited, within,
};

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

async fn serve(app: Router) -> Server {
    let (listener, address) = listen().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) });
    Server { address, stop, served: tokio::spawn(server.into_future()) }
}

/// A client that has sent its request, and leaves when it is dropped.
async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    connect(address, &format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await
}

/// The ends of the handlers and their jobs.
#[derive(Clone)]
struct Ends {
    gate: watch::Receiver<bool>,
    news: mpsc::UnboundedSender<&'static str>,
}

/// The ends of the test.
struct Test {
    scheduler: Scheduler,
    gate: watch::Sender<bool>,
    news: mpsc::UnboundedReceiver<&'static str>,
    ends: Ends,
}

impl Ends {
    fn tell(&self, news: &'static str) {
        self.news.send(news).expect("the test listens");
    }

    async fn gate(&mut self) {
        self.gate.wait_for(|open| *open).await.expect("the test holds the gate");
    }

    /// A job that sends its news once the gate is open.
    async fn job(mut self, news: &'static str) {
        self.gate().await;
        self.tell(news);
    }

    /// Sends its news when it is dropped.
    fn guard(&self, news: &'static str) -> impl Sized + use<> {
        struct Guard(Ends, &'static str);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.tell(self.1);
            }
        }
        Guard(self.clone(), news)
    }
}

impl Test {
    fn new(scheduler: Scheduler) -> Self {
        let (open, gate) = watch::channel(false);
        let (tell, news) = mpsc::unbounded_channel();
        Self { scheduler, gate: open, news, ends: Ends { gate, news: tell } }
    }

    async fn serve(&self, routes: Router<Ends>) -> Server {
        let layer = JobsLayer::new(self.scheduler.clone());
        serve(routes.layer(layer).with_state(self.ends.clone())).await
    }

    fn open(&self) {
        self.gate.send_replace(true);
    }

    async fn heard(&mut self) -> &'static str {
        within("news", self.news.recv()).await.expect("news")
    }

    async fn idle(&self) {
        within("the end of all jobs", self.scheduler.wait_idle()).await;
    }
}

type Answer = Result<StatusCode, SpawnError>;

fn verbs() -> Router<Ends> {
    async fn spawn(jobs: Jobs, State(ends): State<Ends>) -> Answer {
        jobs.spawn(ends.job("spawn")).await?;
        Ok(StatusCode::ACCEPTED)
    }
    async fn try_spawn(jobs: Jobs, State(ends): State<Ends>) -> Answer {
        jobs.try_spawn(ends.job("try_spawn"))?;
        Ok(StatusCode::ACCEPTED)
    }
    async fn spawn_within(jobs: Jobs, State(ends): State<Ends>) -> Answer {
        jobs.spawn_within(SECOND, ends.job("spawn_within")).await?;
        Ok(StatusCode::ACCEPTED)
    }
    async fn spawn_with(jobs: Jobs, State(ends): State<Ends>) -> Answer {
        jobs.spawn_with(|context| async move {
            assert!(!context.is_cancelled(), "it is not cancelled");
            ends.job("spawn_with").await;
        })
        .await?;
        Ok(StatusCode::ACCEPTED)
    }
    async fn spawn_blocking(jobs: Jobs, State(ends): State<Ends>) -> Answer {
        jobs.spawn_blocking(|| Handle::current().block_on(ends.job("spawn_blocking"))).await?;
        Ok(StatusCode::ACCEPTED)
    }
    async fn job(jobs: Jobs, State(ends): State<Ends>) -> Answer {
        jobs.job("a name").timeout(PLENTY).spawn(ends.job("job")).await?;
        Ok(StatusCode::ACCEPTED)
    }
    Router::new()
        .route("/spawn", routing::get(spawn))
        .route("/try_spawn", routing::get(try_spawn))
        .route("/spawn_within", routing::get(spawn_within))
        .route("/spawn_with", routing::get(spawn_with))
        .route("/spawn_blocking", routing::get(spawn_blocking))
        .route("/job", routing::get(job))
}

#[tokio::test]
async fn every_verb_runs_its_job_after_the_response() {
    let mut test = Test::new(Scheduler::new());
    let server = test.serve(verbs()).await;

    for verb in ["spawn", "try_spawn", "spawn_within", "spawn_with", "spawn_blocking", "job"] {
        let answer = get(server.address, &format!("/{verb}")).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);

        let jobs = test.scheduler.jobs();
        assert_eq!(jobs.len(), 1, "the job of {verb} outlives its request");
        assert_eq!(jobs[0].state, JobState::Active);
        assert_eq!(jobs[0].request.as_deref(), Some(format!("GET /{verb}").as_str()));
        assert_eq!(jobs[0].name == "a name", verb == "job");
        assert!(jobs[0].location.file().ends_with("requests.rs"));

        test.open();
        assert_eq!(test.heard().await, verb);
        test.idle().await;
        test.gate.send_replace(false);
    }
    assert_eq!(test.scheduler.stats().completed, 6);
}

#[tokio::test]
async fn shield_passes_its_result_through_a_handler() {
    async fn answer(jobs: Jobs) -> String {
        let label = jobs.scheduler().clone();
        let shielded = jobs.shield(async move { label.jobs()[0].request.clone() }).await;
        shielded.expect("an open scheduler").expect("a label").to_string()
    }
    let test = Test::new(Scheduler::new());
    let server = test.serve(Router::new().route("/shield", routing::get(answer))).await;

    let answer = get(server.address, "/shield").await;

    assert_eq!((answer.status, &*answer.text), (StatusCode::OK, "GET /shield"));
    assert_eq!(test.scheduler.stats().completed, 1);
}

#[tokio::test]
async fn many_requests_at_once_all_have_their_jobs_done() {
    let test = Test::new(limited(3, 5));
    test.open();
    let server = test.serve(verbs()).await;

    let clients: Vec<_> = (0..50).map(|_| tokio::spawn(get(server.address, "/spawn"))).collect();
    for client in clients {
        assert_eq!(client.await.expect("a client").status, StatusCode::ACCEPTED);
    }
    test.idle().await;

    let stats = test.scheduler.stats();
    assert_eq!((stats.accepted, stats.completed), (50, 50));
}

// Clients that leave.

#[tokio::test]
async fn client_leaving_a_waiting_handler_takes_the_job_along() {
    async fn handler(jobs: Jobs, State(ends): State<Ends>) -> Answer {
        let (_guard, carried) = (ends.guard("handler dropped"), ends.guard("job dropped"));
        ends.tell("entered");
        jobs.spawn(async move {
            let _carried = carried;
            ends.tell("job ran");
        })
        .await?;
        Ok(StatusCode::ACCEPTED)
    }
    let mut test = Test::new(limited(1, 1));
    let server = test.serve(Router::new().route("/", routing::get(handler))).await;
    for _ in 0..2 {
        let job = test.ends.clone().job("occupied");
        test.scheduler.spawn(job).await.expect("a running place, then a queue place");
    }

    let client = ask(server.address, "/").await;
    assert_eq!(test.heard().await, "entered");
    assert_eq!(test.scheduler.stats().waiting_spawners, 1);
    drop(client);
    assert_eq!(test.heard().await, "job dropped");
    assert_eq!(test.heard().await, "handler dropped");

    let stats = test.scheduler.stats();
    assert_eq!((stats.waiting_spawners, stats.accepted), (0, 2), "as if it had never come");
    test.open();
    test.idle().await;
    assert_eq!([test.heard().await, test.heard().await], ["occupied"; 2]);
    let occupy = || test.scheduler.try_spawn(pending::<()>());
    occupy().expect("the running place is not leaked");
    occupy().expect("the queue place is not leaked");
    assert!(matches!(occupy(), Err(TrySpawnError::Full(_))), "and no place was won");
}

#[tokio::test]
async fn client_that_leaves_after_the_spawn_leaves_the_job_running() {
    async fn handler(jobs: Jobs, State(ends): State<Ends>) -> Answer {
        let _guard = ends.guard("handler dropped");
        jobs.spawn(ends.clone().job("job ran")).await?;
        ends.tell("spawned");
        pending().await
    }
    let mut test = Test::new(Scheduler::new());
    let server = test.serve(Router::new().route("/", routing::get(handler))).await;

    let client = ask(server.address, "/").await;
    assert_eq!(test.heard().await, "spawned");
    drop(client);
    assert_eq!(test.heard().await, "handler dropped");

    assert_eq!(test.scheduler.active_count(), 1);
    test.open();
    assert_eq!(test.heard().await, "job ran");
    test.idle().await;
    assert_eq!(test.scheduler.stats().completed, 1);
}

#[tokio::test]
async fn client_that_leaves_during_a_shield_leaves_it_running() {
    async fn handler(jobs: Jobs, State(ends): State<Ends>) -> StatusCode {
        let _guard = ends.guard("handler dropped");
        let shielded = jobs.shield(ends.clone().job("shielded"));
        ends.tell("entered");
        shielded.await.expect("an open scheduler");
        StatusCode::OK
    }
    let mut test = Test::new(Scheduler::new());
    let server = test.serve(Router::new().route("/", routing::get(handler))).await;

    let client = ask(server.address, "/").await;
    assert_eq!(test.heard().await, "entered");
    drop(client);
    assert_eq!(test.heard().await, "handler dropped");

    test.open();
    assert_eq!(test.heard().await, "shielded");
    test.idle().await;
    assert_eq!(test.scheduler.stats().completed, 1);
}

#[test]
fn refused_shield_is_dropped_outside_the_lock() {
    struct Counts(Scheduler);
    impl Drop for Counts {
        fn drop(&mut self) {
            assert_eq!(self.0.len(), 0);
        }
    }
    let (tell, heard) = std::sync::mpsc::channel();
    // In a thread of its own, because of a possible deadlock.
    std::thread::spawn(move || {
        tokio_test::block_on(async {
            let scheduler = Scheduler::new();
            scheduler.close().await;
            let counts = Counts(scheduler.clone());
            let refused = scheduler.shield(async move { drop(counts) }).await;
            tell.send(refused.is_err_and(|error| error.is_cancelled())).expect("a test");
        });
    });
    assert_eq!(heard.recv_timeout(PLENTY), Ok(true));
}

// Shutting down.

#[tokio::test]
async fn scheduler_set_up_before_the_server_is_drained_after_it() {
    let mut test = Test::new(Scheduler::builder().limit(1).build());
    let server = test.serve(verbs()).await;
    for verb in ["/spawn", "/job"] {
        assert_eq!(get(server.address, verb).await.status, StatusCode::ACCEPTED);
    }
    assert_eq!((test.scheduler.active_count(), test.scheduler.pending_count()), (1, 1));

    drop(server.stop);
    within("the end of the server", server.served).await.expect("a server").expect("no error");
    let scheduler = test.scheduler.clone();
    let drain = tokio::spawn(async move { scheduler.wait_and_close().await });
    test.open();

    let report = within("the end of the drain", drain).await.expect("a report");
    assert_eq!([test.heard().await, test.heard().await], ["spawn", "job"]);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.completed, 2);
    assert!(test.scheduler.is_closed());
}

#[tokio::test]
async fn handler_in_flight_may_spawn_while_draining() {
    async fn late(jobs: Jobs, State(mut ends): State<Ends>) -> Answer {
        ends.tell("entered");
        ends.gate().await;
        assert!(jobs.scheduler().is_draining(), "the drain began while the handler was at work");
        jobs.spawn(async move { ends.tell("late job ran") }).await?;
        Ok(StatusCode::ACCEPTED)
    }
    let mut test = Test::new(Scheduler::new());
    let server = test.serve(Router::new().route("/late", routing::get(late))).await;
    // Keeps the drain waiting until the late job is there.
    let (release, released) = oneshot::channel::<()>();
    test.scheduler.try_spawn(async { drop(released.await) }).expect("a place");
    let client = tokio::spawn(get(server.address, "/late"));
    assert_eq!(test.heard().await, "entered");

    drop(server.stop);
    let scheduler = test.scheduler.clone();
    let mut drain = tokio_test::task::spawn(scheduler.wait_and_close());
    tokio_test::assert_pending!(drain.poll());
    test.open();

    assert_eq!(client.await.expect("a client").status, StatusCode::ACCEPTED);
    assert_eq!(test.heard().await, "late job ran");
    drop(release);
    let report = within("the end of the drain", drain).await;
    assert_eq!((report.completed, report.is_clean()), (2, true), "{report}");
    within("the end of the server", server.served).await.expect("a server").expect("no error");
}
