//! The tasks that poll jobs, and closing.

pub(crate) mod admission;
pub(crate) mod cancel;
pub(crate) mod close;
pub(crate) mod core;
pub(crate) mod deadlines;
mod failures;
pub(crate) mod hooks;
pub(crate) mod idle_runners;
pub(crate) mod runner;
