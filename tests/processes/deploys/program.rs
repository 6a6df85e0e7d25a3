//! The program of the load shapes whose jobs the example does not have. The test binary runs itself as
//! this program, so no user sees it. It speaks as `examples/graceful_shutdown.rs` does.
//!
//! | variable                       | meaning                                            | default |
//! |--------------------------------|----------------------------------------------------|---------|
//! | `KEYED`                        | jobs of one key at once                            | any     |
//! | `FAILURE_HOOK_MS`              | time for which `on_failure` blocks its thread      | 0       |
//! | `UNSTARTED_HOOK_MS`            | time for which `on_unstarted` blocks, for each job | 0       |
//! | `UNSTARTED_GRACE_MS`           | time that is kept for `on_unstarted`               | 0       |
//! | `BOOT_JOBS`, `BOOT_MS`         | jobs spawned during the start, their longest time  | 0       |
//! | `START_MS`                     | time from the boot jobs to the server              | 0       |
//! | `HEEDS`                        | streams and websockets end at the signal           | no      |

use std::{
    convert::Infallible,
    env,
    fs::{File, OpenOptions},
    io::{self, Write},
    process,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, Request, State},
    http::{StatusCode, header},
    response::Response,
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
    runtime,
    time::sleep,
};
use tower_jobs::{BoxError, JobContext, Jobs, JobsLayer, Scheduler, Shutdown, SpawnError};

use crate::support::process::with_pipes;

/// Worker threads of the multi-thread runtime, on any machine.
const WORKERS: usize = 4;

/// The command that runs this program.
pub(super) fn command(folder: &std::path::Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["deploys::program::program", "--exact", "--ignored", "--nocapture"]);
    command.args(["--test-threads=1"]).env("DEPLOY_PROGRAM", "1");
    with_pipes(&mut command, folder);
    command
}

#[test]
#[ignore = "the program that the load shapes run"]
fn program() {
    if env::var("DEPLOY_PROGRAM").is_err() {
        return;
    }
    // The line of the test harness has no end yet.
    println!();
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let mut runtime = match env::var("RUNTIME").as_deref() {
        Ok("current_thread") => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(WORKERS).enable_all().build().unwrap();
    let is_clean = runtime.block_on(run());
    // While the runtime lives: dropped, it would wait for its blocking threads.
    process::exit(i32::from(!is_clean));
}

fn setting(name: &str) -> u64 {
    env::var(name).map_or(0, |value| value.parse().unwrap())
}

fn ms(name: &str) -> Duration {
    Duration::from_millis(setting(name))
}

async fn run() -> bool {
    let log = OpenOptions::new().create(true).append(true).open(env::var("LOG").unwrap()).unwrap();
    let log = Log(Arc::new(log));
    let hook_time = ms("FAILURE_HOOK_MS");
    let scheduler = Scheduler::builder()
        .limit(usize::try_from(setting("LIMIT")).unwrap())
        .limit_per_key(Some(usize::try_from(setting("KEYED")).unwrap()).filter(|keyed| *keyed > 0))
        .on_failure(move |failure| {
            tracing::error!("{failure}");
            thread::sleep(hook_time);
        })
        .build();
    let shutdown = Shutdown::new(&scheduler);
    println!("constructed");
    for n in 0..setting("BOOT_JOBS") {
        let (id, time) = (format!("boot.{n}"), ms("BOOT_MS") / (1 + u32::try_from(n).unwrap()));
        drop(scheduler.job(id.clone()).spawn(work(log.clone(), id, time)).await.unwrap());
    }
    sleep(ms("START_MS")).await;
    let app = Router::new()
        .route("/jobs", post(order))
        .route("/stream", get(endless))
        .route("/upload", post(upload))
        .route("/websocket", get(websocket))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(log.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hook_time = ms("UNSTARTED_HOOK_MS");
    let report = shutdown
        .grace(ms("GRACE_MS"))
        .connection_grace(ms("CONNECTION_GRACE_MS"))
        .readiness_delay(ms("READINESS_DELAY_MS"))
        .unstarted_grace(ms("UNSTARTED_GRACE_MS"))
        .on_unstarted(move |jobs| async move {
            for job in &jobs {
                thread::sleep(hook_time);
                log.line("unstarted", &job.name);
            }
        })
        .serve(|stop| {
            println!("listening on http://{address}");
            axum::serve(listener, app).with_graceful_shutdown(stop).into_future()
        })
        .await;
    println!("{}", json!({ "report": report, "stats": scheduler.stats() }));
    report.is_clean()
}

/// A file that several write to, a whole line at a time.
#[derive(Clone)]
struct Log(Arc<File>);

impl Log {
    fn line(&self, event: &str, id: &str) {
        (&*self.0).write_all(format!("{event} {id}\n").as_bytes()).unwrap();
    }
}

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
    Blocking,
    AfterResponse,
    /// Shares a key with all failing jobs.
    Failing,
    /// Fails once it is cancelled.
    LateFailing,
    /// Ends well when its time is over, or when it is cancelled.
    Cooperative,
    /// Never awaits. Shares a key with all busy jobs.
    Busy,
    /// Its run timeout is half the time it needs.
    Overdue,
    /// Shares a key with all such jobs.
    Keyed,
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
        Kind::Keyed => drop(job.concurrency_key("keyed").spawn(work).await?),
        Kind::AfterResponse => drop(job.after_response(work)?),
        Kind::Overdue => drop(job.timeout(time / 2 + Duration::from_millis(1)).spawn(work).await?),
        Kind::Blocking => {
            let block = move || {
                log.line("start", &id);
                thread::sleep(time);
                log.line("end", &id);
            };
            drop(job.spawn_blocking(block).await?);
        }
        Kind::Failing => {
            let fails = async {
                work.await;
                Err::<(), BoxError>("as ordered".into())
            };
            drop(job.concurrency_key("failing").spawn(fails).await?);
        }
        Kind::LateFailing => {
            let fails = move |context: JobContext| async move {
                log.line("start", &id);
                context.cancelled().await;
                log.line("end", &id);
                Err::<(), BoxError>("as ordered".into())
            };
            drop(job.spawn_with(fails).await?);
        }
        Kind::Cooperative => {
            let ends = move |context: JobContext| async move {
                log.line("start", &id);
                tokio::select! {
                    () = sleep(time) => {}
                    () = context.cancelled() => {}
                }
                log.line("end", &id);
            };
            drop(job.spawn_with(ends).await?);
        }
        Kind::Busy => {
            let spins = async move {
                log.line("start", &id);
                spin(time);
                log.line("end", &id);
            };
            drop(job.concurrency_key("busy").spawn(spins).await?);
        }
    }
    Ok(StatusCode::ACCEPTED)
}

async fn work(log: Log, id: String, time: Duration) {
    log.line("start", &id);
    sleep(time).await;
    log.line("end", &id);
}

fn spin(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

/// A job that waits for the end of a response without an end.
async fn endless(
    State(log): State<Log>,
    Query(Named { id }): Query<Named>,
    jobs: Jobs,
) -> Result<Body, SpawnError> {
    let time = Duration::from_millis(5);
    drop(jobs.job(id.clone()).after_response(work(log, id, time))?);
    let ticks = stream::repeat(()).then(move |()| async move {
        sleep(time).await;
        Ok::<_, Infallible>(Bytes::from_static(&[b'.'; 1024]))
    });
    Ok(match setting("HEEDS") {
        0 => Body::from_stream(ticks),
        _ => Body::from_stream(ticks.take_until(async move { jobs.shutting_down().await })),
    })
}

/// A job beside the upload, and one that waits for the response, which comes after the last byte.
async fn upload(
    State(log): State<Log>,
    Query(Named { id }): Query<Named>,
    jobs: Jobs,
    mut body: Body,
) -> Result<StatusCode, SpawnError> {
    let (beside, time) = (format!("{id}/child"), Duration::from_millis(30));
    drop(jobs.job(id.clone()).after_response(work(log.clone(), id, time))?);
    drop(jobs.job(beside.clone()).spawn(work(log, beside, time)).await?);
    while let Some(Ok(_)) = body.frame().await {}
    Ok(StatusCode::ACCEPTED)
}

/// A job that talks over an upgraded connection: it sends back each byte.
async fn websocket(
    State(log): State<Log>,
    Query(Named { id }): Query<Named>,
    jobs: Jobs,
    request: Request,
) -> Result<Response, SpawnError> {
    let upgrade = hyper::upgrade::on(request);
    let (name, stops) = (id.clone(), jobs.clone());
    let talk = async move {
        log.line("start", &id);
        let Ok(upgraded) = upgrade.await else { return log.line("end", &id) };
        let mut stream = TokioIo::new(upgraded);
        let echo = async {
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok()
                && stream.write_all(&byte).await.is_ok()
            {}
        };
        if setting("HEEDS") == 0 {
            echo.await;
        } else {
            tokio::select! { () = echo => {}, () = stops.shutting_down() => {} }
        }
        log.line("end", &id);
    };
    drop(jobs.job(name).spawn(talk).await?);
    let head = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket");
    Ok(head.body(Body::empty()).unwrap())
}
