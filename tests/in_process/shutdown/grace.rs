//! Jobs and their scheduler's own settings within the grace of a shutdown.

use std::{future::pending, io, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tower_jobs::{Scheduler, ServerOutcome, Shutdown};

use super::at_once;
use crate::support::{HOUR, SECOND, logs::Logs};

/// Waits for the beginning of the shutdown, and for the job's cancellation. Returns when each came.
#[tokio::test(start_paused = true)]
async fn job_hears_of_the_shutdown_at_once_and_is_cancelled_at_its_end() {
    let scheduler = Scheduler::new();
    let (began, watched) = (Instant::now(), scheduler.clone());
    let job = scheduler.spawn_with(move |context| async move {
        watched.shutting_down().await;
        let heard = began.elapsed();
        context.cancelled().await;
        (heard, began.elapsed())
    });
    let job = job.await.unwrap();
    let shutdown = Shutdown::with_trigger(&scheduler, sleep(2 * SECOND)).grace(6 * SECOND);
    shutdown.serve(|stop| stop).await;
    let (heard, cancelled) = job.await.unwrap();
    assert_eq!(heard.as_secs(), 2);
    assert!(cancelled > Duration::from_millis(7_500) && cancelled < 8 * SECOND, "{cancelled:?}");
}

#[tokio::test(start_paused = true)]
async fn wait_timeout_of_the_scheduler_does_not_shorten_the_grace() {
    let scheduler = Scheduler::builder().wait_timeout(10 * SECOND).build();
    drop(scheduler.spawn(sleep(24 * SECOND)).await.unwrap());
    let report = at_once(&scheduler).grace(25 * SECOND).serve(|stop| stop).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.phases.jobs.as_secs(), 24);
}

#[tokio::test(start_paused = true)]
async fn wait_timeout_of_the_scheduler_does_not_prolong_the_grace() {
    let scheduler = Scheduler::builder().wait_timeout(HOUR).build();
    drop(scheduler.spawn(pending::<()>()).await.unwrap());
    let report = at_once(&scheduler).grace(25 * SECOND).serve(|stop| stop).await;
    assert_eq!(report.jobs.cancelled.len(), 1);
    assert_eq!(report.phases.jobs.as_secs(), 24);
}

#[tokio::test(start_paused = true)]
async fn error_of_the_server_is_in_the_log_and_in_the_report() {
    let (logs, _guard) = Logs::start();
    let in_use = io::Error::from(io::ErrorKind::AddrInUse);
    let text = in_use.to_string();
    let report = at_once(&Scheduler::new()).serve(|_| async { Err::<(), _>(in_use) }).await;
    assert!(matches!(&report.server, ServerOutcome::Finished(Err(_))));
    assert!(!report.is_clean());
    assert!(report.to_string().starts_with(&format!("server finished ({text}); ")), "{report}");
    let warned = logs.iter().find(|event| event.field("level") == "WARN").expect("a warning");
    assert!(format!("{warned:?}").contains(&text), "{warned:?}");
}

#[tokio::test(start_paused = true)]
async fn report_has_failures_of_before_the_signal_in_all() {
    let scheduler = Scheduler::builder().on_failure(drop).build();
    for _ in 0..3 {
        drop(scheduler.spawn(async {}).await.unwrap());
        drop(scheduler.spawn(async { Err::<(), _>("no mail today") }).await.unwrap());
    }
    scheduler.wait_idle().await;
    let (signal, signalled) = oneshot::channel::<()>();
    signal.send(()).unwrap();
    let report = Shutdown::with_trigger(&scheduler, async { drop(signalled.await) })
        .serve(|stop| stop)
        .await;
    let line = report.to_string();
    let parts =
        ["; since the signal: drained in 0 ms: 0 completed; ", "in all: 3 completed, 3 failed"];
    for part in parts {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert!(report.is_clean(), "since the signal");
}

#[tokio::test(start_paused = true)]
async fn report_of_many_jobs_is_one_line_below_16_kb() {
    const CUT_BY_LOG_DRIVERS: usize = 16_384;
    let scheduler = Scheduler::builder().limit(300).build();
    for number in 0..600 {
        let name = format!("welcome e-mail to customer {number} of the shop");
        drop(scheduler.job(name).spawn(pending::<()>()).await.unwrap());
    }
    let report = at_once(&scheduler).grace(SECOND).serve(|stop| stop).await;
    assert_eq!((report.jobs.cancelled.len(), report.jobs.never_started.len()), (300, 300));
    let line = report.to_string();
    assert!(line.len() < CUT_BY_LOG_DRIVERS, "{} bytes", line.len());
    assert_eq!(line.lines().count(), 1);
    for part in ["300 cancelled (", "300 never started ("] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
}
