//! Asks several suppliers at once, and answers in time with the prices that came.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin fan_out
//! curl 'http://127.0.0.1:3000/prices?within_ms=1000'  # in another terminal
//! ```
//!
//! All requests share one limit of calls, so a crowd of clients asks no more of the suppliers. A client that
//! leaves takes its calls along. The handler waits, and no job does: a job that waits for jobs of its own
//! scheduler holds a permit which those may need.
#![expect(clippy::print_stdout, reason = "events are the program's output")]

use std::{collections::BTreeMap, env, future::pending, process::ExitCode, time::Duration};

use axum::{Json, Router, extract::Query, routing::get};
use serde::Deserialize;
use tokio::{net::TcpListener, time::Instant};
use tower_jobs::{BoxError, Error, Job, Jobs, JobsLayer, Scheduler, Shutdown, readiness};

#[derive(Deserialize)]
struct Patience {
    within_ms: u64,
}

async fn prices(jobs: Jobs, Query(patience): Query<Patience>) -> Result<Answers, Error> {
    let mut asked = AbortOnDrop(Vec::new());
    for supplier in ["acme", "beta", "gone", "slow"] {
        let job = jobs.job(supplier).try_spawn(ask(supplier))?; // full: 503, and the others are aborted
        asked.0.push((supplier, job));
    }
    let deadline = Instant::now() + Duration::from_millis(patience.within_ms);
    let mut answers = BTreeMap::new();
    for (supplier, job) in &mut asked.0 {
        let price = job.wait_or_close(deadline - Instant::now()).await;
        let answer = price.map_or_else(|error| error.to_string(), |cents| format!("{cents} cents"));
        answers.insert(*supplier, answer);
    }
    Ok(Json(answers))
}

type Answers = Json<BTreeMap<&'static str, String>>;

/// The jobs of a request. The handler is dropped when its client leaves.
struct AbortOnDrop<T: Send + 'static>(Vec<(&'static str, Job<T>)>);

impl<T: Send + 'static> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.iter().for_each(|(_, job)| job.abort()); // nothing happens to those that are over
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let scheduler = Scheduler::builder().limit(100).pending_limit(400).build();
    let shutdown = Shutdown::new(&scheduler);
    let app = Router::new()
        .route("/prices", get(prices))
        .route("/ready", get(readiness))
        .layer(JobsLayer::new(scheduler));
    let address = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let serve = axum::serve(listener, app);
    let report = shutdown.serve(|stop| serve.with_graceful_shutdown(stop).into_future()).await;
    report.print();
    Ok(ExitCode::from(report))
}

/// The stand-in for a call over the network, with a price in cents.
async fn ask(supplier: &str) -> Result<u32, BoxError> {
    match supplier {
        "acme" => Ok(799),
        "beta" => Ok(849),
        "gone" => Err("no such host".into()),
        _ => {
            println!("{supplier} is asked");
            let _call = Call(supplier);
            pending().await
        }
    }
}

/// Says that a call was cut short.
struct Call<'a>(&'a str);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        println!("the call of {} is dropped", self.0);
    }
}
