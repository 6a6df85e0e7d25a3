//! `Postgres`, against a real server. Without one, each test ends at once.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/postgres.rs"]
mod postgres;
mod store;

mod admin;
mod logs;
mod outage;
mod pushing;
mod running;
mod schema;
mod workers;
