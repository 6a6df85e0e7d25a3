//! The extractor of [`Jobs`], errors as responses, and handlers for probes.

use std::{any::type_name, convert::Infallible, fmt, marker::PhantomData};

use axum::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER, request::Parts};

use crate::{
    http::{atomic::RETRY_AFTER_SECONDS, jobs::Jobs},
    job::{
        any_error::Error,
        error::{SpawnError, TrySpawnError},
    },
};

/// Rejects a request whose route has no [`JobsLayer`](crate::JobsLayer) around it.
///
/// The response has status 500, and a text that says how to add the layer. The text is also logged, as
/// an error.
#[doc(alias = "MissingJobs")]
pub struct JobsRejection<M = ()>(PhantomData<fn() -> M>);

impl<M> fmt::Display for JobsRejection<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (jobs, layer) = match type_name::<M>() {
            "()" => ("Jobs".to_owned(), "JobsLayer::new(scheduler)".to_owned()),
            marker => (
                format!("Jobs<{marker}>"),
                format!("JobsLayer::<{marker}>::with_marker(scheduler)"),
            ),
        };
        write!(
            f,
            "`{jobs}` is not among the request's extensions: add `.layer({layer})` to the router, \
             after this route; a route that is added after `.layer` does not see the layer"
        )
    }
}

impl<M> fmt::Debug for JobsRejection<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobsRejection")
    }
}

impl<M> std::error::Error for JobsRejection<M> {}

impl<M> IntoResponse for JobsRejection<M> {
    fn into_response(self) -> Response {
        let text = self.to_string();
        tracing::error!("{text}");
        (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    }
}

impl<S: Send + Sync, M: 'static> FromRequestParts<S> for Jobs<M> {
    type Rejection = JobsRejection<M>;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or(JobsRejection(PhantomData))
    }
}

impl<S: Send + Sync, M: 'static> OptionalFromRequestParts<S> for Jobs<M> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// Answers a readiness probe: 200, or 503 once the shutdown has begun.
///
/// A load balancer that gets the 503 sends no more requests to this process. The status changes when
/// [`Scheduler::is_draining`](crate::Scheduler::is_draining) becomes true. The route needs a
/// [`JobsLayer`](crate::JobsLayer) around it.
///
/// ```
/// # use axum::{Router, routing::get};
/// # let scheduler = tower_jobs::Scheduler::new();
/// let app: Router = Router::new()
///     .route("/ready", get(tower_jobs::readiness))
///     .route("/live", get(tower_jobs::liveness))
///     .layer(tower_jobs::JobsLayer::new(scheduler));
/// ```
pub async fn readiness(jobs: Jobs) -> Response {
    if jobs.scheduler().is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down").into_response();
    }
    "ready".into_response()
}

/// Answers a liveness probe: always 200, also during the shutdown.
///
/// An orchestrator restarts a process whose liveness probe fails, and a process that drains its jobs
/// must not be restarted.
pub async fn liveness() -> &'static str {
    "alive"
}

impl IntoResponse for SpawnError {
    fn into_response(self) -> Response {
        match self {
            Self::NoRuntime => {
                (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
            }
            Self::Duplicate(_) => (StatusCode::CONFLICT, self.to_string()).into_response(),
            Self::Closed | Self::Full | Self::DeferredFull | Self::TimedOut => {
                unavailable(self.to_string())
            }
        }
    }
}

impl IntoResponse for Error {
    /// The texts are ours: the job's own error or panic may hold anything.
    fn into_response(self) -> Response {
        if let Some(refusal) = self.refusal() {
            return refusal.into_response();
        }
        match self {
            Self::Job(error) if error.is_cancelled() => unavailable("the job was cancelled"),
            Self::Job(error) if error.is_timeout() => {
                (StatusCode::INTERNAL_SERVER_ERROR, "the job took too long").into_response()
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "the job failed").into_response(),
        }
    }
}

/// 503, with a time to retry after.
fn unavailable(text: impl Into<String>) -> Response {
    let retry = [(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS))];
    (StatusCode::SERVICE_UNAVAILABLE, retry, text.into()).into_response()
}

impl<F> IntoResponse for TrySpawnError<F> {
    fn into_response(self) -> Response {
        SpawnError::from(self).into_response()
    }
}
