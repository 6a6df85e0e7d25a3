//! Data about jobs that have ended.

mod drain_report;
mod late_observer;
#[cfg(feature = "metrics")]
mod metrics;
mod observer;
