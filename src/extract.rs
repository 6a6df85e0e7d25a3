use std::{any::type_name, convert::Infallible, fmt, marker::PhantomData};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER, request::Parts};

use crate::{
    error::{SpawnError, TrySpawnError},
    jobs::Jobs,
};

/// There is no [`JobsLayer`](crate::JobsLayer) around this route. A response of status 500, whose
/// text says what to do.
pub struct MissingJobs<M = ()>(PhantomData<fn() -> M>);

impl<M> fmt::Display for MissingJobs<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (jobs, layer) = match type_name::<M>() {
            "()" => ("Jobs".to_owned(), "JobsLayer::new(scheduler)".to_owned()),
            marker => {
                (format!("Jobs<{marker}>"), format!("JobsLayer::<{marker}>::marked(scheduler)"))
            }
        };
        write!(
            f,
            "`{jobs}` is not among the request's extensions: add `.layer({layer})` to the router, \
             after this route; a route that is added after `.layer` does not see the layer"
        )
    }
}

impl<M> fmt::Debug for MissingJobs<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MissingJobs")
    }
}

impl<M> std::error::Error for MissingJobs<M> {}

impl<M> IntoResponse for MissingJobs<M> {
    fn into_response(self) -> Response {
        let text = self.to_string();
        tracing::error!("{text}");
        (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    }
}

impl<S: Send + Sync, M: 'static> FromRequestParts<S> for Jobs<M> {
    type Rejection = MissingJobs<M>;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or(MissingJobs(PhantomData))
    }
}

impl<S: Send + Sync, M: 'static> OptionalFromRequestParts<S> for Jobs<M> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

impl IntoResponse for SpawnError {
    fn into_response(self) -> Response {
        match self {
            Self::NoRuntime => {
                (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
            }
            Self::Duplicate(_) => (StatusCode::CONFLICT, self.to_string()).into_response(),
            // A second is about as long as a full queue, or the next instance, takes.
            Self::Closed | Self::Full | Self::TimedOut => (
                StatusCode::SERVICE_UNAVAILABLE,
                [(RETRY_AFTER, HeaderValue::from_static("1"))],
                self.to_string(),
            )
                .into_response(),
        }
    }
}

impl<F> IntoResponse for TrySpawnError<F> {
    fn into_response(self) -> Response {
        SpawnError::from(self).into_response()
    }
}
