//! `JobsLayer` and `Jobs` without axum, on any tower service and a bare hyper server.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    marker::PhantomData,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::timeout::TimeoutLayer;
use tower_jobs::{DrainReport, JobList, Jobs, JobsLayer, JobsService, Scheduler, SpawnError};

use crate::support::{
    SECOND,
    http::{get, listen},
};

/// The body may be of any type. This one is no `Body`.
struct NotABody;

fn request() -> Request<NotABody> {
    Request::post("/signup?token=secret").body(NotABody).expect("a request")
}

#[tokio::test]
async fn jobs_are_found_in_the_extensions_of_any_tower_request() {
    let scheduler = Scheduler::new();
    let service = ServiceBuilder::new().layer(JobsLayer::new(scheduler.clone())).service_fn(
        async |request: Request<NotABody>| {
            let jobs: &Jobs = request.extensions().get().expect("the layer is there");
            jobs.spawn(async {}).await.expect("a place");
            Ok::<_, Infallible>(Response::new(String::new()))
        },
    );

    service.oneshot(request()).await.expect("a response");

    assert_eq!(scheduler.jobs()[0].request.as_deref(), Some("POST"));
    scheduler.wait_idle().await;
    assert_eq!(scheduler.stats().completed, 1);
}

#[tokio::test]
async fn jobs_of_a_bare_hyper_server_run_after_the_response() {
    let scheduler = Scheduler::new();
    let (open, gate) = oneshot::channel::<()>();
    let gate = Arc::new(Mutex::new(Some(gate)));
    let layer = JobsLayer::new(scheduler.clone()).label_by_path();
    let service =
        ServiceBuilder::new().layer(layer).service_fn(move |request: Request<Incoming>| {
            let gate = gate.lock().expect("no panic").take().expect("one request");
            async move {
                let jobs: &Jobs = request.extensions().get().expect("the layer is there");
                jobs.spawn(async { drop(gate.await) }).await?;
                let mut response = Response::new(Empty::<Bytes>::new());
                *response.status_mut() = StatusCode::ACCEPTED;
                Ok::<_, SpawnError>(response)
            }
        });
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
            .await
    });

    assert_eq!(get(address, "/work").await.status, StatusCode::ACCEPTED);
    server.await.expect("a server").expect("no error");

    assert_eq!(scheduler.jobs()[0].request.as_deref(), Some("GET /work"));
    open.send(()).expect("the job still waits");
    scheduler.wait_idle().await;
    assert_eq!(scheduler.stats().completed, 1);
}

#[test]
fn handling_a_request_needs_no_runtime() {
    let service =
        JobsLayer::new(Scheduler::new()).layer(service_fn(|request: Request<NotABody>| {
            let jobs: &Jobs = request.extensions().get().expect("the layer is there");
            let refused = jobs.try_spawn(async {}).expect_err("no runtime");
            ready(Ok::<_, Infallible>(Response::new(refused.to_string())))
        }));

    let answer = assert_ready!(tokio_test::task::spawn(service.oneshot(request())).poll());

    let text = answer.expect("a response").into_body().collect();
    let text = assert_ready!(tokio_test::task::spawn(text).poll()).expect("text").to_bytes();
    assert_eq!(text, SpawnError::NoRuntime.to_string());
}

#[tokio::test]
async fn label_is_asked_for_once_for_every_request() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let layer = JobsLayer::new(Scheduler::new()).label(move |method, uri, extensions| {
        count.fetch_add(1, Ordering::Relaxed);
        let id: Option<&u32> = extensions.get();
        id.map(|id| format!("{method} {} #{id}", uri.path()))
    });
    let service = layer.layer(service_fn(async |request: Request<NotABody>| {
        let jobs: &Jobs = request.extensions().get().expect("the layer is there");
        for _ in 0..2 {
            let job = jobs.spawn(async {}).await.expect("a place");
            assert_eq!(job.info().request.as_deref(), Some(jobs.label()));
        }
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let label = async |request| {
        let response = service.clone().oneshot(request).await.expect("a response");
        response.extensions().get::<Jobs>().expect("they are here as well").label().to_owned()
    };

    let mut with_id = request();
    with_id.extensions_mut().insert(7_u32);
    assert_eq!(label(with_id).await, "POST /signup #7");
    assert_eq!(label(request()).await, "POST", "the default");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

/// A service with the given readiness. It panics if it is called unready.
struct Inner {
    readiness: Poll<Result<(), &'static str>>,
    ready: bool,
}

impl Inner {
    fn new(readiness: Poll<Result<(), &'static str>>) -> Self {
        Self { readiness, ready: false }
    }
}

impl Service<Request<NotABody>> for Inner {
    type Response = Response<String>;
    type Error = &'static str;
    type Future = Ready<Result<Response<String>, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        self.ready = self.readiness == Poll::Ready(Ok(()));
        self.readiness
    }

    fn call(&mut self, _: Request<NotABody>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been ready");
        ready(Err("refused"))
    }
}

fn readiness(inner: Inner) -> Poll<Result<(), &'static str>> {
    let mut service = JobsLayer::new(Scheduler::new()).layer(inner);
    tokio_test::task::spawn(poll_fn(|cx| service.poll_ready(cx))).poll()
}

#[test]
fn service_is_as_ready_as_its_inner_service() {
    assert_pending!(readiness(Inner::new(Poll::Pending)));
    assert_eq!(readiness(Inner::new(Poll::Ready(Err("broken")))), Poll::Ready(Err("broken")));
    assert_eq!(readiness(Inner::new(Poll::Ready(Ok(())))), Poll::Ready(Ok(())));
}

#[tokio::test]
async fn ready_inner_service_is_called_and_its_error_passes() {
    let inner = Inner::new(Poll::Ready(Ok(())));
    let mut service = JobsLayer::new(Scheduler::new()).layer(inner);

    for _ in 0..2 {
        let ready = service.ready().await.expect("ready");
        assert_eq!(ready.call(request()).await.expect_err("refused"), "refused");
    }
}

#[test]
fn layer_service_and_jobs_are_as_sendable_as_what_is_inside() {
    fn anywhere<T: Clone + Send + Sync + 'static>() {}
    fn sendable<T: Clone + Send>() {}

    /// A marker is only a name.
    struct Mail {
        _not_send: PhantomData<*const ()>,
    }
    anywhere::<JobsLayer>();
    anywhere::<Jobs>();
    anywhere::<DrainReport>();
    anywhere::<JobList>();
    anywhere::<JobsService<()>>();
    anywhere::<JobsLayer<Mail>>();
    anywhere::<Jobs<Mail>>();
    anywhere::<JobsService<(), Mail>>();
    sendable::<JobsService<Cell<()>>>();
}

/// The `TimeoutLayer` of tower-http makes a response of its own. Its body must have a default.
#[tokio::test(start_paused = true)]
async fn layer_stacks_with_layers_that_make_empty_bodies() {
    let scheduler = Scheduler::new();
    let never = async |request: Request<NotABody>| {
        let jobs: &Jobs = request.extensions().get().expect("the layer is there");
        jobs.after_response(async {}).expect("a place");
        std::future::pending::<Result<Response<String>, Infallible>>().await
    };
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SECOND);
    let service = ServiceBuilder::new()
        .layer(timeout)
        .layer(JobsLayer::new(scheduler.clone()))
        .service_fn(never);

    let response = service.oneshot(request()).await.expect("a response");

    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(response.into_body().collect().await.expect("empty").to_bytes(), Bytes::new());
    scheduler.wait_idle().await;
    assert_eq!(scheduler.stats().completed, 1);
}
