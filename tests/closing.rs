//! Closing: `close`, `wait_and_close`, their deadlines and their report.
#![allow(clippy::disallowed_methods, reason = "callers of close are tasks of their own")]

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
    DrainReport, JobContext, JobInfo, JobState, Outcome, Scheduler, SchedulerBuilder, SpawnError,
    TrySpawnError,
};

const SECOND: Duration = Duration::from_secs(1);
/// What real threads are given to do what they do at once, before a test fails.
const PLENTY: Duration = Duration::from_secs(60);

/// Timeouts to be told apart on a paused clock.
fn paused_times() -> SchedulerBuilder {
    Scheduler::builder().wait_timeout(10 * SECOND).close_timeout(SECOND)
}

/// Timeouts for tests that really wait for them.
fn short_times() -> SchedulerBuilder {
    let short = Duration::from_millis(20);
    Scheduler::builder().wait_timeout(short).close_timeout(short)
}

/// Gives every job that can run its turn.
async fn turn() {
    for _ in 0..10 {
        yield_now().await;
    }
}

/// Runs its code when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A job that runs `code` when it is dropped, and never ends by itself.
fn dropping(code: impl FnMut() + Send + 'static) -> impl Future<Output = ()> + Send + 'static {
    let on_drop = OnDrop(code);
    async move {
        pending::<()>().await;
        drop(on_drop);
    }
}

/// Holds the thread until the other side lets go.
fn wait_for(released: &threads::Receiver<()>) {
    assert_ne!(released.recv_timeout(PLENTY), Err(threads::RecvTimeoutError::Timeout));
}

async fn ends_when_told(context: JobContext, after: Duration) {
    context.cancelled().await;
    sleep(after).await;
}

fn names(jobs: &[JobInfo]) -> Vec<&str> {
    jobs.iter().map(|job| &*job.name).collect()
}

/// Every job that was ever accepted is in one term of the law.
#[track_caller]
fn assert_accounted_for(scheduler: &Scheduler) {
    let s = scheduler.stats();
    let live = s.deferred + s.pending + s.active;
    let well = s.completed + s.skipped;
    let unwell = s.failed + s.panicked + s.timed_out + s.cancelled + s.never_started + s.abandoned;
    assert_eq!(s.accepted, live + well + unwell, "{s:?}");
}

#[tokio::test(start_paused = true)]
async fn close_ends_every_job_in_its_way_and_says_how() {
    let scheduler = paused_times().limit(5).build();
    let job = |name| scheduler.job(name);
    job("plain").spawn(pending::<()>()).await.unwrap();
    job("listens").spawn_with(|context| ends_when_told(context, SECOND / 2)).await.unwrap();
    job("deaf").spawn_with(|_| pending::<()>()).await.unwrap();
    job("fails when told")
        .spawn_with(|context| async move {
            context.cancelled().await;
            Err::<(), _>("no")
        })
        .await
        .unwrap();
    job("panics when told")
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
            (Outcome::Failed, "fails when told"),
            (Outcome::Panicked, "panics when told"),
            (Outcome::TimedOut, "deaf"),
            (Outcome::Cancelled, "plain"),
            (Outcome::NeverStarted, "pending"),
        ]
    );
    assert_eq!((report.completed, report.is_clean()), (1, false));
    assert!(scheduler.is_empty());
    assert_accounted_for(&scheduler);
}

#[tokio::test(start_paused = true)]
async fn close_waits_no_longer_than_the_jobs_do() {
    let scheduler = paused_times().build();
    scheduler.spawn_with(|context| ends_when_told(context, SECOND / 4)).await.unwrap();
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
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    let scheduler = Scheduler::builder().close_timeout(year).wait_timeout(year).build();
    scheduler.spawn_with(|_| pending::<()>()).await.unwrap();
    let report = scheduler.wait_and_close().await;
    assert_eq!((report.timed_out.len(), report.elapsed.as_secs()), (1, 2 * year.as_secs()));
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
async fn a_draining_scheduler_accepts_jobs_of_anyone_and_waits_for_them() {
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
async fn a_draining_scheduler_waits_for_those_who_wait_for_a_place() {
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
async fn a_scheduler_closes_in_the_step_that_leaves_it_idle() {
    let scheduler = Scheduler::new();
    let (open, opened) = oneshot::channel::<()>();
    scheduler.spawn(async { drop(opened.await) }).await.unwrap();
    let mut close = task::spawn(scheduler.wait_and_close());
    assert_pending!(close.poll());
    open.send(()).unwrap();
    turn().await;
    // Nobody has polled the close yet.
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
async fn a_close_overrides_one_that_waits() {
    let scheduler = paused_times().build();
    scheduler.spawn(pending::<()>()).await.unwrap();
    let mut patient = task::spawn(scheduler.wait_and_close());
    assert_pending!(patient.poll());
    let report = scheduler.close().await;
    assert!(patient.is_woken());
    assert_eq!(assert_ready!(patient.poll()).to_string(), report.to_string());
}

#[tokio::test(start_paused = true)]
async fn a_report_tells_of_the_moment_it_was_made_whenever_and_however_it_is_read() {
    let scheduler = paused_times().limit(1).build();
    for name in ["first", "second", "third"] {
        scheduler.job(name).concurrency_key("a key").spawn(pending::<()>()).await.unwrap();
        advance(SECOND).await;
    }
    let (report, other) = (scheduler.close().await, scheduler.close().await);
    drop(scheduler);
    advance(SECOND).await;

    let expected = [("second", 2 * SECOND), ("third", SECOND)];
    let told = |job: &JobInfo| (job.name.to_string(), job.age, job.state, job.key.clone());
    let expected =
        expected.map(|(name, age)| (name.into(), age, JobState::Finished, Some("a key".into())));
    let jobs = &report.never_started;
    assert_eq!((jobs.len(), jobs.is_empty(), report.cancelled.len()), (2, false, 1));
    assert_eq!(jobs.iter().map(told).collect::<Vec<_>>(), expected);
    assert_eq!(
        (jobs[1].id, jobs.last().map(|job| job.id)),
        (other.never_started[1].id, Some(jobs[1].id))
    );
    let mut read = Vec::new();
    for job in &other.clone().never_started {
        read.push(told(job));
    }
    assert_eq!(read, expected);
    assert_eq!(format!("{jobs:?}"), format!("{:?}", jobs.to_vec()));
    let (read, unread) = (other.never_started, report.clone().cancelled);
    assert_eq!(read.into_iter().map(|job| told(&job)).collect::<Vec<_>>(), expected);
    assert_eq!(unread.into_iter().map(|job| job.name).collect::<Vec<_>>(), ["first"]);
    let none = &report.failed;
    assert_eq!((none.len(), none.iter().count()), (0, 0));
    assert!(none.is_empty() && report.never_started.iter().len() == 2);
    assert!(DrainReport::default().never_started.into_iter().next().is_none());
}

/// Closes with what comes out of `close`, given up `after` so long; then closes for good.
async fn close_twice<C>(close: impl Fn(Scheduler) -> C, after: Duration) -> DrainReport
where
    C: Future<Output = DrainReport>,
{
    let scheduler = paused_times().limit(3).build();
    scheduler.job("deaf").spawn_with(|_| pending::<()>()).await.expect("there is a place");
    scheduler
        .spawn_with(|context| ends_when_told(context, SECOND / 2))
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
    assert_accounted_for(&scheduler);
    report
}

#[tokio::test(start_paused = true)]
async fn a_close_may_be_given_up_at_any_point_and_called_again() {
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
async fn a_wait_and_close_may_be_given_up_at_any_point_and_closed_then() {
    for millis in [0, 1, 9_999, 10_000, 10_001, 11_000, 11_001, 11_101, 60_000, 60_001] {
        let after = Duration::from_millis(millis);
        let close = |scheduler: Scheduler| async move { scheduler.wait_and_close().await };
        let report = close_twice(close, after).await;
        assert_eq!(names(&report.timed_out), ["deaf"], "after {millis} ms: {report}");
        assert_eq!(report.jobs().count(), 3, "after {millis} ms: {report}");
    }
}

#[tokio::test]
async fn a_drain_given_up_closes_when_its_jobs_have_ended() {
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
async fn a_close_that_is_never_polled_does_nothing() {
    let scheduler = Scheduler::new();
    drop((scheduler.close(), scheduler.wait_and_close()));
    assert!(!scheduler.is_draining());
    assert!(scheduler.try_spawn(async {}).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_job_may_close_its_own_scheduler() {
    let scheduler = paused_times().build();
    let own = scheduler.clone();
    let job = scheduler.spawn(async move { own.close().await.completed }).await.unwrap();
    assert!(job.await.unwrap_err().is_cancelled());
    assert_eq!(scheduler.close().await.cancelled.len(), 1);

    // One that is told and does not listen waits for itself, until it is dropped.
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
        let drops = dropping(move || wait_for(&released.lock().expect("no panic")));
        drop(scheduler.spawn(drops).await.unwrap());
    }
    // On this one thread a drop would wait for its release, which comes after the close.
    let report = timeout(PLENTY / 2, scheduler.close()).await.unwrap();
    assert_eq!(report.never_started.len(), 300);
    drop(release);
}

#[tokio::test]
async fn waiter_for_idle_is_woken_by_an_abandon() {
    let scheduler = short_times().build();
    let (release, released) = threads::channel::<()>();
    let (begun, begins) = oneshot::channel();
    let blocks = move || {
        begun.send(()).expect("heard");
        wait_for(&released);
    };
    let job = scheduler.spawn_blocking(blocks).await.unwrap();
    begins.await.unwrap();
    let waiting = scheduler.clone();
    let waits = tokio::spawn(async move { waiting.wait_idle().await });
    turn().await;
    let report = timeout(PLENTY / 2, scheduler.close()).await.unwrap();
    assert_eq!(report.abandoned.len(), 1);
    timeout(PLENTY / 2, waits).await.unwrap().unwrap();
    assert!(job.await.unwrap_err().is_abandoned());
    drop(release);
}

#[tokio::test(start_paused = true)]
async fn overdue_job_that_panics_in_its_drop_is_reported_once() {
    let failures = Arc::new(Mutex::new(Vec::new()));
    let reported = failures.clone();
    let hook = move |failure: tower_jobs::JobFailure| {
        reported.lock().expect("no panic").push(failure.error.is_panic());
    };
    let scheduler = paused_times().on_failure(hook).build();
    let deaf = scheduler.spawn_with(|_context| dropping(|| panic!("boom"))).await.unwrap();
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
async fn a_closed_scheduler_is_draining_for_good() {
    let scheduler = Scheduler::new();
    assert!(!scheduler.is_draining() && !scheduler.is_closed());
    scheduler.close().await;
    assert!(scheduler.is_draining() && scheduler.is_closed());
    scheduler.wait_and_close().await;
    assert!(scheduler.clone().is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_report_is_shown_in_one_line() {
    let scheduler = paused_times().limit(2).build();
    let _well = scheduler.spawn(async { sleep(SECOND).await }).await.unwrap();
    let mail = scheduler.job("welcome\ne-mail").spawn(pending::<()>()).await.unwrap();
    let pending_jobs = [
        scheduler.spawn(pending::<()>()).await.unwrap(),
        scheduler.spawn(pending::<()>()).await.unwrap(),
    ];
    let report = scheduler.wait_and_close().await;
    let text = format!(
        "drained in 10000 ms: 1 completed, 2 cancelled (job {} \"welcome\\ne-mail\" ({}), job {} \
         ({})), 1 never started (job {} ({}))",
        mail.id(),
        mail.info().location,
        pending_jobs[0].id(),
        pending_jobs[0].name(),
        pending_jobs[1].id(),
        pending_jobs[1].name(),
    );
    assert_eq!(report.to_string(), text);
    assert_eq!(text.lines().count(), 1);
    assert_eq!(Scheduler::new().close().await.to_string(), "drained in 0 ms: 0 completed");
}

#[tokio::test]
async fn report_line_is_short_has_all_counts_and_a_share_for_each_outcome() {
    let long = "m".repeat(200);
    for (unstarted, name) in [(300, "mail"), (300, &*long), (3, &"m".repeat(20_000))] {
        let scheduler = Scheduler::builder().limit(300).build();
        for n in 0..300 + unstarted {
            drop(scheduler.job(format!("{name} {n}")).try_spawn(pending::<()>()).unwrap());
        }
        let report = scheduler.close().await;
        assert_eq!((report.cancelled.len(), report.never_started.len()), (300, unstarted));
        let text = report.to_string();
        assert!(text.len() < 15_000, "{} bytes", text.len());
        for outcome in ["300 cancelled".to_owned(), format!("{unstarted} never started")] {
            let names = text.contains(&format!(", {outcome} (job "));
            assert!(text.contains(&outcome) && names == (name.len() < 1_000), "{text}");
        }
        assert_eq!(
            text.matches(" more)").count(),
            if name.len() < 1_000 { 2 } else { 0 },
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_report_tells_only_of_the_time_of_the_drain() {
    let scheduler = Scheduler::new();
    scheduler.spawn(async { Err::<(), _>("no") }).await.unwrap().await.unwrap_err();
    scheduler.spawn(async {}).await.unwrap().await.unwrap();
    scheduler.spawn(pending::<()>()).await.unwrap().abort();
    scheduler.wait_idle().await;
    let report = scheduler.wait_and_close().await;
    assert_eq!((report.completed, report.is_clean()), (0, true), "{report}");
}

#[tokio::test]
async fn a_hundred_thousand_pending_jobs_are_closed_and_named() {
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
    assert_accounted_for(&scheduler);
    while Arc::strong_count(&dropped) > 1 {
        yield_now().await;
    }
}

#[tokio::test]
async fn what_never_started_is_dropped_in_the_order_in_which_it_was_spawned() {
    const MANY: usize = 1000;
    let scheduler = Scheduler::builder().limit(1).build();
    scheduler.spawn(pending::<()>()).await.unwrap();
    let (dropped, mut order) = mpsc::unbounded_channel();
    for number in 0..MANY {
        let dropped = dropped.clone();
        scheduler.try_spawn(dropping(move || dropped.send(number).unwrap())).unwrap();
    }
    assert_eq!(scheduler.close().await.never_started.len(), MANY);
    for number in 0..MANY {
        assert_eq!(order.recv().await, Some(number));
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_whose_drop_panics_do_no_harm_to_others() {
    let scheduler = paused_times().limit(3).build();
    let grenade = || dropping(|| panic!("boom"));
    scheduler.job("boom").spawn(grenade()).await.unwrap();
    scheduler.spawn_with(|context| ends_when_told(context, SECOND / 2)).await.unwrap();
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
    assert_accounted_for(&scheduler);
}

#[tokio::test]
async fn a_pending_job_whose_drop_panics_when_it_is_aborted_has_panicked() {
    let scheduler = Scheduler::builder().limit(1).build();
    scheduler.spawn(pending::<()>()).await.unwrap();
    let job = scheduler.spawn(dropping(|| panic!("boom"))).await.unwrap();
    let next = scheduler.spawn(async { 7 }).await.unwrap();
    job.abort();
    assert!(job.await.unwrap_err().is_panic());
    assert!(next.is_pending());
    assert_accounted_for(&scheduler);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn jobs_whose_drop_blocks_do_no_harm_to_others() {
    let scheduler = short_times().limit(2).build();
    let (release, released) = threads::channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let blocking = || {
        let released = released.clone();
        dropping(move || wait_for(&released.lock().expect("no panic")))
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
    assert!(active.await.unwrap_err().is_close_timeout());
    assert!(pending_job.await.unwrap_err().is_cancelled());
    assert_accounted_for(&scheduler);
    drop(release);
}

#[tokio::test]
async fn a_job_whose_drop_spawns_is_refused_or_taken_in_like_anybody() {
    let scheduler = Scheduler::builder().limit(1).build();
    let (tell, mut told) = mpsc::unbounded_channel();
    let spawning = || {
        let (scheduler, tell) = (scheduler.clone(), tell.clone());
        dropping(move || {
            let spawned = scheduler.try_spawn(async {});
            tell.send(spawned.map(drop).map_err(SpawnError::from)).expect("heard");
        })
    };
    let active = scheduler.spawn(spawning()).await.unwrap();
    let pending_job = scheduler.spawn(spawning()).await.unwrap();
    pending_job.abort();
    active.abort();
    scheduler.wait_idle().await;
    assert_eq!((told.recv().await, told.recv().await), (Some(Ok(())), Some(Ok(()))));
    assert_eq!(scheduler.stats().completed, 2);

    scheduler.spawn(spawning()).await.unwrap();
    scheduler.spawn(spawning()).await.unwrap();
    let report = scheduler.close().await;
    let closed = Some(Err(SpawnError::Closed));
    assert_eq!((told.recv().await, told.recv().await), (closed, closed));
    assert_eq!((report.cancelled.len(), report.never_started.len()), (1, 1));
    assert_accounted_for(&scheduler);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_job_that_never_yields_does_not_hold_wait_and_close_past_its_deadline() {
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
    assert!(job.await.unwrap_err().is_close_timeout());
    assert!(release.send(()).is_ok(), "it is stuck still");
    assert_eq!(scheduler.close().await.to_string(), report.to_string());
    assert_accounted_for(&scheduler);
}

/// Its value holds the thread that drops it, and so does the future after it has given that.
struct Clingy<F: FnMut()>(Option<OnDrop<F>>, #[allow(dead_code, reason = "dropped")] OnDrop<F>);

impl<F: FnMut() + Unpin> Future for Clingy<F> {
    type Output = Vec<OnDrop<F>>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(self.0.take().into_iter().collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_value_of_an_abandoned_job_does_not_hold_up_closing() {
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
    assert!(job.await.err().expect("no value").is_close_timeout());
}

#[tokio::test]
async fn a_blocking_job_is_abandoned_at_the_deadline_and_reported() {
    let (tell, mut failures) = mpsc::unbounded_channel();
    let scheduler =
        short_times().limit(2).on_failure(move |failure| drop(tell.send(failure))).build();
    let (release, released) = threads::channel::<()>();
    let (begun, begins) = oneshot::channel();
    let stuck = move || {
        begun.send(()).expect("heard");
        wait_for(&released);
        Err::<(), _>("too late to be told")
    };
    scheduler.job("stuck").spawn_blocking(stuck).await.unwrap();
    begins.await.unwrap();
    let report = timeout(PLENTY / 2, scheduler.wait_and_close()).await.unwrap();
    assert_eq!((names(&report.abandoned), report.jobs().count()), (vec!["stuck"], 1));
    let failure = failures.recv().await.unwrap();
    assert!(failure.error.is_close_timeout() && failure.job.name == "stuck", "{failure}");

    release.send(()).unwrap();
    drop(scheduler);
    assert!(failures.recv().await.is_none(), "told once");
}

#[tokio::test]
async fn a_blocking_job_that_ends_in_time_has_completed() {
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

/// Wakes by panicking, as a waker of the user's own may.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker's panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_does_not_keep_a_close_from_its_end() {
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
