//! One request's jobs as a group, found in its response if it has had any.

use std::{future::pending, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::get,
};
use http_body_util::BodyExt;
use tokio::sync::Notify;
use tokio_test::{assert_pending, assert_ready, task::spawn as poll_by_hand};
use tower_jobs::{Jobs, JobsLayer, Scheduler, SpawnError};

use crate::support::{
    SECOND, names,
    oneshot::{call, respond},
};

/// The `Jobs` of a request that has been answered.
async fn answered(scheduler: &Scheduler) -> Jobs {
    respond(scheduler).await.jobs
}

/// A route that spawns a job which waits for `go`, and one that waits for its response.
fn app(scheduler: &Scheduler, go: &Arc<Notify>) -> Router {
    async fn handler(jobs: Jobs, State(go): State<Arc<Notify>>) -> Result<(), SpawnError> {
        jobs.job("spawned").spawn(async move { go.notified().await }).await?;
        jobs.job("deferred").after_response(async {})?;
        Ok(())
    }
    Router::new()
        .route("/", get(handler))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(go.clone())
}

async fn fetch(app: &Router) -> Response {
    call(app.clone(), "GET", "/").await
}

#[tokio::test]
async fn test_waits_for_the_jobs_of_one_request_while_others_go_on() {
    let scheduler = Scheduler::new();
    let (go, never) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let others = fetch(&app(&scheduler, &never)).await;
    let response = fetch(&app(&scheduler, &go)).await;
    let jobs = response.extensions().get::<Jobs>().unwrap().clone();

    let mut idle = poll_by_hand(jobs.wait_idle());
    assert_pending!(idle.poll());
    assert_eq!((jobs.len(), jobs.is_empty(), scheduler.len()), (2, false, 4));
    drop(response);
    go.notify_one();
    idle.await;
    assert_eq!((jobs.len(), jobs.is_empty()), (0, true));
    jobs.wait_idle().await;

    let theirs = others.extensions().get::<Jobs>().unwrap();
    assert_eq!((theirs.len(), scheduler.len()), (2, 2));
}

#[tokio::test]
async fn jobs_of_the_response_are_those_of_the_handler() {
    let scheduler = Scheduler::new();
    let go = Arc::new(Notify::new());
    let response = fetch(&app(&scheduler, &go)).await;
    scheduler.try_spawn(pending::<()>()).unwrap();
    let other = answered(&scheduler).await;
    other.try_spawn(pending::<()>()).unwrap();

    let jobs = response.extensions().get::<Jobs>().unwrap();
    let list = jobs.jobs();
    assert_eq!(names(&list), ["spawned", "deferred"]);
    assert!(list.iter().all(|job| job.request.as_deref() == Some("GET /")));
    assert!(list[0].id < list[1].id);
    assert_eq!((scheduler.len(), scheduler.jobs().len()), (4, 4));
}

#[tokio::test]
async fn job_spawned_by_a_job_of_the_request_is_in_its_group() {
    let scheduler = Scheduler::new();
    let jobs = answered(&scheduler).await;
    let go = Arc::new(Notify::new());
    let (clone, gate) = (jobs.clone(), go.clone());
    let parent = jobs
        .try_spawn(async move {
            clone.try_spawn(async move { gate.notified().await }).map(drop).map_err(|_| "refused")
        })
        .unwrap();
    parent.await.unwrap();
    assert_eq!(jobs.len(), 1);
    let mut idle = poll_by_hand(jobs.wait_idle());
    assert_pending!(idle.poll());
    go.notify_one();
    idle.await;
    assert!(scheduler.is_empty());
}

#[tokio::test]
async fn every_kind_of_job_is_counted_until_it_ends_in_whatever_way() {
    let scheduler = Scheduler::builder().limit(3).on_failure(drop).build();
    let jobs = answered(&scheduler).await;
    let aborted = jobs.try_spawn(pending::<()>()).unwrap();
    jobs.try_spawn(async { Err::<(), _>("failed") }).unwrap();
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    jobs.try_spawn(async move {
        gate.notified().await;
        if true {
            panic!("a job panics");
        }
    })
    .unwrap();
    let pending_job = jobs.try_spawn(pending::<()>()).unwrap();
    assert!(pending_job.is_pending());
    let mut shielded = poll_by_hand(jobs.shield(pending::<()>()));
    assert_pending!(shielded.poll());
    jobs.spawn_blocking(|| ()).await.unwrap();
    assert_eq!(jobs.len(), 6);

    let mut idle = poll_by_hand(jobs.wait_idle());
    assert_pending!(idle.poll());
    go.notify_one();
    pending_job.abort();
    aborted.abort();
    while jobs.len() > 1 {
        tokio::task::yield_now().await;
    }
    assert_pending!(idle.poll());
    scheduler.close().await;
    assert!(idle.is_woken());
    assert_ready!(idle.poll());
    assert_eq!(jobs.len(), 0);
}

#[tokio::test]
async fn closing_ends_this_requests_jobs_and_no_others() {
    let scheduler = Scheduler::builder().limit(3).build();
    let (jobs, others) = (answered(&scheduler).await, answered(&scheduler).await);
    let theirs = others.try_spawn(pending::<()>()).unwrap();
    let on_scheduler = scheduler.try_spawn(pending::<()>()).unwrap();
    let runs = jobs.try_spawn(pending::<()>()).unwrap();
    let waits = jobs.try_spawn(pending::<()>()).unwrap();
    assert!(runs.is_active() && waits.is_pending());

    let late = jobs.close().await;
    assert!(late.is_empty(), "{late:?}");
    assert!(jobs.is_empty() && runs.is_finished() && waits.is_finished());
    assert!(theirs.is_active() && on_scheduler.is_active());
    assert!(!scheduler.is_draining());
    assert!(runs.await.unwrap_err().is_cancelled());
    // The request may have new jobs.
    jobs.try_spawn(async {}).unwrap().await.unwrap();
}

/// On two workers, one could start the next job while the other closes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_starts_none_of_the_jobs_that_wait_for_those_it_ends() {
    for _ in 0..100 {
        let scheduler = Scheduler::builder().limit(1).build();
        let jobs = answered(&scheduler).await;
        let runs = Arc::new(Notify::new());
        let has_begun = runs.clone();
        jobs.spawn(async move {
            has_begun.notify_one();
            pending::<()>().await;
        })
        .await
        .unwrap();
        let waiting: Vec<_> = (0..20).map(|_| jobs.try_spawn(async {}).unwrap()).collect();
        runs.notified().await;
        assert!(jobs.close().await.is_empty());
        for job in waiting {
            assert!(job.await.unwrap_err().is_cancelled());
        }
    }
}

#[tokio::test]
async fn closing_ends_deferred_jobs_before_their_response_is_over() {
    let scheduler = Scheduler::new();
    let go = Arc::new(Notify::new());
    let response = fetch(&app(&scheduler, &go)).await;
    let jobs = response.extensions().get::<Jobs>().unwrap().clone();
    assert!(jobs.close().await.is_empty());
    assert!(scheduler.is_empty());
    drop(response);
    let stats = scheduler.stats();
    assert_eq!((stats.accepted, stats.cancelled), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn close_gives_jobs_their_time_and_names_the_late_ones() {
    let scheduler = Scheduler::builder().close_timeout(2 * SECOND).build();
    let jobs = answered(&scheduler).await;
    let listens = jobs
        .spawn_with(|context| async move {
            context.cancelled().await;
            tokio::time::sleep(SECOND).await;
            "saved"
        })
        .await
        .unwrap();
    jobs.job("deaf").spawn_with(|_| pending::<()>()).await.unwrap();
    let began = tokio::time::Instant::now();
    let late = jobs.close().await;
    assert_eq!(began.elapsed(), 2 * SECOND);
    assert_eq!(names(&late), ["deaf"]);
    assert_eq!(listens.await.unwrap(), "saved");
    jobs.wait_idle().await;
    assert!(scheduler.is_empty());
}

async fn spawn_one(jobs: Jobs) {
    jobs.try_spawn(pending::<()>()).unwrap();
}

#[tokio::test]
async fn response_has_the_jobs_of_the_innermost_layer() {
    let (outer, inner) = (Scheduler::new(), Scheduler::new());
    let nested = Router::new().route("/", get(spawn_one)).layer(JobsLayer::new(inner.clone()));
    let app = nested.layer(JobsLayer::new(outer.clone()));
    let response = fetch(&app).await;
    assert_eq!((inner.len(), outer.len()), (1, 0));
    let jobs = response.extensions().get::<Jobs>().unwrap();
    assert_eq!(jobs.len(), 1);
    jobs.try_spawn(pending::<()>()).unwrap();
    assert_eq!((inner.len(), outer.len()), (2, 0));
}

#[tokio::test]
async fn response_has_no_jobs_if_its_request_has_had_none() {
    let scheduler = Scheduler::new();
    let layer = || JobsLayer::new(scheduler.clone());
    let spawns_later = async |jobs: Jobs| {
        let stream = futures_util::stream::once(async move {
            jobs.try_spawn(pending::<()>()).unwrap();
            Ok::<_, std::convert::Infallible>("body")
        });
        axum::body::Body::from_stream(stream)
    };
    let app = Router::new()
        .route("/none", get(async |_: Jobs| {}))
        .route("/ended", get(async |jobs: Jobs| jobs.spawn(async {}).await.map(drop)))
        .route("/later", get(spawns_later))
        .layer(layer());
    for (path, has_jobs) in [("/none", false), ("/ended", true), ("/later", false)] {
        let response = call(app.clone(), "GET", path).await;
        assert_eq!(response.extensions().get::<Jobs>().is_some(), has_jobs, "{path}");
        drop(response.into_body().collect().await.unwrap());
    }
    // An inner layer's stay, although the outer one's request has had no job, and the other way round.
    let inner = Router::new().route("/", get(spawn_one)).layer(layer());
    let outer = JobsLayer::new(Scheduler::new());
    let response = fetch(&inner.layer(outer)).await;
    assert_eq!(response.extensions().get::<Jobs>().unwrap().len(), 1);
}

/// A handler that answers with the parts of an earlier response, as a cache does.
#[tokio::test]
async fn cached_response_has_the_jobs_of_its_own_request() {
    type Cache = Arc<std::sync::Mutex<Option<http::response::Parts>>>;
    async fn handler(jobs: Jobs, State(cache): State<Cache>, request: Request) -> Response {
        if request.uri().query() == Some("spawns") {
            jobs.job(request.uri().to_string()).try_spawn(pending::<()>()).unwrap();
        }
        let cached = cache.lock().unwrap().clone();
        let parts = cached.unwrap_or_else(|| Response::new(()).into_parts().0);
        Response::from_parts(parts, axum::body::Body::from("hello"))
    }
    let scheduler = Scheduler::new();
    let cache = Cache::default();
    let app = Router::new()
        .fallback(get(handler))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(cache.clone());
    let first = call(app.clone(), "GET", "/first?spawns").await;
    let (parts, body) = first.into_parts();
    assert_eq!(names(&parts.extensions.get::<Jobs>().unwrap().jobs()), ["/first?spawns"]);
    *cache.lock().unwrap() = Some(parts);
    body.collect().await.unwrap();

    let second = call(app.clone(), "GET", "/second?spawns").await;
    assert_eq!(names(&second.extensions().get::<Jobs>().unwrap().jobs()), ["/second?spawns"]);
    let third = call(app, "GET", "/third").await;
    assert!(third.extensions().get::<Jobs>().is_none());
}

#[tokio::test]
async fn nested_layers_of_one_scheduler_see_the_same_end() {
    let scheduler = Scheduler::new();
    let defer_outside = |request: Request| {
        request.extensions().get::<Jobs>().unwrap().after_response(async {}).unwrap();
        request
    };
    let app = Router::new()
        .route("/", get(async |jobs: Jobs| jobs.after_response(async {}).map(drop)))
        .layer(JobsLayer::new(scheduler.clone()))
        .layer(tower::util::MapRequestLayer::new(defer_outside))
        .layer(JobsLayer::new(scheduler.clone()));
    let response = fetch(&app).await;
    assert_eq!(scheduler.stats().deferred, 2);
    assert_eq!(response.extensions().get::<Jobs>().unwrap().len(), 1);
    drop(response);
    scheduler.wait_idle().await;
    assert_eq!(scheduler.stats().completed, 2);
}

#[tokio::test]
async fn response_has_marked_jobs_beside_plain_ones() {
    enum Mail {}
    let (plain, mail) = (Scheduler::new(), Scheduler::new());
    let handler = async |jobs: Jobs, mails: Jobs<Mail>| {
        jobs.try_spawn(pending::<()>()).unwrap();
        mails.after_response(async {}).map(drop)
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(JobsLayer::new(plain.clone()))
        .layer(JobsLayer::<Mail>::with_marker(mail.clone()));
    let response = fetch(&app).await;
    assert_eq!(response.extensions().get::<Jobs>().unwrap().len(), 1);
    let mails = response.extensions().get::<Jobs<Mail>>().unwrap().clone();
    assert_eq!(mails.len(), 1);
    drop(response);
    mails.wait_idle().await;
    assert_eq!((mail.stats().completed, plain.len()), (1, 1));
}
