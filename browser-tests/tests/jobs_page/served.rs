//! Schedulers with known jobs, and their page.

use std::{
    future::pending,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::Router;
use tokio::{
    net::TcpListener,
    task::AbortHandle,
    time::{interval, sleep},
};
use tower_jobs::{JobId, Scheduler, SchedulerBuilder};
use tower_jobs_browser_tests::Page;
use tower_jobs_dashboard::Dashboard;

/// Where the page is nested.
pub(crate) const PATH: &str = "/ops/jobs";

/// A scheduler whose failures are on its page, not in the log of the test.
pub(crate) fn named(name: &str) -> SchedulerBuilder {
    Scheduler::builder().name(name).on_failure(|_| {})
}

/// Serves a page, and gives its URL.
pub(crate) async fn serve(dashboard: Dashboard) -> String {
    serve_beside(dashboard, Router::new()).await
}

/// Serves a page beside an application.
pub(crate) async fn serve_beside(dashboard: Dashboard, app: Router) -> String {
    let app = app.nest(PATH, dashboard.router());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}{PATH}", listener.local_addr().expect("an address"));
    tokio::spawn(axum::serve(listener, app).into_future());
    url
}

/// Waits until the page has figures.
pub(crate) async fn open(page: &Page, url: &str) {
    page.open(url).await;
    page.wait_until("figures", "document.querySelector('#clock').textContent").await;
}

/// Waits until an element has a text in it.
pub(crate) async fn shows(page: &Page, selector: &str, text: &str) {
    let text = text.replace(' ', "\u{a0}");
    let condition = format!(
        "[...document.querySelectorAll({selector:?})].some(node => \
         node.textContent.replace(/\\s/g, '\\u00a0').includes({text:?}))"
    );
    page.wait_until(&text, &condition).await;
}

/// Spawns a job that never ends.
pub(crate) async fn endless(scheduler: &Scheduler, name: &'static str) -> JobId {
    scheduler.job(name).spawn(pending::<()>()).await.expect("open").id()
}

/// Spawns a job that fails, and waits for its end.
pub(crate) async fn fail(scheduler: &Scheduler, name: &'static str, error: &'static str) {
    let job = scheduler.job(name).spawn(async move { Err::<(), _>(error) }).await.expect("open");
    job.await.expect_err("a failure");
}

/// Spawns jobs until it is dropped.
pub(crate) struct Load(AbortHandle);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A number from 0 to 1, the same in every run.
fn random() -> f64 {
    static STATE: AtomicU64 = AtomicU64::new(0);
    let mut x = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

const NAMES: [&str; 9] = [
    "send_receipt",
    "audit_log",
    "send_invoice",
    "sync_crm",
    "index_order",
    "webhook_delivery",
    "resize_image",
    "warm_cache",
    "export_csv",
];
const ERRORS: [&str; 5] = [
    "smtp: 451 4.7.1 greylisted, try again later (relay mx2.mail.example.net:25): Temporary failure: queue",
    "smtp: connection reset by peer (os error 104)",
    "no route to host",
    "webhook answered 502 Bad Gateway",
    "disk full",
];

fn pick<T: Copy, const N: usize>(all: [T; N]) -> T {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list"
    )]
    let at = (random() * N as f64) as usize;
    all[at.min(N - 1)]
}

async fn work() -> Result<(), &'static str> {
    let seconds = match random() {
        chance if chance < 0.95 => 0.05 + 0.1 * random(),
        chance if chance < 0.995 => 1.0 + 3.0 * random(),
        _ => 10.0 + 20.0 * random(),
    };
    sleep(Duration::from_secs_f64(seconds)).await;
    if random() < 0.03 { Err(pick(ERRORS)) } else { Ok(()) }
}

/// About 100 jobs a second, of many names and lengths, with failures.
pub(crate) fn load(scheduler: &Scheduler) -> Load {
    let scheduler = scheduler.clone();
    let spawning = tokio::spawn(async move {
        let mut turns = interval(Duration::from_millis(10));
        loop {
            turns.tick().await;
            let key = format!("tenant-{:.0}", random() * 40.0);
            let mut job = scheduler.job(pick(NAMES)).timeout(Duration::from_secs(30));
            if random() < 0.5 {
                job = job.concurrency_key(key);
            }
            // A full queue or the end of the scheduler: the page counts it.
            drop(job.try_spawn(work()));
        }
    });
    Load(spawning.abort_handle())
}
