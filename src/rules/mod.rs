//! The rules, pure and synchronous: which job starts, waits or is refused.

pub(crate) mod config;
pub(crate) mod dispatch;
pub(crate) mod keys;
pub(crate) mod ledger;
pub(crate) mod line;
pub(crate) mod queue;
pub(crate) mod state;
pub(crate) mod step;
pub(crate) mod table;
