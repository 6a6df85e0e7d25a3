use std::fmt;

use axum::{Router, http::StatusCode, routing::post};
use tower_jobs::{Error, Jobs, Scheduler, display_error, value};

struct Receipt;
struct AppError;

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no mail today")
    }
}

async fn send() -> Result<(), AppError> {
    Err(AppError)
}

async fn signup(jobs: Jobs, body: String) -> Result<StatusCode, Error> {
    let length = jobs.shield(async move { body.len() }).await?;
    jobs.try_spawn(async move { println!("{length}") })?.await?;
    jobs.spawn(async { send().await.map_err(display_error) }).await?;
    Ok(StatusCode::ACCEPTED)
}

#[tokio::main]
async fn main() {
    let _app: Router = Router::new().route("/", post(signup));
    let scheduler = Scheduler::new();
    let job = scheduler.spawn(value(async { Receipt })).await.unwrap();
    let Receipt = job.await.unwrap();
}
