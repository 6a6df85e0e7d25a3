//! What reaches a log.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tower_jobs_durable::{Durable, PushOptions};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{File, Note, Number, Twice, note};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The subscriber is that of all threads, and so sees the other tests too.
#[tokio::test]
async fn payload_reaches_no_log() {
    const SECRET: &str = "hunter2-of-ada";
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
    subscriber.with_writer(log.clone()).init();
    let (sqlite, file) = File::new().await;
    let durable = Durable::builder(sqlite)
        .register(|_: Note, _| async {})
        .register(|_: Twice, _| async { Err::<(), _>("refused") })
        .register(|_: Number, _| async {})
        .start();
    let outbox = durable.outbox();
    outbox.push(note(SECRET)).await.unwrap();
    let keyed = PushOptions::new().unique_key(SECRET);
    outbox.push_with(note(SECRET), keyed.clone()).await.unwrap();
    let mut transaction = file.sql.begin_with("BEGIN IMMEDIATE").await.unwrap();
    outbox.push_in(&mut transaction, note(SECRET)).await.unwrap();
    transaction.commit().await.unwrap();
    let once = PushOptions::new().max_attempts(1);
    outbox.push_with(Twice { text: SECRET.into() }, once).await.unwrap();
    file.run(
        "INSERT INTO Jobs (job, id, job_type) VALUES \
         ('{hunter2-of-ada', 'not JSON', 'note'), \
         ('\"hunter2-of-ada\"', 'shape', 'number'), \
         ('{\"text\": [\"hunter2-of-ada\"]}', 'field', 'note')",
    )
    .await;
    file.until("Done", 3).await;
    file.until("Killed", 2).await;
    file.until("Pending", 2).await;
    let failed = "SELECT count(*) FROM Jobs WHERE status = 'Pending' AND attempts = 1";
    crate::support::until("both shapes have failed", async || file.number(failed).await == 2).await;
    let stored = "SELECT count(*) FROM Jobs WHERE last_result LIKE '%hunter2%'";
    assert_eq!(file.number(stored).await, 0);
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    for seen in ["a durable job is dead", "a durable job failed", "INSERT INTO Jobs"] {
        assert!(log.contains(seen), "{seen:?} is not in the log");
    }
    let line = log.lines().find(|line| line.contains("hunter2"));
    assert_eq!(line, None);
}
