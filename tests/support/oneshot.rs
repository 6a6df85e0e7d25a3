//! Requests to services without a server.

use std::{cell::Cell, convert::Infallible, future::ready};

use axum::{
    Router,
    body::{self, Body},
};
use http::{Request, Response, Version};
use http_body_util::Empty;
use hyper::body::Bytes;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_jobs::{Jobs, JobsLayer, ResponseBody, Scheduler};

/// The response of an axum router.
pub(crate) async fn call(app: Router, method: &str, path: &str) -> Response<Body> {
    let request = Request::builder().method(method).uri(path).body(Body::empty());
    app.oneshot(request.expect("a request")).await.expect("an infallible router")
}

/// The body of a response.
pub(crate) async fn text(response: Response<Body>) -> String {
    let body = body::to_bytes(response.into_body(), usize::MAX).await.expect("a whole body");
    String::from_utf8(body.into()).expect("text")
}

/// The response of a `JobsLayer`, which is over when it is dropped, and the `Jobs` of its request.
pub(crate) struct Open<B> {
    pub(crate) jobs: Jobs,
    pub(crate) response: Response<ResponseBody<B>>,
}

/// A response with no body: dropped, it is complete.
pub(crate) async fn respond(scheduler: &Scheduler) -> Open<Empty<Bytes>> {
    respond_with(scheduler, Response::new(Empty::new())).await
}

pub(crate) async fn respond_with<B>(scheduler: &Scheduler, response: Response<B>) -> Open<B>
where
    B: hyper::body::Body,
{
    respond_over(Version::HTTP_11, scheduler, response).await
}

pub(crate) async fn respond_over<B>(
    version: Version,
    scheduler: &Scheduler,
    response: Response<B>,
) -> Open<B>
where
    B: hyper::body::Body,
{
    let (response, jobs) = (Cell::new(Some(response)), Cell::new(None));
    let inner = service_fn(|request: Request<()>| {
        jobs.set(request.extensions().get::<Jobs>().cloned());
        ready(Ok::<_, Infallible>(response.take().expect("one request")))
    });
    let layer = JobsLayer::new(scheduler.clone()).label_by_path();
    let service = ServiceBuilder::new().layer(layer).service(inner);
    let request = Request::post("/signup").version(version).body(()).expect("a request");
    let response = service.oneshot(request).await.expect("a response");
    Open { jobs: jobs.take().expect("the layer is there"), response }
}
