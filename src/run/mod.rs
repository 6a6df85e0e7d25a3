//! The tasks that poll jobs, and closing.

pub(crate) mod close;
pub(crate) mod idle_runners;
pub(crate) mod inbox;
pub(crate) mod runner;
