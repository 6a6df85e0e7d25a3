//! Real signals, full pipes and process 1: a table of cases, each with a process of its own. This binary
//! is also the program that they run.
//!
//! ```sh
//! cargo test --all-features --test signals            # all cases
//! cargo test --all-features --test signals doubled    # those with that text in their names
//! ```
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "real threads, real time")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and print")]
#![cfg_attr(not(unix), allow(dead_code, reason = "the cases need signals"))]

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    match std::env::var("SIGNALS_PROGRAM") {
        Ok(program) => program::run(&program),
        Err(_) => cases::run(),
    }
}

/// The program. It says on standard error how far it is, and reads standard input to wait for the test.
#[cfg(unix)]
mod program {
    use std::{
        future::pending,
        io::{self, Read},
        process::ExitCode,
        thread,
        time::Duration,
    };

    use tokio::time::sleep;
    use tower_jobs::{Scheduler, Shutdown};

    const MS: Duration = Duration::from_millis(1);
    /// The jobs of the word `failing`, all of which fail when the shutdown begins.
    pub(super) const FAILURES: usize = 40;

    /// Waits until the test closes standard input.
    fn wait_for_test() {
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    /// What `words` name, in any order.
    pub(super) fn run(words: &str) -> ExitCode {
        let has = |word: &str| words.split(' ').any(|other| other == word);
        if has("logs") {
            tracing_subscriber::fmt().with_writer(io::stdout).init();
        }
        // Writes all lines when this function returns.
        let _guard = has("buffered").then(|| {
            let (writer, guard) = tracing_appender::non_blocking(io::stdout());
            tracing_subscriber::fmt().with_writer(writer).init();
            guard
        });
        let limit = if has("failing") { 2 * FAILURES } else { 1 };
        let scheduler = Scheduler::builder().limit(limit).build();
        let grace = if has("short") { 500 * MS } else { 20_000 * MS };
        let mut shutdown = if has("triggered") {
            Shutdown::with_trigger(&scheduler, pending())
        } else {
            Shutdown::new(&scheduler).late_signals_end_process(!has("stays"))
        }
        .grace(grace);
        if has("hangup") {
            shutdown = shutdown.signal(1);
        }
        eprintln!("constructed");
        if has("boots") || has("unpolled") {
            wait_for_test();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let report = runtime.block_on(async {
            if has("quick") {
                drop(scheduler.spawn(sleep(300 * MS)).await.unwrap());
            }
            if has("long") {
                drop(scheduler.spawn(pending::<()>()).await.unwrap());
            }
            if has("failing") {
                for number in 0..FAILURES {
                    let watched = scheduler.clone();
                    let fails = async move {
                        watched.shutting_down().await;
                        Err::<(), _>(format!("failure {number}."))
                    };
                    drop(scheduler.try_spawn(fails).unwrap());
                }
            }
            if has("blocking") {
                let job = scheduler.spawn_blocking(|| thread::sleep(60_000 * MS));
                drop(job.await.unwrap());
            }
            if has("driver") {
                tokio::spawn(block_driver(scheduler.clone()));
            }
            if has("backlog") {
                for _ in 0..10_000 {
                    drop(scheduler.try_spawn(pending::<()>()).unwrap());
                }
            }
            let serve = |stop: tower_jobs::StopSignal| {
                eprintln!("serving");
                async {
                    // In the task of `serve`: another would make an idle worker drive the timers.
                    stop.await;
                    eprintln!("stopping");
                }
            };
            if has("ends") {
                shutdown.serve(|_| async {}).await
            } else {
                shutdown.serve(serve).await
            }
        });
        runtime.shutdown_background();
        report.print();
        if has("lingers") {
            eprintln!("lingering");
            wait_for_test();
        }
        ExitCode::from(report)
    }

    /// Blocks the worker that drives the runtime's timers and I/O: the one that has been woken by a timer.
    async fn block_driver(scheduler: Scheduler) {
        sleep(200 * MS).await;
        let blocks = scheduler.shield(async {
            eprintln!("blocking");
            thread::sleep(60_000 * MS);
        });
        drop(blocks.await);
    }
}

#[cfg(unix)]
mod cases {
    use std::{
        env,
        io::{BufRead, BufReader, Read, Write},
        os::{
            fd::OwnedFd,
            unix::{net::UnixStream, process::ExitStatusExt},
        },
        process::{Child, Command, ExitCode, ExitStatus, Stdio},
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    /// The end of `main` after the grace, and as much again for busy machines.
    const TOLERANCE: Duration = Duration::from_millis(2_500);
    /// The grace of the word `short`.
    const SHORT: Duration = Duration::from_millis(500);

    /// Case, and its test.
    const TABLE: &[(&str, fn())] = &[
        ("A1 signal is heard and the grace holds while the driver is blocked", driver_is_blocked),
        ("A2 B9 full standard output does not hold up the end", stdout_is_full),
        ("B7 buffered log lines are all written", buffered_lines_are_written),
        ("A4 doubled signal is one", signal_is_doubled),
        ("A4 SIGINT and SIGTERM together are one", two_signals_together),
        ("A4 `timeout` signals child and group", timeout_signals_twice),
        ("A5 signal during the start drains and starts no server", signal_at_the_start),
        ("A5 signal during the start, as process 1", signal_at_the_start_as_process_1),
        ("B8 closed standard output", stdout_is_closed),
        ("B9 signal after `serve` ends the process", signal_after_serve),
        ("B9 signal after `serve` ends process 1", signal_after_serve_as_process_1),
        ("B9 signal after `serve` is ignored if so set", signal_after_serve_is_ignored),
        ("later signal closes now, and the next ends the process", later_signals),
        ("signal after the grace of an unpolled `serve` ends the process", unpolled_serve),
        ("trigger touches no signal", trigger_touches_no_signal),
        ("further signal", further_signal),
    ];

    pub(super) fn run() -> ExitCode {
        let words: Vec<_> = env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        if env::args().any(|word| word == "--list") {
            return ExitCode::SUCCESS;
        }
        let mut failed = 0;
        for (name, case) in TABLE {
            if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
                continue;
            }
            let began = Instant::now();
            let ok = std::panic::catch_unwind(case).is_ok();
            eprintln!(
                "case {name} ... {} ({:?})",
                if ok { "ok" } else { "FAILED" },
                began.elapsed()
            );
            failed += u32::from(!ok);
        }
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    struct Program {
        child: Child,
        /// The process to be signalled.
        pid: u32,
        said: mpsc::Receiver<String>,
    }

    fn command(words: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env("SIGNALS_PROGRAM", words);
        command
    }

    fn start(words: &str) -> Program {
        Program::start(command(words).stdout(Stdio::piped()))
    }

    /// The program as process 1; `None`, and a line that says so, where that is not allowed.
    fn start_as_process_1(words: &str) -> Option<Program> {
        let namespace = ["-fp", "--mount-proc"];
        let allowed = Command::new("unshare").args(namespace).arg("true").output();
        if !allowed.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped, unshare is not allowed here");
            return None;
        }
        let mut unshare = Command::new("unshare");
        unshare.args(namespace).arg(env::current_exe().unwrap());
        unshare.env("SIGNALS_PROGRAM", words).stdout(Stdio::piped());
        let mut program = Program::start(&mut unshare);
        program.wait_for("constructed");
        let unshare = program.child.id();
        let children = format!("/proc/{unshare}/task/{unshare}/children");
        program.pid = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        Some(program)
    }

    impl Program {
        fn start(command: &mut Command) -> Self {
            let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let (says, said) = mpsc::channel();
            let lines = BufReader::new(child.stderr.take().unwrap()).lines();
            thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    if says.send(line).is_err() {
                        return;
                    }
                }
            });
            Self { pid: child.id(), child, said }
        }

        fn wait_for(&self, text: &str) {
            loop {
                let line = self.said.recv_timeout(60 * SECOND);
                if line.unwrap_or_else(|_| panic!("it does not say {text:?}")) == text {
                    return;
                }
            }
        }

        fn signal(&self, signal: &str) {
            let pid = self.pid.to_string();
            assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        }

        /// Waits until the thread that hears signals sleeps, more often than so many times. Returns the times.
        fn signal_thread_sleeps(&self, more_than: u64) -> u64 {
            let deadline = Instant::now() + 60 * SECOND;
            let tasks = format!("/proc/{}/task", self.pid);
            loop {
                for task in std::fs::read_dir(&tasks).unwrap() {
                    let status = task.unwrap().path().join("status");
                    // A thread that has ended has none.
                    let status = std::fs::read_to_string(status).unwrap_or_default();
                    let field = |name| {
                        let mut fields = status.lines().filter_map(|line| line.split_once(":\t"));
                        fields.find_map(|(other, value)| (other == name).then_some(value))
                    };
                    let is_asleep = field("State").is_some_and(|state| state.starts_with('S'));
                    if field("Name") == Some("tower-jobs sign") && is_asleep {
                        let times = field("voluntary_ctxt_switches").unwrap().parse().unwrap();
                        if times > more_than {
                            return times;
                        }
                    }
                }
                assert!(Instant::now() < deadline, "no thread hears signals");
                thread::sleep(MS);
            }
        }

        /// Closes its standard input.
        fn go_on(&mut self) {
            drop(self.child.stdin.take());
        }

        fn ended(mut self) -> (ExitStatus, String) {
            let deadline = Instant::now() + 40 * SECOND;
            let status = loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    break status;
                }
                if Instant::now() > deadline {
                    self.child.kill().unwrap();
                    panic!("it does not end");
                }
                thread::sleep(2 * MS);
            };
            let mut printed = String::new();
            if let Some(mut stdout) = self.child.stdout.take() {
                stdout.read_to_string(&mut printed).unwrap();
            }
            (status, printed)
        }

        fn ends_cleanly(self, report: &str) {
            let (status, printed) = self.ended();
            assert_eq!(status.code(), Some(0), "{printed}");
            assert!(printed.starts_with(report), "{printed}");
        }
    }

    fn driver_is_blocked() {
        for _ in 0..5 {
            let program = start("short driver long");
            program.wait_for("blocking");
            let signalled = Instant::now();
            program.signal("-TERM");
            program.wait_for("stopping");
            let (status, printed) = program.ended();
            assert!(signalled.elapsed() < SHORT + TOLERANCE, "{:?}", signalled.elapsed());
            assert_eq!(status.code(), Some(1), "{printed}");
            assert!(printed.contains("1 cancelled"), "{printed}");
            assert!(printed.contains("1 abandoned"), "{printed}");
        }
    }

    fn stdout_is_full() {
        for words in [
            "logs short long",
            "logs short blocking backlog",
            "short blocking",
            "buffered short blocking backlog",
        ] {
            let (read, mut write) = UnixStream::pair().unwrap();
            write.set_nonblocking(true).unwrap();
            while write.write(&[b'.'; 4096]).is_ok() {}
            while write.write(b".").is_ok() {}
            write.set_nonblocking(false).unwrap();
            let program = Program::start(command(words).stdout(OwnedFd::from(write)));
            program.wait_for("serving");
            let signalled = Instant::now();
            program.signal("-TERM");
            program.wait_for("stopping");
            let (status, _) = program.ended();
            assert!(signalled.elapsed() < SHORT + TOLERANCE, "{words}: {:?}", signalled.elapsed());
            assert_eq!(status.code(), Some(1));
            drop(read);
        }
    }

    fn buffered_lines_are_written() {
        for _ in 0..20 {
            let program = start("buffered short failing blocking");
            program.wait_for("serving");
            program.signal("-TERM");
            let (status, printed) = program.ended();
            assert_eq!(status.code(), Some(1), "{printed}");
            for number in 0..super::program::FAILURES {
                assert!(printed.contains(&format!("failure {number}.")), "{number}: {printed}");
            }
            // Of the log: `print` adds one of its own, unless it is held up.
            let report = |line: &str| {
                line.contains("WARN") && line.contains("server finished; since the signal")
            };
            assert!(printed.lines().any(report), "{printed}");
        }
    }

    fn signal_is_doubled() {
        let program = start("quick");
        program.wait_for("serving");
        program.signal("-TERM");
        thread::sleep(2 * MS);
        program.signal("-TERM");
        program.ends_cleanly("server finished; since the signal: drained in");
    }

    fn two_signals_together() {
        let program = start("quick");
        program.wait_for("serving");
        let both = format!("kill -INT {0}; kill -TERM {0}", program.pid);
        assert!(Command::new("sh").args(["-c", &both]).status().unwrap().success());
        program.ends_cleanly("server finished; since the signal: drained in");
    }

    fn timeout_signals_twice() {
        let mut timeout = Command::new("timeout");
        timeout.args(["-s", "TERM", "0.5"]).arg(env::current_exe().unwrap());
        timeout.env("SIGNALS_PROGRAM", "quick").stdout(Stdio::piped());
        let (status, printed) = Program::start(&mut timeout).ended();
        assert_eq!(status.code(), Some(124), "{printed}");
        assert!(printed.contains("; in all: 1 completed"), "{printed}");
        assert!(!printed.contains("cancelled"), "{printed}");
    }

    fn drains_without_a_server(mut program: Program) {
        let slept = program.signal_thread_sleeps(0);
        program.signal("-TERM");
        // On a busy machine the main thread could be faster.
        program.signal_thread_sleeps(slept);
        program.signal("-INT");
        program.go_on();
        program.ends_cleanly("server not started; since the signal: drained in");
    }

    fn signal_at_the_start() {
        let program = start("boots quick");
        program.wait_for("constructed");
        drains_without_a_server(program);
    }

    fn signal_at_the_start_as_process_1() {
        if let Some(program) = start_as_process_1("boots quick") {
            drains_without_a_server(program);
        }
    }

    fn stdout_is_closed() {
        let (read, write) = UnixStream::pair().unwrap();
        drop(read);
        let program = Program::start(command("ends").stdout(OwnedFd::from(write)));
        let (status, _) = program.ended();
        assert_eq!(status.code(), Some(0));
    }

    fn signal_after_serve() {
        for signal in ["-TERM", "-INT"] {
            let program = start("ends lingers");
            program.wait_for("lingering");
            program.signal(signal);
            let (status, printed) = program.ended();
            let number = if signal == "-TERM" { 15 } else { 2 };
            assert_eq!(status.signal(), Some(number), "{printed}");
        }
    }

    fn signal_after_serve_as_process_1() {
        if let Some(program) = start_as_process_1("ends lingers") {
            program.wait_for("lingering");
            program.signal("-TERM");
            assert_eq!(program.ended().0.code(), Some(128 + 15));
        }
    }

    fn signal_after_serve_is_ignored() {
        let mut program = start("ends stays lingers");
        program.wait_for("lingering");
        program.signal("-TERM");
        thread::sleep(50 * MS);
        program.go_on();
        program.ends_cleanly("server finished; since the server's end: drained in");
    }

    fn later_signals() {
        let program = start("long");
        program.wait_for("serving");
        program.signal("-TERM");
        program.wait_for("stopping");
        thread::sleep(1_100 * MS);
        program.signal("-TERM");
        let (status, printed) = program.ended();
        assert_eq!(status.code(), Some(1));
        assert!(printed.contains("1 cancelled"), "{printed}");

        let program = start("long lingers");
        program.wait_for("serving");
        program.signal("-TERM");
        program.wait_for("stopping");
        thread::sleep(1_100 * MS);
        program.signal("-INT");
        program.wait_for("lingering");
        thread::sleep(1_100 * MS);
        program.signal("-TERM");
        assert_eq!(program.ended().0.signal(), Some(15));
    }

    fn unpolled_serve() {
        let program = start("short unpolled");
        program.wait_for("constructed");
        program.signal("-TERM");
        thread::sleep(1_100 * MS);
        program.signal("-TERM");
        assert_eq!(program.ended().0.signal(), Some(15));
    }

    fn trigger_touches_no_signal() {
        let program = start("triggered");
        program.wait_for("serving");
        program.signal("-TERM");
        assert_eq!(program.ended().0.signal(), Some(15));
    }

    fn further_signal() {
        let program = start("hangup quick");
        program.wait_for("serving");
        program.signal("-HUP");
        program.ends_cleanly("server finished; since the signal: drained in");
    }
}
