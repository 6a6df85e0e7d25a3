use axum::http::StatusCode;
use tower_jobs::Scheduler;

async fn send() -> Result<(), StatusCode> {
    Err(StatusCode::BAD_GATEWAY)
}

#[tokio::main]
async fn main() {
    let scheduler = Scheduler::new();
    scheduler.spawn(send()).await.unwrap();
}
