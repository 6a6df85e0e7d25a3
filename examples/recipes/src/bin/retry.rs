//! Retries a webhook after growing pauses, and holds no permit in a pause.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin retry
//! ```
//!
//! Each attempt is a job of its own, under the limit. The pauses are in a job of a second scheduler, `waiting`,
//! whose limit only bounds the number of webhooks in memory. When the shutdown begins, the current pause ends,
//! and the attempt after it is the last.
//!
//! The clock is paused, so the program takes none of the seconds that it prints.
#![expect(clippy::print_stdout, reason = "the order of events is the program's output")]

use std::{error::Error as _, fmt, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::{Instant, sleep, timeout};
use tower_jobs::{Error, Scheduler, Shutdown, SpawnError};

async fn deliver(scheduler: Scheduler, order: u64, partner: Partner) -> Result<(), Error> {
    let attempt = || {
        let job = scheduler.job("attempt").timeout(Duration::from_secs(10));
        let spawned = job.spawn(partner.post(order)); // waits for a permit, in line
        async { Ok(spawned.await?.await?) } // the job's end gives the permit back
    };
    let shutdown = scheduler.clone();
    let pause = move |pause| {
        let shutdown = shutdown.clone();
        async move { timeout(pause, shutdown.shutting_down()).await }
    };
    let pauses = ExponentialBuilder::default().with_max_times(5); // 1 s, 2 s, 4 s, ..
    attempt
        .retry(pauses.with_jitter().with_jitter_seed(order)) // up to twice that
        .sleep(pause)
        .when(|error| is_temporary(error) && !scheduler.is_draining())
        .await
}

/// Whether the next attempt may succeed: the partner has a fault, or did not answer in time.
fn is_temporary(error: &Error) -> bool {
    let refused = error.source().and_then(|cause| cause.downcast_ref::<Refused>());
    match error {
        Error::Job(error) => error.is_timeout() || refused.is_some_and(|refused| refused.0 >= 500),
        _ => false,
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), SpawnError> {
    let scheduler = Scheduler::builder().limit(1).build(); // one request at a time
    let waiting = Scheduler::builder()
        .name("waiting")
        .limit(10_000) // webhooks in memory: one more is refused
        .pending_limit(0)
        .on_failure(|failure| println!("given up: {failure}"))
        .build();
    // The pauses end first, and the attempts after them.
    let shutdown = Shutdown::with_trigger(&waiting, sleep(Duration::from_secs(20)));

    let partner = Partner(Instant::now());
    for order in 1..=4 {
        let deliver = deliver(scheduler.clone(), order, partner);
        waiting.job(format!("order {order}")).try_spawn(deliver)?;
    }
    let report = shutdown.and_scheduler(&scheduler).serve(|stop| stop).await;
    println!("{report}");
    Ok(())
}

/// The stand-in for a partner's server, and the time since its start.
#[derive(Clone, Copy)]
struct Partner(Instant);

#[derive(Debug)]
struct Refused(u16);

impl Partner {
    async fn post(self, order: u64) -> Result<(), Refused> {
        let seconds = self.0.elapsed().as_secs();
        let status = match (order, seconds) {
            (1, 0..5) => 503, // back after 5 s
            (3, _) => 404,    // no such address
            (4, _) => 500,    // never back
            _ => 200,
        };
        println!("{seconds:>2} s: order {order}: {status}");
        if status == 200 { Ok(()) } else { Err(Refused(status)) }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.0)
    }
}

impl std::error::Error for Refused {}
