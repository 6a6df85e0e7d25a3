//! The commands that the README sends to: those at the top of `examples/welcome_email.rs`.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::process::{Process, empty_folder, example, with_pipes};

/// The commands of the other terminal, for the program at this address.
fn commands(address: &str) -> String {
    let program = include_str!("../../examples/welcome_email.rs");
    let (_, rest) = program.split_once("//! ```sh\n").expect("the example has commands");
    let (block, _) = rest.split_once("//! ```\n").unwrap();
    let lines: Vec<_> = block.lines().map(|line| line.trim_start_matches("//!").trim()).collect();
    assert_eq!(lines[0], "cargo run --example welcome_email");
    let commands = lines[1..].join("\n");
    assert_eq!(commands.matches("127.0.0.1:3000").count(), 2, "{commands}");
    commands.replace("127.0.0.1:3000", address)
}

#[tokio::test]
async fn commands_at_the_top_of_the_example_work_as_printed() {
    let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status().await;
    if curl.is_err() {
        println!("skipped: there is no curl");
        return;
    }
    let folder = empty_folder("readme-commands");
    let mut command = example("welcome_email", &folder);
    let program = Process::start(command.env_remove("SMTP_URL").env_remove("OUTBOX"));
    let address = program.address().await.to_string();
    let mut shell = Command::new("sh");
    // The letter comes after the answer.
    let waits = "until ls outbox/*.eml; do sleep 0.1; done\n";
    let script = commands(&address).replace("cat outbox", &format!("{waits}cat outbox"));
    shell.args(["-ec", &script]);
    with_pipes(&mut shell, &folder);
    let ended = Process::start(&mut shell).ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for part in
        ["HTTP/1.1 202 Accepted", "Hello Ada,", "To: Ada <ada@example.org>", "\"accepted\":1"]
    {
        let found = ended.stdout.contains(part);
        assert!(found, "no {part:?} in {ended:#?}");
    }
    program.terminate().await;
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("in all: 1 completed"), "{ended:#?}");
}
