use tower_jobs::Scheduler;

fn send() {}

#[tokio::main]
async fn main() {
    let scheduler = Scheduler::new();
    scheduler.spawn(send()).await.unwrap();
}
