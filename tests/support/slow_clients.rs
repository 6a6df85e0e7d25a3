//! A hundred clients that read slowly, read nothing or vanish, each with deferred jobs.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use axum::{Router, body::Body, routing::get};
use futures_util::stream;
use http_body_util::Empty;
use hyper::{Request, StatusCode, body::Bytes};
use tokio::{net::TcpSocket, sync::mpsc};
use tower_jobs::{Jobs, JobsLayer, ResponseOutcome, Scheduler, SpawnError};

use super::{
    http::{Answer, Connection},
    limited,
    wire::{Ask, Client, Event, Http1, Protocol, Server},
    within,
};

const COMPLETE: ResponseOutcome = ResponseOutcome::Complete(StatusCode::OK);
const ABORTED: ResponseOutcome = ResponseOutcome::Aborted(StatusCode::OK);

pub(crate) async fn get_over(connection: &mut Connection<Empty<Bytes>>, path: &str) -> Answer {
    let request = Request::get(path).body(Empty::new()).unwrap();
    connection.send(request).await.unwrap()
}

pub(crate) const CLIENTS: usize = 100;
pub(crate) const JOBS_PER_REQUEST: usize = 3;
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

/// A server whose file is larger than a connection holds, and another client, which never waits for them.
pub(crate) struct Site {
    server: Server,
    pub(crate) scheduler: Scheduler,
    protocol: Protocol,
    /// One message for each handler that has deferred its jobs.
    entered: mpsc::UnboundedReceiver<()>,
    /// One message for each job that has run.
    ran: mpsc::UnboundedReceiver<ResponseOutcome>,
    /// Held by the response and the jobs of each request.
    held: Arc<()>,
    other: Connection<Empty<Bytes>>,
    /// Jobs of the other client.
    pub(crate) others: usize,
}

impl Site {
    pub(crate) async fn start(protocol: Protocol) -> Self {
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
    pub(crate) async fn wave(&mut self) -> usize {
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
