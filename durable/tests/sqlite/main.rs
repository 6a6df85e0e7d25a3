//! `Sqlite`, through the public API, on real files.
#![expect(clippy::unwrap_used, reason = "an error fails the test")]
#![expect(clippy::disallowed_methods, reason = "tests start tasks of their own, and read the date")]

mod foreign;
mod logs;
mod migrations;
mod pushing;
mod running;
mod support;
mod workers;
