//! What holds for every engine, on one that keeps its rows in memory, made of the public seam alone.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "helpers of tests, outside their functions"
)]

mod ending;
mod memory;
#[cfg(feature = "metrics")]
mod metrics;
mod pushing;
mod running;
#[cfg(feature = "opentelemetry")]
mod tracing;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_jobs_durable::DurableJob;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Mail {
    to: String,
}

impl Mail {
    fn new(to: &str) -> Self {
        Self { to: to.to_owned() }
    }
}

impl DurableJob for Mail {
    const KIND: &str = "mail";
    const MAX_ATTEMPTS: u32 = 2;
    const MAX_CRASHES: u32 = 3;
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(5));
}

/// Awaits what must come soon.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(30 * SECOND, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come"))
}
