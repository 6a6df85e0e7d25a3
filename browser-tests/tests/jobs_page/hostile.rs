//! Texts from outside are shown, and not obeyed.

use std::future::pending;

use axum::{Router, routing::post};
use tower_jobs::{Jobs, JobsLayer};
use tower_jobs_browser_tests::{Browser, Page};
use tower_jobs_dashboard::Dashboard;

use crate::served::{named, open, serve_beside, shows};

const NAME: &str = "<img src=x onerror=hacked=1>";
const KEY: &str = "\"><script>hacked=1</script>";
const ERROR: &str =
    "</pre></td><script>hacked=1</script><svg onload=hacked=1>\n\u{202e}gpj\u{1b}[31m";
const REQUEST: &str = "POST /<iframe srcdoc='<script>parent.hacked=1</script>'>";
const SCHEDULER: &str = "<b onclick=hacked=1>mail</b>";

async fn order(jobs: Jobs) {
    let job = || jobs.job(NAME).concurrency_key(KEY);
    job().try_spawn(async { Err::<(), _>(ERROR) }).expect("open");
    for _ in 0..3 {
        job().try_spawn(pending::<()>()).expect("open");
    }
}

/// Nothing was made of the texts, and nothing ran.
async fn assert_harmless(page: &Page) {
    assert_eq!(page.eval("typeof hacked").await, "undefined");
    let made =
        "document.querySelectorAll('img, iframe, body script, main b[onclick], svg[onload]')";
    assert_eq!(page.eval(&format!("{made}.length")).await, 0);
    assert_eq!(page.eval("violations.length").await, 0);
    page.assert_no_console_errors().await;
}

#[tokio::test]
async fn hostile_texts_are_text_in_every_part() {
    let Some(browser) = Browser::start().await else { return };
    let mail = named(SCHEDULER).limit(2).build();
    let app = Router::new()
        .route("/order", post(order))
        .layer(JobsLayer::new(mail.clone()).label(|_, _, _| Some(REQUEST.to_owned())));
    let dashboard = Dashboard::new(&mail).and(&named("other").build()).app(NAME).host(KEY);
    let page = browser.page().await;
    open(&page, &serve_beside(dashboard.live_drain(), app).await).await;
    page.eval("void (window.violations = [], document.addEventListener('securitypolicyviolation', violation => violations.push(violation)))").await;
    let sent = "fetch('/order', { method: 'POST' }).then(answer => answer.status)";
    assert_eq!(page.eval(sent).await, 200);
    shows(&page, "h1", NAME).await;
    shows(&page, "#meta", KEY).await;
    shows(&page, "#tabs", SCHEDULER).await;
    shows(
        &page,
        "#failures-body",
        "<script>hacked=1</script><svg onload=hacked=1>\\n\\u{202e}gpj\\u{1b}[31m",
    )
    .await;
    page.click("#failures summary").await;
    for text in [NAME, REQUEST, KEY] {
        shows(&page, "#failures dl", text).await;
        shows(&page, "#running-body", text).await;
    }
    shows(&page, "#names-body", NAME).await;
    shows(&page, "#gauges", NAME).await;
    shows(&page, "#verdict", "1 failure in 15 min, <img src=x onerror=hacked=1>").await;
    page.fill("#find", "<img").await;
    shows(&page, "#found-body", KEY).await;
    assert_harmless(&page).await;
    mail.start_draining();
    shows(&page, "#drain", NAME).await;
    assert_harmless(&page).await;
    mail.close().await;
    shows(&page, "#drain .lostjobs", REQUEST).await;
    assert_harmless(&page).await;
    browser.end().await;
}
