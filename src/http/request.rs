//! The state of one request: its label, the end of its response, and the group of its jobs.

use std::sync::{Arc, OnceLock};

use http::{Extensions, Method, Uri, Version, uri::PathAndQuery};

use crate::{
    http::{outcome::ResponseOutcome, response_end::ResponseEnd},
    job::group::{Group, GroupOwner},
};

/// The source of a label. The label is formatted on first use.
#[derive(Debug)]
pub(crate) enum Origin {
    /// The method and the path of the URI. The path is `None` if the URI is a host only, as for
    /// `CONNECT`.
    Path(Method, Option<PathAndQuery>),
    #[cfg(feature = "matched-path")]
    MatchedPath(Method, axum::extract::MatchedPath),
    /// A label of [`JobsLayer::label`](crate::JobsLayer::label).
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

/// Runs once, when the response ends.
type Callback = Box<dyn FnOnce(ResponseOutcome) + Send>;

/// The state of one request, shared by its [`Jobs`](crate::Jobs), its jobs and its response.
///
/// Every request has one, so the state is small: parts that few requests need are allocated on first
/// use.
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

    /// Returns whether the connection serves several requests at a time, as HTTP/2 and later do. The
    /// server then drops the response's body in one task, and writes to the socket in another.
    pub(crate) fn is_multiplexed(&self) -> bool {
        self.is_multiplexed
    }

    /// Calls `callback` exactly once: when the response ends, or now if it has ended.
    pub(crate) fn on_response_end(&self, callback: Callback) {
        if let Some((callback, outcome)) = self.response.wait(callback) {
            callback(outcome);
        }
    }

    /// Ends the response, and runs the callbacks that wait for it.
    pub(crate) fn end_response(&self, outcome: ResponseOutcome) {
        if let Some(callbacks) = self.response.end(outcome) {
            callbacks.for_each(|callback| callback(outcome));
        }
    }

    /// Returns the outcome of the response, if it has ended.
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
        const MAX_SIZE: usize = 160;
        const ARC_COUNTS: usize = 2 * size_of::<usize>();
        let size = size_of::<RequestState>() + ARC_COUNTS;
        assert!(size <= MAX_SIZE, "{size}");
    }

    #[test]
    fn label_has_method_and_path_without_query() {
        let of = |method, uri: &'static str| {
            Origin::new(&method, &Uri::from_static(uri), &Extensions::new()).label()
        };
        assert_eq!(&*of(Method::GET, "/users/7?full=yes"), "GET /users/7");
        assert_eq!(&*of(Method::POST, "https://example.com"), "POST /");
        assert_eq!(&*of(Method::OPTIONS, "*"), "OPTIONS *");
        assert_eq!(&*of(Method::CONNECT, "example.com:443"), "CONNECT ");
        let odd = Method::from_bytes(b"A-METHOD-OF-ONES-OWN").expect("a valid method");
        assert_eq!(&*of(odd, "/"), "A-METHOD-OF-ONES-OWN /");
    }
}
