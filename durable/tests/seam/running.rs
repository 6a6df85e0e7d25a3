use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tower_jobs_durable::{Claimed, Durable, DurableContext, DurableId, DurableJob, Verdict};

use super::{Mail, SECOND, memory::Memory, soon};

fn row(id: &'static str, kind: &str, payload: impl Into<Vec<u8>>, starts: u32) -> Claimed {
    let (kind, payload) = (kind.to_owned(), payload.into());
    Claimed { id: DurableId::new(id), kind, payload, starts, ready_since: None }
}

#[tokio::test]
async fn handler_sees_its_job_and_its_try() {
    let (memory, (seen, mut sees)) = (Memory::default(), mpsc::unbounded_channel());
    let durable = Durable::builder(memory.clone())
        .register(move |job: Mail, context: DurableContext| {
            seen.send((job, context)).unwrap();
            async {}
        })
        .start();
    let payload = json!({ "to": "ada", "_tower_jobs": { "failures": 1, "label": "POST /users" } });
    memory.with(row("7", "mail", payload.to_string(), 4));
    let (job, context) = soon("the job", sees.recv()).await.unwrap();
    assert_eq!(job, Mail::new("ada"));
    assert_eq!((context.id.as_str(), context.attempt, context.crashes), ("7", 2, 2));
    assert_eq!(context.label.as_deref(), Some("POST /users"));
    assert!(matches!(memory.verdicts(1).await[0].1, Verdict::Done));
    drop(durable);
}

#[tokio::test]
async fn failure_is_retried_and_the_last_is_dead() {
    let memory = Memory::default();
    let _durable = Durable::builder(memory.clone())
        .register(|job: Mail, _: DurableContext| async move {
            if job.to == "panic" {
                panic!("on purpose")
            }
            Err::<(), _>(std::io::Error::other("no route\nat all"))
        })
        .start();
    memory.with(row("1", "mail", r#"{"to":"ada"}"#, 1));
    let Verdict::Retry { payload, error, after } = memory.verdicts(1).await[0].1.clone() else {
        panic!("no retry")
    };
    assert_eq!(error, "the job failed: no route at all");
    assert_eq!(after.as_millis(), 2_718);
    memory.with(row("1", "mail", payload, 2));
    assert!(
        matches!(&memory.verdicts(2).await[1].1, Verdict::Dead { error } if error.contains("no route"))
    );
    memory.with(row("2", "mail", r#"{"to":"panic"}"#, 1));
    let Verdict::Retry { error, .. } = memory.verdicts(3).await[2].1.clone() else {
        panic!("no retry")
    };
    assert_eq!(error, "the job panicked: on purpose");
}

#[tokio::test]
async fn row_that_cannot_be_a_job_is_dead_and_a_wrong_shape_is_retried() {
    let memory = Memory::default();
    let _durable =
        Durable::builder(memory.clone()).register(|_: Mail, _: DurableContext| async {}).start();
    memory.with(row("1", "mail", "{not json", 1));
    assert!(
        matches!(&memory.verdicts(1).await[0].1, Verdict::Dead { error } if error.contains("not JSON"))
    );
    memory.with(row("2", "mail", r#"{"too":"secret"}"#, 1));
    let Verdict::Retry { error, .. } = memory.verdicts(2).await[1].1.clone() else {
        panic!("no retry")
    };
    assert!(error.contains("Mail") && !error.contains("secret"), "{error}");
    memory.with(row("3", "mail", r#"{"to":"ada"}"#, 4));
    assert!(
        matches!(&memory.verdicts(3).await[2].1, Verdict::Dead { error } if error.starts_with("3 processes"))
    );
}

#[tokio::test]
async fn jobs_that_saw_a_crash_run_one_at_a_time() {
    let (memory, release) = (Memory::default(), Arc::new(Notify::new()));
    let released = release.clone();
    let _durable = Durable::builder(memory.clone())
        .register(move |_: Mail, _: DurableContext| {
            let released = released.clone();
            async move { released.notified().await }
        })
        .start();
    memory.with(row("1", "mail", r#"{"to":"a"}"#, 2));
    memory.with(row("2", "mail", r#"{"to":"b"}"#, 2));
    let (id, verdict) = memory.verdicts(1).await.remove(0);
    assert!(matches!(verdict, Verdict::Release { after } if after == SECOND), "{verdict:?}");
    assert_eq!(id, "2");
    release.notify_one();
    assert!(matches!(memory.verdicts(2).await[1].1, Verdict::Done));
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Import;

impl DurableJob for Import {
    const KIND: &str = "import";
}

#[tokio::test]
async fn kind_at_its_limit_leaves_room_to_others() {
    let (memory, running) = (Memory::default(), Arc::new(AtomicUsize::new(0)));
    let (release, counted) = (Arc::new(Notify::new()), running.clone());
    let released = release.clone();
    let durable = Durable::builder(memory.clone())
        .register_limited(2, move |_: Import, _: DurableContext| {
            let (running, released) = (counted.clone(), released.clone());
            async move {
                running.fetch_add(1, SeqCst);
                released.notified().await;
            }
        })
        .register(|_: Mail, _: DurableContext| async {})
        .start();
    for id in ["1", "2", "3"] {
        // One crash of 20 makes no suspect.
        memory.with(row(id, "import", "null", 2));
    }
    memory.with(row("4", "mail", r#"{"to":"a"}"#, 1));
    assert_eq!(memory.verdicts(1).await[0].0, "4");
    assert_eq!(running.load(SeqCst), 2);
    assert_eq!(durable.scheduler().active_count(), 2);
    release.notify_one();
    memory.verdicts(2).await;
    soon("the third", async {
        while running.load(SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    release.notify_waiters();
}

#[test]
fn kind_registered_twice_panics_with_both_places() {
    let twice = || {
        Durable::builder(Memory::default())
            .register(|_: Mail, _: DurableContext| async {})
            .register(|_: Mail, _: DurableContext| async {})
    };
    let panic = catch_unwind(AssertUnwindSafe(twice)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert_eq!(text.matches("running.rs:").count(), 2, "{text}");
    assert!(text.contains("give one of the two types another KIND"), "{text}");
}

#[tokio::test]
async fn durable_dropped_in_async_code_does_not_panic() {
    let durable =
        Durable::builder(Memory::default()).register(|_: Mail, _: DurableContext| async {}).start();
    drop(durable);
}
