//! Clients that leave at every byte of the request and of the response, in random order.
#![allow(clippy::print_stdout, reason = "a failure is to be repeated")]

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    env,
    future::pending,
    hash::{BuildHasher, RandomState},
    iter::repeat_n,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{HeaderValue, Request, StatusCode, header::DATE},
    response::{IntoResponse, Response, Sse, sse},
    routing::any,
};
use futures_util::{StreamExt, stream};
use hyper::body::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    task::yield_now,
};
use tower::util::MapRequestLayer;
use tower_jobs::{Jobs, JobsLayer, ResponseOutcome, Scheduler};

use crate::support::{
    Random, assert_adds_up,
    wire::{Ask, Client, Event, Http1, Http2, Protocol, Script, Server, Step},
    within,
};

const SHAPES: [&str; 5] = ["fixed", "streamed", "sse", "endless", "hanging"];
/// How many clients there are at once.
const CLIENTS: usize = 24;

async fn answer(Path((shape, _)): Path<(String, u32)>, body: Bytes) -> Response {
    assert_eq!(body, "request");
    yield_now().await;
    let event = |text| Ok::<_, Infallible>(sse::Event::default().data(text));
    let mut response = match &*shape {
        "fixed" => "response".into_response(),
        "streamed" => {
            let frames = ["res", "pon", "se"].map(Step::text);
            let steps = frames.into_iter().flat_map(|frame| [frame, Step::Yield, Step::Yield]);
            Body::new(Script::new(steps)).into_response()
        }
        "sse" => Sse::new(stream::iter(["one", "two"].map(event))).into_response(),
        "endless" => {
            Sse::new(stream::iter([event("one")]).chain(stream::pending())).into_response()
        }
        _ => unreachable!("{shape}"),
    };
    // HTTP/2 compresses the date, to more bytes in some seconds than in others.
    response.headers_mut().insert(DATE, HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
    response
}

fn request(shape: &str, id: usize, protocol: Protocol) -> Vec<u8> {
    let close = [("connection", "close")];
    let headers = if protocol == Http1 { &close[..] } else { &[] };
    // The same number of digits for every id, so that all requests have the same length.
    let path = format!("/{shape}/{id:06}");
    // Over HTTP/1.1 an unread body would hide that its client has gone.
    let body: &[u8] = if shape == "hanging" { b"" } else { b"request" };
    Ask { method: "POST", path: &path, headers, body }.bytes(protocol)
}

/// The counts of the jobs of one request.
#[derive(Debug, Default)]
struct Seen {
    requests: usize,
    started: usize,
    succeeded: usize,
    outcomes: Vec<ResponseOutcome>,
}

type Record = Arc<Mutex<HashMap<usize, Seen>>>;

fn defer(record: &Record, request: &Request<Body>) {
    let id: usize = request.uri().path().rsplit('/').next().unwrap().parse().unwrap();
    let jobs: &Jobs = request.extensions().get().unwrap();
    let note = |change: fn(&mut Seen)| {
        let record = record.clone();
        async move { change(record.lock().unwrap().get_mut(&id).unwrap()) }
    };
    record.lock().unwrap().entry(id).or_default().requests += 1;
    jobs.after_response(note(|seen| seen.started += 1)).unwrap();
    jobs.after_success(note(|seen| seen.succeeded += 1)).unwrap();
    let record = record.clone();
    jobs.after_response_with(move |outcome| async move {
        record.lock().unwrap().get_mut(&id).unwrap().outcomes.push(outcome);
    })
    .unwrap();
}

/// When a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    AfterSending(usize),
    AfterReading(usize),
    /// After the end of the response.
    Satisfied,
}

#[derive(Clone, Copy, Debug)]
struct Visit {
    protocol: Protocol,
    shape: &'static str,
    leaves: Leaves,
    /// Resets the connection.
    abruptly: bool,
}

async fn visit(server: SocketAddr, visit: Visit, id: usize) {
    let mut client = Client::connect(server, visit.protocol).await;
    let request = request(visit.shape, id, visit.protocol);
    // A server may answer early and close. Errors of sending and reading are ignored.
    match visit.leaves {
        Leaves::AfterSending(bytes) => {
            let _sent = client.stream.write_all(&request[..bytes]).await;
        }
        Leaves::AfterReading(bytes) => {
            let _sent = client.stream.write_all(&request).await;
            let mut read = vec![0; bytes];
            let _read = within("the bytes", client.stream.read_exact(&mut read)).await;
        }
        Leaves::Satisfied => {
            client.send(&request).await;
            assert!(client.read_to_end().await);
        }
    }
    if visit.abruptly {
        client.stream.set_zero_linger().unwrap();
    }
}

/// The length of the response, up to its end or up to its endless part.
async fn response_length(server: SocketAddr, shape: &str, protocol: Protocol) -> usize {
    if shape == "hanging" {
        return 0;
    }
    let mut client = Client::connect(server, protocol).await;
    client.send(&request(shape, 0, protocol)).await;
    client.read_head().await;
    loop {
        let ended = client.next().await == Event::End;
        if ended || shape == "endless" {
            return client.read;
        }
    }
}

/// `SEED=17` repeats the order of an earlier run.
fn seed() -> u64 {
    let seed = env::var("SEED").map_or_else(
        |_| RandomState::new().hash_one(0),
        |seed| seed.parse().expect("SEED is a number"),
    );
    println!("SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_a_client_leaves_each_job_starts_or_is_skipped_once() {
    let seed = seed();
    let scheduler = Scheduler::new();
    let record = Record::default();
    let app = {
        let record = record.clone();
        Router::new()
            .route("/{shape}/{id}", any(answer))
            .route("/hanging/{id}", any(pending::<()>))
            .layer(MapRequestLayer::new(move |request| {
                defer(&record, &request);
                request
            }))
            .layer(JobsLayer::new(scheduler.clone()))
    };
    let mut server = Server::start(app).await;
    let address = server.address;

    let mut visits = Vec::new();
    let mut connections = 0;
    for protocol in [Http1, Http2] {
        for shape in SHAPES {
            let length = response_length(address, shape, protocol).await;
            connections += usize::from(length > 0);
            let sending = (0..=request(shape, 0, protocol).len()).map(Leaves::AfterSending);
            let reading = (0..=length).map(Leaves::AfterReading);
            let at_once = repeat_n(Leaves::AfterReading(0), 25);
            let ends = !matches!(shape, "endless" | "hanging");
            let satisfied = [Leaves::Satisfied; 4].into_iter().filter(|_| ends);
            for leaves in sending.chain(reading).chain(at_once).chain(satisfied) {
                visits.extend([false, true].map(|abruptly| Visit {
                    protocol,
                    shape,
                    leaves,
                    abruptly,
                }));
            }
        }
    }
    Random(seed).shuffle(&mut visits);
    within("the jobs of whole responses", scheduler.wait_idle()).await;
    let before = record.lock().unwrap().remove(&0).unwrap();
    assert_eq!(before.started, connections);

    let turn = Arc::new(Semaphore::new(CLIENTS));
    let mut clients = Vec::new();
    for (id, &each) in (1..).zip(&visits) {
        let permit = turn.clone().acquire_owned().await.unwrap();
        clients.push(tokio::spawn(async move {
            visit(address, each, id).await;
            drop(permit);
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    connections += visits.len();
    for _ in 0..connections {
        server.connection_ended().await;
    }
    within("the jobs", scheduler.wait_idle()).await;

    let record = record.lock().unwrap();
    let mut tally = BTreeMap::new();
    for (id, visit) in (1..).zip(&visits) {
        let Some(seen) = record.get(&id) else {
            // An HTTP/2 server begins to talk before it has a request.
            let answered = match visit.leaves {
                Leaves::AfterSending(_) => false,
                Leaves::AfterReading(bytes) => visit.protocol == Http1 && bytes > 0,
                Leaves::Satisfied => true,
            };
            assert!(!answered, "{visit:?} was not served");
            *tally.entry("not served".to_owned()).or_insert(0) += 1;
            continue;
        };
        let [outcome] = seen.outcomes[..] else { panic!("{visit:?}: {seen:?}") };
        let counts = (seen.requests, seen.started, seen.succeeded);
        assert_eq!(counts, (1, 1, usize::from(outcome.is_success())), "{visit:?}: {seen:?}");
        let request = request(visit.shape, id, visit.protocol);
        match visit.leaves {
            Leaves::Satisfied => assert_eq!(outcome, ResponseOutcome::Complete(StatusCode::OK)),
            Leaves::AfterSending(bytes) if bytes < request.len() => {
                assert!(!outcome.is_success(), "{visit:?}: {seen:?}");
            }
            _ if visit.shape == "hanging" => assert_eq!(outcome, ResponseOutcome::NoResponse),
            _ if visit.shape == "endless" => {
                assert!(!outcome.is_complete(), "{visit:?}: {seen:?}");
            }
            _ => {}
        }
        *tally.entry(format!("{outcome:?}")).or_insert(0) += 1;
    }
    println!("{tally:#?}");
    let stats = scheduler.stats();
    assert_eq!(stats.accepted, 3 * u64::try_from(record.len() + before.started).unwrap());
    assert_eq!(stats.accepted, stats.completed + stats.skipped, "{stats:?}");
    assert_adds_up(&stats);
    assert!(scheduler.is_empty());
}
