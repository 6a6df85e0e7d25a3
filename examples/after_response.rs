//! Jobs that start when the response is over, and are told how it ended: downloads are counted by
//! what became of them.
//!
//! ```sh
//! cargo run --example after_response
//!
//! # in another terminal
//! curl -s http://127.0.0.1:3000/download | wc -c             # read to its end
//! curl -s http://127.0.0.1:3000/download | head -c 1         # left in the middle
//! curl -m 1 'http://127.0.0.1:3000/download?wait=5'          # left before the response began
//! curl http://127.0.0.1:3000/counts
//! ```
//!
//! On Ctrl-C or SIGTERM the program stops accepting, lets downloads end for a while, and prints
//! the counts. It exits with 0 only if every download ended in time and was counted.
//!
//! | variable | meaning                                  | default          |
//! |----------|------------------------------------------|------------------|
//! | `ADDR`   | where to listen; port 0 takes a free one | `127.0.0.1:3000` |
#![expect(
    clippy::print_stdout,
    reason = "where a program listens and what it counted is its output"
)]

use std::{
    convert::Infallible,
    env, io,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    routing::get,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};
use tower_jobs::{
    BoxError, Jobs, JobsLayer, ResponseOutcome, Scheduler, Shutdown, ShutdownReport, SpawnError,
};

/// A file of 64 MiB, in pieces.
const PIECE: Bytes = Bytes::from_static(&[b'.'; 64 * 1024]);
const PIECES: usize = 1024;
/// Downloads may take this long to end once the program is told to stop.
const CONNECTION_GRACE: Duration = Duration::from_secs(20);

async fn download(
    State(counts): State<Counts>,
    Query(Wish { wait }): Query<Wish>,
    jobs: Jobs,
) -> Result<Body, SpawnError> {
    jobs.job("count the download")
        .after_response_with(|outcome| async move { counts.add(outcome) })?; // refused: 503
    sleep(Duration::from_secs(wait.into())).await;
    let pieces = (0..PIECES).map(|_| Ok::<_, Infallible>(PIECE));
    Ok(Body::from_stream(tokio_stream::iter(pieces)))
}

#[derive(Deserialize)]
struct Wish {
    #[serde(default)]
    wait: u8,
}

async fn counts(State(counts): State<Counts>, jobs: Jobs) -> Json<Value> {
    let under_way = jobs.scheduler().stats().deferred;
    Json(json!({ "downloads": counts, "under_way": under_way }))
}

/// How downloads ended.
#[derive(Clone, Default, Serialize)]
struct Counts(Arc<Mutex<Ended>>);

#[derive(Default, Serialize)]
struct Ended {
    complete: u64,
    aborted: u64,
    no_response: u64,
}

impl Counts {
    fn add(&self, outcome: ResponseOutcome) {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            ResponseOutcome::Complete(_) => ended.complete += 1,
            ResponseOutcome::Aborted(_) => ended.aborted += 1,
            _ => ended.no_response += 1,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let counts = Counts::default();
    match run(counts.clone()).await {
        Ok(report) => {
            println!("{}", json!(counts));
            report.print();
            ExitCode::from(report)
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(state: Counts) -> Result<ShutdownReport<io::Result<()>>, BoxError> {
    let scheduler = Scheduler::new();
    let app = Router::new()
        .route("/download", get(download))
        .route("/counts", get(counts))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(state);

    let addr = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(&addr).await.map_err(|error| {
        format!("ADDR {addr:?}: {error}; give HOST:PORT of a free port, like 127.0.0.1:3000")
    })?;
    let addr = listener.local_addr()?;

    let shutdown = Shutdown::new(&scheduler).connection_grace(CONNECTION_GRACE);
    Ok(shutdown
        .serve(|stop| {
            println!("listening on http://{addr}");
            axum::serve(listener, app).with_graceful_shutdown(stop).into_future()
        })
        .await)
}
