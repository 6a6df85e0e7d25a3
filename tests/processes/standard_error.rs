//! Failures on standard error, in programs that set up no log.
//!
//! The tests run this test program again, with the kind of log in the environment.

use std::{env, io, time::Duration};

use tower_jobs::{JobContext, Scheduler, Shutdown};

use crate::support::process::{Ended, Process, empty_folder, with_pipes};

const LOG: &str = "TOWER_JOBS_LOG";

/// Is run as a process. It fails twice while open, and once while closing.
#[test]
#[ignore = "the program of the tests beside it"]
fn failing_program() {
    struct Logger;
    impl log::Log for Logger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, _: &log::Record<'_>) {}
        fn flush(&self) {}
    }
    match env::var(LOG).as_deref() {
        Ok("none") => {}
        Ok("tracing") => tracing_subscriber::fmt().with_writer(io::sink).init(),
        Ok("log") => {
            log::set_logger(&Logger).unwrap();
            log::set_max_level(log::LevelFilter::Error);
        }
        _ => return,
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report = runtime.block_on(async {
        let scheduler = Scheduler::new();
        let fails = async { Err::<(), _>(io::Error::other("no mail\ntoday")) };
        drop(scheduler.job("welcome").spawn(fails).await.unwrap());
        drop(scheduler.job("audit").spawn(async { panic!("on purpose") }).await.unwrap());
        scheduler.wait_idle().await;
        let late = |context: JobContext| async move {
            context.cancelled().await;
            Err::<(), _>("too late")
        };
        drop(scheduler.job("late").spawn_with(late).await.unwrap());
        Shutdown::with_trigger(&scheduler, async {})
            .grace(Duration::from_millis(300))
            .serve(|stop| stop)
            .await
    });
    runtime.shutdown_background();
    report.print();
}

async fn ended(log: &str) -> Ended {
    let folder = empty_folder(&format!("standard-error-{log}"));
    let mut command = tokio::process::Command::new(env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", "standard_error::failing_program"])
        .env(LOG, log)
        .env("RUST_BACKTRACE", "0");
    with_pipes(&mut command, &folder);
    Process::start(&mut command).ended().await
}

fn failures(ended: &Ended) -> Vec<&str> {
    ended.stderr.lines().filter(|line| line.starts_with("tower-jobs: ")).collect()
}

#[tokio::test]
async fn failures_are_on_standard_error_without_any_log() {
    let ended = ended("none").await;
    let lines = failures(&ended);
    let of = |name: &str, text: &str| {
        let found = |line: &&&str| line.contains(&format!("\"{name}\"")) && line.ends_with(text);
        assert_eq!(lines.iter().filter(found).count(), 1, "{ended:#?}");
    };
    of("welcome", ": the job failed: no mail\\ntoday");
    of("audit", ": the job panicked: on purpose");
    of("late", ": the job failed: too late");
    assert_eq!(lines.len(), 3, "{ended:#?}");
}

#[tokio::test]
async fn standard_error_is_left_alone_with_a_subscriber_or_logger() {
    for log in ["tracing", "log"] {
        let ended = ended(log).await;
        assert!(failures(&ended).is_empty(), "{log}: {ended:#?}");
        assert!(ended.stdout.contains("in all: 0 completed, 2 failed"), "{log}: {ended:#?}");
    }
}
