use std::{
    future::{pending, ready},
    sync::Arc,
};

use tokio::sync::{Notify, mpsc, oneshot};
use tower_jobs::{PartOutcome, Scheduler, Shutdown, ShutdownReport};
use tower_jobs_durable::{Durable, DurableContext, Interrupted, Verdict};

use super::{Mail, SECOND, memory::Memory, soon};

/// Serves until the sender is used.
fn serve(
    scheduler: &Scheduler,
    durable: &Durable,
) -> (oneshot::Sender<()>, impl Future<Output = ShutdownReport<()>> + use<>) {
    let (stop, stopped) = oneshot::channel();
    let shutdown = Shutdown::with_trigger(scheduler, async { drop(stopped.await) })
        .grace(4 * SECOND)
        .part("durable", durable.part());
    (stop, async { shutdown.serve(|stop| stop).await })
}

#[tokio::test]
async fn job_that_is_cut_off_is_released_and_the_report_is_clean() {
    let (memory, (seen, mut sees)) = (Memory::default(), mpsc::unbounded_channel());
    let durable = Durable::builder(memory.clone())
        .register(move |_: Mail, _: DurableContext| {
            seen.send(()).unwrap();
            pending::<()>()
        })
        .start();
    let scheduler = Scheduler::new();
    let (stop, serving) = serve(&scheduler, &durable);
    let serving = tokio::spawn(serving);
    durable.outbox().push(Mail::new("ada")).await.unwrap();
    soon("the job", sees.recv()).await;
    stop.send(()).unwrap();
    let report = serving.await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.parts[0].note.as_deref(), Some("1 released"));
    assert!(matches!(memory.verdicts(1).await[0].1, Verdict::Release { .. }));
    assert!(durable.scheduler().is_closed());
}

/// The grace is longer than the test waits.
#[tokio::test]
async fn job_that_listens_is_released_before_the_deadline() {
    let (memory, (seen, mut sees)) = (Memory::default(), mpsc::unbounded_channel());
    let durable = Durable::builder(memory.clone())
        .register(move |_: Mail, context: DurableContext| {
            seen.send(context.is_shutting_down()).unwrap();
            async move {
                context.shutting_down().await;
                Err::<(), _>(Interrupted)
            }
        })
        .start();
    let scheduler = Scheduler::new();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = Shutdown::with_trigger(&scheduler, async { drop(stopped.await) })
        .grace(600 * SECOND)
        .part("durable", durable.part());
    let serving = tokio::spawn(async { shutdown.serve(|stop| stop).await });
    durable.outbox().push(Mail::new("ada")).await.unwrap();
    assert_eq!(soon("the job", sees.recv()).await, Some(false));
    stop.send(()).unwrap();
    let report = soon("the end", serving).await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.parts[0].note.as_deref(), Some("1 released"));
    assert!(matches!(memory.verdicts(1).await[0].1, Verdict::Release { .. }));
    assert_eq!(durable.scheduler().stats().failed, 0);
}

#[tokio::test]
async fn interruption_without_a_shutdown_is_a_failed_try() {
    let memory = Memory::default();
    let durable = Durable::builder(memory.clone())
        .register(|_: Mail, _: DurableContext| async { Err::<(), _>(Interrupted) })
        .start();
    durable.outbox().push(Mail::new("ada")).await.unwrap();
    let verdicts = memory.verdicts(1).await;
    let Verdict::Retry { error, .. } = &verdicts[0].1 else { panic!("{verdicts:?}") };
    assert!(error.contains("interrupted by the shutdown"), "{error}");
}

#[tokio::test]
async fn job_that_ends_in_time_is_completed_by_the_shutdown() {
    let (memory, go) = (Memory::default(), Arc::new(Notify::new()));
    let (seen, mut sees) = mpsc::unbounded_channel();
    let goes = go.clone();
    let durable = Durable::builder(memory.clone())
        .register(move |_: Mail, _: DurableContext| {
            seen.send(()).unwrap();
            let goes = goes.clone();
            async move { goes.notified().await }
        })
        .start();
    let scheduler = Scheduler::new();
    let (stop, serving) = serve(&scheduler, &durable);
    let serving = tokio::spawn(serving);
    durable.outbox().push(Mail::new("ada")).await.unwrap();
    soon("the job", sees.recv()).await;
    stop.send(()).unwrap();
    soon("the drain", durable.scheduler().shutting_down()).await;
    // Nothing more is claimed.
    durable.outbox().push(Mail::new("later")).await.unwrap();
    go.notify_one();
    let report = serving.await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(matches!(memory.verdicts(1).await[..], [(_, Verdict::Done)]));
    assert_eq!(memory.stored().len(), 1);
}

#[tokio::test]
async fn unstarted_job_of_the_process_is_pushed_at_the_end() {
    let memory = Memory::default();
    let durable = Durable::builder(memory.clone()).start();
    let scheduler = Scheduler::builder().limit(1).build();
    let outbox = durable.outbox();
    drop(scheduler.try_spawn(outbox.or_push(Mail::new("runs"), pending::<()>())).unwrap());
    drop(scheduler.try_spawn(outbox.or_push(Mail::new("waits"), ready(()))).unwrap());
    tokio::task::yield_now().await;
    let (stop, serving) = serve(&scheduler, &durable);
    stop.send(()).unwrap();
    let report = serving.await;
    assert_eq!(report.parts[0].note.as_deref(), Some("1 pushed unstarted"), "{report}");
    assert_eq!(report.parts[0].outcome, PartOutcome::Ended);
    let stored = memory.stored();
    assert_eq!(stored.len(), 1);
    assert!(String::from_utf8_lossy(&stored[0].payload).contains("waits"));
}

#[tokio::test]
async fn unstarted_job_that_cannot_be_pushed_is_in_the_report() {
    let memory = Memory::default();
    let durable = Durable::builder(memory.clone()).start();
    let scheduler = Scheduler::builder().limit(1).build();
    drop(scheduler.try_spawn(pending::<()>()).unwrap());
    drop(scheduler.try_spawn(durable.outbox().or_push(Mail::new("waits"), ready(()))).unwrap());
    memory.go_away();
    let (stop, serving) = serve(&scheduler, &durable);
    stop.send(()).unwrap();
    let report = serving.await;
    let outcome = PartOutcome::Failed("1 unstarted, and not pushed".into());
    assert_eq!(report.parts[0].outcome, outcome, "{report}");
}
