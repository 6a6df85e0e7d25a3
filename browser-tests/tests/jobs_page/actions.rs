//! Pause, resume and cancel.

use tower_jobs_browser_tests::Browser;
use tower_jobs_dashboard::Dashboard;

use crate::served::{endless, named, open, serve, shows};

#[tokio::test]
async fn page_acts_on_jobs_if_allowed() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    endless(&mail, "slow").await;
    endless(&mail, "other").await;
    let page = browser.page().await;
    open(&page, &serve(Dashboard::new(&mail).allow_actions()).await).await;
    shows(&page, "footer", "with actions").await;
    page.click("[aria-label='Cancel slow']").await;
    assert!(page.accept_question().await.contains("slow"));
    page.wait_until("the end", "!document.querySelector('[aria-label=\"Cancel slow\"]')").await;
    assert_eq!(mail.stats().cancelled, 1);
    shows(&page, "#say", "Done.").await;
    page.click("#pause").await;
    page.accept_question().await;
    shows(&page, "#pill", "Paused").await;
    shows(&page, "#verdict", "Paused: no job starts").await;
    assert!(mail.is_paused());
    page.assert_accessible().await;
    page.click("#pause").await;
    shows(&page, "#pill", "Open").await;
    assert!(!mail.is_paused());
    page.assert_no_console_errors().await;
    browser.end().await;
}

#[tokio::test]
async fn page_has_no_actions_unless_allowed() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    endless(&mail, "slow").await;
    let page = browser.page().await;
    open(&page, &serve(Dashboard::new(&mail)).await).await;
    shows(&page, "#running-body", "slow").await;
    let buttons = "[...document.querySelectorAll('main button')].filter(button => \
                   /Pause|Resume|Cancel/.test(button.textContent) && button.checkVisibility()).length";
    assert_eq!(page.eval(buttons).await, 0);
    shows(&page, "footer", "read-only").await;
    let base = "document.querySelector('#home').pathname";
    let pause =
        format!("fetch({base} + '/api/v1/pause', {{ method: 'POST' }}).then(a => a.status)");
    assert_eq!(page.eval(&pause).await, 404);
    assert!(!mail.is_paused());
    browser.end().await;
}
