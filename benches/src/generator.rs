//! A load generator for HTTP/1.1, in a process of its own.
//!
//! A second process, because what it costs is then seen to be its own: the server's processor time
//! can be read without it, and the two share neither an allocator nor a runtime. It is made to cost
//! little: the request is always the same bytes on connections that stay open, and of the response
//! no more is read than it takes to know that it is right.
//!
//! It has two ways to load a server:
//!
//! - *closed*: every connection sends its next request once the last one is answered. This finds
//!   out how many requests a server can answer. Its latencies are those at full load, and a server
//!   that stalls is asked less meanwhile.
//! - *open*: requests come at a fixed rate, whatever becomes of those before. If a connection is
//!   still busy when its next request is due, that one's latency is measured from when it was due:
//!   a server that stalls for 50 ms delays all requests that were due in these 50 ms, and each of
//!   them counts. If the connection is free, the measuring begins when the generator sends. By how
//!   much it was then late itself, because the machine woke it late, is told apart. It ends when the
//!   response has come in, on Linux by the kernel's clock: the generator may be late to read it, too.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Builder,
    task::JoinSet,
};

use crate::{arrival, timing::percentile};

const ARGUMENT: &str = "--client";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
const STATUS: &[u8] = b"HTTP/1.1 200 OK\r\n";
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// For one response, however busy the server is. None at all is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every server is to answer `GET /` with.
pub const BODY: &str = "hello";

/// What the generator is to do.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The server.
    pub address: SocketAddr,
    /// How many connections it opens.
    pub connections: u32,
    /// How long it measures, after a while to [warm up](Self::warm_up).
    pub window: Duration,
    /// How many requests it sends in a second, in the open way; without, it is the closed way.
    pub rate: Option<u32>,
}

impl Ask {
    /// How long it sends requests before it measures.
    pub fn warm_up(&self) -> Duration {
        self.window / 5
    }
}

/// What came of it. Latencies are in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// All requests, those to warm up as well. All were answered as they should.
    pub requests: u64,
    /// The requests that were sent and answered in the window, for each second of it.
    pub per_second: f64,
    /// Half of them took no longer.
    pub p50: f64,
    /// 99 in 100 took no longer.
    pub p99: f64,
    /// 999 in 1000 took no longer.
    pub p999: f64,
    /// 999 in 1000 times the generator was no later than this with a request of the open way.
    pub late: f64,
}

/// The generator's process. It ends when this is dropped.
#[derive(Debug)]
pub struct Generator {
    child: Child,
    // Taken by `drop` alone.
    asks: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Generator {
    /// Starts this program once more, which must call [`run_if_asked`] first of all.
    pub fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("our own path"))
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("our own program starts");
        let asks = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, asks, answers }
    }

    /// Puts a server under load. This thread waits.
    pub fn load(&mut self, ask: Ask) -> Told {
        self.ask(ask);
        self.told()
    }

    /// Begins to put a server under load. [`told`](Self::told) must follow.
    pub fn ask(&mut self, ask: Ask) {
        let Ask { address, connections, window, rate } = ask;
        let (window, rate) = (window.as_micros(), rate.unwrap_or(0));
        let asks = self.asks.as_mut().expect("not dropped");
        writeln!(asks, "{address} {connections} {window} {rate}").expect("the generator runs");
    }

    /// What came of it, when every request is answered. This thread waits.
    pub fn told(&mut self) -> Told {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("text from the generator");
        assert!(!answer.is_empty(), "the generator failed: it says above why");
        let mut words = answer.split_whitespace();
        Told {
            requests: next(&mut words),
            per_second: next(&mut words),
            p50: next(&mut words),
            p99: next(&mut words),
            p999: next(&mut words),
            late: next(&mut words),
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        drop(self.asks.take());
        self.child.wait().expect("a child");
    }
}

fn next<'w, T: FromStr>(words: &mut impl Iterator<Item = &'w str>) -> T {
    words.next().and_then(|word| word.parse().ok()).expect("both sides are this file")
}

/// Whether this process was started as the generator; it then does all that, and returns when the
/// other side has ended.
pub fn run_if_asked() -> bool {
    if std::env::args().nth(1).as_deref() != Some(ARGUMENT) {
        return false;
    }
    for ask in std::io::stdin().lines() {
        let ask = ask.expect("text from the benchmark");
        let mut words = ask.split_whitespace();
        let ask = Ask {
            address: next(&mut words),
            connections: next(&mut words),
            window: Duration::from_micros(next(&mut words)),
            rate: Some(next(&mut words)).filter(|rate| *rate > 0),
        };
        let mut taken = match ask.rate {
            None => closed(ask),
            Some(rate) => open(ask, rate),
        };
        for samples in [&mut taken.latencies, &mut taken.late] {
            samples.sort_by(f64::total_cmp);
        }
        let Taken { requests, latencies, late } = taken;
        let per_second = latencies.len() as f64 / ask.window.as_secs_f64();
        let [p50, p99, p999] = [500, 990, 999].map(|permille| percentile(&latencies, permille));
        let late = percentile(&late, 999);
        println!("{requests} {per_second} {p50} {p99} {p999} {late}");
    }
    true
}

/// What one connection, or all, came to.
#[derive(Default)]
struct Taken {
    requests: u64,
    latencies: Vec<f64>,
    late: Vec<f64>,
}

impl Taken {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.latencies.extend(other.latencies);
        self.late.extend(other.late);
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Begin and end of the window.
fn window_of(ask: Ask) -> (Instant, Instant) {
    let begin = Instant::now() + ask.warm_up();
    (begin, begin + ask.window)
}

/// Whether the response is there, all of it; ends the program if it is a wrong one.
fn is_whole(response: &[u8]) -> bool {
    let shown = || String::from_utf8_lossy(response);
    let known = response.len().min(STATUS.len());
    assert!(response[..known] == STATUS[..known], "a wrong response: {:?}", shown());
    let head = response.windows(END_OF_HEAD.len()).position(|bytes| bytes == END_OF_HEAD);
    let Some(head) = head else { return false };
    let body = &response[head + END_OF_HEAD.len()..];
    assert!(BODY.as_bytes().starts_with(body), "a wrong response: {:?}", shown());
    body.len() == BODY.len()
}

/// All connections on one thread: while the server is busy, one wake-up does for several of them.
fn closed(ask: Ask) -> Taken {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (begin, end) = window_of(ask);
        let mut connections = JoinSet::new();
        for _ in 0..ask.connections {
            connections.spawn(closed_connection(ask.address, begin, end));
        }
        let mut all = Taken::default();
        let ended = async {
            while let Some(taken) = connections.join_next().await {
                all.add(taken.expect("a connection without a failure"));
            }
        };
        tokio::time::timeout(ask.window * 2 + PATIENCE, ended).await.expect("responses in time");
        all
    })
}

async fn closed_connection(address: SocketAddr, begin: Instant, end: Instant) -> Taken {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    let mut taken = Taken::default();
    let mut buffer = [0; 1024];
    loop {
        let sent = Instant::now();
        if sent >= end {
            return taken;
        }
        stream.write_all(REQUEST).await.expect("the server reads");
        let mut filled = 0;
        while !is_whole(&buffer[..filled]) {
            let more = stream.read(&mut buffer[filled..]).await.expect("a response");
            assert!(more > 0, "the server closed the connection");
            filled += more;
        }
        let now = Instant::now();
        taken.requests += 1;
        if sent >= begin && now <= end {
            taken.latencies.push(micros(now - sent));
        }
    }
}

/// A thread for each connection: tokio's clock is in milliseconds, and a thread sleeps more exactly.
fn open(ask: Ask, rate: u32) -> Taken {
    let (begin, end) = window_of(ask);
    let every = Duration::from_secs(1) / rate;
    let first = Instant::now();
    let connections: Vec<_> = (0..ask.connections)
        .map(|number| {
            let (first, every) = (first + every * number, every * ask.connections);
            thread::spawn(move || open_connection(ask.address, first, every, begin, end))
        })
        .collect();
    let mut all = Taken::default();
    for connection in connections {
        all.add(connection.join().expect("a connection without a failure"));
    }
    all
}

fn open_connection(
    address: SocketAddr,
    first: Instant,
    every: Duration,
    begin: Instant,
    end: Instant,
) -> Taken {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    arrival::note(&stream).expect("a socket");
    let mut taken = Taken::default();
    let mut buffer = [0; 1024];
    let mut due = first;
    while due < end {
        let in_window = due >= begin;
        let ahead = due.saturating_duration_since(Instant::now());
        thread::sleep(ahead);
        let late = due.elapsed();
        let mut from = SystemTime::now();
        if ahead.is_zero() {
            from -= late;
        } else if in_window {
            taken.late.push(micros(late));
        }
        stream.write_all(REQUEST).expect("the server reads");
        let (mut filled, mut to) = (0, from);
        while !is_whole(&buffer[..filled]) {
            let (more, at) =
                arrival::read(&stream, &mut buffer[filled..]).expect("a response in time");
            assert!(more > 0, "the server closed the connection");
            filled += more;
            to = at;
        }
        taken.requests += 1;
        if in_window {
            taken.latencies.push(micros(to.duration_since(from).unwrap_or_default()));
        }
        due += every;
    }
    taken
}
