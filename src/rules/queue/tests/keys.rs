//! Concurrency keys.

use super::*;

/// Invariant 1.
#[test]
fn no_more_than_limit_per_key_of_one_key_run() {
    let mut bench = Bench::with_keys(9, None, 2);
    assert_eq!(bench.offer_named([key("a"); 5]), [Taken; 5]);
    assert_eq!(bench.started, [0, 1]);
    assert_eq!(bench.offer_named([key("b"), NO_NAMES]), [Taken; 2]);
    assert_eq!(bench.started, [0, 1, 5, 6]);
    bench.finish(5, Outcome::Completed);
    assert_eq!(bench.started, [0, 1, 5, 6], "of another key");
    bench.finish(1, Outcome::Failed);
    assert_eq!(bench.started, [0, 1, 5, 6, 2]);
}

#[test]
fn without_a_limit_per_key_keys_limit_nothing() {
    let mut bench = Bench::with_keys(2, None, None);
    assert_eq!(bench.offer_named([key("a"), key("a"), key("a"), NO_NAMES]), [Taken; 4]);
    assert_eq!(bench.started, [0, 1]);
    bench.finish(0, Outcome::Completed);
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.started, [0, 1, 2, 3]);
}

/// Invariant 1: shielded work is outside the limit of its key too.
#[test]
fn shielded_work_is_outside_the_limit_of_its_key() {
    let mut bench = Bench::with_keys(9, None, 1);
    assert_eq!(bench.offer_as(Admit::Outside, key("a")), Taken);
    assert_eq!(bench.offer_named([key("a"); 2]), [Taken; 2]);
    assert_eq!(bench.offer_as(Admit::Outside, key("a")), Taken);
    assert_eq!(bench.started, [0, 1, 3]);
    bench.finish(0, Outcome::Completed);
    bench.finish(3, Outcome::Completed);
    assert_eq!(bench.started, [0, 1, 3]);
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.started, [0, 1, 3, 2]);
}

/// Invariant 3: for its key, a job is let in before it runs.
#[test]
fn removed_job_admits_the_next_of_its_key() {
    let mut bench = Bench::with_keys(1, None, 1);
    bench.offer_named([NO_NAMES, key("a"), key("a"), key("b")]);
    assert!(bench.remove(1, Outcome::Cancelled));
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.started, [0, 2], "2 has been let in, and came before 3");
    assert!(bench.remove(3, Outcome::Cancelled));
    bench.finish(2, Outcome::Completed);
    assert_eq!(bench.queue.cold.keys.lane_count(), 0);
}

/// Invariant 3: a grant that includes its key gives it up with its spawner.
#[test]
fn leaving_spawner_admits_the_next_of_its_key() {
    let mut bench = Bench::with_keys(2, 1, 1);
    bench.offer_named([key("a"), NO_NAMES, NO_NAMES]);
    let (ticket, bell) = bench.join(key("a"));
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.started, [0, 1, 2]);
    assert!(granted(&bell), "and its key let in, with the place to wait in that 2 has left");
    bench.finish(1, Outcome::Completed);
    bench.finish(2, Outcome::Completed);
    assert_eq!(bench.offer_as(Admit::Limited, key("a")), Full, "the only place to wait is held");
    let (next, next_bell) = bench.join(key("a"));
    bench.leave(ticket);
    assert!(granted(&next_bell));
    assert_eq!(bench.ask(5, next, &next_bell), Taken);
    assert_eq!(bench.started, [0, 1, 2, 5]);
}

/// Invariant 4.
#[test]
fn spawners_of_a_full_key_block_no_other_spawners() {
    let mut bench = Bench::with_keys(3, 1, 1);
    bench.offer_named([key("hot"), key("hot"), NO_NAMES, NO_NAMES]);
    let [(hot, hot_bell), (_, next_bell)] = [(); 2].map(|()| bench.join(key("hot")));
    let [(cold, cold_bell), (_, last_bell)] = [key("cold"), NO_NAMES].map(|of| bench.join(of));
    let granted = |bells: &[&Arc<Bell>; 4]| bells.map(granted);
    let bells = [&hot_bell, &next_bell, &cold_bell, &last_bell];

    bench.finish(2, Outcome::Completed);
    assert_eq!(granted(&bells), [false, false, true, false], "the only place is to run in");
    assert_eq!(bench.ask(6, cold, &cold_bell), Taken);
    assert_eq!(bench.started, [0, 2, 3, 6]);

    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.started, [0, 2, 3, 6, 1]);
    assert_eq!(granted(&bells), [true, false, true, false], "now there is one to wait in");
    assert_eq!(bench.ask(4, hot, &hot_bell), Taken);
    assert_eq!(bench.state(4), JobState::Pending);
    bench.finish(3, Outcome::Completed);
    assert_eq!(granted(&bells), [true, false, true, true]);
}

/// Invariant 4.
#[test]
fn newcomer_does_not_overtake_a_spawner_of_its_key() {
    let mut bench = Bench::with_keys(2, 1, 1);
    bench.offer_named([key("a"), key("a")]);
    let (ticket, bell) = bench.join(key("a"));
    assert_eq!(bench.offer_named([key("a"), key("b")]), [Full, Taken]);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.started, [0, 4, 1]);
    assert_eq!(bench.offer_as(Admit::Limited, key("a")), Full, "the spawner has the place");
    assert_eq!(bench.ask(2, ticket, &bell), Taken);
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.started, [0, 4, 1, 2]);
}

/// Invariant 5.
#[test]
fn longest_pending_job_that_may_start_is_first() {
    let mut bench = Bench::with_keys(1, None, 1);
    let names = [key("a"), key("a"), key("b"), NO_NAMES, key("b"), key("a"), NO_NAMES];
    assert_eq!(bench.offer_named(names), [Taken; 7]);
    for number in 0..7 {
        assert_eq!(bench.started.last(), Some(&number));
        bench.finish(number, Outcome::Completed);
    }
    // With room for two, those whose key runs are passed over, and keep their turn.
    let mut bench = Bench::with_keys(2, None, 1);
    assert_eq!(bench.offer_named(names), [Taken; 7]);
    assert_eq!(bench.started, [0, 2]);
    bench.finish(2, Outcome::Completed);
    bench.finish(3, Outcome::Completed);
    bench.finish(4, Outcome::Completed);
    assert_eq!(bench.started, [0, 2, 3, 4, 6]);
    bench.finish(0, Outcome::Completed);
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.started, [0, 2, 3, 4, 6, 1, 5]);
}

/// Invariant 10: a job blocked by its key needs a place to wait.
#[test]
fn job_of_a_full_key_needs_a_place_to_wait() {
    let mut bench = Bench::with_keys(9, 2, 1);
    assert_eq!(bench.offer_named([key("a"); 4]), [Taken, Taken, Taken, Full]);
    assert_eq!(bench.offer_as(Admit::Deferred, key("a")), Full);
    assert_eq!(bench.offer_named([key("b"), NO_NAMES]), [Taken; 2]);
    assert_eq!(bench.counts(), (3, 2));

    let mut no_queue = Bench::with_keys(9, 0, 1);
    assert_eq!(no_queue.offer_named([key("a"), key("a"), key("b")]), [Taken, Full, Taken]);
}

/// Invariants 1 and 2: it waits although there is no queue.
#[test]
fn deferred_job_without_a_queue_waits_for_its_key() {
    let mut bench = Bench::with_keys(2, 0, 1);
    assert_eq!(bench.offer_as(Admit::Deferred, key("a")), Taken);
    assert_eq!(bench.offer_as(Admit::Limited, key("a")), Taken);
    bench.begin(0);
    assert_eq!(bench.started, [1]);
    assert_eq!(bench.offer_as(Admit::Deferred, key("a")), Full);
    assert_eq!(bench.offer(), Taken, "a permit is free");
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.started, [1, 3, 0]);
}

/// Invariant 2: however many jobs wait for their key.
#[test]
fn job_that_could_start_needs_no_place_to_wait() {
    let mut bench = Bench::with_keys(10, 5, 1);
    assert_eq!(bench.offer_named([key("a"); 7]), [Taken, Taken, Taken, Taken, Taken, Taken, Full]);
    assert_eq!(bench.offer_as(Admit::Deferred, key("a")), Full);
    assert_eq!(bench.offer_as(Admit::Deferred, key("b")), Taken);
    assert_eq!(bench.offer_as(Admit::Limited, key("b")), Taken);
    assert_eq!(bench.started, [0, 9]);
}

#[test]
fn blocked_jobs_of_a_closed_queue_never_start() {
    let mut bench = Bench::with_keys(9, None, 1);
    bench.offer_named([key("a"), key("a"), key("b"), key("a"), key("b")]);
    let deferred = bench.jobs.len();
    bench.offer_as(Admit::Deferred, key("a"));
    bench.queue.close();
    bench.finish(0, Outcome::Cancelled);
    assert_eq!(bench.take_unstarted(2), [1, 3]);
    bench.finish(2, Outcome::Cancelled);
    assert_eq!(bench.take_unstarted(9), [4, deferred]);
    assert_eq!(bench.started, [0, 2]);
    assert!(bench.queue.is_idle());
    assert_eq!(bench.queue.cold.keys.lane_count(), 0);
}

/// The work of a step does not grow with the backlog, and empty lanes are forgotten.
#[test]
fn hot_key_neither_starves_cold_keys_nor_leaves_a_lane() {
    const HOT: usize = 20_000;
    const COLD: usize = 50_000;
    let mut bench = Bench::with_keys(4, None, 2);
    let keys = Vec::from_iter((0..COLD).map(|n| &*format!("tenant {n}").leak()));
    for _ in 0..HOT {
        bench.offer_as(Admit::Limited, key("hot"));
    }
    for cold in keys {
        bench.offer_as(Admit::Limited, key(cold));
    }
    assert_eq!(bench.queue.cold.keys.lane_count(), COLD + 1);
    let mut at = 0;
    while let Some(&number) = bench.started.get(at) {
        bench.finish(number, Outcome::Completed);
        at += 1;
    }
    let hot: Vec<_> = bench.started.iter().copied().filter(|number| *number < HOT).collect();
    assert!(hot.is_sorted());
    assert_eq!((bench.started.len(), hot.len()), (HOT + COLD, HOT));
    // Two places were never the hot key's: they served the others meanwhile.
    let cold = bench.started[..HOT].iter().filter(|number| **number >= HOT).count();
    assert!(cold >= HOT / 2 - 2, "{cold} cold jobs beside the hot ones");
    assert!(bench.queue.is_idle());
    assert_eq!((bench.queue.cold.keys.lane_count(), bench.queue.len()), (0, 0));
}
