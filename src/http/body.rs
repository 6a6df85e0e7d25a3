//! The end of a response: a guard that goes from the response's future into its body, and tells
//! the request when it is dropped. `Drop` is the only event that always comes.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{HeaderMap, Method, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::http::{jobs::Jobs, outcome::ResponseOutcome, request::RequestState};

/// Ends the response with what it knows by then.
pub(crate) struct ResponseGuard {
    request: Arc<RequestState>,
    /// None while there is no response.
    status: Option<StatusCode>,
    is_complete: bool,
}

impl ResponseGuard {
    pub(crate) fn new(request: Arc<RequestState>) -> Self {
        Self { request, status: None, is_complete: false }
    }
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        self.request.over(match self.status {
            Some(status) if self.is_complete => ResponseOutcome::Complete(status),
            Some(status) => ResponseOutcome::Aborted(status),
            None => ResponseOutcome::NoResponse,
        });
    }
}

pin_project! {
    /// The response future of [`JobsService`](crate::JobsService).
    pub struct ResponseFuture<F, M = ()> {
        #[pin]
        inner: F,
        // Both leave with the response.
        jobs: Option<Jobs<M>>,
        guard: Option<ResponseGuard>,
        body_rule: BodyRule,
    }
}

impl<F, M> ResponseFuture<F, M> {
    pub(crate) fn new(inner: F, jobs: Jobs<M>, guard: ResponseGuard, body_rule: BodyRule) -> Self {
        Self { inner, jobs: Some(jobs), guard: Some(guard), body_rule }
    }
}

/// What of a request decides whether its response has a body.
#[derive(Clone, Copy)]
pub(crate) enum BodyRule {
    Head,
    Connect,
    Other,
}

impl From<&Method> for BodyRule {
    fn from(method: &Method) -> Self {
        match *method {
            Method::HEAD => Self::Head,
            Method::CONNECT => Self::Connect,
            _ => Self::Other,
        }
    }
}

impl<F, B, E, M> Future for ResponseFuture<F, M>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    M: 'static,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let guard = this.guard.take().expect("a response future is not polled after it is ready");
        // An error drops the guard here: there is no response.
        let mut response = result?;
        if let Some(jobs) = this.jobs.take() {
            let extensions = response.extensions_mut();
            // A layer further in goes first.
            if extensions.get::<Jobs<M>>().is_none() {
                extensions.insert(jobs);
            }
        }
        let left = Remaining::of(&response, *this.body_rule);
        let tracker = EndTracker::new(guard, response.status(), left, response.body());
        Poll::Ready(Ok(response.map(|inner| ResponseBody { inner, tracker: Some(tracker) })))
    }
}

pin_project! {
    /// The response body of [`JobsService`](crate::JobsService): the inner service's, watched for
    /// its end.
    pub struct ResponseBody<B> {
        // Dropped in this order: first the body, then what watches it.
        #[pin]
        inner: B,
        // None where a layer further out has made an empty body of its own.
        tracker: Option<EndTracker>,
    }
}

/// What is left of a body.
#[derive(Clone, Copy)]
enum Remaining {
    /// No body is sent with such a response, whatever this one has.
    NoBody,
    /// As many bytes as are left of the declared length.
    Bytes(u64),
    /// The body alone knows.
    Unknown,
    /// What will not come any more.
    Failed,
}

impl Remaining {
    fn of<B: Body>(response: &Response<B>, body_rule: BodyRule) -> Self {
        let status = response.status();
        let has_no_body = match (status, body_rule) {
            (StatusCode::SWITCHING_PROTOCOLS, _) => true,
            // It only announces a response.
            (status, _) if status.is_informational() => return Self::Failed,
            (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, _) | (_, BodyRule::Head) => true,
            // What follows is the tunnel.
            (status, BodyRule::Connect) => status.is_success(),
            (_, BodyRule::Other) => false,
        };
        if has_no_body {
            // What is declared for a body that is not sent says nothing.
            return Self::NoBody;
        }
        let declared = declared_length(response.headers());
        declared.or_else(|| response.body().size_hint().exact()).map_or(Self::Unknown, Self::Bytes)
    }
}

struct EndTracker {
    remaining: Remaining,
    guard: ResponseGuard,
}

impl EndTracker {
    fn new<B: Body>(
        mut guard: ResponseGuard,
        status: StatusCode,
        remaining: Remaining,
        body: &B,
    ) -> Self {
        guard.status = Some(status);
        let mut tracker = Self { remaining, guard };
        tracker.guard.is_complete = tracker.is_complete(|| body.is_end_stream());
        tracker
    }

    /// A body that ends before its declared length is no whole response: an HTTP/1.1 server breaks
    /// off there, and an HTTP/2 client refuses it.
    fn is_complete(&self, has_ended: impl FnOnce() -> bool) -> bool {
        match self.remaining {
            Remaining::NoBody => true,
            // Over HTTP/1 a server asks for no more than was declared; over later versions it asks
            // for the end.
            Remaining::Bytes(left) => {
                left == 0 && (!self.guard.request.is_multiplexed() || has_ended())
            }
            Remaining::Unknown => has_ended(),
            Remaining::Failed => false,
        }
    }

    /// Takes note of what the body gave.
    fn note<B: Body>(&mut self, given: Option<&Result<Frame<B::Data>, B::Error>>, body: &B) {
        match (given, &mut self.remaining) {
            (Some(Ok(frame)), Remaining::Bytes(left)) => {
                let bytes = frame.data_ref().map_or(0, Buf::remaining);
                *left = left.saturating_sub(bytes as u64);
            }
            // A layer further out may go on as if that had been the end.
            (Some(Err(_)), left @ (Remaining::Bytes(_) | Remaining::Unknown)) => {
                *left = Remaining::Failed
            }
            _ => {}
        }
        self.guard.is_complete = self.is_complete(|| match given {
            // After trailers a server asks for nothing more.
            Some(Ok(frame)) => frame.is_trailers() || body.is_end_stream(),
            given => given.is_none(),
        });
    }
}

/// An empty body that belongs to no request, as layers like tower-http's `TimeoutLayer` make.
impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self { inner: B::default(), tracker: None }
    }
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if let Some(tracker) = this.tracker {
            tracker.note(frame.as_ref(), &*this.inner);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<F, M> fmt::Debug for ResponseFuture<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<B: fmt::Debug> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}
