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
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{mpsc, watch},
};
use tower_jobs::{Jobs, JobsLayer, ResponseOutcome, Scheduler, SpawnError};

use crate::support::{
    assert_adds_up,
    http::{Answer, Connection},
    limited,
    wire::{Ask, Client, Event, Http1, Http2, Protocol, Server},
    within,
};

const COMPLETE: ResponseOutcome = ResponseOutcome::Complete(StatusCode::OK);
const ABORTED: ResponseOutcome = ResponseOutcome::Aborted(StatusCode::OK);

async fn get_over(connection: &mut Connection<Empty<Bytes>>, path: &str) -> Answer {
    let request = Request::get(path).body(Empty::new()).unwrap();
    connection.send(request).await.unwrap()
}

// A hundred slow clients.

const CLIENTS: usize = 100;
const JOBS_PER_REQUEST: usize = 3;
const LIMIT: usize = 4;
const PENDING_LIMIT: usize = 16;
/// Jobs that another request spawns at once. Beside them there is room for the jobs of one client that
/// has vanished, and for jobs that have returned and still hold their permits.
const OTHER_JOBS: usize = PENDING_LIMIT - LIMIT;
const FRAME: &[u8] = &[b'x'; 16 * 1024];
/// The file is larger than all that hyper, h2 and the two sockets hold.
const FRAMES: usize = 64;
/// Vanishing clients for each read of the slow ones. The slow ones must not finish meanwhile.
const VANISHED_PER_READ: usize = 4;

struct Site {
    server: Server,
    scheduler: Scheduler,
    protocol: Protocol,
    /// One message for each handler that has deferred its jobs.
    entered: mpsc::UnboundedReceiver<()>,
    /// One message for each job that has run.
    ran: mpsc::UnboundedReceiver<ResponseOutcome>,
    /// Held by the response and the jobs of each request.
    held: Arc<()>,
    other: Connection<Empty<Bytes>>,
    others: usize,
}

impl Site {
    async fn start(protocol: Protocol) -> Self {
        let scheduler = limited(LIMIT, PENDING_LIMIT);
        let held = Arc::new(());
        let (enters, entered) = mpsc::unbounded_channel();
        let (runs, ran) = mpsc::unbounded_channel();
        let holds = Arc::downgrade(&held);
        let file = async move |jobs: Jobs| {
            let held = holds.upgrade().unwrap();
            for _ in 0..JOBS_PER_REQUEST {
                let (held, runs) = (held.clone(), runs.clone());
                let job = move |outcome| async move {
                    runs.send(outcome).unwrap();
                    drop(held);
                };
                jobs.after_response_with(job)?;
            }
            enters.send(()).unwrap();
            let frames = (0..FRAMES).map(move |_| {
                let _holds = &held;
                Ok::<_, Infallible>(Bytes::from_static(FRAME))
            });
            Ok::<_, SpawnError>(Body::from_stream(stream::iter(frames)))
        };
        let app = Router::new()
            .route("/file", get(file))
            .route("/try_spawn", get(try_spawns))
            .route("/spawn", get(spawns))
            .layer(JobsLayer::new(scheduler.clone()));
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(16 * 1024).unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let server = Server::on(socket.listen(128).unwrap(), app);
        let other = Connection::open(server.address).await.unwrap();
        Self { server, scheduler, protocol, entered, ran, held, other, others: 0 }
    }

    /// A client whose request has deferred its jobs.
    async fn client(&mut self) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let stream = socket.connect(self.server.address).await.unwrap();
        let mut client = Client::over(stream, self.protocol);
        let close = [("connection", "close")];
        let headers = if self.protocol == Http1 { &close[..] } else { &[] };
        let ask = Ask { path: "/file", headers, ..Ask::default() };
        client.send(&ask.bytes(self.protocol)).await;
        within("the handler", self.entered.recv()).await.unwrap();
        client
    }

    /// Waits for the jobs of so many clients.
    async fn jobs_ran(&mut self, clients: usize, outcome: ResponseOutcome) {
        for _ in 0..clients * JOBS_PER_REQUEST {
            assert_eq!(within("a job", self.ran.recv()).await, Some(outcome));
        }
    }

    /// Another request spawns jobs, and none is refused.
    async fn other_request(&mut self, path: &str) {
        let answer = get_over(&mut self.other, path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        self.others += OTHER_JOBS;
    }

    fn assert_deferred(&self, clients: usize) {
        assert_eq!(self.scheduler.stats().deferred, (clients * JOBS_PER_REQUEST) as u64);
    }

    /// A hundred clients come and go. Returns the number of values that are still held.
    async fn wave(&mut self) -> usize {
        let (mut slow, mut silent, mut vanishing) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..CLIENTS {
            let mut client = self.client().await;
            match n % 3 {
                0 => {
                    client.read_head().await;
                    slow.push(client);
                }
                1 => silent.push(client),
                _ => {
                    client.read_head().await;
                    client.read_body(1).await;
                    vanishing.push(client);
                }
            }
            self.other_request("/try_spawn").await;
            self.assert_deferred(n + 1);
        }
        for (n, client) in vanishing.into_iter().enumerate() {
            if n % VANISHED_PER_READ == 0 {
                for client in &mut slow {
                    assert_eq!(client.next().await, Event::Data);
                }
            }
            drop(client);
            self.other_request("/try_spawn").await;
            self.jobs_ran(1, ABORTED).await;
            self.assert_deferred(CLIENTS - n - 1);
        }
        let finishing = slow.len();
        for (n, mut client) in slow.into_iter().enumerate() {
            assert!(client.read_to_end().await);
            self.other_request("/try_spawn").await;
            self.jobs_ran(1, COMPLETE).await;
            self.assert_deferred(silent.len() + finishing - n - 1);
        }
        // All at once: their jobs fill the queue, and a spawner may wait for a place.
        let leaving = silent.len();
        drop(silent);
        self.other_request("/spawn").await;
        self.jobs_ran(leaving, ABORTED).await;
        for _ in 0..CLIENTS {
            self.server.connection_ended().await;
        }
        within("the jobs", self.scheduler.wait_idle()).await;
        Arc::strong_count(&self.held) - 1
    }
}

async fn try_spawns(jobs: Jobs) -> Result<(), SpawnError> {
    let spawned: Result<Vec<_>, _> = (0..OTHER_JOBS).map(|_| jobs.try_spawn(async {})).collect();
    for job in spawned? {
        job.await.unwrap();
    }
    Ok(())
}

async fn spawns(jobs: Jobs) -> Result<(), SpawnError> {
    for _ in 0..OTHER_JOBS {
        jobs.spawn(async {}).await?;
    }
    Ok(())
}

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
