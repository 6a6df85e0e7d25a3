//! Receives webhooks, and books each event once, although the sender repeats it.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin webhook
//! curl -i http://127.0.0.1:3000/events -H 'content-type: application/json' \
//!     -d '{"id": "evt_1", "cents": 500}'  # in another terminal
//! ```
//!
//! The answer is 200 once the event is booked, so an event is not lost with the process: the sender repeats it.
//! While it is being booked, its unique key refuses a repeat with 409, and the sender tries again later. A sender
//! that gives up waiting does not cut the booking short.
#![expect(clippy::print_stdout, reason = "events are the program's output")]

use std::{collections::BTreeMap, env, process::ExitCode, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    sync::{Mutex, Notify},
};
use tower_jobs::{BoxError, Error, Jobs, JobsLayer, Scheduler, Shutdown};

#[derive(Deserialize)]
struct Event {
    id: String,
    cents: u32,
}

/// Check the sender's signature before this handler.
async fn receive(
    jobs: Jobs,
    State(books): State<Books>,
    Json(event): Json<Event>,
) -> Result<StatusCode, Error> {
    let job = jobs.job("event").unique_key(&*event.id).timeout(Duration::from_secs(20));
    let job = job.try_spawn(books.book(event))?; // 409: it is being booked; 503: the queue is full
    job.await?; // 500: it could not be booked
    Ok(StatusCode::OK)
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let scheduler = Scheduler::builder().limit(20).pending_limit(1_000).build();
    let shutdown = Shutdown::new(&scheduler);
    let books = Books::default();
    let app = Router::new()
        .route("/events", post(receive))
        .layer(JobsLayer::new(scheduler))
        .route("/sum", get(async |State(books): State<Books>| books.sum().await.to_string()))
        .route("/bank", post(async |State(books): State<Books>| books.bank.notify_one()))
        .with_state(books);
    let address = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let serve = axum::serve(listener, app);
    let report = shutdown.serve(|stop| serve.with_graceful_shutdown(stop).into_future()).await;
    report.print();
    Ok(ExitCode::from(report))
}

/// The stand-in for a database. In a real one, the primary key and the transaction are this lock.
#[derive(Clone, Default)]
struct Books {
    booked: Arc<Mutex<BTreeMap<String, u32>>>,
    /// Lets an event of more than 1 000 cents go on.
    bank: Arc<Notify>,
}

impl Books {
    /// Books the event, unless it was booked before.
    async fn book(self, Event { id, cents }: Event) -> Result<(), BoxError> {
        println!("booking {id}");
        if cents == 0 {
            return Err("an event of no money".into());
        }
        if cents > 1_000 {
            self.bank.notified().await;
        }
        self.booked.lock().await.entry(id).or_insert(cents);
        Ok(())
    }

    async fn sum(&self) -> u32 {
        self.booked.lock().await.values().sum()
    }
}
