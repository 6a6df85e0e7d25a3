//! `examples/status.rs` as a process: the status of a job for the client that ordered it.

use std::{collections::BTreeSet, net::SocketAddr};

use http_body_util::Full;
use hyper::{Request, StatusCode, body::Bytes};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use crate::support::{
    http::{Answer, send},
    process::{Process, empty_folder, example},
    within,
};

async fn call(to: SocketAddr, method: &str, path: &str, user: &str, body: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).header("x-user", user);
    let request = request.body(Full::<Bytes>::from(body.to_owned())).unwrap();
    send(to, request).await.expect("the program answers")
}

/// Orders so many pages, and gives the place of the status.
async fn order(to: SocketAddr, user: &str, pages: u32) -> String {
    let answer = call(to, "POST", "/exports", user, &pages.to_string()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    answer.headers["location"].to_str().unwrap().to_owned()
}

/// Asks until the export has ended. Gives all answers.
async fn followed(to: SocketAddr, user: &str, place: &str) -> Vec<Value> {
    let mut seen = Vec::new();
    let asking = async {
        loop {
            let answer = call(to, "GET", place, user, "").await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            let status: Value = serde_json::from_str(&answer.text).unwrap();
            let is_over = status["state"] == "completed" || status["state"] == "failed";
            seen.push(status);
            if is_over {
                return;
            }
            sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within("the end of the export", asking).await;
    seen
}

#[tokio::test]
async fn ten_clients_follow_their_exports_to_the_end() {
    let program = Process::start(&mut example("status", &empty_folder("status")));
    let address = program.address().await;
    let mut clients = JoinSet::new();
    for n in 0..10 {
        clients.spawn(async move {
            let user = format!("user-{n}");
            let place = order(address, &user, 3 + n).await;
            let stranger = call(address, "GET", &place, "stranger", "").await;
            assert_eq!(stranger.status, StatusCode::NOT_FOUND);
            let seen = followed(address, &user, &place).await;
            let progress: Vec<_> =
                seen.iter().filter_map(|status| status["progress"].as_f64()).collect();
            assert!(progress.is_sorted() && progress.len() > 2, "{seen:?}");
            let last = json!({
                "state": "completed", "progress": 1.0, "result": format!("{place}/result"),
            });
            assert_eq!(seen.last(), Some(&last));
            let result = call(address, "GET", &format!("{place}/result"), &user, "").await;
            assert_eq!((result.status, &*result.text), (StatusCode::OK, "the pages\n"));
            place
        });
    }
    let places: BTreeSet<String> = clients.join_all().await.into_iter().collect();
    assert_eq!(places.len(), 10, "an id of its own each");
    program.terminate().await;
    assert_eq!(program.ended().await.code, Some(0));
}

#[tokio::test]
async fn failed_unknown_and_refused_exports_say_so() {
    let program = Process::start(&mut example("status", &empty_folder("status-errors")));
    let address = program.address().await;
    let place = order(address, "ada", 14).await;
    let seen = followed(address, "ada", &place).await;
    let error = "the job failed: page 13 is missing";
    assert_eq!(seen.last(), Some(&json!({ "state": "failed", "error": error })));
    for (method, path, user, body, status) in [
        ("GET", "/exports/1-0f3a9", "ada", "", StatusCode::NOT_FOUND),
        ("GET", &*place, "", "", StatusCode::UNAUTHORIZED),
        ("POST", "/exports", "ada", "0", StatusCode::UNPROCESSABLE_ENTITY),
        ("POST", "/exports", "ada", "many", StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let answer = call(address, method, path, user, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
}
