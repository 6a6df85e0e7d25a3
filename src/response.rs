//! The end of a response: a guard that goes from the response's future into its body, and tells
//! the request when it is dropped. `Drop` is the only event that always comes.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Method, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{
    jobs::Jobs,
    request::{Request, ResponseOutcome},
};

/// Ends the response with what it knows by then.
pub(crate) struct ResponseGuard {
    request: Arc<Request>,
    outcome: ResponseOutcome,
}

impl ResponseGuard {
    pub(crate) fn new(request: Arc<Request>) -> Self {
        Self { request, outcome: ResponseOutcome::NoResponse }
    }
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        self.request.over(self.outcome);
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
        is_head: bool,
    }
}

impl<F, M> ResponseFuture<F, M> {
    pub(crate) fn new(inner: F, jobs: Jobs<M>, guard: ResponseGuard, method: &Method) -> Self {
        let is_head = method == Method::HEAD;
        Self { inner, jobs: Some(jobs), guard: Some(guard), is_head }
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
            response.extensions_mut().get_or_insert_with(|| jobs);
        }
        let (parts, body) = response.into_parts();
        let body = ResponseBody::new(body, guard, parts.status, &parts.headers, *this.is_head);
        Poll::Ready(Ok(Response::from_parts(parts, body)))
    }
}

pin_project! {
    /// The response body of [`JobsService`](crate::JobsService): the inner service's, watched for
    /// its end.
    pub struct ResponseBody<B> {
        // Dropped in this order: first the body, then the guard.
        #[pin]
        inner: B,
        status: StatusCode,
        // No body is sent with such a response, whatever this one has.
        has_no_body: bool,
        // What is left of the declared length.
        left: Option<u64>,
        // None where a layer further out has made an empty body of its own.
        guard: Option<ResponseGuard>,
    }
}

impl<B: Body> ResponseBody<B> {
    fn new(
        inner: B,
        guard: ResponseGuard,
        status: StatusCode,
        headers: &HeaderMap,
        is_head: bool,
    ) -> Self {
        let left = declared_length(headers).or_else(|| inner.size_hint().exact());
        let has_no_body = is_head
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        // What is declared for a body that is not sent says nothing.
        let left = left.filter(|_| !has_no_body);
        let mut guard = guard;
        let complete = has_no_body || is_whole(left, inner.is_end_stream());
        guard.outcome = outcome(complete, status);
        Self { inner, status, has_no_body, left, guard: Some(guard) }
    }
}

/// An empty body that belongs to no request, as layers like tower-http's `TimeoutLayer` make.
impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        let status = StatusCode::OK;
        Self { inner: B::default(), status, has_no_body: false, left: None, guard: None }
    }
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body that ends before its declared length is no whole response: an HTTP/1.1 server breaks off
/// there, and an HTTP/2 client refuses it.
fn is_whole(left: Option<u64>, ended: bool) -> bool {
    left.map_or(ended, |left| left == 0)
}

fn outcome(complete: bool, status: StatusCode) -> ResponseOutcome {
    if complete { ResponseOutcome::Complete(status) } else { ResponseOutcome::Aborted(status) }
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
        let complete = match &frame {
            _ if *this.has_no_body => true,
            None => is_whole(*this.left, true),
            Some(Err(_)) => false,
            Some(Ok(frame)) => {
                if let (Some(left), Some(data)) = (this.left.as_mut(), frame.data_ref()) {
                    *left = left.saturating_sub(bytes_in(data));
                }
                is_whole(*this.left, this.inner.is_end_stream())
            }
        };
        if let Some(guard) = this.guard {
            guard.outcome = outcome(complete, *this.status);
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

fn bytes_in(data: &impl bytes::Buf) -> u64 {
    data.remaining() as u64
}
