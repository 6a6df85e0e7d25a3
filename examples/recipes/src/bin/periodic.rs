//! Runs a job every five minutes until the shutdown, and never twice at once.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin periodic
//! ```
//!
//! The ticks are a part of the shutdown, which ends at the signal. The work is a job: it is limited, has a run
//! timeout, is drained, and its failure is reported. While it runs, its unique key refuses the next tick.
//!
//! The clock is paused, so the program takes none of the minutes that it prints.
#![expect(clippy::print_stdout, reason = "the order of events is the program's output")]

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tower_jobs::{PartContext, Scheduler, Shutdown, TrySpawnError};

async fn every_five_minutes(part: PartContext, scheduler: Scheduler, table: Table) {
    let mut ticks = interval(5 * MINUTE); // the first at once
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            () = part.begun() => return,
            _ = ticks.tick() => {}
        }
        let job = scheduler.job("vacuum").unique_key("vacuum").timeout(30 * MINUTE);
        match job.try_spawn(table.vacuum()) {
            Ok(_) => {}
            Err(TrySpawnError::Duplicate(_, earlier)) => {
                table.say(&format!("skipped, {earlier} runs"));
            }
            Err(error) => table.say(&format!("skipped, {error}")),
        }
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    let scheduler = Scheduler::builder().limit(20).build();
    let table = Table(Instant::now());
    let for_ticks = scheduler.clone();
    let report = Shutdown::with_trigger(&scheduler, sleep(25 * MINUTE + 10 * SECOND))
        .part("vacuum every five minutes", move |part| every_five_minutes(part, for_ticks, table))
        .serve(|stop| stop)
        .await;
    println!("{report}");
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The stand-in for a table, and the time since the start.
#[derive(Clone, Copy)]
struct Table(Instant);

impl Table {
    async fn vacuum(self) {
        let minute = self.minute();
        // The third run takes longer than the pause, and the last is at work at the shutdown.
        let takes = if minute == 10 { 7 * MINUTE } else { 20 * SECOND };
        self.say("begins");
        sleep(takes).await;
        self.say("ends");
    }

    fn minute(self) -> u64 {
        self.0.elapsed().as_secs() / 60
    }

    fn say(self, text: &str) {
        println!("{:>2} min: vacuum {text}", self.minute());
    }
}
