#![deny(unused_must_use)]
use tower_jobs::Scheduler;

fn main() {
    let scheduler = Scheduler::new();
    scheduler.job("mail");
}
