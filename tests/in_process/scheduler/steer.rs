//! Steering while it runs: limits, pausing, clearing, single jobs by id, weak handles.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task::spawn as poll_by_hand};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_jobs::{
    AtomicLayer, Job, JobInfo, JobState, JobsLayer, Scheduler, SpawnError, TrySpawnError,
};

use crate::support::{
    Drops, HOUR, PLENTY, SECOND, assert_adds_up, limited, oneshot::respond, panic_text, turn,
    within,
};
use JobState::{Active, Finished, Pending};

fn running(scheduler: &Scheduler) -> Job<()> {
    scheduler.try_spawn(pending::<()>()).unwrap()
}

fn states(jobs: &[Job<()>]) -> Vec<JobState> {
    jobs.iter().map(Job::state).collect()
}

fn keyed(scheduler: &Scheduler, key: &'static str) -> Job<()> {
    scheduler.job("keyed").concurrency_key(key).try_spawn(pending::<()>()).unwrap()
}

// The limits.

#[tokio::test]
async fn lowered_limit_starts_nothing_until_it_fits() {
    let scheduler = limited(3, 10);
    let jobs: Vec<_> = (0..6).map(|_| running(&scheduler)).collect();
    scheduler.set_limit(1).unwrap();
    assert_eq!(scheduler.limit(), Some(1));
    turn().await;
    assert_eq!(states(&jobs), [Active, Active, Active, Pending, Pending, Pending]);
    jobs[0].abort();
    jobs[1].abort();
    turn().await;
    assert_eq!(states(&jobs), [Finished, Finished, Active, Pending, Pending, Pending]);
    jobs[2].abort();
    turn().await;
    assert_eq!(states(&jobs)[2..], [Finished, Active, Pending, Pending]);
    assert_adds_up(&scheduler.stats());
}

#[tokio::test]
async fn raised_limit_starts_pending_jobs_in_order() {
    let scheduler = limited(1, 10);
    let jobs: Vec<_> = (0..6).map(|_| running(&scheduler)).collect();
    scheduler.set_limit(3).unwrap();
    assert_eq!(states(&jobs), [Active, Active, Active, Pending, Pending, Pending]);
    assert_eq!(scheduler.active_count(), 3);
    scheduler.set_limit(None).unwrap();
    assert_eq!(scheduler.limit(), None);
    assert_eq!(states(&jobs), [Active; 6]);
}

/// More jobs than one step of the queue starts.
#[tokio::test]
async fn raised_limit_starts_as_many_as_it_allows() {
    let scheduler = limited(1, 1000);
    let jobs: Vec<_> = (0..1000).map(|_| running(&scheduler)).collect();
    for limit in [500, 501, 700] {
        scheduler.set_limit(limit).unwrap();
        assert!(jobs[..limit].iter().all(Job::is_active), "the longest pending ones");
        assert!(jobs[limit..].iter().all(Job::is_pending));
    }
}

/// Each step of the raise asks for another. A recursion as deep as the steps would overflow the stack of
/// this thread.
#[test]
fn raise_over_a_long_backlog_needs_little_stack() {
    const BACKLOG: usize = 100_000;
    let raise = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let scheduler = Scheduler::builder().limit(1).pending_limit(None).build();
            let blocker = running(&scheduler);
            for n in 0..BACKLOG {
                let job = scheduler.job("job");
                let job = if n % 2 == 0 { job } else { job.concurrency_key("key") };
                job.try_spawn(async {}).unwrap();
            }
            scheduler.set_limit(BACKLOG / 2).unwrap();
            assert_eq!(scheduler.active_count(), BACKLOG / 2);
            scheduler.set_limit(None).unwrap();
            assert_eq!((scheduler.active_count(), scheduler.pending_count()), (BACKLOG + 1, 0));
            blocker.abort();
            within("the backlog", scheduler.wait_idle()).await;
            assert_eq!(scheduler.stats().completed, BACKLOG as u64);
        });
    };
    let thread = std::thread::Builder::new().stack_size(256 * 1024).spawn(raise).unwrap();
    thread.join().unwrap();
}

#[tokio::test]
async fn raised_limit_grants_waiting_spawners() {
    let scheduler = limited(1, 1);
    let jobs = [running(&scheduler), running(&scheduler)];
    let mut spawners: Vec<_> =
        (0..200).map(|_| poll_by_hand(scheduler.spawn(pending::<()>()))).collect();
    spawners.iter_mut().for_each(|spawner| assert_pending!(spawner.poll()));
    scheduler.set_limit(101).unwrap();
    assert_eq!(states(&jobs), [Active, Active]);
    // 99 permits and one place.
    let granted = spawners.iter().filter(|spawner| spawner.is_woken()).count();
    assert_eq!((granted, scheduler.stats().granted), (100, 100));
    assert!(spawners[..100].iter().all(|spawner| spawner.is_woken()), "in order");
    for spawner in &mut spawners[..100] {
        assert_ready_ok!(spawner.poll());
    }
    assert_eq!((scheduler.active_count(), scheduler.pending_count()), (101, 1));
    assert_eq!(scheduler.stats().granted, 0);
}

#[tokio::test]
async fn raised_pending_limit_grants_waiting_spawners() {
    let scheduler = limited(1, 0);
    let _running = running(&scheduler);
    assert!(matches!(scheduler.spawn(pending::<()>()).await, Err(SpawnError::Full)));
    scheduler.set_pending_limit(1).unwrap();
    assert_eq!(scheduler.pending_limit(), Some(1));
    let first = scheduler.spawn(pending::<()>()).await.unwrap();
    assert!(first.is_pending());
    let mut spawners = [(); 3].map(|()| poll_by_hand(scheduler.spawn(pending::<()>())));
    spawners.iter_mut().for_each(|spawner| assert_pending!(spawner.poll()));
    scheduler.set_pending_limit(3).unwrap();
    assert_eq!(spawners.each_ref().map(|spawner| spawner.is_woken()), [true, true, false]);
    assert_eq!(scheduler.stats().granted, 2);
    for spawner in &mut spawners[..2] {
        assert!(assert_ready_ok!(spawner.poll()).is_pending());
    }
    scheduler.set_pending_limit(None).unwrap();
    assert_eq!(scheduler.pending_limit(), None);
    assert!(spawners[2].is_woken());
    assert!(assert_ready_ok!(spawners[2].poll()).is_pending());
}

#[tokio::test]
async fn lowered_pending_limit_drops_no_job() {
    let scheduler = limited(1, 3);
    let jobs: Vec<_> = (0..4).map(|_| running(&scheduler)).collect();
    let mut spawner = poll_by_hand(scheduler.spawn(pending::<()>()));
    assert_pending!(spawner.poll());
    scheduler.set_pending_limit(0).unwrap();
    assert_eq!(scheduler.pending_limit(), Some(0));
    assert_eq!(states(&jobs), [Active, Pending, Pending, Pending]);
    assert!(matches!(scheduler.try_spawn(async {}), Err(TrySpawnError::Full(_))));
    for job in &jobs {
        assert!(!spawner.is_woken(), "a permit comes free when the queue is empty");
        assert!(job.is_active());
        job.abort();
        turn().await;
    }
    assert!(spawner.is_woken());
    let job = assert_ready_ok!(spawner.poll());
    assert!(job.is_active());
}

#[tokio::test]
async fn limit_per_key_comes_and_goes_with_pending_jobs() {
    let scheduler = limited(4, 20);
    assert_eq!(scheduler.limit_per_key(), None);
    let hot: Vec<_> = (0..6).map(|_| keyed(&scheduler, "hot")).collect();
    let cold: Vec<_> = (0..2).map(|_| keyed(&scheduler, "cold")).collect();
    assert_eq!(states(&hot), [Active, Active, Active, Active, Pending, Pending]);

    scheduler.set_limit_per_key(2).unwrap();
    assert_eq!(scheduler.limit_per_key(), Some(2));
    hot[0].abort();
    hot[1].abort();
    turn().await;
    // Two of the hot key run, so both permits go to the cold one.
    assert_eq!(states(&hot)[2..], [Active, Active, Pending, Pending]);
    assert_eq!(states(&cold), [Active, Active]);
    cold[0].abort();
    turn().await;
    assert_eq!(states(&hot)[4..], [Pending, Pending]);
    hot[2].abort();
    turn().await;
    assert_eq!(states(&hot)[4..], [Active, Pending]);

    scheduler.set_limit_per_key(None).unwrap();
    assert_eq!(scheduler.limit_per_key(), None);
    assert_eq!(states(&hot)[4..], [Active, Active]);
    assert_eq!(scheduler.active_count(), 4);
}

#[tokio::test]
async fn raised_limit_per_key_starts_many_blocked_jobs() {
    const JOBS: usize = 1000;
    let scheduler = Scheduler::builder().limit(None).limit_per_key(1).build();
    let hot: Vec<_> = (0..JOBS).map(|_| keyed(&scheduler, "hot")).collect();
    let other = [keyed(&scheduler, "other"), keyed(&scheduler, "other")];
    assert_eq!(scheduler.active_count(), 2);
    scheduler.set_limit_per_key(JOBS - 1).unwrap();
    assert_eq!(scheduler.active_count(), JOBS - 1 + 2);
    assert!(other[1].is_active() && hot[JOBS - 1].is_pending());
    hot[3].abort();
    turn().await;
    assert!(hot[JOBS - 1].is_active());
}

#[tokio::test]
async fn senseless_limits_are_refused_and_change_nothing() {
    let scheduler = Scheduler::builder().limit(2).limit_per_key(3).build();
    let error = scheduler.set_limit(0).unwrap_err().to_string();
    for part in ["limit is 0", "at least 1", "no limit"] {
        assert!(error.contains(part), "{error}");
    }
    let error = scheduler.set_limit_per_key(0).unwrap_err().to_string();
    assert!(error.starts_with("limit_per_key is 0") && error.contains("at least 1"), "{error}");
    assert_eq!((scheduler.limit(), scheduler.limit_per_key()), (Some(2), Some(3)));
}

#[tokio::test]
async fn limits_change_before_the_first_job_and_after_closing() {
    let scheduler = limited(1, 1);
    scheduler.set_limit(2).unwrap();
    scheduler.set_pending_limit(0).unwrap();
    let jobs = [running(&scheduler), running(&scheduler)];
    assert_eq!(states(&jobs), [Active, Active]);
    scheduler.close().await;
    scheduler.set_limit(3).unwrap();
    scheduler.set_pending_limit(None).unwrap();
    scheduler.set_limit_per_key(1).unwrap();
    scheduler.pause();
    scheduler.resume();
    assert_eq!(scheduler.clear(), 0);
    assert_eq!((scheduler.limit(), scheduler.pending_limit()), (Some(3), None));
    assert!(scheduler.is_closed() && scheduler.is_empty());
}

// Pausing.

#[tokio::test]
async fn paused_scheduler_starts_nothing() {
    let scheduler = limited(2, 2);
    let first = running(&scheduler);
    scheduler.pause();
    scheduler.pause();
    assert!(scheduler.is_paused());
    assert_eq!(scheduler.limit(), Some(2), "the limit is kept");
    let jobs = [running(&scheduler), running(&scheduler)];
    first.abort();
    turn().await;
    assert_eq!(states(&jobs), [Pending, Pending]);
    assert!(first.is_finished(), "running jobs end");
    assert!(matches!(scheduler.try_spawn(async {}), Err(TrySpawnError::Full(_))));
    let mut spawner = poll_by_hand(scheduler.spawn(async {}));
    assert_pending!(spawner.poll());
    scheduler.set_limit(3).unwrap();
    turn().await;
    assert_eq!(states(&jobs), [Pending, Pending], "a raise starts nothing either");
    assert_eq!(scheduler.limit(), Some(3));
    scheduler.resume();
    assert!(!scheduler.is_paused());
    assert_eq!(states(&jobs), [Active, Active]);
    assert!(spawner.is_woken());
    scheduler.resume();
    assert_eq!(scheduler.limit(), Some(3));
}

#[tokio::test]
async fn shielded_and_atomic_work_starts_while_paused() {
    let scheduler = limited(1, 1);
    scheduler.pause();
    let job = running(&scheduler);
    assert_eq!(within("shielded work", scheduler.shield(async { 7 })).await.unwrap(), 7);
    let inner = service_fn(|_: Request<()>| {
        ready(Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new())))
    });
    let service = ServiceBuilder::new()
        .layer(JobsLayer::new(scheduler.clone()))
        .layer(AtomicLayer::new(scheduler.clone()))
        .service(inner);
    let response = within("atomic work", service.oneshot(Request::new(()))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(job.is_pending());
    assert_eq!(scheduler.stats().completed, 2);
}

#[tokio::test]
async fn shielded_work_is_counted_outside_the_limit() {
    let scheduler = limited(1, 1);
    let _job = running(&scheduler);
    let mut shielded = poll_by_hand(scheduler.shield(async { pending::<()>().await }));
    assert_pending!(shielded.poll());
    let stats = scheduler.stats();
    assert_eq!((stats.active, stats.outside_limit), (2, 1));
    let open = respond(&scheduler).await;
    let _deferred = open.jobs.after_response(async {}).unwrap();
    assert_eq!(scheduler.stats().outside_limit, 1);
}

#[tokio::test]
async fn deferred_jobs_of_a_paused_scheduler_become_pending() {
    let scheduler = limited(1, 1);
    let open = respond(&scheduler).await;
    let job = open.jobs.after_response(async { 7 }).unwrap();
    scheduler.pause();
    drop(open.response);
    turn().await;
    assert!(job.is_pending());
    scheduler.resume();
    assert_eq!(job.await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn drain_while_paused_ends_with_the_running_jobs() {
    let scheduler = limited(1, 10);
    let done = scheduler.try_spawn(sleep(SECOND)).unwrap();
    let pending_job = scheduler.job("pending").try_spawn(async {}).unwrap();
    scheduler.pause();
    let began = Instant::now();
    let report = scheduler.wait_and_close_within(HOUR).await;
    assert_eq!(began.elapsed(), SECOND);
    assert_eq!((report.completed, report.never_started.len()), (1, 1));
    assert_eq!(report.never_started[0].name, "pending");
    assert!(done.is_finished() && !report.is_clean());
    assert!(pending_job.await.unwrap_err().is_cancelled());
    assert_eq!(scheduler.stats().never_started, 1);
}

#[tokio::test(start_paused = true)]
async fn pause_during_a_drain_ends_it_with_the_running_jobs() {
    let scheduler = limited(1, 10);
    scheduler.try_spawn(sleep(SECOND)).unwrap();
    let _pending = [running(&scheduler), running(&scheduler)];
    let began = Instant::now();
    let mut drain = poll_by_hand(scheduler.wait_and_close_within(HOUR));
    assert_pending!(drain.poll());
    scheduler.pause();
    let report = drain.await;
    assert_eq!(began.elapsed(), SECOND);
    assert_eq!((report.completed, report.never_started.len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn drain_while_paused_with_nothing_running_is_over_at_once() {
    let scheduler = limited(1, 10);
    scheduler.pause();
    let open = respond(&scheduler).await;
    let deferred = open.jobs.after_response(async {}).unwrap();
    let jobs = [running(&scheduler), running(&scheduler)];
    let mut spawner = poll_by_hand(scheduler.spawn(async {}));
    scheduler.set_pending_limit(2).unwrap();
    assert_pending!(spawner.poll());
    let began = Instant::now();
    let report = scheduler.wait_and_close_within(HOUR).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(report.never_started.len(), 3);
    assert!(matches!(assert_ready!(spawner.poll()), Err(SpawnError::Closed)));
    assert!(deferred.is_finished() && jobs.iter().all(Job::is_finished));
    assert_adds_up(&scheduler.stats());
}

/// The last step that a drain waits for is the pause itself.
#[tokio::test(start_paused = true)]
async fn pause_between_two_jobs_of_a_drain_ends_it() {
    let scheduler = limited(1, 10);
    let job = running(&scheduler);
    let open = respond(&scheduler).await;
    let deferred = open.jobs.after_response(async {}).unwrap();
    let mut drain = poll_by_hand(scheduler.wait_and_close_within(HOUR));
    assert_pending!(drain.poll());
    job.abort();
    turn().await;
    assert!(!scheduler.is_closed(), "a deferred job is left");
    scheduler.pause();
    assert!(scheduler.is_closed());
    let began = Instant::now();
    let report = drain.await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(report.never_started.len(), 1);
    assert!(deferred.await.unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn resumed_drain_runs_the_pending_jobs() {
    let scheduler = limited(1, 10);
    scheduler.try_spawn(sleep(SECOND)).unwrap();
    let job = scheduler.try_spawn(async { 7 }).unwrap();
    scheduler.pause();
    let mut drain = poll_by_hand(scheduler.wait_and_close_within(HOUR));
    assert_pending!(drain.poll());
    scheduler.resume();
    let report = drain.await;
    assert_eq!((report.completed, job.await.unwrap()), (2, 7));
}

/// `wait_idle` is about all jobs, and a paused queue keeps its own.
#[tokio::test(start_paused = true)]
async fn wait_idle_waits_for_pending_jobs_of_a_paused_scheduler() {
    let scheduler = limited(1, 10);
    scheduler.pause();
    let _job = scheduler.try_spawn(async {}).unwrap();
    assert!(tokio::time::timeout(HOUR, scheduler.wait_idle()).await.is_err());
    scheduler.resume();
    within("the job", scheduler.wait_idle()).await;
}

// Clearing.

#[tokio::test]
async fn clear_ends_what_is_pending_and_nothing_else() {
    let scheduler = Scheduler::builder().limit(2).limit_per_key(1).pending_limit(1000).build();
    let open = respond(&scheduler).await;
    let deferred = open.jobs.after_response(async {}).unwrap();
    let active = [running(&scheduler), keyed(&scheduler, "a")];
    let drops = Drops::default();
    let mut jobs = Vec::new();
    for n in 0..300 {
        let held = drops.one();
        let job = scheduler.job("pending");
        let job = if n % 3 == 0 { job.concurrency_key("a") } else { job };
        jobs.push(job.try_spawn(async move { drop(held) }).unwrap());
    }
    assert_eq!(scheduler.clear(), 300);
    assert_eq!(states(&active), [Active, Active]);
    assert!(deferred.is_deferred());
    assert_eq!((scheduler.pending_count(), scheduler.stats().cancelled), (0, 300));
    for job in jobs {
        assert!(job.await.unwrap_err().is_cancelled());
    }
    turn().await;
    assert_eq!(drops.count(), 300);
    assert_eq!(scheduler.clear(), 0);
    assert_adds_up(&scheduler.stats());
}

/// The places that come free go to spawners, whose jobs are not cleared.
#[tokio::test]
async fn clear_lets_waiting_spawners_in() {
    let scheduler = limited(1, 200);
    let _active = running(&scheduler);
    let cleared: Vec<_> = (0..200).map(|_| running(&scheduler)).collect();
    let mut spawners: Vec<_> =
        (0..250).map(|_| poll_by_hand(scheduler.spawn(pending::<()>()))).collect();
    spawners.iter_mut().for_each(|spawner| assert_pending!(spawner.poll()));
    assert_eq!(scheduler.clear(), 200);
    assert!(cleared.iter().all(Job::is_finished));
    let granted: Vec<_> = spawners.iter().map(|spawner| spawner.is_woken()).collect();
    assert!(granted[..200].iter().all(|woken| *woken) && granted[200..].iter().all(|woken| !woken));
    for spawner in &mut spawners[..200] {
        assert!(assert_ready_ok!(spawner.poll()).is_pending());
    }
}

#[tokio::test]
async fn clear_can_end_a_drain() {
    let scheduler = limited(1, 10);
    scheduler.pause();
    let _job = running(&scheduler);
    scheduler.resume();
    let first = running(&scheduler);
    let mut drain = poll_by_hand(scheduler.wait_and_close_within(HOUR));
    assert_pending!(drain.poll());
    assert!(first.is_pending());
    assert_eq!(scheduler.clear(), 1);
    assert!(first.await.unwrap_err().is_cancelled());
    scheduler.jobs().iter().for_each(|job| assert!(scheduler.abort(job.id)));
    let report = within("the drain", drain).await;
    assert_eq!(report.cancelled.len(), 2);
}

#[tokio::test]
async fn clear_while_idle_waiters_wait_wakes_them() {
    let scheduler = limited(1, 10);
    scheduler.pause();
    let _job = running(&scheduler);
    let mut idle = poll_by_hand(scheduler.wait_idle());
    let mut drain = poll_by_hand(scheduler.wait_idle());
    assert_pending!(idle.poll());
    assert_pending!(drain.poll());
    assert_eq!(scheduler.clear(), 1);
    assert!(idle.is_woken() && drain.is_woken());
    assert_ready!(idle.poll());
}

// Single jobs by id.

#[tokio::test]
async fn abort_ends_a_job_in_any_state() {
    let scheduler = limited(1, 10);
    let open = respond(&scheduler).await;
    let deferred = open.jobs.after_response(async {}).unwrap();
    let jobs: Vec<_> = (0..2).map(|_| running(&scheduler)).collect();
    for (job, state) in [(&deferred, JobState::Deferred), (&jobs[1], Pending), (&jobs[0], Active)] {
        assert_eq!(job.state(), state);
        assert!(scheduler.abort(job.id()));
    }
    let ended = jobs[0].id();
    for job in jobs.into_iter().chain([deferred]) {
        assert!(within("the abort", job).await.unwrap_err().is_cancelled());
    }
    assert!(!scheduler.abort(ended) && !scheduler.close_job(ended));
    assert!(!Scheduler::new().abort(ended), "a job of another scheduler");
    assert_eq!(scheduler.stats().cancelled, 3);
}

#[tokio::test]
async fn job_of_another_process_is_neither_aborted_nor_closed() {
    let scheduler = limited(1, 10);
    let job = running(&scheduler);
    let text = job.id().to_string();
    let (number, process) = text.split_once('-').unwrap();
    let process = u32::from_str_radix(process, 16).unwrap() ^ 1;
    let other = format!("{number}-{process:05x}").parse().unwrap();
    assert!(!scheduler.abort(other) && !scheduler.close_job(other));
    assert!(job.is_active());
}

#[tokio::test]
async fn close_job_cancels_a_job_that_listens_and_waits_for_none() {
    let scheduler = limited(2, 10);
    let go = Arc::new(Notify::new());
    let listening = {
        let go = go.clone();
        scheduler
            .spawn_with(|context| async move {
                context.cancelled().await;
                go.notified().await;
                7
            })
            .await
            .unwrap()
    };
    let plain = running(&scheduler);
    let waiting = running(&scheduler);
    assert!(waiting.is_pending());
    turn().await;
    for id in [listening.id(), plain.id(), waiting.id()] {
        assert!(scheduler.close_job(id));
    }
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert!(plain.await.unwrap_err().is_cancelled());
    sleep(2 * scheduler.close_timeout()).await;
    assert!(listening.is_active(), "without a deadline");
    go.notify_one();
    assert_eq!(listening.await.unwrap(), 7);
}

#[tokio::test]
async fn jobs_are_found_by_id_among_many() {
    for remember in [0, 10] {
        let scheduler =
            Scheduler::builder().limit(1).pending_limit(None).remember(remember).build();
        let jobs: Vec<_> = (0..1000).map(|_| running(&scheduler)).collect();
        for at in [999, 500, 128, 127, 1] {
            assert!(scheduler.abort(jobs[at].id()));
            assert!(!scheduler.abort(jobs[at].id()));
            assert_eq!(jobs[at].state(), Finished);
        }
        assert_eq!(scheduler.stats().cancelled, 5);
    }
}

// Weak handles, names, timeouts, deadlines.

#[tokio::test]
async fn weak_handle_neither_keeps_nor_frees_a_scheduler() {
    let scheduler = limited(1, 10);
    let weak = scheduler.downgrade();
    let drops = Drops::default();
    let (held, go) = (drops.one(), Arc::new(Notify::new()));
    let job = {
        let (weak, go) = (weak.clone(), go.clone());
        scheduler
            .try_spawn(async move {
                go.notified().await;
                let gone = weak.upgrade().is_none();
                drop(held);
                [gone].to_vec()
            })
            .unwrap()
    };
    let upgraded = weak.upgrade().unwrap();
    drop(scheduler);
    assert_eq!(upgraded.active_count(), 1);
    assert!(weak.upgrade().is_some(), "a strong handle is left");
    drop(upgraded);
    assert!(weak.upgrade().is_none() && weak.clone().upgrade().is_none());
    go.notify_one();
    assert_eq!(job.await.unwrap(), [true], "the jobs run on");
    assert_eq!(drops.count(), 1);
    assert!(tower_jobs::WeakScheduler::default().upgrade().is_none());
}

#[tokio::test]
async fn scheduler_has_the_name_it_was_given() {
    assert_eq!(Scheduler::new().name(), None);
    let scheduler = Scheduler::builder().name("mail").build();
    assert_eq!(scheduler.clone().name(), Some("mail"));
}

#[tokio::test(start_paused = true)]
async fn job_timeout_is_for_jobs_without_their_own() {
    let scheduler = Scheduler::builder().job_timeout(SECOND).build();
    assert_eq!(scheduler.job_timeout(), Some(SECOND));
    assert_eq!(Scheduler::new().job_timeout(), None);
    let began = Instant::now();
    let default = scheduler.spawn(pending::<()>()).await.unwrap();
    let cooperative = scheduler.spawn_with(|_| pending::<()>()).await.unwrap();
    let own = scheduler.job("own").timeout(3 * SECOND).spawn(pending::<()>()).await.unwrap();
    let open = respond(&scheduler).await;
    let deferred = open.jobs.after_response(pending::<()>()).unwrap();
    let permit = scheduler.reserve().await.unwrap();
    let reserved = permit.spawn(pending::<()>()).unwrap();
    let shielded = scheduler.shield(async { sleep(2 * SECOND).await });
    let mut shielded = poll_by_hand(shielded);
    assert_pending!(shielded.poll());
    for job in [default, cooperative, reserved] {
        assert!(job.await.unwrap_err().is_timeout());
    }
    assert_eq!(began.elapsed(), SECOND);
    shielded.await.unwrap();
    assert_eq!(began.elapsed(), 2 * SECOND);
    assert!(own.await.unwrap_err().is_timeout());
    assert_eq!(began.elapsed(), 3 * SECOND);
    assert!(deferred.is_deferred(), "its time begins with its start");
    drop(open.response);
    assert!(deferred.await.unwrap_err().is_timeout());
    assert_eq!(began.elapsed(), 4 * SECOND);
    let shielded = scheduler.job("own").timeout(SECOND).shield(pending::<()>()).await;
    assert!(shielded.unwrap_err().is_timeout());
}

#[test]
fn senseless_job_timeouts_panic_with_the_cure() {
    for timeout in [Duration::ZERO, Duration::MAX] {
        let text = panic_text(|| Scheduler::builder().job_timeout(timeout));
        assert!(text.contains("job_timeout"), "{text}");
    }
    assert_eq!(Scheduler::builder().job_timeout(None).build().job_timeout(), None);
}

#[tokio::test(start_paused = true)]
async fn deadline_is_that_of_the_drain() {
    let scheduler = Scheduler::builder().close_timeout(SECOND).build();
    let job = running(&scheduler);
    scheduler.start_draining();
    assert_eq!(scheduler.deadline(), None, "announced only");
    let began = Instant::now();
    let mut drain = poll_by_hand(scheduler.wait_and_close_within(HOUR));
    assert_eq!(scheduler.deadline(), None, "not polled");
    assert_pending!(drain.poll());
    assert_eq!(scheduler.deadline(), Some(began + HOUR));
    let mut later = poll_by_hand(scheduler.wait_and_close_within(2 * HOUR));
    assert_pending!(later.poll());
    assert_eq!(scheduler.deadline(), Some(began + HOUR), "a later one does not postpone it");
    sleep(SECOND).await;
    let mut close = poll_by_hand(scheduler.close());
    assert_pending!(close.poll());
    assert_eq!(scheduler.deadline(), Some(began + 2 * SECOND));
    assert!(job.await.unwrap_err().is_cancelled());
    close.await;
    assert_eq!(scheduler.deadline(), Some(began + 2 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn drain_without_end_has_no_deadline() {
    let scheduler = limited(1, 1);
    let job = running(&scheduler);
    let mut drain = poll_by_hand(scheduler.wait_and_close_within(Duration::MAX));
    assert_pending!(drain.poll());
    assert_eq!(scheduler.deadline(), None);
    job.abort();
    drain.await;
}

#[cfg(feature = "shutdown")]
#[tokio::test(start_paused = true)]
async fn shutdown_sets_the_deadline_at_the_trigger() {
    let scheduler = limited(1, 1);
    let (trigger, triggered) = tokio::sync::oneshot::channel::<()>();
    let shutdown = tower_jobs::Shutdown::with_trigger(&scheduler, async { drop(triggered.await) })
        .grace(10 * SECOND)
        // The drain begins to wait after this time. The deadline is known before.
        .readiness_delay(2 * SECOND);
    let _job = running(&scheduler);
    let mut serving = poll_by_hand(shutdown.serve(|stop| stop));
    assert_pending!(serving.poll());
    assert_eq!(scheduler.deadline(), None);
    trigger.send(()).unwrap();
    let end = Instant::now() + 10 * SECOND;
    assert_pending!(serving.poll());
    let deadline = scheduler.deadline().unwrap();
    assert!(deadline < end - scheduler.close_timeout() && deadline > end - SECOND, "{deadline:?}");
    serving.await;
    assert_eq!(scheduler.deadline(), Some(deadline));
    assert!(Instant::now() <= end);
}

// Threads of their own.

/// A raise applies wakers of user code after unlocking.
#[test]
fn steering_needs_no_runtime() {
    let scheduler = limited(1, 1);
    scheduler.set_limit(2).unwrap();
    scheduler.set_pending_limit(3).unwrap();
    scheduler.set_limit_per_key(4).unwrap();
    scheduler.pause();
    scheduler.resume();
    assert_eq!(scheduler.clear(), 0);
    assert!(scheduler.jobs_page(None, None, 10).is_empty());
}

/// From a plain thread, as a control loop of an application does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_changed_by_another_thread_starts_jobs() {
    let scheduler = limited(1, 100);
    let _blocker = running(&scheduler);
    let ran = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let ran = ran.clone();
        scheduler
            .try_spawn(async move {
                ran.fetch_add(1, SeqCst);
            })
            .unwrap();
    }
    let control = scheduler.clone();
    std::thread::spawn(move || control.set_limit(5).unwrap()).join().unwrap();
    let all_ran = async {
        while ran.load(SeqCst) < 100 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PLENTY, all_ran).await.unwrap();
}

fn ids(jobs: &[JobInfo]) -> Vec<tower_jobs::JobId> {
    jobs.iter().map(|job| job.id).collect()
}

#[tokio::test]
async fn pages_list_each_job_once_by_state() {
    let scheduler = limited(10, 1000);
    let open = respond(&scheduler).await;
    let _deferred: Vec<_> = (0..20).map(|_| open.jobs.after_response(async {}).unwrap()).collect();
    let _jobs: Vec<_> = (0..500).map(|_| running(&scheduler)).collect();
    let all = scheduler.jobs();
    let of = |state| ids(&all.iter().filter(|job| job.state == state).cloned().collect::<Vec<_>>());
    let wanted = [
        (None, ids(&all)),
        (Some(JobState::Deferred), of(JobState::Deferred)),
        (Some(Pending), of(Pending)),
        (Some(Active), of(Active)),
        (Some(Finished), Vec::new()),
    ];
    for (state, wanted) in wanted {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = scheduler.jobs_page(state, after, 7);
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 7);
            assert!(page.iter().all(|job| state.is_none_or(|state| job.state == state)));
            after = Some(last.id);
            seen.extend(ids(&page));
        }
        assert_eq!(seen, wanted, "{state:?}");
    }
    assert_eq!((of(JobState::Deferred).len(), of(Pending).len(), of(Active).len()), (20, 490, 10));
    assert!(scheduler.jobs_page(None, None, 0).is_empty());
}
