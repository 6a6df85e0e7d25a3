//! Keys: the limit per key, and unique jobs.

use std::{
    collections::HashMap,
    fmt::Debug,
    future::{Future, pending, ready},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::yield_now,
    time::sleep,
};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, task::spawn as poll_by_hand};
use tower_jobs::{
    Job, JobBuilder, JobId, JobState, Jobs, Outcome, RequestScope, Scheduler, SchedulerBuilder,
    SpawnError, TrySpawnError,
};

use crate::support::{
    Drops, Grenade, SECOND, limited,
    oneshot::{Open, respond, respond_with},
    received, turn, watched,
};

fn per_key(limit: usize) -> SchedulerBuilder {
    Scheduler::builder().limit_per_key(limit)
}

fn start_of(
    scheduler: &Scheduler,
    key: &str,
    job: impl Future<Output = ()> + Send + 'static,
) -> Job<()> {
    scheduler.job("test").concurrency_key(key).try_spawn(job).unwrap()
}

fn states<const N: usize>(jobs: [&Job<()>; N]) -> [JobState; N] {
    jobs.map(Job::state)
}

use JobState::{Active, Deferred, Finished, Pending};

#[tokio::test(start_paused = true)]
async fn no_more_than_limit_per_key_jobs_of_one_key_run_at_once() {
    #[derive(Default)]
    struct Seen {
        now: HashMap<&'static str, usize>,
        most: HashMap<&'static str, usize>,
    }
    let scheduler = per_key(3).limit(8).build();
    let seen = Arc::new(Mutex::new(Seen::default()));
    for n in 0..300_u64 {
        let key = ["a", "b", "c"][usize::try_from(n).unwrap() % 3];
        let seen = seen.clone();
        let job = async move {
            {
                let Seen { now, most } = &mut *seen.lock().unwrap();
                let now = now.entry(key).or_default();
                *now += 1;
                let most = most.entry(key).or_default();
                *most = (*most).max(*now);
            }
            sleep(Duration::from_millis(n * 7919 % 97)).await;
            *seen.lock().unwrap().now.get_mut(key).unwrap() -= 1;
        };
        start_of(&scheduler, key, job);
    }
    scheduler.wait_idle().await;
    assert_eq!(seen.lock().unwrap().most, HashMap::from([("a", 3), ("b", 3), ("c", 3)]));
    assert_eq!(scheduler.stats().completed, 300);
}

#[tokio::test]
async fn jobs_of_other_keys_and_of_none_run_past_those_held_back() {
    let scheduler = per_key(1).limit(3).build();
    let hot = [(); 3].map(|()| start_of(&scheduler, "hot", pending::<()>()));
    let cold = start_of(&scheduler, "cold", pending::<()>());
    let plain = scheduler.try_spawn(pending::<()>()).unwrap();
    let all = [&hot[0], &hot[1], &hot[2], &cold, &plain];
    assert_eq!(states(all), [Active, Pending, Pending, Active, Active]);
    assert_eq!((scheduler.active_count(), scheduler.pending_count()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_key_start_in_the_order_they_were_spawned() {
    let scheduler = per_key(1).pending_limit(2).build();
    let order = Arc::new(Mutex::new(Vec::new()));
    let spawners = (0..9).map(|n| {
        let order = order.clone();
        poll_by_hand(scheduler.job("test").concurrency_key("a").spawn(async move {
            order.lock().unwrap().push(n);
            sleep(SECOND).await;
        }))
    });
    let mut spawners: Vec<_> =
        spawners.map(|mut spawner| (spawner.poll().is_pending(), spawner)).collect();
    spawners.retain(|(waits, _)| *waits);
    assert_eq!(spawners.len(), 6, "one runs, two are pending");
    for (_, mut spawner) in spawners {
        while !spawner.is_woken() {
            sleep(SECOND / 10).await;
        }
        assert_ready!(spawner.poll()).unwrap();
    }
    scheduler.wait_idle().await;
    assert_eq!(*order.lock().unwrap(), Vec::from_iter(0..9));
}

#[tokio::test]
async fn spawners_of_a_hot_key_in_line_keep_no_cold_key_from_running() {
    let scheduler = per_key(1).limit(3).pending_limit(1).build();
    let spawn = |key: &'static str| {
        let spawn = scheduler.job("test").concurrency_key(key).spawn(pending::<()>());
        poll_by_hand(spawn)
    };
    let first = assert_ready!(spawn("hot").poll()).unwrap();
    let _pending = assert_ready!(spawn("hot").poll()).unwrap();
    let mut line = [spawn("hot"), spawn("hot")];
    line.iter_mut().for_each(|spawner| assert_pending!(spawner.poll()));
    assert_eq!(scheduler.stats().waiting_spawners, 2);

    // The queue places are taken. The running places are not.
    let cold = assert_ready!(spawn("cold").poll()).unwrap();
    let plain = assert_ready!(poll_by_hand(scheduler.spawn(pending::<()>())).poll()).unwrap();
    assert!(cold.is_active() && plain.is_active());

    // The same when the others have to wait as well.
    let mut other = spawn("other");
    assert_pending!(other.poll());
    cold.abort();
    yield_now().await;
    assert!(other.is_woken() && !line[0].is_woken() && !line[1].is_woken());
    assert!(assert_ready!(other.poll()).unwrap().is_active());

    first.abort();
    yield_now().await;
    assert!(line[0].is_woken() && !line[1].is_woken(), "first in line, and no more than one");
    assert!(assert_ready!(line[0].poll()).unwrap().is_pending());
}

#[tokio::test(start_paused = true)]
async fn one_hot_key_does_not_starve_a_hundred_thousand_cold_ones() {
    const HOT: usize = 50_000;
    const COLD: usize = 100_000;
    let scheduler = per_key(2).limit(100).pending_limit(None).build();
    let [hot, cold] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let hot_when_cold_was_done = Arc::new(AtomicUsize::new(usize::MAX));
    let spawn_hot = || {
        let hot = hot.clone();
        start_of(&scheduler, "hot", async move {
            sleep(SECOND).await;
            hot.fetch_add(1, Relaxed);
        })
    };
    for _ in 0..HOT / 2 {
        spawn_hot();
    }
    for n in 0..COLD {
        if n % 4 == 0 && n / 4 < HOT / 2 {
            spawn_hot();
        }
        let (hot, cold, done) = (hot.clone(), cold.clone(), hot_when_cold_was_done.clone());
        start_of(&scheduler, &format!("tenant {n}"), async move {
            sleep(SECOND).await;
            if cold.fetch_add(1, Relaxed) + 1 == COLD {
                done.store(hot.load(Relaxed), Relaxed);
            }
        });
    }
    while cold.load(Relaxed) < COLD {
        sleep(SECOND).await;
    }
    // 98 cold jobs run beside every two hot ones.
    let hot_before = hot_when_cold_was_done.load(Relaxed);
    assert!(hot_before.abs_diff(COLD / 49) < 10, "{hot_before} hot jobs ran meanwhile");
    assert!(scheduler.len() > HOT / 2);
    let report = scheduler.close().await;
    assert_eq!(report.never_started.len(), HOT - hot_before - 2);
}

#[tokio::test]
async fn aborted_or_closed_held_job_gives_its_turn_to_the_next() {
    let scheduler = per_key(1).build();
    let first = start_of(&scheduler, "a", pending::<()>());
    let [aborted, mut closed, last] = [(); 3].map(|()| start_of(&scheduler, "a", pending::<()>()));
    aborted.abort();
    closed.close().await.unwrap();
    assert_eq!(states([&first, &aborted, &closed, &last]), [Active, Finished, Finished, Pending]);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert!(last.is_active());
    assert!(aborted.await.unwrap_err().is_cancelled());
    assert_eq!(scheduler.stats().cancelled, 3);
}

#[tokio::test]
async fn closing_with_jobs_held_back_never_starts_them() {
    let scheduler = per_key(1).build();
    let [first, second, third] =
        ["a", "a", "b"].map(|key| start_of(&scheduler, key, pending::<()>()));
    let held = [(); 2].map(|()| start_of(&scheduler, "b", async { panic!("it runs") }));
    let report = scheduler.close().await;
    let ids = |jobs: &[tower_jobs::JobInfo]| Vec::from_iter(jobs.iter().map(|job| job.id));
    assert_eq!(ids(&report.never_started), [second.id(), held[0].id(), held[1].id()]);
    assert_eq!(ids(&report.cancelled), [first.id(), third.id()]);
    assert_eq!(report.never_started[1].key.as_deref(), Some("b"));
    let stats = scheduler.stats();
    assert_eq!((stats.accepted, stats.never_started, stats.cancelled), (5, 3, 2));
    let [held, _] = held.map(|job: Job<()>| job);
    assert!(held.await.unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn draining_runs_all_that_is_held_back() {
    let scheduler = per_key(1).build();
    for key in ["a", "b"] {
        for _ in 0..10 {
            start_of(&scheduler, key, async { sleep(SECOND).await });
        }
    }
    let report = scheduler.wait_and_close().await;
    assert!(report.is_clean());
    assert_eq!((report.completed, report.elapsed.as_secs()), (20, 10), "two at a time");
}

#[tokio::test(start_paused = true)]
async fn without_limit_per_key_a_key_limits_nothing_and_is_shown() {
    let scheduler = Scheduler::new();
    let jobs = [(); 9].map(|()| start_of(&scheduler, "tenant 7", pending::<()>()));
    assert!(jobs.iter().all(Job::is_active));
    assert_eq!(jobs[0].info().key.as_deref(), Some("tenant 7"));
    assert_eq!(scheduler.jobs()[8].key.as_deref(), Some("tenant 7"));
    let plain = scheduler.job("test").unique_key("u").try_spawn(async {}).unwrap();
    assert_eq!(plain.info().key, None, "a unique key is another thing");
    let report = scheduler.close().await;
    assert_eq!(report.cancelled[0].key.as_deref(), Some("tenant 7"));
}

#[tokio::test]
async fn shielded_work_is_outside_the_limit_of_its_key() {
    let scheduler = per_key(1).build();
    let _runs = start_of(&scheduler, "a", pending::<()>());
    assert_eq!(scheduler.job("test").concurrency_key("a").shield(async { 7 }).await.unwrap(), 7);
    assert!(start_of(&scheduler, "a", async {}).is_pending(), "nor does its end let one in");
}

#[tokio::test]
async fn with_no_queue_a_job_whose_key_is_at_its_limit_is_refused() {
    let scheduler = per_key(1).pending_limit(0).build();
    let _runs = start_of(&scheduler, "a", pending::<()>());
    let job = || scheduler.job("test").concurrency_key("a");
    let refused = job().try_spawn(async { 7 }).unwrap_err();
    assert!(refused.is_full());
    assert_eq!(refused.into_future().await, 7);
    assert_eq!(job().spawn(async {}).await.unwrap_err(), SpawnError::Full);
    start_of(&scheduler, "b", async {}).await.unwrap();
}

#[tokio::test]
async fn deferred_job_waits_for_its_key_when_its_response_is_over() {
    for pending_limit in [0, 9] {
        let scheduler = per_key(1).pending_limit(pending_limit).build();
        let Open { jobs, response } = respond(&scheduler).await;
        let deferred = jobs.job("test").concurrency_key("a").after_response(async {}).unwrap();
        let runs = start_of(&scheduler, "a", pending::<()>());
        assert_eq!(states([&deferred, &runs]), [Deferred, Active], "it does not count before");
        drop(response);
        assert_eq!(deferred.state(), Pending);
        runs.abort();
        deferred.await.unwrap();
    }
}

// Unique keys.

#[track_caller]
fn assert_refused<F: Debug>(result: Result<Job<()>, TrySpawnError<F>>, first: JobId) {
    match result {
        Err(TrySpawnError::Duplicate(_, id)) => assert_eq!(id, first),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn duplicate_is_refused_with_the_id_of_the_first_in_any_state() {
    let scheduler = Scheduler::builder().limit(1).build();
    let place = scheduler.try_spawn(pending::<()>()).unwrap();
    let Open { jobs, response } = respond(&scheduler).await;
    let go = Arc::new(Notify::new());
    let job = {
        let go = go.clone();
        async move { go.notified().await }
    };
    let first = jobs.job("first").unique_key("u").after_response(job).unwrap();
    let try_all = async |state| {
        assert_eq!(first.state(), state);
        let job = || jobs.job("second").unique_key("u");
        assert_refused(job().try_spawn(ready(())), first.id());
        assert_refused(job().after_response(ready(())), first.id());
        assert_refused(job().after_success(ready(())), first.id());
        let Err(TrySpawnError::Duplicate(make, id)) = job().after_response_with(|_| ready(()))
        else {
            panic!("accepted");
        };
        make(tower_jobs::ResponseOutcome::NoResponse).await;
        assert_eq!(id, first.id());
        let duplicate = SpawnError::Duplicate(first.id());
        assert_eq!(job().spawn(async {}).await.unwrap_err(), duplicate);
        assert_eq!(job().spawn_with(|_| async {}).await.unwrap_err(), duplicate);
        assert_eq!(job().spawn_blocking(|| ()).await.unwrap_err(), duplicate);
        assert_eq!(job().spawn_within(SECOND, async {}).await.unwrap_err(), duplicate);
        let refused = job().shield(async {}).await.unwrap_err();
        let source = std::error::Error::source(&refused).unwrap();
        assert_eq!(source.downcast_ref(), Some(&duplicate));
    };
    try_all(Deferred).await;
    drop(response);
    try_all(Pending).await;
    place.abort();
    yield_now().await;
    try_all(Active).await;
    go.notify_one();
    first.await.unwrap();
    assert_eq!(scheduler.stats().accepted, 2);
    jobs.job("second").unique_key("u").try_spawn(ready(())).unwrap().await.unwrap();
}

#[tokio::test]
async fn refused_unique_job_comes_back_unrun() {
    let scheduler = Scheduler::new();
    let first = scheduler.job("first").unique_key("u").try_spawn(pending::<()>()).unwrap();
    let refused = scheduler.job("second").unique_key("u").try_spawn(async { 7 }).unwrap_err();
    assert!(!refused.is_full() && !refused.is_closed());
    assert_eq!(refused.to_string(), format!("job {} has the same unique key", first.id()));
    assert_eq!(refused.into_future().await, 7);
    scheduler.job("other").unique_key("v").try_spawn(async {}).unwrap().await.unwrap();
    scheduler.job("other").concurrency_key("u").try_spawn(async {}).unwrap().await.unwrap();
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn duplicate_is_a_409() {
    use axum::response::IntoResponse;

    let scheduler = Scheduler::new();
    let first = scheduler.job("first").unique_key("u").try_spawn(pending::<()>()).unwrap();
    let job = || scheduler.job("second").unique_key("u");
    let refusals = [
        job().spawn(async {}).await.unwrap_err().into_response(),
        job().try_spawn(async {}).unwrap_err().into_response(),
    ];
    for response in refusals {
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert!(response.headers().get(http::header::RETRY_AFTER).is_none());
        let text = axum::body::to_bytes(response.into_body(), 999).await.unwrap();
        assert_eq!(text, format!("job {} has the same unique key", first.id()));
    }
}

#[tokio::test(start_paused = true)]
async fn unique_key_is_free_again_however_its_job_ended() {
    let scheduler = Scheduler::builder().limit(1).on_failure(drop).build();
    let job = || scheduler.job("test").unique_key("u");
    job().try_spawn(async {}).unwrap().await.unwrap();
    job().try_spawn(async { Err::<(), _>("failed") }).unwrap().await.unwrap_err();
    let panics = job().try_spawn(async { assert_eq!(1, 2, "on purpose") }).unwrap();
    assert!(panics.await.unwrap_err().is_panic());
    let timed_out = job().timeout(SECOND).try_spawn(pending::<()>()).unwrap();
    assert!(timed_out.await.unwrap_err().is_timeout());
    let aborted = job().try_spawn(pending::<()>()).unwrap();
    aborted.abort();
    assert!(aborted.await.unwrap_err().is_cancelled());

    let place = scheduler.try_spawn(pending::<()>()).unwrap();
    let pending_one = job().try_spawn(async {}).unwrap();
    assert!(pending_one.is_pending());
    pending_one.abort();
    let Open { jobs, response } = respond(&scheduler).await;
    let deferred = jobs.job("test").unique_key("u").after_response(async {}).unwrap();
    deferred.abort();
    let mut last = jobs.job("test").unique_key("u").after_response(async {}).unwrap();
    last.close().await.unwrap();
    drop(response);
    place.abort();
    job().try_spawn(async {}).unwrap().await.unwrap();
}

/// A job that must not run. It counts its drops.
fn unrun(drops: &Drops) -> impl Future<Output = ()> + Send + 'static {
    let guard = drops.one();
    async move {
        let _guard = guard;
        panic!("it runs");
    }
}

#[tokio::test]
async fn replaced_job_is_cancelled_and_dropped_once() {
    let scheduler = limited(1, 1);
    let place = scheduler.try_spawn(pending::<()>()).unwrap();
    let drops = Drops::default();
    let Open { jobs, response } = respond(&scheduler).await;
    let job = || jobs.job("test").unique_key_or_replace("u");

    let deferred = job().after_response(unrun(&drops)).unwrap();
    let pending_one = job().try_spawn(unrun(&drops)).unwrap();
    assert_eq!(states([&deferred, &pending_one]), [Finished, Pending]);
    assert_eq!((jobs.len(), scheduler.len()), (1, 2), "in place of the first");
    let deferred_again = job().after_response(unrun(&drops)).unwrap();
    assert_eq!(states([&pending_one, &deferred_again]), [Finished, Deferred]);
    let last = assert_ready!(poll_by_hand(job().spawn(async { 7 })).poll()).unwrap();
    assert_eq!(drops.count(), 0, "a task of the runtime drops them");
    turn().await;
    assert_eq!(drops.count(), 3);
    for replaced in [deferred, pending_one, deferred_again] {
        let error = replaced.await.unwrap_err();
        assert!(error.is_cancelled() && !error.is_skipped());
    }
    drop(response);
    place.abort();
    assert_eq!(last.await.unwrap(), 7);
    jobs.wait_idle().await;
    let stats = scheduler.stats();
    assert_eq!((stats.accepted, stats.completed, stats.cancelled), (5, 1, 4));
    assert_eq!(drops.count(), 3);
}

#[tokio::test]
async fn active_job_is_not_replaced() {
    let scheduler = Scheduler::new();
    let first = scheduler.job("first").unique_key("u").try_spawn(pending::<()>()).unwrap();
    let job = || scheduler.job("second").unique_key_or_replace("u");
    assert_refused(job().try_spawn(ready(())), first.id());
    assert_eq!(job().spawn(async {}).await.unwrap_err(), SpawnError::Duplicate(first.id()));
    assert!(first.is_active());
    assert_eq!(scheduler.stats().cancelled, 0);
}

#[tokio::test]
async fn replaced_job_is_cancelled_even_if_its_drop_panics() {
    let (scheduler, mut failures) = watched(Scheduler::builder().limit(1));
    let place = scheduler.try_spawn(pending::<()>()).unwrap();
    let held = Grenade;
    let job = async move { drop(held) };
    let replaced = scheduler.job("first").unique_key("u").try_spawn(job).unwrap();
    let second = scheduler.job("second").unique_key_or_replace("u").try_spawn(async { 7 }).unwrap();
    assert!(replaced.await.unwrap_err().is_cancelled());
    place.abort();
    assert_eq!(second.await.unwrap(), 7);
    assert!(failures.try_recv().is_err(), "the panic is no failure of the job");
    let stats = scheduler.stats();
    assert_eq!((stats.panicked, stats.cancelled, stats.completed), (0, 2, 1));
}

/// A job of a backlog that never ends: it spawns the next, and then takes its time.
fn never_ending(scheduler: Scheduler, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        scheduler.try_spawn(never_ending(scheduler.clone(), time)).unwrap();
        sleep(time).await;
    })
}

#[tokio::test(start_paused = true)]
async fn steady_backlog_does_not_starve_a_replacement() {
    const JOB: Duration = Duration::from_millis(20);
    const LINE: u32 = 3;
    const EVERY: Duration = Duration::from_millis(24);
    const TIME: Duration = Duration::from_secs(2);
    let scheduler = Scheduler::builder().limit(1).build();
    for _ in 0..LINE {
        scheduler.try_spawn(never_ending(scheduler.clone(), JOB)).unwrap();
    }
    let ran = Arc::new(AtomicUsize::new(0));
    let asks = async {
        loop {
            let ran = ran.clone();
            let job = async move {
                ran.fetch_add(1, Relaxed);
            };
            // It is refused while the last one runs.
            drop(scheduler.job("refresh").unique_key_or_replace("u").try_spawn(job));
            sleep(EVERY).await;
        }
    };
    tokio::time::timeout(TIME, asks).await.unwrap_err();
    // Once per length of the line, and the time until it is asked for again.
    let least = TIME.as_millis() / ((LINE + 1) * JOB + EVERY).as_millis();
    let ran = ran.load(Relaxed);
    assert!(ran as u128 >= least, "{ran} of at least {least}");
}

#[tokio::test]
async fn replacement_has_the_turn_of_the_replaced_job() {
    for keyed in [false, true] {
        let builder = Scheduler::builder().limit(1);
        let scheduler = if keyed { builder.limit_per_key(9) } else { builder }.build();
        let (tell, mut order) = mpsc::unbounded_channel();
        let say = |what: &'static str| {
            let tell = tell.clone();
            async move { tell.send(what).unwrap() }
        };
        let place = scheduler.try_spawn(pending::<()>()).unwrap();
        let unique = || scheduler.job("unique").unique_key_or_replace("u");
        scheduler.try_spawn(say("first")).unwrap();
        let replaced = unique().try_spawn(say("replaced")).unwrap();
        scheduler.try_spawn(say("last")).unwrap();
        let kept = unique().try_spawn(say("replacement")).unwrap();
        assert_eq!(states([&replaced, &kept]), [Finished, Pending]);
        place.abort();
        scheduler.wait_idle().await;
        assert_eq!(received(&mut order), ["first", "replacement", "last"], "keyed: {keyed}");
    }
}

#[tokio::test]
async fn deferred_replacement_joins_when_its_own_response_ends() {
    let scheduler = Scheduler::builder().limit(1).build();
    let (tell, mut order) = mpsc::unbounded_channel();
    let say = |what: &'static str| {
        let tell = tell.clone();
        async move { tell.send(what).unwrap() }
    };
    let place = scheduler.try_spawn(pending::<()>()).unwrap();
    let (earlier, later) = (respond(&scheduler).await, respond(&scheduler).await);
    fn unique(jobs: &Jobs) -> JobBuilder<'_, RequestScope> {
        jobs.job("unique").unique_key_or_replace("u")
    }
    let replaced = [
        unique(&earlier.jobs).after_response(say("never")).unwrap(),
        scheduler.job("unique").unique_key_or_replace("u").try_spawn(say("never")).unwrap(),
    ];
    let deferred = unique(&later.jobs).after_response(say("replacement")).unwrap();
    scheduler.try_spawn(say("first")).unwrap();
    drop(earlier.response);
    assert_eq!(states([&replaced[0], &replaced[1], &deferred]), [Finished, Finished, Deferred]);
    scheduler.try_spawn(say("second")).unwrap();
    drop(later.response);
    scheduler.try_spawn(say("third")).unwrap();
    place.abort();
    scheduler.wait_idle().await;
    assert_eq!(received(&mut order), ["first", "second", "replacement", "third"]);
}

#[tokio::test]
async fn granted_spawner_replaces_a_job_that_came_meanwhile() {
    let scheduler = limited(1, 1);
    let running = scheduler.try_spawn(pending::<()>()).unwrap();
    let waits = scheduler.try_spawn(pending::<()>()).unwrap();
    let unique = || scheduler.job("unique").unique_key_or_replace("u");
    let mut spawner = poll_by_hand(unique().spawn(async { 7 }));
    assert_pending!(spawner.poll());
    let open = respond(&scheduler).await;
    running.abort();
    yield_now().await;
    assert!(waits.is_active() && spawner.is_woken());
    waits.abort();
    yield_now().await;
    // The spawner has a permit and does not use it yet.
    let meanwhile = open.jobs.job("unique").unique_key("u").after_response(async {}).unwrap();
    let job = assert_ready!(spawner.poll()).unwrap();
    assert_eq!(meanwhile.state(), Finished);
    assert!(meanwhile.await.unwrap_err().is_cancelled());
    assert_eq!(job.await.unwrap(), 7);
    drop(open.response);
    scheduler.wait_idle().await;
    let stats = scheduler.stats();
    assert_eq!((stats.accepted, stats.completed, stats.cancelled), (4, 1, 3));
}

#[tokio::test]
async fn job_replaced_while_draining_is_in_the_report() {
    let scheduler = Scheduler::builder().limit(1).build();
    let (open, opened) = oneshot::channel::<()>();
    scheduler.try_spawn(async { drop(opened.await) }).unwrap();
    let job = |name| scheduler.job(name).unique_key_or_replace("u");
    job("replaced before").try_spawn(async {}).unwrap();
    job("replaced while draining").try_spawn(async {}).unwrap();
    let mut drain = poll_by_hand(scheduler.wait_and_close());
    assert_pending!(drain.poll());
    job("last").try_spawn(async {}).unwrap();
    open.send(()).unwrap();
    let report = drain.await;
    let named: Vec<_> = report.jobs().map(|(outcome, job)| (outcome, &*job.name)).collect();
    assert_eq!(named, [(Outcome::Cancelled, "replaced while draining")]);
    assert_eq!((report.completed, scheduler.stats().cancelled), (2, 2));
}

#[tokio::test]
async fn replaced_job_lets_the_next_of_its_key_have_its_turn() {
    let scheduler = per_key(1).limit(2).build();
    let [runs, other] = ["a", "b"].map(|key| start_of(&scheduler, key, pending::<()>()));
    let job = |key| scheduler.job("test").concurrency_key(key).unique_key_or_replace("u");
    let replaced = job("a").try_spawn(ready(())).unwrap();
    let next = start_of(&scheduler, "a", pending::<()>());
    let newer = job("b").try_spawn(pending::<()>()).unwrap();
    runs.abort();
    yield_now().await;
    assert_eq!(states([&replaced, &next, &newer]), [Finished, Active, Pending]);
    other.abort();
    yield_now().await;
    assert!(newer.is_active());
}

#[tokio::test]
async fn waiting_spawner_refused_as_duplicate_gives_its_place_on() {
    let scheduler = limited(1, 1);
    let runs = scheduler.try_spawn(pending::<()>()).unwrap();
    let pending_one = scheduler.try_spawn(pending::<()>()).unwrap();
    let unique = || poll_by_hand(scheduler.job("test").unique_key("u").spawn(pending::<()>()));
    let [mut first, mut second] = [unique(), unique()];
    let mut last = poll_by_hand(scheduler.spawn(async { 7 }));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    assert_pending!(last.poll());

    runs.abort();
    yield_now().await;
    let accepted = assert_ready!(first.poll()).unwrap();
    pending_one.abort();
    yield_now().await;
    assert!(second.is_woken() && !last.is_woken());
    let refused = assert_ready_err!(second.poll());
    assert_eq!(refused, SpawnError::Duplicate(accepted.id()));
    assert!(last.is_woken(), "though the refused spawner is not dropped yet");
    let last = assert_ready!(last.poll()).unwrap();
    drop(second);
    accepted.abort();
    assert_eq!(last.await.unwrap(), 7);
    scheduler.try_spawn(async {}).unwrap().await.unwrap();
}

#[tokio::test]
async fn unique_job_that_is_skipped_frees_its_key() {
    let scheduler = Scheduler::new();
    let mut bad_request = Response::new(Empty::<Bytes>::new());
    *bad_request.status_mut() = StatusCode::BAD_REQUEST;
    let Open { jobs, response } = respond_with(&scheduler, bad_request).await;
    let first = jobs.job("first").unique_key("u").after_success(async {}).unwrap();
    assert_refused(jobs.job("second").unique_key("u").after_response(ready(())), first.id());
    drop(response);
    assert!(first.await.unwrap_err().is_skipped());
    let Open { jobs, response } = respond(&scheduler).await;
    let second = jobs.job("second").unique_key("u").after_response(async { 2 }).unwrap();
    drop(response);
    assert_eq!(second.await.unwrap(), 2);
}
