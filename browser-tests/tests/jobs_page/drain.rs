//! A drain, from its countdown to its report.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tower_jobs_browser_tests::{Browser, Page, Program, example};
use tower_jobs_dashboard::Dashboard;

use crate::served::{endless, named, open, serve, shows};

const COUNT: &str = "parseInt(document.querySelector('#drain .count b').textContent)";

/// Waits until a countdown has gone on.
async fn counts_down(page: &Page) {
    let before = page.eval(COUNT).await;
    assert!(before.as_u64().is_some_and(|seconds| seconds > 0), "{before}");
    page.wait_until("the countdown", &format!("{COUNT} < {before}")).await;
}

#[tokio::test]
async fn drain_counts_down_to_its_report() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").limit(2).build();
    let (end, ended) = oneshot::channel::<()>();
    let job = mail.job("import").spawn(ended).await.expect("open");
    endless(&mail, "export_ledger").await;
    endless(&mail, "never started").await;
    let page = browser.page().await;
    let dashboard = Dashboard::new(&mail).live_drain().stuck_after(Duration::ZERO, 5);
    open(&page, &serve(dashboard).await).await;
    let draining = mail.clone();
    let closing =
        tokio::spawn(async move { draining.wait_and_close_within(Duration::from_secs(59)).await });
    shows(&page, "#pill", "Draining").await;
    shows(&page, "#drain", "left of 59 s").await;
    shows(&page, "#drain tbody tr", "cut off dropped at its next .await").await;
    shows(&page, "#drain .tri", "≈ 3").await;
    shows(&page, "title", "s left").await;
    counts_down(&page).await;
    page.screenshot_all("jobs-draining-light").await;
    page.assert_accessible().await;
    end.send(()).expect("it runs");
    job.await.expect("it ends");
    shows(&page, "#drain tbody", "never started").await;
    let jobs: Vec<_> = mail.jobs().iter().map(|job| job.id).collect();
    assert!(mail.abort(jobs[0]) && mail.abort(jobs[1]));
    closing.await.expect("a report");
    shows(&page, "#drain", "Closed at").await;
    shows(&page, "#drain", "Some jobs did not end.").await;
    shows(&page, "#drain .lostjobs", "export_ledger").await;
    shows(&page, "#clock", "ended").await;
    page.screenshot_all("jobs-closed-light").await;
    page.assert_accessible().await;
    page.assert_no_console_errors().await;
    browser.end().await;
}

#[tokio::test]
async fn drain_without_deadline_counts_up() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    endless(&mail, "export_ledger").await;
    let page = browser.page().await;
    open(&page, &serve(Dashboard::new(&mail).live_drain()).await).await;
    mail.start_draining();
    shows(&page, "#drain", "so far, no deadline").await;
    let before = page.eval(COUNT).await;
    page.wait_until("the count", &format!("{COUNT} > {before}")).await;
    browser.end().await;
}

async fn observed(grace: &str) -> (Program, String) {
    let mut command = example("tower-jobs-dashboard", "observed").await;
    let command = command.env("ADMIN_ADDR", "127.0.0.1:0").env("GRACE", grace);
    let program = Program::start(command).await;
    let line = program.printed("its jobs, to the end: ").await;
    let admin = line.rsplit(' ').next().expect("a URL").to_owned();
    (program, admin)
}

#[tokio::test]
async fn example_serves_page_and_metrics() {
    let Some(browser) = Browser::start().await else { return };
    let (program, admin) = observed("5").await;
    for url in [format!("{}/jobs", program.url()), admin] {
        let page = browser.page().await;
        open(&page, &url).await;
        shows(&page, "h1", "checkout-api").await;
        shows(&page, "#running-body", "fetch_rates").await;
        let metrics = page.eval("fetch('/metrics').then(answer => answer.text())").await;
        let metrics = metrics.as_str().expect("a text");
        for line in [
            "tower_jobs_ended_total{scheduler=\"mail\",name=\"send_receipt\",outcome=\"completed\"} ",
            "tower_jobs_queue_seconds_bucket{scheduler=\"mail\",le=\"0.1\"} ",
            "tower_jobs_run_seconds_bucket{scheduler=\"mail\",name=\"send_receipt\",le=\"0.5\"} ",
            "tower_jobs_active{scheduler=\"reports\"} 4",
        ] {
            assert!(metrics.contains(line), "{line}\n{metrics}");
        }
        page.assert_no_console_errors().await;
    }
    browser.end().await;
}

#[tokio::test]
async fn page_counts_down_by_itself_on_the_server_that_ends() {
    let Some(browser) = Browser::start().await else { return };
    let (program, admin) = observed("25").await;
    let (own, other) = (browser.page().await, browser.page().await);
    open(&own, &format!("{}/jobs", program.url())).await;
    open(&other, &admin).await;
    shows(&own, "#running-body", "fetch_rates").await;
    program.terminate().await;
    shows(&own, "#banner", "The server shuts down and takes no more connections.").await;
    shows(&own, "#drain", "fetch_rates").await;
    counts_down(&own).await;
    assert_eq!(own.eval("document.querySelector('#main').classList.contains('stale')").await, true);
    own.screenshot_all("jobs-stale-light").await;
    own.assert_accessible().await;
    let banner = other.eval("document.querySelector('#banner').hidden").await;
    assert_eq!(banner, Value::Bool(true), "the other listener serves on");
    counts_down(&other).await;
    other.screenshot_all("jobs-draining-load-light").await;
    other.wait_until("the report", "document.querySelector('#drain.closed .report')").await;
    shows(&other, "#drain .lostjobs", "fetch_rates").await;
    shows(&own, "#banner", "The deadline passed at").await;
    // Jobs were lost.
    assert_eq!(program.ended().await, Some(1));
    browser.end().await;
}
