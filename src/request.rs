//! One request, as its jobs know it: what it is called, how its response ended, and how many of
//! its jobs there are.

use std::{
    mem,
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Extensions, Method, StatusCode, Uri};
use tokio::sync::Notify;

use crate::{contain::notify, lock::lock};

/// How the response of a request ended, as its server saw it.
///
/// "Complete" means handed to the server in full, which is not received by the client, and not
/// even written to the socket: no server tells when that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseOutcome {
    /// Its body was handed over to its end.
    Complete(StatusCode),
    /// It began, and its body was dropped before its end: the client left, the body failed, or a
    /// layer outside replaced it.
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

/// What a label is made of, if it is ever asked for.
#[derive(Debug)]
pub(crate) enum Origin {
    Path(Method, Uri),
    #[cfg(feature = "matched-path")]
    MatchedPath(Method, axum::extract::MatchedPath),
    Label(Arc<str>),
}

impl Origin {
    #[cfg_attr(not(feature = "matched-path"), allow(unused_variables))]
    pub(crate) fn new(method: &Method, uri: &Uri, extensions: &Extensions) -> Self {
        #[cfg(feature = "matched-path")]
        if let Some(path) = extensions.get::<axum::extract::MatchedPath>() {
            return Self::MatchedPath(method.clone(), path.clone());
        }
        Self::Path(method.clone(), uri.clone())
    }

    fn label(&self) -> Arc<str> {
        match self {
            Self::Path(method, uri) => format!("{method} {}", uri.path()).into(),
            #[cfg(feature = "matched-path")]
            Self::MatchedPath(method, path) => format!("{method} {}", path.as_str()).into(),
            Self::Label(label) => label.clone(),
        }
    }
}

type Deferred = Box<dyn FnOnce(ResponseOutcome) + Send>;

enum Response {
    Awaited(Vec<Deferred>),
    Over(ResponseOutcome),
}

pub(crate) struct Request {
    origin: Origin,
    label: OnceLock<Arc<str>>,
    response: Mutex<Response>,
    jobs: AtomicUsize,
    /// Notified whenever one of its jobs has ended.
    ended: Notify,
}

impl Request {
    pub(crate) fn new(origin: Origin) -> Self {
        Self {
            origin,
            label: OnceLock::new(),
            response: Mutex::new(Response::Awaited(Vec::new())),
            jobs: AtomicUsize::new(0),
            ended: Notify::new(),
        }
    }

    pub(crate) fn label(&self) -> &Arc<str> {
        self.label.get_or_init(|| self.origin.label())
    }

    // The response.

    /// Calls `then` when the response is over: at once if it is, and exactly once.
    pub(crate) fn when_over(&self, then: Deferred) {
        let mut response = lock(&self.response);
        let outcome = match &mut *response {
            Response::Awaited(deferred) => return deferred.push(then),
            Response::Over(outcome) => *outcome,
        };
        drop(response);
        then(outcome);
    }

    pub(crate) fn over(&self, outcome: ResponseOutcome) {
        let before = mem::replace(&mut *lock(&self.response), Response::Over(outcome));
        if let Response::Awaited(deferred) = before {
            deferred.into_iter().for_each(|then| then(outcome));
        }
    }

    pub(crate) fn outcome(&self) -> Option<ResponseOutcome> {
        match &*lock(&self.response) {
            Response::Awaited(_) => None,
            Response::Over(outcome) => Some(*outcome),
        }
    }

    // Its jobs.

    pub(crate) fn jobs(&self) -> usize {
        self.jobs.load(Ordering::Acquire)
    }

    pub(crate) fn job_joined(&self) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn job_left(&self) {
        self.jobs.fetch_sub(1, Ordering::Release);
    }

    /// After `job_left`, and not under a lock: wakers run.
    pub(crate) fn notify_ended(&self) {
        notify(&self.ended);
    }

    /// Resolves when `done` is, which is asked again whenever one of the jobs has ended.
    pub(crate) async fn wait_until(&self, done: impl Fn() -> bool) {
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            if done() {
                return;
            }
            ended.await;
        }
    }
}
