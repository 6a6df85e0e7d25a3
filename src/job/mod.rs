//! One job: its future, its shared record, its result.

pub(crate) mod body;
pub(crate) mod error;
pub(crate) mod group;
pub(crate) mod harness;
pub(crate) mod info;
pub(crate) mod options;
pub(crate) mod output;
pub(crate) mod record;
pub(crate) mod result;
pub(crate) mod span;
