//! The store's figures, through the facade `metrics`.

use std::time::{Duration, SystemTime};

use metrics::{Unit, describe_gauge, describe_histogram, gauge, histogram};

use crate::{
    engine::{Depth, Engine},
    handlers::one_line,
};

/// Between two looks at the store.
const PERIOD: Duration = Duration::from_secs(15);

const JOBS: &str = "tower_jobs_durable_jobs";
const OLDEST: &str = "tower_jobs_durable_oldest_ready_seconds";
const START: &str = "tower_jobs_durable_start_seconds";

/// Publishes the store's figures until it is dropped.
pub(crate) async fn publish(engine: std::sync::Arc<dyn Engine>) {
    describe_gauge!(JOBS, "Stored jobs of all processes, by state");
    describe_gauge!(OLDEST, Unit::Seconds, "How long the oldest ready job has been ready");
    describe_histogram!(START, Unit::Seconds, "From when a job was ready to its start");
    let Some(admin) = engine.admin() else { return };
    loop {
        match admin.depth().await {
            Ok(depth) => set(&depth),
            Err(error) => tracing::warn!(error = one_line(&*error), "the store gave no figures"),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn set(depth: &Depth) {
    let Depth { ready, later, running, dead, oldest_ready } = *depth;
    for (state, count) in [("ready", ready), ("later", later), ("running", running), ("dead", dead)]
    {
        gauge!(JOBS, "state" => state).set(count as f64);
    }
    gauge!(OLDEST).set(oldest_ready.unwrap_or_default().as_secs_f64());
}

/// Records how long a row was ready before it started.
pub(crate) fn started(kind: &'static str, ready_since: Option<SystemTime>) {
    if let Some(waited) = ready_since.and_then(|since| since.elapsed().ok()) {
        histogram!(START, "kind" => kind).record(waited.as_secs_f64());
    }
}
