//! Why a job was not stored.

use std::{error::Error as StdError, fmt};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use tower_jobs::BoxError;

use crate::job::DurableId;

/// Says why a job was not stored.
///
/// It is a response: 409 for [`Duplicate`](Self::Duplicate), 503 with `Retry-After: 1` for
/// [`Unavailable`](Self::Unavailable), else 500. The body never holds the store's own text.
#[derive(Debug)]
#[non_exhaustive]
pub enum PushError {
    /// An unfinished job of the kind, with this id, has the same [unique key](crate::PushOptions::unique_key).
    Duplicate(DurableId),
    /// The store did not answer, or not in time. The job may be stored all the same, if only the answer was lost.
    Unavailable(BoxError),
    /// The job cannot be serialized as JSON.
    NotJson(serde_json::Error),
    /// The transaction given to `push_in` is of a database that this engine does not use. The text names both.
    WrongDatabase(String),
    /// The store refused the job: its tables are missing, for example.
    Refused(BoxError),
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate(id) => write!(f, "job {id} has the same unique key"),
            Self::Unavailable(_) => f.write_str("the store of the durable jobs is away"),
            Self::NotJson(_) => f.write_str("the job cannot be serialized as JSON"),
            Self::WrongDatabase(text) => f.write_str(text),
            Self::Refused(_) => f.write_str("the store of the durable jobs refused the job"),
        }
    }
}

impl StdError for PushError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Unavailable(error) | Self::Refused(error) => Some(error.as_ref()),
            Self::NotJson(error) => Some(error),
            Self::Duplicate(_) | Self::WrongDatabase(_) => None,
        }
    }
}

impl IntoResponse for PushError {
    fn into_response(self) -> Response {
        let text = match &self {
            Self::Duplicate(_) => return (StatusCode::CONFLICT, self.to_string()).into_response(),
            Self::Unavailable(_) => {
                let mut response =
                    (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response();
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                return response;
            }
            Self::NotJson(_) | Self::WrongDatabase(_) | Self::Refused(_) => self.to_string(),
        };
        let error = self.source().map(ToString::to_string).unwrap_or_default();
        tracing::error!(%error, "{text}");
        (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    }
}
