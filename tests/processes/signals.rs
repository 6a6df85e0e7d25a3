//! `Shutdown` and real signals. A signal reaches all tests of the process, so only one awaits any.

use std::{future::pending, process, time::Duration};

use tokio::{process::Command, sync::oneshot, time::sleep};
use tower_jobs::{Scheduler, ServerOutcome, Shutdown};

use crate::support::{SECOND, names};

#[tokio::test]
async fn second_signal_stops_server_tasks_and_closes_all_schedulers() {
    async fn terminate() {
        let own = process::id().to_string();
        let kill = Command::new("kill").args(["-TERM", &own]).status();
        assert!(kill.await.unwrap().success());
    }
    let scheduler = Scheduler::builder().close_timeout(20 * SECOND).build();
    let mail = Scheduler::builder().limit(1).build();
    let (go, goes) = oneshot::channel();
    let runs = mail.spawn(goes).await.unwrap();
    drop(mail.job("waiting").spawn(async {}).await.unwrap());
    let (tell, heard) = oneshot::channel();
    let job = scheduler.spawn_with(|context| async move {
        context.cancelled().await;
        go.send(()).unwrap();
        runs.await.unwrap();
        heard.await
    });
    job.await.unwrap();
    let shutdown = Shutdown::new(&scheduler).and_scheduler(&mail).readiness_delay(20 * SECOND);
    let serving = shutdown.serve(|stop| async {
        tokio::spawn(async {
            stop.await;
            tell.send(())
        });
        terminate().await;
        scheduler.shutting_down().await;
        // Within a second it would be a repeat.
        sleep(Duration::from_millis(1_100)).await;
        terminate().await;
        pending::<()>().await;
    });
    let report = serving.await;
    assert!(matches!(report.server, ServerOutcome::Unfinished), "{report}");
    assert_eq!((report.jobs.completed, report.others[0].completed), (1, 1), "{report}");
    assert_eq!(names(&report.others[0].never_started), ["waiting"], "{report}");
}
