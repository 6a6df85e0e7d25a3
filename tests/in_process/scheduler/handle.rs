//! The handle of a job: waiting, closing, aborting, names.

use std::{
    future::pending,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower_jobs::{Job, JobContext, JobId, JobInfo, JobState, Scheduler};

use crate::support::{Drops, SECOND, holding, turn, watched};

/// A job that ends with `result` half a second after its cancellation.
async fn slow_to_end<T>(context: JobContext, result: T) -> T {
    context.cancelled().await;
    sleep(SECOND / 2).await;
    result
}

#[tokio::test]
async fn value_is_given_once_and_a_second_wait_is_an_error() {
    let scheduler = Scheduler::new();
    let mut job = scheduler.spawn(async { 7 }).await.unwrap();
    assert_eq!((&mut job).await.unwrap(), 7);
    for _ in 0..2 {
        let error = job.wait().await.unwrap_err();
        assert!(!error.is_cancelled() && !error.is_panic() && !error.is_timeout(), "{error}");
        assert!(error.to_string().contains("earlier wait"), "{error}");
    }
    assert!(job.is_finished());
    job.close().await.unwrap();
}

#[tokio::test]
async fn latest_waiter_is_the_one_woken() {
    let scheduler = Scheduler::new();
    let (open, opened) = oneshot::channel::<u8>();
    let mut job = task::spawn(scheduler.spawn(opened).await.unwrap());
    assert_pending!(job.poll());
    let mut moved = task::spawn(job.into_inner());
    assert_pending!(moved.poll());
    open.send(7).unwrap();
    scheduler.wait_idle().await;
    assert!(moved.is_woken());
    assert_eq!(assert_ready_ok!(moved.poll()), 7);
}

#[tokio::test(start_paused = true)]
async fn expired_wait_gives_the_failure_of_the_job() {
    let scheduler = Scheduler::builder().close_timeout(SECOND).build();
    let failing = |context| slow_to_end(context, Err::<(), _>("too late"));
    let mut job = scheduler.spawn_with(failing).await.unwrap();
    let began = Instant::now();
    let error = job.wait_or_close(SECOND).await.unwrap_err();
    assert!(error.is_failed(), "{error}");
    assert_eq!(began.elapsed(), SECOND * 3 / 2);

    // A value that comes too late is not lost.
    let mut job = scheduler.spawn_with(|context| slow_to_end(context, 7)).await.unwrap();
    assert!(job.wait_or_close(SECOND).await.unwrap_err().is_timeout());
    assert_eq!(job.wait().await.unwrap(), 7);

    let mut deaf = scheduler.spawn_with(|_| pending::<()>()).await.unwrap();
    let error = deaf.wait_or_close(SECOND).await.unwrap_err();
    assert_eq!(error.to_string(), "the job did not end within 1s and was closed");
}

#[tokio::test(start_paused = true)]
async fn no_time_to_wait_is_too_long_or_too_short() {
    let scheduler = Scheduler::new();
    for long in [Duration::MAX, Duration::from_secs(u64::MAX / 2), 1_000_000 * SECOND * 3600] {
        let mut job = scheduler
            .spawn(async {
                sleep(SECOND).await;
                7
            })
            .await
            .unwrap();
        assert_eq!(job.wait_or_close(long).await.unwrap(), 7);
        let mut job = scheduler.spawn_with(|context| slow_to_end(context, ())).await.unwrap();
        turn().await;
        job.close_within(long).await.unwrap();
        assert!(scheduler.spawn_within(long, async {}).await.unwrap().await.is_ok());
    }
    let mut job = scheduler.spawn(pending::<()>()).await.unwrap();
    assert!(job.wait_or_close(Duration::ZERO).await.unwrap_err().is_timeout());
    let mut job = scheduler.spawn_with(|_| pending::<()>()).await.unwrap();
    assert!(job.close_within(Duration::ZERO).await.unwrap_err().is_close_timeout());
    let mut ended = scheduler.spawn(async { 7 }).await.unwrap();
    scheduler.wait_idle().await;
    assert_eq!(ended.wait_or_close(Duration::ZERO).await.unwrap(), 7);
    assert!(scheduler.spawn_within(Duration::ZERO, async {}).await.unwrap().await.is_ok());
}

#[tokio::test]
async fn close_dropped_midway_leaves_the_job_its_time() {
    let scheduler = Scheduler::new();
    let (open, opened) = oneshot::channel::<()>();
    let listening = |context: JobContext| async move {
        context.cancelled().await;
        opened.await.expect("the test goes on");
        7
    };
    let mut job = scheduler.spawn_with(listening).await.unwrap();
    drop(job.close());
    turn().await;
    {
        let mut close = task::spawn(job.close());
        assert_pending!(close.poll());
    }
    turn().await;
    assert!(job.is_active(), "it has its time");
    open.send(()).unwrap();
    assert_eq!(job.wait().await.unwrap(), 7);
}

#[tokio::test]
async fn plain_job_is_dropped_where_it_stands_when_it_is_closed() {
    let scheduler = Scheduler::new();
    let drops = Drops::default();
    let mut job = scheduler.spawn(holding(drops.one())).await.unwrap();
    turn().await;
    job.close().await.unwrap();
    assert_eq!((drops.count(), job.state()), (1, JobState::Finished));
}

#[tokio::test]
async fn abort_ends_a_pending_job_at_once_unrun() {
    let scheduler = Scheduler::builder().limit(1).build();
    let drops = Drops::default();
    scheduler.spawn(pending::<()>()).await.unwrap();
    let held = drops.one();
    let job = async move {
        let _held = held;
        panic!("it ran");
    };
    let job = scheduler.spawn(job).await.unwrap();
    assert!(job.is_pending());
    job.abort();
    assert!(job.is_finished());
    assert_eq!((scheduler.len(), scheduler.stats().cancelled), (1, 1));
    assert!(job.await.unwrap_err().is_cancelled());
    turn().await;
    assert_eq!(drops.count(), 1);
}

#[tokio::test]
async fn abort_drops_an_active_job_at_its_next_await() {
    let scheduler = Scheduler::new();
    let drops = Drops::default();
    let plain = scheduler.spawn(holding(drops.one())).await.unwrap();
    let one = drops.one();
    let deaf = scheduler.spawn_with(|_| holding(one)).await.unwrap();
    for first_turns in [true, false] {
        let job = if first_turns { &plain } else { &deaf };
        if first_turns {
            turn().await;
        }
        job.abort();
        job.abort();
    }
    scheduler.wait_idle().await;
    assert_eq!((drops.count(), scheduler.stats().cancelled), (2, 2));
    assert!(plain.await.unwrap_err().is_cancelled() && deaf.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn abort_before_its_first_turn_keeps_a_job_from_running() {
    let scheduler = Scheduler::new();
    let job = scheduler.spawn(async { panic!("it ran") }).await.unwrap();
    assert!(job.is_active());
    job.abort();
    assert!(job.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn abort_after_the_end_changes_nothing() {
    let scheduler = Scheduler::new();
    let job = scheduler.spawn(async { 7 }).await.unwrap();
    scheduler.wait_idle().await;
    job.abort();
    assert_eq!(job.await.unwrap(), 7);
    assert_eq!((scheduler.stats().completed, scheduler.stats().cancelled), (1, 0));
}

#[tokio::test]
async fn job_can_abort_itself() {
    let scheduler = Scheduler::new();
    let (give, handle) = oneshot::channel::<Job<()>>();
    let (tell, mut heard) = mpsc::unbounded_channel();
    let suicidal = async move {
        handle.await.expect("the handle comes").abort();
        yield_now().await;
        tell.send("it ran on").expect("heard");
    };
    give.send(scheduler.spawn(suicidal).await.unwrap()).unwrap();
    scheduler.wait_idle().await;
    assert_eq!((scheduler.stats().cancelled, heard.recv().await), (1, None));
}

#[tokio::test]
async fn blocking_job_cannot_be_aborted_once_it_has_begun() {
    let scheduler = Scheduler::builder().limit(1).build();
    let (begun, begins) = oneshot::channel();
    let (open, opened) = std::sync::mpsc::channel();
    let closure = move || {
        begun.send(()).expect("the test listens");
        opened.recv().expect("the test goes on")
    };
    let job = scheduler.spawn_blocking(closure).await.unwrap();
    let never = scheduler.spawn_blocking(|| panic!("it ran")).await.unwrap();
    begins.await.unwrap();
    job.abort();
    never.abort();
    turn().await;
    assert!(job.is_active() && never.is_finished());
    open.send(7).unwrap();
    assert_eq!(job.await.unwrap(), 7);
    assert!(never.await.unwrap_err().is_cancelled());
}

#[test]
fn blocking_job_that_no_thread_has_taken_up_can_be_aborted() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let scheduler = Scheduler::new();
    let (begun, begins) = oneshot::channel();
    let (open, opened) = std::sync::mpsc::channel();
    let closure = move || {
        begun.send(()).expect("the test listens");
        opened.recv().expect("the test goes on")
    };
    runtime.block_on(async {
        let first = scheduler.spawn_blocking(closure).await.unwrap();
        begins.await.unwrap();
        let second = scheduler.spawn_blocking(|| panic!("it ran")).await.unwrap();
        turn().await;
        assert!(second.is_active());
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        open.send(7).unwrap();
        assert_eq!(first.await.unwrap(), 7);
    });
}

#[tokio::test]
async fn panic_comes_out_of_its_job_as_it_went_in() {
    let scheduler = Scheduler::new();
    let error =
        scheduler.spawn(async { std::panic::panic_any(7_u8) }).await.unwrap().await.unwrap_err();
    assert!(error.is_panic() && !error.is_cancelled());
    assert_eq!(error.into_panic().unwrap().downcast_ref::<u8>(), Some(&7));

    let text = format!("out of {}", "ink");
    let job = scheduler.spawn_blocking(move || panic!("{text}")).await.unwrap();
    let error = job.await.unwrap_err();
    assert_eq!(error.to_string(), "the job panicked: out of ink");
    assert_eq!(error.into_panic().unwrap().downcast_ref::<String>().unwrap(), "out of ink");

    let made = scheduler.spawn_with(|_| -> std::future::Ready<()> { panic!("not made") });
    assert!(made.await.unwrap().await.unwrap_err().is_panic());
    let other = scheduler.spawn(async { Err::<(), _>("no") }).await.unwrap().await.unwrap_err();
    assert!(other.into_panic().unwrap_err().is_failed(), "given back");
}

/// Asserts that the location of a job is at `verb` in the caller's line, and that it is its name.
#[track_caller]
fn assert_place(job: &JobInfo, verb: &str) {
    let (line, column) = (job.location.line() as usize, job.location.column() as usize);
    assert_eq!(
        (job.location.file(), line),
        (file!(), std::panic::Location::caller().line() as usize)
    );
    let text = include_str!("handle.rs").lines().nth(line - 1).expect("a line of this file");
    assert!(text[column - 1..].starts_with(verb), "{verb} is not at column {column} of {text:?}");
    assert_eq!(job.name, format!("{}:{line}:{column}", file!()));
}

#[rustfmt::skip] // A verb and its assertion share a line.
#[tokio::test]
async fn job_is_named_after_the_place_where_its_verb_was_written() {
    let scheduler = Scheduler::new();
    let s = &scheduler;
    assert_place(&s.spawn(async {}).await.unwrap().info(), "spawn(");
    assert_place(&s.try_spawn(async {}).unwrap().info(), "try_spawn(");
    assert_place(&s.spawn_within(SECOND, async {}).await.unwrap().info(), "spawn_within(");
    assert_place(&s.spawn_with(|_| async {}).await.unwrap().info(), "spawn_with(");
    assert_place(&s.spawn_blocking(|| ()).await.unwrap().info(), "spawn_blocking(");
    s.wait_idle().await;
    let mut shield = task::spawn(s.shield(pending::<()>())); assert_pending!(shield.poll()); assert_place(&s.jobs()[0], "shield(");
}

#[rustfmt::skip] // A verb and its assertion share a line.
#[tokio::test]
async fn job_with_options_has_the_place_of_its_verb_too() {
    let scheduler = Scheduler::new();
    // A named job has its name, and its location beside it.
    let place = |mut job: JobInfo| { assert_eq!(job.name, "x"); job.name = job.location.to_string().into(); job };
    let s = || scheduler.job("x").timeout(SECOND);
    assert_place(&place(s().spawn(async {}).await.unwrap().info()), "spawn(");
    assert_place(&place(s().try_spawn(async {}).unwrap().info()), "try_spawn(");
    assert_place(&place(s().spawn_within(SECOND, async {}).await.unwrap().info()), "spawn_within(");
    assert_place(&place(s().spawn_with(|_| async {}).await.unwrap().info()), "spawn_with(");
    assert_place(&place(s().spawn_blocking(|| ()).await.unwrap().info()), "spawn_blocking(");
    scheduler.wait_idle().await;
    let mut shield = task::spawn(s().shield(pending::<()>())); assert_pending!(shield.poll()); assert_place(&place(scheduler.jobs()[0].clone()), "shield(");
}

#[tokio::test]
async fn ids_are_unique_and_known_to_the_job() {
    let scheduler = Scheduler::new();
    let context = |context: JobContext| async move { (context.id().get(), context.name()) };
    let first = scheduler.job("mail").spawn_with(context).await.unwrap();
    let second = scheduler.spawn_with(context).await.unwrap();
    assert!(first.id() < second.id() && first.id().get() > 0);
    let (text, number) = (first.id().to_string(), first.id().get());
    assert!(text.starts_with(&format!("{number}-")), "{text}");
    assert_eq!(text.parse::<JobId>(), Ok(first.id()));
    for job in [first, second] {
        let expected = (job.id().get(), job.name());
        assert_eq!(job.await.unwrap(), expected);
    }
}

#[tokio::test]
async fn job_may_loop_for_ever() {
    let scheduler = Scheduler::new();
    let job = scheduler
        .spawn(async {
            loop {
                yield_now().await;
            }
        })
        .await
        .unwrap();
    let shielded = scheduler.shield(async {
        loop {
            yield_now().await;
        }
    });
    let mut shielded = task::spawn(shielded);
    assert_pending!(shielded.poll());
    turn().await;
    let report = scheduler.close().await;
    assert_eq!(report.cancelled.len(), 2);
    assert!(job.await.unwrap_err().is_cancelled());
    assert!(assert_ready!(shielded.poll()).unwrap_err().is_cancelled());
}

#[tokio::test]
async fn detached_job_runs_on_and_its_value_is_dropped_at_once() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let (open, opened) = oneshot::channel::<()>();
    let drops = Drops::default();
    let held = drops.one();
    let job = scheduler.spawn(async move {
        opened.await.expect("the test goes on");
        vec![held]
    });
    drop(job.await.unwrap());
    turn().await;
    assert_eq!((scheduler.active_count(), drops.count()), (1, 0));
    open.send(()).unwrap();
    scheduler.wait_idle().await;
    assert_eq!((drops.count(), scheduler.stats().completed), (1, 1));
    assert!(failures.try_recv().is_err());
}

#[tokio::test]
async fn context_can_be_asked_again_and_again() {
    let scheduler = Scheduler::new();
    let (tell, mut heard) = mpsc::unbounded_channel();
    let job = scheduler.spawn_with(|context| async move {
        tell.send(context.is_cancelled()).expect("heard");
        {
            let mut given_up = task::spawn(context.cancelled());
            assert_pending!(given_up.poll());
        }
        context.cancelled().await;
        context.clone().cancelled().await;
        tell.send(context.is_cancelled()).expect("heard");
    });
    let mut job = job.await.unwrap();
    turn().await;
    job.close().await.unwrap();
    assert_eq!((heard.recv().await, heard.recv().await), (Some(false), Some(true)));
    assert_eq!(scheduler.stats().completed, 1);
}

#[tokio::test]
async fn removed_job_has_finished_before_its_future_is_dropped() {
    /// Records the state that its own handle shows while it is dropped.
    struct Looks(Arc<OnceLock<Job<()>>>, Arc<Mutex<Vec<(JobState, bool)>>>);

    impl Drop for Looks {
        fn drop(&mut self) {
            let job = self.0.get().expect("spawned");
            self.1.lock().unwrap().push((job.state(), job.is_finished()));
        }
    }

    let scheduler = Scheduler::builder().limit(1).build();
    let running = scheduler.spawn(pending::<()>()).await.unwrap();
    let (handle, seen) = (Arc::default(), Arc::default());
    let looks = Looks(Arc::clone(&handle), Arc::clone(&seen));
    let waiting = scheduler.spawn(async move { drop(looks) }).await.unwrap();
    handle.set(waiting).unwrap();
    let waiting = handle.get().unwrap();
    waiting.abort();
    assert!(waiting.is_finished() && waiting.state() == JobState::Finished);
    assert_eq!(*seen.lock().unwrap(), [], "a task of the runtime drops it");
    turn().await;
    assert_eq!(*seen.lock().unwrap(), [(JobState::Finished, true)]);
    drop(running);
}
