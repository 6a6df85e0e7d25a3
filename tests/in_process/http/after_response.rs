//! The start and the outcome of `after_response` jobs, by response shape, protocol and client.

use std::{
    convert::Infallible,
    fmt::Write as _,
    future::{poll_fn, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{HeaderValue, Request, Response, StatusCode, Version},
    middleware::map_response,
    response::{IntoResponse, Sse, sse},
    routing::any,
};
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use tokio::{io::AsyncWriteExt, sync::Notify};
use tokio_test::task::spawn as poll_by_hand;
use tower::{Service, service_fn, util::MapRequestLayer};
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, timeout::TimeoutLayer,
};
use tower_jobs::{
    BoxError, JobsLayer,
    ResponseOutcome::{self, Aborted, Complete, NoResponse, Unfinished},
    Scheduler,
};

use crate::support::{
    http::listen,
    wire::{Ask, Client, Http1, Http2, Protocol, Recorder, Script, Server, Step},
    within,
};

const OK: StatusCode = StatusCode::OK;

/// The parts of a row.
#[derive(Clone, Default)]
struct Stage {
    scheduler: Scheduler,
    recorder: Recorder,
    /// The handler has begun.
    entered: Arc<Notify>,
    /// The handler, or the body, may go on.
    go: Arc<Notify>,
}

impl Stage {
    /// Puts the layer around the routes, and defers jobs for every request.
    fn jobs(&self, routes: Router) -> Router {
        routes
            .layer(MapRequestLayer::new(self.recorder.clone().defer_for()))
            .layer(JobsLayer::new(self.scheduler.clone()))
    }

    /// A route whose handler waits for `go`.
    fn waiting(&self) -> Router {
        let Self { entered, go, .. } = self.clone();
        route(move || {
            let (entered, go) = (entered.clone(), go.clone());
            async move {
                entered.notify_one();
                go.notified().await;
                "hello"
            }
        })
    }
}

fn route<H, T>(handler: H) -> Router
where
    H: axum::handler::Handler<T, ()>,
    T: 'static,
{
    Router::new().route("/", any(handler))
}

fn answer<R: IntoResponse + Clone + Send + Sync + 'static>(response: R) -> Router {
    route(move || async move { response.clone() })
}

/// A route with a new body for every response.
fn body(steps: impl Fn() -> Vec<Step> + Clone + Send + Sync + 'static) -> Router {
    route(move || async move { Body::new(Script::new(steps())) })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    ReadsAll,
    ReadsOnlyHead,
    LeavesBeforeHead,
    LeavesDuringHandler,
    ResetsDuringHandler,
    /// Closes its sending side, and reads on.
    HalfClosesDuringHandler,
    /// Leaves during the handler, with bytes sent that the server has not read.
    LeavesBehindPipelinedBytes,
    LeavesAfterHead,
    ResetsAfterHead,
    LeavesMidBody,
    ResetsMidBody,
}

type App = Box<dyn Fn(&Stage) -> Router>;

struct Row {
    name: &'static str,
    app: App,
    ask: Ask<'static>,
    then: Then,
    protocols: &'static [Protocol],
    /// None: the service never saw the request.
    expected: Option<ResponseOutcome>,
}

fn row(
    name: &'static str,
    expected: impl Into<Option<ResponseOutcome>>,
    app: impl Fn(&Stage) -> Router + 'static,
) -> Row {
    Row {
        name,
        app: Box::new(app),
        ask: Ask { headers: &[], ..Ask::default() },
        then: Then::ReadsAll,
        protocols: &[Http1, Http2],
        expected: expected.into(),
    }
}

impl Row {
    fn method(mut self, method: &'static str) -> Self {
        self.ask.method = method;
        self
    }

    fn headers(mut self, headers: &'static [(&'static str, &'static str)]) -> Self {
        self.ask.headers = headers;
        self
    }

    fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }

    fn only(mut self, protocols: &'static [Protocol]) -> Self {
        self.protocols = protocols;
        self
    }

    async fn play(&self, protocol: Protocol) -> Result<(), String> {
        let stage = Stage::default();
        let mut server = Server::start((self.app)(&stage)).await;
        let mut client = Client::connect(server.address, protocol).await;
        let mut ask = self.ask;
        let close = [ask.headers, &[("connection", "close")]].concat();
        if protocol == Http1 {
            ask.headers = &close;
        }
        let bytes = ask.bytes(protocol);
        match self.then {
            Then::LeavesBeforeHead => client.send(&bytes[..bytes.len() - 2]).await,
            Then::LeavesBehindPipelinedBytes => {
                client.send(&[&bytes, &b"GET /next"[..]].concat()).await;
            }
            _ => client.send(&bytes).await,
        }
        match self.then {
            Then::ReadsAll => drop(client.read_to_end().await),
            Then::ReadsOnlyHead => client.read_head().await,
            Then::LeavesBeforeHead => {}
            Then::LeavesDuringHandler
            | Then::ResetsDuringHandler
            | Then::HalfClosesDuringHandler
            | Then::LeavesBehindPipelinedBytes => {
                within("the handler", stage.entered.notified()).await;
            }
            Then::LeavesAfterHead | Then::ResetsAfterHead => client.read_head().await,
            Then::LeavesMidBody | Then::ResetsMidBody => {
                client.read_head().await;
                client.read_body(1).await;
            }
        }
        match self.then {
            Then::ResetsDuringHandler | Then::ResetsAfterHead | Then::ResetsMidBody => {
                client.reset().await;
                within("the jobs of the stream", stage.scheduler.wait_idle()).await;
                drop(client);
            }
            Then::HalfClosesDuringHandler => {
                client.stream.shutdown().await.unwrap();
                client.read_to_end().await;
                drop(client);
            }
            _ => drop(client),
        }
        if self.then == Then::LeavesBehindPipelinedBytes {
            // The server cannot see that its client has gone. Its handler runs on.
            assert_eq!(stage.scheduler.stats().deferred, 3);
            stage.go.notify_one();
        }
        server.connection_ended().await;
        within("the jobs", stage.scheduler.wait_idle()).await;
        stage.recorder.check(&stage.scheduler, self.expected)
    }
}

async fn play_all(rows: Vec<Row>) {
    let mut wrong = String::new();
    for row in rows {
        for &protocol in row.protocols {
            if let Err(error) = row.play(protocol).await {
                writeln!(wrong, "\n{}, {:?}, {protocol:?}: {error}", row.name, row.then).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn every_shape_of_response_that_is_read_to_its_end_is_complete() {
    let streamed = || vec![Step::text("hel"), Step::text("lo")];
    play_all(vec![
        row("empty", Complete(OK), |stage| stage.jobs(answer(()))),
        row("204", Complete(StatusCode::NO_CONTENT), |stage| {
            stage.jobs(answer(StatusCode::NO_CONTENT))
        }),
        row("304", Complete(StatusCode::NOT_MODIFIED), |stage| {
            stage.jobs(answer((StatusCode::NOT_MODIFIED, [("content-length", "5")])))
        }),
        row("304 with a body", Complete(StatusCode::NOT_MODIFIED), |stage| {
            stage.jobs(answer((StatusCode::NOT_MODIFIED, "hello")))
        }),
        row("HEAD", Complete(OK), |stage| stage.jobs(answer("hello"))).method("HEAD"),
        row("HEAD with content-length", Complete(OK), |stage| {
            stage.jobs(answer(([("content-length", "5")], ())))
        })
        .method("HEAD"),
        row("HEAD of a stream", Complete(OK), move |stage| stage.jobs(body(streamed)))
            .method("HEAD"),
        row("fixed", Complete(OK), |stage| stage.jobs(answer("hello"))),
        row("streamed", Complete(OK), move |stage| stage.jobs(body(streamed))),
        row("streamed with content-length", Complete(OK), move |stage| {
            stage.jobs(route(move || async move {
                ([("content-length", "5")], Body::new(Script::new(streamed())))
            }))
        }),
        row("streamed with trailers", Complete(OK), |stage| {
            let steps = || vec![Step::text("hello"), Step::Trailers];
            stage.jobs(body(steps)).layer(map_response(async |mut response: Response<Body>| {
                response.headers_mut().insert("trailer", HeaderValue::from_static("sum"));
                response
            }))
        })
        .headers(&[("te", "trailers")]),
        row("SSE that ends", Complete(OK), |stage| {
            stage.jobs(route(|| async {
                let event = |text| Ok::<_, BoxError>(sse::Event::default().data(text));
                Sse::new(stream::iter([event("one"), event("two")]))
                    .keep_alive(sse::KeepAlive::new())
            }))
        }),
        row("upgrade", Complete(StatusCode::SWITCHING_PROTOCOLS), |stage| {
            let upgrade = [("connection", "upgrade"), ("upgrade", "test")];
            stage.jobs(answer((StatusCode::SWITCHING_PROTOCOLS, upgrade)))
        })
        .headers(&[("upgrade", "test")])
        .then(Then::ReadsOnlyHead)
        .only(&[Http1]),
        row("error of the handler", Complete(StatusCode::IM_A_TEAPOT), |stage| {
            stage.jobs(route(|| async { Err::<(), _>((StatusCode::IM_A_TEAPOT, "no")) }))
        }),
        row("rejection of an extractor", Complete(StatusCode::INTERNAL_SERVER_ERROR), |stage| {
            stage.jobs(route(|_: Path<u32>| async {}))
        }),
        row("no such method", Complete(StatusCode::METHOD_NOT_ALLOWED), |stage| {
            let routes = Router::new().route("/", axum::routing::post(|| async {}));
            stage.jobs(routes)
        }),
    ])
    .await;
}

#[tokio::test]
async fn broken_response_is_aborted_and_absent_one_is_none() {
    let complete = Complete(StatusCode::INTERNAL_SERVER_ERROR);
    play_all(vec![
        row("body that fails half-way", Aborted(OK), |stage| {
            stage.jobs(body(|| vec![Step::text("hel"), Step::Fail]))
        }),
        row("body that fails at once", Aborted(OK), |stage| stage.jobs(body(|| vec![Step::Fail]))),
        row("body that fails before its trailers", Aborted(OK), |stage| {
            stage.jobs(body(|| vec![Step::text("hello"), Step::Fail, Step::Trailers]))
        }),
        row("status that only announces a response", Aborted(StatusCode::PROCESSING), |stage| {
            stage.jobs(answer(StatusCode::PROCESSING))
        })
        .only(&[Http1]),
        row("body that panics half-way", Aborted(OK), |stage| {
            stage.jobs(body(|| vec![Step::text("hel"), Step::Panic]))
        }),
        row("body that ends before its content-length", Aborted(OK), |stage| {
            stage.jobs(route(|| async {
                let body = Body::new(Script::new([Step::text("hel"), Step::text("lo")]));
                ([("content-length", "6")], body)
            }))
        }),
        row("body that goes beyond its content-length", Aborted(OK), |stage| {
            stage.jobs(route(|| async {
                ([("content-length", "5")], Body::new(Script::new([Step::text("hello!")])))
            }))
        }),
        // Over HTTP/1 the server stops at the declared length, and so does the client.
        row("frame beyond its content-length", Aborted(OK), beyond_content_length).only(&[Http2]),
        row("frame beyond its content-length", Complete(OK), beyond_content_length).only(&[Http1]),
        row("handler that panics", NoResponse, |stage| stage.jobs(panics())),
        row("handler that panics, caught outside", NoResponse, |stage| {
            stage.jobs(panics()).layer(CatchPanicLayer::new())
        }),
        row("handler that panics, caught inside", complete, |stage| {
            stage.jobs(panics().layer(CatchPanicLayer::new()))
        }),
    ])
    .await;
}

fn beyond_content_length(stage: &Stage) -> Router {
    stage.jobs(route(|| async {
        let steps = [Step::text("hel"), Step::text("lo"), Step::text("!")];
        ([("content-length", "5")], Body::new(Script::new(steps)))
    }))
}

fn panics() -> Router {
    route(|| async {
        if true {
            panic!("the handler panics")
        }
    })
}

#[tokio::test]
async fn inner_layers_decide_the_response_and_outer_ones_may_end_it() {
    let timeout =
        || TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_millis(10));
    let gzip = &[("accept-encoding", "gzip")];
    let long = || answer("hello ".repeat(100));
    let replace = |_: Response<Body>| async { "replaced" };
    play_all(vec![
        row("timed out outside", NoResponse, move |stage| {
            stage.jobs(stage.waiting()).layer(timeout())
        }),
        row("timed out inside", Complete(StatusCode::REQUEST_TIMEOUT), move |stage| {
            stage.jobs(stage.waiting().layer(timeout()))
        }),
        row("compressed outside", Complete(OK), move |stage| {
            stage.jobs(long()).layer(CompressionLayer::new())
        })
        .headers(gzip),
        row("compressed inside", Complete(OK), move |stage| {
            stage.jobs(long().layer(CompressionLayer::new()))
        })
        .headers(gzip),
        row("compressed outside, failing half-way", Aborted(OK), |stage| {
            let text = || vec![Step::Data("hello ".repeat(100).into()), Step::Fail];
            stage.jobs(body(text)).layer(CompressionLayer::new())
        })
        .headers(gzip),
        row("replaced outside", Aborted(OK), move |stage| {
            stage.jobs(answer("hello")).layer(map_response(replace))
        }),
        row("replaced inside", Complete(OK), move |stage| {
            stage.jobs(answer("hello").layer(map_response(replace)))
        }),
    ])
    .await;
}

#[tokio::test]
async fn outcome_shows_when_the_client_left() {
    let waits = |stage: &Stage| stage.jobs(stage.waiting());
    let waits_in_body = |stage: &Stage| {
        let go = stage.go.clone();
        stage.jobs(body(move || vec![Step::Wait(go.clone()), Step::text("hello")]))
    };
    let waits_mid_body = |stage: &Stage| {
        let go = stage.go.clone();
        stage.jobs(body(move || vec![Step::text("hel"), Step::Wait(go.clone()), Step::text("lo")]))
    };
    let waits_in_long_body = |stage: &Stage| {
        let go = stage.go.clone();
        stage.jobs(route(move || async move {
            let steps = [Step::text("hel"), Step::Wait(go), Step::text("lo")];
            ([("content-length", "5")], Body::new(Script::new(steps)))
        }))
    };
    let waits_for_trailers = |stage: &Stage| {
        let go = stage.go.clone();
        stage.jobs(route(move || async move {
            let steps = [Step::text("hello"), Step::Wait(go), Step::Trailers];
            ([("content-length", "5")], Body::new(Script::new(steps)))
        }))
    };
    let compressed = move |stage: &Stage| waits_mid_body(stage).layer(CompressionLayer::new());
    let h2 = &[Http2];
    play_all(vec![
        row("before the head", None, waits).then(Then::LeavesBeforeHead),
        row("in the handler", NoResponse, waits).then(Then::LeavesDuringHandler),
        row("in the handler", NoResponse, waits).then(Then::HalfClosesDuringHandler),
        row("in the handler", NoResponse, waits).then(Then::ResetsDuringHandler).only(h2),
        // The declared length is there. Over HTTP/1 the server asks for no more.
        row("before the trailers", Aborted(OK), waits_for_trailers)
            .then(Then::LeavesMidBody)
            .only(h2),
        row("before the trailers", Aborted(OK), waits_for_trailers)
            .then(Then::ResetsMidBody)
            .only(h2),
        row("before the trailers", Complete(OK), waits_for_trailers)
            .then(Then::LeavesMidBody)
            .only(&[Http1]),
        row("in the handler", Complete(OK), waits)
            .then(Then::LeavesBehindPipelinedBytes)
            .only(&[Http1]),
        row("between head and body", Aborted(OK), waits_in_body).then(Then::LeavesAfterHead),
        row("between head and body", Aborted(OK), waits_in_body)
            .then(Then::ResetsAfterHead)
            .only(h2),
        row("mid-body", Aborted(OK), waits_mid_body).then(Then::LeavesMidBody),
        row("mid-body", Aborted(OK), waits_mid_body).then(Then::ResetsMidBody).only(h2),
        row("mid-body, known length", Aborted(OK), waits_in_long_body).then(Then::LeavesMidBody),
        row("mid-body, compressed outside", Aborted(OK), compressed)
            .headers(&[("accept-encoding", "gzip")])
            .then(Then::LeavesMidBody),
        row("after everything", Complete(OK), |stage| stage.jobs(answer("hello"))),
    ])
    .await;
}

#[tokio::test]
async fn service_that_returns_an_error_gives_no_response() {
    for protocol in [Http1, Http2] {
        let stage = Stage::default();
        let failing = service_fn(|_: Request<Incoming>| async {
            Err::<Response<Body>, BoxError>("the service fails".into())
        });
        let service = tower::ServiceBuilder::new()
            .layer(JobsLayer::new(stage.scheduler.clone()))
            .map_request(stage.recorder.clone().defer_for())
            .service(failing);
        let server = Server::start(service).await;
        let mut client = Client::connect(server.address, protocol).await;
        client.send(&Ask::default().bytes(protocol)).await;
        client.next().await;
        within("the jobs", stage.scheduler.wait_idle()).await;
        stage.recorder.check(&stage.scheduler, Some(NoResponse)).unwrap();
    }
}

#[tokio::test]
async fn axum_server_shows_the_end_of_a_response_too() {
    let stage = Stage::default();
    let (listener, address) = listen().await;
    tokio::spawn(axum::serve(listener, stage.jobs(answer("hello"))).into_future());
    let mut client = Client::connect(address, Http1).await;
    client.send(&Ask { headers: &[("connection", "close")], ..Ask::default() }.bytes(Http1)).await;
    assert!(client.read_to_end().await);
    within("the jobs", stage.scheduler.wait_idle()).await;
    stage.recorder.check(&stage.scheduler, Some(Complete(OK))).unwrap();
}

// By hand, without a server.

type Answer = Response<tower_jobs::ResponseBody<Body>>;

/// A service around `routes`, and a request to it.
async fn call<S>(
    stage: &Stage,
    inner: S,
    method: &str,
) -> impl Future<Output = Result<Answer, S::Error>>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone,
{
    call_over(Version::HTTP_11, stage, inner, method).await
}

async fn call_over<S>(
    version: Version,
    stage: &Stage,
    inner: S,
    method: &str,
) -> impl Future<Output = Result<Answer, S::Error>>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone,
{
    let mut service = tower::ServiceBuilder::new()
        .layer(JobsLayer::new(stage.scheduler.clone()))
        .map_request(stage.recorder.clone().defer_for())
        .service(inner);
    poll_fn(|cx| service.poll_ready(cx)).await.map_err(drop).unwrap();
    let request = Request::builder().method(method).version(version).body(Body::empty());
    service.call(request.unwrap())
}

async fn check(stage: &Stage, expected: ResponseOutcome) {
    within("the jobs", stage.scheduler.wait_idle()).await;
    stage.recorder.check(&stage.scheduler, Some(expected)).unwrap();
}

#[tokio::test]
async fn response_future_dropped_unpolled_gives_no_response() {
    let stage = Stage::default();
    let response = call(&stage, answer("hello"), "GET").await;
    assert_eq!(stage.scheduler.stats().deferred, 3);
    drop(response);
    check(&stage, NoResponse).await;
}

#[tokio::test]
async fn response_future_dropped_after_one_poll_gives_no_response() {
    let stage = Stage::default();
    let mut response = poll_by_hand(call(&stage, stage.waiting(), "GET").await);
    assert!(response.poll().is_pending());
    assert_eq!(stage.scheduler.stats().deferred, 3);
    drop(response);
    check(&stage, NoResponse).await;
}

#[tokio::test]
async fn service_that_panics_when_it_is_called_gives_no_response() {
    let stage = Stage::default();
    let inner =
        service_fn(|_: Request<Body>| -> std::future::Ready<Result<Response<Body>, BoxError>> {
            panic!("the service panics before it has made a future")
        });
    let calling = {
        let stage = stage.clone();
        tokio::spawn(async move { call(&stage, inner, "GET").await.await.map(drop) })
    };
    assert!(calling.await.unwrap_err().is_panic());
    check(&stage, NoResponse).await;
}

#[tokio::test]
async fn response_dropped_unread_is_aborted_unless_it_has_no_body() {
    for (routes, expected) in [(answer("hello"), Aborted(OK)), (answer(()), Complete(OK))] {
        let stage = Stage::default();
        let response = call(&stage, routes, "GET").await.await.unwrap();
        assert_eq!(stage.scheduler.stats().deferred, 3);
        drop(response);
        check(&stage, expected).await;
    }
}

#[tokio::test]
async fn jobs_start_at_the_drop_of_the_body_not_at_its_last_frame() {
    let stage = Stage::default();
    let response = call(&stage, answer("hello"), "GET").await.await.unwrap();
    let mut body = response.into_body();
    let last = body.frame().await.unwrap().unwrap();
    assert_eq!(last.into_data().unwrap(), "hello");
    assert!(body.is_end_stream());
    assert_eq!(stage.scheduler.stats().deferred, 3);
    drop(body);
    check(&stage, Complete(OK)).await;
}

/// Over HTTP/2 a server takes a frame first, and may have to throw it away when the stream is reset.
#[tokio::test]
async fn over_http_2_a_response_is_complete_once_its_end_was_polled() {
    let steps = || vec![Step::text("hello"), Step::Trailers];
    for version in [Version::HTTP_2, Version::HTTP_3] {
        for (routes, frames, expected) in [
            (answer("hello"), 0, Aborted(OK)),
            (answer("hello"), 1, Aborted(OK)),
            (answer("hello"), 2, Complete(OK)),
            (body(steps), 1, Aborted(OK)),
            (body(steps), 2, Complete(OK)),
            (answer(()), 0, Complete(OK)),
            (answer(StatusCode::NO_CONTENT), 0, Complete(StatusCode::NO_CONTENT)),
            // The server sends no body with it, whatever it polls.
            (answer((StatusCode::NOT_MODIFIED, "hello")), 0, Complete(StatusCode::NOT_MODIFIED)),
        ] {
            let stage = Stage::default();
            let response = call_over(version, &stage, routes, "GET").await.await.unwrap();
            let mut body = response.into_body();
            for _ in 0..frames {
                assert!(!body.is_end_stream(), "{version:?}");
                drop(body.frame().await);
            }
            assert!(expected.is_complete() || !body.is_end_stream(), "{version:?}");
            drop(body);
            check(&stage, expected).await;
        }
    }
}

#[tokio::test]
async fn body_beyond_its_declared_length_is_not_complete() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for steps in [vec!["hello!"], vec!["hel", "lo!"]] {
            let stage = Stage::default();
            let routes = route(move || {
                let steps = steps.clone().into_iter().map(Step::text);
                async move { ([("content-length", "5")], Body::new(Script::new(steps))) }
            });
            let response = call_over(version, &stage, routes, "GET").await.await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello!");
            check(&stage, Aborted(OK)).await;
        }
    }
}

/// The outcomes at the border between success and failure.
#[tokio::test]
async fn response_below_400_is_a_success_if_it_is_complete() {
    let status = |code| StatusCode::from_u16(code).unwrap();
    for (code, succeeds) in [(200, true), (399, true), (400, false), (401, false), (500, false)] {
        let stage = Stage::default();
        let routes = answer(status(code));
        drop(call(&stage, routes, "GET").await.await.unwrap());
        check(&stage, Complete(status(code))).await;
        assert_eq!(stage.scheduler.stats().skipped, u64::from(!succeeds), "{code}");
        assert_eq!(Complete(status(code)).is_success(), succeeds, "{code}");
        let unsuccessful = [Aborted(status(code)), Unfinished(Some(status(code)))];
        assert!(unsuccessful.iter().all(|outcome| !outcome.is_success()), "{code}");
    }
}

#[test]
fn outcome_has_the_status_of_its_response() {
    let teapot = StatusCode::IM_A_TEAPOT;
    for (outcome, status, is_complete) in [
        (Complete(teapot), Some(teapot), true),
        (Aborted(teapot), Some(teapot), false),
        (Unfinished(Some(teapot)), Some(teapot), false),
        (Unfinished(None), None, false),
        (NoResponse, None, false),
    ] {
        assert_eq!((outcome.status(), outcome.is_complete()), (status, is_complete), "{outcome:?}");
    }
}

#[tokio::test]
async fn head_response_completes_without_its_declared_length() {
    let stage = Stage::default();
    let inner = service_fn(async |_: Request<Body>| {
        let body = Body::new(Script::new([]));
        Ok::<_, Infallible>(([("content-length", "5")], body).into_response())
    });
    let response = call(&stage, inner, "HEAD").await.await.unwrap();
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    check(&stage, Complete(OK)).await;
}

#[tokio::test]
async fn body_that_is_dropped_after_some_of_its_frames_is_aborted() {
    let stage = Stage::default();
    let routes = body(|| vec![Step::text("hel"), Step::text("lo")]);
    let mut body = call(&stage, routes, "GET").await.await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    check(&stage, Aborted(OK)).await;
}

/// As behind a layer that logs the error of a body and ends there.
#[tokio::test]
async fn failed_body_polled_to_its_end_is_aborted() {
    let stage = Stage::default();
    let routes = body(|| vec![Step::text("hel"), Step::Fail]);
    let mut body = call(&stage, routes, "GET").await.await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    body.frame().await.unwrap().unwrap_err();
    assert!(body.frame().await.is_none());
    drop(body);
    check(&stage, Aborted(OK)).await;
}

#[tokio::test]
async fn tunnel_has_no_body_and_informational_status_is_no_response() {
    for (method, status, expected) in [
        ("CONNECT", OK, Complete(OK)),
        ("CONNECT", StatusCode::FORBIDDEN, Aborted(StatusCode::FORBIDDEN)),
        ("CONNECT", StatusCode::EARLY_HINTS, Aborted(StatusCode::EARLY_HINTS)),
        ("HEAD", StatusCode::EARLY_HINTS, Aborted(StatusCode::EARLY_HINTS)),
        ("HEAD", StatusCode::FORBIDDEN, Complete(StatusCode::FORBIDDEN)),
    ] {
        let stage = Stage::default();
        let inner = service_fn(move |_: Request<Body>| {
            let body = Body::new(Script::new([Step::text("hel"), Step::text("lo")]));
            ready(Ok::<_, Infallible>((status, body).into_response()))
        });
        drop(call(&stage, inner, method).await.await.unwrap());
        check(&stage, expected).await;
    }
}

/// As over HTTP/2, where hyper polls any body, also for `HEAD`.
#[tokio::test]
async fn response_without_a_body_is_complete_whatever_was_polled() {
    let stage = Stage::default();
    let inner = service_fn(async |_: Request<Body>| {
        Ok::<_, Infallible>(
            Body::new(Script::new([Step::text("hel"), Step::text("lo")])).into_response(),
        )
    });
    let mut body = call(&stage, inner, "HEAD").await.await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    check(&stage, Complete(OK)).await;
}

// The end of bodies, measured.

/// The calls of a server to a response body.
#[derive(Clone, Debug, Default)]
struct Seen {
    polls: usize,
    none: bool,
    /// `is_end_stream` after the last frame with data.
    end_after_data: Option<bool>,
    end_at_drop: bool,
}

struct Watched {
    inner: Body,
    seen: Seen,
    report: Arc<Mutex<Option<Seen>>>,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.seen.polls += 1;
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(None) => self.seen.none = true,
            Poll::Ready(Some(Ok(_))) => {
                self.seen.end_after_data = Some(self.inner.is_end_stream());
            }
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.seen.end_at_drop = self.inner.is_end_stream();
        *self.report.lock().unwrap() = Some(self.seen.clone());
    }
}

/// `poll_frame` calls, whether `None` was seen, and `is_end_stream` after the last frame and at the
/// drop of the body, with hyper 1.12. The outcome must not depend on them.
const HOW_BODIES_END: &str = "
empty                           Http1: polls 0, None no, end after data -, at drop yes
204                             Http1: polls 0, None no, end after data -, at drop yes
fixed                           Http1: polls 1, None no, end after data yes, at drop yes
streamed                        Http1: polls 3, None yes, end after data no, at drop no
streamed with content-length    Http1: polls 2, None no, end after data no, at drop no
streamed with trailers          Http1: polls 2, None no, end after data no, at drop no
HEAD                            Http1: polls 0, None no, end after data -, at drop no
empty                           Http2: polls 0, None no, end after data -, at drop yes
204                             Http2: polls 0, None no, end after data -, at drop yes
fixed                           Http2: polls 2, None yes, end after data yes, at drop yes
streamed                        Http2: polls 3, None yes, end after data no, at drop no
streamed with content-length    Http2: polls 3, None yes, end after data no, at drop no
streamed with trailers          Http2: polls 2, None no, end after data no, at drop no
HEAD                            Http2: polls 1, None no, end after data yes, at drop yes
";

type Make = fn() -> Response<Body>;

#[tokio::test]
async fn how_a_body_ends_depends_on_its_shape_and_on_the_protocol() {
    fn streamed() -> Body {
        Body::new(Script::new([Step::text("hel"), Step::text("lo")]))
    }
    let shapes: [(&str, &str, Make); 7] = [
        ("empty", "GET", || ().into_response()),
        ("204", "GET", || StatusCode::NO_CONTENT.into_response()),
        ("fixed", "GET", || "hello".into_response()),
        ("streamed", "GET", || streamed().into_response()),
        ("streamed with content-length", "GET", || {
            ([("content-length", "5")], streamed()).into_response()
        }),
        ("streamed with trailers", "GET", || {
            let body = Body::new(Script::new([Step::text("hello"), Step::Trailers]));
            ([("trailer", "sum")], body).into_response()
        }),
        ("HEAD", "HEAD", || "hello".into_response()),
    ];
    let yes = |is: bool| if is { "yes" } else { "no" };
    let mut table = String::from("\n");
    for protocol in [Http1, Http2] {
        for (name, method, make) in &shapes {
            let stage = Stage::default();
            let report = Arc::new(Mutex::new(None));
            let (make, watched) = (*make, report.clone());
            let inner = service_fn(move |_: Request<Incoming>| {
                let report = watched.clone();
                let response =
                    make().map(|inner| Body::new(Watched { inner, seen: Seen::default(), report }));
                async { Ok::<_, Infallible>(response) }
            });
            let service = tower::ServiceBuilder::new()
                .layer(JobsLayer::new(stage.scheduler.clone()))
                .map_request(stage.recorder.clone().defer_for())
                .service(inner);
            let server = Server::start(service).await;
            let mut client = Client::connect(server.address, protocol).await;
            let headers = [("te", "trailers"), ("connection", "close")];
            let headers = if protocol == Http1 { &headers[..] } else { &headers[..1] };
            client.send(&Ask { method, headers, ..Ask::default() }.bytes(protocol)).await;
            assert!(client.read_to_end().await);
            let status = make().status();
            check(&stage, Complete(status)).await;
            let seen: Seen = report.lock().unwrap().clone().expect("the body has been dropped");
            let (none, end) = (yes(seen.none), yes(seen.end_at_drop));
            let after = seen.end_after_data.map_or("-", yes);
            writeln!(
                table,
                "{name:<31} {protocol:?}: polls {}, None {none}, end after data {after}, at drop {end}",
                seen.polls
            )
            .unwrap();
        }
    }
    assert_eq!(table, HOW_BODIES_END, "{table}");
}
