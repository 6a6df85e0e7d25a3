//! A mail server for tests: aiosmtpd, in a process of its own.

use std::{
    env,
    io::{self, Write},
    process::Stdio,
};

use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt,
    process::{ChildStdin, Command},
};

use super::process::Process;

pub(crate) struct MailServer {
    /// As the example wants it in `SMTP_URL`.
    pub(crate) url: String,
    commands: ChildStdin,
    process: Process,
}

/// A message that the server took.
#[derive(Debug, Deserialize)]
pub(crate) struct Delivered {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    /// Headers and body.
    pub(crate) text: String,
}

impl MailServer {
    /// A server whose first command is `command`: see `smtp_server.py`.
    ///
    /// Without aiosmtpd it prints a line and gives `None`. In CI that is a failure.
    pub(crate) async fn start(command: &str) -> Option<Self> {
        let Some(python) = python_with_aiosmtpd().await else {
            let cure = "install Debian's python3-aiosmtpd, or aiosmtpd from PyPI";
            assert!(env::var_os("CI").is_none(), "no mail server to test with: {cure}");
            // A passing test does not show the output of `eprintln!`.
            let line = format!("skipped, no mail server to test with: {cure}\n");
            io::stderr().write_all(line.as_bytes()).expect("standard error is open");
            return None;
        };
        let mut process = Process::start(
            Command::new(python)
                .args(["-c", include_str!("smtp_server.py"), command])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true),
        );
        let commands = process.child.stdin.take().expect("standard input is piped");
        let port = process.stdout.line_with("port ").await;
        Some(Self { url: port.replace("port ", "smtp://127.0.0.1:"), commands, process })
    }

    /// Sends a command and waits for its answer. Each command may be sent once.
    pub(crate) async fn obey(&mut self, command: &str) {
        let line = format!("{command}\n");
        self.commands.write_all(line.as_bytes()).await.expect("the mail server still runs");
        self.process.stdout.line_with(&format!("obeys {command}")).await;
    }

    /// Waits until the server holds a message to that recipient.
    pub(crate) async fn holds(&self, to: &str) {
        self.process.stdout.line_with(&format!("holds {to}")).await;
    }

    /// How many clients have said goodbye, once the program that sends has ended.
    pub(crate) async fn goodbyes(&self) -> usize {
        self.process.stdout.line_with("quit").await;
        self.process.stdout.so_far().iter().filter(|line| *line == "quit").count()
    }

    /// Ends the server and gives the messages that it took, in order.
    pub(crate) async fn delivered(self) -> Vec<Delivered> {
        drop(self.commands);
        let lines = self.process.ended().await.stdout;
        let messages = lines.lines().filter(|line| line.starts_with('{'));
        messages.map(|line| serde_json::from_str(line).expect("one message a line")).collect()
    }
}

/// The interpreter that has aiosmtpd: the one on the path, or Debian's own.
async fn python_with_aiosmtpd() -> Option<&'static str> {
    for python in ["python3", "/usr/bin/python3"] {
        let found = Command::new(python)
            .args(["-c", "import aiosmtpd.smtp"])
            .stderr(Stdio::null())
            .status()
            .await;
        if found.is_ok_and(|status| status.success()) {
            return Some(python);
        }
    }
    None
}
