//! The `Debug` of each public type: short, without user data, and the same before and after use.

use std::{
    future::{pending, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Bytes;
use tokio_test::{assert_pending, task::spawn as poll_by_hand};
use tower::{Layer, Service, service_fn};
use tower_jobs::{
    AtomicLayer, Jobs, JobsLayer, ResponseOutcome, Scheduler, SpawnError, TrySpawnError,
};

use crate::support::oneshot::respond;

#[tokio::test]
async fn debug_of_a_scheduler_has_its_state_and_limits() {
    let scheduler = Scheduler::builder().limit(1).pending_limit(None).build();
    scheduler.try_spawn(pending::<()>()).unwrap();
    scheduler.try_spawn(pending::<()>()).unwrap();
    let shown = "Scheduler { state: Open, active: 1, pending: 1, limit: Some(1), \
                 pending_limit: None, .. }";
    assert_eq!(format!("{scheduler:?}"), shown);
    let layer = JobsLayer::new(scheduler.clone());
    assert_eq!(format!("{layer:?}"), format!("JobsLayer {{ scheduler: {shown}, .. }}"));
    let jobs = respond(&scheduler).await.jobs;
    let of_jobs = format!("Jobs {{ request: \"POST /signup\", len: 0, scheduler: {shown} }}");
    assert_eq!(format!("{jobs:?}"), of_jobs);
    assert!(format!("{:?}", AtomicLayer::new(scheduler)).contains(shown));
    let builder = format!("{:?}", Scheduler::builder().limit(7));
    assert!(builder.starts_with("SchedulerBuilder { config: SchedulerConfig { limit: Some(7), "));
}

#[tokio::test]
async fn debug_of_a_job_has_its_id_name_and_state() {
    let scheduler = Scheduler::new();
    let job = scheduler.job("mail").spawn(pending::<()>()).await.unwrap();
    let shown = format!("Job {{ id: JobId({}), name: \"mail\", state: Active, .. }}", job.id());
    assert_eq!(format!("{job:?}"), shown);
    let shows_context = |context| async move { format!("{context:?}") };
    let job = scheduler.job("shown").spawn_with(shows_context).await.unwrap();
    let shown =
        format!("JobContext {{ id: JobId({}), name: \"shown\", is_cancelled: false }}", job.id());
    assert_eq!(job.await.unwrap(), shown);
}

#[tokio::test]
async fn debug_of_a_spawn_has_no_future() {
    let scheduler = Scheduler::builder().limit(1).pending_limit(1).build();
    let builder = scheduler.job("mail").timeout(Duration::from_secs(1));
    assert_eq!(
        format!("{builder:?}"),
        "JobBuilder { name: Some(\"mail\"), timeout: Some(1s), .. }"
    );
    for _ in 0..2 {
        scheduler.try_spawn(pending::<()>()).unwrap();
    }
    let mut spawn = poll_by_hand(scheduler.spawn(async {}));
    assert_eq!(format!("{:?}", &*spawn), "SpawnFuture { waiting: false, .. }");
    assert_pending!(spawn.poll());
    assert_eq!(format!("{:?}", &*spawn), "SpawnFuture { waiting: true, .. }");
    let refused = scheduler.try_spawn(async {}).unwrap_err();
    assert_eq!(format!("{refused:?}"), "Full(..)");
    let deferred_full = TrySpawnError::DeferredFull(Box::new(()));
    assert_eq!(format!("{deferred_full:?}"), "DeferredFull(..)");
    assert_eq!(SpawnError::from(deferred_full), SpawnError::DeferredFull);
    let open = respond(&scheduler).await;
    let scope = format!("{:?}", open.jobs.job("x"));
    assert_eq!(scope, "JobBuilder { name: Some(\"x\"), timeout: None, .. }");
}

#[tokio::test]
async fn debug_of_a_job_error_has_its_cause() {
    let scheduler = Scheduler::new();
    let failed = scheduler.spawn(async { Err::<(), _>("no ink") }).await.unwrap();
    let error = failed.await.unwrap_err();
    assert_eq!(format!("{error:?}"), "JobError(the job failed: \"no ink\")");
    let aborted = scheduler.spawn(pending::<()>()).await.unwrap();
    aborted.abort();
    assert_eq!(format!("{:?}", aborted.await.unwrap_err()), "JobError(the job was cancelled)");
}

#[tokio::test]
async fn debug_of_services_and_their_futures_is_short() {
    let scheduler = Scheduler::new();
    let inner = service_fn(|_: Request<()>| {
        ready(Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new())))
    });
    let request = || Request::new(());
    let mut service = JobsLayer::new(scheduler.clone()).layer(inner);
    let response = service.call(request());
    assert_eq!(format!("{response:?}"), "ResponseFuture { .. }");
    let body = response.await.unwrap().into_body();
    assert_eq!(format!("{body:?}"), "ResponseBody { inner: Empty, .. }");
    let mut atomic = AtomicLayer::new(scheduler.clone()).layer(inner);
    assert_eq!(format!("{:?}", atomic.call(request())), "AtomicFuture { .. }");
    let shown = format!("{:?}", JobsLayer::new(scheduler.clone()).layer(()));
    assert!(shown.starts_with("JobsService { inner: (), layer: JobsLayer { "), "{shown}");
    assert_eq!(format!("{:?}", ResponseOutcome::Unfinished(None)), "Unfinished(None)");
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn debug_of_a_rejection_is_its_name() {
    use axum::extract::FromRequestParts;

    let (mut parts, ()) = Request::new(()).into_parts();
    let rejection = Jobs::<()>::from_request_parts(&mut parts, &()).await.unwrap_err();
    assert_eq!(format!("{rejection:?}"), "JobsRejection");
}

#[tokio::test]
async fn debug_of_a_list_has_its_jobs() {
    let scheduler = Scheduler::new();
    let job = scheduler.job("mail").spawn(pending::<()>()).await.unwrap();
    let report = scheduler.close().await;
    let shown = format!("{:?}", report.cancelled);
    assert!(shown.starts_with(&format!("[JobInfo {{ id: JobId({}), name: \"mail\"", job.id())));
    assert_eq!(format!("{:?}", report.failed), "[]");
}

#[cfg(feature = "shutdown")]
#[tokio::test]
async fn debug_of_a_shutdown_has_its_times() {
    let scheduler = Scheduler::new();
    let shutdown = tower_jobs::Shutdown::with_trigger(&scheduler, ready(()));
    let shown = format!("{:?}", shutdown.grace(Duration::from_secs(7)));
    assert!(
        shown.starts_with("Shutdown { schedulers: [Scheduler { ") && shown.contains("grace: 7s")
    );
    let shutdown = tower_jobs::Shutdown::with_trigger(&scheduler, ready(()));
    let report = shutdown
        .serve(async |stop| {
            let before = format!("{stop:?}");
            stop.clone().await;
            (before, format!("{stop:?}"))
        })
        .await;
    let tower_jobs::ServerOutcome::Finished((before, after)) = report.server else {
        panic!("{:?}", report.server);
    };
    assert_eq!(before, "StopSignal { stopped: false }");
    assert_eq!(after, "StopSignal { stopped: true }");
}
