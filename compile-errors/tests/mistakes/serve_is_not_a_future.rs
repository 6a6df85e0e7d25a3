use axum::Router;
use tower_jobs::{Scheduler, Shutdown};

#[tokio::main]
async fn main() {
    let scheduler = Scheduler::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = Router::<()>::new();
    let report = Shutdown::new(&scheduler)
        .serve(|stop| axum::serve(listener, app).with_graceful_shutdown(stop))
        .await;
    report.print();
}
