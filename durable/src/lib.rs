//! Jobs that survive the process.
#![doc = ""]
#![doc = include_str!("../README.md")]

mod context;
#[cfg(feature = "dashboard")]
mod dead_letters;
mod door;
mod durable;
mod engine;
mod envelope;
mod error;
#[cfg(feature = "metrics")]
mod figures;
mod handlers;
mod job;
mod outbox;
mod rescue;
mod stage;
#[cfg(feature = "opentelemetry")]
mod trace;

pub use context::{DurableContext, Interrupted};
#[cfg(feature = "dashboard")]
pub use dead_letters::DeadLetters;
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
pub use rescue::OrPush;
