use tower_jobs::Scheduler;

struct Receipt;

#[tokio::main]
async fn main() {
    let scheduler = Scheduler::new();
    scheduler.spawn(async { Receipt }).await.unwrap();
}
