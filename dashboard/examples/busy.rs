//! Measures the processor time that one open page costs the process.
//!
//! ```sh
//! cargo run --release --package tower-jobs-dashboard --example busy
//! ```
//!
//! 100 names, 10 000 pending jobs, 100 jobs a second. It runs 20 s without a page and 20 s with one, twice each, and
//! prints the processor time of each part. It reads `/proc`, so it needs Linux.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "it measures, and prints the figures"
)]

use std::{fs, future::pending, time::Duration};

use axum::Router;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};
use tower_jobs::{BoxError, Scheduler};
use tower_jobs_dashboard::Dashboard;

const NAMES: usize = 100;
const PENDING: usize = 10_000;
/// Time between two jobs.
const EVERY: Duration = Duration::from_millis(10);
/// Time of each part of the measurement.
const PART: Duration = Duration::from_secs(20);
const ROUNDS: usize = 2;
/// Linux counts processor time in steps of this length.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of this process so far, in user and kernel mode.
fn processor_time() -> Result<Duration, BoxError> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in brackets, may hold spaces.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/self/stat")?;
    let ticks: Vec<u32> =
        fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(TICK * ticks.iter().sum())
}

/// Runs jobs beside the pending ones, whose key is at its limit.
fn load(scheduler: Scheduler) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut turns = interval(EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in 0_usize.. {
            turns.tick().await;
            let job = scheduler.job(format!("name {}", number % NAMES));
            drop(job.try_spawn(sleep(Duration::from_millis(50))));
        }
    })
}

/// Reads all events of a page.
async fn page(address: std::net::SocketAddr) -> Result<u64, BoxError> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /jobs/api/v1/events HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
    let read_all = async {
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            bytes += read as u64;
        }
    };
    drop(tokio::time::timeout(PART, read_all).await);
    Ok(bytes)
}

async fn measured(
    part: impl Future<Output = Result<u64, BoxError>>,
) -> Result<(f64, u64), BoxError> {
    let before = processor_time()?;
    let bytes = part.await?;
    let used = processor_time()? - before;
    Ok((100.0 * used.as_secs_f64() / PART.as_secs_f64(), bytes))
}

async fn measure() -> Result<(), BoxError> {
    let scheduler = Scheduler::builder().name("mail").limit(50).limit_per_key(1).build();
    let dashboard = Dashboard::new(&scheduler);
    for number in 0..PENDING {
        let job = scheduler.job(format!("name {}", number % NAMES));
        drop(job.concurrency_key("tenant").spawn(pending::<()>()).await?);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = Router::new().nest("/jobs", dashboard.router());
    let served = tokio::spawn(axum::serve(listener, app).into_future());
    let load = load(scheduler.clone());
    for _ in 0..ROUNDS {
        let (without, _) = measured(async {
            sleep(PART).await;
            Ok(0)
        })
        .await?;
        let (with, bytes) = measured(page(address)).await?;
        let size = bytes as f64 / 1e3 / PART.as_secs_f64();
        println!(
            "without a page {without:.2} % of a core, with one {with:.2} %: {:.2} % for {size:.1} kB/s",
            with - without
        );
    }
    let stats = scheduler.stats();
    println!("{} jobs have ended, {} are pending", stats.completed, stats.pending);
    load.abort();
    served.abort();
    Ok(())
}

fn main() -> Result<(), BoxError> {
    let runtime = tokio::runtime::Runtime::new()?;
    let measured = runtime.block_on(measure());
    runtime.shutdown_background();
    measured
}
