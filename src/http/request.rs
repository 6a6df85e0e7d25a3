//! One request, as its jobs know it: what it is called, how its response ended, and how many of
//! its jobs there are.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering, fence},
    },
};

use http::{Extensions, Method, Uri, Version, uri::PathAndQuery};
use once_cell::race::OnceBox;
use tokio::sync::Notify;

use crate::{http::response_end::Ending, rules::state::ResponseOutcome, util::panics::notify};

/// What a label is made of, if it is ever asked for.
#[derive(Debug)]
pub(crate) enum Origin {
    /// None: the request names a host instead, as those of `CONNECT` do.
    Path(Method, Option<PathAndQuery>),
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
        Self::Path(method.clone(), uri.path_and_query().cloned())
    }

    fn label(&self) -> Arc<str> {
        match self {
            Self::Path(method, path) => {
                format!("{method} {}", path.as_ref().map_or("", PathAndQuery::path)).into()
            }
            #[cfg(feature = "matched-path")]
            Self::MatchedPath(method, path) => format!("{method} {}", path.as_str()).into(),
            Self::Label(label) => label.clone(),
        }
    }
}

/// What is to be done once the response is over.
type Callback = Box<dyn FnOnce(ResponseOutcome) + Send>;

/// Every request has one, so it is small, as a [record](crate::job::record::Record) is, and what few need
/// is allocated when they do.
pub(crate) struct Request {
    origin: Origin,
    label: OnceBox<Arc<str>>,
    response: Ending<Callback>,
    /// There are never more of them than a scheduler has room for.
    jobs: AtomicU32,
    is_multiplexed: bool,
    /// Notified whenever one of its jobs has ended, once anybody has waited for that.
    ended: OnceBox<Notify>,
}

impl Request {
    pub(crate) fn new(origin: Origin, version: Version) -> Self {
        Self {
            origin,
            label: OnceBox::new(),
            response: Ending::new(),
            jobs: AtomicU32::new(0),
            is_multiplexed: version > Version::HTTP_11,
            ended: OnceBox::new(),
        }
    }

    pub(crate) fn label(&self) -> &Arc<str> {
        self.label.get_or_init(|| Box::new(self.origin.label()))
    }

    /// Whether the connection has other requests at the same time (HTTP/2, 3). A server drops the body
    /// of the response in another task then than the one that writes it.
    pub(crate) fn is_multiplexed(&self) -> bool {
        self.is_multiplexed
    }

    // The response.

    /// Calls `then` when the response is over: at once if it is, and exactly once.
    pub(crate) fn when_over(&self, then: Callback) {
        if let Some((then, outcome)) = self.response.wait(then) {
            then(outcome);
        }
    }

    pub(crate) fn over(&self, outcome: ResponseOutcome) {
        if let Some(deferred) = self.response.over(outcome) {
            deferred.for_each(|then| then(outcome));
        }
    }

    pub(crate) fn outcome(&self) -> Option<ResponseOutcome> {
        self.response.outcome()
    }

    // Its jobs.

    pub(crate) fn jobs(&self) -> usize {
        self.jobs.load(Ordering::Acquire) as usize
    }

    pub(crate) fn job_joined(&self) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn job_left(&self) {
        self.jobs.fetch_sub(1, Ordering::Release);
    }

    /// After `job_left`, and not under a lock: wakers run.
    pub(crate) fn notify_ended(&self) {
        // Pairs with the one in `wait_until`: either this sees that somebody waits, or who waits
        // sees all that was done before this.
        fence(Ordering::SeqCst);
        if let Some(ended) = self.ended.get() {
            notify(ended);
        }
    }

    /// Resolves when `done` is, which is asked again whenever one of the jobs has ended.
    pub(crate) async fn wait_until(&self, done: impl Fn() -> bool) {
        let ended = self.ended.get_or_init(Box::default);
        loop {
            let mut ended = pin!(ended.notified());
            ended.as_mut().enable();
            fence(Ordering::SeqCst);
            if done() {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_small() {
        // With the two counts of its `Arc`: see the record's.
        assert!(size_of::<Request>() + 16 <= 120, "{}", size_of::<Request>() + 16);
    }

    #[test]
    fn a_label_has_the_method_and_the_path_without_the_query() {
        let of = |method, uri: &'static str| {
            Origin::new(&method, &Uri::from_static(uri), &Extensions::new()).label()
        };
        assert_eq!(&*of(Method::GET, "/users/7?full=yes"), "GET /users/7");
        assert_eq!(&*of(Method::POST, "https://example.com"), "POST /");
        assert_eq!(&*of(Method::OPTIONS, "*"), "OPTIONS *");
        assert_eq!(&*of(Method::CONNECT, "example.com:443"), "CONNECT ");
        let odd = Method::from_bytes(b"A-METHOD-OF-ONES-OWN").expect("a method");
        assert_eq!(&*of(odd, "/"), "A-METHOD-OF-ONES-OWN /");
    }
}
