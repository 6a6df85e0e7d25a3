//! Blocking closures that start when the response ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use http::{Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::body::Bytes;
use tokio::sync::oneshot;
use tower_jobs::{Job, ResponseOutcome, Scheduler, TrySpawnError};

use crate::support::{
    Drops, PLENTY, SECOND, give_way_once, limited,
    oneshot::{Open, respond, respond_over, respond_with},
    received, watched, within,
};

const COMPLETE: ResponseOutcome = ResponseOutcome::Complete(StatusCode::OK);
const ABORTED: ResponseOutcome = ResponseOutcome::Aborted(StatusCode::OK);

/// A response with an unread body: dropped, it is aborted.
async fn respond_unread(scheduler: &Scheduler) -> Open<String> {
    respond_with(scheduler, Response::new("hello".to_owned())).await
}

#[tokio::test]
async fn closure_runs_on_a_thread_when_its_response_ends() {
    let scheduler = Scheduler::new();
    let ran = Arc::new(AtomicBool::new(false));
    let open = respond(&scheduler).await;
    let (in_job, test_thread) = (ran.clone(), thread::current().id());
    let job = open
        .jobs
        .job("export")
        .after_response_blocking(move || {
            in_job.store(true, SeqCst);
            thread::current().id() != test_thread
        })
        .unwrap();
    let skippable = open.jobs.job("mail").after_success_blocking(|| 7).unwrap();
    assert!(job.is_deferred() && skippable.is_deferred());
    give_way_once().await;
    assert!(!ran.load(SeqCst));
    assert_eq!(open.jobs.len(), 2);
    let info = job.info();
    assert_eq!((&*info.name, info.request.as_deref()), ("export", Some("POST /signup")));

    drop(open.response);
    assert!(job.is_active());
    assert!(within("the thread", job).await.unwrap(), "it ran on the runtime's only worker");
    assert_eq!(skippable.await.unwrap(), 7);
    assert!(ran.load(SeqCst) && open.jobs.is_empty());
}

#[tokio::test]
async fn closure_gets_the_outcome_of_its_response() {
    let scheduler = Scheduler::new();
    let complete = respond(&scheduler).await;
    let first = complete.jobs.after_response_blocking_with(|outcome| outcome).unwrap();
    drop(complete.response);
    assert_eq!(first.await.unwrap(), COMPLETE);

    let aborted = respond_unread(&scheduler).await;
    let second = aborted.jobs.job("tell").after_response_blocking_with(|outcome| outcome).unwrap();
    let dropped = Drops::default();
    let held = dropped.one();
    let skipped = aborted.jobs.after_success_blocking(move || drop(held)).unwrap();
    drop(aborted.response);
    assert_eq!(second.await.unwrap(), ABORTED);
    assert!(skipped.await.unwrap_err().is_skipped());
    scheduler.wait_idle().await;
    assert_eq!(dropped.count(), 1);
    let stats = scheduler.stats();
    assert_eq!((stats.accepted, stats.completed, stats.skipped), (3, 2, 1));

    // After its end.
    let late = aborted.jobs.after_response_blocking_with(|outcome| outcome).unwrap();
    assert!(late.is_active());
    assert_eq!(late.await.unwrap(), ABORTED);
    assert!(aborted.jobs.after_success_blocking(|| ()).unwrap().is_finished());
}

#[tokio::test(start_paused = true)]
async fn closure_deferred_too_long_starts_as_unfinished() {
    let scheduler = Scheduler::builder().deferred_timeout(SECOND).build();
    let open = respond(&scheduler).await;
    let job = open.jobs.after_response_blocking_with(|outcome| outcome).unwrap();
    let skipped = open.jobs.after_success_blocking(|| ()).unwrap();
    let unfinished = ResponseOutcome::Unfinished(Some(StatusCode::OK));
    assert_eq!(within("deferred_timeout", job).await.unwrap(), unfinished);
    assert!(skipped.await.unwrap_err().is_skipped());
}

/// Over HTTP/2 the ready tasks come first, as for futures.
#[tokio::test]
async fn over_http_2_closure_starts_after_the_ready_tasks() {
    for (version, starts) in [(Version::HTTP_11, true), (Version::HTTP_2, false)] {
        let scheduler = limited(1, 10);
        let open = respond_over(version, &scheduler, Response::new(Empty::<Bytes>::new())).await;
        let ran = tokio::spawn(async move {
            let (says, said) = std::sync::mpsc::channel();
            let job = open.jobs.after_response_blocking(move || says.send(()).is_ok()).unwrap();
            drop(open);
            give_way_once().await;
            // This blocks the only worker. A thread that has the closure runs it meanwhile.
            let plenty = if starts { PLENTY } else { Duration::from_millis(50) };
            let has_begun = said.recv_timeout(plenty).is_ok();
            job.abort();
            (has_begun, job.await.is_ok())
        });
        assert_eq!(ran.await.unwrap(), (starts, starts), "{version:?}");
    }
}

#[tokio::test]
async fn refused_closure_is_given_back() {
    let scheduler = Scheduler::builder().limit(1).pending_limit(1).deferred_limit(1).build();
    let open = respond(&scheduler).await;
    let jobs = &open.jobs;
    let first = jobs.job("one").unique_key("one").after_response_blocking(|| 1).unwrap();

    let refused = jobs.job("two").unique_key("one").after_response_blocking(|| 2).unwrap_err();
    assert!(matches!(&refused, TrySpawnError::Duplicate(_, id) if *id == first.id()));
    assert_eq!(refused.into_future()(), 2);
    let refused = jobs.after_success_blocking(|| 3).unwrap_err();
    assert!(matches!(refused, TrySpawnError::DeferredFull(_)));
    assert_eq!(refused.into_future()(), 3);
    // A large one is boxed as it comes in.
    let large = [7_u8; 100_000];
    let refused = jobs.after_response_blocking_with(move |_| large.to_vec()).unwrap_err();
    assert_eq!(refused.into_future()(COMPLETE), large);

    let running = [(); 2].map(|()| scheduler.try_spawn(std::future::pending::<()>()).unwrap());
    let refused = jobs.after_response_blocking(|| 4).unwrap_err();
    assert!(matches!(refused, TrySpawnError::Full(_)));
    assert_eq!(refused.into_future()(), 4);

    running.iter().for_each(Job::abort);
    scheduler.close().await;
    let refused = jobs.after_response_blocking(|| 5).unwrap_err();
    assert!(refused.is_closed());
    assert_eq!(refused.into_future()(), 5);
    let refused = scheduler.stats().refused;
    let reasons = [refused.duplicate, refused.deferred_full, refused.pending_full, refused.closed];
    assert_eq!(reasons, [1, 2, 1, 1]);
}

#[tokio::test]
async fn large_closure_runs_after_its_response() {
    let open = respond(&Scheduler::new()).await;
    let large = [7_u8; 100_000];
    let job = open.jobs.after_response_blocking(move || large.to_vec()).unwrap();
    drop(open.response);
    assert_eq!(job.await.unwrap(), large);
}

#[tokio::test]
async fn deferred_closure_that_is_aborted_never_runs() {
    let scheduler = limited(1, 10);
    let open = respond(&scheduler).await;
    let dropped = Drops::default();
    let never = |held| {
        move || {
            drop(held);
            panic!("it ran");
        }
    };
    let deferred = open.jobs.after_response_blocking::<_, ()>(never(dropped.one())).unwrap();
    deferred.abort();
    assert!(deferred.await.unwrap_err().is_cancelled());

    // The only permit is taken: it is pending once its response is over.
    let (go, goes) = oneshot::channel::<()>();
    let running = scheduler.try_spawn(async move { drop(goes.await) }).unwrap();
    let pending = open.jobs.after_response_blocking::<_, ()>(never(dropped.one())).unwrap();
    drop(open.response);
    assert!(pending.is_pending());
    pending.abort();
    assert!(pending.await.unwrap_err().is_cancelled());
    drop(go);
    running.await.unwrap();
    scheduler.wait_idle().await;
    give_way_once().await;
    assert_eq!(dropped.count(), 2);
}

#[tokio::test]
async fn failure_of_a_closure_is_reported_once() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let open = respond(&scheduler).await;
    let jobs = &open.jobs;
    drop(jobs.job("error").after_response_blocking(|| Err::<(), _>("no disk")).unwrap());
    let panics = || -> () { panic!("no disk") };
    drop(jobs.job("panic").after_response_blocking_with(move |_| panics()).unwrap());
    let job = jobs.job("late").timeout(Duration::from_millis(1));
    drop(job.after_success_blocking(|| thread::sleep(Duration::from_millis(20))).unwrap());
    let awaited = jobs.after_response_blocking(|| Err::<(), _>("no disk")).unwrap();
    drop(open.response);
    assert!(within("the failures", awaited).await.unwrap_err().is_failed());
    scheduler.wait_idle().await;
    let mut reported: Vec<_> = received(&mut failures)
        .iter()
        .map(|failure| {
            assert_eq!(failure.job.request.as_deref(), Some("POST /signup"));
            let error = &failure.error;
            (
                failure.job.name.to_string(),
                [error.is_failed(), error.is_panic(), error.is_timeout()],
            )
        })
        .collect();
    reported.sort();
    let expected = [
        ("error", [true, false, false]),
        ("late", [false, false, true]),
        ("panic", [false, true, false]),
    ];
    assert_eq!(reported, expected.map(|(name, is)| (name.to_owned(), is)));
}
