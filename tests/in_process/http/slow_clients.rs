//! Clients that read slowly, read nothing or vanish, and more load than a scheduler takes: both leave
//! no memory behind.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{future::join_all, stream};
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request, StatusCode,
    body::Bytes,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::watch};
use tower_jobs::{Jobs, JobsLayer, Scheduler, SpawnError};

use crate::support::{
    assert_adds_up,
    http::Connection,
    slow_clients::{CLIENTS, JOBS_PER_REQUEST, Site, get_over},
    wire::{Http1, Http2, Protocol, Server},
    within,
};

// A hundred slow clients.

/// Three waves of the same clients. The values that a request and its jobs hold are counted.
async fn slow_clients(protocol: Protocol) {
    let mut site = Site::start(protocol).await;
    for wave in 1..=3 {
        assert_eq!(site.wave().await, 0, "held after wave {wave}");
        let stats = site.scheduler.stats();
        let deferred = wave * CLIENTS * JOBS_PER_REQUEST;
        assert_eq!(stats.accepted, (deferred + site.others) as u64);
        assert_eq!((stats.completed, stats.deferred), (stats.accepted, 0), "{stats:?}");
        assert_eq!(stats.refused.total(), 0, "{stats:?}");
        assert_adds_up(&stats);
        assert!(site.scheduler.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_slow_http1_clients_make_no_other_spawn_fail() {
    slow_clients(Http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_slow_http2_clients_make_no_other_spawn_fail() {
    slow_clients(Http2).await;
}

// Ten times more load than the scheduler takes.

const RUNNING: usize = 20;
const QUEUED: usize = 20;
const DEFERRED: usize = 20;
/// The most jobs that the scheduler ever holds.
const CAPACITY: usize = RUNNING + QUEUED + DEFERRED;
const CONNECTIONS: usize = 20;

/// Accepted and refused requests.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    accepted: usize,
    refused: usize,
}

impl Counts {
    fn of(answers: impl IntoIterator<Item = StatusCode>) -> Self {
        let mut counts = Self::default();
        for status in answers {
            match status {
                StatusCode::OK => counts.accepted += 1,
                _ => counts.refused += 1,
            }
        }
        counts
    }
}

/// Checks the head of a response of the site.
fn accepted_or_503(status: StatusCode, headers: &HeaderMap) -> StatusCode {
    if status != StatusCode::OK {
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(headers["retry-after"], "1");
    }
    status
}

/// A site whose responses to `/held`, and whose jobs, end when the gate is open.
struct Busy {
    address: SocketAddr,
    _server: Server,
    scheduler: Scheduler,
    gate: watch::Sender<bool>,
    held: Arc<()>,
    ran: Arc<AtomicUsize>,
    most_jobs: Arc<AtomicUsize>,
}

impl Busy {
    async fn start() -> Self {
        let scheduler = Scheduler::builder()
            .limit(RUNNING)
            .pending_limit(QUEUED)
            .deferred_limit(DEFERRED)
            .build();
        let (gate, opens) = watch::channel(false);
        let (held, ran, most_jobs) = (Arc::new(()), Arc::default(), Arc::default());
        let defer = {
            let (holds, opens) = (Arc::downgrade(&held), opens.clone());
            let (ran, most_jobs) = (Arc::clone(&ran), Arc::clone(&most_jobs));
            move |jobs: &Jobs| {
                let held = holds.upgrade().unwrap();
                let (mut opens, ran) = (opens.clone(), Arc::<AtomicUsize>::clone(&ran));
                let deferred = jobs.after_response(async move {
                    opens.wait_for(|open| *open).await.unwrap();
                    ran.fetch_add(1, SeqCst);
                    drop(held);
                });
                AtomicUsize::fetch_max(&most_jobs, jobs.scheduler().len(), SeqCst);
                deferred.map(drop).map_err(SpawnError::from)
            }
        };
        let quick = {
            let defer = defer.clone();
            async move |jobs: Jobs| defer(&jobs)
        };
        let held_open = async move |jobs: Jobs| -> Result<Response, SpawnError> {
            defer(&jobs)?;
            let mut opens = opens.clone();
            let end = async move {
                opens.wait_for(|open| *open).await.unwrap();
                Ok::<_, Infallible>("the end")
            };
            Ok(Body::from_stream(stream::once(end)).into_response())
        };
        let app = Router::new()
            .route("/quick", get(quick))
            .route("/held", get(held_open))
            .layer(JobsLayer::new(scheduler.clone()));
        let server = Server::start(app).await;
        let address = server.address;
        Self { address, _server: server, scheduler, gate, held, ran, most_jobs }
    }

    /// Ten times more requests than there is room for, whose responses end at once.
    async fn quick_requests(&self) -> Counts {
        const PER_CONNECTION: usize = 10 * CAPACITY / CONNECTIONS;
        let clients = (0..CONNECTIONS).map(|_| async {
            let mut connection = Connection::open(self.address).await.unwrap();
            let mut statuses = Vec::new();
            for _ in 0..PER_CONNECTION {
                let answer = get_over(&mut connection, "/quick").await;
                statuses.push(accepted_or_503(answer.status, &answer.headers));
            }
            statuses
        });
        Counts::of(join_all(clients).await.into_iter().flatten())
    }

    /// Ten times more responses than `deferred_limit`, all open at once until the gate is open.
    async fn held_requests(&self) -> Counts {
        const STREAMS: usize = 10 * DEFERRED / CONNECTIONS;
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(http2_client(self.address).await);
        }
        let requests = connections.iter().flat_map(|client| vec![client; STREAMS]).map(|client| {
            let mut client = client.clone();
            async move {
                let uri = "http://test/held";
                let request = Request::get(uri).body(Empty::new()).unwrap();
                client.ready().await.unwrap();
                within("the head", client.send_request(request)).await.unwrap()
            }
        });
        let responses = join_all(requests).await;
        let statuses = responses.iter().map(|open| accepted_or_503(open.status(), open.headers()));
        let counts = Counts::of(statuses);
        assert_eq!(self.scheduler.stats().deferred, counts.accepted as u64);
        self.gate.send(true).unwrap();
        for response in responses {
            within("the body", response.into_body().collect()).await.unwrap();
        }
        counts
    }

    /// Opens the gate until all jobs have run.
    async fn let_all_run(&self) {
        self.gate.send(true).unwrap();
        within("the jobs", self.scheduler.wait_idle()).await;
        self.gate.send(false).unwrap();
    }
}

async fn http2_client(address: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (client, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The scheduler holds at most `CAPACITY` jobs, and the values that jobs hold are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenfold_load_is_answered_503_and_leaves_nothing() {
    let busy = Busy::start().await;
    let (mut accepted, mut refused) = (0, 0);
    for round in 1..=3 {
        let quick = busy.quick_requests().await;
        assert_eq!(quick.accepted + quick.refused, 10 * CAPACITY);
        assert!((RUNNING + QUEUED..=CAPACITY).contains(&quick.accepted), "{round}: {quick:?}");
        assert_eq!(busy.scheduler.len(), quick.accepted);
        busy.let_all_run().await;

        let held = busy.held_requests().await;
        assert_eq!((held.accepted, held.refused), (DEFERRED, 9 * DEFERRED), "{round}");
        busy.let_all_run().await;

        accepted += quick.accepted + held.accepted;
        refused += quick.refused + held.refused;
        let stats = busy.scheduler.stats();
        assert_eq!((stats.accepted, stats.completed), (accepted as u64, accepted as u64));
        let refusals = stats.refused.pending_full + stats.refused.deferred_full;
        assert_eq!((refusals, stats.refused.total()), (refused as u64, refused as u64));
        assert!(stats.refused.pending_full > 0 && stats.refused.deferred_full > 0, "{stats:?}");
        assert_adds_up(&stats);
        assert_eq!(busy.ran.load(SeqCst), accepted);
        assert_eq!(Arc::strong_count(&busy.held), 1, "held after round {round}");
        assert!(busy.most_jobs.load(SeqCst) <= CAPACITY);
    }
}
