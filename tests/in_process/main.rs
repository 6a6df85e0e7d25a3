//! Tests that run side by side in one process, in the rooms of `src/`.
//!
//! `processes` has those that start programs or send signals, `process_wide` those that set
//! something of the whole process, `threads.rs` those that take all processors.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test may start tasks and threads, and hold them"
)]

#[path = "../support/mod.rs"]
mod support;

mod aiojobs;
mod http;
mod job;
mod links;
mod report;
mod rooms;
mod rules;
mod run;
mod scheduler;
mod shown;
mod shutdown;
#[cfg(feature = "testing")]
mod testing;
