//! Jobs that survive the process.
#![doc = ""]
#![doc = include_str!("../README.md")]

mod context;
mod door;
mod durable;
mod engine;
mod envelope;
mod error;
mod handlers;
mod job;
mod outbox;

pub use context::DurableContext;
pub use door::{Door, Room};
pub use durable::{Durable, DurableBuilder};
#[cfg(feature = "postgres")]
pub use engine::postgres::Postgres;
#[cfg(feature = "sqlite")]
pub use engine::sqlite::Sqlite;
pub use engine::{Admin, Claimed, DeadLetter, Depth, Engine, NewRow, Verdict};
pub use error::PushError;
pub use job::{DurableId, DurableJob, PushOptions};
pub use outbox::{InTransaction, Outbox, OutboxLayer, OutboxRejection, OutboxService};
