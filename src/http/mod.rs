//! Requests, responses and the jobs they leave behind.

pub(crate) mod after_response;
pub(crate) mod atomic;
#[cfg(feature = "axum")]
pub(crate) mod axum;
pub(crate) mod body;
pub(crate) mod jobs;
pub(crate) mod layer;
pub(crate) mod outcome;
pub(crate) mod request;
pub(crate) mod response_end;
