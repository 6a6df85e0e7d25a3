//! Parts that the tests and the program `worker` share: kinds of jobs, the log of their runs, stores, and processes.

#![allow(
    clippy::missing_panics_doc,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "it is for tests"
)]

pub mod log;
#[allow(missing_docs, missing_debug_implementations, reason = "it is the tests' own")]
#[path = "../../tests/support/postgres.rs"]
pub mod postgres;
pub mod program;
pub mod store;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_jobs_durable::DurableJob;

/// How a job spends its time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum How {
    /// It awaits.
    Sleep,
    /// It never awaits.
    Block,
    /// It listens for the shutdown, and stops then.
    Listen,
    /// It notes how many bytes its process has allocated.
    Weigh,
}

/// A job that takes a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    /// Its number.
    pub n: u64,
    /// Its time.
    pub takes: Duration,
    /// How it spends it.
    pub how: How,
}

impl DurableJob for Work {
    const KIND: &str = "work";
}

/// A job that aborts its process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Abort {
    /// Its number.
    pub n: u64,
}

impl DurableJob for Abort {
    const KIND: &str = "abort";
    const MAX_CRASHES: u32 = 3;
}

/// A job that only a newer version of the program knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Newer {
    /// Its number.
    pub n: u64,
}

impl DurableJob for Newer {
    const KIND: &str = "newer";
}
