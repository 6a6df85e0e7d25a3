//! The end of a server and of its jobs, under one deadline.

mod deadline;
mod grace;
mod other_servers;
mod parts;
mod server;
mod several_servers;

use std::future::ready;

use tower_jobs::{Scheduler, Shutdown};

/// A shutdown that begins now.
fn at_once(scheduler: &Scheduler) -> Shutdown {
    Shutdown::with_trigger(scheduler, ready(()))
}
