//! Metrics of the jobs, for Prometheus.
//!
//! ```sh
//! cargo run --package tower-jobs-prometheus-example
//!
//! # in another terminal
//! curl -X POST http://127.0.0.1:3000/signup
//! curl http://127.0.0.1:3001/metrics
//! ```
//!
//! `POST /signup` leaves a welcome e-mail behind, `POST /import` a job that fails, and `POST /audit` one
//! without a name. `/metrics` is on a listener of its own, so that it can stay private and is scraped until
//! the process ends, also while the jobs drain.
//!
//! Beside this program are `prometheus.yml`, which scrapes it, `alerts.yml` with alert rules and their
//! tests in `alerts_test.yml`, and `grafana.json`, a dashboard to import into Grafana.
//!
//! | variable  | meaning                       | default          |
//! |-----------|-------------------------------|------------------|
//! | `ADDR`    | where to listen               | `127.0.0.1:3000` |
//! | `METRICS` | where to listen for Prometheus | `127.0.0.1:3001` |
#![expect(clippy::print_stdout, reason = "where a program listens is its output")]

use std::{env, io, process::ExitCode, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, runtime::Runtime, time};
use tower_jobs::{
    BoxError, JobMetrics, Jobs, JobsLayer, Scheduler, Shutdown, ShutdownReport, SpawnError,
};

/// In seconds. A healthy queue takes less than a millisecond.
const QUEUE_BUCKETS: [f64; 11] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// In seconds, from a fast request to the run timeout of the jobs.
const RUN_BUCKETS: [f64; 11] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// The recorder keeps the samples of its histograms until they are rendered, or until then.
const UPKEEP: Duration = Duration::from_secs(5);

async fn signup(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    jobs.job("welcome e-mail").try_spawn(time::sleep(Duration::from_millis(20)))?;
    Ok(StatusCode::ACCEPTED)
}

async fn import(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    jobs.job("import").try_spawn(async { Err::<(), _>("the file has no rows") })?;
    Ok(StatusCode::ACCEPTED)
}

async fn audit(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    jobs.try_spawn(async {})?;
    Ok(StatusCode::ACCEPTED)
}

/// The route that Prometheus scrapes.
fn metrics_route(metrics: JobMetrics, prometheus: PrometheusHandle) -> Router {
    let scrape = move || {
        metrics.refresh();
        let text = prometheus.render();
        async { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response() }
    };
    Router::new().route("/metrics", get(scrape))
}

async fn run() -> Result<ShutdownReport<io::Result<()>>, BoxError> {
    // First of all: metrics belong to the recorder that is there when they are made.
    let prometheus = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("tower_jobs_queue_seconds".into()), &QUEUE_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("tower_jobs_run_seconds".into()), &RUN_BUCKETS)?
        .install_recorder()?;
    let metrics = JobMetrics::new();
    let scheduler = Scheduler::builder()
        .name("mail")
        .limit(20)
        .job_timeout(Duration::from_secs(60))
        .metrics(&metrics)
        .build();

    let app = Router::new()
        .route("/signup", post(signup))
        .route("/import", post(import))
        .route("/audit", post(audit))
        .layer(JobsLayer::new(scheduler.clone()));
    let listener = bind("ADDR", "127.0.0.1:3000").await?;
    let for_prometheus = bind("METRICS", "127.0.0.1:3001").await?;
    let (addr, metrics_addr) = (listener.local_addr()?, for_prometheus.local_addr()?);

    let upkeep = prometheus.clone();
    #[expect(clippy::disallowed_methods, reason = "these end with the process, and are no jobs")]
    tokio::spawn(async move {
        let serving = axum::serve(for_prometheus, metrics_route(metrics, prometheus));
        tokio::join!(serving.into_future(), async {
            let mut interval = time::interval(UPKEEP);
            loop {
                interval.tick().await;
                upkeep.run_upkeep();
            }
        })
    });

    let shutdown = Shutdown::new(&scheduler);
    println!("metrics on http://{metrics_addr}/metrics");
    println!("listening on http://{addr}");
    Ok(shutdown
        .serve(|stop| axum::serve(listener, app).with_graceful_shutdown(stop).into_future())
        .await)
}

async fn bind(variable: &str, default: &str) -> Result<TcpListener, BoxError> {
    let addr = env::var(variable).unwrap_or_else(|_| default.into());
    let listener = TcpListener::bind(&addr).await;
    listener.map_err(|error| format!("{variable} {addr:?}: {error}").into())
}

fn main() -> ExitCode {
    let runtime = Runtime::new().expect("a runtime");
    let report = runtime.block_on(run());
    runtime.shutdown_background();
    match report {
        Ok(report) => {
            report.print();
            ExitCode::from(report)
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
