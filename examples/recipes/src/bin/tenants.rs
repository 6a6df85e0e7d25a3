//! Keeps one tenant's backlog from delaying the others.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin tenants
//! ```
//!
//! The tenant is the concurrency key: of 4 jobs at once, at most 2 are of one tenant. A job whose tenant is at
//! its limit lets later jobs of other tenants pass. The queue is shared, so the program counts the jobs of a
//! tenant that are not over, and refuses more than 5.
//!
//! The clock is paused, so the program takes none of the seconds that it prints.
#![expect(clippy::print_stdout, reason = "the order of events is the program's output")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tower_jobs::{BoxError, Scheduler, Shutdown};

/// Jobs of one tenant that run or wait.
const PER_TENANT: usize = 5;

/// Places of each tenant that is known.
struct Tenants(HashMap<&'static str, Arc<Semaphore>>);

impl Tenants {
    fn try_take(&self, tenant: &str) -> Result<OwnedSemaphorePermit, BoxError> {
        let places = self.0.get(tenant).ok_or("no such tenant")?;
        let place = places.clone().try_acquire_owned();
        place.map_err(|_| format!("{tenant} has {PER_TENANT} imports: try again later").into())
    }
}

fn import(
    tenants: &Tenants,
    imports: &Scheduler,
    tenant: &'static str,
    file: File,
) -> Result<(), BoxError> {
    let place = tenants.try_take(tenant)?; // else 429
    let work = async move {
        file.read(tenant).await;
        drop(place); // also if the job is refused, fails or is aborted
    };
    imports.job("import").concurrency_key(tenant).try_spawn(work)?;
    Ok(())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), BoxError> {
    let imports = Scheduler::builder().limit(4).limit_per_key(2).build();
    let places = || Arc::new(Semaphore::new(PER_TENANT));
    let tenants = Tenants(HashMap::from([("acme", places()), ("beta", places())]));
    let shutdown = Shutdown::with_trigger(&imports, sleep(Duration::from_secs(25)));

    let began = Instant::now();
    for number in 1..=6 {
        if let Err(refusal) = import(&tenants, &imports, "acme", File { number, began }) {
            println!("{refusal}");
        }
    }
    import(&tenants, &imports, "beta", File { number: 1, began })?;

    let report = shutdown.serve(|stop| stop).await;
    println!("{report}");
    Ok(())
}

/// The stand-in for a file, and the time of the program's start.
struct File {
    number: u32,
    began: Instant,
}

impl File {
    async fn read(self, tenant: &str) {
        println!("{:>2} s: {tenant} {}", self.began.elapsed().as_secs(), self.number);
        sleep(Duration::from_secs(10)).await;
    }
}
