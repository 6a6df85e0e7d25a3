//! Pictures of the page, to look at, and its accessibility in each state.

use std::time::Duration;

use tower_jobs_browser_tests::{Browser, Page, Scheme};
use tower_jobs_dashboard::Dashboard;

use crate::served::{endless, fail, load, named, open, serve, shows};

/// Takes pictures, and checks the accessibility.
async fn looked_at(page: &Page, state: &str) {
    for (scheme, name) in [(Scheme::Dark, "dark"), (Scheme::Light, "light")] {
        page.scheme(scheme).await;
        page.screenshot_all(&format!("jobs-{state}-{name}")).await;
        page.assert_accessible().await;
    }
    page.phone().await;
    page.screenshot_all(&format!("jobs-{state}-phone")).await;
    page.assert_accessible().await;
    let wider = "document.documentElement.scrollWidth > innerWidth";
    assert_eq!(page.eval(wider).await, false, "{state}: wider than a phone");
    page.desktop().await;
}

#[tokio::test]
async fn page_is_accessible_light_dark_and_on_a_phone() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").limit(20).build();
    let page = browser.page().await;
    let dashboard = Dashboard::new(&mail).and(&named("reports").build()).app("checkout-api");
    let dashboard = dashboard.live_drain().stuck_after(Duration::from_secs(1), 5);
    open(&page, &serve(dashboard).await).await;
    shows(&page, "#verdict", "No job yet").await;
    looked_at(&page, "empty").await;
    endless(&mail, "export_ledger").await;
    fail(&mail, "send_invoice", "smtp: 451 4.7.1 greylisted, try again later").await;
    let _load = load(&mail);
    shows(&page, "#running-body .tag.solid:not([hidden])", "stuck").await;
    shows(&page, "#names-body", "audit_log").await;
    // By a script, since rows of failures come all the time.
    page.eval("document.querySelector('#failures summary').click()").await;
    page.click("#chart-depth summary").await;
    looked_at(&page, "load").await;
    page.fill("#find", "nothing of that name").await;
    shows(&page, "#failures-body", "No failure matches the filter").await;
    looked_at(&page, "filtered").await;
    page.fill("#find", " ").await;
    let draining = mail.clone();
    tokio::spawn(async move { draining.wait_and_close_within(Duration::from_secs(600)).await });
    shows(&page, "#drain", "left of").await;
    looked_at(&page, "draining").await;
    mail.close().await;
    shows(&page, "#drain", "Closed at").await;
    looked_at(&page, "closed").await;
    page.assert_no_console_errors().await;
    browser.end().await;
}
