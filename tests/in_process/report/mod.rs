//! Data about jobs that have ended.

mod drain_report;
mod observer;
