//! Deferred jobs: they are accepted or refused at the call, hold no permit and no place until their
//! response ends, and start, wait or end then.

use std::{
    convert::Infallible,
    future::{pending, ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use http::{Request, Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::body::{Bytes, Frame};
use tokio::{
    sync::{Notify, mpsc},
    task::yield_now,
    time::{advance, sleep},
};
use tokio_test::{assert_pending, assert_ready, task::spawn as poll_by_hand};
use tower::{ServiceExt, service_fn};
use tower_jobs::{
    Job, JobState, Jobs, JobsLayer, ResponseOutcome, Scheduler, SpawnError, Stats, TrySpawnError,
};

use crate::support::{
    Drops, SECOND, give_way_once, holding, limited,
    logs::Logs,
    oneshot::{Open, respond, respond_over, respond_with},
    received, turn, watched, within,
};

const COMPLETE: ResponseOutcome = ResponseOutcome::Complete(StatusCode::OK);
const ABORTED: ResponseOutcome = ResponseOutcome::Aborted(StatusCode::OK);

/// A response with an unread body: dropped, it is aborted.
async fn respond_unread(scheduler: &Scheduler) -> Open<String> {
    respond_with(scheduler, Response::new("hello".to_owned())).await
}

/// Compares the counts. `expected` sets those that are not zero, since `Stats` is non-exhaustive.
#[track_caller]
fn check(scheduler: &Scheduler, expected: impl FnOnce(&mut Stats)) {
    let mut wanted = Stats::default();
    expected(&mut wanted);
    let stats = scheduler.stats();
    wanted.oldest_deferred = stats.oldest_deferred;
    (wanted.oldest_pending, wanted.oldest_active) = (stats.oldest_pending, stats.oldest_active);
    assert_eq!(stats, wanted);
}

#[tokio::test]
async fn deferred_job_is_neither_pending_nor_active() {
    let scheduler = limited(1, 1);
    let open = respond(&scheduler).await;
    let job = open.jobs.after_response(async { 7 }).unwrap();
    assert!(job.is_deferred() && !job.is_pending() && !job.is_active() && !job.is_finished());
    assert_eq!(job.state(), JobState::Deferred);
    assert_eq!(scheduler.jobs()[0].state, JobState::Deferred);
    assert_eq!((scheduler.len(), scheduler.active_count(), scheduler.pending_count()), (1, 0, 0));
    check(&scheduler, |stats| (stats.accepted, stats.deferred) = (1, 1));
    drop(open.response);
    assert!(job.is_active());
    assert_eq!(job.await.unwrap(), 7);
    scheduler.wait_idle().await;
    check(&scheduler, |stats| (stats.accepted, stats.completed) = (1, 1));
}

#[tokio::test]
async fn deferred_jobs_hold_no_permit_and_no_place() {
    let scheduler = limited(1, 1);
    let open = respond(&scheduler).await;
    let deferred: Vec<_> =
        (0..5_usize).map(|n| open.jobs.after_response(async move { n }).unwrap()).collect();
    let running = scheduler.try_spawn(pending::<()>()).unwrap();
    let waiting = scheduler.try_spawn(async {}).unwrap();
    assert!(running.is_active() && waiting.is_pending());
    check(&scheduler, |stats| {
        (stats.accepted, stats.deferred, stats.pending, stats.active) = (7, 5, 1, 1);
    });
    drop(open.response);
    assert!(deferred.iter().all(Job::is_pending), "the line takes them, although it is full");
    assert_eq!(scheduler.pending_count(), 6);
    running.abort();
    waiting.await.unwrap();
    for (n, job) in deferred.into_iter().enumerate() {
        assert_eq!(job.await.unwrap(), n);
    }
}

#[tokio::test]
async fn deferred_job_is_refused_when_try_spawn_would_be() {
    for (limit, pending_limit) in [(2, 0), (1, 1)] {
        let scheduler = limited(limit, pending_limit);
        let open = respond(&scheduler).await;
        let first = open.jobs.after_response(async { 1 }).unwrap();
        let running = [(); 2].map(|()| scheduler.try_spawn(pending::<()>()).unwrap());
        assert!(matches!(scheduler.try_spawn(async {}), Err(TrySpawnError::Full(_))));

        let refused = open.jobs.after_response(async { 3 }).unwrap_err();
        assert!(matches!(refused, TrySpawnError::Full(_)));
        assert_eq!(refused.into_future().await, 3);
        let refused = open.jobs.after_success(async { 4 }).unwrap_err();
        assert_eq!(refused.into_future().await, 4);
        let refused = open.jobs.after_response_with(|outcome| async move { outcome }).unwrap_err();
        assert_eq!(refused.into_future()(COMPLETE).await, COMPLETE);

        drop(open.response);
        assert!(first.is_pending());
        running.iter().for_each(Job::abort);
        assert_eq!(first.await.unwrap(), 1);
        check(&scheduler, |stats| {
            (stats.accepted, stats.completed, stats.cancelled) = (3, 1, 2);
            stats.refused.pending_full = 4;
        });
    }
}

#[tokio::test]
async fn job_that_its_key_would_let_start_is_deferred() {
    let scheduler = Scheduler::builder().limit(10).limit_per_key(1).pending_limit(5).build();
    for n in 0..6 {
        let job = scheduler.job("a's").concurrency_key("a").try_spawn(pending::<()>()).unwrap();
        assert_eq!(job.is_active(), n == 0);
    }
    let open = respond(&scheduler).await;
    let of = |key: &'static str| open.jobs.job("deferred").concurrency_key(key);
    assert!(matches!(of("a").after_response(async {}), Err(TrySpawnError::Full(_))));
    let of_b = of("b").after_response(async {}).unwrap();
    let of_none = open.jobs.after_response(async {}).unwrap();
    drop(open.response);
    assert!(of_b.is_active() && of_none.is_active());
}

// `deferred_limit`.

#[tokio::test]
async fn deferred_job_beyond_deferred_limit_is_refused() {
    let scheduler = Scheduler::builder().limit(1).pending_limit(1).deferred_limit(2).build();
    let open = respond(&scheduler).await;
    let first = open.jobs.after_response(pending::<()>()).unwrap();
    let second = open.jobs.after_success(pending::<()>()).unwrap();

    let refused = open.jobs.after_response(async { 3 }).unwrap_err();
    assert!(matches!(refused, TrySpawnError::DeferredFull(_)) && refused.is_full());
    assert!(refused.to_string().contains("deferred_limit"), "{refused}");
    assert_eq!(SpawnError::from(open.jobs.after_response(async {}).unwrap_err()), {
        SpawnError::DeferredFull
    });
    assert_eq!(refused.into_future().await, 3);
    let refused = open.jobs.after_response_with(|outcome| async move { outcome }).unwrap_err();
    assert_eq!(refused.into_future()(COMPLETE).await, COMPLETE);
    assert!(scheduler.try_spawn(async {}).is_ok(), "other spawns are not affected");
    turn().await;
    assert_eq!(scheduler.len(), 2);

    // A pending job beyond `pending_limit` counts as a deferred one.
    drop(open.response);
    assert!(first.is_active() && second.is_pending());
    let other = respond(&scheduler).await;
    assert!(matches!(other.jobs.after_response(async {}), Err(TrySpawnError::Full(_))));
    second.abort();
    other.jobs.after_response(async {}).unwrap();
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn refusal_by_deferred_limit_is_a_503() {
    use axum::response::IntoResponse;

    let scheduler = Scheduler::builder().deferred_limit(1).build();
    let open = respond(&scheduler).await;
    open.jobs.after_response(async {}).unwrap();
    let refused = open.jobs.after_response(async {}).unwrap_err().into_response();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
}

#[tokio::test]
async fn deferred_job_that_never_starts_makes_room_for_another() {
    for skipped in [true, false] {
        let scheduler = Scheduler::builder().deferred_limit(1).build();
        let (open, other) = (respond_unread(&scheduler).await, respond(&scheduler).await);
        let deferred = open.jobs.after_success(async {}).unwrap();
        let defer = || other.jobs.after_response(async {});
        assert!(matches!(defer(), Err(TrySpawnError::DeferredFull(_))));
        if skipped {
            drop(open.response);
        } else {
            deferred.abort();
        }
        assert!(defer().unwrap().is_deferred());
        assert_eq!(deferred.await.unwrap_err().is_skipped(), skipped);
    }
}

// `deferred_timeout`.

#[tokio::test(start_paused = true)]
async fn job_deferred_too_long_starts_as_unfinished() {
    let (tell, mut outcomes) = mpsc::unbounded_channel();
    let scheduler = Scheduler::builder().deferred_timeout(10 * SECOND).build();
    let open = respond(&scheduler).await;
    let (first, second) = (tell.clone(), tell);
    open.jobs.after_response_with(|outcome| async move { first.send(outcome).unwrap() }).unwrap();
    let skipped = open.jobs.after_success(async {}).unwrap();
    advance(6 * SECOND).await;
    let late = open
        .jobs
        .after_response_with(|outcome| async move { second.send(outcome).unwrap() })
        .unwrap();
    assert_eq!(scheduler.stats().oldest_deferred, Some(6 * SECOND));
    sleep(3 * SECOND).await;
    assert_eq!(received(&mut outcomes), []);
    assert!(skipped.is_deferred());

    // At its own time each.
    sleep(2 * SECOND).await;
    assert_eq!(received(&mut outcomes), [ResponseOutcome::Unfinished(Some(StatusCode::OK))]);
    assert!(skipped.await.unwrap_err().is_skipped() && late.is_deferred());
    assert_eq!(open.jobs.response(), None, "the response is still open");
    sleep(6 * SECOND).await;
    assert_eq!(received(&mut outcomes), [ResponseOutcome::Unfinished(Some(StatusCode::OK))]);
    assert!(late.is_finished());

    // The end of the response starts nothing more.
    drop(open.response);
    scheduler.wait_idle().await;
    assert_eq!(received(&mut outcomes), []);
    check(&scheduler, |stats| (stats.accepted, stats.completed, stats.skipped) = (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn deferred_timeout_in_the_handler_has_no_status() {
    let scheduler = Scheduler::builder().deferred_timeout(SECOND).build();
    let inner = service_fn(async |request: Request<()>| {
        let jobs = request.extensions().get::<Jobs>().expect("the layer is there");
        let job = jobs.after_response_with(|outcome| async move { outcome }).unwrap();
        let outcome = within("the timeout", job).await.unwrap();
        assert_eq!(outcome, ResponseOutcome::Unfinished(None));
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let layer = JobsLayer::new(scheduler.clone());
    let service = tower::ServiceBuilder::new().layer(layer).service(inner);
    drop(service.oneshot(Request::new(())).await.unwrap());
    check(&scheduler, |stats| (stats.accepted, stats.completed) = (1, 1));
}

#[tokio::test(start_paused = true)]
async fn deferred_timeout_watches_again_after_a_pause() {
    let scheduler = Scheduler::builder().deferred_timeout(SECOND).build();
    for _ in 0..3 {
        let open = respond(&scheduler).await;
        let ends_before = open.jobs.after_response(async {}).unwrap();
        drop(open.response);
        ends_before.await.unwrap();
        sleep(3 * SECOND).await;
        let open = respond(&scheduler).await;
        let began = tokio::time::Instant::now();
        let job = open.jobs.after_response_with(|outcome| async move { outcome }).unwrap();
        let unfinished = ResponseOutcome::Unfinished(Some(StatusCode::OK));
        assert_eq!(within("the timeout", job).await.unwrap(), unfinished);
        assert!(began.elapsed() <= SECOND * 11 / 10, "{:?}", began.elapsed());
        assert_eq!(unfinished.status(), Some(StatusCode::OK));
    }
}

#[tokio::test(start_paused = true)]
async fn job_in_time_for_deferred_timeout_has_its_own_outcome() {
    let scheduler = Scheduler::builder().deferred_timeout(10 * SECOND).build();
    let open = respond(&scheduler).await;
    let job = open.jobs.after_response_with(|outcome| async move { outcome }).unwrap();
    sleep(9 * SECOND).await;
    drop(open.response);
    assert_eq!(job.await.unwrap(), COMPLETE);
    let report = scheduler.wait_and_close().await;
    assert_eq!((report.is_clean(), report.elapsed), (true, Duration::ZERO), "{report}");
}

#[tokio::test]
async fn closed_scheduler_gives_deferred_jobs_back() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    scheduler.close().await;
    let refused = open.jobs.after_response(async { 1 }).unwrap_err();
    assert!(matches!(refused, TrySpawnError::Closed(_)));
    assert_eq!(refused.into_future().await, 1);
    let refused = open.jobs.after_response_with(|_| async { 2 }).unwrap_err();
    assert_eq!(refused.into_future()(COMPLETE).await, 2);
}

#[test]
fn without_a_runtime_deferred_jobs_are_refused() {
    let scheduler = Scheduler::new();
    let open = assert_ready!(poll_by_hand(respond(&scheduler)).poll());
    let refused = open.jobs.after_response(async {}).unwrap_err();
    assert!(matches!(refused, TrySpawnError::NoRuntime(_)));
    drop(open.response);
    check(&scheduler, |stats| stats.refused.no_runtime = 1);
}

#[tokio::test]
async fn job_deferred_after_its_response_starts_with_its_outcome() {
    let scheduler = Scheduler::new();
    let open = respond_unread(&scheduler).await;
    assert_eq!(open.jobs.response(), None);
    let jobs = open.jobs.clone();
    let go = Arc::new(Notify::new());
    let spawner = {
        let go = go.clone();
        let late = async move {
            go.notified().await;
            assert_eq!(jobs.response(), Some(ABORTED));
            let late = jobs.after_response_with(|outcome| async move { outcome }).unwrap();
            let skipped = jobs.after_success(async {}).unwrap();
            (late.is_active(), late.await.unwrap(), skipped.await.unwrap_err().is_skipped())
        };
        open.jobs.try_spawn(async move { Vec::from([late.await]) }).unwrap()
    };
    drop(open.response);
    go.notify_one();
    assert_eq!(spawner.await.unwrap(), [(true, ABORTED, true)]);
    scheduler.wait_idle().await;
    check(&scheduler, |stats| (stats.accepted, stats.completed, stats.skipped) = (3, 2, 1));
}

/// A body that defers a job in its first poll.
struct Deferring(Option<Jobs>, mpsc::UnboundedSender<ResponseOutcome>);

impl hyper::body::Body for Deferring {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let sender = self.1.clone();
        let frame = self.0.take().map(|jobs| {
            let tell = move |outcome| async move { sender.send(outcome).unwrap() };
            assert!(jobs.after_response_with(tell).unwrap().is_deferred());
            Ok(Frame::data(Bytes::from_static(b"hello")))
        });
        Poll::Ready(frame)
    }
}

#[tokio::test]
async fn body_may_defer_jobs_while_it_is_read() {
    let scheduler = Scheduler::new();
    let (tell, mut outcomes) = mpsc::unbounded_channel();
    let inner = service_fn(|request: Request<()>| {
        let jobs = request.extensions().get::<Jobs>().cloned();
        ready(Ok::<_, Infallible>(Response::new(Deferring(jobs, tell.clone()))))
    });
    let service = tower::ServiceBuilder::new().layer(JobsLayer::new(scheduler)).service(inner);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let text = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert_eq!(text, "hello");
    assert_eq!(outcomes.recv().await.unwrap(), COMPLETE);
}

#[tokio::test]
async fn aborted_deferred_job_never_runs() {
    let scheduler = limited(1, 0);
    let open = respond(&scheduler).await;
    let ran = Arc::new(AtomicBool::new(false));
    let runs = ran.clone();
    let deferred = open.jobs.after_response(async move { runs.store(true, Relaxed) }).unwrap();
    deferred.abort();
    assert!(deferred.is_finished());
    scheduler.try_spawn(async {}).unwrap().await.unwrap();
    drop(open.response);
    scheduler.wait_idle().await;
    assert!(!ran.load(Relaxed));
    let error = deferred.await.unwrap_err();
    assert!(error.is_cancelled() && !error.is_skipped());
    check(&scheduler, |stats| (stats.accepted, stats.completed, stats.cancelled) = (2, 1, 1));
}

#[tokio::test]
async fn deferred_job_that_is_closed_never_starts() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    let mut deferred: Job<()> = open.jobs.after_response(async {}).unwrap();
    deferred.close().await.unwrap();
    deferred.close().await.unwrap();
    assert!(deferred.is_finished());
    drop(open.response);
    assert!(deferred.await.unwrap_err().is_cancelled());
    check(&scheduler, |stats| (stats.accepted, stats.cancelled) = (1, 1));
}

#[tokio::test]
async fn deferred_job_runs_though_its_handle_was_dropped() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    drop(open.jobs.after_response(async {}).unwrap());
    drop(open);
    scheduler.wait_idle().await;
    check(&scheduler, |stats| (stats.accepted, stats.completed) = (1, 1));
}

#[tokio::test]
async fn closing_never_starts_deferred_jobs_and_names_them() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    let mut job = open.jobs.job("receipt").after_response(async {}).unwrap();
    let report = scheduler.close().await;
    assert!(!report.is_clean());
    assert_eq!(report.never_started.len(), 1);
    assert_eq!(report.never_started[0].name, "receipt");
    assert_eq!(report.never_started[0].id, job.id());
    assert!(job.wait().await.unwrap_err().is_cancelled());
    // Nothing is left to start.
    drop(open);
    check(&scheduler, |stats| (stats.accepted, stats.never_started) = (1, 1));
}

#[tokio::test]
async fn draining_waits_for_responses_and_then_for_their_jobs() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    let jobs = open.jobs.clone();
    let job = jobs.clone().after_response(async move {
        jobs.after_response(async {}).unwrap();
    });
    let job = job.unwrap();
    let mut drain = poll_by_hand(scheduler.wait_and_close());
    assert_pending!(drain.poll());
    assert!(scheduler.is_draining() && job.is_deferred());
    let during = open.jobs.after_response(async {}).unwrap();
    drop(open.response);
    let report = drain.await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.completed, 3);
    assert!(job.is_finished() && during.is_finished() && scheduler.is_closed());
}

#[tokio::test]
async fn draining_ends_with_a_skipped_job_too() {
    let scheduler = Scheduler::new();
    let open = respond_unread(&scheduler).await;
    open.jobs.after_success(async {}).unwrap();
    let mut drain = poll_by_hand(scheduler.wait_and_close());
    assert_pending!(drain.poll());
    drop(open.response);
    let report = drain.await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.completed, report.skipped), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn drain_out_of_time_never_starts_deferred_jobs() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    open.jobs.after_response(async {}).unwrap();
    let report = scheduler.wait_and_close_within(Duration::from_secs(5)).await;
    assert_eq!(report.never_started.len(), 1);
    assert_eq!(report.elapsed, Duration::from_secs(5));
    drop(open);
    check(&scheduler, |stats| (stats.accepted, stats.never_started) = (1, 1));
}

#[tokio::test]
async fn deferred_jobs_start_in_order_of_responses_then_of_calls() {
    let scheduler = Scheduler::builder().limit(1).build();
    let (tell, mut said) = mpsc::unbounded_channel();
    let say = |what: &'static str| {
        let tell = tell.clone();
        async move { tell.send(what).unwrap() }
    };
    let (first, second) = (respond(&scheduler).await, respond(&scheduler).await);
    first.jobs.after_response(say("first 1")).unwrap();
    second.jobs.after_response(say("second 1")).unwrap();
    first.jobs.after_response(say("first 2")).unwrap();
    second.jobs.after_response(say("second 2")).unwrap();
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    scheduler.try_spawn(async move { gate.notified().await }).unwrap();
    scheduler.try_spawn(say("pending before")).unwrap();
    drop(second.response);
    scheduler.try_spawn(say("pending between")).unwrap();
    drop(first.response);
    go.notify_one();
    scheduler.wait_idle().await;
    let expected =
        ["pending before", "second 1", "second 2", "pending between", "first 1", "first 2"];
    assert_eq!(received(&mut said), expected);
}

#[tokio::test]
async fn spawner_waits_until_fewer_than_pending_limit_wait() {
    let scheduler = limited(1, 1);
    let open = respond(&scheduler).await;
    let deferred = open.jobs.after_response(pending::<()>()).unwrap();
    let runs = scheduler.try_spawn(pending::<()>()).unwrap();
    let first = scheduler.try_spawn(pending::<()>()).unwrap();
    let mut waiting = poll_by_hand(scheduler.spawn(async {}));
    assert_pending!(waiting.poll());
    drop(open.response);
    assert!(first.is_pending() && deferred.is_pending());
    runs.abort();
    let _cancelled = runs.await;
    assert!(first.is_active() && deferred.is_pending() && !waiting.is_woken());
    first.abort();
    let _cancelled = first.await;
    assert!(deferred.is_active() && waiting.is_woken());
    assert!(assert_ready!(waiting.poll()).unwrap().is_pending());
}

#[tokio::test]
async fn many_aborted_deferred_jobs_are_gone_at_once() {
    const MANY: usize = 30_000;
    let scheduler = Scheduler::builder().deferred_limit(1).build();
    let open = respond(&scheduler).await;
    let drops = Drops::default();
    for _ in 0..MANY {
        open.jobs.after_response(holding(drops.one())).unwrap().abort();
    }
    while drops.count() < MANY {
        yield_now().await;
    }
    assert!(scheduler.is_empty() && open.jobs.is_empty());
    check(&scheduler, |stats| (stats.accepted, stats.cancelled) = (MANY as u64, MANY as u64));
    drop(open);
    scheduler.wait_idle().await;
    check(&scheduler, |stats| (stats.accepted, stats.cancelled) = (MANY as u64, MANY as u64));
}

#[tokio::test]
async fn response_may_end_outside_any_runtime() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    let job = open.jobs.after_response(async { 7 }).unwrap();
    thread::spawn(move || drop(open.response)).join().unwrap();
    assert_eq!(job.await.unwrap(), 7);
}

/// Panics when it is dropped unrun.
struct Trap(bool);

impl Drop for Trap {
    fn drop(&mut self) {
        assert!(!self.0, "dropped unrun");
    }
}

#[tokio::test]
async fn skipped_job_that_panics_when_it_is_dropped_harms_no_other() {
    let (logs, _guard) = Logs::start();
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let open = respond_unread(&scheduler).await;
    let trap = Trap(true);
    let skipped = open
        .jobs
        .job("trap")
        .after_success(async move {
            let mut trap = trap;
            trap.0 = false;
        })
        .unwrap();
    let other = open.jobs.after_response(async { 7 }).unwrap();
    drop(open.response);
    assert!(skipped.is_finished());
    assert!(skipped.await.unwrap_err().is_skipped());
    assert_eq!(other.await.unwrap(), 7);
    scheduler.wait_idle().await;
    turn().await;
    let text = "a value of a job panicked while it was dropped";
    let logged: Vec<_> = logs.iter().filter(|event| event.field("message") == text).collect();
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert_eq!(logged[0].field("spans"), "", "it never started");
    assert!(failures.try_recv().is_err(), "it is no failure of the job");
    check(&scheduler, |stats| (stats.accepted, stats.completed, stats.skipped) = (2, 1, 1));
}

#[tokio::test]
async fn closure_that_panics_is_its_jobs_panic() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    let job = open.jobs.after_response_with(|outcome| {
        assert!(!outcome.is_complete(), "the closure panics");
        async {}
    });
    drop(open.response);
    assert!(job.unwrap().await.unwrap_err().is_panic());
    check(&scheduler, |stats| (stats.accepted, stats.panicked) = (1, 1));
}

#[tokio::test(start_paused = true)]
async fn run_timeout_of_a_deferred_job_begins_when_it_starts() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    let job = open.jobs.job("slow").timeout(SECOND).after_response(pending::<()>()).unwrap();
    advance(10 * SECOND).await;
    assert!(job.is_deferred());
    drop(open.response);
    let began = tokio::time::Instant::now();
    assert!(job.await.unwrap_err().is_timeout());
    assert_eq!(began.elapsed(), SECOND);
}

/// Over HTTP/2 the job lets other tasks go first. Before that, no part of it has run.
#[tokio::test]
async fn job_that_is_aborted_once_its_response_is_over_never_runs() {
    for (version, turns) in [(Version::HTTP_11, 0), (Version::HTTP_2, 0), (Version::HTTP_2, 1)] {
        let scheduler = limited(1, 10);
        let open = respond_over(version, &scheduler, Response::new(Empty::<Bytes>::new())).await;
        // In a task that takes turns with the task of the job.
        let ran = tokio::spawn(async move {
            let ran = Arc::new(AtomicBool::new(false));
            let in_job = ran.clone();
            let job = open.jobs.after_response(async move { in_job.store(true, Relaxed) }).unwrap();
            drop(open);
            assert_eq!(job.state(), JobState::Active);
            for _ in 0..turns {
                give_way_once().await;
            }
            job.abort();
            assert!(job.await.unwrap_err().is_cancelled());
            check(&scheduler, |stats| (stats.accepted, stats.cancelled) = (1, 1));
            ran.load(Relaxed)
        });
        assert!(!ran.await.unwrap(), "after {turns} turns, {version:?}");
    }
}

/// Over HTTP/1 one task has the body and writes it, before any other can run.
#[tokio::test]
async fn over_http_1_a_job_runs_in_the_first_turn_after_its_response() {
    for (version, runs) in
        [(Version::HTTP_10, true), (Version::HTTP_11, true), (Version::HTTP_2, false)]
    {
        let scheduler = limited(1, 10);
        let open = respond_over(version, &scheduler, Response::new(Empty::<Bytes>::new())).await;
        let ran = tokio::spawn(async move {
            let job = open.jobs.after_response(async {}).unwrap();
            drop(open);
            give_way_once().await;
            job.is_finished()
        });
        assert_eq!(ran.await.unwrap(), runs, "{version:?}");
    }
}

#[test]
fn deferred_job_unbegun_when_its_runtime_goes_is_cancelled() {
    let scheduler = limited(1, 10);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let open = runtime.block_on(respond(&scheduler));
    let entered = runtime.enter();
    let job = open.jobs.after_response(pending::<()>()).unwrap();
    drop(entered);
    drop(open);
    assert!(job.is_active());
    drop(runtime);
    assert!(job.is_finished() && scheduler.is_closed());
    check(&scheduler, |stats| (stats.accepted, stats.cancelled) = (1, 1));
}
