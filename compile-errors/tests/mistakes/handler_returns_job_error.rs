use axum::{Router, routing::get};
use tower_jobs::{JobError, Jobs};

async fn price(jobs: Jobs) -> Result<String, JobError> {
    let price = jobs.shield(async { 7 }).await?;
    Ok(price.to_string())
}

fn main() {
    let _app: Router = Router::new().route("/", get(price));
}
