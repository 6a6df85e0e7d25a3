//! The examples as processes.
//!
//! `cargo test` builds the examples first. `cargo test --test NAME` does not, and may run an old one.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
};

use super::within;

/// An empty folder of that name.
pub(crate) fn empty_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("an earlier run's folder can be removed");
    }
    fs::create_dir_all(&folder).expect("a folder can be made in the target directory");
    folder
}

/// A command that runs an example of this crate on a free port, in a folder of its own.
pub(crate) fn example(name: &str, folder: &Path) -> Command {
    // Cargo puts tests into target/PROFILE/deps and examples into target/PROFILE/examples.
    let test = env::current_exe().expect("a test knows its own path");
    let profile = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
    let program = profile.join("examples").join(name).with_extension(env::consts::EXE_EXTENSION);
    assert!(
        program.exists(),
        "{} does not exist: build it with `cargo build --examples --all-features`",
        program.display()
    );
    let mut command = Command::new(program);
    command.env("ADDR", "127.0.0.1:0");
    with_pipes(&mut command, folder);
    command
}

/// Runs a command in that folder, with its output in pipes.
pub(crate) fn with_pipes(command: &mut Command, folder: &Path) {
    command
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
}

/// A started process and its output.
pub(crate) struct Process {
    pub(super) child: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

/// The end of a process, and its whole output.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let stdout = Lines::of(child.stdout.take().expect("standard output is piped"));
        // It may go elsewhere.
        let stderr = child.stderr.take().map_or_else(Lines::none, Lines::of);
        Self { child, stdout, stderr }
    }

    /// The address that the program prints.
    pub(crate) async fn address(&self) -> SocketAddr {
        let line = self.stdout.line_with("listening on http://").await;
        let address = line.trim_start_matches("listening on http://").parse();
        address.expect("the program prints an address")
    }

    /// Sends SIGTERM.
    #[cfg(unix)]
    pub(crate) async fn terminate(&self) {
        assert!(self.try_terminate().await, "SIGTERM could not be sent");
    }

    /// Sends SIGTERM to a program that may have ended.
    #[cfg(unix)]
    pub(crate) async fn try_terminate(&self) -> bool {
        // The id is not reused before the end has been awaited.
        let Some(pid) = self.child.id() else { return false };
        let kill = format!("kill -TERM {pid}");
        let status = Command::new("sh").args(["-c", &kill]).status().await;
        status.expect("sh runs").success()
    }

    pub(crate) async fn ended(mut self) -> Ended {
        let status = within("the program's end", self.child.wait()).await;
        Ended {
            code: status.expect("a child can be waited for").code(),
            stdout: self.stdout.all().await.join("\n"),
            stderr: self.stderr.all().await.join("\n"),
        }
    }
}

/// The lines that a process prints, as they come.
#[derive(Clone)]
pub(crate) struct Lines(watch::Receiver<Vec<String>>);

impl Lines {
    pub(crate) fn of(pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (sender, receiver) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut lines = BufReader::new(pipe).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                sender.send_modify(|lines| lines.push(line));
            }
        });
        Self(receiver)
    }

    fn none() -> Self {
        Self(watch::channel(Vec::new()).1)
    }

    /// The lines so far.
    pub(crate) fn so_far(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    /// The first line with that text in it, printed already or not yet.
    pub(crate) async fn line_with(&self, text: &str) -> String {
        let mut lines = self.0.clone();
        let found = |lines: &Vec<String>| lines.iter().any(|line| line.contains(text));
        let what = format!("a line with {text:?}");
        let ended = within(&what, lines.wait_for(found)).await.is_err();
        let line = self.so_far().into_iter().find(|line| line.contains(text));
        assert!(line.is_some() || !ended, "no {what} among {:#?}", self.so_far());
        line.unwrap_or_default()
    }

    /// All lines, once the process has ended.
    pub(crate) async fn all(&self) -> Vec<String> {
        let mut lines = self.0.clone();
        within("the end of the output", async { while lines.changed().await.is_ok() {} }).await;
        self.so_far()
    }
}
