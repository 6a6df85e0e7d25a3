//! Invariants 6 to 9: draining and closing.

use super::*;

/// Invariant 6.
#[test]
fn closed_queue_admits_grants_and_starts_nothing() {
    let (mut bench, bells) = (Bench::new(1, 1), [(); 2].map(|()| Arc::new(Bell::default())));
    bench.offer_all::<2>();
    let [Waits(first), Waits(second)] = [0, 1].map(|n| bench.offer_or_wait(NO_NAMES, &bells[n]))
    else {
        panic!("both must wait");
    };
    bench.offer_as(Admit::Outside, NO_NAMES);
    bench.finish(0, Outcome::Completed);
    assert!(granted(&bells[0]));
    bench.queue.close();
    assert_eq!(bench.offer(), Closed);
    assert_eq!(bench.offer_as(Admit::Outside, NO_NAMES), Closed);
    assert_eq!(bench.ask(2, first, &bells[0]), Closed, "even with a place");
    bench.leave(first);
    assert!(!granted(&bells[1]), "not even when a place comes free");
    assert_eq!(bench.queue.drain_waiting(9).len(), 1);
    assert_eq!(bench.ask(3, second, &bells[1]), Closed);
    bench.queue.drain();
    assert_eq!(bench.queue.phase(), Phase::Closed);
    assert_eq!(bench.started, [0, 4, 1]);
    bench.finish(1, Outcome::Completed);
    bench.finish(4, Outcome::Completed);
    assert!(bench.idle);
}

/// Invariant 6.
#[test]
fn unstarted_jobs_leave_a_closed_queue_in_pages() {
    let mut bench = Bench::new(1, None);
    bench.offer_all::<6>();
    bench.queue.close();
    bench.finish(0, Outcome::Cancelled);
    assert_eq!(bench.started, [0]);
    assert_eq!(bench.take_unstarted(2), [1, 2]);
    assert_eq!(bench.take_unstarted(2), [3, 4]);
    assert_eq!(bench.take_unstarted(2), [5]);
    assert!(bench.take_unstarted(2).is_empty());
    assert_eq!(bench.queue.totals().of(Outcome::NeverStarted), 5);
    assert!(bench.queue.is_idle());
}

/// Invariant 7.
#[test]
fn accepted_is_unfinished_plus_ended() {
    let mut bench = Bench::new(1, 2);
    let law = |bench: &Bench| {
        let ended: u64 = bench.queue.totals().outcomes.iter().sum();
        assert_eq!(bench.queue.totals().accepted, bench.queue.len() as u64 + ended);
    };
    assert_eq!(bench.offer_all(), [Taken, Taken, Taken, Full]);
    law(&bench);
    bench.finish(0, Outcome::Failed);
    assert!(bench.remove(2, Outcome::Skipped));
    law(&bench);
    bench.queue.close();
    bench.finish(1, Outcome::Abandoned);
    assert_eq!(bench.offer(), Closed);
    law(&bench);
    assert_eq!(bench.queue.totals().accepted, 3);
}

/// Invariant 7: a job is ended once.
#[test]
fn ended_job_is_not_ended_again() {
    let mut bench = Bench::new(1, 2);
    bench.offer_all::<2>();
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.counts(), (1, 1), "a pending job cannot finish");
    assert!(!bench.remove(0, Outcome::Cancelled), "a running job cannot be removed");
    bench.finish(0, Outcome::Completed);
    bench.offer();
    assert_eq!(bench.jobs[2].row(), bench.jobs[0].row(), "its row is used again");
    bench.finish(0, Outcome::Abandoned);
    assert!(!bench.remove(0, Outcome::Cancelled));
    assert_eq!(bench.counts(), (1, 1));
    assert_eq!(bench.queue.totals().of(Outcome::Abandoned), 0);
}

/// Invariant 8.
#[test]
fn draining_queue_closes_in_the_step_that_leaves_it_idle() {
    let (mut bench, bell) = (Bench::new(1, 1), Arc::new(Bell::default()));
    bench.offer_all::<2>();
    let Waits(ticket) = bench.offer_or_wait(NO_NAMES, &bell) else { panic!("the queue is full") };
    bench.queue.drain();
    bench.finish(0, Outcome::Completed);
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.queue.phase(), Phase::Draining, "a spawner has a place still to use");
    assert_eq!(bench.ask(2, ticket, &bell), Taken);
    assert_eq!(bench.offer(), Taken, "a draining queue accepts");
    assert!(bench.remove(3, Outcome::Cancelled));
    bench.finish(2, Outcome::Completed);
    assert!(bench.idle);
    assert_eq!(bench.queue.phase(), Phase::Closed);
    assert_eq!(bench.offer(), Closed);
}

/// Invariant 8: the step may be the leaving of a spawner, or the drain.
#[test]
fn draining_queue_closes_when_its_last_spawner_leaves() {
    let (mut bench, bell) = (Bench::new(1, 1), Arc::new(Bell::default()));
    bench.offer_all::<2>();
    let Waits(ticket) = bench.offer_or_wait(NO_NAMES, &bell) else { panic!("the queue is full") };
    bench.queue.drain();
    bench.finish(0, Outcome::Completed);
    bench.finish(1, Outcome::Completed);
    bench.leave(ticket);
    assert!(bench.idle);
    assert_eq!(bench.queue.phase(), Phase::Closed);

    let mut empty = Bench::new(1, 1);
    empty.queue.drain();
    assert_eq!(empty.queue.phase(), Phase::Closed);
}

/// Invariants 8 and 9: the report begins at the announcement.
#[test]
fn announced_shutdown_does_not_close_an_idle_queue() {
    let mut bench = Bench::new(1, None);
    bench.queue.announce();
    assert_eq!(bench.offer(), Taken);
    bench.finish(0, Outcome::Failed);
    assert_eq!(bench.queue.phase(), Phase::Announced);
    bench.queue.drain();
    assert_eq!(bench.queue.phase(), Phase::Closed);
    assert_eq!(bench.take_ended().len(), 1);
}

/// Invariant 9.
#[test]
fn bad_ends_of_a_drain_are_kept_for_the_report_once() {
    let mut bench = Bench::new(2, None);
    bench.offer_all::<6>();
    bench.finish(0, Outcome::Failed);
    bench.queue.drain();
    assert_eq!(bench.queue.totals_at_drain().of(Outcome::Failed), 1);
    bench.finish(1, Outcome::Completed);
    bench.finish(2, Outcome::Panicked);
    bench.remove(5, Outcome::Skipped);
    bench.queue.close();
    bench.take_unstarted(9);
    bench.finish(3, Outcome::Abandoned);
    bench.finish(4, Outcome::Cancelled);
    let expected = [(2, Outcome::Panicked), (3, Outcome::Abandoned), (4, Outcome::Cancelled)];
    let expected = expected.map(|(number, outcome)| (bench.jobs[number].id(), outcome));
    assert_eq!(bench.take_ended(), expected);
    assert!(bench.take_ended().is_empty());
}
