//! The outcome of a response.

use http::{HeaderMap, Request, Response, StatusCode};

use crate::job::output::plain_values;

/// Describes how a request's response ended, as the server saw it.
///
/// A *complete* response has been handed to the server in full. That does not mean that the client has
/// received the response, nor that the server has written it to the socket: no server reports that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseOutcome {
    /// The server took the body to its end.
    Complete(StatusCode),
    /// The response began, and its body was dropped before its end.
    ///
    /// Causes: the client left, the body failed, the body ended short of its declared length, or a
    /// layer further out replaced the response.
    Aborted(StatusCode),
    /// The service returned no response.
    ///
    /// Causes: the client left or a timeout struck while the handler ran, the handler panicked, or the
    /// service returned an error.
    NoResponse,
    /// The response had not ended when the job was started, and may still end.
    ///
    /// Causes: the job was deferred for longer than
    /// [`deferred_timeout`](crate::SchedulerBuilder::deferred_timeout), or a
    /// [`Shutdown`](crate::Shutdown) gave the connection up. The status is that of the response's
    /// head, if the service had returned one.
    Unfinished(Option<StatusCode>),
}

impl ResponseOutcome {
    /// Returns the status of the response, if there was one.
    pub fn status(self) -> Option<StatusCode> {
        match self {
            Self::Complete(status) | Self::Aborted(status) => Some(status),
            Self::NoResponse => None,
            Self::Unfinished(status) => status,
        }
    }

    /// Returns whether the response was handed to the server in full.
    pub fn is_complete(self) -> bool {
        matches!(self, Self::Complete(_))
    }

    /// Returns whether the response is complete, with a status below 400.
    ///
    /// A gRPC error is a success in this sense: its HTTP status is 200.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Complete(status) if status.as_u16() < 400)
    }
}

// Types of the `http` crate that a job may return.
plain_values! {
    <> ResponseOutcome; <> StatusCode; <> HeaderMap; <B> Request<B>; <B> Response<B>;
}
