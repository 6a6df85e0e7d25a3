//! Runs a job later, and holds no permit until then.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin delay
//! ```
//!
//! The delay is in a job of a second scheduler, `waiting`, whose limit only bounds the number of delayed jobs in
//! memory. The work is a job of `scheduler`, under its limit. Work that is not due at the shutdown runs early.
//! Delays live in memory: for days, store a date and let [periodic](periodic.rs) work look for it.
//!
//! The clock is paused, so the program takes none of the minutes that it prints.
#![expect(clippy::print_stdout, reason = "the order of events is the program's output")]

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_jobs::{Job, JobOutput, Scheduler, Shutdown, SpawnError};

#[derive(Clone)]
struct Later {
    waiting: Scheduler,
    scheduler: Scheduler,
}

impl Later {
    /// Spawns `work` after `delay`, or when the shutdown begins. Until then, aborting the job cancels it.
    fn spawn_after<F>(
        &self,
        delay: Duration,
        name: &'static str,
        work: F,
    ) -> Result<Job<()>, SpawnError>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let scheduler = self.scheduler.clone();
        let delayed = async move {
            drop(timeout(delay, scheduler.shutting_down()).await);
            scheduler.job(name).spawn(work).await.map(drop) // its failure is reported as its own
        };
        Ok(self.waiting.job(name).try_spawn(delayed)?)
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), SpawnError> {
    let later = Later {
        waiting: Scheduler::builder().name("waiting").limit(10_000).pending_limit(0).build(),
        scheduler: Scheduler::builder().limit(20).build(),
    };
    // The delays end first, and the jobs that they spawn after them.
    let shutdown = Shutdown::with_trigger(&later.waiting, sleep(20 * MINUTE));

    let began = Instant::now();
    let check = |customer: &'static str| async move {
        println!("{:>2} min: is the invoice of {customer} paid?", began.elapsed().as_secs() / 60);
    };
    later.spawn_after(10 * MINUTE, "payment check", check("Ada"))?;
    later.spawn_after(5 * MINUTE, "payment check", check("Grace"))?;
    let cancelled = later.spawn_after(10 * MINUTE, "payment check", check("Joan"))?;
    later.spawn_after(30 * MINUTE, "payment check", check("Mary"))?;
    cancelled.abort();

    let report = shutdown.and_scheduler(&later.scheduler).serve(|stop| stop).await;
    println!("{report}");
    Ok(())
}

const MINUTE: Duration = Duration::from_secs(60);
