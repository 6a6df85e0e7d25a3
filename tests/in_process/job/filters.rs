//! What is in the log of a job under the filters that applications set.

use std::io;

use http::Request;
use tower::{ServiceExt, service_fn};
use tower_jobs::{Jobs, JobsLayer, Scheduler};
use tower_layer::Layer as _;
use tracing_subscriber::{Layer as _, filter::Targets};

use crate::support::logs::{Event, Logs, subscribe};

/// The events, under this filter, of a job that logs an error and then fails.
async fn events(filter: &str) -> [Event; 2] {
    let logs = Logs::default();
    let filter: Targets = filter.parse().unwrap();
    let _guard = subscribe(logs.clone().with_filter(filter));
    let scheduler = Scheduler::new();
    let service =
        JobsLayer::new(scheduler.clone()).layer(service_fn(async |request: Request<()>| {
            let jobs = request.extensions().get::<Jobs>().expect("the layer is there");
            let job = jobs.job("welcome e-mail").concurrency_key("tenant-7").spawn(async {
                tracing::error!(target: "my_app", "the server said 550");
                Err::<(), _>(io::Error::other("no mail today"))
            });
            drop(job.await.unwrap());
            Ok::<_, io::Error>(http::Response::new(String::new()))
        }));
    service.oneshot(Request::post("/signup").body(()).unwrap()).await.unwrap();
    scheduler.wait_idle().await;
    logs.iter().collect::<Vec<_>>().try_into().unwrap()
}

fn assert_complete(failure: &Event) {
    assert_eq!((failure.field("level"), failure.field("target")), ("ERROR", "tower_jobs"));
    assert_eq!(failure.field("message"), "the job failed: no mail today");
    assert_eq!(failure.field("job.name"), "welcome e-mail");
    assert_eq!(failure.field("job.request"), "POST");
    assert_eq!(failure.field("job.key"), "tenant-7");
    assert!(failure.field("job.id").parse::<tower_jobs::JobId>().is_ok(), "{failure:?}");
    assert!(failure.field("job.location").starts_with(file!()), "{failure:?}");
}

#[tokio::test]
async fn failure_has_all_fields_under_a_filter_of_warn() {
    let [inside, failure] = events("warn").await;
    assert_eq!((inside.field("message"), inside.field("spans")), ("the server said 550", ""));
    assert_complete(&failure);
}

#[tokio::test]
async fn lines_of_a_job_name_it_under_the_filter_of_the_docs() {
    let [inside, failure] = events("warn,tower_jobs=info").await;
    assert_eq!((inside.field("message"), inside.field("spans")), ("the server said 550", "job"));
    assert_eq!(inside.field("span.name"), "welcome e-mail");
    assert_eq!(inside.field("span.request"), "POST");
    assert_complete(&failure);
}
