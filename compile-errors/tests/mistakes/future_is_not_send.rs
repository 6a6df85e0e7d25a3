use std::rc::Rc;
use tower_jobs::Scheduler;

#[tokio::main]
async fn main() {
    let scheduler = Scheduler::new();
    let job = async {
        let count = Rc::new(1);
        tokio::task::yield_now().await;
        drop(count);
    };
    scheduler.spawn(job).await.unwrap();
}
