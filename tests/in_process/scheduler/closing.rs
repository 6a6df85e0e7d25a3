//! Closing: `close`, `wait_and_close` and their deadlines.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex, mpsc as threads},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Instant, advance, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower_jobs::{
    DrainReport, JobContext, JobFailure, Outcome, Scheduler, SchedulerBuilder, SpawnError,
    TrySpawnError,
};

use crate::support::{
    Grenade, OnDrop, PLENTY, SECOND, YEAR, assert_adds_up, holding, logs::Logs, names,
    oneshot::respond, turn, watched,
};

/// Timeouts that differ, for a paused clock.
fn paused_times() -> SchedulerBuilder {
    Scheduler::builder().wait_timeout(10 * SECOND).close_timeout(SECOND)
}

/// Timeouts for the real clock.
fn short_times() -> SchedulerBuilder {
    let short = Duration::from_millis(20);
    Scheduler::builder().wait_timeout(short).close_timeout(short)
}

/// Holds the thread until the sender sends or is dropped.
fn wait_for(released: &threads::Receiver<()>) {
    assert_ne!(released.recv_timeout(PLENTY), Err(threads::RecvTimeoutError::Timeout));
}

async fn ends_when_cancelled(context: JobContext, after: Duration) {
    context.cancelled().await;
    sleep(after).await;
}

#[tokio::test(start_paused = true)]
async fn close_ends_every_job_in_its_way_and_says_how() {
    let scheduler = paused_times().limit(5).build();
    let job = |name| scheduler.job(name);
    job("plain").spawn(pending::<()>()).await.unwrap();
    job("listens").spawn_with(|context| ends_when_cancelled(context, SECOND / 2)).await.unwrap();
    job("deaf").spawn_with(|_| pending::<()>()).await.unwrap();
    job("fails when cancelled")
        .spawn_with(|context| async move {
            context.cancelled().await;
            Err::<(), _>("no")
        })
        .await
        .unwrap();
    job("panics when cancelled")
        .spawn_with(|context| async move {
            context.cancelled().await;
            panic!("no")
        })
        .await
        .unwrap();
    job("pending").spawn(async {}).await.unwrap();
    turn().await;

    let began = Instant::now();
    let report = scheduler.close().await;
    assert_eq!((began.elapsed(), report.elapsed.as_secs()), (SECOND, 1));
    let found: Vec<_> = report.jobs().map(|(outcome, job)| (outcome, &*job.name)).collect();
    assert_eq!(
        found,
        [
            (Outcome::Failed, "fails when cancelled"),
            (Outcome::Panicked, "panics when cancelled"),
            (Outcome::TimedOut, "deaf"),
            (Outcome::Cancelled, "plain"),
            (Outcome::NeverStarted, "pending"),
        ]
    );
    assert_eq!((report.completed, report.is_clean()), (1, false));
    assert!(scheduler.is_empty());
    assert_adds_up(&scheduler.stats());
}

#[tokio::test(start_paused = true)]
async fn close_waits_no_longer_than_the_jobs_do() {
    let scheduler = paused_times().build();
    scheduler.spawn_with(|context| ends_when_cancelled(context, SECOND / 4)).await.unwrap();
    let began = Instant::now();
    assert!(scheduler.close().await.is_clean());
    assert_eq!(began.elapsed(), SECOND / 4);

    let idle = paused_times().build();
    let mut close = task::spawn(idle.wait_and_close());
    assert!(assert_ready!(close.poll()).is_clean());
}

#[tokio::test(start_paused = true)]
async fn wait_and_close_returns_by_both_its_timeouts() {
    for (given, waits) in [(None, 10), (Some(3 * SECOND), 3), (Some(Duration::ZERO), 0)] {
        let scheduler = paused_times().build();
        scheduler.job("deaf").spawn_with(|_| pending::<()>()).await.unwrap();
        let began = Instant::now();
        let report = match given {
            None => scheduler.wait_and_close().await,
            Some(given) => scheduler.wait_and_close_within(given).await,
        };
        assert_eq!(began.elapsed().as_secs(), waits + 1);
        assert_eq!(names(&report.timed_out), ["deaf"]);
    }
}

#[tokio::test(start_paused = true)]
async fn no_time_to_wait_is_too_long() {
    let years = |n: u64| Duration::from_secs(n * 31_557_600);
    for long in [Duration::MAX, Duration::from_secs(i64::MAX as u64), years(1_000_000), years(3)] {
        let scheduler = paused_times().build();
        scheduler.spawn(async { sleep(SECOND).await }).await.unwrap();
        let report = scheduler.wait_and_close_within(long).await;
        assert_eq!((report.completed, report.elapsed), (1, SECOND));
    }
    let scheduler = Scheduler::builder().close_timeout(YEAR).wait_timeout(YEAR).build();
    scheduler.spawn_with(|_| pending::<()>()).await.unwrap();
    let report = scheduler.wait_and_close().await;
    assert_eq!((report.timed_out.len(), report.elapsed.as_secs()), (1, 2 * YEAR.as_secs()));
}

#[tokio::test]
async fn without_a_close_timeout_nothing_is_waited_for() {
    let scheduler = Scheduler::builder().close_timeout(Duration::ZERO).build();
    scheduler.job("plain").spawn(pending::<()>()).await.unwrap();
    scheduler.job("deaf").spawn_with(|_| pending::<()>()).await.unwrap();
    turn().await;
    let report = timeout(PLENTY, scheduler.close()).await.unwrap();
    assert_eq!((report.jobs().count(), names(&report.timed_out)), (2, vec!["deaf"]), "{report}");
}

#[tokio::test(start_paused = true)]
async fn draining_scheduler_accepts_jobs_and_waits_for_them() {
    type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;
    fn generation(scheduler: Scheduler, left: u32) -> Boxed {
        Box::pin(async move {
            sleep(SECOND).await;
            if left > 0 {
                let child = generation(scheduler.clone(), left - 1);
                scheduler.spawn(child).await.expect("draining still accepts");
            }
        })
    }
    let scheduler = paused_times().limit(1).build();
    scheduler.spawn(generation(scheduler.clone(), 4)).await.unwrap();
    let mut close = task::spawn(scheduler.wait_and_close());
    assert_pending!(close.poll());
    assert!(scheduler.is_draining() && !scheduler.is_closed());
    scheduler.spawn(async {}).await.unwrap();
    scheduler.try_spawn(async {}).unwrap();
    assert_eq!(scheduler.shield(async { 7 }).await.unwrap(), 7);

    let report = close.await;
    assert_eq!((report.completed, report.is_clean(), report.elapsed), (8, true, 5 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn draining_scheduler_waits_for_waiting_spawners() {
    let scheduler = paused_times().limit(1).pending_limit(1).build();
    for _ in 0..2 {
        scheduler.spawn(async { sleep(SECOND).await }).await.unwrap();
    }
    let mut spawner = task::spawn(scheduler.spawn(async { sleep(SECOND).await }));
    assert_pending!(spawner.poll());
    let (report, spawned) = tokio::join!(scheduler.wait_and_close(), spawner);
    spawned.unwrap();
    assert_eq!((report.completed, report.elapsed), (3, 3 * SECOND));
}

#[tokio::test]
async fn scheduler_closes_in_the_step_that_leaves_it_idle() {
    let scheduler = Scheduler::new();
    let (open, opened) = oneshot::channel::<()>();
    scheduler.spawn(async { drop(opened.await) }).await.unwrap();
    let mut close = task::spawn(scheduler.wait_and_close());
    assert_pending!(close.poll());
    open.send(()).unwrap();
    turn().await;
    // The close has not been polled again.
    assert!(scheduler.is_closed());
    assert!(matches!(scheduler.try_spawn(async {}), Err(TrySpawnError::Closed(_))));
    assert_eq!(assert_ready!(close.poll()).completed, 1);
}

#[tokio::test(start_paused = true)]
async fn all_callers_of_close_get_the_same_report() {
    let scheduler = paused_times().limit(2).build();
    scheduler.job("deaf").spawn_with(|_| pending::<()>()).await.unwrap();
    scheduler.job("plain").spawn(pending::<()>()).await.unwrap();
    scheduler.job("pending").spawn(pending::<()>()).await.unwrap();
    let callers: Vec<_> = (0..20)
        .map(|n| {
            let scheduler = scheduler.clone();
            tokio::spawn(async move {
                match n % 3 {
                    0 => scheduler.wait_and_close().await,
                    1 => scheduler.wait_and_close_within(SECOND).await,
                    _ => scheduler.close().await,
                }
            })
        })
        .collect();
    let first = format!("{:?}", scheduler.close().await);
    for caller in callers {
        assert_eq!(format!("{:?}", caller.await.unwrap()), first);
    }
    sleep(SECOND).await;
    assert_eq!(format!("{:?}", scheduler.close().await), first);
    assert_eq!(format!("{:?}", scheduler.wait_and_close().await), first);
}

#[tokio::test(start_paused = true)]
async fn close_overrides_one_that_waits() {
    let scheduler = paused_times().build();
    scheduler.spawn(pending::<()>()).await.unwrap();
    let mut patient = task::spawn(scheduler.wait_and_close());
    assert_pending!(patient.poll());
    let report = scheduler.close().await;
    assert!(patient.is_woken());
    assert_eq!(assert_ready!(patient.poll()).to_string(), report.to_string());
}

/// Drops the future of `close` after a time, then closes for good.
async fn close_twice<C>(close: impl Fn(Scheduler) -> C, after: Duration) -> DrainReport
where
    C: Future<Output = DrainReport>,
{
    let scheduler = paused_times().limit(3).build();
    scheduler.job("deaf").spawn_with(|_| pending::<()>()).await.expect("there is a place");
    scheduler
        .spawn_with(|context| ends_when_cancelled(context, SECOND / 2))
        .await
        .expect("there is a place");
    scheduler.job("plain").spawn(pending::<()>()).await.expect("there is a place");
    scheduler.job("pending").spawn(pending::<()>()).await.expect("there is a place");
    turn().await;
    {
        let mut close = task::spawn(close(scheduler.clone()));
        assert_pending!(close.poll());
        turn().await;
        advance(after).await;
        turn().await;
        // It may be polled once more, or not.
        if after.as_millis() % 2 == 1 {
            drop(close.poll());
        }
    }
    turn().await;
    let report = scheduler.close().await;
    assert!(scheduler.is_closed() && scheduler.is_empty());
    assert_adds_up(&scheduler.stats());
    report
}

#[tokio::test(start_paused = true)]
async fn close_may_be_given_up_at_any_point_and_called_again() {
    for millis in [0, 1, 499, 500, 999, 1_000, 1_001, 1_050, 1_100, 1_101, 60_000, 60_001] {
        let after = Duration::from_millis(millis);
        let report = close_twice(|scheduler| async move { scheduler.close().await }, after).await;
        assert_eq!(report.jobs().count(), 3, "after {millis} ms: {report}");
        assert_eq!(names(&report.timed_out), ["deaf"], "after {millis} ms: {report}");
        assert_eq!(names(&report.cancelled), ["plain"], "after {millis} ms: {report}");
        assert_eq!(names(&report.never_started), ["pending"], "after {millis} ms: {report}");
    }
}

#[tokio::test(start_paused = true)]
async fn wait_and_close_may_be_given_up_at_any_point() {
    for millis in [0, 1, 9_999, 10_000, 10_001, 11_000, 11_001, 11_101, 60_000, 60_001] {
        let after = Duration::from_millis(millis);
        let close = |scheduler: Scheduler| async move { scheduler.wait_and_close().await };
        let report = close_twice(close, after).await;
        assert_eq!(names(&report.timed_out), ["deaf"], "after {millis} ms: {report}");
        assert_eq!(report.jobs().count(), 3, "after {millis} ms: {report}");
    }
}

#[tokio::test]
async fn drain_given_up_closes_when_its_jobs_have_ended() {
    let scheduler = Scheduler::new();
    let (open, opened) = oneshot::channel::<()>();
    scheduler.spawn(async { drop(opened.await) }).await.unwrap();
    {
        let mut close = task::spawn(scheduler.wait_and_close());
        assert_pending!(close.poll());
    }
    turn().await;
    assert!(scheduler.is_draining() && !scheduler.is_closed());
    open.send(()).unwrap();
    turn().await;
    assert!(scheduler.is_closed());
    assert_eq!(scheduler.close().await.completed, 1);
}

#[tokio::test]
async fn close_that_is_never_polled_does_nothing() {
    let scheduler = Scheduler::new();
    drop((scheduler.close(), scheduler.wait_and_close()));
    assert!(!scheduler.is_draining());
    assert!(scheduler.try_spawn(async {}).is_ok());
}

#[tokio::test(start_paused = true)]
async fn job_may_close_its_own_scheduler() {
    let scheduler = paused_times().build();
    let own = scheduler.clone();
    let job = scheduler.spawn(async move { own.close().await.completed }).await.unwrap();
    assert!(job.await.unwrap_err().is_cancelled());
    assert_eq!(scheduler.close().await.cancelled.len(), 1);

    // A job that ignores its cancellation waits for itself until it is dropped.
    let scheduler = paused_times().build();
    let own = scheduler.clone();
    let job = scheduler
        .spawn_with(|_| async move { own.wait_and_close().await.completed })
        .await
        .unwrap();
    assert!(job.await.unwrap_err().is_close_timeout());
    assert_eq!(scheduler.close().await.timed_out.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn close_is_carried_through_without_its_caller() {
    for caller in ["job", "given up", "given up while it waits"] {
        let scheduler = paused_times().build();
        let deaf = scheduler.spawn_with(async |_context| pending::<()>().await).await.unwrap();
        turn().await;
        let (began, own) = (Instant::now(), scheduler.clone());
        let took = match caller {
            "job" => {
                let closes = async move { drop(own.close().await) };
                assert!(scheduler.spawn(closes).await.unwrap().await.unwrap_err().is_cancelled());
                SECOND
            }
            "given up" => {
                assert!(timeout(SECOND / 2, scheduler.close()).await.is_err());
                SECOND
            }
            _ => {
                assert!(timeout(SECOND / 2, scheduler.wait_and_close()).await.is_err());
                11 * SECOND
            }
        };
        let deaf = timeout(PLENTY, deaf).await.unwrap();
        assert!(deaf.unwrap_err().is_close_timeout(), "{caller}");
        assert_eq!(began.elapsed(), took, "{caller}");
        assert!(scheduler.is_closed());
    }
}

#[tokio::test]
async fn slow_drops_of_unstarted_jobs_do_not_hold_up_a_close() {
    let (release, released) = threads::channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let scheduler = short_times().limit(1).build();
    drop(scheduler.spawn(pending::<()>()).await.unwrap());
    for _ in 0..300 {
        let released = released.clone();
        let drops = OnDrop(move || wait_for(&released.lock().expect("no panic")));
        drop(scheduler.spawn(holding(drops)).await.unwrap());
    }
    // A drop in this thread would wait for its release, which comes after the close.
    let report = timeout(PLENTY / 2, scheduler.close()).await.unwrap();
    assert_eq!(report.never_started.len(), 300);
    drop(release);
}

#[tokio::test(start_paused = true)]
async fn overdue_job_that_panics_in_its_drop_is_reported_once() {
    let failures = Arc::new(Mutex::new(Vec::new()));
    let reported = failures.clone();
    let hook = move |failure: JobFailure| {
        reported.lock().expect("no panic").push(failure.error.is_panic());
    };
    let scheduler = paused_times().on_failure(hook).build();
    let deaf = scheduler.spawn_with(|_context| holding(Grenade)).await.unwrap();
    turn().await;
    drop(deaf);
    let report = scheduler.close().await;
    assert_eq!((report.panicked.len(), report.timed_out.len()), (1, 0), "{report}");
    assert_eq!(*failures.lock().expect("no panic"), [true]);
}

#[tokio::test]
async fn waiting_until_idle_closes_nothing() {
    let scheduler = Scheduler::new();
    let mut at_once = task::spawn(scheduler.wait_idle());
    assert_ready!(at_once.poll());
    for _ in 0..2 {
        let (open, opened) = oneshot::channel::<()>();
        scheduler.spawn(async { drop(opened.await) }).await.unwrap();
        let mut idle = task::spawn(scheduler.wait_idle());
        let mut too = task::spawn(scheduler.wait_idle());
        assert_pending!(idle.poll());
        assert_pending!(too.poll());
        open.send(()).unwrap();
        turn().await;
        assert!(idle.is_woken() && too.is_woken());
        assert_ready!(idle.poll());
        assert_ready!(too.poll());
        assert!(!scheduler.is_draining() && !scheduler.is_closed());
    }
    scheduler.close().await;
    scheduler.wait_idle().await;
}

#[tokio::test]
async fn closed_scheduler_is_draining_for_good() {
    let scheduler = Scheduler::new();
    assert!(!scheduler.is_draining() && !scheduler.is_closed());
    scheduler.close().await;
    assert!(scheduler.is_draining() && scheduler.is_closed());
    scheduler.wait_and_close().await;
    assert!(scheduler.clone().is_closed());
}

#[tokio::test]
async fn hundred_thousand_pending_jobs_are_closed_and_named() {
    const MANY: usize = 100_000;
    let scheduler = Scheduler::builder().limit(1).pending_limit(None).build();
    let dropped = Arc::new(());
    scheduler.spawn(pending::<()>()).await.unwrap();
    for _ in 0..MANY {
        let held = dropped.clone();
        scheduler.try_spawn(async move { drop(held) }).unwrap();
    }
    let report = scheduler.close().await;
    assert_eq!((report.never_started.len(), report.cancelled.len()), (MANY, 1));
    assert!(report.never_started.is_sorted_by_key(|job| job.id));
    assert_adds_up(&scheduler.stats());
    while Arc::strong_count(&dropped) > 1 {
        yield_now().await;
    }
}

#[tokio::test]
async fn never_started_jobs_are_dropped_in_spawn_order() {
    const MANY: usize = 1000;
    let scheduler = Scheduler::builder().limit(1).build();
    scheduler.spawn(pending::<()>()).await.unwrap();
    let (dropped, mut order) = mpsc::unbounded_channel();
    for number in 0..MANY {
        let dropped = dropped.clone();
        scheduler.try_spawn(holding(OnDrop(move || dropped.send(number).unwrap()))).unwrap();
    }
    assert_eq!(scheduler.close().await.never_started.len(), MANY);
    for number in 0..MANY {
        assert_eq!(order.recv().await, Some(number));
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_whose_drop_panics_do_no_harm_to_others() {
    let scheduler = paused_times().limit(3).build();
    let grenade = || holding(Grenade);
    scheduler.job("boom").spawn(grenade()).await.unwrap();
    scheduler.spawn_with(|context| ends_when_cancelled(context, SECOND / 2)).await.unwrap();
    scheduler.job("plain").spawn(pending::<()>()).await.unwrap();
    let pending_jobs = [
        scheduler.spawn(grenade()).await.unwrap(),
        scheduler.spawn(pending::<()>()).await.unwrap(),
        scheduler.spawn(grenade()).await.unwrap(),
    ];
    turn().await;
    let report = scheduler.close().await;
    assert_eq!((names(&report.panicked), names(&report.cancelled)), (vec!["boom"], vec!["plain"]));
    assert_eq!((report.completed, report.never_started.len()), (1, 3));
    for job in pending_jobs {
        assert!(job.await.unwrap_err().is_cancelled());
    }
    turn().await;
    assert_adds_up(&scheduler.stats());
}

#[tokio::test]
async fn aborted_pending_job_is_cancelled_even_if_its_drop_panics() {
    let (logs, _guard) = Logs::start();
    let (scheduler, mut failures) = watched(Scheduler::builder().limit(1));
    scheduler.spawn(pending::<()>()).await.unwrap();
    let job = scheduler.job("explosive").spawn(holding(Grenade)).await.unwrap();
    let next = scheduler.spawn(async { 7 }).await.unwrap();
    job.abort();
    assert!(job.is_finished());
    assert!(job.await.unwrap_err().is_cancelled());
    assert!(next.is_pending());
    turn().await;
    let logged: Vec<_> = logs.iter().filter(|event| event.field("level") == "ERROR").collect();
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert_eq!(logged[0].field("message"), "a value of a job panicked while it was dropped");
    assert_eq!(logged[0].field("spans"), "", "it never started");
    assert!(failures.try_recv().is_err(), "it is no failure of the job");
    assert_eq!(scheduler.stats().cancelled, 1);
    assert_adds_up(&scheduler.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn jobs_whose_drop_blocks_do_no_harm_to_others() {
    let scheduler = short_times().limit(2).build();
    let (release, released) = threads::channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let blocking = || {
        let released = released.clone();
        holding(OnDrop(move || wait_for(&released.lock().expect("no panic"))))
    };
    let (begun, begins) = oneshot::channel();
    let blocks = blocking();
    let active = async move {
        begun.send(()).expect("heard");
        blocks.await;
    };
    let active = scheduler.job("active").spawn(active).await.unwrap();
    scheduler.job("plain").spawn(pending::<()>()).await.unwrap();
    let pending_job = scheduler.job("pending").spawn(blocking()).await.unwrap();
    begins.await.unwrap();

    let report = timeout(PLENTY / 2, scheduler.close()).await.unwrap();
    assert_eq!(
        (names(&report.abandoned), names(&report.cancelled)),
        (vec!["active"], vec!["plain"])
    );
    assert_eq!(names(&report.never_started), ["pending"]);
    assert!(active.await.unwrap_err().is_abandoned());
    assert!(pending_job.await.unwrap_err().is_cancelled());
    assert_adds_up(&scheduler.stats());
    drop(release);
}

#[tokio::test]
async fn spawn_in_a_drop_is_accepted_or_refused_like_any_other() {
    let scheduler = Scheduler::builder().limit(1).build();
    let (tell, mut heard) = mpsc::unbounded_channel();
    let spawning = || {
        let (scheduler, tell) = (scheduler.clone(), tell.clone());
        holding(OnDrop(move || {
            let spawned = scheduler.try_spawn(async {});
            tell.send(spawned.map(drop).map_err(SpawnError::from)).expect("heard");
        }))
    };
    let active = scheduler.spawn(spawning()).await.unwrap();
    let pending_job = scheduler.spawn(spawning()).await.unwrap();
    pending_job.abort();
    active.abort();
    scheduler.wait_idle().await;
    assert_eq!((heard.recv().await, heard.recv().await), (Some(Ok(())), Some(Ok(()))));
    assert_eq!(scheduler.stats().completed, 2);

    scheduler.spawn(spawning()).await.unwrap();
    scheduler.spawn(spawning()).await.unwrap();
    let report = scheduler.close().await;
    let closed = Some(Err(SpawnError::Closed));
    assert_eq!((heard.recv().await, heard.recv().await), (closed, closed));
    assert_eq!((report.cancelled.len(), report.never_started.len()), (1, 1));
    assert_adds_up(&scheduler.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn job_that_never_yields_does_not_delay_wait_and_close() {
    let scheduler = short_times().build();
    let (begun, begins) = oneshot::channel();
    let (release, released) = threads::channel::<()>();
    let stuck = async move {
        begun.send(()).expect("heard");
        wait_for(&released);
    };
    let job = scheduler.job("stuck").spawn(stuck).await.unwrap();
    begins.await.unwrap();
    let report = timeout(PLENTY / 2, scheduler.wait_and_close()).await.unwrap();
    assert_eq!(names(&report.abandoned), ["stuck"]);
    assert!(report.elapsed < 2 * SECOND, "{report}");
    assert!(job.await.unwrap_err().is_abandoned());
    assert!(release.send(()).is_ok(), "it is stuck still");
    assert_eq!(scheduler.close().await.to_string(), report.to_string());
    assert_adds_up(&scheduler.stats());
}

/// A future that holds the thread in its drop, and so does its value.
struct Clingy<F: FnMut()>(Option<OnDrop<F>>, #[allow(dead_code, reason = "dropped")] OnDrop<F>);

impl<F: FnMut() + Unpin> Future for Clingy<F> {
    type Output = Vec<OnDrop<F>>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(self.0.take().into_iter().collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn value_of_an_abandoned_job_does_not_hold_up_closing() {
    let scheduler = short_times().build();
    let (begun, begins) = threads::channel();
    let hold = || {
        let (release, released) = threads::channel::<()>();
        let (begun, released) = (begun.clone(), Mutex::new(released));
        let code = move || {
            begun.send(()).expect("heard");
            wait_for(&released.lock().expect("no panic"));
        };
        (release, OnDrop(code))
    };
    let ((_release_value, value), (_release_future, rest)) = (hold(), hold());
    let job = scheduler.job("clingy").spawn(Clingy(Some(value), rest)).await.unwrap();
    begins.recv_timeout(PLENTY).expect("its future is dropped");
    let closer = scheduler.clone();
    let closing = tokio::spawn(async move { closer.close().await });
    let report = timeout(PLENTY / 4, closing).await.expect("in time").unwrap();
    assert_eq!(names(&report.abandoned), ["clingy"]);
    begins.recv_timeout(PLENTY).expect("its value is dropped, elsewhere");
    assert!(job.await.err().expect("no value").is_abandoned());
}

#[tokio::test]
async fn blocking_job_is_abandoned_at_the_deadline_and_reported() {
    let (scheduler, mut failures) = watched(short_times().limit(2));
    let (release, released) = threads::channel::<()>();
    let (begun, begins) = oneshot::channel();
    let stuck = move || {
        begun.send(()).expect("heard");
        wait_for(&released);
        Err::<(), _>("too late to be reported")
    };
    scheduler.job("stuck").spawn_blocking(stuck).await.unwrap();
    begins.await.unwrap();
    let report = timeout(PLENTY / 2, scheduler.wait_and_close()).await.unwrap();
    assert_eq!((names(&report.abandoned), report.jobs().count()), (vec!["stuck"], 1));
    let failure = failures.recv().await.unwrap();
    assert!(failure.error.is_abandoned() && failure.job.name == "stuck", "{failure}");
    assert!(!failure.error.is_timeout() && !failure.error.is_cancelled(), "{failure}");

    release.send(()).unwrap();
    drop(scheduler);
    assert!(failures.recv().await.is_none(), "reported once");
}

#[tokio::test]
async fn blocking_job_that_ends_in_time_has_completed() {
    let scheduler = Scheduler::builder().close_timeout(PLENTY).build();
    let (begun, begins) = oneshot::channel();
    let (release, released) = threads::channel::<()>();
    let closure = move || {
        begun.send(()).expect("heard");
        released.recv().expect("the test goes on");
    };
    scheduler.spawn_blocking(closure).await.unwrap();
    begins.await.unwrap();
    let mut close = task::spawn(scheduler.close());
    assert_pending!(close.poll());
    release.send(()).unwrap();
    let report = close.await;
    assert_eq!((report.completed, report.is_clean()), (1, true));
}

// A task that waits for an idle scheduler, without any other event that would wake it.

#[tokio::test]
async fn close_of_the_last_deferred_job_wakes_idle_waiters() {
    let scheduler = Scheduler::new();
    let open = respond(&scheduler).await;
    open.jobs.after_response(async {}).unwrap();
    let mut idle = task::spawn(scheduler.wait_idle());
    assert_pending!(idle.poll());
    let mut close = task::spawn(scheduler.close());
    assert_eq!(assert_ready!(close.poll()).never_started.len(), 1);
    assert!(idle.is_woken());
    assert_ready!(idle.poll());
}

#[tokio::test]
async fn close_of_the_last_pending_job_wakes_idle_waiters() {
    let scheduler = Scheduler::builder().limit(1).build();
    let runs = scheduler.try_spawn(pending::<()>()).unwrap();
    let mut waits = scheduler.try_spawn(pending::<()>()).unwrap();
    runs.abort();
    waits.abort();
    let mut idle = task::spawn(scheduler.wait_idle());
    assert_pending!(idle.poll());
    assert!(runs.await.unwrap_err().is_cancelled() && idle.is_woken());
    assert_ready!(idle.poll());
    waits.close().await.unwrap();
}

#[tokio::test]
async fn abandoning_the_last_job_wakes_idle_waiters() {
    let scheduler = short_times().close_timeout(Duration::ZERO).build();
    let (begun, begins) = oneshot::channel();
    let (release, released) = threads::channel::<()>();
    let stuck = move || {
        begun.send(()).expect("heard");
        wait_for(&released);
    };
    scheduler.spawn_blocking(stuck).await.unwrap();
    begins.await.unwrap();
    let mut idle = task::spawn(scheduler.wait_idle());
    assert_pending!(idle.poll());
    let mut close = task::spawn(scheduler.close());
    assert_pending!(close.poll());
    // The beginning of the close has woken it too.
    assert!(idle.is_woken());
    assert_pending!(idle.poll());
    let report = timeout(PLENTY / 2, close).await.unwrap();
    assert_eq!(report.abandoned.len(), 1);
    assert!(idle.is_woken());
    assert_ready!(idle.poll());
    drop(release);
}

#[test]
fn end_of_the_runtime_wakes_idle_waiters() {
    type Idle = task::Spawn<Pin<Box<dyn Future<Output = ()> + Send>>>;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let scheduler = Scheduler::builder().runtime(runtime.handle().clone()).build();
    let waits = scheduler.clone();
    let idle: Idle = task::spawn(Box::pin(async move { waits.wait_idle().await }));
    let idle = Arc::new(Mutex::new(idle));
    // The close that comes before this drop has woken it too.
    let polls = idle.clone();
    let held = OnDrop(move || {
        let mut idle = polls.lock().unwrap();
        assert!(idle.is_woken());
        assert_pending!(idle.poll());
    });
    runtime.block_on(async {
        scheduler.spawn(holding(held)).await.unwrap();
        turn().await;
    });
    assert_pending!(idle.lock().unwrap().poll());
    drop(runtime);
    let mut idle = idle.lock().unwrap();
    assert!(idle.is_woken());
    assert_ready!(idle.poll());
    assert_eq!(scheduler.stats().cancelled, 1);
}

/// A waker that panics.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker's panic");
    }
}

#[tokio::test(start_paused = true)]
async fn waker_that_panics_does_not_keep_a_close_from_its_end() {
    let scheduler = paused_times().on_failure(drop).build();
    let listens = |context: JobContext| async move {
        let mut cancelled = Box::pin(async move { context.cancelled().await });
        let waker = Waker::from(Arc::new(Panics));
        assert!(cancelled.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        pending::<()>().await;
    };
    scheduler.spawn_with(listens).await.unwrap();
    scheduler.spawn(pending::<()>()).await.unwrap();
    turn().await;
    let report = scheduler.close().await;
    assert_eq!((report.timed_out.len(), report.cancelled.len()), (1, 1));
}
