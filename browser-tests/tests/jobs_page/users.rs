//! The keyboard, and several schedulers.

use tower_jobs_browser_tests::{Browser, Page};
use tower_jobs_dashboard::Dashboard;

use crate::served::{endless, fail, named, open, serve, shows};

const TAB: char = '\u{E004}';
const ENTER: char = '\u{E007}';
const SPACE: char = '\u{E00D}';
const LEFT: char = '\u{E012}';
const RIGHT: char = '\u{E014}';

/// Presses Tab until the focus is on an element of that selector.
async fn tab_to(page: &Page, selector: &str) {
    let at = format!("document.activeElement.matches({selector:?})");
    for _ in 0..40 {
        page.press(TAB).await;
        if page.eval(&at).await == true {
            return;
        }
    }
    panic!("40 tabs do not reach {selector}");
}

#[tokio::test]
async fn keyboard_reaches_every_part() {
    let Some(browser) = Browser::start().await else { return };
    let (mail, reports) = (named("mail").build(), named("reports").build());
    let page = browser.page().await;
    open(&page, &serve(Dashboard::new(&mail).and(&reports)).await).await;
    endless(&reports, "slow").await;
    fail(&reports, "export", "disk full").await;
    page.press(TAB).await;
    assert_eq!(page.text(":focus").await, "Skip to the main part");
    page.press(TAB).await;
    assert_eq!(page.eval("document.activeElement.id").await, "live");
    page.press(SPACE).await;
    shows(&page, "#clock", "paused").await;
    page.press(SPACE).await;
    shows(&page, "#clock", "UTC").await;
    page.press(TAB).await;
    assert_eq!(page.eval("document.activeElement.getAttribute('aria-selected')").await, "true");
    page.press(RIGHT).await;
    shows(&page, ":focus[aria-selected=true]", "reports").await;
    shows(&page, "#running-body", "slow").await;
    assert!(page.url().await.ends_with("#reports"));
    tab_to(&page, "#find").await;
    tab_to(&page, "#failures summary").await;
    page.press(ENTER).await;
    shows(&page, "#failures details[open] pre", "disk full").await;
    // The figures that come meanwhile leave the focus alone.
    fail(&reports, "export", "disk full").await;
    shows(&page, "#failures", "×2").await;
    assert_eq!(page.eval("document.activeElement.tagName").await, "SUMMARY");
    tab_to(&page, "#names thead button").await;
    page.press(ENTER).await;
    shows(&page, "#names th[aria-sort]", "Name").await;
    tab_to(&page, "#chart-throughput .plot").await;
    page.press(LEFT).await;
    assert_eq!(page.eval("document.activeElement.getAttribute('aria-valuenow')").await, "-1");
    page.assert_no_console_errors().await;
    browser.end().await;
}

#[tokio::test]
async fn address_names_the_scheduler() {
    let Some(browser) = Browser::start().await else { return };
    let (mail, reports) = (named("mail").build(), named("reports").build());
    endless(&reports, "slow").await;
    let page = browser.page().await;
    let url = serve(Dashboard::new(&mail).and(&reports)).await;
    open(&page, &format!("{url}#reports")).await;
    shows(&page, "#running-body", "slow").await;
    page.reload().await;
    shows(&page, "#running-body", "slow").await;
    page.click("#tabs [role=tab]").await;
    shows(&page, "#running-body", "Nothing runs").await;
    assert!(page.url().await.ends_with("#mail"));
    browser.end().await;
}
