//! Invariant 11: unique keys.

use super::*;

/// Invariant 11.
#[test]
fn at_most_one_job_has_a_unique_key() {
    let mut bench = Bench::new(1, None);
    assert_eq!(bench.offer_as(Admit::Deferred, unique("u")), Taken);
    let refused = |bench: &mut Bench| {
        let ways = [Admit::Limited, Admit::Deferred, Admit::Outside];
        assert_eq!(ways.map(|how| bench.offer_as(how, unique("u"))), [Duplicate(0); 3]);
        assert_eq!(bench.offer_as(Admit::Limited, unique("v")), Taken, "another key");
    };
    refused(&mut bench);
    let runs = bench.jobs.len() - 1;
    bench.begin(0);
    assert_eq!(bench.state(0), JobState::Pending);
    assert_eq!(bench.offer_as(Admit::Limited, unique("u")), Duplicate(0));
    bench.finish(runs, Outcome::Completed);
    assert_eq!(bench.state(0), JobState::Active);
    refused(&mut bench);
    bench.finish(0, Outcome::Panicked);
    assert_eq!(bench.offer_as(Admit::Limited, unique("u")), Taken);
}

/// Invariants 5 and 11.
#[test]
fn job_replaces_an_unstarted_job() {
    let mut bench = Bench::new(1, 1);
    assert_eq!(bench.offer_named([NO_NAMES, unique("u"), NO_NAMES]), [Taken, Taken, Full]);
    assert_eq!(bench.offer_as(Admit::Limited, replacing("u")), Taken, "in its place");
    assert_eq!(bench.replaced, [1]);
    assert_eq!(bench.offer_as(Admit::Deferred, replacing("u")), Taken);
    assert_eq!(bench.replaced, [1, 3]);
    assert_eq!(bench.offer_as(Admit::Limited, unique("u")), Duplicate(4), "it only asks");
    assert_eq!(bench.offer_as(Admit::Limited, replacing("u")), Taken);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.started, [0, 6]);
    assert_eq!(bench.offer_as(Admit::Limited, replacing("u")), Duplicate(6), "it has started");
    assert_eq!(bench.queue.totals().of(Outcome::Cancelled), 3);
}

/// Invariant 5: a job that is replaced again and again still runs.
#[test]
fn replacement_keeps_the_turn_of_a_pending_job() {
    for limit_per_key in [None, Some(1)] {
        let mut bench = Bench::with_keys(1, None, limit_per_key);
        bench.offer_named([NO_NAMES, replacing("u"), NO_NAMES, NO_NAMES]);
        for _ in 0..3 {
            assert_eq!(bench.offer_as(Admit::Limited, replacing("u")), Taken);
            bench.offer();
        }
        bench.finish(0, Outcome::Completed);
        assert_eq!(bench.started, [0, 8]);
        for (ended, next) in [(8, 2), (2, 3), (3, 5), (5, 7), (7, 9)] {
            bench.finish(ended, Outcome::Completed);
            assert_eq!(bench.started.last(), Some(&next));
        }
    }
}

/// Invariant 5: it keeps the turn in the lane of its own key.
#[test]
fn replacement_of_another_key_waits_for_that_key() {
    let mut bench = Bench::with_keys(2, None, 1);
    let named = |key| Names { key: Some(key), ..replacing("u") };
    bench.offer_named([key("a"), key("b"), named("a"), key("a"), key("b")]);
    assert_eq!(bench.offer_as(Admit::Limited, named("b")), Taken);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.started, [0, 1, 3], "the lane of a has another job");
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.started, [0, 1, 3, 5], "before 4, which came later");
    bench.finish(5, Outcome::Completed);
    assert_eq!(bench.started.last(), Some(&4));
}

/// Invariant 5: an admitted job stays admitted.
#[test]
fn replacement_of_the_same_key_keeps_its_admission() {
    let mut bench = Bench::with_keys(1, None, 1);
    let named = Names { key: Some("a"), ..replacing("u") };
    bench.offer_named([NO_NAMES, named, key("a"), NO_NAMES]);
    assert_eq!(bench.offer_as(Admit::Limited, named), Taken);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.started, [0, 4]);
    bench.finish(4, Outcome::Completed);
    assert_eq!(bench.started, [0, 4, 2]);
}

/// Invariant 5: also where the limit was lowered below what had been admitted.
#[test]
fn replacement_keeps_its_turn_under_a_lowered_key_limit() {
    let mut bench = Bench::with_keys(1, None, 2);
    let named = Names { key: Some("a"), ..replacing("u") };
    bench.offer_named([NO_NAMES, named, key("a")]);
    let effects = bench.queue.set_limit_per_key(Some(1), bench.now);
    bench.apply(effects);
    assert_eq!(bench.offer_as(Admit::Limited, named), Taken);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.started, [0, 3], "before 2, which came later");
    bench.finish(3, Outcome::Completed);
    assert_eq!(bench.started, [0, 3, 2]);
}

/// Invariant 5: a spawner that waited replaces the job that came meanwhile, and its grant goes on.
#[test]
fn granted_spawner_replaces_a_job_that_came_meanwhile() {
    let mut bench = Bench::new(1, 1);
    assert_eq!(bench.offer_as(Admit::Deferred, unique("u")), Taken);
    bench.offer_all::<2>();
    let (ticket, bell) = bench.join(replacing("u"));
    let (_, next_bell) = bench.join(NO_NAMES);
    bench.begin(0);
    bench.finish(1, Outcome::Completed);
    assert_eq!((bench.counts(), granted(&bell)), ((1, 1), false));
    bench.finish(2, Outcome::Completed);
    assert!(granted(&bell) && !granted(&next_bell));
    assert_eq!(bench.state(0), JobState::Active);
    assert_eq!(bench.ask(3, ticket, &bell), Duplicate(0));

    let mut bench = Bench::new(1, 1);
    assert_eq!(bench.offer_as(Admit::Deferred, unique("u")), Taken);
    bench.offer_all::<2>();
    let (ticket, bell) = bench.join(replacing("u"));
    let (_, next_bell) = bench.join(NO_NAMES);
    bench.finish(1, Outcome::Completed);
    assert!(granted(&bell));
    bench.begin(0);
    assert_eq!((bench.counts(), granted(&next_bell)), ((1, 1), false));
    assert_eq!(bench.ask(3, ticket, &bell), Taken);
    assert_eq!((bench.replaced.clone(), bench.counts()), (vec![0], (1, 1)));
    bench.finish(2, Outcome::Completed);
    assert_eq!(bench.started, [1, 2, 3]);
    assert!(granted(&next_bell));
}

/// Invariant 11: a refused replacement leaves the first job alone.
#[test]
fn refused_replacement_leaves_the_first_job() {
    let mut bench = Bench::with_keys(9, 0, 1);
    assert_eq!(bench.offer_as(Admit::Limited, key("a")), Taken);
    assert_eq!(bench.offer_as(Admit::Deferred, unique("u")), Taken);
    let names = Names { key: Some("a"), ..replacing("u") };
    assert_eq!(bench.offer_as(Admit::Limited, names), Full);
    assert_eq!(bench.state(1), JobState::Deferred);
    assert_eq!(bench.offer_as(Admit::Limited, replacing("u")), Taken);
    assert_eq!(bench.replaced, [1]);
}

/// Invariant 11: waiting spawners have no job yet.
#[test]
fn granted_duplicate_gives_its_grant_on() {
    let mut bench = Bench::new(1, 0);
    bench.offer();
    let [(first, _), (second, bell)] = [(); 2].map(|()| bench.join(unique("u")));
    let (_, last_bell) = bench.join(NO_NAMES);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.ask(1, first, &bell), Taken);
    bench.finish(1, Outcome::Completed);
    assert!(granted(&bell));
    assert_eq!(bench.offer_as(Admit::Outside, unique("u")), Taken);
    assert_eq!(bench.ask(2, second, &bell), Duplicate(4));
    assert!(!granted(&last_bell));
    bench.leave(second);
    assert!(granted(&last_bell));
}
