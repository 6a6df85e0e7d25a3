//! The page of `tower-jobs-dashboard`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test may start tasks, and read the real clock"
)]

mod actions;
mod connection;
mod dead_letters;
mod drain;
mod figures;
mod hostile;
mod looks;
mod served;
mod users;
