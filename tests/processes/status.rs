//! `examples/status.rs` as a process: the status of a job for the client that ordered it.

use std::{collections::BTreeSet, net::SocketAddr};

use http_body_util::Full;
use hyper::{Request, StatusCode, body::Bytes};
use serde_json::{Value, json};
use tokio::{process::Command, task::JoinSet, time::sleep};

use crate::support::{
    http::{Answer, get, send},
    process::{Process, empty_folder, example},
    within,
};

fn status(folder: &str) -> Command {
    let mut command = example("status", &empty_folder(folder));
    command.env_remove("REMEMBER");
    command
}

async fn call(to: SocketAddr, method: &str, path: &str, cookie: &str, body: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).header("cookie", cookie);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let request = request.body(Full::<Bytes>::from(body.to_owned())).unwrap();
    send(to, request).await.expect("the program answers")
}

/// Orders so many pages, and gives the place of the status.
async fn order(to: SocketAddr, cookie: &str, pages: u32) -> String {
    let answer = call(to, "POST", "/exports", cookie, &format!("name=Orders&pages={pages}")).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let place = answer.headers["location"].to_str().unwrap().to_owned();
    let body: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(body, json!({ "state": "waiting", "status": place }));
    place
}

/// Asks until the export has ended. Gives all answers.
async fn followed(to: SocketAddr, cookie: &str, place: &str) -> Vec<Value> {
    let mut seen = Vec::new();
    let asking = async {
        loop {
            let answer = call(to, "GET", place, cookie, "").await;
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

/// The error that the client reads.
async fn error_of(to: SocketAddr, pages: u32) -> String {
    let place = order(to, "user=ada", pages).await;
    let last = followed(to, "user=ada", &place).await.pop().unwrap();
    assert_eq!(last["state"], "failed", "{last}");
    let result = call(to, "GET", &format!("{place}/result"), "user=ada", "").await;
    let text = "The export has failed: it has no result.";
    assert_eq!((result.status, &*result.text), (StatusCode::NOT_FOUND, text));
    last["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn ten_clients_follow_their_exports_to_the_end() {
    let program = Process::start(&mut status("status"));
    let address = program.address().await;
    let mut clients = JoinSet::new();
    for n in 0..10 {
        clients.spawn(async move {
            let cookie = format!("theme=dark; user=user-{n}");
            let place = order(address, &cookie, 3 + n % 10).await;
            let result = format!("{place}/result");
            for path in [&place, &result] {
                let stranger = call(address, "GET", path, "user=stranger", "").await;
                assert_eq!(stranger.status, StatusCode::NOT_FOUND);
            }
            let seen = followed(address, &cookie, &place).await;
            let progress: Vec<_> =
                seen.iter().filter_map(|status| status["progress"].as_f64()).collect();
            assert!(progress.is_sorted() && progress.len() > 2, "{seen:?}");
            let last = json!({
                "name": "Orders", "state": "completed", "progress": 1.0, "result": result,
            });
            assert_eq!(seen.last(), Some(&last));
            let file = call(address, "GET", &result, &cookie, "").await;
            assert_eq!(file.status, StatusCode::OK);
            let lines = (1..=3 + n % 10).map(|page| format!("Orders, page {page}\n"));
            assert_eq!(file.text, lines.collect::<String>());
            place
        });
    }
    let places: BTreeSet<String> = clients.join_all().await.into_iter().collect();
    assert_eq!(places.len(), 10, "an id of its own each");
    program.terminate().await;
    assert_eq!(program.ended().await.code, Some(0));
}

#[tokio::test]
async fn client_reads_only_the_error_meant_for_it() {
    let program = Process::start(&mut status("status-errors"));
    let address = program.address().await;
    let (missing, store, panic) =
        tokio::join!(error_of(address, 13), error_of(address, 17), error_of(address, 19));
    assert_eq!(missing, "page 13 is missing");
    for (error, hidden) in [(store, "10.0.0.17"), (panic, "a bug")] {
        assert!(error.starts_with("something went wrong; ask us about job "), "{error}");
        assert!(!error.contains(hidden), "{error}");
        // The log has the text under the job's id, which the client was given.
        let id = error.rsplit(' ').next().unwrap().to_owned();
        program.stderr.line_with(&id).await;
    }
    program.stderr.line_with("10.0.0.17").await;
    program.stderr.line_with("a bug, at the user's key 0f3a9").await;
}

#[tokio::test]
async fn result_is_there_only_after_the_end() {
    let program = Process::start(&mut status("status-result"));
    let address = program.address().await;
    let place = order(address, "user=ada", 1000).await;
    let result = call(address, "GET", &format!("{place}/result"), "user=ada", "").await;
    assert_eq!(
        (result.status, &*result.text),
        (StatusCode::NOT_FOUND, "The export has not ended.")
    );
}

#[tokio::test]
async fn forgotten_exports_are_gone_and_unknown_ones_not_found() {
    let program = Process::start(status("status-forgotten").env("REMEMBER", "1"));
    let address = program.address().await;
    let mut places = Vec::new();
    let statuses = [
        &[StatusCode::OK][..],
        &[StatusCode::GONE, StatusCode::OK],
        // Twice as many are known as are remembered.
        &[StatusCode::NOT_FOUND, StatusCode::GONE, StatusCode::OK],
    ];
    for expected in statuses {
        let place = order(address, "user=ada", 1).await;
        followed(address, "user=ada", &place).await;
        places.push(place);
        for (place, status) in places.iter().zip(expected) {
            for path in [place, &format!("{place}/result")] {
                let answer = call(address, "GET", path, "user=ada", "").await;
                assert_eq!(answer.status, *status, "{path}: {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn orders_that_make_no_sense_are_refused() {
    let program = Process::start(&mut status("status-refused"));
    let address = program.address().await;
    let long = format!("name={}&pages=1", "x".repeat(101));
    for (method, path, cookie, body, status) in [
        ("GET", "/exports/1-0f3a9", "user=ada", "", StatusCode::NOT_FOUND),
        ("GET", "/exports/1-0f3a9", "", "", StatusCode::UNAUTHORIZED),
        ("GET", "/exports/1-0f3a9", "user=", "", StatusCode::UNAUTHORIZED),
        ("POST", "/exports", "", "name=Orders&pages=1", StatusCode::UNAUTHORIZED),
        ("POST", "/exports", "user=ada", "name=Orders&pages=0", StatusCode::UNPROCESSABLE_ENTITY),
        (
            "POST",
            "/exports",
            "user=ada",
            "name=Orders&pages=1001",
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        ("POST", "/exports", "user=ada", "name=Orders&pages=x", StatusCode::UNPROCESSABLE_ENTITY),
        ("POST", "/exports", "user=ada", "name=%20&pages=1", StatusCode::UNPROCESSABLE_ENTITY),
        ("POST", "/exports", "user=ada", "name=a%0Ab&pages=1", StatusCode::UNPROCESSABLE_ENTITY),
        ("POST", "/exports", "user=ada", &long, StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let answer = call(address, method, path, cookie, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
    }
}

#[tokio::test]
async fn page_sets_a_cookie_that_no_script_reads() {
    let program = Process::start(&mut status("status-page"));
    let address = program.address().await;
    let (first, second) = (get(address, "/").await, get(address, "/").await);
    let cookie = first.headers["set-cookie"].to_str().unwrap();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict");
    assert_ne!(first.headers["set-cookie"], second.headers["set-cookie"]);
    let known = call(address, "GET", "/", pair, "").await;
    assert_eq!(known.headers.get("set-cookie"), None);
    assert!(known.text.contains("<progress"));
}

#[tokio::test]
async fn orders_beyond_the_queue_are_answered_503() {
    let program = Process::start(&mut status("status-overload"));
    let address = program.address().await;
    let mut clients = JoinSet::new();
    for _ in 0..130 {
        clients.spawn(call(address, "POST", "/exports", "user=ada", "name=Orders&pages=1000"));
    }
    let answers = clients.join_all().await;
    let of = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((of(StatusCode::ACCEPTED), of(StatusCode::SERVICE_UNAVAILABLE)), (110, 20));
}
