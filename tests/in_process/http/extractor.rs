//! `Jobs` as an axum extractor: labels, the rejection where the layer is missing, and refused
//! spawns as responses.
//!
//! Row 31 of aiojobs: `without_the_layer_the_answer_names_the_cure` and
//! `optional_jobs_are_none_without_the_layer_and_some_with_it`.

use std::{
    future::{Future, Ready, pending, ready},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode, header::RETRY_AFTER},
    response::IntoResponse,
    routing::get,
};
use tokio_test::assert_ready;
use tower::ServiceExt;
use tower_jobs::{Error, Jobs, JobsLayer, Scheduler, SpawnError, TrySpawnError};

use crate::support::{
    SECOND, limited,
    oneshot::{call, text},
};

struct Mail;

fn app<H, T>(handler: H, scheduler: &Scheduler) -> Router
where
    H: axum::handler::Handler<T, ()>,
    T: 'static,
{
    Router::new().route("/", get(handler)).layer(JobsLayer::new(scheduler.clone()))
}

// Labels.

/// Spawns a job that stays, and answers with its label.
async fn label(jobs: Jobs) -> String {
    let job = jobs.spawn(pending::<()>()).await.expect("a place");
    let label = job.info().request.expect("a request's job has a label").to_string();
    assert_eq!(jobs.label(), label);
    let listed = jobs.scheduler().jobs().into_iter().find(|listed| listed.id == job.id());
    assert_eq!(listed.expect("is listed").request.as_deref(), Some(label.as_str()));
    label
}

fn labelled() -> JobsLayer {
    JobsLayer::new(Scheduler::new())
}

fn users() -> Router {
    Router::new().route("/users/{id}", get(label))
}

#[tokio::test]
async fn job_is_labelled_with_its_requests_method_and_path() {
    let app = users().layer(labelled());
    let label = text(call(app, "GET", "/users/7?token=secret").await).await;
    assert_eq!(label, "GET /users/{id}");
}

#[tokio::test]
async fn label_has_the_full_path_of_a_nested_route() {
    let app = Router::new().nest("/api", Router::new().nest("/v1", users())).layer(labelled());
    let label = text(call(app, "GET", "/api/v1/users/7").await).await;
    assert_eq!(label, "GET /api/v1/users/{id}");
}

#[tokio::test]
async fn layer_inside_a_nested_router_labels_with_what_it_sees() {
    let app = Router::new().nest("/api", users().layer(labelled()));
    let label = text(call(app, "GET", "/api/users/7").await).await;
    // axum strips the prefix off the URI, not off the matched path.
    assert_eq!(label, "GET /api/users/{id}");
}

#[tokio::test]
async fn request_that_matched_no_route_is_labelled_by_method() {
    let app = Router::new().fallback(label).layer(labelled());
    assert_eq!(text(call(app, "GET", "/nowhere").await).await, "GET");
}

#[tokio::test]
async fn layer_around_the_whole_router_labels_by_method() {
    use tower::Layer;
    let request = Request::get("/users/7").body(Body::empty()).expect("a request");
    let response = labelled().layer(users()).oneshot(request).await.expect("infallible");
    assert_eq!(text(response.map(Body::new)).await, "GET");
}

#[tokio::test]
async fn label_by_path_is_the_path_without_its_query() {
    let app = users().layer(labelled().label_by_path());
    assert_eq!(text(call(app, "GET", "/users/7?token=secret").await).await, "GET /users/7");
}

#[tokio::test]
async fn label_may_be_ones_own() {
    let layer = labelled().label(|method, uri, _| {
        (!uri.path().ends_with("plain")).then(|| format!("{method} of a user"))
    });
    let app = users().layer(layer);
    assert_eq!(text(call(app.clone(), "GET", "/users/7").await).await, "GET of a user");
    let label = text(call(app, "GET", "/users/plain").await).await;
    assert_eq!(label, "GET /users/{id}");
}

// The layer is missing.

async fn plain(_: Jobs) {}
async fn marked(_: Jobs<Mail>) {}
async fn optional(jobs: Option<Jobs>, marked: Option<Jobs<Mail>>) -> String {
    format!("{} {}", jobs.is_some(), marked.is_some())
}

async fn assert_names_the_cure(app: Router, path: &str, layer: &str) {
    let response = call(app, "GET", path).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let text = text(response).await;
    assert!(text.contains(&format!(".layer({layer})")), "{text}");
    assert!(text.contains("after this route"), "{text}");
}

fn plain_and_marked() -> Router {
    Router::new().route("/plain", get(plain)).route("/marked", get(marked))
}

const NEW: &str = "JobsLayer::new(scheduler)";
const MARKED: &str = concat!("JobsLayer::<", module_path!(), "::Mail>::with_marker(scheduler)");

#[tokio::test]
async fn without_the_layer_the_answer_names_the_cure() {
    assert_names_the_cure(plain_and_marked(), "/plain", NEW).await;
    assert_names_the_cure(plain_and_marked(), "/marked", MARKED).await;
}

#[tokio::test]
async fn route_added_after_the_layer_answers_with_the_cure() {
    let app = Router::new()
        .route("/in-time", get(plain))
        .layer(JobsLayer::new(Scheduler::new()))
        .layer(JobsLayer::<Mail>::with_marker(Scheduler::new()))
        .merge(plain_and_marked());
    assert_eq!(call(app.clone(), "GET", "/in-time").await.status(), StatusCode::OK);
    assert_names_the_cure(app.clone(), "/plain", NEW).await;
    assert_names_the_cure(app, "/marked", MARKED).await;
}

#[tokio::test]
async fn layer_of_another_marker_is_none() {
    let plain_only = plain_and_marked().layer(JobsLayer::new(Scheduler::new()));
    assert_names_the_cure(plain_only, "/marked", MARKED).await;
    let marked_only = plain_and_marked().layer(JobsLayer::<Mail>::with_marker(Scheduler::new()));
    assert_names_the_cure(marked_only, "/plain", NEW).await;
}

#[tokio::test]
async fn optional_jobs_are_none_without_the_layer_and_some_with_it() {
    let route = || Router::new().route("/", get(optional));
    let layer = JobsLayer::new(Scheduler::new());
    let marked = JobsLayer::<Mail>::with_marker(Scheduler::new());

    assert_eq!(text(call(route(), "GET", "/").await).await, "false false");
    assert_eq!(text(call(route().layer(layer.clone()), "GET", "/").await).await, "true false");
    assert_eq!(text(call(route().layer(marked.clone()), "GET", "/").await).await, "false true");
    assert_eq!(text(call(route().layer(layer).layer(marked), "GET", "/").await).await, "true true");
}

// Refused.

fn assert_unavailable(response: impl IntoResponse) {
    let response = response.into_response();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[RETRY_AFTER], "1");
}

fn assert_all_unavailable(responses: impl IntoIterator<Item = Response<Body>>) {
    responses.into_iter().for_each(assert_unavailable);
}

fn assert_internal_error(response: impl IntoResponse) {
    let response = response.into_response();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!response.headers().contains_key(RETRY_AFTER), "retrying does not cure it");
}

#[test]
fn every_spawn_error_is_a_response() {
    assert_unavailable(SpawnError::Closed);
    assert_unavailable(SpawnError::Full);
    assert_unavailable(SpawnError::TimedOut);
    assert_internal_error(SpawnError::NoRuntime);
    assert_unavailable(TrySpawnError::Closed(Box::new(pending::<()>())));
    assert_unavailable(TrySpawnError::Full(Box::new(pending::<()>())));
    assert_internal_error(TrySpawnError::NoRuntime(Box::new(pending::<()>())));
}

#[tokio::test]
async fn response_to_a_refused_spawn_says_why() {
    let closed = text(SpawnError::Closed.into_response()).await;
    assert_eq!(closed, SpawnError::Closed.to_string());
    let full = text(TrySpawnError::Full(Box::new(())).into_response()).await;
    assert_eq!(full, SpawnError::Full.to_string());
}

async fn spawn(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    jobs.spawn(pending::<()>()).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn spawn_in_time(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    jobs.spawn_within(5 * SECOND, pending::<()>()).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn try_spawn(jobs: Jobs) -> Result<StatusCode, TrySpawnError<Ready<()>>> {
    jobs.try_spawn(ready(()))?;
    Ok(StatusCode::ACCEPTED)
}

async fn try_spawn_converted(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    jobs.try_spawn(pending::<()>())?;
    Ok(StatusCode::ACCEPTED)
}

/// The answer of each kind of handler.
async fn answers(scheduler: &Scheduler) -> [Response<Body>; 4] {
    [
        call(app(spawn, scheduler), "GET", "/").await,
        call(app(spawn_in_time, scheduler), "GET", "/").await,
        call(app(try_spawn, scheduler), "GET", "/").await,
        call(app(try_spawn_converted, scheduler), "GET", "/").await,
    ]
}

#[tokio::test]
async fn handler_may_return_either_error_with_a_question_mark() {
    for response in answers(&Scheduler::new()).await {
        assert_eq!(response.status(), StatusCode::ACCEPTED);
    }
}

#[tokio::test]
async fn closed_scheduler_makes_handlers_answer_503() {
    let scheduler = Scheduler::new();
    scheduler.close().await;
    assert_all_unavailable(answers(&scheduler).await);
}

#[tokio::test]
async fn full_scheduler_without_a_queue_makes_handlers_answer_503() {
    let scheduler = limited(1, 0);
    scheduler.try_spawn(pending::<()>()).expect("a place");
    assert_all_unavailable(answers(&scheduler).await);
}

#[tokio::test(start_paused = true)]
async fn spawn_that_waited_in_vain_makes_its_handler_answer_503() {
    let scheduler = limited(1, 1);
    scheduler.try_spawn(pending::<()>()).expect("a running place");
    scheduler.try_spawn(pending::<()>()).expect("a queue place");
    assert_unavailable(call(app(spawn_in_time, &scheduler), "GET", "/").await);
    assert_eq!(scheduler.stats().waiting_spawners, 0);
}

#[tokio::test]
async fn spawner_that_waits_at_close_answers_503() {
    let scheduler = limited(1, 1);
    scheduler.try_spawn(pending::<()>()).expect("a running place");
    scheduler.try_spawn(pending::<()>()).expect("a queue place");
    let mut waiting = tokio_test::task::spawn(call(app(spawn, &scheduler), "GET", "/"));
    tokio_test::assert_pending!(waiting.poll());
    scheduler.close().await;
    assert!(waiting.is_woken());
    assert_unavailable(waiting.await);
}

#[test]
fn handler_without_a_runtime_answers_500() {
    fn at_once(response: impl Future<Output = Response<Body>>) -> Response<Body> {
        assert_ready!(tokio_test::task::spawn(response).poll())
    }
    let scheduler = Scheduler::new();
    assert_internal_error(at_once(call(app(spawn, &scheduler), "GET", "/")));
    assert_internal_error(at_once(call(app(try_spawn, &scheduler), "GET", "/")));
    assert_internal_error(at_once(call(app(try_spawn_converted, &scheduler), "GET", "/")));
}

#[tokio::test]
async fn error_of_any_verb_is_a_response_without_the_jobs_text() {
    async fn handler(jobs: Jobs, path: http::Uri) -> Result<&'static str, Error> {
        match path.path() {
            "/panics" => {
                async fn panics() {
                    panic!("s3cr3t");
                }
                jobs.spawn(panics()).await?.await?;
            }
            "/late" => {
                let job = jobs.job("late").timeout(Duration::from_nanos(1));
                job.spawn(pending::<()>()).await?.await?;
            }
            "/cancelled" => {
                let job = jobs.spawn(pending::<()>()).await?;
                job.abort();
                job.await?;
            }
            "/waits" => drop(jobs.spawn(async { Err::<(), _>("s3cr3t") }).await?.await?),
            _ => {
                jobs.scheduler().close().await;
                jobs.try_spawn(async {})?.await?;
            }
        }
        Ok("well")
    }
    let layer = JobsLayer::new(Scheduler::builder().on_failure(drop).build());
    let app = Router::new().fallback(handler).layer(layer);
    for (path, status, retry, body) in [
        ("/waits", 500, false, "the job failed"),
        ("/panics", 500, false, "the job failed"),
        ("/late", 500, false, "the job took too long"),
        ("/cancelled", 503, true, "the job was cancelled"),
        ("/closed", 503, true, "the scheduler is closed and accepts no more jobs"),
    ] {
        let response = call(app.clone(), "GET", path).await;
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert_eq!(response.headers().contains_key("retry-after"), retry, "{path}");
        assert_eq!(text(response).await, body, "{path}");
    }
}
