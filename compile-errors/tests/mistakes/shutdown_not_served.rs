#![deny(unused_must_use)]
use tower_jobs::{Scheduler, Shutdown};

fn main() {
    let scheduler = Scheduler::new();
    Shutdown::new(&scheduler);
}
