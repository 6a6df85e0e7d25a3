//! The response future and body, which detect the end of the response.
//!
//! A guard moves from the future into the body, and ends the response in its `Drop`. A drop is the only
//! event that every response ends with.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{Extensions, HeaderMap, Method, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{
    http::{jobs::Jobs, outcome::ResponseOutcome, request::RequestState},
    job::group::GroupOwner,
};

/// Ends the response when it is dropped, with the outcome known by then.
pub(crate) struct ResponseGuard {
    request: Arc<RequestState>,
    /// The status of the response. `None` while the inner service has not returned one.
    status: Option<StatusCode>,
    /// The server has taken the body in full.
    is_complete: bool,
}

impl ResponseGuard {
    pub(crate) fn new(request: Arc<RequestState>) -> Self {
        Self { request, status: None, is_complete: false }
    }
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        self.request.end_response(match self.status {
            Some(status) if self.is_complete => ResponseOutcome::Complete(status),
            Some(status) => ResponseOutcome::Aborted(status),
            None => ResponseOutcome::NoResponse,
        });
    }
}

pin_project! {
    /// Resolves to the response of a [`JobsService`](crate::JobsService).
    pub struct ResponseFuture<F, M = ()> {
        #[pin]
        inner: F,
        // Both are moved into the response.
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

/// The kind of request method, which decides whether the response has a body.
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
        let guard = this.guard.take().expect("a future is not polled after it is ready");
        // On an error this returns, and drops the guard: `NoResponse`.
        let mut response = result?;
        if let Some(jobs) = this.jobs.take() {
            insert_jobs(response.extensions_mut(), jobs);
        }
        guard.request.set_status(response.status());
        let remaining = Remaining::of(&response, *this.body_rule);
        let tracker = EndTracker::new(guard, response.status(), remaining, response.body());
        Poll::Ready(Ok(response.map(|inner| ResponseBody { inner, tracker: Some(tracker) })))
    }
}

/// Inserts the request's `Jobs`, if it has had a job. Those of an inner layer stay. Those of another
/// request go once that is over: a cached response may carry them.
fn insert_jobs<M: 'static>(extensions: &mut Extensions, jobs: Jobs<M>) {
    let request = jobs.request();
    if let Some(found) = extensions.get::<Jobs<M>>() {
        if found.request().is_same_request(request) || found.request().outcome().is_none() {
            return;
        }
        extensions.remove::<Jobs<M>>();
    }
    if request.group().is_used() {
        extensions.insert(jobs);
    }
}

pin_project! {
    /// Wraps the body of a [`JobsService`](crate::JobsService)'s response, and detects its end.
    ///
    /// Frames, errors and the size hint are those of the inner service's body, unchanged.
    pub struct ResponseBody<B> {
        // The fields drop in this order. Deferred jobs start only after the body has dropped.
        #[pin]
        inner: B,
        // `None` in a body of `Default`, made by a layer further out.
        tracker: Option<EndTracker>,
    }
}

/// The part of the body that the server has not taken yet.
#[derive(Clone, Copy)]
enum Remaining {
    /// The server sends no body with such a response, even if the response has one.
    NoBody,
    /// This many bytes of the length, which the header or else an exact size hint declares.
    Bytes(u64),
    /// No length is declared. Only the body knows its end.
    Unknown,
    /// The body failed, or the server sends another response instead.
    Failed,
}

impl Remaining {
    fn of<B: Body>(response: &Response<B>, body_rule: BodyRule) -> Self {
        let status = response.status();
        let has_no_body = match (status, body_rule) {
            (StatusCode::SWITCHING_PROTOCOLS, _) => true,
            // Not a final response: over HTTP/1 hyper sends a 500 instead.
            (status, _) if status.is_informational() => return Self::Failed,
            (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, _) | (_, BodyRule::Head) => true,
            // The bytes that follow belong to the tunnel.
            (status, BodyRule::Connect) => status.is_success(),
            (_, BodyRule::Other) => false,
        };
        if has_no_body {
            // The declared length of a body that is not sent does not count.
            return Self::NoBody;
        }
        let declared = declared_length(response.headers());
        declared.or_else(|| response.body().size_hint().exact()).map_or(Self::Unknown, Self::Bytes)
    }
}

/// Follows the frames of a body, and keeps [`ResponseGuard::is_complete`] up to date.
struct EndTracker {
    remaining: Remaining,
    /// The body was empty from the start, or has given its end or its trailers.
    has_ended: bool,
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
        let mut tracker = Self { remaining, has_ended: body.is_end_stream(), guard };
        tracker.guard.is_complete = tracker.is_complete();
        tracker
    }

    /// Returns whether the server has taken the response in full. A body that ends before its declared
    /// length is not complete: an HTTP/1.1 server closes the connection there, and an HTTP/2 client
    /// rejects the response. Neither is a longer body.
    fn is_complete(&self) -> bool {
        match self.remaining {
            Remaining::NoBody => true,
            // An HTTP/1 server stops polling at the declared length. Later versions poll to the end.
            Remaining::Bytes(left) => left == 0 && (!self.is_multiplexed() || self.has_ended),
            Remaining::Unknown => self.has_ended,
            Remaining::Failed => false,
        }
    }

    fn is_multiplexed(&self) -> bool {
        self.guard.request.is_multiplexed()
    }

    /// Whether the server must poll for the end, although the body could say that it is there.
    ///
    /// Over HTTP/2 and later, hyper takes the last frame before the client's window has room for it, and
    /// may have to throw it away. Only when hyper asks for more has it passed that frame on.
    fn hides_end(&self) -> bool {
        self.is_multiplexed() && !self.has_ended && !matches!(self.remaining, Remaining::NoBody)
    }

    /// Records the result of one `poll_frame`.
    fn record<B: Body>(&mut self, polled: Option<&Result<Frame<B::Data>, B::Error>>, body: &B) {
        match (polled, &mut self.remaining) {
            (Some(Ok(frame)), remaining @ Remaining::Bytes(_)) => {
                let bytes = frame.data_ref().map_or(0, Buf::remaining) as u64;
                if let Remaining::Bytes(left) = remaining {
                    *remaining =
                        left.checked_sub(bytes).map_or(Remaining::Failed, Remaining::Bytes);
                }
            }
            // A layer further out may treat the error as the end, and poll on.
            (Some(Err(_)), remaining @ (Remaining::Bytes(_) | Remaining::Unknown)) => {
                *remaining = Remaining::Failed;
            }
            _ => {}
        }
        self.has_ended |= match polled {
            // A server does not poll after the trailers.
            Some(Ok(frame)) => {
                frame.is_trailers() || (!self.is_multiplexed() && body.is_end_stream())
            }
            Some(Err(_)) => false,
            None => true,
        };
        self.guard.is_complete = self.is_complete();
    }
}

/// Needed by outer layers that answer with an empty body, such as tower-http's `TimeoutLayer`.
impl<B: Default> Default for ResponseBody<B> {
    /// Makes an empty body that belongs to no request.
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
            tracker.record(frame.as_ref(), &*this.inner);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let hides_end = self.tracker.as_ref().is_some_and(EndTracker::hides_end);
        !hides_end && self.inner.is_end_stream()
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
