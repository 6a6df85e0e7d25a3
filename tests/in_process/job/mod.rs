//! One job: its failures, its output and its span.

mod context;
mod failures;
mod output;
mod spans;
