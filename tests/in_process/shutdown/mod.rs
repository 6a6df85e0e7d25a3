//! The end of a server and of its jobs, under one deadline.

mod deadline;
mod other_servers;
mod parts;
mod server;

use std::future::ready;

use tower_jobs::{Scheduler, Shutdown};

/// A shutdown that begins now.
fn at_once(scheduler: &Scheduler) -> Shutdown {
    Shutdown::with_trigger(scheduler, ready(()))
}
