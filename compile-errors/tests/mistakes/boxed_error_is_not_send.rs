use std::error::Error;
use tower_jobs::Scheduler;

async fn send() -> Result<(), Box<dyn Error>> {
    Err("no mail today".into())
}

#[tokio::main]
async fn main() {
    let scheduler = Scheduler::new();
    scheduler.spawn(send()).await.unwrap();
}
