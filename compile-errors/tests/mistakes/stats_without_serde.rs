use axum::{Json, Router, routing::get};
use tower_jobs::{Jobs, Stats};

async fn stats(jobs: Jobs) -> Json<Stats> {
    Json(jobs.scheduler().stats())
}

fn main() {
    let _app: Router = Router::new().route("/", get(stats));
}
