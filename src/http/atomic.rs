//! The layer that runs its inner service as a job.

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

/// The `Retry-After` of a refused request, in seconds. A full queue usually drains in about this time,
/// and another instance usually takes over in about this time.
pub(super) const RETRY_AFTER_SECONDS: &str = "1";

/// Detaches the inner service from its client: it runs as a job.
///
/// The service then runs to its end, even if the client leaves or a timeout further out strikes.
/// This is aiojobs' `@atomic`. To detach only a part of a handler, use
/// [`Jobs::shield`](crate::Jobs::shield).
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
/// On a route, the layer covers the handler and its extractors. On a router, the layer covers all of
/// the router's routes, and the layers inside it. The job starts with the first poll of the response
/// future. The client gets the response if it is still connected.
///
/// # Guarantees
///
/// - The job is listed, counted and drained like any other. Its name is `atomic`, and its location is
///   the place where the layer was made.
/// - The job has the label of its request if a plain `JobsLayer` is further out. A `JobsLayer` with a
///   marker does not count.
/// - The job is outside its request's group: the request's `Jobs` does not count, await or close it.
/// - The job runs outside the limit. Otherwise handlers could wait without end for permits that only
///   waiting handlers can free.
/// - A panic of the service continues in the outer stack. If the client has left, the panic is reported
///   as the job's failure.
/// - An error of the service is returned by the response future. If the client has left, the error is
///   reported as the job's failure.
/// - The service sees the request's extensions, and runs in the current span.
/// - If the scheduler is closed, or closes before the handler has ended, the response is 503 with an
///   empty body and `Retry-After: 1`. If the scheduler has no runtime, the response is 500.
///
/// # What it does not do
///
/// - The response's *body* is not part of the job. A stream ends when the client leaves.
/// - The request's body comes from the connection. Reading it fails once the client has left. A handler
///   whose extractors have read the body is not affected.
/// - A request whose response future is never polled does not start.
#[doc(alias = "detached")]
#[derive(Clone, Debug)]
pub struct AtomicLayer {
    scheduler: Scheduler,
    location: &'static Location<'static>,
}

impl AtomicLayer {
    /// Makes a layer whose services run as jobs of `scheduler`.
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

/// Runs its inner service as a job: the service of [`AtomicLayer`].
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
        // Only the service that was polled ready may be called, not its clone.
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
        // `call` runs inside the job, so that its panic is the job's panic.
        let serve = async move { ready.call(request).await }.in_current_span();
        AtomicFuture { shield: Box::pin(self.layer.scheduler.with_options(options).shield(serve)) }
    }
}

type Shield<T> = Pin<Box<dyn Future<Output = Result<T, JobError>> + Send>>;

/// Resolves to the response of an [`Atomic`] service.
pub struct AtomicFuture<T, E> {
    shield: Shield<Result<T, E>>,
}

impl<B: Default, E> Future for AtomicFuture<Response<B>, E> {
    type Output = Result<Response<B>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match ready!(self.shield.as_mut().poll(cx)) {
            Ok(result) => Poll::Ready(result),
            Err(error) => {
                tracing::debug!(%error, "the scheduler refused or ended an atomic handler");
                let mut response = Response::new(B::default());
                if error.refusal() == Some(SpawnError::NoRuntime) {
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    return Poll::Ready(Ok(response));
                }
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
                    .headers_mut()
                    .insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
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
