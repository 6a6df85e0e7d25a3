//! Calls a partner at most twice a second, in order, however many jobs there are.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin rate_limit
//! ```
//!
//! A job of `gate`, whose limit is 1, waits for the quota of `governor`; the others wait in its queue. The call
//! is then a job of `calls`, so calls that take longer than the quota's step overlap. A limit alone is no rate: 20
//! jobs of 50 ms make 400 calls a second.
//!
//! The clock is paused, so the program takes none of the seconds that it prints.
#![expect(clippy::print_stdout, reason = "the order of events is the program's output")]

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{Quota, RateLimiter, clock::Clock, middleware::NoOpMiddleware, state};
use tokio::time::{Instant, sleep};
use tower_jobs::{Job, JobOutput, Scheduler, Shutdown, SpawnError};

type Limiter = RateLimiter<
    state::NotKeyed,
    state::InMemoryState,
    TokioClock,
    NoOpMiddleware<Duration>, // its moments are durations since the start
>;

#[derive(Clone)]
struct Partner {
    gate: Scheduler,
    calls: Scheduler,
    limiter: Arc<Limiter>,
}

impl Partner {
    /// Spawns a call, which starts when the quota allows it, after those spawned before.
    fn try_call<F>(&self, call: F) -> Result<Job<()>, SpawnError>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let Self { gate, calls, limiter } = self.clone();
        let wait_and_call = async move {
            while let Err(early) = limiter.check() {
                sleep(early.wait_time_from(limiter.clock().now())).await;
            }
            calls.job("call").timeout(Duration::from_secs(10)).spawn(call).await.map(drop)
        };
        Ok(gate.job("quota").try_spawn(wait_and_call)?) // the gate's queue is full: Full, or a 503
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), SpawnError> {
    let clock = TokioClock(Instant::now());
    let two_a_second = Quota::per_second(NonZeroU32::new(2).expect("2 is not 0"));
    let partner = Partner {
        gate: Scheduler::builder().name("gate").limit(1).pending_limit(1_000).build(),
        calls: Scheduler::builder().name("calls").limit(20).build(),
        limiter: Arc::new(RateLimiter::direct_with_clock(two_a_second, clock)),
    };
    let shutdown = Shutdown::with_trigger(&partner.gate, sleep(Duration::from_secs(1)));

    for number in 1..=6 {
        partner.try_call(async move {
            println!("{:.1} s: call {number} begins", clock.now().as_secs_f32());
            sleep(Duration::from_millis(700)).await;
            println!("{:.1} s: call {number} ends", clock.now().as_secs_f32());
        })?;
    }
    // The calls of the gate come in time, and `calls` is drained after it.
    let report = shutdown.and_scheduler(&partner.calls).serve(|stop| stop).await;
    println!("{report}");
    Ok(())
}

/// Tokio's clock for `governor`, so that tests can pause it.
#[derive(Clone, Copy)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}
