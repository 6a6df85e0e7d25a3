//! `examples/after_response.rs`, `examples/atomic_payment.rs` and `examples/consumer.rs` as processes.

use std::net::SocketAddr;

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream, task::yield_now};

use crate::support::{
    http::{connect, get},
    process::{Process, empty_folder, example},
    within,
};

const FILE: usize = 64 * 1024 * 1024;

/// Returns once the counts of the program are as expected.
async fn counted(at: SocketAddr, expected: &Value) {
    let asking = async {
        loop {
            let counts: Value = serde_json::from_str(&get(at, "/counts").await.text).expect("JSON");
            if counts == *expected {
                break;
            }
            yield_now().await;
        }
    };
    within(&expected.to_string(), asking).await;
}

fn counts(complete: u64, aborted: u64, no_response: u64, under_way: u64) -> Value {
    let downloads = json!({ "complete": complete, "aborted": aborted, "no_response": no_response });
    json!({ "downloads": downloads, "under_way": under_way })
}

/// A client that has asked for a download and has read `bytes` of the answer.
async fn begin(from: SocketAddr, path: &str, bytes: usize) -> TcpStream {
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    let mut client = connect(from, &request).await;
    let mut read = vec![0; bytes];
    within("the answer", client.read_exact(&mut read)).await.expect("the program answers");
    client
}

#[tokio::test]
async fn downloads_are_counted_by_outcome_across_sigterm() {
    let folder = empty_folder("after_response");
    let program = Process::start(&mut example("after_response", &folder));
    let address = program.address().await;
    assert_eq!(get(address, "/counts").await.text, counts(0, 0, 0, 0).to_string());

    let answer = get(address, "/download").await;
    assert_eq!((answer.status, answer.text.len()), (StatusCode::OK, FILE));
    counted(address, &counts(1, 0, 0, 0)).await;

    let client = begin(address, "/download", 1).await;
    counted(address, &counts(1, 0, 0, 1)).await;
    drop(client);
    counted(address, &counts(1, 1, 0, 0)).await;

    let client = begin(address, "/download?wait=60", 0).await;
    counted(address, &counts(1, 1, 0, 1)).await;
    drop(client);
    counted(address, &counts(1, 1, 1, 0)).await;

    let mut client = begin(address, "/download", 1).await;
    program.terminate().await;
    program.stderr.line_with("shutting down").await;
    let mut rest = Vec::new();
    within("the rest", client.read_to_end(&mut rest)).await.expect("the program still answers");
    assert!(rest.len() > FILE, "with its chunk sizes, {} bytes", rest.len());
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let total = counts(2, 1, 1, 0)["downloads"].to_string();
    assert!(ended.stdout.contains(&total), "{ended:#?}");
}

#[tokio::test]
async fn only_the_atomic_payment_balances_when_the_client_leaves() {
    let folder = empty_folder("atomic_payment");
    let ended = Process::start(&mut example("atomic_payment", &folder)).ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines[0], "plain:  Ada 0, Bob 0: does not balance");
    assert_eq!(lines[1], "atomic: Ada 0, Bob 100: balances");
    assert!(lines[2].ends_with("1 completed"), "{ended:#?}");
}

#[tokio::test]
async fn consumer_fetches_only_what_fits() {
    let folder = empty_folder("consumer");
    let ended = Process::start(&mut example("consumer", &folder)).ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "fetched 5 of 8 messages, at most 2 at once",
            "done:         invoice 1, invoice 2, invoice 4, invoice 5",
            "given back:   invoice 3",
            "not fetched:  invoice 6, invoice 7, invoice 8",
            "refused jobs: 0",
        ],
        "{ended:#?}"
    );
}
