//! `JobsLayer` on the routers of axum: the scheduler that a handler sees.
//!
//! Row 32 of aiojobs: `nested_router_has_its_own_scheduler_if_it_has_a_layer` and
//! `nested_router_has_its_parents_scheduler_otherwise`.

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    middleware::{Next, from_fn},
    response::Response,
    routing::{MethodRouter, get},
};
use tower::ServiceBuilder;
use tower_jobs::{Jobs, JobsLayer, Scheduler, SpawnError};

use crate::support::oneshot::{call, text};

const OUTER: &str = "outer";
const INNER: &str = "inner";
const NONE: &str = "none";

/// A layer that labels its requests with its name.
fn layer(name: &'static str) -> JobsLayer {
    JobsLayer::new(Scheduler::new()).label(move |_, _, _| Some(name.to_owned()))
}

/// Answers with the name of the layer it sees.
async fn seen(jobs: Option<Jobs>) -> String {
    jobs.map_or(NONE.to_owned(), |jobs| jobs.label().to_owned())
}

fn route(path: &str) -> Router {
    Router::new().route(path, get(seen))
}

async fn assert_seen(app: &Router, path: &str, expected: &str) {
    assert_seen_by(app, "GET", path, expected).await;
}

async fn assert_seen_by(app: &Router, method: &str, path: &str, expected: &str) {
    let seen = text(call(app.clone(), method, path).await).await;
    assert_eq!(seen, expected, "{method} {path}");
}

#[tokio::test]
async fn nested_router_has_its_own_scheduler_if_it_has_a_layer() {
    let app = route("/").nest("/api", route("/jobs").layer(layer(INNER))).layer(layer(OUTER));
    assert_seen(&app, "/api/jobs", INNER).await;
    assert_seen(&app, "/", OUTER).await;
}

#[tokio::test]
async fn nested_router_has_its_parents_scheduler_otherwise() {
    let app = route("/").nest("/api", route("/jobs")).layer(layer(OUTER));
    assert_seen(&app, "/api/jobs", OUTER).await;
}

#[tokio::test]
async fn nested_service_is_no_different() {
    let inner = route("/own").layer(layer(INNER)).merge(route("/parents"));
    let app = Router::new().nest_service("/api", inner).layer(layer(OUTER));
    assert_seen(&app, "/api/own", INNER).await;
    assert_seen(&app, "/api/parents", OUTER).await;
}

#[tokio::test]
async fn unmatched_path_under_a_nest_sees_the_outer_layer() {
    let inner = route("/jobs").layer(layer(INNER));
    let app = Router::new().nest("/api", inner).fallback(seen).layer(layer(OUTER));
    assert_seen(&app, "/api/nowhere", OUTER).await;
    assert_seen(&app, "/api/jobs", INNER).await;
}

#[tokio::test]
async fn fallback_sees_the_layer_of_its_own_router() {
    let inner = route("/jobs").fallback(seen).layer(layer(INNER));
    let app = Router::new().nest("/api", inner).fallback(seen).layer(layer(OUTER));
    assert_seen(&app, "/api/nowhere", INNER).await;
    assert_seen(&app, "/nowhere", OUTER).await;
}

#[tokio::test]
async fn fallback_for_other_methods_sees_the_layer() {
    let methods: MethodRouter = get(seen).fallback(seen);
    let app = Router::new().route("/", methods).layer(layer(OUTER));
    assert_seen_by(&app, "DELETE", "/", OUTER).await;
}

#[tokio::test]
async fn merged_routers_keep_their_own_layers() {
    let app = route("/a").layer(layer(INNER)).merge(route("/b")).layer(layer(OUTER));
    assert_seen(&app, "/a", INNER).await;
    assert_seen(&app, "/b", OUTER).await;
}

#[tokio::test]
async fn of_two_layers_on_one_router_the_inner_wins() {
    let app = route("/").layer(layer(INNER)).layer(layer(OUTER));
    assert_seen(&app, "/", INNER).await;
    // In a `ServiceBuilder` the first is the outermost.
    let app = route("/").layer(ServiceBuilder::new().layer(layer(OUTER)).layer(layer(INNER)));
    assert_seen(&app, "/", INNER).await;
}

#[tokio::test]
async fn route_layer_serves_the_routes_and_not_the_fallback() {
    let app = route("/").fallback(seen).route_layer(layer(OUTER));
    assert_seen(&app, "/", OUTER).await;
    assert_seen(&app, "/nowhere", NONE).await;
}

#[tokio::test]
async fn layer_on_methods_serves_only_those() {
    let methods = get(seen).layer(layer(INNER)).post(seen);
    let app = Router::new().route("/", methods);
    assert_seen_by(&app, "GET", "/", INNER).await;
    assert_seen_by(&app, "POST", "/", NONE).await;
}

#[tokio::test]
async fn middleware_inside_the_layer_sees_it_and_outside_does_not() {
    async fn middleware(jobs: Option<Jobs>, request: Request, next: Next) -> Response {
        let mut response = next.run(request).await;
        let seen = if jobs.is_some() { StatusCode::OK } else { StatusCode::IM_A_TEAPOT };
        *response.status_mut() = seen;
        response
    }
    let inside = route("/").layer(from_fn(middleware)).layer(layer(OUTER));
    assert_eq!(call(inside, "GET", "/").await.status(), StatusCode::OK);
    let outside = route("/").layer(layer(OUTER)).layer(from_fn(middleware));
    assert_eq!(call(outside, "GET", "/").await.status(), StatusCode::IM_A_TEAPOT);
}

// Two schedulers.

struct Mail;

#[tokio::test]
async fn marker_separates_two_schedulers_on_one_route() {
    async fn handler(plain: Jobs, mail: Jobs<Mail>) -> Result<StatusCode, SpawnError> {
        plain.job("plain").spawn(std::future::pending::<()>()).await?;
        mail.job("mail").spawn(std::future::pending::<()>()).await?;
        Ok(StatusCode::ACCEPTED)
    }
    let (plain, mail) = (Scheduler::new(), Scheduler::new());
    let app = Router::new()
        .route("/signup", get(handler))
        .layer(JobsLayer::<Mail>::with_marker(mail.clone()))
        .layer(JobsLayer::new(plain.clone()));

    assert_eq!(call(app, "GET", "/signup").await.status(), StatusCode::ACCEPTED);

    for (scheduler, name) in [(plain, "plain"), (mail, "mail")] {
        let jobs = scheduler.jobs();
        assert_eq!(jobs.len(), 1, "one each");
        assert_eq!(jobs[0].name, name);
        assert_eq!(jobs[0].request.as_deref(), Some("GET /signup"));
    }
}

#[tokio::test]
async fn marker_has_a_label_and_an_innermost_layer_of_its_own() {
    async fn seen(plain: Jobs, mail: Jobs<Mail>) -> String {
        format!("{} {}", plain.label(), mail.label())
    }
    let mail = |name: &'static str| {
        let layer = JobsLayer::<Mail>::with_marker(Scheduler::new());
        layer.label(move |_, _, _| Some(name.to_owned()))
    };
    let inner = Router::new().route("/jobs", get(seen)).layer(mail("inner mail"));
    let app = Router::new().nest("/api", inner).layer(layer(OUTER)).layer(mail("outer mail"));
    assert_seen(&app, "/api/jobs", "outer inner mail").await;
}

#[tokio::test]
async fn every_request_has_a_scope_of_its_own() {
    async fn handler(jobs: Jobs) -> String {
        jobs.clone().label().to_owned()
    }
    let app = Router::new()
        .route("/{id}", get(handler))
        .layer(JobsLayer::new(Scheduler::new()).label(|_, uri, _| Some(uri.path().to_owned())));
    assert_seen(&app, "/1", "/1").await;
    assert_seen(&app, "/2", "/2").await;
}
