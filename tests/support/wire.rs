//! Servers on real sockets, and clients that control every byte they send and read.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use hyper::{
    HeaderMap,
    body::{Body, Bytes, Frame, Incoming},
    header::{HeaderName, HeaderValue},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
};
use tower::Service;
use tower_jobs::{BoxError, Jobs, ResponseOutcome, Scheduler};

use super::{OnDrop, assert_adds_up, http::listen, within};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

pub(crate) use Protocol::{Http1, Http2};

// The server.

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    ended: mpsc::UnboundedReceiver<()>,
}

impl Server {
    /// Serves HTTP/1.1 and HTTP/2 on a free port, on this runtime.
    pub(crate) async fn start<S, B>(service: S) -> Self
    where
        S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        Self::on(listen().await.0, service)
    }

    pub(crate) fn on<S, B>(listener: TcpListener, service: S) -> Self
    where
        S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let address = listener.local_addr().unwrap();
        let (end, ended) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(service.clone());
                let sender = end.clone();
                let end = OnDrop(move || {
                    let _sent = sender.send(());
                });
                tokio::spawn(async move {
                    let _end = end;
                    let server = auto::Builder::new(TokioExecutor::new());
                    let io = TokioIo::new(stream);
                    // A connection may fail, since clients leave at any time.
                    drop(server.serve_connection_with_upgrades(io, service).await);
                });
            }
        });
        Self { address, ended }
    }

    /// Resolves when one more connection has ended or failed.
    pub(crate) async fn connection_ended(&mut self) {
        within("the end of the connection", self.ended.recv()).await;
    }
}

// Requests, as bytes.

#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
}

impl Default for Ask<'_> {
    fn default() -> Self {
        Self { method: "GET", path: "/", headers: &[], body: &[] }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A literal header field without indexing, and without Huffman coding.
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).ok().filter(|&length| length < 127).unwrap();
    let mut bytes = vec![0, length(name)];
    bytes.extend(name.as_bytes());
    bytes.push(length(value));
    bytes.extend(value.as_bytes());
    bytes
}

impl Ask<'_> {
    /// All that a client sends on a new connection for this one request.
    pub(crate) fn bytes(&self, protocol: Protocol) -> Vec<u8> {
        let length = self.body.len().to_string();
        let length = [("content-length", length.as_str())];
        let headers = self.headers.iter().chain(length.iter().filter(|_| !self.body.is_empty()));
        if protocol == Http1 {
            let headers: String =
                headers.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head =
                format!("{} {} HTTP/1.1\r\nhost: test\r\n{headers}\r\n", self.method, self.path);
            return [head.as_bytes(), self.body].concat();
        }
        let pseudo = [
            (":method", self.method),
            (":scheme", "http"),
            (":path", self.path),
            (":authority", "test"),
        ];
        let head = pseudo.iter().chain(headers).flat_map(|(name, value)| field(name, value));
        let head: Vec<u8> = head.collect();
        let ends = if self.body.is_empty() { END_STREAM } else { 0 };
        let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        bytes.extend(frame(HEADERS, END_HEADERS | ends, 1, &head));
        if !self.body.is_empty() {
            bytes.extend(frame(DATA, END_STREAM, 1, self.body));
        }
        bytes
    }
}

// The client.

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    protocol: Protocol,
    unread: Vec<u8>,
    /// How many bytes have been read.
    pub(crate) read: usize,
    /// The body of the response so far, over HTTP/1.1 with its chunk headers.
    pub(crate) body: Vec<u8>,
}

/// The next part of a response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Head,
    /// More of the body.
    Data,
    /// The response has ended as it should.
    End,
    /// It has been cut off.
    Broken,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, protocol: Protocol) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), protocol)
    }

    pub(crate) fn over(stream: TcpStream, protocol: Protocol) -> Self {
        Self { stream, protocol, unread: Vec::new(), read: 0, body: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends a stream reset.
    pub(crate) async fn reset(&mut self) {
        assert_eq!(self.protocol, Http2);
        const CANCEL: u32 = 8;
        self.send(&frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())).await;
    }

    pub(crate) async fn read_head(&mut self) {
        assert_eq!(self.next().await, Event::Head);
    }

    pub(crate) async fn read_body(&mut self, least: usize) {
        while self.body.len() < least {
            assert_eq!(self.next().await, Event::Data, "after {:?}", self.body);
        }
    }

    /// Reads the rest. Gives whether it came to its proper end.
    pub(crate) async fn read_to_end(&mut self) -> bool {
        loop {
            match self.next().await {
                Event::Head | Event::Data => {}
                Event::End => return true,
                Event::Broken => return false,
            }
        }
    }

    /// The head, then the body piece by piece, then the end. Over HTTP/1.1 the end is the end of
    /// the connection, which every request here asks for.
    pub(crate) async fn next(&mut self) -> Event {
        within("the response", async {
            match self.protocol {
                Http1 => self.next_http1().await,
                Http2 => self.next_http2().await,
            }
        })
        .await
        .unwrap_or(Event::Broken)
    }

    async fn next_http1(&mut self) -> io::Result<Event> {
        if self.body.is_empty() && self.unread.is_empty() {
            while !self.unread.ends_with(b"\r\n\r\n") {
                self.unread.push(self.stream.read_u8().await?);
            }
            self.read = self.unread.len();
            return Ok(Event::Head);
        }
        let read = self.stream.read_buf(&mut self.body).await?;
        self.read += read;
        Ok(if read == 0 { Event::End } else { Event::Data })
    }

    async fn next_http2(&mut self) -> io::Result<Event> {
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags, stream) = (head[3], head[4], head[8]);
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await?;
            self.read += head.len() + length;
            if kind == DATA && flags & END_STREAM == 0 {
                self.widen(stream, length).await;
            }
            let ends = stream == 1 && flags & END_STREAM != 0;
            if kind == DATA {
                self.body.extend(&payload);
            }
            return Ok(match kind {
                DATA | HEADERS if ends => Event::End,
                DATA => Event::Data,
                HEADERS => Event::Head,
                RST_STREAM | GOAWAY => Event::Broken,
                _ => continue,
            });
        }
    }

    /// Allows the server to send as much again as has been read.
    async fn widen(&mut self, stream: u8, length: usize) {
        let length = u32::try_from(length).unwrap();
        if length > 0 {
            for stream in [0, u32::from(stream)] {
                let update = frame(WINDOW_UPDATE, 0, stream, &length.to_be_bytes());
                // A server that has sent all may be gone.
                let _sent = self.stream.write_all(&update).await;
            }
        }
    }
}

// Bodies.

pub(crate) enum Step {
    Data(Bytes),
    /// `sum: 1`
    Trailers,
    Wait(Arc<Notify>),
    /// Lets other tasks go first.
    Yield,
    Fail,
    Panic,
}

impl Step {
    pub(crate) fn text(text: &'static str) -> Self {
        Self::Data(Bytes::from_static(text.as_bytes()))
    }
}

/// A response body that follows its steps, and has no length.
pub(crate) struct Script {
    steps: VecDeque<Step>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), waiting: None }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            return Poll::Ready(match self.steps.pop_front() {
                None => None,
                Some(Step::Data(bytes)) => Some(Ok(Frame::data(bytes))),
                Some(Step::Trailers) => {
                    let sum = (HeaderName::from_static("sum"), HeaderValue::from_static("1"));
                    Some(Ok(Frame::trailers(HeaderMap::from_iter([sum]))))
                }
                Some(Step::Fail) => Some(Err("the body fails".into())),
                Some(Step::Panic) => panic!("the body panics"),
                Some(Step::Wait(signal)) => {
                    self.waiting = Some(Box::pin(async move { signal.notified().await }));
                    continue;
                }
                Some(Step::Yield) => {
                    self.waiting = Some(Box::pin(tokio::task::yield_now()));
                    continue;
                }
            });
        }
    }
}

// The outcomes of the jobs.

/// Defers one job of each kind, and keeps their outcomes.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    started: Arc<AtomicUsize>,
    succeeded: Arc<AtomicUsize>,
    outcomes: Arc<Mutex<Vec<ResponseOutcome>>>,
}

impl Recorder {
    pub(crate) fn defer(&self, jobs: &Jobs) {
        let Self { started, succeeded, outcomes } = self.clone();
        let count = |counter: Arc<AtomicUsize>| async move {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        jobs.after_response(count(started)).unwrap();
        jobs.after_success(count(succeeded)).unwrap();
        jobs.after_response_with(|outcome| async move { outcomes.lock().unwrap().push(outcome) })
            .unwrap();
    }

    /// Calls [`defer`](Self::defer) for every request that passes.
    pub(crate) fn defer_for<B>(self) -> impl Fn(hyper::Request<B>) -> hyper::Request<B> + Clone {
        move |request| {
            self.defer(request.extensions().get().expect("inside the layer"));
            request
        }
    }

    pub(crate) fn outcomes(&self) -> Vec<ResponseOutcome> {
        self.outcomes.lock().unwrap().clone()
    }

    /// Checks that each job started or was skipped once, as that outcome demands, and that the counts
    /// add up.
    pub(crate) fn check(
        &self,
        scheduler: &Scheduler,
        expected: Option<ResponseOutcome>,
    ) -> Result<(), String> {
        let is_success =
            matches!(expected, Some(ResponseOutcome::Complete(status)) if status.as_u16() < 400);
        let requests = usize::from(expected.is_some());
        let seen = (
            self.outcomes(),
            self.started.load(Ordering::Relaxed),
            self.succeeded.load(Ordering::Relaxed),
        );
        let wanted = (Vec::from_iter(expected), requests, usize::from(is_success));
        if seen != wanted {
            return Err(format!("(outcomes, started, succeeded) {seen:?}, expected {wanted:?}"));
        }
        let stats = scheduler.stats();
        let (requests, success) = (requests as u64, u64::from(is_success));
        if (stats.accepted, stats.completed, stats.skipped)
            != (3 * requests, 2 * requests + success, requests - success)
            || !scheduler.is_empty()
        {
            return Err(format!("{stats:?}"));
        }
        assert_adds_up(&stats);
        Ok(())
    }
}
