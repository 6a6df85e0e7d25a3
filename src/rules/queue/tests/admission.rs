//! Invariants 1 to 5: permits, places and spawners.

use super::*;

/// Invariant 1.
#[test]
fn no_more_than_limit_jobs_run() {
    let mut bench = Bench::new(2, None);
    assert_eq!(bench.offer_all(), [Taken; 5]);
    assert_eq!(bench.started, [0, 1]);
    assert_eq!(bench.counts(), (2, 3));
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.counts(), (2, 2));
}

/// Invariant 1: shielded work neither takes a place nor gives one.
#[test]
fn shielded_work_holds_no_place() {
    let mut bench = Bench::new(1, 0);
    assert_eq!(bench.offer_all(), [Taken, Full]);
    assert_eq!(bench.offer_as(Admit::Outside, NO_NAMES), Taken);
    assert_eq!(bench.started, [0, 2]);
    bench.finish(2, Outcome::Completed);
    assert_eq!(bench.offer(), Full);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.offer_as(Admit::Outside, NO_NAMES), Taken);
    assert_eq!(bench.offer(), Taken);
}

/// Invariant 10: a deferred job needs what any job needs, and then holds nothing.
#[test]
fn deferred_job_is_refused_at_once_or_never() {
    let mut bench = Bench::new(1, 0);
    let defer = |bench: &mut Bench| bench.offer_as(Admit::Deferred, NO_NAMES);
    assert_eq!([(); 3].map(|()| defer(&mut bench)), [Taken; 3]);
    assert_eq!(bench.offer(), Taken);
    assert_eq!(defer(&mut bench), Full);
    bench.begin(1);
    bench.begin(0);
    bench.begin(0);
    assert_eq!(bench.counts(), (1, 2), "they wait although nothing else may");
    assert_eq!(bench.offer(), Full);
    bench.finish(3, Outcome::Completed);
    assert_eq!(bench.started, [3, 1]);
}

/// Invariants 2 and 10.
#[test]
fn deferred_jobs_keep_no_other_job_from_running_or_waiting() {
    let mut bench = Bench::with_deferred_limit(1, 2, 2);
    let deferred = [(); 3].map(|()| bench.offer_as(Admit::Deferred, NO_NAMES));
    assert_eq!(deferred, [Taken, Taken, DeferredFull]);
    assert_eq!(bench.offer_all(), [Taken, Taken, Taken, Full]);
    assert_eq!(bench.started, [3]);
    bench.begin(0);
    assert_eq!((bench.counts(), bench.queue.deferred_count()), ((1, 3), 1));
    assert!(bench.remove(1, Outcome::Skipped));
    assert_eq!(bench.offer_as(Admit::Deferred, NO_NAMES), Full);
    bench.finish(3, Outcome::Completed);
    assert_eq!(bench.started, [3, 4], "the line is in order");
}

/// Invariant 10: pending jobs beyond the limit count as if they were deferred still.
#[test]
fn deferred_and_overflowing_jobs_are_bounded_together() {
    let mut bench = Bench::with_all([Some(9), Some(0), Some(2), Some(1)]);
    assert_eq!(bench.offer_as(Admit::Limited, key("a")), Taken);
    assert_eq!(bench.offer_as(Admit::Deferred, key("b")), Taken);
    assert_eq!(bench.offer_as(Admit::Deferred, key("b")), Taken);
    bench.begin(1);
    bench.begin(2);
    assert_eq!(bench.counts(), (2, 1));
    assert_eq!(bench.offer_as(Admit::Deferred, key("c")), Taken);
    assert_eq!(bench.offer_as(Admit::Deferred, key("c")), DeferredFull);
}

/// Invariant 2: a spawner is granted a place only below `pending_limit`.
#[test]
fn overflowing_jobs_grant_no_spawner() {
    let mut bench = Bench::new(1, 1);
    bench.offer_as(Admit::Deferred, NO_NAMES);
    bench.offer_all::<2>();
    let (_, bell) = bench.join(NO_NAMES);
    bench.begin(0);
    assert_eq!(bench.counts(), (1, 2));
    bench.finish(1, Outcome::Completed);
    assert!(!granted(&bell));
    bench.finish(2, Outcome::Completed);
    assert!(granted(&bell));
}

/// Invariant 6.
#[test]
fn closed_queue_starts_no_deferred_job() {
    let mut bench = Bench::new(2, None);
    assert_eq!(bench.offer_as(Admit::Deferred, NO_NAMES), Taken);
    bench.queue.close();
    bench.begin(0);
    assert!(bench.started.is_empty());
    assert_eq!(bench.take_unstarted(9), [0]);
    assert!(bench.queue.is_idle());
}

/// Invariant 2.
#[test]
fn no_more_than_pending_limit_jobs_are_pending() {
    let mut bench = Bench::new(1, 2);
    assert_eq!(bench.offer_all(), [Taken, Taken, Taken, Full]);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.offer_all(), [Taken, Full]);
    assert!(bench.remove(2, Outcome::Cancelled));
    assert_eq!(bench.offer_all(), [Taken, Full]);
}

/// Invariants 1 and 2 at their extremes.
#[test]
fn none_is_unlimited_and_zero_is_no_queue() {
    let mut unlimited = Bench::new(None, 0);
    assert_eq!(unlimited.offer_all(), [Taken; 64]);
    assert_eq!(unlimited.counts(), (64, 0));
    let mut endless = Bench::new(1, None);
    assert_eq!(endless.offer_all(), [Taken; 64]);
    assert_eq!(endless.counts(), (1, 63));
    let mut no_queue = Bench::new(2, 0);
    assert_eq!(no_queue.offer_all(), [Taken, Taken, Full]);
    let mut all = Bench::new(None, None);
    assert_eq!(all.offer_all(), [Taken; 64]);
}

/// Invariant 3.
#[test]
fn freed_permit_starts_a_pending_job_in_the_same_step() {
    let mut bench = Bench::new(1, 3);
    bench.offer_all::<3>();
    bench.finish(0, Outcome::Panicked);
    assert_eq!(bench.started, [0, 1]);
    assert_eq!(bench.state(1), JobState::Active);
    assert_eq!(bench.counts(), (1, 1));
}

/// Invariant 3.
#[test]
fn unused_grants_keep_no_job_from_starting() {
    let (mut bench, bells) = (Bench::new(1, 1), [(); 2].map(|()| Arc::new(Bell::default())));
    bench.offer_all::<2>();
    let [Waits(first), Waits(second)] = [0, 1].map(|n| bench.offer_or_wait(NO_NAMES, &bells[n]))
    else {
        panic!("both must wait");
    };
    bench.finish(0, Outcome::Completed);
    bench.finish(1, Outcome::Completed);
    assert!(bells.iter().all(granted), "two places, two spawners");
    assert_eq!(bench.offer(), Full, "the places are spoken for");

    assert_eq!(bench.ask(2, first, &bells[0]), Taken);
    assert_eq!(bench.started, [0, 1, 2], "nothing else runs");
    assert_eq!(bench.ask(3, second, &bells[1]), Taken);
    assert_eq!(bench.counts(), (1, 1));
}

/// Invariant 4.
#[test]
fn newcomer_does_not_overtake_a_waiting_spawner() {
    let (mut bench, bell) = (Bench::new(1, 1), Arc::new(Bell::default()));
    bench.offer_all::<2>();
    let Waits(ticket) = bench.offer_or_wait(NO_NAMES, &bell) else { panic!("the queue is full") };
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.offer(), Full, "the place that came free is the spawner's");
    assert_eq!(bench.ask(2, ticket, &bell), Taken);
}

/// Invariant 4: a leaving spawner passes its grant on.
#[test]
fn leaving_spawner_leaks_no_place() {
    let (mut bench, bells) = (Bench::new(1, 1), [(); 3].map(|()| Arc::new(Bell::default())));
    bench.offer_all::<2>();
    let tickets = [0, 1, 2].map(|n| match bench.offer_or_wait(NO_NAMES, &bells[n]) {
        Waits(ticket) => ticket,
        answer => panic!("{answer:?}"),
    });
    bench.leave(tickets[1]);
    bench.finish(0, Outcome::Completed);
    assert!(granted(&bells[0]) && !granted(&bells[2]));
    bench.leave(tickets[0]);
    assert!(granted(&bells[2]));
    bench.leave(tickets[2]);
    assert_eq!(bench.offer_all(), [Taken, Full]);
    assert!(!granted(&bells[1]));
}

/// Invariant 5.
#[test]
fn jobs_start_and_spawners_are_granted_in_order() {
    let (mut bench, bells) = (Bench::new(1, 3), [(); 3].map(|()| Arc::new(Bell::default())));
    bench.offer_all::<4>();
    for bell in &bells {
        assert!(matches!(bench.offer_or_wait(NO_NAMES, bell), Waits(_)));
    }
    assert!(bench.remove(2, Outcome::Cancelled));
    assert_eq!(bells.each_ref().map(granted), [true, false, false]);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bells.each_ref().map(granted), [true, true, false]);
    bench.finish(1, Outcome::Completed);
    assert_eq!(bells.each_ref().map(granted), [true; 3]);
    assert_eq!(bench.started, [0, 1, 3]);
}
