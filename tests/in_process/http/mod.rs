//! Requests, responses and the jobs they leave behind.

mod after_response;
mod atomic;
mod blocking;
mod deferred;
mod disconnects;
#[cfg(feature = "axum")]
mod extractor;
#[cfg(feature = "axum")]
mod layer;
mod middleware_order;
mod plain;
mod request_group;
#[cfg(feature = "axum")]
mod requests;
#[cfg(feature = "axum")]
mod slow_clients;
mod slow_reader;
mod tonic;
