//! Programs that a test starts.

use std::{
    env,
    process::{self, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

use crate::{PLENTY, target};

/// A started process and the lines that it prints. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    lines: watch::Receiver<Vec<String>>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("the program starts");
        let pipe = child.stdout.take().expect("standard output is piped");
        let (sender, lines) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut read = BufReader::new(pipe).lines();
            while let Ok(Some(line)) = read.next_line().await {
                sender.send_modify(|lines| lines.push(line));
            }
        });
        Self { child, lines }
    }

    /// The first line with that text in it, printed already or not yet.
    pub(crate) async fn line_with(&self, text: &str) -> String {
        let mut lines = self.lines.clone();
        let has = |lines: &Vec<String>| lines.iter().any(|line| line.contains(text));
        let found = timeout(PLENTY, lines.wait_for(has)).await;
        let lines = self.lines.borrow();
        let line = lines.iter().find(|line| line.contains(text));
        assert!(line.is_some(), "{found:?} for a line with {text:?} among {lines:#?}");
        line.cloned().unwrap_or_default()
    }

    /// Sends a signal.
    async fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("its end has not been awaited").to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().await;
        assert!(sent.expect("`kill` runs").success(), "{signal} could not be sent");
    }

    /// Kills the process and those that it started, if it leads a process group.
    pub(crate) fn kill_group(&self) {
        let Some(pid) = self.child.id() else { return };
        let mut kill = process::Command::new("kill");
        let sent = kill.args(["-KILL", "--", &format!("-{pid}")]).stderr(Stdio::null()).status();
        assert!(sent.is_ok(), "`kill` runs");
    }
}

/// A program that serves HTTP. It is killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    process: Process,
    url: String,
}

impl Program {
    /// Starts a program that prints `listening on http://ADDRESS`, on a free port given in `ADDR`.
    pub async fn start(command: &mut Command) -> Self {
        let process = Process::start(command.env("ADDR", "127.0.0.1:0").stdin(Stdio::null()));
        let line = process.line_with("listening on http://").await;
        let url = line.trim_start_matches("listening on ").to_owned();
        Self { process, url }
    }

    /// The start of its URLs, such as `http://127.0.0.1:3000`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits for a line with that text in it.
    pub async fn printed(&self, text: &str) -> String {
        self.process.line_with(text).await
    }

    /// Sends SIGTERM.
    pub async fn terminate(&self) {
        self.process.signal("-TERM").await;
    }

    /// Waits for its end, and gives its exit code; `None` if a signal ended it.
    pub async fn ended(mut self) -> Option<i32> {
        let status = timeout(PLENTY, self.process.child.wait()).await;
        status.expect("the program ends").expect("a child can be waited for").code()
    }
}

/// A command that runs an example of a package of this workspace, built now.
pub async fn example(package: &str, name: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", package, "--example", name]);
    cargo.arg("--target-dir").arg(target());
    let built = cargo.status().await.expect("cargo runs");
    assert!(built.success(), "example {name} of {package} does not build");
    Command::new(target().join("debug/examples").join(name))
}
