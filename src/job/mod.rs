//! One job: its future, its shared record, its result.

pub(crate) mod body;
pub(crate) mod error;
pub(crate) mod output;
pub(crate) mod record;
pub(crate) mod span;
