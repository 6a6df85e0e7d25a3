//! `Postgres`, against a real server.

#[path = "../support/postgres.rs"]
mod postgres;
