use tower_jobs::Scheduler;

#[tokio::main]
async fn main() {
    let scheduler = Scheduler::new();
    scheduler.spawn(|| async {}).await.unwrap();
}
