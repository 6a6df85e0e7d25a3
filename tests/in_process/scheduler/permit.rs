//! Reservations: waiting in line, giving back, and spawning with a permit.

use std::{
    future::{pending, ready},
    sync::{Arc, Mutex},
};

use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task::spawn as poll_by_hand};
use tower_jobs::{JobState, Permit, Scheduler, SpawnError, Stats, TrySpawnError};

use crate::support::{
    Drops, PLENTY, SECOND, assert_adds_up, limited, oneshot::respond, panic_text, turn, within,
};

/// Numbers of held permits, unused grants and waiting reservations or spawners.
fn permits(scheduler: &Scheduler) -> (u64, u64, u64) {
    let Stats { reserved, granted, waiting_spawners, .. } = scheduler.stats();
    (reserved, granted, waiting_spawners)
}

/// Polls a reservation that resolves at once.
#[track_caller]
fn reserved(scheduler: &Scheduler) -> Permit {
    assert_ready_ok!(poll_by_hand(scheduler.reserve()).poll())
}

#[tokio::test]
async fn permit_counts_against_the_limit_until_its_job_takes_it() {
    let scheduler = limited(2, 5);
    let (first, second) = (reserved(&scheduler), scheduler.try_reserve().unwrap());
    assert_eq!(permits(&scheduler), (2, 0, 0));
    assert_eq!(scheduler.stats().outside_limit, 0);
    assert!(matches!(scheduler.try_reserve(), Err(SpawnError::Full)));
    let other = scheduler.try_spawn(async {}).unwrap();
    assert!(other.is_pending());
    let job = first.spawn(pending::<()>()).unwrap();
    assert!(job.is_active() && other.is_pending());
    assert_eq!(permits(&scheduler), (1, 0, 0));
    assert_eq!(scheduler.stats().outside_limit, 0);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let mut outside = poll_by_hand(scheduler.shield(ended));
    assert_pending!(outside.poll());
    assert_eq!(scheduler.stats().outside_limit, 1);
    end.send(()).unwrap();
    outside.await.unwrap().unwrap();
    drop(second);
    assert_eq!(permits(&scheduler), (0, 0, 0));
    other.await.unwrap();
    job.abort();
    scheduler.wait_idle().await;
    assert_adds_up(&scheduler.stats());
}

#[tokio::test]
async fn reservations_and_pending_jobs_are_served_in_one_line() {
    let scheduler = limited(1, 10);
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |name: &'static str| {
        let order = order.clone();
        async move { order.lock().unwrap().push(name) }
    };
    let running = scheduler.try_spawn(pending::<()>()).unwrap();
    scheduler.try_spawn(note("first job")).unwrap();
    let mut first = poll_by_hand(scheduler.reserve());
    assert_pending!(first.poll());
    let keyed = scheduler.job("keyed").concurrency_key("a").try_spawn(note("keyed job")).unwrap();
    let mut second = poll_by_hand(scheduler.reserve());
    assert_pending!(second.poll());
    let last = scheduler.try_spawn(note("last job")).unwrap();
    assert_eq!(permits(&scheduler), (0, 0, 2));
    assert!(matches!(scheduler.try_reserve(), Err(SpawnError::Full)), "others are before it");

    running.abort();
    turn().await;
    assert_eq!(*order.lock().unwrap(), ["first job"]);
    assert!(first.is_woken() && !second.is_woken());
    assert_eq!(permits(&scheduler), (1, 1, 1));
    let permit = assert_ready_ok!(first.poll());
    assert_eq!(permits(&scheduler), (1, 0, 1));
    permit.spawn(note("reserved job")).unwrap();
    turn().await;
    assert!(keyed.is_finished() && second.is_woken() && last.is_pending());
    drop(assert_ready_ok!(second.poll()));
    last.await.unwrap();
    assert_eq!(*order.lock().unwrap(), ["first job", "reserved job", "keyed job", "last job"]);
}

#[tokio::test]
async fn reservation_waits_beside_a_full_queue_and_holds_no_place() {
    let scheduler = limited(1, 1);
    let running = scheduler.try_spawn(pending::<()>()).unwrap();
    let mut reservations = [(); 3].map(|()| poll_by_hand(scheduler.reserve()));
    reservations.iter_mut().for_each(|reservation| assert_pending!(reservation.poll()));
    let job = scheduler.try_spawn(async {}).unwrap();
    assert!(job.is_pending(), "the place is free");
    let mut spawner = poll_by_hand(scheduler.spawn(async {}));
    assert_pending!(spawner.poll());
    running.abort();
    for mut reservation in reservations {
        turn().await;
        assert!(reservation.is_woken() && !spawner.is_woken());
        drop(assert_ready_ok!(reservation.poll()));
    }
    job.await.unwrap();
    assert_ready_ok!(spawner.poll()).await.unwrap();
}

#[tokio::test]
async fn dropped_reservation_leaves_the_line() {
    let scheduler = limited(1, 10);
    let running = scheduler.try_spawn(pending::<()>()).unwrap();
    let mut first = poll_by_hand(scheduler.reserve());
    let mut second = poll_by_hand(scheduler.reserve());
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(first);
    assert_eq!(permits(&scheduler), (0, 0, 1));
    running.abort();
    turn().await;
    assert!(second.is_woken());
    let _permit = assert_ready_ok!(second.poll());
    assert_eq!(permits(&scheduler), (1, 0, 0));
}

#[tokio::test]
async fn dropped_grant_goes_to_the_next_in_line() {
    let scheduler = limited(1, 10);
    let held = reserved(&scheduler);
    let mut first = poll_by_hand(scheduler.reserve());
    assert_pending!(first.poll());
    let job = scheduler.try_spawn(async {}).unwrap();
    let mut last = poll_by_hand(scheduler.reserve());
    assert_pending!(last.poll());
    drop(held);
    assert!(first.is_woken() && job.is_pending());
    assert_eq!(permits(&scheduler), (1, 1, 1));
    drop(first);
    assert!(job.is_active() && !last.is_woken());
    assert_eq!(permits(&scheduler), (0, 0, 1));
    job.await.unwrap();
    assert!(last.is_woken());
    drop(last);
    assert_eq!(permits(&scheduler), (0, 0, 0));
}

#[tokio::test]
async fn held_permit_is_given_back_by_its_drop() {
    let scheduler = limited(1, 1);
    let permit = reserved(&scheduler);
    let job = scheduler.try_spawn(async {}).unwrap();
    let mut spawner = poll_by_hand(scheduler.spawn(async {}));
    assert_pending!(spawner.poll());
    drop(permit);
    assert!(job.is_active() && spawner.is_woken());
    assert_ready_ok!(spawner.poll()).await.unwrap();
    assert_eq!(permits(&scheduler), (0, 0, 0));
}

#[tokio::test]
async fn unpolled_reservation_reserves_nothing() {
    let scheduler = limited(1, 1);
    let reservation = scheduler.reserve();
    assert_eq!(permits(&scheduler), (0, 0, 0));
    drop(reservation);
    assert_eq!(scheduler.stats(), Stats::default());
}

#[tokio::test(start_paused = true)]
async fn unused_permits_hold_up_neither_wait_idle_nor_a_drain() {
    let scheduler = limited(1, 1);
    let permit = reserved(&scheduler);
    let mut waiting = poll_by_hand(scheduler.reserve());
    assert_pending!(waiting.poll());
    assert_ready!(poll_by_hand(scheduler.wait_idle()).poll());
    let began = tokio::time::Instant::now();
    let report = scheduler.wait_and_close().await;
    assert_eq!(began.elapsed(), std::time::Duration::ZERO);
    assert!(report.is_clean() && scheduler.is_closed());
    assert!(waiting.is_woken());
    assert!(matches!(assert_ready!(waiting.poll()), Err(SpawnError::Closed)));
    assert_eq!(permits(&scheduler), (1, 0, 0));
    drop(permit);
    assert_eq!(permits(&scheduler), (0, 0, 0));
}

#[tokio::test]
async fn drain_ends_with_its_jobs_while_a_permit_is_held() {
    let scheduler = limited(2, 1);
    let permit = reserved(&scheduler);
    let job = scheduler.try_spawn(async { tokio::task::yield_now().await }).unwrap();
    let report = within("the drain", scheduler.wait_and_close()).await;
    assert!(report.is_clean() && job.is_finished());
    assert!(permit.spawn(async {}).unwrap_err().is_closed());
}

#[tokio::test]
async fn permit_spawns_while_its_scheduler_drains() {
    let scheduler = limited(2, 1);
    let permit = reserved(&scheduler);
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let first = scheduler.try_spawn(async move { drop(released.await) }).unwrap();
    let mut drain = poll_by_hand(scheduler.wait_and_close());
    assert_pending!(drain.poll());
    let second = permit.spawn(async { 7 }).unwrap();
    release.send(()).unwrap();
    first.await.unwrap();
    assert_eq!(second.await.unwrap(), 7);
    let report = within("the drain", drain).await;
    assert_eq!(report.completed, 2);
}

#[tokio::test]
async fn closed_scheduler_gives_back_the_future_of_a_permit() {
    let scheduler = limited(1, 1);
    let permit = reserved(&scheduler);
    scheduler.close().await;
    assert_eq!(permits(&scheduler), (1, 0, 0));
    let refused = permit.spawn(ready(7)).unwrap_err();
    assert!(matches!(refused, TrySpawnError::Closed(_)));
    assert_eq!(refused.into_future().await, 7);
    assert_eq!(permits(&scheduler), (0, 0, 0));
    assert_eq!(scheduler.stats().refused.closed, 1);
    assert!(matches!(scheduler.reserve().await, Err(SpawnError::Closed)));
    assert!(matches!(scheduler.try_reserve(), Err(SpawnError::Closed)));
    assert_eq!(scheduler.stats().refused.total(), 1, "a reservation is no job");
}

/// A grant is the consumer's, though the scheduler closes before it is taken.
#[tokio::test]
async fn granted_permit_is_taken_after_closing() {
    let scheduler = limited(1, 1);
    let held = reserved(&scheduler);
    let mut waiting = poll_by_hand(scheduler.reserve());
    assert_pending!(waiting.poll());
    drop(held);
    scheduler.close().await;
    let permit = assert_ready_ok!(waiting.poll());
    assert!(permit.spawn(async {}).unwrap_err().is_closed());
    assert_eq!(permits(&scheduler), (0, 0, 0));
}

#[tokio::test]
async fn close_wakes_every_waiting_reservation() {
    let scheduler = limited(1, 0);
    let _held = reserved(&scheduler);
    let waiting: Vec<_> = (0..300)
        .map(|_| {
            let mut waiting = poll_by_hand(scheduler.reserve());
            assert_pending!(waiting.poll());
            waiting
        })
        .collect();
    assert_eq!(permits(&scheduler), (1, 0, 300));
    scheduler.close().await;
    assert_eq!(permits(&scheduler), (1, 0, 0));
    for mut waiting in waiting {
        assert!(waiting.is_woken());
        assert!(matches!(assert_ready!(waiting.poll()), Err(SpawnError::Closed)));
    }
}

#[tokio::test]
async fn key_at_its_limit_refuses_the_job_of_a_permit() {
    let scheduler = Scheduler::builder().limit(3).limit_per_key(1).build();
    let keyed = |key: &'static str| scheduler.job("keyed").concurrency_key(key);
    let running = keyed("a").try_spawn(pending::<()>()).unwrap();
    let refused = reserved(&scheduler).spawn_as(keyed("a"), ready(7)).unwrap_err();
    assert!(matches!(refused, TrySpawnError::Full(_)));
    assert_eq!(refused.into_future().await, 7);
    assert_eq!(permits(&scheduler), (0, 0, 0), "the permit goes");
    assert_eq!(scheduler.stats().refused.pending_full, 1);

    let other = reserved(&scheduler).spawn_as(keyed("b"), pending::<()>()).unwrap();
    assert!(other.is_active());
    let held_back = keyed("b").try_spawn(async {}).unwrap();
    assert!(held_back.is_pending(), "the job of the permit counts for its key");
    running.abort();
    turn().await;
    assert!(reserved(&scheduler).spawn_as(keyed("a"), async {}).unwrap().is_active());
    other.abort();
    held_back.await.unwrap();
}

#[tokio::test]
async fn permit_spawns_with_name_key_and_unique_key() {
    let scheduler = limited(2, 2);
    let permit = reserved(&scheduler);
    let import = || scheduler.job("import").concurrency_key("tenant").unique_key("import 7");
    let job = permit.spawn_as(import(), pending::<()>()).unwrap();
    assert_eq!((&*job.name(), job.state()), ("import", JobState::Active));
    assert_eq!(scheduler.jobs()[0].key.as_deref(), Some("tenant"));
    let refused = reserved(&scheduler).spawn_as(import(), pending::<()>()).unwrap_err();
    assert!(matches!(refused, TrySpawnError::Duplicate(_, id) if id == job.id()));
    assert_eq!(permits(&scheduler), (0, 0, 0));
    assert_eq!(scheduler.stats().refused.duplicate, 1);
}

#[tokio::test]
async fn permit_replaces_a_pending_job_of_its_unique_key() {
    let scheduler = limited(1, 2);
    let permit = reserved(&scheduler);
    let drops = Drops::default();
    let held = drops.one();
    let import = || scheduler.job("import").unique_key_or_replace("import");
    let old = import().try_spawn(async move { drop(held) }).unwrap();
    assert!(old.is_pending());
    let new = permit.spawn_as(import(), async { 7 }).unwrap();
    assert!(new.is_active());
    assert!(old.await.unwrap_err().is_cancelled());
    assert_eq!(new.await.unwrap(), 7);
    turn().await;
    assert_eq!(drops.count(), 1);
    assert_adds_up(&scheduler.stats());
}

#[tokio::test]
async fn permit_runs_the_job_of_a_request() {
    let scheduler = limited(1, 1);
    let open = respond(&scheduler).await;
    let permit = reserved(&scheduler);
    let job = permit.spawn_as(open.jobs.job("mail"), pending::<()>()).unwrap();
    assert_eq!(open.jobs.len(), 1);
    assert!(scheduler.jobs()[0].request.is_some());
    job.abort();
}

#[tokio::test]
async fn builder_of_another_scheduler_panics() {
    let (scheduler, other) = (limited(1, 1), limited(1, 1));
    let permit = reserved(&scheduler);
    let text = panic_text(|| permit.spawn_as(other.job("mail"), async {}));
    assert!(text.contains("make the builder with that one"), "{text}");
    assert_eq!(permits(&scheduler), (0, 0, 0));
    assert_eq!((scheduler.stats().accepted, other.stats().accepted), (0, 0));
}

#[tokio::test]
async fn job_of_a_permit_is_pending_while_paused() {
    let scheduler = limited(1, 0);
    let permit = reserved(&scheduler);
    scheduler.pause();
    let job = permit.spawn(async { 7 }).unwrap();
    turn().await;
    assert!(job.is_pending(), "although there is no queue");
    assert_eq!(permits(&scheduler), (0, 0, 0));
    assert!(matches!(scheduler.try_reserve(), Err(SpawnError::Full)));
    let mut waiting = poll_by_hand(scheduler.reserve());
    assert_pending!(waiting.poll());
    scheduler.resume();
    assert_eq!(job.await.unwrap(), 7);
    assert!(waiting.is_woken());
    drop(assert_ready_ok!(waiting.poll()));
    assert_eq!(permits(&scheduler), (0, 0, 0));
}

#[test]
fn reserving_needs_a_runtime() {
    let scheduler = limited(1, 1);
    assert!(matches!(scheduler.try_reserve(), Err(SpawnError::NoRuntime)));
    let mut waiting = poll_by_hand(scheduler.reserve());
    assert!(matches!(assert_ready!(waiting.poll()), Err(SpawnError::NoRuntime)));
}

#[tokio::test]
async fn large_future_of_a_permit_runs_and_is_given_back() {
    async fn large(value: u8) -> u8 {
        let buffer = [value; 64 * 1024];
        tokio::task::yield_now().await;
        buffer[usize::from(value)]
    }
    let scheduler = limited(1, 1);
    assert_eq!(reserved(&scheduler).spawn(large(7)).unwrap().await.unwrap(), 7);
    let permit = reserved(&scheduler);
    scheduler.close().await;
    assert_eq!(Box::pin(permit.spawn(large(7)).unwrap_err().into_future()).await, 7);
}

/// A limit that is lowered below the held permits grants nothing until enough are given back.
#[tokio::test]
async fn lowered_limit_keeps_held_permits() {
    let scheduler = limited(3, 10);
    let [first, second, third] = [(); 3].map(|()| reserved(&scheduler));
    let mut waiting = poll_by_hand(scheduler.reserve());
    assert_pending!(waiting.poll());
    scheduler.set_limit(1).unwrap();
    assert_eq!(permits(&scheduler), (3, 0, 1));
    drop((first, second));
    assert!(!waiting.is_woken(), "one is held, and one may be");
    let job = third.spawn(async {}).unwrap();
    job.await.unwrap();
    assert!(waiting.is_woken());
    drop(assert_ready_ok!(waiting.poll()));
}

/// A consumer never has more in hand than fits, and loses none of it.
#[tokio::test(start_paused = true)]
async fn consumer_holds_no_more_than_the_limit() {
    let scheduler = limited(4, 0);
    let in_hand = Arc::new(Mutex::new((0, 0)));
    let consume = async {
        for n in 0..100_u64 {
            let permit = scheduler.reserve().await.unwrap();
            {
                let mut in_hand = in_hand.lock().unwrap();
                in_hand.0 += 1;
                in_hand.1 = in_hand.1.max(in_hand.0);
            }
            let in_hand = in_hand.clone();
            let job = async move {
                tokio::time::sleep(SECOND * u32::try_from(n % 7).unwrap()).await;
                in_hand.lock().unwrap().0 -= 1;
            };
            permit.spawn(job).unwrap();
        }
    };
    tokio::time::timeout(PLENTY * 60, consume).await.unwrap();
    scheduler.wait_idle().await;
    assert_eq!(*in_hand.lock().unwrap(), (0, 4));
    assert_eq!(scheduler.stats().completed, 100);
}
