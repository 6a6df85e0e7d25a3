//! In this binary because it sets the logger of `log`, and because tracing writes to `log` only in a
//! process that never had a subscriber.

use std::sync::Mutex;

use log::{LevelFilter, Log, Metadata, Record};
use tower_jobs::Scheduler;

struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tower_jobs")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.level(), record.args());
            self.0.lock().expect("no panic").push(line);
        }
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn failure_is_in_the_log_and_a_job_that_has_done_well_is_not() {
    log::set_logger(&LINES).expect("the only one");
    log::set_max_level(LevelFilter::Trace);
    let scheduler = Scheduler::new();
    drop(scheduler.job("good").spawn(async {}).await.expect("open"));
    drop(scheduler.job("bad").spawn(async { Err::<(), _>("no luck") }).await.expect("open"));
    scheduler.wait_idle().await;
    let lines = LINES.0.lock().expect("no panic");
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert!(line.starts_with("ERROR the job failed: no luck") && line.contains("bad"), "{line}");
}
