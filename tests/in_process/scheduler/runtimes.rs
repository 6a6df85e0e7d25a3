//! The runtime of a scheduler: none yet, one of several, and one that goes away.

use std::{
    future::{Future, pending},
    sync::{LazyLock, mpsc as threads},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    task::yield_now,
    time::sleep,
};
use tokio_test::{assert_pending, assert_ready_err, task};
use tower_jobs::{Job, JobError, Outcome, Scheduler, SpawnError, TrySpawnError};

use crate::support::{
    Grenade, OnDrop, PLENTY, all, assert_adds_up, block_on, holding, limited, oneshot::respond,
    panic_text, turn, watched,
};

const SHORT: Duration = Duration::from_millis(20);

fn multi(name: &str) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(name)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn single() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn thread_name() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

#[test]
fn static_scheduler_needs_no_runtime_until_its_first_job() {
    static SCHEDULER: LazyLock<Scheduler> = LazyLock::new(Scheduler::new);
    assert!(SCHEDULER.is_empty() && SCHEDULER.jobs().is_empty());
    assert_eq!(SCHEDULER.stats().accepted, 0);
    block_on(SCHEDULER.wait_idle());
    let runtime = single();
    let value = runtime.block_on(async { SCHEDULER.spawn(async { 7 }).await.unwrap().await });
    assert_eq!(value.unwrap(), 7);
}

#[test]
fn spawning_without_a_runtime_is_an_error_that_names_the_cure() {
    let scheduler = Scheduler::new();
    let refused = [
        block_on(scheduler.spawn(async {})).unwrap_err(),
        block_on(scheduler.spawn_with(|_| async {})).unwrap_err(),
        block_on(scheduler.spawn_blocking(|| ())).unwrap_err(),
        block_on(scheduler.spawn_within(SHORT, async {})).unwrap_err(),
        block_on(scheduler.job("named").spawn(async {})).unwrap_err(),
    ];
    assert_eq!(refused, [SpawnError::NoRuntime; 5]);
    let error = scheduler.try_spawn(async { 7 }).unwrap_err();
    assert!(matches!(error, TrySpawnError::NoRuntime(_)));
    for text in [error.to_string(), refused[0].to_string()] {
        assert!(text.contains("Scheduler::builder().runtime(handle)"), "{text}");
    }
    assert_eq!(block_on(error.into_future()), 7, "the future is given back");
    let error = block_on(scheduler.shield(async {})).unwrap_err();
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
    assert_eq!(source, Some(&SpawnError::NoRuntime));

    assert_eq!(scheduler.stats().accepted, 0);
    assert_eq!(single().block_on(scheduler.shield(async { 7 })).unwrap(), 7, "it is usable still");
}

#[test]
fn scheduler_that_never_had_a_runtime_closes_without_one() {
    let scheduler = Scheduler::new();
    assert!(block_on(scheduler.wait_and_close()).is_clean());
    assert!(block_on(scheduler.close()).is_clean() && scheduler.is_closed());
}

/// The panic of a future in a runtime without a timer.
fn without_a_timer<F: Future>(future: F) -> String {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    panic_text(|| runtime.block_on(future))
}

#[test]
fn timed_wait_without_a_timer_panics_with_the_cure() {
    let jobs = || limited(1, 0);
    let texts = [
        without_a_timer(async { jobs().close().await }),
        without_a_timer(async { jobs().wait_and_close().await }),
        without_a_timer(async { jobs().wait_and_close_within(Duration::MAX).await }),
        without_a_timer(async { jobs().spawn_within(SHORT, async {}).await }),
        without_a_timer(async { jobs().job("mail").spawn_within(SHORT, async {}).await }),
        without_a_timer(async { jobs().try_spawn(pending::<()>()).unwrap().close().await }),
        without_a_timer(async {
            jobs().try_spawn(pending::<()>()).unwrap().close_within(SHORT).await
        }),
        without_a_timer(async {
            jobs().try_spawn(pending::<()>()).unwrap().wait_or_close(SHORT).await
        }),
        without_a_timer(async {
            let jobs = respond(&jobs()).await.jobs;
            drop(jobs.try_spawn(pending::<()>()).unwrap());
            jobs.close().await
        }),
        #[cfg(feature = "shutdown")]
        // At its start, not at its end.
        without_a_timer(tower_jobs::Shutdown::with_trigger(&jobs(), pending()).serve(|stop| stop)),
    ];
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let job = async { jobs().job("mail").timeout(SHORT).try_spawn(pending::<()>()).unwrap().await };
    let panic = runtime.block_on(job).unwrap_err().into_panic().unwrap();
    for text in texts.into_iter().chain([*panic.downcast().expect("a text")]) {
        assert!(text.contains("timers are disabled") && text.contains("enable_time"), "{text}");
    }
}

#[test]
fn jobs_run_on_the_runtime_that_was_given() {
    let runtime = multi("given");
    let scheduler = Scheduler::builder().runtime(runtime.handle().clone()).build();
    let name = block_on(async { scheduler.spawn(thread_name()).await.unwrap().await });
    assert_eq!(name.unwrap(), "given");
    let elsewhere = multi("elsewhere");
    assert_eq!(elsewhere.block_on(scheduler.shield(thread_name())).unwrap(), "given");
}

#[test]
fn jobs_run_on_the_runtime_of_the_first_one() {
    let (first, second) = (multi("first"), multi("second"));
    let scheduler = Scheduler::new();
    let job = first.block_on(scheduler.spawn(thread_name())).unwrap();
    assert_eq!(block_on(job).unwrap(), "first");
    let name = second.block_on(async { scheduler.spawn(thread_name()).await.unwrap().await });
    assert_eq!(name.unwrap(), "first");
    let name = second.block_on(async {
        let scheduler = scheduler.clone();
        tokio::spawn(async move { scheduler.try_spawn(thread_name()).unwrap().await }).await
    });
    assert_eq!(name.unwrap().unwrap(), "first");
    let of_thread = scheduler.clone();
    let in_thread = move || {
        let blocking = || thread::current().name().unwrap_or_default().to_owned();
        block_on(async { of_thread.spawn_blocking(blocking).await.unwrap().await })
    };
    assert_eq!(thread::spawn(in_thread).join().unwrap().unwrap(), "first");
}

#[test]
fn plain_thread_can_do_all_that_a_task_can() {
    let runtime = multi("jobs");
    let scheduler = Scheduler::builder()
        .limit(1)
        .pending_limit(1)
        .close_timeout(SHORT)
        .runtime(runtime.handle().clone())
        .build();
    let stuck = || scheduler.spawn_with(|_| pending::<()>());
    block_on(async {
        let mut active = stuck().await.unwrap();
        let mut queued = scheduler.spawn(async { 7 }).await.unwrap();
        let refused = scheduler.spawn_within(SHORT, async {}).await.unwrap_err();
        assert_eq!(refused, SpawnError::TimedOut);
        assert!(active.wait_or_close(SHORT).await.unwrap_err().is_timeout());
        assert_eq!(queued.wait_or_close(PLENTY).await.unwrap(), 7);

        let mut active = stuck().await.unwrap();
        assert!(active.close().await.unwrap_err().is_close_timeout());
        let timed = scheduler.job("timed").timeout(SHORT).spawn(pending::<()>()).await.unwrap();
        assert!(timed.await.unwrap_err().is_timeout());
        scheduler.wait_idle().await;
        stuck().await.unwrap();
        let report = scheduler.wait_and_close_within(SHORT).await;
        assert_eq!((report.timed_out.len(), report.jobs().count()), (1, 1), "{report}");
    });
    assert_adds_up(&scheduler.stats());
}

/// Its drop spawns a task, as that of a pooled connection does, once it is released.
#[test]
fn removed_job_is_dropped_inside_its_runtime() {
    let runtime = multi("jobs");
    let builder = Scheduler::builder().limit(1).runtime(runtime.handle().clone());
    let (scheduler, mut failures) = watched(builder);
    scheduler.try_spawn(pending::<()>()).unwrap();
    let removals: [fn(&Scheduler, &mut Job<()>); 3] = [
        |_, job| job.abort(),
        |_, job| block_on(job.close()).unwrap(),
        |scheduler, _| {
            let newer = scheduler.job("newer").unique_key_or_replace("u").try_spawn(async {});
            newer.unwrap().abort();
        },
    ];
    for remove in removals {
        let (release, released) = threads::channel::<()>();
        let (tell, heard) = threads::channel();
        let released = std::sync::Mutex::new(released);
        let held = OnDrop(move || {
            let in_time = released.lock().unwrap().recv_timeout(PLENTY).is_ok();
            let tell = tell.clone();
            tokio::spawn(async move { tell.send((in_time, thread_name().await)) });
        });
        let job = scheduler.job("removed").unique_key("u").try_spawn(holding(held));
        let mut job = job.unwrap();
        assert!(job.is_pending());
        remove(&scheduler, &mut job);
        assert!(job.is_finished());
        assert_cancelled(block_on(job));
        // The removal does not wait for the drop.
        release.send(()).unwrap();
        assert_eq!(heard.recv_timeout(PLENTY), Ok((true, "jobs".to_owned())));
    }
    let stats = scheduler.stats();
    assert_eq!((stats.cancelled, stats.panicked), (4, 0));
    assert!(failures.try_recv().is_err());
    assert_adds_up(&stats);
}

#[test]
fn waiting_spawner_in_a_plain_thread_is_let_in() {
    let runtime = multi("jobs");
    let scheduler =
        Scheduler::builder().limit(1).pending_limit(1).runtime(runtime.handle().clone()).build();
    let (open, opened) = oneshot::channel::<()>();
    scheduler.try_spawn(async { drop(opened.await) }).unwrap();
    scheduler.try_spawn(async {}).unwrap();
    let waiting = scheduler.clone();
    let thread = thread::spawn(move || {
        block_on(async { waiting.spawn(thread_name()).await.unwrap().await })
    });
    while scheduler.stats().waiting_spawners == 0 {
        thread::yield_now();
    }
    open.send(()).unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), "jobs");
}

/// A scheduler and its jobs, left over when their runtime is dropped.
struct Left {
    scheduler: Scheduler,
    active: Vec<Job<()>>,
    queued: Vec<Job<()>>,
}

/// The body of a job that must be dropped unrun.
fn it_ran() {
    panic!("it ran");
}

/// A scheduler with three active jobs that can be dropped, and two pending ones.
fn busy(runtime: &Runtime) -> Left {
    let scheduler = limited(3, 2);
    runtime.block_on(async {
        let active = vec![
            scheduler.spawn(pending::<()>()).await.expect("there is a place"),
            scheduler.spawn_with(|_| pending::<()>()).await.expect("there is a place"),
            scheduler.spawn(async { sleep(PLENTY).await }).await.expect("there is a place"),
        ];
        let queued = vec![
            scheduler.spawn(async { it_ran() }).await.expect("there is a place"),
            scheduler.spawn_blocking(it_ran).await.expect("there is a place"),
        ];
        turn().await;
        Left { scheduler, active, queued }
    })
}

fn assert_cancelled(result: Result<(), JobError>) {
    assert!(result.expect_err("a failure").is_cancelled());
}

#[test]
fn runtime_that_goes_away_hangs_no_future_and_loses_no_job() {
    for runtime in [multi("jobs"), single()] {
        let Left { scheduler, active, queued } = busy(&runtime);
        let mut shield = task::spawn(scheduler.shield(pending::<()>()));
        assert_pending!(shield.poll());
        let mut spawner = task::spawn(scheduler.spawn(async { it_ran() }));
        assert_pending!(spawner.poll());
        let mut idle = task::spawn(scheduler.wait_idle());
        assert_pending!(idle.poll());
        drop(runtime);

        assert!(scheduler.is_closed() && scheduler.is_empty());
        assert!(spawner.is_woken() && shield.is_woken() && idle.is_woken());
        assert_eq!(assert_ready_err!(spawner.poll()), SpawnError::Closed);
        assert!(assert_ready_err!(shield.poll()).is_cancelled());
        block_on(async {
            idle.await;
            for mut job in active.into_iter().chain(queued) {
                assert_cancelled(job.wait_or_close(PLENTY).await);
                job.close().await.unwrap();
                job.abort();
            }
        });
        let report = block_on(scheduler.close());
        assert_eq!((report.cancelled.len(), report.never_started.len()), (4, 2), "{report}");
        assert_eq!(report.jobs().count(), 6, "{report}");
        assert_adds_up(&scheduler.stats());
    }
}

#[test]
fn waiters_outside_are_woken_when_the_runtime_goes_away() {
    for runtime in [multi("jobs"), single()] {
        let Left { scheduler, mut active, queued } = busy(&runtime);
        let (polled, polls) = threads::channel();
        let wait_outside =
            |wait: task::Spawn<std::pin::Pin<Box<dyn Future<Output = bool> + Send>>>| {
                let polled = polled.clone();
                thread::spawn(move || {
                    let mut wait = wait;
                    assert_pending!(wait.poll());
                    polled.send(()).expect("heard");
                    block_on(wait)
                })
            };
        let [mut first, second, third] = [active.remove(0), active.remove(0), active.remove(0)];
        let (closes, spawns) = (scheduler.clone(), scheduler.clone());
        let threads = [
            wait_outside(task::spawn(Box::pin(async move {
                first.wait_or_close(PLENTY * 60).await.is_err_and(|error| error.is_cancelled())
            }))),
            wait_outside(task::spawn(Box::pin(async move {
                second.await.is_err_and(|error| error.is_cancelled())
            }))),
            wait_outside(task::spawn(Box::pin(async move {
                let report = closes.wait_and_close_within(PLENTY * 60).await;
                (report.cancelled.len(), report.jobs().count()) == (3, 5)
            }))),
            wait_outside(task::spawn(Box::pin(async move {
                spawns
                    .spawn_within(PLENTY * 60, async {})
                    .await
                    .is_err_and(|e| e == SpawnError::Closed)
            }))),
        ];
        for _ in &threads {
            polls.recv_timeout(PLENTY).unwrap();
        }
        drop(runtime);
        for (n, thread) in threads.into_iter().enumerate() {
            assert!(thread.join().unwrap(), "waiter {n}");
        }
        drop((third, queued));
        assert_adds_up(&scheduler.stats());
    }
}

#[test]
fn blocking_job_whose_runtime_goes_away_is_abandoned() {
    let runtime = multi("jobs");
    let scheduler = Scheduler::builder().runtime(runtime.handle().clone()).build();
    let (begun, begins) = threads::channel();
    let (release, released) = threads::channel::<()>();
    let stuck = move || {
        begun.send(()).expect("heard");
        assert_ne!(released.recv_timeout(PLENTY), Err(threads::RecvTimeoutError::Timeout));
    };
    let job = block_on(scheduler.job("stuck").spawn_blocking(stuck)).unwrap();
    begins.recv_timeout(PLENTY).unwrap();
    runtime.shutdown_background();
    let error = block_on(job).unwrap_err();
    assert!(error.is_abandoned() && !error.is_cancelled() && !error.is_timeout(), "{error}");
    assert_eq!(scheduler.stats().abandoned, 1);
    let report = block_on(scheduler.close());
    let found: Vec<_> = report.jobs().map(|(outcome, job)| (outcome, &*job.name)).collect();
    assert_eq!(found, [(Outcome::Abandoned, "stuck")]);
    assert_adds_up(&scheduler.stats());
    release.send(()).unwrap();
}

#[test]
fn blocking_job_without_a_thread_never_runs_after_its_runtime() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    let (begun, begins) = threads::channel();
    let (release, released) = threads::channel::<()>();
    let only_thread = runtime.spawn_blocking(move || {
        begun.send(()).expect("heard");
        released.recv_timeout(PLENTY).expect("released");
    });
    begins.recv_timeout(PLENTY).unwrap();
    let scheduler = Scheduler::builder().runtime(runtime.handle().clone()).build();
    let (tell, heard) = threads::channel();
    let job = block_on(scheduler.spawn_blocking(move || tell.send("it ran"))).unwrap();
    // Another job has run after it, so tokio has it by then.
    block_on(async { scheduler.spawn(async {}).await.unwrap().await }).unwrap();
    runtime.shutdown_background();
    assert_cancelled(block_on(job));
    release.send(()).unwrap();
    block_on(only_thread).unwrap();
    assert_eq!(heard.recv_timeout(PLENTY), Err(threads::RecvTimeoutError::Disconnected));
    assert_eq!(scheduler.stats().cancelled, 1);
    assert_adds_up(&scheduler.stats());
}

#[test]
fn blocking_job_failing_before_its_runtime_goes_has_failed() {
    let runtime = Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let (scheduler, mut failures) = watched(Scheduler::builder());
    runtime.block_on(async {
        let (begun, begins) = threads::channel();
        let (release, released) = threads::channel::<()>();
        let failing = move || {
            begun.send(()).expect("heard");
            released.recv_timeout(PLENTY).expect("released");
            Err::<(), _>("no mail today")
        };
        drop(scheduler.spawn_blocking(failing).await.unwrap());
        while begins.try_recv().is_err() {
            yield_now().await;
        }
        // Runs in the one blocking thread after the job. This thread polls no task until then.
        let (through, goes_on) = threads::channel();
        let after = tokio::task::spawn_blocking(move || through.send(()));
        release.send(()).unwrap();
        goes_on.recv_timeout(PLENTY).unwrap();
        drop(after);
    });
    drop(runtime);
    assert_eq!(scheduler.stats().failed, 1);
    assert!(all(&mut failures)[0].ends_with("no mail today"));
    assert_adds_up(&scheduler.stats());
}

#[test]
fn job_whose_drop_panics_as_its_runtime_goes_has_panicked() {
    for runtime in [multi("jobs"), single()] {
        let (scheduler, mut failures) = watched(Scheduler::builder());
        runtime.block_on(async {
            let (begun, begins) = oneshot::channel();
            let job = scheduler.spawn(async {
                let _held = Grenade;
                begun.send(()).expect("heard");
                pending::<()>().await;
            });
            drop(job.await.unwrap());
            begins.await.unwrap();
        });
        drop(runtime);
        assert_eq!(scheduler.stats().panicked, 1);
        assert!(all(&mut failures)[0].ends_with("boom"));
        assert_adds_up(&scheduler.stats());
    }
    // A job that is active, and was never polled.
    let runtime = single();
    let (scheduler, mut failures) = watched(Scheduler::builder());
    runtime.block_on(async { scheduler.spawn(async {}).await.unwrap().await }).unwrap();
    let held = Grenade;
    let job = block_on(scheduler.spawn(async move { drop(held) })).unwrap();
    assert!(job.is_active());
    drop((runtime, job));
    assert_eq!(scheduler.stats().panicked, 1);
    assert!(all(&mut failures)[0].ends_with("boom"));
    assert_adds_up(&scheduler.stats());
}

#[test]
fn closing_outside_ends_without_a_driven_runtime() {
    let runtime = single();
    let scheduler =
        Scheduler::builder().close_timeout(SHORT).runtime(runtime.handle().clone()).build();
    let mut job = block_on(scheduler.spawn(async {})).unwrap();
    assert!(block_on(job.wait_or_close(SHORT)).unwrap_err().is_timeout());
    let report = block_on(scheduler.wait_and_close_within(SHORT));
    assert_eq!((report.abandoned.len(), report.jobs().count()), (1, 1), "{report}");
    drop(runtime);
    assert_adds_up(&scheduler.stats());
}

#[test]
fn job_spawned_after_the_runtime_has_gone_is_cancelled() {
    for runtime in [multi("jobs"), single()] {
        let scheduler = Scheduler::builder().runtime(runtime.handle().clone()).build();
        drop(runtime);
        let job = block_on(scheduler.spawn(async {})).unwrap();
        assert_cancelled(block_on(job));
        assert_eq!(block_on(scheduler.spawn(async {})).unwrap_err(), SpawnError::Closed);
        assert_eq!(block_on(scheduler.wait_and_close()).cancelled.len(), 1);
        assert_adds_up(&scheduler.stats());
    }
}

#[test]
fn scheduler_that_has_had_a_job_closes_with_its_runtime() {
    let used = |runtime: &Runtime| {
        let scheduler = Scheduler::new();
        runtime.block_on(async { scheduler.spawn(async {}).await.unwrap().await.unwrap() });
        scheduler
    };
    for runtime in [multi("jobs"), single()] {
        let scheduler = used(&runtime);
        assert!(!scheduler.is_closed());
        drop(runtime);
        assert!(scheduler.is_closed());
        assert_eq!(block_on(scheduler.spawn(async {})).unwrap_err(), SpawnError::Closed);
        assert_adds_up(&scheduler.stats());
    }
    // This runtime is no longer driven, so the job has not begun.
    let runtime = single();
    let scheduler = used(&runtime);
    let job = block_on(scheduler.spawn(async { it_ran() })).unwrap();
    drop(runtime);
    assert_cancelled(block_on(job));
    assert!(scheduler.is_closed());
    assert_adds_up(&scheduler.stats());
}

#[test]
fn drops_that_panic_or_spawn_as_the_runtime_goes_do_no_harm() {
    for runtime in [multi("jobs"), single()] {
        let scheduler = Scheduler::builder().limit(2).build();
        let (tell, mut heard) = mpsc::unbounded_channel();
        runtime.block_on(async {
            for _ in 0..2 {
                let (own, tell) = (scheduler.clone(), tell.clone());
                let spawning = move || tell.send(own.try_spawn(async {}).is_ok()).expect("heard");
                scheduler.spawn(holding(OnDrop(spawning))).await.unwrap();
                scheduler.spawn(holding(Grenade)).await.unwrap();
            }
            yield_now().await;
        });
        drop(runtime);
        assert!(heard.try_recv().is_ok() && heard.try_recv().is_ok());
        assert!(scheduler.is_closed() && scheduler.is_empty());
        block_on(scheduler.close());
        assert_adds_up(&scheduler.stats());
    }
}
