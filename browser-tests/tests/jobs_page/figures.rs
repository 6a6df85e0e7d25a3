//! Figures, their order, and how they change.

use std::time::Duration;

use tokio::time::sleep;
use tower_jobs_browser_tests::{Browser, Page};
use tower_jobs_dashboard::Dashboard;

use crate::served::{endless, fail, load, named, open, serve, shows};

#[tokio::test]
async fn page_of_an_unused_scheduler_loads() {
    let Some(browser) = Browser::start().await else { return };
    let page = browser.page().await;
    let mail = named("mail").build();
    open(&page, &serve(Dashboard::new(&mail).app("shop")).await).await;
    shows(&page, "#pill", "Open").await;
    shows(&page, "#verdict", "No job yet").await;
    assert_eq!(page.text("h1").await, "shop");
    assert_eq!(page.eval("document.title").await, "jobs: shop");
    page.assert_no_console_errors().await;
    browser.end().await;
}

#[tokio::test]
async fn figures_follow_the_jobs() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").limit(1).build();
    let page = browser.page().await;
    open(&page, &serve(Dashboard::new(&mail)).await).await;
    let slow = endless(&mail, "slow").await;
    let next = endless(&mail, "next").await;
    shows(&page, "#running-body", "slow").await;
    shows(&page, "#gauges", "all in use").await;
    shows(&page, "#gauges", "Pending1of 10 000").await;
    assert!(mail.abort(slow));
    shows(&page, "#running-body", "next").await;
    shows(&page, "#totals", "Accepted2Completed0Failed0Panicked0Timed out0Cancelled1").await;
    assert!(mail.abort(next));
    shows(&page, "#running-body", "Nothing runs").await;
    page.assert_no_console_errors().await;
    browser.end().await;
}

/// Keeps a page under load for ten seconds, with a part of it in view.
async fn assert_still_under_load(page: &Page, part: &str) {
    let mail = named("mail").limit(40).build();
    let url = serve(Dashboard::new(&mail)).await;
    let _load = load(&mail);
    // The figures of an application that has run for a while.
    open(page, &url).await;
    page.wait_until("full lists", "document.querySelectorAll('#failures tr').length > 4").await;
    open(page, &url).await;
    page.eval(&format!("document.querySelector({part:?}).scrollIntoView()")).await;
    page.wait_until("ten seconds of load", "performance.now() > 12000").await;
    let (shift, shifts) = (page.layout_shift().await, page.layout_shifts().await);
    assert!(shift < 0.02, "{part}: {shift}\n{shifts}");
    let ended = mail.stats().completed;
    assert!(ended > 200, "only {ended} jobs have ended");
    page.assert_no_console_errors().await;
}

#[tokio::test]
async fn page_holds_still_under_load() {
    let Some(browser) = Browser::start().await else { return };
    let page = browser.page().await;
    for part in ["#top", "#failures"] {
        assert_still_under_load(&page, part).await;
    }
    browser.end().await;
}

#[tokio::test]
async fn phone_page_holds_still_under_load() {
    let Some(browser) = Browser::start().await else { return };
    let page = browser.page().await;
    page.phone().await;
    for part in ["#top", "#failures", "#running"] {
        assert_still_under_load(&page, part).await;
    }
    browser.end().await;
}

#[tokio::test]
async fn stuck_job_is_first() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    // By its name's p95 of half a second, a slow job is not stuck for minutes.
    let dashboard = Dashboard::new(&mail).stuck_after(Duration::from_millis(100), 1000);
    let url = serve(dashboard).await;
    let half = || sleep(Duration::from_millis(500));
    let ends = [(); 5].map(|()| mail.job("slow").try_spawn(half()).expect("open"));
    for end in ends {
        end.await.expect("it ends");
    }
    endless(&mail, "slow").await;
    endless(&mail, "export_ledger").await;
    let page = browser.page().await;
    open(&page, &url).await;
    shows(&page, "#verdict", "1 job stuck, export_ledger for").await;
    shows(&page, "#running-body tr.stuck", "export_ledgerstuck").await;
    let names = "[...document.querySelectorAll('#running-body .name')].map(n => n.textContent)";
    assert_eq!(page.eval(names).await, serde_json::json!(["export_ledger", "slow"]));
    shows(&page, "title", "1 stuck").await;
    browser.end().await;
}

async fn panics() {
    panic!("an account")
}

#[tokio::test]
async fn failure_is_shown_with_its_error() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    let page = browser.page().await;
    open(&page, &serve(Dashboard::new(&mail)).await).await;
    fail(&mail, "send_invoice", "relay 1 is busy").await;
    fail(&mail, "send_invoice", "relay 2 is busy").await;
    let job = mail.job("sync_crm").spawn(panics());
    job.await.expect("open").await.expect_err("a panic");
    shows(&page, "#failures tbody tr:nth-child(1)", "sync_crm").await;
    shows(&page, "#failures tbody tr:nth-child(1)", "panic an account").await;
    shows(&page, "#failures tbody tr:nth-child(2)", "error relay 2 is busy").await;
    shows(&page, "#failures tbody tr:nth-child(2)", "×2").await;
    page.click("#failures tbody tr:nth-child(2) summary").await;
    shows(&page, "#failures details[open] pre", "relay 2 is busy").await;
    shows(&page, "#failures details[open] dl", "served.rs").await;
    shows(&page, "#verdict", "3 failures in 15 min, 2 of send_invoice").await;
    // An open detail stays where it is, and the new group waits.
    fail(&mail, "late", "no").await;
    shows(&page, "#failures .more", "Show 1 new").await;
    page.click("#failures .more button").await;
    shows(&page, "#failures tbody tr:nth-child(1)", "late").await;
    page.assert_no_console_errors().await;
    browser.end().await;
}

#[tokio::test]
async fn filter_finds_pending_jobs_on_the_server() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").limit(1).build();
    endless(&mail, "slow").await;
    for _ in 0..100 {
        endless(&mail, "other").await;
    }
    let job = mail.job("import").concurrency_key("tenant-77");
    drop(job.spawn(std::future::pending::<()>()).await.expect("open"));
    let page = browser.page().await;
    open(&page, &serve(Dashboard::new(&mail)).await).await;
    page.fill("#find", "TENANT-77").await;
    shows(&page, "#found-body", "import").await;
    shows(&page, "#running-body", "No running job matches the filter").await;
    page.fill("#find", " ").await;
    page.wait_until("all jobs", "document.querySelector('#found').hidden").await;
    shows(&page, "#running-body", "slow").await;
    browser.end().await;
}
