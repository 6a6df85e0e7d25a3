//! A deploy under load: what is under way is finished, and what is not is named.
//!
//! ```sh
//! cargo run --example graceful_shutdown
//!
//! # in another terminal
//! curl -i http://127.0.0.1:3000/jobs -H 'content-type: application/json' \
//!     -d '{"id": "a", "kind": "work", "ms": 3000}'
//! curl -N http://127.0.0.1:3000/events &
//! kill -TERM "$(pidof graceful_shutdown)"
//! cat jobs.log
//! ```
//!
//! `POST /jobs` answers 202 and leaves a job behind, which writes `start ID` and `end ID` into the
//! log. On SIGTERM or Ctrl-C `/ready` turns to 503 and `/events` ends itself; then the program stops
//! accepting, finishes connections and jobs, writes `unstarted ID` for every job that had no time,
//! and prints the report as one line of JSON. It exits with 0 only if nothing was lost or failed.
//!
//! | variable                                               | meaning                          | default          |
//! |--------------------------------------------------------|----------------------------------|------------------|
//! | `ADDR`                                                 | where to listen                  | `127.0.0.1:3000` |
//! | `LOG`                                                  | the file the jobs write to       | `jobs.log`       |
//! | `LIMIT`                                                | jobs at once                     | 10               |
//! | `GRACE_MS`, `CONNECTION_GRACE_MS`, `READINESS_DELAY_MS` | the settings of `Shutdown`       | 25000, 10000, 0  |
//! | `RUNTIME`                                              | `current_thread`, `multi_thread` | `multi_thread`   |
#![expect(clippy::print_stdout, reason = "where a program listens and how it ended is its output")]

use std::{
    convert::Infallible,
    env,
    fs::{File, OpenOptions},
    io::{self, Write},
    process,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::StatusCode,
    response::sse::{Event, Sse},
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::{net::TcpListener, runtime, time};
use tower_jobs::{
    BoxError, Jobs, JobsLayer, Scheduler, Shutdown, SpawnError, Stats, liveness, readiness,
};

#[derive(Deserialize)]
struct Order {
    id: String,
    kind: Kind,
    ms: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Work,
    Failing,
    Panicking,
    Blocking,
    /// Half-way, it spawns `ID/child`.
    Spawning,
    AfterResponse,
}

async fn order(
    State(log): State<Log>,
    jobs: Jobs,
    Json(Order { id, kind, ms }): Json<Order>,
) -> Result<StatusCode, SpawnError> {
    let time = Duration::from_millis(ms);
    let job = jobs.job(id.clone());
    let work = work(log.clone(), id.clone(), time);
    match kind {
        Kind::Work => drop(job.spawn(work).await?),
        Kind::Failing => drop(job.spawn(fail_after(work)).await?),
        Kind::Panicking => drop(job.spawn(panic_after(work)).await?),
        Kind::Blocking => drop(job.spawn_blocking(move || block(&log, &id, time)).await?),
        Kind::Spawning => drop(job.spawn(spawn_another(log, id, time, jobs.clone())).await?),
        Kind::AfterResponse => drop(job.after_response(work)?),
    }
    Ok(StatusCode::ACCEPTED)
}

async fn work(log: Log, id: String, time: Duration) {
    log.line("start", &id);
    time::sleep(time).await;
    log.line("end", &id);
}

async fn fail_after(work: impl Future<Output = ()>) -> Result<(), BoxError> {
    work.await;
    Err("as ordered".into())
}

async fn panic_after(work: impl Future<Output = ()>) {
    work.await;
    panic!("as ordered");
}

#[expect(clippy::disallowed_methods, reason = "the job of this thread is to be held up")]
fn block(log: &Log, id: &str, time: Duration) {
    log.line("start", id);
    std::thread::sleep(time);
    log.line("end", id);
}

async fn spawn_another(log: Log, id: String, time: Duration, jobs: Jobs) -> Result<(), SpawnError> {
    log.line("start", &id);
    time::sleep(time / 2).await;
    let child = format!("{id}/child");
    jobs.job(child.clone()).spawn(work(log.clone(), child, time / 2)).await?;
    log.line("end", &id);
    Ok(())
}

/// Events without an end, until the end has begun.
async fn events(jobs: Jobs) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let clock = time::interval(Duration::from_millis(20));
    let ticks = stream::unfold(clock, |mut clock| async {
        clock.tick().await;
        Some((Ok(Event::default().data("tick")), clock))
    });
    Sse::new(ticks.take_until(async move { jobs.shutting_down().await }))
}

#[derive(Deserialize)]
struct Slow {
    ms: u64,
}

/// A megabyte in 16 parts, over so many milliseconds.
async fn slow(Query(Slow { ms }): Query<Slow>) -> Body {
    let pause = Duration::from_millis(ms / 16);
    Body::from_stream(stream::iter(0..16).then(move |_| async move {
        time::sleep(pause).await;
        Ok::<_, Infallible>(Bytes::from_static(&[b'.'; 64 * 1024]))
    }))
}

async fn stats(jobs: Jobs) -> Json<Stats> {
    Json(jobs.scheduler().stats())
}

/// A file that several write to, a whole line at a time.
#[derive(Clone)]
struct Log(Arc<File>);

impl Log {
    fn line(&self, what: &str, id: &str) {
        let line = format!("{what} {id}\n");
        (&*self.0).write_all(line.as_bytes()).expect("the log can be written");
    }
}

fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let mut runtime = match env::var("RUNTIME").as_deref() {
        Ok("current_thread") => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let clean = runtime.block_on(run())?;
    // While the runtime lives: dropped, it would wait for its blocking threads.
    process::exit(if clean { 0 } else { 1 });
}

async fn run() -> Result<bool, BoxError> {
    let path = env::var("LOG").unwrap_or_else(|_| "jobs.log".into());
    let log = Log(Arc::new(OpenOptions::new().create(true).append(true).open(path)?));
    let scheduler = Scheduler::builder().limit(usize::try_from(number("LIMIT", 10)?)?).build();
    // Signals are heard from here on, also while the program starts.
    let shutdown = Shutdown::new(&scheduler);
    let app = Router::new()
        .route("/jobs", post(order))
        .route("/events", get(events))
        .route("/slow", get(slow))
        .route("/ready", get(readiness))
        .route("/live", get(liveness))
        .route("/stats", get(stats))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(log.clone());
    let addr = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;

    let report = shutdown
        .grace(Duration::from_millis(number("GRACE_MS", 25_000)?))
        .connection_grace(Duration::from_millis(number("CONNECTION_GRACE_MS", 10_000)?))
        .readiness_delay(Duration::from_millis(number("READINESS_DELAY_MS", 0)?))
        .on_unstarted(|jobs| async move {
            jobs.iter().for_each(|job| log.line("unstarted", &job.name));
        })
        .serve(|stop| {
            println!("listening on http://{addr}");
            axum::serve(listener, app).with_graceful_shutdown(stop).into_future()
        })
        .await;
    println!("{}", json!({ "report": report, "stats": scheduler.stats() }));
    Ok(report.is_clean())
}

fn number(name: &str, default: u64) -> Result<u64, BoxError> {
    match env::var(name) {
        Ok(value) => value.parse().map_err(|_| format!("{name} {value:?}: give a number").into()),
        Err(_) => Ok(default),
    }
}
