use std::fmt;
use tower_jobs::Scheduler;

struct AppError;

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no mail today")
    }
}

async fn send() -> Result<(), AppError> {
    Err(AppError)
}

#[tokio::main]
async fn main() {
    let scheduler = Scheduler::new();
    scheduler.spawn(send()).await.unwrap();
}
