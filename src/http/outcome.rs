//! How a response ended.

use http::{HeaderMap, Request, Response, StatusCode};

use crate::job::output::plain_values;

/// How the response of a request ended, as its server saw it.
///
/// "Complete" means handed to the server in full, which is not received by the client, and not
/// even written to the socket: no server tells when that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseOutcome {
    /// Its body was handed over to its end.
    Complete(StatusCode),
    /// It began, and its body was dropped before its end: the client left, the body failed or ended
    /// short of its declared length, or a layer outside replaced it.
    Aborted(StatusCode),
    /// There was none: the client left or a timeout struck while the handler ran, the handler
    /// panicked, or the service returned an error.
    NoResponse,
}

impl ResponseOutcome {
    /// The status of the response, if there was one.
    pub fn status(self) -> Option<StatusCode> {
        match self {
            Self::Complete(status) | Self::Aborted(status) => Some(status),
            Self::NoResponse => None,
        }
    }

    /// Whether the response was handed over in full.
    pub fn is_complete(self) -> bool {
        matches!(self, Self::Complete(_))
    }

    /// Whether the response was handed over in full, with a status below 400. (A gRPC error is
    /// one: its HTTP status is 200.)
    pub fn is_success(self) -> bool {
        matches!(self, Self::Complete(status) if status.as_u16() < 400)
    }
}

// Types of the `http` crate that a job may return.
plain_values! {
    <> ResponseOutcome; <> StatusCode; <> HeaderMap; <B> Request<B>; <B> Response<B>;
}
