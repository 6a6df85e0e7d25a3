//! The programs that are servers, over TCP.

use std::net::SocketAddr;

use http_body_util::Full;
use hyper::{Request, StatusCode, body::Bytes};
use serde_json::{Value, json};

use crate::support::{
    http::{Answer, connect, get, send},
    process::{Ended, Process},
    recipe, within,
};

pub(crate) async fn post(to: SocketAddr, path: &str, body: Value) -> Answer {
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(Full::<Bytes>::from(body.to_string()));
    send(to, request.expect("a valid request")).await.expect("an answer")
}

/// Sends SIGTERM and waits for the end.
pub(crate) async fn ended(program: Process) -> Ended {
    program.terminate().await;
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    ended
}

pub(crate) fn count(ended: &Ended, text: &str) -> usize {
    ended.stdout.lines().filter(|line| *line == text).count()
}

#[tokio::test]
async fn fan_out_answers_with_the_prices_that_came() {
    let program = Process::start(&mut recipe!("fan_out"));
    let address = program.address().await;
    let answer = get(address, "/prices?within_ms=500").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let prices: Value = serde_json::from_str(&answer.text).expect("JSON");
    assert_eq!((&prices["acme"], &prices["beta"]), (&json!("799 cents"), &json!("849 cents")));
    let text = |supplier: &str| prices[supplier].as_str().expect("a text").to_owned();
    assert_eq!(text("gone"), "the job failed", "the cause is for the log");
    assert!(text("slow").contains("did not end within"), "{prices}");
    let ended = ended(program).await;
    assert_eq!(count(&ended, "the call of slow is dropped"), 1, "{ended:#?}");
}

#[tokio::test]
async fn client_that_leaves_takes_its_calls_along() {
    let program = Process::start(&mut recipe!("fan_out"));
    let address = program.address().await;
    let client =
        connect(address, "GET /prices?within_ms=3600000 HTTP/1.1\r\nhost: test\r\n\r\n").await;
    program.stdout.line_with("slow is asked").await;
    drop(client);
    program.stdout.line_with("the call of slow is dropped").await;
    ended(program).await;
}

#[tokio::test]
async fn repeated_webhook_is_booked_once() {
    let program = Process::start(&mut recipe!("webhook"));
    let address = program.address().await;
    let event = || json!({ "id": "evt_1", "cents": 5_000 });
    let (first, second) = tokio::join!(post(address, "/events", event()), async {
        program.stdout.line_with("booking evt_1").await;
        let second = post(address, "/events", event()).await;
        post(address, "/bank", json!({})).await;
        second
    });
    assert_eq!((first.status, second.status), (StatusCode::OK, StatusCode::CONFLICT));
    // The sender tries again, and later the bank is open.
    post(address, "/bank", json!({})).await;
    assert_eq!(post(address, "/events", event()).await.status, StatusCode::OK);
    assert_eq!(get(address, "/sum").await.text, "5000");

    let failed = post(address, "/events", json!({ "id": "evt_2", "cents": 0 })).await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR, "{failed:?}");
    assert!(!failed.text.contains("no money"), "{failed:?}");
    let repeated = post(address, "/events", json!({ "id": "evt_2", "cents": 7 })).await;
    assert_eq!(repeated.status, StatusCode::OK, "{repeated:?}");
    assert_eq!(get(address, "/sum").await.text, "5007");
    ended(program).await;
}

#[tokio::test]
async fn webhook_of_a_sender_that_leaves_is_booked() {
    let program = Process::start(&mut recipe!("webhook"));
    let address = program.address().await;
    let event = r#"{"id":"evt_1","cents":5000}"#;
    let head =
        format!("host: test\r\ncontent-type: application/json\r\ncontent-length: {}", event.len());
    let sender = connect(address, &format!("POST /events HTTP/1.1\r\n{head}\r\n\r\n{event}")).await;
    program.stdout.line_with("booking evt_1").await;
    drop(sender);
    post(address, "/bank", json!({})).await;
    let booked = async {
        while get(address, "/sum").await.text != "5000" {
            tokio::task::yield_now().await;
        }
    };
    within("the booking", booked).await;
    ended(program).await;
}

#[tokio::test]
async fn urgent_job_overtakes_a_backlog_of_reports() {
    let program = Process::start(&mut recipe!("priorities"));
    let address = program.address().await;
    for _ in 0..5 {
        let answer = post(address, "/reports", json!({})).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    }
    let answer = post(address, "/password-resets", json!({})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    program.stdout.line_with("password reset sent").await;
    let so_far = program.stdout.so_far();
    let begun = so_far.iter().filter(|line| *line == "report begins").count();
    assert!(begun <= 2, "{so_far:#?}");
    let ended = ended(program).await;
    assert_eq!(count(&ended, "report saved half-way"), 5, "{ended:#?}");
    assert_eq!(count(&ended, "report ready"), 0, "{ended:#?}");
}
