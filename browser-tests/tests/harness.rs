//! The harness sees what a page does, and what is wrong with it.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test may start tasks, and read the real clock"
)]

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    response::{
        Html,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, pending};
use tower_jobs_browser_tests::{Browser, Line, Scheme};

/// Serves one page, and a stream of events that never ends.
async fn serve(page: &'static str) -> String {
    let app = Router::new().route("/", get(async move || Html(page))).route("/events", get(events));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(axum::serve(listener, app).into_future());
    url
}

async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(1));
    Sse::new(pending()).keep_alive(keep_alive)
}

const GOOD: &str = "<!doctype html><html lang=en><title>Good</title>
<meta name=viewport content='width=device-width'><link rel=icon href='data:,'>
<style>:root { color-scheme: light dark }</style><main><h1>Good</h1><label>Name <input></label></main>";

const BAD: &str = "<!doctype html><html lang=en><title>Bad</title><link rel=icon href='data:,'>
<main><h1>Bad</h1><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>
<p style='color: #ccc; background: white'>pale</p></main>
<script>
  console.error('said');
  setTimeout(() => { throw new Error('thrown') });
  setTimeout(() => document.querySelector('h1').style.marginTop = '300px', 200);
</script>";

const FETCH: &str =
    "fetch('/', { cache: 'no-store' }).then(answer => answer.status, () => 'failed')";

#[tokio::test]
async fn good_page_has_no_faults() {
    let Some(browser) = Browser::start().await else { return };
    let page = browser.page().await;
    page.open(&serve(GOOD).await).await;
    page.assert_accessible().await;
    page.assert_no_console_errors().await;
    assert!(page.layout_shift().await < f64::EPSILON);
    page.fill("input", "x <b>y</b>").await;
    page.wait_until("the text", "document.querySelector('input').value === 'x <b>y</b>'").await;
    browser.end().await;
}

#[tokio::test]
async fn faults_of_a_bad_page_are_seen() {
    let Some(browser) = Browser::start().await else { return };
    let page = browser.page().await;
    page.open(&serve(BAD).await).await;
    page.wait_until("a layout shift", "window.layoutShift > 0.01").await;
    let errors = page.console_errors().await;
    for text in ["said", "thrown"] {
        assert!(errors.iter().any(|error| error.contains(text)), "{text}: {errors:#?}");
    }
    let faults = page.accessibility_faults().await;
    for rule in ["image-alt", "color-contrast"] {
        let found = faults.iter().any(|fault| fault.starts_with(rule));
        assert!(found || faults.is_empty(), "{rule}: {faults:#?}");
    }
    browser.end().await;
}

#[tokio::test]
async fn page_is_shown_dark_and_on_a_phone() {
    let Some(browser) = Browser::start().await else { return };
    let page = browser.page().await;
    page.open(&serve(GOOD).await).await;
    let dark = "matchMedia('(prefers-color-scheme: dark)').matches";
    assert_eq!(page.eval(dark).await, false);
    assert_eq!(page.eval("innerWidth").await, 1280);
    page.scheme(Scheme::Dark).await;
    page.phone().await;
    page.reload().await;
    assert_eq!(page.eval(dark).await, true);
    assert_eq!(page.eval("innerWidth").await, 390);
    browser.end().await;
}

#[tokio::test]
async fn cut_line_ends_open_streams() {
    let Some(browser) = Browser::start().await else { return };
    let line = Line::to(&serve(GOOD).await).await;
    let page = browser.page().await;
    page.open(line.url()).await;
    page.eval("void (window.stream = new EventSource('/events'))").await;
    page.wait_until("an open stream", "stream.readyState === 1").await;
    line.cut();
    page.wait_until("the loss of the stream", "stream.readyState !== 1").await;
    assert_eq!(page.eval(FETCH).await, "failed");
    line.mend();
    assert_eq!(page.eval(FETCH).await, 200);
    page.wait_until("the stream again", "stream.readyState === 1").await;
    browser.end().await;
}

#[tokio::test]
async fn requests_fail_while_the_page_is_offline() {
    let Some(browser) = Browser::start().await else { return };
    let page = browser.page().await;
    page.open(&serve(GOOD).await).await;
    page.offline(true).await;
    assert_eq!(page.eval(FETCH).await, "failed");
    assert_eq!(page.eval("navigator.onLine").await, false);
    page.offline(false).await;
    assert_eq!(page.eval(FETCH).await, 200);
    browser.end().await;
}

#[tokio::test]
async fn page_behind_another_tab_is_hidden() {
    let Some(browser) = Browser::start().await else { return };
    let page = browser.page().await;
    page.open(&serve(GOOD).await).await;
    let watch = "void (window.seen = [], document.onvisibilitychange = () => \
                 seen.push(document.visibilityState))";
    page.eval(watch).await;
    page.while_hidden(async {}).await;
    page.wait_until("the way back", "seen.join() === 'hidden,visible'").await;
    browser.end().await;
}

#[tokio::test]
async fn pages_of_one_browser_share_no_cookies() {
    let Some(browser) = Browser::start().await else { return };
    let url = serve(GOOD).await;
    let (ada, bob) = (browser.page().await, browser.page().await);
    ada.open(&url).await;
    bob.open(&url).await;
    ada.set_cookie("user", "ada").await;
    assert_eq!(ada.cookies().await[0]["value"], "ada");
    assert_eq!(bob.cookies().await.as_array().map(Vec::len), Some(0));
    browser.end().await;
}
