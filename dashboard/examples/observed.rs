//! An application with load, failures and a stuck job, its page, and its metrics.
//!
//! ```sh
//! cargo run --package tower-jobs-dashboard --example observed
//! ```
//!
//! - <http://127.0.0.1:3000/jobs>: the page on the application's own server. At Ctrl-C it loses its stream, and counts
//!   down by itself.
//! - <http://127.0.0.1:3001/jobs>: the page on a listener of its own, outside `Shutdown`. At Ctrl-C it shows the drain
//!   to its end. It may pause, resume and cancel.
//!
//! - `/metrics` on both: the same jobs, for Prometheus.
//!
//! Nothing stands before the pages here, so they are on loopback alone. In your application, put a layer with your
//! authentication around `/jobs`, and serve the second listener on an address that only you reach.
//!
//! `ADDR` and `ADMIN_ADDR` change the addresses, `GRACE` the time to drain: 30 seconds by default.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it plays its own clients; where it listens and how it ended is its output"
)]

use std::{process::ExitCode, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::{get, post},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{
    net::TcpListener,
    time::{interval, sleep},
};
use tower_jobs::{BoxError, JobMetrics, Jobs, JobsLayer, Scheduler, Shutdown, SpawnError};
use tower_jobs_dashboard::Dashboard;

/// Bounds of the queue times, in seconds. A healthy queue takes less than a millisecond.
const QUEUE_BUCKETS: [f64; 11] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Bounds of the run times, in seconds, up to the run timeout of most jobs.
const RUN_BUCKETS: [f64; 11] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// The recorder keeps the samples of its histograms until they are rendered, or until then.
const UPKEEP: Duration = Duration::from_secs(5);

/// A number from 0 to 1, the same in every run.
fn random() -> f64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static STATE: AtomicU64 = AtomicU64::new(0);
    let mut x = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Takes about this time: half of it to thrice of it.
async fn work(seconds: f64) {
    sleep(Duration::from_secs_f64(seconds * (0.5 + 2.5 * random().powi(3)))).await;
}

async fn send_receipt() -> Result<(), &'static str> {
    work(0.15).await;
    if random() < 0.004 { Err("smtp: connection reset by peer (os error 104)") } else { Ok(()) }
}

async fn send_invoice() -> Result<(), String> {
    work(0.6).await;
    match random() {
        chance if chance < 0.03 => Err("smtp: 451 4.7.1 greylisted, try again later".to_owned()),
        chance if chance < 0.04 => {
            work(40.0).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn sync_crm() {
    work(1.5).await;
    let user = if random() < 0.04 { None } else { Some("Ada") };
    assert_eq!(user.expect("the user has an account"), "Ada");
}

/// Names and texts that come from outside are shown, and not obeyed.
async fn hostile() -> Result<(), String> {
    work(0.5).await;
    let text = "bad input: \"</td><script>alert(1)</script>\n\u{1b}[31mred\u{202e}gpj.exe\"";
    if random() < 0.3 { Err(text.to_owned()) } else { Ok(()) }
}

async fn order(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    let limit = Duration::from_secs(30);
    jobs.job("send_receipt").timeout(limit).try_spawn(send_receipt())?;
    jobs.job("audit_log").try_spawn(work(0.005))?;
    if random() < 0.4 {
        let tenant = format!("tenant-{:.0}", random() * 40.0);
        jobs.job("send_invoice").concurrency_key(tenant).timeout(limit).try_spawn(send_invoice())?;
    }
    Ok(StatusCode::ACCEPTED)
}

async fn account(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    jobs.job("sync_crm").timeout(Duration::from_secs(60)).try_spawn(sync_crm())?;
    if random() < 0.2 {
        jobs.job("<img src=x onerror=alert(1)>").try_spawn(hostile())?;
    }
    jobs.after_response(work(0.05))?;
    Ok(StatusCode::ACCEPTED)
}

/// Some 15 requests a second, with a busy time in each minute.
async fn clients(app: Router) {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;
    for number in 0_u32.. {
        let path = if number % 8 == 0 { "/account" } else { "/orders" };
        let request = Request::post(path).body(Body::empty()).expect("a request");
        let Ok(response) = app.clone().oneshot(request).await;
        drop(response);
        let is_busy = number % 900 > 600;
        sleep(Duration::from_millis(if is_busy { 25 } else { 66 })).await;
    }
}

async fn start(mail: &Scheduler, reports: &Scheduler) -> Result<(), SpawnError> {
    let forever = Duration::from_secs(7 * 24 * 3600);
    // Waits for an answer that never comes.
    mail.job("fetch_rates").timeout(20 * Duration::from_secs(60)).spawn(sleep(forever)).await?;
    reports.job("export_ledger").concurrency_key("tenant-7").spawn(sleep(forever)).await?;
    for _ in 0..3 {
        let report = async {
            loop {
                work(20.0).await;
                if random() < 0.3 {
                    break;
                }
            }
        };
        reports.job("monthly_report").timeout(5 * Duration::from_secs(60)).spawn(report).await?;
    }
    Ok(())
}

/// Installs the recorder. Metrics belong to the recorder that is there when they are made.
fn install_recorder() -> Result<PrometheusHandle, BoxError> {
    let prometheus = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("tower_jobs_queue_seconds".into()), &QUEUE_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("tower_jobs_run_seconds".into()), &RUN_BUCKETS)?
        .install_recorder()?;
    let upkeep = prometheus.clone();
    tokio::spawn(async move {
        let mut interval = interval(UPKEEP);
        loop {
            interval.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(prometheus)
}

/// The route that Prometheus scrapes.
fn metrics_route(metrics: JobMetrics, prometheus: PrometheusHandle) -> Router {
    let scrape = move || {
        metrics.refresh();
        let text = prometheus.render();
        async { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
    };
    Router::new().route("/metrics", get(scrape))
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

async fn serve() -> Result<ExitCode, BoxError> {
    let prometheus = install_recorder()?;
    let metrics = JobMetrics::new();
    let builder = |name| Scheduler::builder().name(name).metrics(&metrics).on_failure(|_| {});
    let mail = builder("mail").limit(10).build();
    let reports = builder("reports").limit(4).pending_limit(50).build();
    let metrics = metrics_route(metrics, prometheus);
    // Both pages observe the same schedulers.
    let dashboard = || Dashboard::new(&mail).and(&reports).app("checkout-api");
    let shop = TcpListener::bind(setting("ADDR", "127.0.0.1:3000")).await?;
    let admin = TcpListener::bind(setting("ADMIN_ADDR", "127.0.0.1:3001")).await?;
    let grace = setting("GRACE", "30").parse()?;
    println!("listening on http://{}", shop.local_addr()?);
    println!("its jobs: http://{}/jobs", shop.local_addr()?);
    println!("its jobs, to the end: http://{}/jobs", admin.local_addr()?);

    // Outside `Shutdown`: it serves until the process ends, so the drain can be seen.
    let live = dashboard().live_drain().allow_actions();
    let live = metrics.clone().nest("/jobs", live.router());
    let served = tokio::spawn(axum::serve(admin, live).into_future());

    let orders = Router::new()
        .route("/orders", post(order))
        .route("/account", post(account))
        .layer(JobsLayer::new(mail.clone()));
    let load = tokio::spawn(clients(orders.clone()));
    start(&mail, &reports).await?;

    let app = orders.merge(metrics).nest("/jobs", dashboard().router());
    let report = Shutdown::new(&mail)
        .and_scheduler(&reports)
        .grace(Duration::from_secs(grace))
        .serve(|stop| axum::serve(shop, app).with_graceful_shutdown(stop).into_future())
        .await;
    load.abort();
    report.print();
    // The page on the other listener shows the report for a moment.
    sleep(Duration::from_secs(3)).await;
    served.abort();
    Ok(ExitCode::from(report))
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let status = runtime.block_on(serve());
    runtime.shutdown_background();
    status.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}
