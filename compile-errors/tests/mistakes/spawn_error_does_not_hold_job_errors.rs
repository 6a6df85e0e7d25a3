use tower_jobs::{Jobs, SpawnError};

async fn price(jobs: Jobs) -> Result<u32, SpawnError> {
    Ok(jobs.shield(async { 7 }).await?)
}

fn main() {
    drop(price);
}
