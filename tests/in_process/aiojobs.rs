//! The behaviours of aiojobs 1.4.0, row by row, and the differences.
//!
//! | row | aiojobs | test, or difference |
//! |---|---|---|
//! | 1 | made with no event loop | [`scheduler_is_made_with_no_runtime_running`] |
//! | 2 | defaults | [`defaults_are_those_of_aiojobs`] |
//! | 3 | `len`, iteration, `in`, `repr` | [`len_jobs_and_debug_show_what_there_is`] |
//! | 4 | `spawn` | [`job_starts_at_once_below_the_limit_and_is_pending_at_it`] |
//! | 5 | a full queue | [`full_queue_makes_spawners_wait_in_turn`], [`spawner_that_gives_up_leaves_the_counts_as_they_were`] |
//! | 6 | `spawn` after close | [`closed_scheduler_refuses_jobs`], [`waiting_spawner_is_refused_when_the_scheduler_closes`] |
//! | 7 | a pending job is closed | [`pending_job_closed_before_its_turn_is_skipped`] |
//! | 8 | the next pending one starts | [`finishing_and_closing_active_jobs_start_the_next_in_order`] |
//! | 9 | `limit=None` | [`without_a_limit_all_jobs_run_at_once`] |
//! | 10 | `wait()` | [`wait_gives_the_value_before_during_and_after_the_run`], [`waiting_gives_the_exception`]. Differs: the value is moved out, so it is given once |
//! | 11 | a cancelled `wait()` | [`dropping_a_wait_leaves_the_job_running`] |
//! | 12 | `wait(timeout)` | [`wait_that_expires_closes_the_job`] |
//! | 13 | waiting on a closed job | [`waiting_on_a_closed_job_says_cancelled`] |
//! | 14 | `job.close()` | [`closing_a_job_cancels_it_and_waits_for_its_end`], [`closing_a_job_gives_up_after_its_timeout`], [`closing_a_job_gives_its_exception_and_closing_twice_is_fine`] |
//! | 15 | a cancelled caller of `close()` | [`close_given_up_in_the_instant_the_job_ends_loses_nothing`] |
//! | 16 | states | [`job_is_in_exactly_one_state`] (`deferred`: `http/deferred.rs`) |
//! | 17 | names | [`job_has_the_name_it_was_given_or_that_of_its_place`]. Differs: a name is given before spawning and stays, so that logs agree with each other; there is no `set_name` |
//! | 18 | an unawaited exception | [`unawaited_exception_is_handled_once`]. Differs: the spawn location, always, in place of a debug stack |
//! | 19 | awaited and closed jobs | [`exception_that_was_awaited_or_closed_is_not_handled`] |
//! | 20 | exception while closing | [`exception_while_the_scheduler_closes_is_handled_once`] |
//! | 21 | outlives `close_timeout` | [`job_outliving_the_close_timeout_is_handled_and_reported`] |
//! | 22 | the handler | [`unawaited_exception_is_handled_once`]; the default: `job/failures.rs`. Differs: it must be a closure, or the code does not compile |
//! | 23 | `shield` | [`shield_passes_its_result_through_and_survives_its_caller`] |
//! | 24 | `wait_and_close` | [`wait_and_close_waits_for_jobs_shields_and_the_jobs_of_jobs`] |
//! | 25 | it times out | [`timed_out_wait_and_close_cancels_jobs_and_shields`] |
//! | 26 | exceptions during it | [`exceptions_in_wait_and_close_are_handled_once_and_counted`] |
//! | 27 | `async with` | [`dropping_the_last_handle_warns_and_leaves_its_jobs_running`]. Differs: Rust has no asynchronous drop |
//! | 28 | another event loop | `scheduler/runtimes.rs`. Differs: not refused; the job runs on the scheduler's own runtime |
//! | 29, 30 | `setup`, `spawn(request, ..)` | `http/requests.rs` |
//! | 31 | `get_scheduler` | `http/extractor.rs` |
//! | 32 | nested apps | `http/layer.rs` |
//! | 33 | `@atomic` | `http/atomic.rs` |
//! | 34 | closing the server | `http/requests.rs`, `shutdown`, `tests/processes/welcome_email.rs` |
//! | 35 | open requests (362, 484, 15, 152, 623) | [`job_does_not_inherit_the_span_it_was_spawned_in`], [`job_that_runs_longer_than_its_timeout_has_failed`], [`try_spawn_never_waits_and_gives_the_future_back`], [`pending_limit_of_zero_refuses_in_place_of_queueing`], [`wait_and_close_is_woken_by_the_last_job_only`]. Priorities (455): none; jobs of another priority have a scheduler of their own |

use std::{
    future::{Future, pending},
    io,
    pin::pin,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower_jobs::{Job, JobState, Outcome, Scheduler, SpanLink, SpawnError, TrySpawnError};

use crate::support::{
    HOUR, SECOND, limited,
    logs::{Event, Logs, span_names},
    turn, watched,
};

/// The future ends when the sender is used or dropped.
fn gate() -> (oneshot::Sender<()>, impl Future<Output = ()> + Send + 'static) {
    let (open, opened) = oneshot::channel();
    (open, async { drop(opened.await) })
}

/// Jobs that write their numbers down when they start.
#[derive(Clone, Default)]
struct Started(Arc<Mutex<Vec<u32>>>);

impl Started {
    async fn job(self, number: u32, until: impl Future<Output = ()>) {
        self.0.lock().expect("no panic").push(number);
        until.await;
    }

    fn numbers(&self) -> Vec<u32> {
        self.0.lock().expect("no panic").clone()
    }
}

async fn failing() -> io::Result<()> {
    Err(io::Error::other("no such mailbox"))
}

fn counts(scheduler: &Scheduler) -> (usize, usize) {
    (scheduler.active_count(), scheduler.pending_count())
}

#[test]
fn scheduler_is_made_with_no_runtime_running() {
    static SCHEDULER: LazyLock<Scheduler> = LazyLock::new(|| Scheduler::builder().limit(3).build());
    assert_eq!(SCHEDULER.limit(), Some(3));
    assert!(SCHEDULER.is_empty() && !SCHEDULER.is_closed());
}

#[test]
fn defaults_are_those_of_aiojobs() {
    for scheduler in [Scheduler::new(), Scheduler::default(), Scheduler::builder().build()] {
        assert_eq!(scheduler.limit(), Some(100));
        assert_eq!(scheduler.pending_limit(), Some(10_000));
        assert_eq!(scheduler.close_timeout(), Duration::from_millis(100));
        assert_eq!(scheduler.wait_timeout(), Duration::from_secs(60));
    }
}

#[tokio::test]
async fn len_jobs_and_debug_show_what_there_is() {
    let scheduler = limited(1, 10);
    assert!(scheduler.is_empty() && scheduler.jobs().is_empty());
    let first = scheduler.job("first").spawn(pending::<()>()).await.unwrap();
    let second = scheduler.spawn(pending::<()>()).await.unwrap();

    assert_eq!((scheduler.len(), scheduler.is_empty()), (2, false));
    let jobs: Vec<_> = scheduler.jobs().iter().map(|job| (job.id, job.state)).collect();
    assert_eq!(jobs, [(first.id(), JobState::Active), (second.id(), JobState::Pending)]);
    let text = format!("{scheduler:?}");
    for part in ["Open", "active: 1", "pending: 1", "limit: Some(1)"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let text = format!("{first:?}");
    assert!(text.contains("first") && text.contains("Active"), "{text}");

    scheduler.close().await;
    assert!(scheduler.is_empty() && scheduler.jobs().is_empty());
    assert!(format!("{scheduler:?}").contains("Closed"));
}

#[tokio::test]
async fn job_starts_at_once_below_the_limit_and_is_pending_at_it() {
    let scheduler = limited(2, 10);
    let first = scheduler.spawn(pending::<()>()).await.unwrap();
    let second = scheduler.job("named").spawn(pending::<()>()).await.unwrap();
    let third = scheduler.spawn(pending::<()>()).await.unwrap();
    assert!(first.is_active() && second.is_active() && third.is_pending());
    assert_eq!(second.name(), "named");
    assert_eq!(counts(&scheduler), (2, 1));
}

#[tokio::test]
async fn full_queue_makes_spawners_wait_in_turn() {
    let scheduler = limited(1, 1);
    let started = Started::default();
    let (open, opened) = gate();
    scheduler.spawn(started.clone().job(0, opened)).await.unwrap();
    scheduler.spawn(started.clone().job(1, async {})).await.unwrap();
    let mut waiting: Vec<_> =
        (2..6).map(|n| task::spawn(scheduler.spawn(started.clone().job(n, async {})))).collect();
    for spawner in &mut waiting {
        assert_pending!(spawner.poll());
    }
    assert_eq!(scheduler.stats().waiting_spawners, 4);
    assert_eq!(counts(&scheduler), (1, 1));

    open.send(()).unwrap();
    for _ in 0..4 {
        turn().await;
        // No spawner overtakes the first in the line, not even one that comes now.
        assert!(waiting[0].is_woken());
        if waiting.len() > 1 {
            scheduler.try_spawn(async {}).expect_err("its place is taken");
        }
        assert_ready_ok!(waiting.remove(0).poll());
    }
    scheduler.wait_idle().await;
    assert_eq!(started.numbers(), [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn spawner_that_gives_up_leaves_the_counts_as_they_were() {
    let scheduler = limited(1, 1);
    let (open, opened) = gate();
    scheduler.spawn(opened).await.unwrap();
    scheduler.spawn(async {}).await.unwrap();
    let before = scheduler.stats().accepted;
    let started = Started::default();

    let mut waiting = task::spawn(scheduler.spawn(started.clone().job(0, async {})));
    assert_pending!(waiting.poll());
    drop(waiting);
    // A spawner that has been granted a place gives it back.
    let mut granted = task::spawn(scheduler.spawn(started.clone().job(1, async {})));
    assert_pending!(granted.poll());
    open.send(()).unwrap();
    turn().await;
    assert!(granted.is_woken());
    drop(granted);

    assert_eq!((counts(&scheduler), scheduler.stats().waiting_spawners), ((0, 0), 0));
    assert_eq!((scheduler.stats().accepted, started.numbers().len()), (before, 0));
    let _all_places_are_free = (
        scheduler.try_spawn(pending::<()>()).unwrap(),
        scheduler.try_spawn(pending::<()>()).unwrap(),
    );
    assert_eq!(counts(&scheduler), (1, 1));
}

#[tokio::test]
async fn closed_scheduler_refuses_jobs() {
    let scheduler = Scheduler::new();
    scheduler.close().await;
    assert_eq!(scheduler.spawn(async {}).await.unwrap_err(), SpawnError::Closed);
    assert!(matches!(scheduler.try_spawn(async {}), Err(TrySpawnError::Closed(_))));
    let refused = scheduler.spawn_within(SECOND, async {}).await.unwrap_err();
    assert_eq!(refused, SpawnError::Closed);
    assert!(scheduler.shield(async {}).await.unwrap_err().is_cancelled());
    assert_eq!(scheduler.stats().accepted, 0);
}

#[tokio::test]
async fn waiting_spawner_is_refused_when_the_scheduler_closes() {
    let scheduler = limited(1, 1);
    let started = Started::default();
    scheduler.spawn(pending::<()>()).await.unwrap();
    scheduler.spawn(pending::<()>()).await.unwrap();
    let mut waiting = task::spawn(scheduler.spawn(started.clone().job(0, async {})));
    assert_pending!(waiting.poll());

    scheduler.close().await;
    assert!(waiting.is_woken());
    assert_eq!(assert_ready_err!(waiting.poll()), SpawnError::Closed);
    turn().await;
    assert!(started.numbers().is_empty());
    assert_eq!(scheduler.stats().accepted, 2);
}

#[tokio::test]
async fn pending_job_closed_before_its_turn_is_skipped() {
    let scheduler = limited(1, 10);
    let started = Started::default();
    let (open, opened) = gate();
    scheduler.spawn(started.clone().job(0, opened)).await.unwrap();
    let mut skipped = scheduler.spawn(started.clone().job(1, async {})).await.unwrap();
    scheduler.spawn(started.clone().job(2, async {})).await.unwrap();
    skipped.close().await.unwrap();
    assert!(skipped.is_finished());
    open.send(()).unwrap();
    scheduler.wait_idle().await;
    assert_eq!(started.numbers(), [0, 2]);
}

#[tokio::test]
async fn finishing_and_closing_active_jobs_start_the_next_in_order() {
    let scheduler = limited(1, 10);
    let started = Started::default();
    let (open, opened) = gate();
    scheduler.spawn(started.clone().job(0, opened)).await.unwrap();
    let mut second = scheduler.spawn(started.clone().job(1, pending())).await.unwrap();
    scheduler.spawn(started.clone().job(2, async {})).await.unwrap();
    scheduler.spawn(started.clone().job(3, async {})).await.unwrap();
    open.send(()).unwrap();
    turn().await;
    assert_eq!((started.numbers(), second.state()), (vec![0, 1], JobState::Active));
    second.close().await.unwrap();
    scheduler.wait_idle().await;
    assert_eq!(started.numbers(), [0, 1, 2, 3]);
}

#[tokio::test]
async fn without_a_limit_all_jobs_run_at_once() {
    let scheduler = Scheduler::builder().limit(None).build();
    for _ in 0..500 {
        scheduler.spawn(pending::<()>()).await.unwrap();
    }
    assert_eq!((scheduler.limit(), counts(&scheduler)), (None, (500, 0)));
}

#[tokio::test]
async fn wait_gives_the_value_before_during_and_after_the_run() {
    let scheduler = limited(1, 10);
    let (open, opened) = gate();
    let mut running = scheduler
        .spawn(async {
            opened.await;
            "running"
        })
        .await
        .unwrap();
    let mut queued = scheduler.spawn(async { "queued" }).await.unwrap();
    let mut ended = scheduler.spawn(async { "ended" }).await.unwrap();
    {
        let mut while_running = task::spawn(running.wait());
        let mut before_start = task::spawn(queued.wait());
        assert_pending!(while_running.poll());
        assert_pending!(before_start.poll());
        open.send(()).unwrap();
        scheduler.wait_idle().await;
        assert!(while_running.is_woken() && before_start.is_woken());
        assert_eq!(assert_ready_ok!(while_running.poll()), "running");
        assert_eq!(assert_ready_ok!(before_start.poll()), "queued");
    }
    assert_eq!(ended.wait().await.unwrap(), "ended");
    let again = ended.wait().await.unwrap_err();
    assert!(again.to_string().contains("given to an earlier wait"), "{again}");
}

#[tokio::test]
async fn waiting_gives_the_exception() {
    let scheduler = Scheduler::new();
    let error = scheduler.spawn(failing()).await.unwrap().await.unwrap_err();
    assert_eq!(error.into_source().unwrap().to_string(), "no such mailbox");
    let panicking = scheduler.spawn(async { assert_eq!(1, 2, "out of ink") }).await.unwrap();
    assert!(panicking.await.unwrap_err().to_string().contains("out of ink"));
}

#[tokio::test]
async fn dropping_a_wait_leaves_the_job_running() {
    let scheduler = Scheduler::new();
    let (open, opened) = gate();
    let mut job = scheduler
        .spawn(async {
            opened.await;
            7
        })
        .await
        .unwrap();
    {
        let mut wait = task::spawn(job.wait());
        assert_pending!(wait.poll());
    }
    turn().await;
    assert!(job.is_active());
    open.send(()).unwrap();
    assert_eq!(job.wait().await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn wait_that_expires_closes_the_job() {
    let scheduler = Scheduler::new();
    let mut job = scheduler.spawn(pending::<()>()).await.unwrap();
    let began = Instant::now();
    assert!(job.wait_or_close(SECOND).await.unwrap_err().is_timeout());
    assert_eq!(began.elapsed().as_secs(), 1);
    assert!(job.is_finished());
    assert_eq!(scheduler.stats().cancelled, 1);

    let mut quick = scheduler.spawn(async { 7 }).await.unwrap();
    assert_eq!(quick.wait_or_close(SECOND).await.unwrap(), 7);
}

#[tokio::test]
async fn waiting_on_a_closed_job_says_cancelled() {
    let scheduler = Scheduler::new();
    let mut job = scheduler.spawn(pending::<()>()).await.unwrap();
    job.close().await.unwrap();
    for _ in 0..2 {
        assert!(job.wait().await.unwrap_err().is_cancelled());
    }
}

#[tokio::test(start_paused = true)]
async fn closing_a_job_cancels_it_and_waits_for_its_end() {
    let scheduler = Scheduler::builder().close_timeout(SECOND).build();
    let (tell, mut heard) = mpsc::unbounded_channel();
    let listening = move |context: tower_jobs::JobContext| async move {
        context.cancelled().await;
        sleep(SECOND / 2).await;
        tell.send("saved").expect("the test listens");
    };
    let mut job = scheduler.spawn_with(listening).await.unwrap();
    turn().await;
    let began = Instant::now();
    job.close().await.unwrap();
    assert_eq!((heard.recv().await, began.elapsed().as_millis()), (Some("saved"), 500));
    assert!(job.is_finished());
}

#[tokio::test(start_paused = true)]
async fn closing_a_job_gives_up_after_its_timeout() {
    let scheduler = Scheduler::builder().close_timeout(SECOND).build();
    let deaf = || scheduler.spawn_with(|_| pending::<()>());
    let began = Instant::now();
    assert!(deaf().await.unwrap().close().await.unwrap_err().is_close_timeout());
    assert_eq!(began.elapsed().as_secs(), 1);
    let error = deaf().await.unwrap().close_within(5 * SECOND).await.unwrap_err();
    assert!(error.is_close_timeout() && error.is_timeout(), "{error}");
    assert_eq!(began.elapsed().as_secs(), 6);
}

#[tokio::test]
async fn closing_a_job_gives_its_exception_and_closing_twice_is_fine() {
    let scheduler = Scheduler::new();
    let failing_when_cancelled = |context: tower_jobs::JobContext| async move {
        context.cancelled().await;
        failing().await
    };
    let mut job = scheduler.spawn_with(failing_when_cancelled).await.unwrap();
    turn().await;
    assert!(job.close().await.unwrap_err().is_failed());
    job.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn close_given_up_in_the_instant_the_job_ends_loses_nothing() {
    let (scheduler, mut failures) = watched(Scheduler::builder().close_timeout(SECOND));
    let failing_when_cancelled = |context: tower_jobs::JobContext| async move {
        context.cancelled().await;
        failing().await
    };
    for polls_before_it_ends in [true, false] {
        let mut job = scheduler.spawn_with(failing_when_cancelled).await.unwrap();
        turn().await;
        {
            let mut close = task::spawn(job.close());
            assert_pending!(close.poll());
            if polls_before_it_ends {
                turn().await;
                assert!(close.is_woken(), "the job has ended");
            }
        }
        turn().await;
        assert!(job.is_finished());
        assert!(job.wait().await.unwrap_err().is_failed());
    }
    assert!(failures.try_recv().is_err());
    assert_eq!((scheduler.stats().failed, scheduler.len()), (2, 0));
}

#[tokio::test]
async fn job_is_in_exactly_one_state() {
    let scheduler = limited(1, 10);
    let (open, opened) = gate();
    let blocker = scheduler.spawn(opened).await.unwrap();
    let (open_job, opened) = gate();
    let job = scheduler.spawn(opened).await.unwrap();
    let is =
        |job: &Job<()>| [job.is_deferred(), job.is_pending(), job.is_active(), job.is_finished()];
    assert_eq!((job.state(), is(&job)), (JobState::Pending, [false, true, false, false]));
    open.send(()).unwrap();
    blocker.await.unwrap();
    assert_eq!((job.state(), is(&job)), (JobState::Active, [false, false, true, false]));
    open_job.send(()).unwrap();
    scheduler.wait_idle().await;
    assert_eq!((job.state(), is(&job)), (JobState::Finished, [false, false, false, true]));
}

#[tokio::test]
async fn job_has_the_name_it_was_given_or_that_of_its_place() {
    let scheduler = Scheduler::new();
    assert_eq!(scheduler.job("mail").spawn(async {}).await.unwrap().name(), "mail");
    let name = format!("{} 7", "mail");
    assert_eq!(scheduler.job(name).name("other").spawn(async {}).await.unwrap().name(), "other");
    let (line, job) = (line!(), scheduler.spawn(async {}).await.unwrap());
    assert!(job.name().starts_with(&format!("{}:{line}:", file!())), "{}", job.name());
}

#[tokio::test]
async fn unawaited_exception_is_handled_once() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let spawned = line!() + 1;
    let id = scheduler.job("mail").spawn(failing()).await.unwrap().id();
    scheduler.wait_and_close().await;
    let failure = failures.try_recv().unwrap();
    assert_eq!((failure.job.id, &*failure.job.name), (id, "mail"));
    assert_eq!((failure.job.location.file(), failure.job.location.line()), (file!(), spawned));
    assert_eq!(failure.error.into_source().unwrap().to_string(), "no such mailbox");
    assert!(failures.try_recv().is_err());
}

#[tokio::test]
async fn exception_that_was_awaited_or_closed_is_not_handled() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    scheduler.spawn(failing()).await.unwrap().await.unwrap_err();
    let mut closed = scheduler.spawn(failing()).await.unwrap();
    scheduler.wait_idle().await;
    closed.close().await.unwrap_err();
    drop(closed);
    scheduler.close().await;
    assert!(failures.try_recv().is_err());
    assert_eq!(scheduler.stats().failed, 2);
}

#[tokio::test(start_paused = true)]
async fn exception_while_the_scheduler_closes_is_handled_once() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let failing_when_cancelled = |context: tower_jobs::JobContext| async move {
        context.cancelled().await;
        failing().await
    };
    scheduler.job("last").spawn_with(failing_when_cancelled).await.unwrap();
    turn().await;
    let report = scheduler.close().await;
    assert_eq!(report.failed.len(), 1);
    assert_eq!(failures.try_recv().unwrap().job.name, "last");
    assert!(failures.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn job_outliving_the_close_timeout_is_handled_and_reported() {
    let (scheduler, mut failures) = watched(Scheduler::builder().close_timeout(SECOND));
    scheduler.job("deaf").spawn_with(|_| pending::<()>()).await.unwrap();
    let report = scheduler.close().await;
    assert_eq!(
        report.jobs().map(|(outcome, job)| (outcome, &*job.name)).collect::<Vec<_>>(),
        [(Outcome::TimedOut, "deaf")]
    );
    let failure = failures.try_recv().unwrap();
    assert!(failure.error.is_close_timeout());
    assert!(
        failure.to_string().contains("did not end within 1s after it was asked to"),
        "{failure}"
    );
    assert!(failures.try_recv().is_err());
}

#[tokio::test]
async fn shield_passes_its_result_through_and_survives_its_caller() {
    let scheduler = limited(1, 0);
    scheduler.spawn(pending::<()>()).await.unwrap();
    assert_eq!(scheduler.shield(async { 7 }).await.unwrap(), 7);
    assert_eq!(
        scheduler.shield(failing()).await.unwrap().unwrap_err().kind(),
        io::ErrorKind::Other
    );

    let (open, opened) = gate();
    let (tell, heard) = oneshot::channel();
    let shield = scheduler.shield(async move {
        opened.await;
        tell.send("done").expect("heard");
    });
    let caller = tokio::spawn(shield);
    turn().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    assert_eq!((scheduler.len(), scheduler.active_count()), (2, 2), "tracked, outside the limit");
    open.send(()).unwrap();
    assert_eq!(heard.await.unwrap(), "done");
}

#[tokio::test(start_paused = true)]
async fn wait_and_close_waits_for_jobs_shields_and_the_jobs_of_jobs() {
    let scheduler = limited(1, 10);
    let started = Started::default();
    let (of_job, note) = (scheduler.clone(), started.clone());
    let parent = async move {
        sleep(SECOND).await;
        of_job.spawn(note.job(1, sleep(SECOND))).await.expect("draining still accepts");
    };
    scheduler.spawn(parent).await.unwrap();
    let mut shield = task::spawn(scheduler.shield(started.clone().job(2, sleep(4 * SECOND))));
    assert_pending!(shield.poll());
    drop(shield);

    let began = Instant::now();
    let report = scheduler.wait_and_close().await;
    assert_eq!(began.elapsed().as_secs(), 4);
    assert_eq!((report.completed, report.is_clean()), (3, true), "{report}");
    assert_eq!(started.numbers(), [2, 1]);
}

#[tokio::test(start_paused = true)]
async fn timed_out_wait_and_close_cancels_jobs_and_shields() {
    let scheduler = Scheduler::builder().wait_timeout(5 * SECOND).build();
    let (tell, mut heard) = mpsc::unbounded_channel();
    let listening = |context: tower_jobs::JobContext| async move {
        context.cancelled().await;
        tell.send("cancelled").expect("the test listens");
    };
    scheduler.spawn_with(listening).await.unwrap();
    let job = scheduler.spawn(pending::<()>()).await.unwrap();
    let shield = tokio::spawn(scheduler.shield(pending::<()>()));
    turn().await;

    let began = Instant::now();
    let report = scheduler.wait_and_close().await;
    assert_eq!(began.elapsed().as_secs(), 5);
    assert_eq!((report.completed, report.cancelled.len()), (1, 2), "{report}");
    assert_eq!(heard.recv().await, Some("cancelled"));
    assert!(job.await.unwrap_err().is_cancelled());
    assert!(shield.await.unwrap().unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn exceptions_in_wait_and_close_are_handled_once_and_counted() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    scheduler
        .spawn(async {
            sleep(SECOND).await;
            failing().await
        })
        .await
        .unwrap();
    scheduler
        .spawn(async {
            sleep(SECOND).await;
            panic!("out of ink")
        })
        .await
        .unwrap();
    let report = scheduler.wait_and_close().await;
    assert_eq!((report.failed.len(), report.panicked.len()), (1, 1), "{report}");
    assert!(failures.try_recv().is_ok() && failures.try_recv().is_ok());
    assert!(failures.try_recv().is_err());
}

#[tokio::test]
async fn dropping_the_last_handle_warns_and_leaves_its_jobs_running() {
    let (logs, _guard) = Logs::start();
    let (open, opened) = gate();
    let (tell, heard) = oneshot::channel();
    let scheduler = Scheduler::new();
    for _ in 0..76 {
        scheduler.spawn(pending::<()>()).await.unwrap();
    }
    scheduler
        .spawn(async move {
            opened.await;
            tell.send("done").expect("heard");
        })
        .await
        .unwrap();
    drop(scheduler.clone());
    let of_these = |event: &Event| event.field("jobs") == "77";
    assert_eq!(logs.iter().filter(of_these).count(), 0, "a handle is left");
    drop(scheduler);
    let warning = logs.iter().find(of_these).expect("a warning");
    assert_eq!(warning.field("level"), "WARN");
    assert!(warning.field("message").contains("wait_and_close"), "{warning:?}");
    open.send(()).unwrap();
    assert_eq!(heard.await.unwrap(), "done");
}

#[tokio::test]
async fn job_does_not_inherit_the_span_it_was_spawned_in() {
    let (_logs, _guard) = Logs::start();
    for (link, inherits) in
        [(SpanLink::FollowsFrom, false), (SpanLink::None, false), (SpanLink::Child, true)]
    {
        let scheduler = Scheduler::builder().span(link).build();
        let request = tracing::info_span!("request");
        let spawned = request.in_scope(|| scheduler.spawn(async { span_names() }));
        let names = spawned.await.unwrap().await.unwrap();
        let expected = if inherits { vec!["job", "request"] } else { vec!["job"] };
        assert_eq!(names, expected, "{link:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn job_that_runs_longer_than_its_timeout_has_failed() {
    let scheduler = limited(1, 10);
    scheduler.spawn(sleep(HOUR)).await.unwrap();
    // The job is pending for an hour. That time does not count.
    let job =
        scheduler.job("slow").timeout(SECOND).spawn(async { sleep(HOUR).await }).await.unwrap();
    let quick = scheduler
        .job("quick")
        .timeout(SECOND)
        .spawn(async { sleep(SECOND / 2).await })
        .await
        .unwrap();
    let began = Instant::now();
    assert!(job.await.unwrap_err().is_timeout());
    assert_eq!(began.elapsed(), HOUR + SECOND);
    quick.await.unwrap();
    assert_eq!((scheduler.stats().timed_out, scheduler.stats().completed), (1, 2));
}

#[tokio::test]
async fn try_spawn_never_waits_and_gives_the_future_back() {
    let scheduler = limited(1, 1);
    let running = scheduler.try_spawn(pending::<()>()).unwrap();
    let queued = scheduler.try_spawn(pending::<()>()).unwrap();
    assert!(running.is_active() && queued.is_pending());
    let refused = scheduler.try_spawn(async { 7 }).unwrap_err();
    assert!(refused.is_full() && !refused.is_closed());
    assert_eq!(refused.into_future().await, 7);
}

#[tokio::test]
async fn pending_limit_of_zero_refuses_in_place_of_queueing() {
    let scheduler = limited(1, 0);
    scheduler.spawn(pending::<()>()).await.unwrap();
    let mut spawn = pin!(scheduler.spawn(async {}));
    let refused = assert_ready!(task::spawn(spawn.as_mut()).poll()).unwrap_err();
    assert_eq!(refused, SpawnError::Full);
    assert!(scheduler.try_spawn(async {}).unwrap_err().is_full());
    assert_eq!((counts(&scheduler), scheduler.stats().accepted), ((1, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn wait_and_close_is_woken_by_the_last_job_only() {
    let scheduler = Scheduler::new();
    let mut gates: Vec<_> = (0..3).map(|_| gate()).collect();
    let mut open = Vec::new();
    for (sender, opened) in gates.drain(..) {
        open.push(sender);
        scheduler.spawn(opened).await.unwrap();
    }
    let mut close = task::spawn(scheduler.wait_and_close());
    assert_pending!(close.poll());
    let last = open.pop();
    drop(open);
    turn().await;
    assert_eq!((scheduler.len(), close.is_woken()), (1, false));
    drop(last);
    turn().await;
    assert!(close.is_woken());
    assert_eq!(assert_ready!(close.poll()).completed, 3);
    timeout(SECOND, scheduler.close()).await.unwrap();
}
