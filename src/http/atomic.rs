use std::{
    fmt,
    future::Future,
    mem,
    panic::Location,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Request, Response, StatusCode, header::RETRY_AFTER};
use tower_layer::Layer;
use tower_service::Service;
use tracing::Instrument;

use crate::{
    http::jobs::Jobs,
    job::{
        error::{BoxError, JobError, SpawnError},
        options::{JobFlags, Options},
    },
    scheduler::Scheduler,
};

/// Runs the whole inner service as a job, so that a client that leaves, or a timeout further out,
/// cannot cut it in half. aiojobs' `@atomic`.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::post};
/// use tower_jobs::{AtomicLayer, JobsLayer, Scheduler};
///
/// # async fn pay() {}
/// let scheduler = Scheduler::new();
/// let app: Router = Router::new()
///     .route("/pay", post(pay).layer(AtomicLayer::new(scheduler.clone())))
///     .layer(JobsLayer::new(scheduler));
/// # }
/// ```
///
/// On a route it shields that handler, with its extractors; on a router, all of its routes with
/// the layers inside it. From the first poll on the service runs to its end; its response goes to
/// the client if that is still there.
///
/// # Guarantees
///
/// - The job is listed, counted and drained like any other, under the name `atomic`, the label of
///   its request (if a plain `JobsLayer` is further out; one with a marker does not count), and the
///   place where the layer was made. It is not among the jobs that the request's `Jobs` counts,
///   awaits or closes. It runs outside the limit: handlers that waited for places which only
///   handlers can free would stop for good.
/// - A panic goes on in the outer stack; if the client has left, it is reported as the job's
///   failure. An error is the response future's; if the client has left, likewise.
/// - The request's extensions and the current span go along.
/// - Where a scheduler closes before the handler has ended, or is closed already, the response is
///   503 with an empty body and `Retry-After` (500 where the scheduler has no runtime).
///
/// # What it does not do
///
/// - The response's *body* is not part of the job. A stream ends when the client leaves.
/// - The request's body comes from the connection: read after the client has left, it fails. A
///   handler whose extractors have read it has nothing to fear.
/// - A request whose response is never polled does not start.
#[derive(Clone, Debug)]
pub struct AtomicLayer {
    scheduler: Scheduler,
    location: &'static Location<'static>,
}

impl AtomicLayer {
    /// A layer whose services run as jobs of `scheduler`.
    #[track_caller]
    pub fn new(scheduler: Scheduler) -> Self {
        Self { scheduler, location: Location::caller() }
    }
}

impl<S> Layer<S> for AtomicLayer {
    type Service = Atomic<S>;

    fn layer(&self, inner: S) -> Atomic<S> {
        Atomic { inner, layer: self.clone() }
    }
}

/// The service of [`AtomicLayer`].
#[derive(Clone, Debug)]
pub struct Atomic<S> {
    inner: S,
    layer: AtomicLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Atomic<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>, Error: Into<BoxError> + Send>,
    S: Clone + Send + 'static,
    S::Future: Send,
    S::Error: 'static,
    ReqBody: Send + 'static,
    ResBody: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AtomicFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // The service that was polled ready must be the one that is called.
        let clone = self.inner.clone();
        let mut ready = mem::replace(&mut self.inner, clone);
        let jobs = request.extensions().get::<Jobs>();
        let mut options = Options {
            group: jobs.map(|jobs| jobs.request().clone() as _),
            flags: JobFlags::OUTSIDE_GROUP,
            location: Some(self.layer.location),
            ..Options::default()
        };
        options.set_name("atomic".into());
        // Called inside the job, so that a panic in `call` is the job's too.
        let serve = async move { ready.call(request).await }.in_current_span();
        AtomicFuture { shield: Box::pin(self.layer.scheduler.with_options(options).shield(serve)) }
    }
}

type Shield<T> = Pin<Box<dyn Future<Output = Result<T, JobError>> + Send>>;

/// The response future of [`Atomic`].
pub struct AtomicFuture<T, E> {
    shield: Shield<Result<T, E>>,
}

impl<B: Default, E> Future for AtomicFuture<Response<B>, E> {
    type Output = Result<Response<B>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match ready!(self.shield.as_mut().poll(cx)) {
            Ok(result) => Poll::Ready(result),
            Err(error) => {
                tracing::debug!(%error, "an atomic handler was cut off by its scheduler's end");
                let mut response = Response::new(B::default());
                if error.is_refused_as(SpawnError::NoRuntime) {
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    return Poll::Ready(Ok(response));
                }
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                Poll::Ready(Ok(response))
            }
        }
    }
}

impl<T, E> fmt::Debug for AtomicFuture<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtomicFuture").finish_non_exhaustive()
    }
}
