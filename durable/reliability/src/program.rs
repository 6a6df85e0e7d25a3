//! The program `worker` as a process.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{log::Log, store::Store};

/// A running worker. Dropped, it is killed.
#[derive(Debug)]
pub struct Program(Child);

/// Settings of a worker.
#[derive(Debug)]
pub struct Settings<'a> {
    program: &'a Path,
    command: Command,
}

impl<'a> Settings<'a> {
    /// Settings of a worker on a store, with the program of `CARGO_BIN_EXE_worker`.
    pub fn new(program: &'a str, store: &Store, log: &Log) -> Self {
        let mut command = Command::new(program);
        command.env("DATABASE_URL", store.url()).env("WORKER_LOG", log.path());
        Self { program: Path::new(program), command }
    }

    /// Sets one.
    #[must_use]
    pub fn set(mut self, name: &str, value: u64) -> Self {
        self.command.env(name, value.to_string());
        self
    }

    /// Makes it do something else: see `worker`.
    #[must_use]
    pub fn mode(mut self, mode: &str) -> Self {
        self.command.env("WORKER_MODE", mode);
        self
    }

    /// Starts the worker, and waits until it serves.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start(&mut self) -> Program {
        let child = self.command.stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output is piped");
        let mut stdout = BufReader::new(stdout);
        stdout.read_line(&mut line).expect("it writes a line");
        assert_eq!(line, "ready\n");
        child.stdout = Some(stdout.into_inner());
        Program(child)
    }
}

impl Program {
    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Returns whether it has ended by itself.
    ///
    /// # Panics
    ///
    /// If its state cannot be read.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("it can be waited for").is_some()
    }

    /// Kills it: no code of it runs any more.
    ///
    /// # Panics
    ///
    /// If it has already been waited for.
    pub fn kill(mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it can be waited for");
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    ///
    /// If there is no `kill`.
    pub fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(sent.expect("there is a `kill`").success());
    }

    /// Waits for its end. Returns its exit code, `None` if a signal killed it, and its report.
    ///
    /// # Panics
    ///
    /// If it does not end within `most`.
    pub fn ended(mut self, most: Duration) -> (Option<i32>, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().expect("it can be waited for") {
                break status;
            }
            assert!(began.elapsed() < most, "the worker still runs after {most:?}");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut report = String::new();
        let mut stdout = self.0.stdout.take().expect("its output is piped");
        stdout.read_to_string(&mut report).expect("its output is text");
        (status.code(), report)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
