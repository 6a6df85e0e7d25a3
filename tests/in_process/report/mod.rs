//! Data about jobs that have ended.

mod drain_report;
#[cfg(feature = "metrics")]
mod metrics;
mod observer;
