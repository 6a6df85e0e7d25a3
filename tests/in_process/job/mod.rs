//! One job: its failures, its output and its span.

mod failures;
mod output;
mod spans;
