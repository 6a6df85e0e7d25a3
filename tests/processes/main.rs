//! Tests that start programs, or send signals to their own process.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test may start tasks, and read the real clock"
)]

#[path = "../support/mod.rs"]
mod support;

mod deploys;
mod examples;
mod readme_commands;
mod signals;
mod stack;
mod standard_error;
mod status;
mod welcome_email;
