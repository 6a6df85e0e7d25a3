//! Lost connections, hidden pages, and too many viewers.

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};
use tower_jobs_browser_tests::{Browser, Line, PLENTY, Page};
use tower_jobs_dashboard::Dashboard;

use crate::served::{PATH, endless, named, open, serve, shows};

/// Waits until the only stream is free.
async fn stream_is_free(url: &str) {
    let asked = async {
        while status_of_a_stream(url).await != "200" {
            tokio::task::yield_now().await;
        }
    };
    timeout(PLENTY, asked).await.expect("the page leaves its stream");
}

/// The status that one more stream of events gets, which then ends.
async fn status_of_a_stream(url: &str) -> String {
    let address = url.trim_start_matches("http://").trim_end_matches(PATH);
    let mut stream = TcpStream::connect(address).await.expect("a server");
    let head = format!("GET {PATH}/api/v1/events HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await.expect("an answer");
    line.split(' ').nth(1).expect("a status").to_owned()
}

async fn clock(page: &Page) -> Value {
    page.eval("document.querySelector('#clock').textContent").await
}

async fn moves(page: &Page) {
    let before = clock(page).await;
    page.wait_until(
        "a tick",
        &format!("document.querySelector('#clock').textContent !== {before}"),
    )
    .await;
}

#[tokio::test]
async fn page_returns_after_a_lost_connection() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    let url = serve(Dashboard::new(&mail)).await;
    let line = Line::to(url.trim_end_matches(PATH)).await;
    let page = browser.page().await;
    open(&page, &format!("{}{PATH}", line.url())).await;
    endless(&mail, "slow").await;
    shows(&page, "#running-body", "slow").await;
    line.cut();
    shows(&page, "#banner", "Connection lost.").await;
    shows(&page, "#banner", "next try in").await;
    shows(&page, "title", "Connection lost").await;
    assert_eq!(
        page.eval("document.querySelector('#main').classList.contains('stale')").await,
        true
    );
    endless(&mail, "while the line is cut").await;
    shows(&page, "#running-body", "slow").await;
    page.screenshot("jobs-lost-light").await;
    page.assert_accessible().await;
    line.mend();
    page.wait_until("the connection", "document.querySelector('#banner').hidden").await;
    shows(&page, "#running-body", "while the line is cut").await;
    assert_eq!(
        page.eval("document.querySelector('#main').classList.contains('stale')").await,
        false
    );
    moves(&page).await;
    browser.end().await;
}

#[tokio::test]
async fn button_connects_at_once() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    let url = serve(Dashboard::new(&mail)).await;
    let line = Line::to(url.trim_end_matches(PATH)).await;
    let page = browser.page().await;
    open(&page, &format!("{}{PATH}", line.url())).await;
    // Without its clock the page does not try by itself.
    page.eval("void Array.from({ length: 1000 }, (_, id) => clearInterval(id))").await;
    line.cut();
    shows(&page, "#banner", "Connection lost.").await;
    line.mend();
    page.click("#retry").await;
    page.wait_until("the connection", "document.querySelector('#banner').hidden").await;
    browser.end().await;
}

#[tokio::test]
async fn hidden_page_holds_no_stream() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    let url = serve(Dashboard::new(&mail).max_streams(1)).await;
    let page = browser.page().await;
    open(&page, &url).await;
    assert_eq!(status_of_a_stream(&url).await, "503", "the page has the stream");
    let hidden = async {
        stream_is_free(&url).await;
        endless(&mail, "while it is hidden").await;
    };
    page.while_hidden(hidden).await;
    shows(&page, "#running-body", "while it is hidden").await;
    moves(&page).await;
    browser.end().await;
}

#[tokio::test]
async fn paused_page_holds_no_stream_and_stays() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    let url = serve(Dashboard::new(&mail).max_streams(1)).await;
    let page = browser.page().await;
    open(&page, &url).await;
    page.click("#live").await;
    shows(&page, "#clock", "paused").await;
    stream_is_free(&url).await;
    endless(&mail, "slow").await;
    page.click("#live").await;
    shows(&page, "#running-body", "slow").await;
    shows(&page, "#clock", "UTC").await;
    browser.end().await;
}

#[tokio::test]
async fn page_beyond_the_last_stream_asks_instead() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named("mail").build();
    let url = serve(Dashboard::new(&mail).max_streams(0)).await;
    let page = browser.page().await;
    open(&page, &url).await;
    endless(&mail, "slow").await;
    shows(&page, "#running-body", "slow").await;
    assert_eq!(page.eval("document.querySelector('#banner').hidden").await, true);
    browser.end().await;
}
