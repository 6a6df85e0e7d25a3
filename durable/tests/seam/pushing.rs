use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode, header::RETRY_AFTER},
    routing::post,
};
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_jobs_durable::{Durable, Outbox, PushError, PushOptions};

use super::{Mail, memory::Memory};

async fn push(outbox: Outbox) -> Result<StatusCode, PushError> {
    outbox.push(Mail::new("ada")).await?;
    Ok(StatusCode::CREATED)
}

async fn push_once(outbox: Outbox) -> Result<StatusCode, PushError> {
    outbox.push_with(Mail::new("ada"), PushOptions::new().unique_key("taken")).await?;
    Ok(StatusCode::CREATED)
}

fn app(durable: &Durable) -> Router {
    Router::new()
        .route("/users/{id}", post(push))
        .route("/once", post(push_once))
        .layer(durable.layer())
        .route("/outside", post(push))
}

async fn ask(app: Router, path: &str) -> (StatusCode, Option<String>, String) {
    let request =
        Request::post(path).header("traceparent", "00-a-b-01").header("tracestate", "v=1");
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let retry = response.headers().get(RETRY_AFTER).map(|after| after.to_str().unwrap().to_owned());
    let status = response.status();
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    (status, retry, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn job_carries_the_label_and_trace_of_its_request() {
    let memory = Memory::default();
    let durable = Durable::builder(memory.clone()).start();
    assert_eq!(ask(app(&durable), "/users/7").await.0, StatusCode::CREATED);
    let stored: Value = serde_json::from_slice(&memory.stored()[0].payload).unwrap();
    let note =
        json!({ "label": "POST /users/{id}", "traceparent": "00-a-b-01", "tracestate": "v=1" });
    assert_eq!(stored, json!({ "to": "ada", "_tower_jobs": note }));
}

#[tokio::test]
async fn refused_push_is_a_response() {
    let memory = Memory::default();
    let durable = Durable::builder(memory.clone()).start();
    let (status, _, body) = ask(app(&durable), "/once").await;
    assert_eq!((status, body.as_str()), (StatusCode::CONFLICT, "job 1 has the same unique key"));
    memory.go_away();
    let (status, retry, body) = ask(app(&durable), "/users/7").await;
    assert_eq!((status, retry.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    assert!(!body.contains("route"), "the store's own text is in the body: {body}");
}

#[tokio::test]
async fn route_outside_the_layer_names_the_cure() {
    let durable = Durable::builder(Memory::default()).start();
    let (status, _, body) = ask(app(&durable), "/outside").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains("add `.layer(durable.layer())`"), "{body}");
}
