//! What the layer costs a request, beside the same router without it, in the same run: in process,
//! without a socket, so that nothing hides it. The routers are made ready as `axum::serve` makes
//! them: left to itself, a router puts its layers around its routes again for each request.

use std::time::Instant;

use axum::{Router, body::Body, routing::get};
use http::Request;
use tower::{ServiceExt, layer::util::Identity};
use tower_jobs::{Jobs, JobsLayer};
use tower_jobs_benches::{
    Chart, Flavour, Report, Table, Times, is_brief, noop, per_job, scheduler,
};

const NAMES: [&str; 6] = [
    "no layer",
    "a layer that does nothing",
    "**the layer**, unused",
    "no layer, `tokio::spawn` in the handler",
    "**the layer**, a job in the handler",
    "**the layer**, a job after the response",
];

fn routers() -> [Router; 6] {
    let bare = |router: Router| router;
    let layered = |router: Router| router.layer(JobsLayer::new(scheduler(None)));
    let hello = Router::new().route("/", get(async || "hello"));
    let spawning = get(async || {
        drop(tokio::spawn(noop()));
        "hello"
    });
    let with_job = get(async |jobs: Jobs| {
        drop(jobs.try_spawn(noop()).expect("no limit"));
        "hello"
    });
    let after = get(async |jobs: Jobs| {
        drop(jobs.after_response(noop()).expect("no limit"));
        "hello"
    });
    [
        bare(hello.clone()),
        hello.clone().layer(Identity::new()),
        layered(hello),
        bare(Router::new().route("/", spawning)),
        layered(Router::new().route("/", with_job)),
        layered(Router::new().route("/", after)),
    ]
    .map(|router| router.with_state(()))
}

/// Nanoseconds for each request.
async fn time(router: &Router, requests: usize) -> f64 {
    let begun = Instant::now();
    for n in 0..requests {
        let request = Request::get("/").body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("infallible");
        axum::body::to_bytes(response.into_body(), 64).await.expect("a body");
        if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    per_job(begun.elapsed(), requests)
}

fn main() {
    let (rounds, requests) = if is_brief() { (2, 200) } else { (41, 5_000) };
    let mut report = Report::new("requests");
    for flavour in Flavour::ALL {
        let runtime = flavour.runtime();
        let routers = routers();
        let times =
            Times::take(&NAMES, rounds, |who| runtime.block_on(time(&routers[who], requests)));
        let title = format!("Requests in process, {}", flavour.name());
        report.heading(&title);
        let mut table = Table::new(["", "ns for a request", "more than without"]);
        for (name, median) in times.medians() {
            let more = times.more(name, NAMES[0]).expect("all take part");
            table.row([name.to_owned(), format!("{median:.0}"), format!("{more:.0}")]);
        }
        report.table(&table);
        let chart = Chart::bars(title, "ns for a request, median; less is better", times.medians());
        report.chart(flavour.name(), &chart);
    }
    report.finish();
}
