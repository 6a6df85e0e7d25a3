//! `after_response` jobs start neither before the bytes of the response, nor in their way.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc as blocking,
    },
    task::{Context, Poll},
    thread,
};

use axum::{
    Router,
    body::Body,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::{Bytes, Frame, Incoming},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpSocket, TcpStream},
    runtime,
    sync::{Notify, mpsc, oneshot},
    task::yield_now,
};
use tower_jobs::{Jobs, JobsLayer, ResponseOutcome, Scheduler};

use crate::support::{
    SECOND, limited,
    wire::{Ask, Client, Event, Http1, Http2, Protocol, Recorder, Script, Server, Step},
    within,
};

const FRAME: usize = 64 * 1024;
const FRAMES: usize = 128;
const TOTAL: usize = FRAME * FRAMES;
/// An upper bound of the bytes that hyper, h2 and the two sockets hold.
const BUFFERS: usize = 2 * 1024 * 1024;

/// A body of many frames without a length. It counts the frames that were taken.
struct Counted {
    left: usize,
    taken: Arc<AtomicUsize>,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        self.taken.fetch_add(1, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; FRAME])))))
    }
}

/// A server and a client with small socket buffers.
async fn narrow(protocol: Protocol, app: Router) -> (Server, Client) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(16 * 1024).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let server = Server::on(socket.listen(1).unwrap(), app);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    (server, Client::over(stream, protocol))
}

async fn ask(client: &mut Client, protocol: Protocol) {
    client.send(&Ask::default().bytes(protocol)).await;
    client.read_head().await;
}

/// The state at the start of the job.
struct Start {
    outcome: ResponseOutcome,
    frames_taken: usize,
    bytes_read: usize,
}

#[tokio::test]
async fn job_does_not_start_while_its_client_is_slow_to_read() {
    for protocol in [Http1, Http2] {
        let scheduler = Scheduler::new();
        let (taken, read) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (started, mut start) = mpsc::unbounded_channel();
        let handler = {
            let read = read.clone();
            async move |jobs: Jobs| {
                let body = Counted { left: FRAMES, taken: taken.clone() };
                let job = async move |outcome| {
                    let (frames_taken, bytes_read) = (taken.load(Relaxed), read.load(Relaxed));
                    started.send(Start { outcome, frames_taken, bytes_read }).unwrap();
                };
                jobs.after_response_with(job).unwrap();
                Body::new(body)
            }
        };
        let app = Router::new().route("/", get(handler)).layer(JobsLayer::new(scheduler.clone()));
        let (_server, mut client) = narrow(protocol, app).await;
        ask(&mut client, protocol).await;
        while client.body.len() < TOTAL - BUFFERS {
            assert_eq!(client.next().await, Event::Data);
            read.store(client.body.len(), Relaxed);
            assert_eq!(scheduler.stats().deferred, 1, "{} bytes read", client.body.len());
        }
        while client.body.len() < TOTAL {
            assert_eq!(client.next().await, Event::Data);
            read.store(client.body.len(), Relaxed);
        }
        let start = within("the job", start.recv()).await.unwrap();
        assert_eq!(start.outcome, ResponseOutcome::Complete(StatusCode::OK));
        assert_eq!(start.frames_taken, FRAMES);
        assert!(start.bytes_read >= TOTAL - BUFFERS, "{protocol:?}: {} read", start.bytes_read);
    }
}

#[tokio::test]
async fn job_starts_as_aborted_when_a_slow_reader_leaves() {
    for protocol in [Http1, Http2] {
        let scheduler = Scheduler::new();
        let taken = Arc::new(AtomicUsize::new(0));
        let (started, mut start) = mpsc::unbounded_channel();
        let handler = {
            let taken = taken.clone();
            async move |jobs: Jobs| {
                let job = async move |outcome| started.send(outcome).unwrap();
                jobs.after_response_with(job).unwrap();
                Body::new(Counted { left: FRAMES, taken })
            }
        };
        let app = Router::new().route("/", get(handler)).layer(JobsLayer::new(scheduler));
        let (_server, mut client) = narrow(protocol, app).await;
        ask(&mut client, protocol).await;
        client.read_body(FRAME).await;
        drop(client);
        let outcome = within("the job", start.recv()).await.unwrap();
        assert_eq!(outcome, ResponseOutcome::Aborted(StatusCode::OK));
        assert!(taken.load(Relaxed) < FRAMES);
    }
}

/// The layer sees only that the server took the frame, whatever its size.
#[tokio::test]
async fn body_of_one_frame_is_handed_over_before_anything_is_read() {
    for protocol in [Http1, Http2] {
        let scheduler = Scheduler::new();
        let (started, mut start) = mpsc::unbounded_channel();
        let handler = async move |jobs: Jobs| {
            let job = async move |outcome| started.send(outcome).unwrap();
            jobs.after_response_with(job).unwrap();
            vec![b'x'; TOTAL]
        };
        let app = Router::new().route("/", get(handler)).layer(JobsLayer::new(scheduler));
        let (_server, mut client) = narrow(protocol, app).await;
        client.send(&Ask::default().bytes(protocol)).await;
        let outcome = within("the job", start.recv()).await.unwrap();
        assert_eq!(outcome, ResponseOutcome::Complete(StatusCode::OK));
        client.read_head().await;
        while client.body.len() < TOTAL {
            assert_ne!(client.next().await, Event::Broken);
        }
    }
}

// HTTP/2 streams whose window is used up.

/// Client and server of one HTTP/2 connection. The connection's window is `window` bytes.
async fn http2_client(address: SocketAddr, window: u32) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_connection_window_size(window)
        .initial_stream_window_size(window)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

async fn http2_get(
    client: &mut SendRequest<Empty<Bytes>>,
    path: &str,
) -> hyper::Response<Incoming> {
    let uri = format!("http://test{path}");
    let request = hyper::Request::get(uri).body(Empty::new()).unwrap();
    client.ready().await.unwrap();
    within("the head", client.send_request(request)).await.unwrap()
}

/// The smallest window that HTTP/2 has for a connection.
const WINDOW: u32 = 65_535;

/// Serves an endless download, and a response of one frame that defers jobs.
async fn serve_beside_a_download() -> (Server, Scheduler, Recorder) {
    let (scheduler, recorder) = (Scheduler::new(), Recorder::default());
    let defers = recorder.clone();
    let small = async move |jobs: Jobs| {
        defers.defer(&jobs);
        "hello"
    };
    let download =
        async || Body::new(Counted { left: usize::MAX, taken: Arc::new(AtomicUsize::new(0)) });
    let app = Router::new()
        .route("/small", get(small))
        .route("/download", get(download))
        .layer(JobsLayer::new(scheduler.clone()));
    (Server::start(app).await, scheduler, recorder)
}

#[tokio::test]
async fn response_reset_behind_a_stalled_download_is_aborted() {
    const RESETS: usize = 20;
    let (server, scheduler, recorder) = serve_beside_a_download().await;
    let mut client = http2_client(server.address, WINDOW).await;
    // It uses up the window of the connection, and is not read.
    let stalled = http2_get(&mut client, "/download").await;
    for resets in 1..=RESETS {
        let response = http2_get(&mut client, "/small").await;
        assert_eq!(response.status(), StatusCode::OK);
        // The client has the head. Dropping the body resets the stream.
        drop(response);
        within("the jobs", scheduler.wait_idle()).await;
        let aborted = vec![ResponseOutcome::Aborted(StatusCode::OK); resets];
        assert_eq!(recorder.outcomes(), aborted);
    }
    let stats = scheduler.stats();
    assert_eq!((stats.completed, stats.skipped), (2 * RESETS as u64, RESETS as u64));
    drop(stalled);
}

#[tokio::test]
async fn response_behind_a_stalled_download_ends_once_it_is_sent() {
    let (server, scheduler, recorder) = serve_beside_a_download().await;
    let mut client = http2_client(server.address, WINDOW).await;
    let mut stalled = http2_get(&mut client, "/download").await;
    let response = http2_get(&mut client, "/small").await;
    for _ in 0..100 {
        yield_now().await;
    }
    assert_eq!(scheduler.stats().deferred, 3, "its frame has not been sent");
    let reads = async {
        while let Some(frame) = stalled.frame().await {
            frame.unwrap();
        }
    };
    let small = response.into_body().collect();
    tokio::select! {
        small = small => assert_eq!(small.unwrap().to_bytes(), "hello"),
        () = reads => unreachable!("the download is endless"),
    }
    within("the jobs", scheduler.wait_idle()).await;
    recorder.check(&scheduler, Some(ResponseOutcome::Complete(StatusCode::OK))).unwrap();
}

// Deferred jobs of clients that do not read.

#[tokio::test]
async fn clients_that_do_not_read_make_no_other_spawn_fail() {
    const PER_REQUEST: usize = 3;
    const LIMIT: usize = 4;
    let scheduler = limited(LIMIT, 0);
    let go = Arc::new(Notify::new());
    let defer = |jobs: &Jobs| {
        for _ in 0..PER_REQUEST {
            jobs.after_response(async {}).unwrap();
        }
    };
    let endless = async move |jobs: Jobs| {
        defer(&jobs);
        Body::new(Counted { left: usize::MAX, taken: Arc::new(AtomicUsize::new(0)) })
    };
    let (goes, entered) = (go.clone(), Arc::new(Notify::new()));
    let enters = entered.clone();
    let hanging = async move |jobs: Jobs| {
        defer(&jobs);
        enters.notify_one();
        goes.notified().await;
    };
    let app = Router::new()
        .route("/", get(endless))
        .route("/hanging", get(hanging))
        .layer(JobsLayer::new(scheduler.clone()));
    let (server, mut first) = narrow(Http1, app).await;
    ask(&mut first, Http1).await;
    let mut second = Client::connect(server.address, Http1).await;
    ask(&mut second, Http1).await;
    // The server does not see that a client has left if it sent a byte too many.
    let mut gone = Client::connect(server.address, Http1).await;
    let bytes = Ask { path: "/hanging", ..Ask::default() }.bytes(Http1);
    gone.send(&[&bytes, &b"G"[..]].concat()).await;
    within("the handler", entered.notified()).await;
    drop(gone);

    for _ in 0..50 {
        assert_eq!(scheduler.stats().deferred, 3 * PER_REQUEST as u64);
        let jobs: Vec<_> =
            (0..LIMIT).map(|_| scheduler.try_spawn(async {}).expect("4 of 4 are free")).collect();
        assert!(scheduler.try_spawn(async {}).is_err_and(|error| error.is_full()));
        for job in jobs {
            job.await.unwrap();
        }
    }
    drop((first, second));
    go.notify_one();
    within("the jobs", scheduler.wait_idle()).await;
    let stats = scheduler.stats();
    assert_eq!((stats.accepted, stats.completed), (209, 209));
}

// Jobs that block their thread.

#[derive(Clone, Copy, Debug)]
enum Threads {
    /// A current-thread runtime.
    Current,
    /// A multi-thread runtime, as on a machine with one core.
    OneWorker,
}

impl Threads {
    fn runtime(self) -> runtime::Runtime {
        let mut builder = match self {
            Self::Current => runtime::Builder::new_current_thread(),
            Self::OneWorker => runtime::Builder::new_multi_thread(),
        };
        builder.worker_threads(1).enable_all().build().unwrap()
    }
}

/// Where the job starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// In a task of its own.
    Free,
    /// From the queue, in the task of a job that ends at that moment.
    Queued,
}

struct Shape {
    name: &'static str,
    make: fn() -> Response,
    /// How the body ends on the wire, over HTTP/1.1.
    end: &'static [u8],
}

const SHAPES: [Shape; 3] = [
    Shape { name: "empty", make: || StatusCode::NO_CONTENT.into_response(), end: b"" },
    Shape { name: "fixed", make: || "hello".into_response(), end: b"hello" },
    Shape {
        name: "streamed",
        make: || {
            let frames = ["hel", "lo"].map(Step::text);
            Body::new(Script::new(frames)).into_response()
        },
        end: b"0\r\n\r\n",
    },
];

/// A route whose `after_response` job blocks its thread until it is released. The job sends whether
/// it was released in time.
fn blocks(comes: Comes, make: fn() -> Response) -> (Router, blocking::Sender<()>, InTime) {
    let (release, released) = blocking::channel::<()>();
    let (tell, in_time) = mpsc::unbounded_channel();
    let released = Arc::new(Mutex::new(Some(released)));
    let handler = async move |jobs: Jobs| {
        let released = released.lock().unwrap().take().expect("one request");
        let runs = Arc::new(Notify::new());
        let before = Arc::new(Notify::new());
        if comes == Comes::Queued {
            let (runs, before) = (runs.clone(), before.clone());
            let job = async move {
                runs.notify_one();
                before.notified().await;
            };
            jobs.try_spawn(job).unwrap();
        } else {
            runs.notify_one();
        }
        runs.notified().await;
        jobs.after_response(async move {
            tell.send(released.recv_timeout(10 * SECOND).is_ok()).unwrap();
        })
        .unwrap();
        // The job before it ends now, and the server takes the response in the same step.
        before.notify_one();
        make()
    };
    let scheduler = Scheduler::builder().limit(1).build();
    (Router::new().route("/", get(handler)).layer(JobsLayer::new(scheduler)), release, in_time)
}

type InTime = mpsc::UnboundedReceiver<bool>;

/// Serves in a thread of its own until the sender is dropped.
fn serve_apart(threads: Threads, app: Router) -> (SocketAddr, oneshot::Sender<()>) {
    let (address, at) = blocking::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    thread::spawn(move || {
        threads.runtime().block_on(async move {
            address.send(Server::start(app).await.address).unwrap();
            let _dropped = stopped.await;
        });
    });
    (at.recv().unwrap(), stop)
}

async fn its_response_is_not_delayed(
    threads: Threads,
    comes: Comes,
    protocol: Protocol,
    shape: &Shape,
) -> bool {
    let (app, release, mut in_time) = blocks(comes, shape.make);
    let (address, _running) = serve_apart(threads, app);
    let mut client = Client::connect(address, protocol).await;
    client.send(&Ask::default().bytes(protocol)).await;
    match protocol {
        Http1 => {
            client.read_head().await;
            while !client.body.ends_with(shape.end) {
                assert_eq!(client.next().await, Event::Data);
            }
        }
        Http2 => assert!(client.read_to_end().await),
    }
    // This comes too late if the response has waited for the job.
    let _sent = release.send(());
    within("the job", in_time.recv()).await.unwrap()
}

#[tokio::test]
async fn job_that_blocks_its_thread_does_not_delay_its_response() {
    let mut delayed = Vec::new();
    for threads in [Threads::Current, Threads::OneWorker] {
        for comes in [Comes::Free, Comes::Queued] {
            for protocol in [Http1, Http2] {
                for shape in &SHAPES {
                    if !its_response_is_not_delayed(threads, comes, protocol, shape).await {
                        delayed.push(format!("{threads:?} {comes:?} {protocol:?} {}", shape.name));
                    }
                }
            }
        }
    }
    assert!(delayed.is_empty(), "{delayed:#?}");
}
