//! The program for Kubernetes, also as process 1.

use std::{io::Write, net::SocketAddr, process::Stdio};

use hyper::StatusCode;
use serde_json::json;
use tokio::{process::Command, task::yield_now};

use crate::{
    servers::post,
    support::{http::get, process::Process, recipe, within},
};

async fn is(status: StatusCode, at: SocketAddr, path: &str) {
    let asking = async {
        while get(at, path).await.status != status {
            yield_now().await;
        }
    };
    within(&format!("{status} at {path}"), asking).await;
}

async fn terminate(pid: u32) {
    let kill = Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]).status().await;
    assert!(kill.is_ok_and(|status| status.success()), "SIGTERM is sent");
}

/// The probes answer while a job drains; then the program ends with 0.
async fn answers_probes_to_the_end(program: Process, pid: u32) {
    let address = program.address().await;
    let line = program.stdout.line_with("probes on http://").await;
    let probes = line.replace("probes on http://", "").parse().expect("an address");
    assert_eq!(get(probes, "/ready").await.status, StatusCode::OK);
    assert_eq!(post(address, "/work", json!({})).await.status, StatusCode::ACCEPTED);

    terminate(pid).await;
    is(StatusCode::SERVICE_UNAVAILABLE, probes, "/ready").await;
    assert_eq!(get(probes, "/live").await.status, StatusCode::OK);
    assert_eq!(post(probes, "/done", json!({})).await.status, StatusCode::OK);
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

fn set_up(command: &mut Command) -> &mut Command {
    command.env("ADDR", "127.0.0.1:0").env("PROBES_ADDR", "127.0.0.1:0")
}

#[tokio::test]
async fn probes_answer_while_jobs_drain() {
    let program = Process::start(set_up(&mut recipe!("kubernetes")));
    let pid = program.id().expect("it runs");
    answers_probes_to_the_end(program, pid).await;
}

#[tokio::test]
async fn process_1_ends_on_sigterm_with_its_exit_code() {
    let namespace = ["-fp", "--mount-proc", "--kill-child"];
    let allowed = Command::new("unshare").args(namespace).arg("true").output().await;
    if !allowed.is_ok_and(|output| output.status.success()) {
        let line = b"skipped, unshare is not allowed here\n";
        std::io::stderr().write_all(line).expect("standard error is open");
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(namespace).arg(env!("CARGO_BIN_EXE_kubernetes"));
    unshare.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let program = Process::start(set_up(&mut unshare));
    program.stdout.line_with("probes on ").await;
    let unshare = program.id().expect("it runs");
    let children = format!("/proc/{unshare}/task/{unshare}/children");
    let children = std::fs::read_to_string(children).expect("process 1");
    answers_probes_to_the_end(program, children.trim().parse().expect("its id")).await;
}
