//! The state of one request: its label, the end of its response, and the group of its jobs.

use std::sync::{Arc, OnceLock};

use http::{Extensions, Method, Uri, Version, uri::PathAndQuery};

use crate::{
    http::{outcome::ResponseOutcome, response_end::ResponseEnd},
    job::group::{Group, GroupOwner},
};

/// The source of a label, which is formatted on first use.
#[derive(Debug)]
pub(crate) enum Origin {
    /// `None` if the request names a host instead, as `CONNECT` does.
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

/// A call to make once the response is over.
type Callback = Box<dyn FnOnce(ResponseOutcome) + Send>;

/// The state of one request, shared by its [`Jobs`](crate::Jobs), its jobs and its response. Each
/// request has one, so it is small, and parts that few requests need are allocated when needed.
pub(crate) struct RequestState {
    origin: Origin,
    label: OnceLock<Arc<str>>,
    response: ResponseEnd<Callback>,
    is_multiplexed: bool,
    group: Group,
}

impl RequestState {
    pub(crate) fn new(origin: Origin, version: Version) -> Self {
        Self {
            origin,
            label: OnceLock::new(),
            response: ResponseEnd::new(),
            is_multiplexed: version > Version::HTTP_11,
            group: Group::default(),
        }
    }

    /// Whether the connection serves other requests at the same time, as over HTTP/2 and later. The
    /// server then drops the response's body in another task than the one that writes to the socket.
    pub(crate) fn is_multiplexed(&self) -> bool {
        self.is_multiplexed
    }

    /// Calls `then` exactly once when the response is over; now if it is.
    pub(crate) fn when_over(&self, then: Callback) {
        if let Some((then, outcome)) = self.response.wait(then) {
            then(outcome);
        }
    }

    /// Ends the response, and makes the calls that wait for that.
    pub(crate) fn over(&self, outcome: ResponseOutcome) {
        if let Some(waiting) = self.response.over(outcome) {
            waiting.for_each(|then| then(outcome));
        }
    }

    pub(crate) fn outcome(&self) -> Option<ResponseOutcome> {
        self.response.outcome()
    }
}

impl GroupOwner for RequestState {
    fn label(&self) -> &Arc<str> {
        self.label.get_or_init(|| self.origin.label())
    }

    fn group(&self) -> &Group {
        &self.group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_state_is_small() {
        // With the two counts of its `Arc`.
        assert!(size_of::<RequestState>() + 16 <= 160, "{}", size_of::<RequestState>() + 16);
    }

    #[test]
    fn label_is_method_and_path_without_query() {
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
