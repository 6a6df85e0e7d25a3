//! A server for Kubernetes, as process 1 of its container: probes that answer to the end, and exit codes.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin kubernetes
//! curl -i http://127.0.0.1:8080/ready  # in another terminal
//! ```
//!
//! SIGTERM turns `/ready` to 503. The server goes on accepting for a second, until the endpoints are updated; then
//! it stops, and connections and jobs have the rest of 25 s. The probes have a port and a server of their own, which
//! ends last, so `/live` answers 200 while jobs drain. Process 1 has no default action for SIGTERM: without a
//! handler it would be killed after 30 s.
#![expect(clippy::print_stdout, reason = "events are the program's output")]

use std::{env, process::ExitCode, sync::Arc, time::Duration};

use axum::{
    Router,
    http::StatusCode,
    routing::{get, post},
};
use tokio::{net::TcpListener, runtime::Runtime, sync::Notify};
use tower_jobs::{BoxError, Jobs, JobsLayer, Scheduler, Shutdown, SpawnError, liveness, readiness};

fn main() -> Result<ExitCode, BoxError> {
    let runtime = Runtime::new()?;
    let code = runtime.block_on(run());
    runtime.shutdown_background(); // does not wait for blocking threads, so the process ends in time
    code // 0: nothing was lost; 1: see the report's line
}

async fn run() -> Result<ExitCode, BoxError> {
    let scheduler = Scheduler::builder().limit(20).build();
    let shutdown = Shutdown::new(&scheduler); // first: SIGTERM is heard while the application starts
    let probes = Router::new()
        .route("/ready", get(readiness))
        .route("/live", get(liveness))
        .layer(JobsLayer::new(scheduler.clone()));
    let probes_at = listener("PROBES_ADDR", "0.0.0.0:8080").await?;
    println!("probes on http://{}", probes_at.local_addr()?);

    let done = Arc::new(Notify::new());
    let work = {
        let done = done.clone();
        async move |jobs: Jobs| {
            jobs.job("work").try_spawn(async move { done.notified().await })?;
            Ok::<_, SpawnError>(StatusCode::ACCEPTED)
        }
    };
    let app = Router::new().route("/work", post(work)).layer(JobsLayer::new(scheduler));
    // The stand-in for the end of the work.
    let probes = probes.route("/done", post(async move || done.notify_one()));
    let app_at = listener("ADDR", "0.0.0.0:3000").await?;
    println!("listening on http://{}", app_at.local_addr()?);

    let report = shutdown
        .grace(Duration::from_secs(25)) // terminationGracePeriodSeconds: 30
        .readiness_delay(Duration::from_secs(1))
        .part("probes", |part| async move {
            tokio::select! {
                served = axum::serve(probes_at, probes).into_future() => served,
                () = part.jobs_over() => Ok(()), // connections of probes are not waited for
            }
        })
        .serve(|stop| axum::serve(app_at, app).with_graceful_shutdown(stop).into_future())
        .await;
    report.print();
    Ok(ExitCode::from(report))
}

async fn listener(variable: &str, default: &str) -> Result<TcpListener, BoxError> {
    let address = env::var(variable).unwrap_or_else(|_| default.into());
    Ok(TcpListener::bind(&address).await.map_err(|error| format!("{address}: {error}"))?)
}
