use tower_jobs::Scheduler;

async fn handler(scheduler: Scheduler) {
    let email = String::from("ada@example.org");
    scheduler.spawn(async { println!("{email}") }).await.unwrap();
}

fn main() {
    drop(handler(Scheduler::new()));
}
