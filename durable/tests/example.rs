//! `examples/durable_email.rs` as a process, with the command at its top.
//!
//! `cargo test` builds the example first. `cargo test --test example` does not, and may run an old one.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic, and says why it skips"
)]

#[cfg(feature = "postgres")]
#[path = "support/postgres.rs"]
mod postgres;

use std::{
    env,
    path::Path,
    process::{Command as Std, Stdio},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};
use tower_jobs_durable::{Durable, DurableJob, Engine, Sqlite};

const MOST: Duration = Duration::from_secs(30);

/// The job of the example.
#[derive(Serialize, Deserialize)]
struct WelcomeEmail {
    to: String,
}

impl DurableJob for WelcomeEmail {
    const KIND: &str = "welcome_email";
}

struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(database: &str) -> Self {
        // Cargo puts tests into target/PROFILE/deps and examples into target/PROFILE/examples.
        let test = env::current_exe().unwrap();
        let example = test.ancestors().nth(2).unwrap().join("examples/durable_email");
        assert!(example.exists(), "{}: build it with `cargo build --examples`", example.display());
        let mut command = Command::new(example);
        command.env("ADDR", "127.0.0.1:0").env("DATABASE_URL", database);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line with that text in it.
    async fn line(&mut self, text: &str) -> String {
        let find = async {
            loop {
                let line = self.lines.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("it ended without a line {text:?}"));
                if line.contains(text) {
                    return line;
                }
            }
        };
        timeout(MOST, find).await.unwrap_or_else(|_| panic!("no line {text:?}"))
    }

    async fn address(&mut self) -> String {
        let line = self.line("listening on http://").await;
        line.trim_start_matches("listening on http://").to_owned()
    }

    async fn ends_at_sigterm(mut self) {
        let id = self.child.id().unwrap().to_string();
        assert!(Std::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = timeout(MOST, self.child.wait()).await.expect("it ends").unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

/// The `curl` at the top of the example, to that address. Returns what it prints.
async fn curl(address: &str) -> String {
    let source = include_str!("../examples/durable_email.rs");
    let line = source.lines().find_map(|line| line.strip_prefix("//! curl")).unwrap();
    assert!(line.contains("127.0.0.1:3000"), "{line}");
    let command = format!("curl -sS{}", line.replace("127.0.0.1:3000", address));
    let output = Command::new("sh").args(["-c", &command]).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Signs up once, and not twice. A letter that was stored while no program ran is sent by the next one.
async fn letters_are_sent(database: &str, engine: Arc<dyn Engine>) {
    if Std::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        return eprintln!("skipped: there is no curl");
    }
    let mut program = Program::start(database);
    let address = program.address().await;
    assert!(curl(&address).await.starts_with("HTTP/1.1 201 Created"));
    let sent = program.line("message ").await;
    assert!(sent.ends_with("to ada@example.org, try 1"), "{sent}");
    assert!(curl(&address).await.starts_with("HTTP/1.1 409 Conflict"));
    program.ends_at_sigterm().await;

    let stored = WelcomeEmail { to: "bob@example.org".into() };
    Durable::builder_of(engine).start().outbox().push(stored).await.unwrap();
    let mut program = Program::start(database);
    // Ada's is not sent again.
    let sent = program.line("message ").await;
    assert!(sent.ends_with("to bob@example.org, try 1"), "{sent}");
    program.ends_at_sigterm().await;
}

#[tokio::test]
async fn letters_of_a_file_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let file: &Path = &folder.path().join("jobs.db");
    let engine = Arc::new(Sqlite::open(file).await.unwrap());
    letters_are_sent(file.to_str().unwrap(), engine).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn letters_of_postgres_are_sent() {
    let Some(server) = postgres::server() else { return };
    let url = server.database().await;
    let engine = tower_jobs_durable::Postgres::connect(&url).await.unwrap();
    engine.migrate().await.unwrap();
    letters_are_sent(&url, Arc::new(engine)).await;
}
