//! One job: its failures, its output and its span.

mod context;
mod failures;
mod filters;
mod output;
mod span_ends;
mod spans;
