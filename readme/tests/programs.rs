//! The README's first program as a process.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "real processes, real time"
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

/// Only a program that hangs takes as long.
const PLENTY: Duration = Duration::from_secs(60);

struct Program {
    child: Child,
    address: SocketAddr,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}

impl Program {
    /// Starts the program, and waits until it listens.
    fn start(path: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut child = Command::new(path)
            .env("ADDR", address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let program = Self { child, address, stdout: lines(stdout), stderr: lines(stderr) };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < PLENTY, "it does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        program
    }

    fn connect(&self) -> BufReader<TcpStream> {
        let connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(PLENTY)).unwrap();
        BufReader::new(connection)
    }

    /// Sends SIGTERM, and returns the exit code with the rest of standard output and of standard error.
    fn terminate(mut self) -> (Option<i32>, Vec<String>, Vec<String>) {
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        let rest = |lines: &Receiver<String>| {
            std::iter::from_fn(|| match lines.recv_timeout(PLENTY) {
                Ok(line) => Some(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => None,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end"),
            })
            .collect()
        };
        let (stdout, stderr) = (rest(&self.stdout), rest(&self.stderr));
        (self.child.wait().unwrap().code(), stdout, stderr)
    }
}

/// A sign-up of `ada@example.org`.
const SIGN_UP: &str =
    "POST /signup HTTP/1.1\r\nhost: test\r\ncontent-length: 15\r\n\r\nada@example.org";

/// Signs up. Returns the head of the response, which has no body.
fn sign_up(connection: &mut BufReader<TcpStream>) -> String {
    connection.get_mut().write_all(SIGN_UP.as_bytes()).unwrap();
    read_head(connection)
}

fn read_head(connection: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(connection.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
    }
    head
}

/// The line without the milliseconds that the drain took.
fn without_time(line: &str) -> String {
    let (before, rest) = line.split_once("drained in ").unwrap();
    let (_, after) = rest.split_once(" ms").unwrap();
    format!("{before}drained{after}")
}

#[test]
fn program_welcomes_and_reports_as_printed() {
    let program = Program::start(env!("CARGO_BIN_EXE_as_printed"));
    let head = sign_up(&mut program.connect());
    assert!(head.starts_with("HTTP/1.1 202 "), "{head}");
    let line = program.stdout.recv_timeout(PLENTY).unwrap();
    assert_eq!(line, "Welcome, ada@example.org!");
    let (code, stdout, stderr) = program.terminate();
    assert_eq!(stdout.len(), 1, "{stdout:?}");
    assert_eq!(
        without_time(&stdout[0]),
        "server finished; since the signal: drained: 0 completed; in all: 1 completed"
    );
    assert_eq!((code, stderr), (Some(0), vec![]));
}

#[test]
fn program_shows_a_failure_without_any_log() {
    let program = Program::start(env!("CARGO_BIN_EXE_failing"));
    let head = sign_up(&mut program.connect());
    assert!(head.starts_with("HTTP/1.1 202 "), "{head}");
    let line = program.stderr.recv_timeout(PLENTY).unwrap();
    assert!(line.starts_with("tower-jobs: job "), "{line}");
    assert!(line.contains(" of POST /signup ("), "{line}");
    assert!(line.ends_with(": the job failed: no mail to ada@example.org"), "{line}");
    let (code, stdout, stderr) = program.terminate();
    assert_eq!(
        without_time(&stdout[0]),
        "server finished; since the signal: drained: 0 completed; in all: 0 completed, 1 failed"
    );
    assert_eq!((code, stderr), (Some(0), vec![]), "it failed before the signal");
}

#[test]
fn program_sheds_load_while_its_queue_is_full() {
    /// Sign-ups in one piece, so that the test takes a second or two.
    const PIECE: usize = 60;
    const PIECES: usize = (20 + 10_000) / PIECE;
    let program = Program::start(env!("CARGO_BIN_EXE_stuck"));
    let mut connection = program.connect();
    for _ in 0..PIECES {
        connection.get_mut().write_all(SIGN_UP.repeat(PIECE).as_bytes()).unwrap();
        for _ in 0..PIECE {
            let head = read_head(&mut connection);
            assert!(head.starts_with("HTTP/1.1 202 "), "{head}");
        }
    }
    let head = sign_up(&mut connection).to_lowercase();
    assert!(head.starts_with("http/1.1 503 "), "{head}");
    assert!(head.contains("retry-after: 1\r\n"), "{head}");
}
