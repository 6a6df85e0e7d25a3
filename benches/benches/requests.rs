//! What the layer costs a request, beside the same router without it, in the same run: in process,
//! without a socket, so that nothing hides it.

#![allow(clippy::print_stdout, reason = "the table is the benchmark's output")]

use std::time::Instant;

use axum::{Router, body::Body, routing::get};
use http::Request;
use tower::ServiceExt;
use tower_jobs::{Jobs, JobsLayer};
use tower_jobs_benches::{Flavour, is_brief, noop, scheduler};

const NAMES: [&str; 5] = [
    "no layer",
    "the layer, unused",
    "no layer, tokio::spawn in the handler",
    "the layer, a job in the handler",
    "the layer, a job after the response",
];

fn routers() -> [Router; 5] {
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
        layered(hello),
        bare(Router::new().route("/", spawning)),
        layered(Router::new().route("/", with_job)),
        layered(Router::new().route("/", after)),
    ]
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
    begun.elapsed().as_nanos() as f64 / requests as f64
}

fn main() {
    let (rounds, requests) = if is_brief() { (2, 200) } else { (41, 5_000) };
    println!("\n## Requests, in process\n");
    for flavour in Flavour::ALL {
        let runtime = flavour.runtime();
        let routers = routers();
        let mut times = [const { Vec::new() }; 5];
        for round in 0..rounds {
            for turn in 0..routers.len() {
                let who = (round + turn) % routers.len();
                let router = &routers[who];
                times[who].push(runtime.block_on(time(router, requests)));
            }
        }
        println!(
            "| {}, median of {rounds} rounds | ns for a request | more than without |",
            flavour.name()
        );
        println!("|---|---:|---:|");
        let medians = times.map(median);
        for (name, median) in NAMES.iter().zip(medians) {
            println!("| {name} | {median:.0} | {:.0} |", median - medians[0]);
        }
        println!();
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
