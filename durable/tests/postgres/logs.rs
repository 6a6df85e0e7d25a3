//! What is logged.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_jobs_durable::Durable;
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

use crate::store::{Seen, SendEmail, TwoTries, email, end, keyed, store, until};

const SECRET: &str = "wombat-7731";

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The subscriber is that of the whole test binary, so the lines of other tests are among them.
#[tokio::test(flavor = "multi_thread")]
async fn no_payload_is_logged_at_any_level() {
    let lines = Lines::default();
    tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(lines.clone()).init();
    let Some(store) = store().await else { return };
    let seen = Seen::default();
    let noted = seen.clone();
    let durable = Durable::builder(store.engine())
        .register(move |job: SendEmail, _| {
            noted.add(&job.to);
            async move { if job.to.contains("fail") { Err("no answer") } else { Ok(()) } }
        })
        .register(|_: TwoTries, _| async {})
        .dead_after(Duration::from_secs(3))
        .start();
    let outbox = durable.outbox();
    outbox.push(email(&format!("done {SECRET}"))).await.unwrap();
    outbox.push(email(&format!("fail {SECRET}"))).await.unwrap();
    outbox.push_with(email(SECRET), keyed("1").max_attempts(1)).await.unwrap();
    drop(outbox.push_with(email(SECRET), keyed("1")).await);
    let mut transaction = store.pool.begin().await.unwrap();
    outbox.push_in(&mut transaction, email(&format!("{SECRET} in"))).await.unwrap();
    transaction.commit().await.unwrap();
    // Of another shape, and one that serde cannot read.
    for payload in [r#"{"to": 3, "x": "wombat-7731"}"#, r#"{"x": 1e400, "to": "wombat-7731"}"#] {
        store
            .run_with("select graphile_worker.add_job('send_email', $1::text::json)", payload)
            .await;
    }
    let wrong = "select graphile_worker.add_job('two_tries', $1::text::json)";
    store.run_with(wrong, "\"wombat-7731\"").await;
    seen.reach(4).await;
    until("the others are waiting or dead", async || {
        let open = "select count(*) from graphile_worker.jobs where last_error is null";
        store.value(open).await == "0"
    })
    .await;
    end(&durable, Duration::from_secs(10)).await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("TRACE") && text.contains("sqlx"), "levels and targets are captured");
    assert!(text.contains("is tried again"), "failures are logged");
    let found = text.lines().find(|line| line.contains("wombat"));
    assert_eq!(found, None);
}
