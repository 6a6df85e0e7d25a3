//! What an exporter gets of requests and their jobs.
#![allow(clippy::disallowed_methods, reason = "the times of spans are those of the system")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    future::pending,
    process::Command,
    time::{Duration, SystemTime},
};

use axum::http::StatusCode;
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{Link, SpanId, SpanKind, Status, TraceId},
};
use opentelemetry_sdk::trace::{
    InMemorySpanExporter, Sampler, SamplingResult, SdkTracerProvider, ShouldSample, SpanData,
};
use tokio::{
    sync::oneshot,
    time::{advance, timeout},
};
use tower_jobs::{Scheduler, SchedulerBuilder, SpanLink};
use tower_jobs_otel_example::{LinkBased, app, call, provider, subscriber};
use tracing::{info_span, subscriber::DefaultGuard};

const SECOND: Duration = Duration::from_secs(1);
const PLENTY: Duration = Duration::from_secs(60);

/// The spans that this thread exports.
struct Exported {
    exporter: InMemorySpanExporter,
    _provider: SdkTracerProvider,
    _subscribed: DefaultGuard,
}

impl Exported {
    fn start(sampler: impl ShouldSample + 'static) -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = provider(&exporter, sampler);
        let subscribed = tracing::subscriber::set_default(subscriber(&provider));
        Self { exporter, _provider: provider, _subscribed: subscribed }
    }

    fn names(&self) -> Vec<String> {
        let spans = self.exporter.get_finished_spans().unwrap();
        let mut names: Vec<_> = spans.into_iter().map(|span| span.name.into_owned()).collect();
        names.sort();
        names
    }

    #[track_caller]
    fn get(&self, name: &str) -> SpanData {
        let spans = self.exporter.get_finished_spans().unwrap();
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no {name:?} in {spans:#?}")).clone()
    }
}

fn attribute<'a>(span: &'a SpanData, key: &str) -> Option<&'a Value> {
    let mut all = span.attributes.iter();
    all.find(|attribute| attribute.key.as_str() == key).map(|attribute| &attribute.value)
}

fn text(span: &SpanData, key: &str) -> String {
    attribute(span, key).map_or(String::new(), |value| value.as_str().into_owned())
}

/// Sends one request, and waits for its job.
async fn serve(builder: SchedulerBuilder, path: &str) {
    let scheduler = builder.on_failure(drop).build();
    assert_eq!(call(app(scheduler.clone()), path).await, StatusCode::ACCEPTED);
    scheduler.wait_idle().await;
}

// Link and child.

#[tokio::test]
async fn job_has_a_trace_of_its_own_with_a_link_to_its_request() {
    let exported = Exported::start(Sampler::AlwaysOn);
    serve(Scheduler::builder(), "/signup").await;

    let (request, job) = (exported.get("POST /signup"), exported.get("welcome e-mail"));
    assert_eq!(job.parent_span_id, SpanId::INVALID);
    assert_ne!(job.span_context.trace_id(), request.span_context.trace_id());
    let links: Vec<_> = job.links.iter().map(|link| &link.span_context).collect();
    assert_eq!(links, [&request.span_context]);
}

#[tokio::test]
async fn child_job_is_in_the_trace_of_its_request() {
    let exported = Exported::start(Sampler::AlwaysOn);
    serve(Scheduler::builder().span(SpanLink::Child), "/signup").await;

    let (request, job) = (exported.get("POST /signup"), exported.get("welcome e-mail"));
    assert_eq!(job.parent_span_id, request.span_context.span_id());
    assert_eq!(job.span_context.trace_id(), request.span_context.trace_id());
    assert!(job.links.is_empty());
}

#[tokio::test]
async fn request_with_a_child_job_is_exported_after_it_and_ends_before() {
    let exported = Exported::start(Sampler::AlwaysOn);
    let scheduler = Scheduler::builder().span(SpanLink::Child).build();
    let (release, released) = oneshot::channel::<()>();
    let job = async { drop(released.await) };
    let request = info_span!("request");
    let job = request.in_scope(|| scheduler.job("mail").try_spawn(job)).unwrap();
    drop(request);
    tokio::task::yield_now().await;
    assert!(exported.names().is_empty(), "the request waits for its child");

    let over = SystemTime::now();
    release.send(()).unwrap();
    job.await.unwrap();
    assert_eq!(exported.names(), ["mail", "request"]);
    assert!(exported.get("request").end_time <= over && exported.get("mail").end_time >= over);
}

// Attributes.

#[tokio::test]
async fn job_has_its_id_name_request_location_and_outcome() {
    let exported = Exported::start(Sampler::AlwaysOn);
    serve(Scheduler::builder(), "/signup").await;

    let job = exported.get("welcome e-mail");
    assert!(text(&job, "id").parse::<tower_jobs::JobId>().is_ok());
    assert_eq!(text(&job, "name"), "welcome e-mail");
    assert_eq!(text(&job, "request"), "POST /signup");
    assert!(text(&job, "location").contains("src/lib.rs:"), "{job:?}");
    assert_eq!((text(&job, "outcome"), &job.status), ("completed".to_owned(), &Status::Unset));
    assert!(attribute(&job, "queued").is_some());
    assert_eq!(attribute(&job, "code.file.path"), None);
}

#[tokio::test(start_paused = true)]
async fn span_is_from_the_spawn_to_the_end_and_has_the_queue_time() {
    let exported = Exported::start(Sampler::AlwaysOn);
    let scheduler = Scheduler::builder().limit(1).build();
    let (release, released) = oneshot::channel::<()>();
    drop(scheduler.try_spawn(async { drop(released.await) }).unwrap());

    let before_spawn = SystemTime::now();
    let queued = scheduler.job("queued").try_spawn(async { SystemTime::now() }).unwrap();
    let after_spawn = SystemTime::now();
    advance(3 * SECOND).await;
    release.send(()).unwrap();
    let running = queued.await.unwrap();
    let after_end = SystemTime::now();

    let job = exported.get("queued");
    assert!((before_spawn..=after_spawn).contains(&job.start_time), "{job:?}");
    assert!((running..=after_end).contains(&job.end_time), "{job:?}");
    assert_eq!(attribute(&job, "queued"), Some(&Value::F64(3.0)));
}

// Status.

async fn fail() -> Result<(), &'static str> {
    Err("no mail today")
}

async fn panic() {
    panic!("boom");
}

#[tokio::test(start_paused = true)]
async fn each_failure_is_an_error_with_its_text() {
    let exported = Exported::start(Sampler::AlwaysOn);
    let scheduler = Scheduler::builder().on_failure(drop).build();
    drop(scheduler.job("fails").try_spawn(fail()).unwrap());
    drop(scheduler.job("panics").try_spawn(panic()).unwrap());
    drop(scheduler.job("is slow").timeout(SECOND).try_spawn(pending::<()>()).unwrap());
    timeout(PLENTY, scheduler.wait_idle()).await.unwrap();

    for (name, outcome, error) in [
        ("fails", "failed", "the job failed: no mail today"),
        ("panics", "panicked", "the job panicked: boom"),
        ("is slow", "timed_out", "the job ran longer than its timeout of 1s"),
    ] {
        let job = exported.get(name);
        assert_eq!(job.status, Status::error(error));
        assert_eq!(text(&job, "outcome"), outcome);
    }
}

#[tokio::test]
async fn awaited_failure_is_an_error_too() {
    let exported = Exported::start(Sampler::AlwaysOn);
    let scheduler = Scheduler::new();
    let job = scheduler.job("mail").try_spawn(fail()).unwrap();
    assert!(job.await.is_err());
    assert_eq!(exported.get("mail").status, Status::error("the job failed: no mail today"));
}

#[tokio::test]
async fn job_that_never_started_has_no_error() {
    let exported = Exported::start(Sampler::AlwaysOn);
    let scheduler = Scheduler::builder().limit(1).build();
    drop(scheduler.try_spawn(pending::<()>()).unwrap());
    let aborted = scheduler.job("mail").try_spawn(async {}).unwrap();
    aborted.abort();
    tokio::task::yield_now().await;

    let job = exported.get("mail");
    assert_eq!((text(&job, "outcome"), &job.status), ("cancelled".to_owned(), &Status::Unset));
    assert_eq!(attribute(&job, "queued"), None);
}

// Samplers.

/// Samples all root spans but those of requests.
#[derive(Clone, Debug)]
struct NoRequest;

impl ShouldSample for NoRequest {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let is_request = *kind == SpanKind::Server;
        let sampler = if is_request { Sampler::AlwaysOff } else { Sampler::AlwaysOn };
        sampler.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

#[tokio::test]
async fn linked_job_is_sampled_by_itself() {
    let exported = Exported::start(Sampler::ParentBased(Box::new(NoRequest)));
    serve(Scheduler::builder(), "/signup").await;
    assert_eq!(exported.names(), ["welcome e-mail"], "the request was not sampled");
}

#[tokio::test]
async fn child_job_is_sampled_as_its_request() {
    let child = || Scheduler::builder().span(SpanLink::Child);
    let exported = Exported::start(Sampler::ParentBased(Box::new(NoRequest)));
    serve(child(), "/signup").await;
    assert!(exported.names().is_empty());

    drop(exported);
    let exported = Exported::start(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)));
    serve(child(), "/signup").await;
    assert_eq!(exported.names(), ["POST /signup", "welcome e-mail"]);
}

#[tokio::test]
async fn link_based_sampler_samples_a_job_as_its_request() {
    let exported = Exported::start(LinkBased(NoRequest));
    serve(Scheduler::builder(), "/signup").await;
    assert!(exported.names().is_empty());

    drop(exported);
    let exported = Exported::start(LinkBased(Sampler::AlwaysOn));
    serve(Scheduler::builder(), "/signup").await;
    assert_eq!(exported.names(), ["POST /signup", "welcome e-mail"]);
}

// The program.

#[test]
fn program_prints_both_ties() {
    let output = Command::new(env!("CARGO_BIN_EXE_tower-jobs-otel-example")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        printed,
        "FollowsFrom
  trace 1: POST /signup
  trace 2: welcome e-mail, linked to POST /signup
  trace 3: POST /import
  trace 4: import, linked to POST /import, error: the job failed: the file has no rows
Child
  trace 1: POST /signup
  trace 1: welcome e-mail, child of POST /signup
  trace 2: POST /import
  trace 2: import, child of POST /import, error: the job failed: the file has no rows
"
    );
}
