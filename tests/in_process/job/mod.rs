//! One job: its failures and its span.

mod failures;
mod spans;
