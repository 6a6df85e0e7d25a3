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

/// Invariant 11.
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

/// Invariant 2.
#[test]
fn job_that_would_wait_replaces_none_without_a_queue() {
    let mut bench = Bench::with_keys(9, 0, 1);
    assert_eq!(bench.offer_as(Admit::Limited, key("a")), Taken);
    assert_eq!(bench.offer_as(Admit::Deferred, unique("u")), Taken);
    assert_eq!(bench.offer_as(Admit::Limited, Names { ..replacing("u") }), Taken);
    assert_eq!(bench.offer_as(Admit::Deferred, unique("v")), Taken);
    let names = Names { key: Some("a"), ..replacing("v") };
    assert_eq!(bench.offer_as(Admit::Limited, names), Full);
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
