//! Sends password resets while reports queue: two priorities by two schedulers.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin priorities
//! curl -X POST http://127.0.0.1:3000/reports          # in another terminal, some times
//! curl -X POST http://127.0.0.1:3000/password-resets  # at once
//! ```
//!
//! Each priority has permits of its own, so the lower one cannot hold up the higher one, and the higher one cannot
//! starve the lower one. A report that sees the shutdown begin saves its place, and ends.
#![expect(clippy::print_stdout, reason = "events are the program's output")]

use std::{env, future::pending, process::ExitCode};

use axum::{Router, http::StatusCode, routing::post};
use tokio::net::TcpListener;
use tower_jobs::{BoxError, Jobs, JobsLayer, Scheduler, Shutdown, SpawnError};

/// Marks the scheduler of reports. The one of the urgent jobs has no marker.
enum Reports {}

async fn password_reset(urgent: Jobs) -> Result<StatusCode, SpawnError> {
    urgent.job("password reset").try_spawn(async { println!("password reset sent") })?;
    Ok(StatusCode::ACCEPTED)
}

async fn report(reports: Jobs<Reports>) -> Result<StatusCode, SpawnError> {
    let scheduler = reports.scheduler().clone();
    let report = async move {
        tokio::select! {
            () = compute() => println!("report ready"),
            () = scheduler.shutting_down() => println!("report saved half-way"),
        }
    };
    reports.job("report").try_spawn(report)?;
    Ok(StatusCode::ACCEPTED)
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let urgent = Scheduler::builder().name("urgent").limit(20).build();
    let reports = Scheduler::builder().name("reports").limit(2).pending_limit(100).build();
    let shutdown = Shutdown::new(&reports).and_scheduler(&urgent); // one end for both
    let app = Router::new()
        .route("/password-resets", post(password_reset))
        .route("/reports", post(report))
        .layer(JobsLayer::new(urgent))
        .layer(JobsLayer::<Reports>::with_marker(reports));
    let address = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let serve = axum::serve(listener, app);
    let report = shutdown.serve(|stop| serve.with_graceful_shutdown(stop).into_future()).await;
    report.print();
    Ok(ExitCode::from(report))
}

/// The stand-in for hours of work.
async fn compute() {
    println!("report begins");
    pending::<()>().await;
}
