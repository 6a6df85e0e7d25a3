//! The page of `examples/status.rs`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test may start tasks, and read the real clock"
)]

use tower_jobs_browser_tests::{Browser, Line, Page, Program, Scheme, example};

async fn status() -> tokio::process::Command {
    let mut command = example("tower-jobs", "status").await;
    command.env_remove("REMEMBER");
    command
}

/// Orders an export, and waits until the page shows it in place of the one before. Each has a name of its own.
async fn order(page: &Page, name: &str, pages: u32) {
    page.fill("[name=name]", name).await;
    page.fill("[name=pages]", &pages.to_string()).await;
    page.click("form button").await;
    let condition = format!("document.querySelector('#name').textContent === {name:?}");
    page.wait_until("the new export", &condition).await;
}

/// Waits for a line of the page below its progress bar.
async fn shows(page: &Page, text: &str) {
    let condition = format!("document.querySelector('#state').textContent === {text:?}");
    page.wait_until(text, &condition).await;
}

async fn value(page: &Page) -> f64 {
    page.eval("document.querySelector('progress').value").await.as_f64().expect("a number")
}

const LINK: &str = "!document.querySelector('#place').hidden";
const FETCHED: &str = "fetch(document.querySelector('#result').href).then(answer => answer.text())";

#[tokio::test]
async fn ten_users_follow_their_exports_in_ten_browsers() {
    let Some(browser) = Browser::start().await else { return };
    let program = Program::start(&mut status().await).await;
    let mut pages = Vec::new();
    for n in 0..10 {
        let page = browser.page().await;
        page.open(program.url()).await;
        order(&page, &format!("Export {n}"), 30 + n).await;
        pages.push(page);
    }
    for (n, page) in pages.iter().enumerate() {
        shows(page, "Done.").await;
        page.wait_until("the link", LINK).await;
        assert_eq!(page.text("#name").await, format!("Export {n}"));
        assert_eq!(page.text("#percent").await, "100 %");
        let file = page.eval(FETCHED).await;
        assert_eq!(file.as_str().map(|file| file.lines().count()), Some(30 + n));
    }
    // Another user's URL is of no use.
    pages[0].open(&pages[1].url().await).await;
    shows(&pages[0], "There is no such export of yours.").await;
    for (n, page) in pages.iter().enumerate() {
        let errors = page.console_errors().await;
        assert_eq!(errors.len(), usize::from(n == 0), "the 404 alone: {errors:#?}");
    }
    browser.end().await;
    program.terminate().await;
    assert_eq!(program.ended().await, Some(0));
}

#[tokio::test]
async fn progress_goes_on_after_a_reload() {
    let Some(browser) = Browser::start().await else { return };
    let program = Program::start(&mut status().await).await;
    let page = browser.page().await;
    page.open(program.url()).await;
    order(&page, "Orders", 300).await;
    page.wait_until("some progress", "document.querySelector('progress').value > 0.1").await;
    let before = value(&page).await;
    page.reload().await;
    page.wait_until(
        "more progress",
        &format!("document.querySelector('progress').value > {before}"),
    )
    .await;
    shows(&page, "Working.").await;
    page.open(&format!("{}/#", program.url())).await;
    shows(&page, "Nothing is ordered.").await;
    page.assert_no_console_errors().await;
    browser.end().await;
}

#[tokio::test]
async fn page_is_accessible_in_every_state_light_and_dark() {
    let Some(browser) = Browser::start().await else { return };
    let program = Program::start(&mut status().await).await;
    let page = browser.page().await;
    page.open(program.url()).await;
    looked_at(&page, "ordered").await;
    order(&page, "Orders of November", 300).await;
    page.wait_until("progress", "document.querySelector('progress').value > 0.1").await;
    looked_at(&page, "working").await;
    order(&page, "Orders of October", 13).await;
    shows(&page, "Failed: page 13 is missing").await;
    looked_at(&page, "failed").await;
    order(&page, "Orders of May", 3).await;
    shows(&page, "Done.").await;
    looked_at(&page, "done").await;
    page.assert_no_console_errors().await;
    browser.end().await;
}

/// Takes pictures, and checks the accessibility.
async fn looked_at(page: &Page, state: &str) {
    for (scheme, name) in [(Scheme::Dark, "dark"), (Scheme::Light, "light")] {
        page.scheme(scheme).await;
        page.screenshot(&format!("status-{state}-{name}")).await;
        page.assert_accessible().await;
    }
    page.phone().await;
    page.screenshot(&format!("status-{state}-phone")).await;
    page.assert_accessible().await;
    page.desktop().await;
}

#[tokio::test]
async fn hostile_name_is_shown_as_text() {
    let Some(browser) = Browser::start().await else { return };
    let program = Program::start(&mut status().await).await;
    let page = browser.page().await;
    page.open(program.url()).await;
    let name = "<img src=x onerror='hacked=1'></h2><script>hacked=1</script>&lt;";
    order(&page, name, 1).await;
    shows(&page, "Done.").await;
    assert_eq!(page.eval("document.querySelector('#name').textContent").await, name);
    assert_eq!(page.eval("document.querySelectorAll('main img, main script').length").await, 0);
    assert_eq!(page.eval("typeof hacked").await, "undefined");
    let file = page.eval(FETCHED).await;
    assert_eq!(file, format!("{name}, page 1\n"));
    page.assert_no_console_errors().await;
    browser.end().await;
}

#[tokio::test]
async fn forgotten_and_unknown_exports_are_told_apart() {
    let Some(browser) = Browser::start().await else { return };
    let program = Program::start(status().await.env("REMEMBER", "1")).await;
    let page = browser.page().await;
    page.open(program.url()).await;
    order(&page, "First", 1).await;
    shows(&page, "Done.").await;
    let first = page.url().await;
    order(&page, "Second", 2).await;
    shows(&page, "Done.").await;
    page.open(&first).await;
    shows(&page, "This export is forgotten.").await;
    page.screenshot("status-forgotten-light").await;
    page.open(&format!("{}/#..%2F..%2Fnever", program.url())).await;
    shows(&page, "There is no such export of yours.").await;
    page.assert_accessible().await;
    browser.end().await;
}

#[tokio::test]
async fn page_goes_on_after_a_lost_connection() {
    let Some(browser) = Browser::start().await else { return };
    let program = Program::start(&mut status().await).await;
    let line = Line::to(program.url()).await;
    let page = browser.page().await;
    page.open(line.url()).await;
    order(&page, "Orders", 200).await;
    shows(&page, "Working.").await;
    line.cut();
    shows(&page, "The connection is lost. Trying again.").await;
    page.screenshot("status-lost-light").await;
    page.assert_accessible().await;
    line.mend();
    shows(&page, "Done.").await;
    browser.end().await;
}

#[tokio::test]
async fn keyboard_alone_orders_and_reaches_the_result() {
    let Some(browser) = Browser::start().await else { return };
    let program = Program::start(&mut status().await).await;
    let page = browser.page().await;
    page.open(program.url()).await;
    let (tab, enter) = ('\u{E004}', '\u{E007}');
    page.press(tab).await;
    assert_eq!(page.eval("document.activeElement.name").await, "name");
    page.press(tab).await;
    page.press(tab).await;
    assert_eq!(page.eval("document.activeElement.tagName").await, "BUTTON");
    page.press(enter).await;
    shows(&page, "Done.").await;
    assert_eq!(page.eval("document.activeElement.tagName").await, "BUTTON");
    page.press(tab).await;
    assert_eq!(page.eval("document.activeElement.id").await, "result");
    page.screenshot("status-focus-light").await;
    browser.end().await;
}
