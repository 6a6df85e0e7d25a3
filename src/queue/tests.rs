use std::{
    cell::Cell,
    env,
    hash::{BuildHasher, RandomState},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
    time::Duration,
};

use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};

use super::*;

/// What the table keeps of a job: what it has been told of itself.
#[derive(Clone)]
struct Job(Rc<(JobId, Cell<JobState>, Cell<usize>)>);

impl Job {
    fn new() -> Self {
        Self(Rc::new((JobId::next(), Cell::new(JobState::Deferred), Cell::new(usize::MAX))))
    }

    fn state(&self) -> JobState {
        self.0.1.get()
    }

    fn slot(&self) -> usize {
        self.0.2.get()
    }
}

impl Entry for Job {
    fn id(&self) -> JobId {
        self.0.0
    }

    fn key(&self) -> Option<&Arc<str>> {
        None
    }

    fn unique(&self) -> Option<&Unique> {
        None
    }

    fn moved(&self, state: JobState, slot: usize) {
        assert!(state >= self.state(), "from {:?} back to {state:?}", self.state());
        self.0.1.set(state);
        self.0.2.set(slot);
    }
}

/// The number of a job, and a future that the queue must never drop.
struct Task(usize, bool);

impl Task {
    fn take(mut self) -> usize {
        self.1 = true;
        self.0
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        assert!(self.1 || std::thread::panicking(), "the queue dropped the work of {}", self.0);
    }
}

#[derive(Default)]
struct Bell(AtomicUsize);

impl Bell {
    fn rings(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A queue and all that was ever offered to it.
struct Bench {
    queue: Queue<Job, Task>,
    jobs: Vec<Job>,
    now: Instant,
    /// Jobs in the order in which they were started.
    started: Vec<usize>,
    idle: bool,
}

use Answer::{Closed, Full, Taken, Waits};

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Taken,
    Waits(Ticket),
    Full,
    Closed,
}

impl Bench {
    fn new(limit: impl Into<Option<usize>>, pending_limit: impl Into<Option<usize>>) -> Self {
        Self {
            queue: Queue::new(limit.into(), pending_limit.into(), None),
            jobs: Vec::new(),
            now: Instant::now(),
            started: Vec::new(),
            idle: true,
        }
    }

    fn follow(&mut self, effects: Effects<Job, Task>) {
        if let Some(start) = effects.start {
            assert_eq!(start.entry.state(), JobState::Active);
            self.started.push(start.work.take());
        }
        effects.wake.into_iter().for_each(Waker::wake);
        self.idle = effects.idle;
    }

    fn answer(&mut self, result: Result<Effects<Job, Task>, Refusal>) -> Answer {
        match result {
            Ok(effects) => {
                self.follow(effects);
                Taken
            }
            Err(Refusal::Full) => Full,
            Err(Refusal::Closed) => Closed,
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    fn offer(&mut self) -> Answer {
        self.offer_as(Admit::Limited)
    }

    fn offer_as(&mut self, how: Admit) -> Answer {
        let job = Job::new();
        self.jobs.push(job.clone());
        let number = self.jobs.len() - 1;
        let result = self.queue.admit(how, &job, || Task(number, false), self.now);
        self.answer(result)
    }

    /// Offers a job, and joins the line if the queue is full.
    fn offer_or_wait(&mut self, bell: &Arc<Bell>) -> Answer {
        match self.offer() {
            Full => {
                let job = self.jobs.last().expect("just offered");
                Waits(self.queue.wait(job, bell.clone().into()))
            }
            answer => answer,
        }
    }

    /// The spawner of job `number` asks again, with a new waker.
    fn ask(&mut self, number: usize, ticket: Ticket, bell: &Arc<Bell>) -> Answer {
        let job = self.jobs[number].clone();
        match self.queue.take_turn(ticket, &job, || Task(number, false), self.now) {
            Some(result) => self.answer(result),
            None => {
                let replaced = self.queue.wait_on(ticket, bell.clone().into());
                assert!(replaced.is_some(), "a spawner that waits has left its waker");
                Waits(ticket)
            }
        }
    }

    fn begin(&mut self, number: usize) {
        let job = self.jobs[number].clone();
        let effects = self.queue.begin(job.slot(), job.id(), self.now);
        self.follow(effects);
    }

    fn leave(&mut self, ticket: Ticket) {
        let (effects, _waker) = self.queue.leave(ticket, self.now);
        self.follow(effects);
    }

    fn finish(&mut self, number: usize, outcome: Outcome) {
        let job = self.jobs[number].clone();
        let effects = self.queue.finish(job.slot(), job.id(), outcome, self.now);
        self.follow(effects);
    }

    fn remove(&mut self, number: usize, outcome: Outcome) -> bool {
        let job = self.jobs[number].clone();
        let removed = self.queue.remove(job.slot(), job.id(), outcome, self.now);
        removed.is_some_and(|(work, effects)| {
            assert_eq!(work.take(), number);
            self.follow(effects);
            true
        })
    }

    fn take_unstarted(&mut self, most: usize) -> Vec<usize> {
        let unstarted = self.queue.take_unstarted(most);
        unstarted.into_iter().map(|(_, work)| work.take()).collect()
    }

    fn counts(&self) -> (usize, usize) {
        (self.queue.active_count(), self.queue.pending_count())
    }

    fn offer_all<const N: usize>(&mut self) -> [Answer; N] {
        [(); N].map(|()| self.offer())
    }
}

impl Drop for Bench {
    /// The table still owns the work of what has not started.
    fn drop(&mut self) {
        self.queue.close();
        self.take_unstarted(usize::MAX);
    }
}

fn granted(bell: &Arc<Bell>) -> bool {
    bell.rings() > 0
}

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
    assert_eq!(bench.offer_as(Admit::Outside), Taken);
    assert_eq!(bench.started, [0, 2]);
    bench.finish(2, Outcome::Completed);
    assert_eq!(bench.offer(), Full);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.offer_as(Admit::Outside), Taken);
    assert_eq!(bench.offer(), Taken);
}

/// Invariant 2: a deferred job has its place from the start, and needs no other.
#[test]
fn a_deferred_job_is_refused_at_once_or_never() {
    let mut bench = Bench::new(2, 0);
    assert_eq!([(); 3].map(|()| bench.offer_as(Admit::Deferred)), [Taken, Taken, Full]);
    assert_eq!(bench.offer(), Full);
    assert_eq!(bench.counts(), (0, 0));
    bench.begin(1);
    bench.begin(0);
    bench.begin(0);
    assert_eq!(bench.started, [1, 0]);
    assert_eq!(bench.counts(), (2, 0));
}

/// Invariants 3 and 10.
#[test]
fn a_job_starts_at_once_though_deferred_ones_have_places() {
    let mut bench = Bench::new(1, 2);
    assert_eq!([(); 3].map(|()| bench.offer_as(Admit::Deferred)), [Taken, Taken, Full]);
    assert_eq!(bench.offer_all(), [Taken, Full]);
    assert_eq!(bench.started, [3]);
    bench.begin(0);
    assert_eq!((bench.counts(), bench.queue.deferred_count()), ((1, 1), 1));
    assert!(bench.remove(1, Outcome::Skipped));
    assert_eq!(bench.offer_all(), [Taken, Full]);
    bench.finish(3, Outcome::Completed);
    assert_eq!(bench.started, [3, 0]);
}

/// Invariant 6.
#[test]
fn a_deferred_job_does_not_begin_once_the_queue_is_closed() {
    let mut bench = Bench::new(2, None);
    assert_eq!(bench.offer_as(Admit::Deferred), Taken);
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
fn none_is_no_limit_and_zero_is_no_queue() {
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
fn a_place_that_comes_free_starts_the_next_pending_job_in_the_same_step() {
    let mut bench = Bench::new(1, 3);
    bench.offer_all::<3>();
    bench.finish(0, Outcome::Panicked);
    assert_eq!(bench.started, [0, 1]);
    assert_eq!(bench.jobs[1].state(), JobState::Active);
    assert_eq!(bench.counts(), (1, 1));
}

/// Invariant 3: what is granted and not used yet holds up nobody's start.
#[test]
fn a_job_starts_at_once_though_spawners_have_not_used_their_places_yet() {
    let (mut bench, bells) = (Bench::new(1, 1), [(); 2].map(|()| Arc::new(Bell::default())));
    bench.offer_all::<2>();
    let [Waits(first), Waits(second)] = [0, 1].map(|n| bench.offer_or_wait(&bells[n])) else {
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
fn a_newcomer_does_not_overtake_a_waiting_spawner() {
    let (mut bench, bell) = (Bench::new(1, 1), Arc::new(Bell::default()));
    bench.offer_all::<2>();
    let Waits(ticket) = bench.offer_or_wait(&bell) else { panic!("the queue is full") };
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.offer(), Full, "the place that came free is the spawner's");
    assert_eq!(bench.ask(2, ticket, &bell), Taken);
}

/// Invariant 4: a spawner that leaves passes its place on, and one without leaks none.
#[test]
fn a_spawner_that_leaves_leaks_no_place() {
    let (mut bench, bells) = (Bench::new(1, 1), [(); 3].map(|()| Arc::new(Bell::default())));
    bench.offer_all::<2>();
    let tickets = [0, 1, 2].map(|n| match bench.offer_or_wait(&bells[n]) {
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
fn pending_jobs_start_and_spawners_are_granted_places_in_the_order_they_came() {
    let (mut bench, bells) = (Bench::new(1, 3), [(); 3].map(|()| Arc::new(Bell::default())));
    bench.offer_all::<4>();
    for bell in &bells {
        assert!(matches!(bench.offer_or_wait(bell), Waits(_)));
    }
    assert!(bench.remove(2, Outcome::Cancelled));
    assert_eq!(bells.each_ref().map(granted), [true, false, false]);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bells.each_ref().map(granted), [true, true, false]);
    bench.finish(1, Outcome::Completed);
    assert_eq!(bells.each_ref().map(granted), [true; 3]);
    assert_eq!(bench.started, [0, 1, 3]);
}

/// Invariant 6.
#[test]
fn a_closed_queue_admits_grants_and_starts_nothing() {
    let (mut bench, bells) = (Bench::new(1, 1), [(); 2].map(|()| Arc::new(Bell::default())));
    bench.offer_all::<2>();
    let [Waits(first), Waits(second)] = [0, 1].map(|n| bench.offer_or_wait(&bells[n])) else {
        panic!("both must wait");
    };
    bench.offer_as(Admit::Outside);
    bench.finish(0, Outcome::Completed);
    assert!(granted(&bells[0]));
    bench.queue.close();
    assert_eq!(bench.offer(), Closed);
    assert_eq!(bench.offer_as(Admit::Outside), Closed);
    assert_eq!(bench.ask(2, first, &bells[0]), Closed, "even with a place");
    bench.leave(first);
    assert!(!granted(&bells[1]), "not even when a place comes free");
    assert_eq!(bench.queue.take_waiters(9).len(), 1);
    assert_eq!(bench.ask(3, second, &bells[1]), Closed);
    bench.queue.drain();
    assert_eq!(bench.queue.phase(), Phase::Closed);
    assert_eq!(bench.started, [0, 4, 1]);
    bench.finish(1, Outcome::Completed);
    bench.finish(4, Outcome::Completed);
    assert!(bench.idle);
}

/// Invariant 6: what is pending when the queue closes leaves in pages, never started.
#[test]
fn the_unstarted_leave_a_closed_queue_page_by_page() {
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
fn accepted_is_what_is_there_plus_what_ended() {
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

/// Invariant 7: a job is ended once, by whoever comes first.
#[test]
fn a_job_that_has_ended_or_moved_on_is_not_ended_again() {
    let mut bench = Bench::new(1, 2);
    bench.offer_all::<2>();
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.counts(), (1, 1), "a pending job cannot finish");
    assert!(!bench.remove(0, Outcome::Cancelled), "a running job cannot be removed");
    bench.finish(0, Outcome::Completed);
    bench.offer();
    assert_eq!(bench.jobs[2].slot(), bench.jobs[0].slot(), "its slot is used again");
    bench.finish(0, Outcome::Abandoned);
    assert!(!bench.remove(0, Outcome::Cancelled));
    assert_eq!(bench.counts(), (1, 1));
    assert_eq!(bench.queue.totals().of(Outcome::Abandoned), 0);
}

/// Invariant 8.
#[test]
fn a_draining_queue_closes_in_the_step_that_leaves_it_idle() {
    let (mut bench, bell) = (Bench::new(1, 1), Arc::new(Bell::default()));
    bench.offer_all::<2>();
    let Waits(ticket) = bench.offer_or_wait(&bell) else { panic!("the queue is full") };
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

/// Invariant 8: the step may be a spawner's leaving, or the drain itself.
#[test]
fn a_draining_queue_closes_when_its_last_spawner_leaves_or_there_is_none() {
    let (mut bench, bell) = (Bench::new(1, 1), Arc::new(Bell::default()));
    bench.offer_all::<2>();
    let Waits(ticket) = bench.offer_or_wait(&bell) else { panic!("the queue is full") };
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

/// Invariant 8: an announced end changes nothing, but the report begins there (9).
#[test]
fn an_announced_end_does_not_close_an_idle_queue() {
    let mut bench = Bench::new(1, None);
    bench.queue.announce();
    assert_eq!(bench.offer(), Taken);
    bench.finish(0, Outcome::Failed);
    assert_eq!(bench.queue.phase(), Phase::Announced);
    bench.queue.drain();
    assert_eq!(bench.queue.phase(), Phase::Closed);
    assert_eq!(bench.queue.take_ended().len(), 1);
}

/// Invariant 9.
#[test]
fn what_ends_badly_from_the_drain_on_is_kept_for_the_report_once() {
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
    let ended: Vec<_> =
        bench.queue.take_ended().into_iter().map(|(job, outcome)| (job.id(), outcome)).collect();
    let expected = [(2, Outcome::Panicked), (3, Outcome::Abandoned), (4, Outcome::Cancelled)];
    assert_eq!(ended, expected.map(|(number, outcome)| (bench.jobs[number].id(), outcome)));
    assert!(bench.queue.take_ended().is_empty());
}

#[test]
fn paging_lists_every_job() {
    let mut bench = Bench::new(3, None);
    bench.offer_all::<7>();
    bench.finish(1, Outcome::Completed);
    let mut listed = Vec::new();
    let mut from = Some(0);
    while let Some(key) = from {
        let (page, next) = bench.queue.page(key, 2);
        listed.extend(page.iter().map(Job::id));
        from = next;
    }
    let expected = [0, 2, 3, 4, 5, 6].map(|number: usize| bench.jobs[number].id());
    assert_eq!(listed, expected);
}

// All invariants, over random histories, against a model that knows no better than to look
// through lists again and again until nothing more can happen.

#[derive(Clone, Debug)]
enum Step {
    Offer,
    OfferOrWait,
    OfferDeferred,
    OfferOutside,
    Begin(usize),
    Ask(usize),
    Leave(usize),
    Finish(usize, Outcome),
    Remove(usize, Outcome),
    Announce,
    Drain,
    Close,
    TakeWaiters(usize),
    TakeUnstarted(usize),
    TakeEnded,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop::sample::select(vec![
        Outcome::Completed,
        Outcome::Failed,
        Outcome::TimedOut,
        Outcome::Skipped,
        Outcome::Abandoned,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let any = any::<u8>().prop_map(usize::from);
    prop_oneof![
        8 => Just(Step::Offer),
        10 => Just(Step::OfferOrWait),
        4 => Just(Step::OfferDeferred),
        2 => Just(Step::OfferOutside),
        4 => any.clone().prop_map(Step::Begin),
        8 => any.clone().prop_map(Step::Ask),
        3 => any.clone().prop_map(Step::Leave),
        12 => (any.clone(), outcome()).prop_map(|(number, outcome)| Step::Finish(number, outcome)),
        3 => (any, outcome()).prop_map(|(number, outcome)| Step::Remove(number, outcome)),
        1 => Just(Step::Announce),
        1 => Just(Step::Drain),
        1 => Just(Step::Close),
        2 => (0..3_usize).prop_map(Step::TakeWaiters),
        2 => (0..3_usize).prop_map(Step::TakeUnstarted),
        1 => Just(Step::TakeEnded),
    ]
}

struct Model {
    limit: usize,
    pending_limit: usize,
    phase: Phase,
    deferred: Vec<usize>,
    pending: Vec<usize>,
    active: Vec<usize>,
    outside: Vec<usize>,
    /// Spawners, by the number of their job, in the order they came.
    waiting: Vec<usize>,
    granted: Vec<usize>,
    started: Vec<usize>,
    accepted: u64,
    outcomes: Vec<Outcome>,
    ended: Vec<(usize, Outcome)>,
}

impl Model {
    fn running(&self) -> usize {
        self.active.iter().filter(|number| !self.outside.contains(number)).count()
    }

    fn free(&self) -> bool {
        let jobs = self.running() + self.pending.len() + self.deferred.len();
        let held = jobs + self.granted.len();
        self.limit.checked_add(self.pending_limit).is_none_or(|places| held < places)
    }

    fn has_room(&self, how: Admit) -> bool {
        match how {
            Admit::Outside => true,
            Admit::Limited => self.free(),
            Admit::Deferred if self.pending_limit == 0 => self.free(),
            Admit::Deferred => {
                let waiting = self.pending.len() + self.deferred.len() + self.granted.len();
                waiting < self.pending_limit // 10
            }
        }
    }

    fn idle(&self) -> bool {
        let spawners = self.waiting.len() + self.granted.len();
        self.deferred.is_empty()
            && self.pending.is_empty()
            && self.active.is_empty()
            && (spawners == 0 || self.phase == Phase::Closed)
    }

    fn accept(&mut self, number: usize, how: Admit) -> Answer {
        self.accepted += 1;
        match how {
            Admit::Limited => self.pending.push(number),
            Admit::Deferred => self.deferred.push(number),
            Admit::Outside => {
                self.outside.push(number);
                self.active.push(number);
                self.started.push(number);
            }
        }
        Taken
    }

    fn end(&mut self, number: usize, outcome: Outcome) {
        self.active.retain(|other| *other != number);
        self.pending.retain(|other| *other != number);
        self.deferred.retain(|other| *other != number);
        self.outcomes.push(outcome);
        let well = [Outcome::Completed, Outcome::Skipped].contains(&outcome);
        if self.phase != Phase::Open && !well {
            self.ended.push((number, outcome));
        }
    }

    fn settle(&mut self) {
        while self.phase != Phase::Closed {
            if self.running() < self.limit && !self.pending.is_empty() {
                let number = self.pending.remove(0);
                self.active.push(number);
                self.started.push(number);
            } else if self.free() && !self.waiting.is_empty() {
                self.granted.push(self.waiting.remove(0));
            } else if self.phase == Phase::Draining && self.idle() {
                self.phase = Phase::Closed;
            } else {
                break;
            }
        }
    }
}

fn pick<T: Copy>(from: &[T], at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from[at % from.len()])
}

fn check(limit: Option<usize>, pending_limit: Option<usize>, steps: Vec<Step>) {
    let mut bench = Bench::new(limit, pending_limit);
    let mut model = Model {
        limit: limit.unwrap_or(usize::MAX),
        pending_limit: pending_limit.unwrap_or(usize::MAX),
        phase: Phase::Open,
        deferred: Vec::new(),
        pending: Vec::new(),
        active: Vec::new(),
        outside: Vec::new(),
        waiting: Vec::new(),
        granted: Vec::new(),
        started: Vec::new(),
        accepted: 0,
        outcomes: Vec::new(),
        ended: Vec::new(),
    };
    // Spawners that have joined the line and not left it, and the time of each job's last move.
    let mut spawners: Vec<(usize, Ticket, Arc<Bell>)> = Vec::new();
    let mut since: Vec<(JobState, Instant)> = Vec::new();
    for step in steps {
        bench.now += Duration::from_secs(1);
        match step {
            Step::Offer | Step::OfferOrWait | Step::OfferDeferred | Step::OfferOutside => {
                let (number, bell) = (bench.jobs.len(), Arc::new(Bell::default()));
                let how = match step {
                    Step::OfferDeferred => Admit::Deferred,
                    Step::OfferOutside => Admit::Outside,
                    _ => Admit::Limited,
                };
                let waits = matches!(step, Step::OfferOrWait);
                let answer = if waits { bench.offer_or_wait(&bell) } else { bench.offer_as(how) };
                if let Waits(ticket) = answer {
                    assert!(spawners.iter().all(|(_, earlier, _)| *earlier < ticket));
                    spawners.push((number, ticket, bell));
                    model.waiting.push(number);
                }
                match answer {
                    _ if model.phase == Phase::Closed => assert_eq!(answer, Closed),
                    _ if model.has_room(how) => {
                        assert_eq!(answer, model.accept(number, how));
                    }
                    _ if waits => assert!(matches!(answer, Waits(_))),
                    _ => assert_eq!(answer, Full),
                }
            }
            Step::Begin(at) => {
                let Some(number) = pick(&Vec::from_iter(0..bench.jobs.len()), at) else {
                    continue;
                };
                bench.begin(number);
                if model.phase != Phase::Closed && model.deferred.contains(&number) {
                    model.deferred.retain(|other| *other != number);
                    model.pending.push(number);
                }
            }
            Step::Ask(at) => {
                let Some(at) = pick(&Vec::from_iter(0..spawners.len()), at) else { continue };
                let (number, ticket, _) = spawners[at];
                let bell = Arc::new(Bell::default());
                let answer = bench.ask(number, ticket, &bell);
                let granted = model.granted.contains(&number);
                if model.phase == Phase::Closed {
                    assert_eq!(answer, Closed);
                    spawners[at].2 = bell;
                    bench.leave(ticket);
                } else if granted {
                    assert_eq!(answer, model.accept(number, Admit::Limited));
                } else {
                    assert_eq!(answer, Waits(ticket));
                    spawners[at].2 = bell;
                    continue;
                }
                spawners.remove(at);
                model.waiting.retain(|other| *other != number);
                model.granted.retain(|other| *other != number);
            }
            Step::Leave(at) => {
                let Some(at) = pick(&Vec::from_iter(0..spawners.len()), at) else { continue };
                let (number, ticket, _) = spawners.remove(at);
                bench.leave(ticket);
                model.waiting.retain(|other| *other != number);
                model.granted.retain(|other| *other != number);
            }
            Step::Finish(at, outcome) => {
                // Any job, also one that is past it: then nothing happens.
                let Some(number) = pick(&Vec::from_iter(0..bench.jobs.len()), at) else {
                    continue;
                };
                bench.finish(number, outcome);
                if model.active.contains(&number) {
                    model.end(number, outcome);
                }
            }
            Step::Remove(at, outcome) => {
                let Some(number) = pick(&Vec::from_iter(0..bench.jobs.len()), at) else {
                    continue;
                };
                let unstarted = model.pending.contains(&number) || model.deferred.contains(&number);
                assert_eq!(bench.remove(number, outcome), unstarted);
                if unstarted {
                    model.end(number, outcome);
                }
            }
            Step::Announce => {
                bench.queue.announce();
                model.phase = model.phase.max(Phase::Announced);
            }
            Step::Drain => {
                bench.queue.drain();
                model.phase = model.phase.max(Phase::Draining);
            }
            Step::Close => {
                bench.queue.close();
                model.phase = Phase::Closed;
            }
            Step::TakeWaiters(most) if model.phase == Phase::Closed => {
                let taken = bench.queue.take_waiters(most);
                assert_eq!(taken.len(), most.min(model.waiting.len()));
                taken.into_iter().for_each(Waker::wake);
                for number in model.waiting.drain(..most.min(model.waiting.len())) {
                    let spawner = spawners.iter().find(|spawner| spawner.0 == number);
                    assert!(spawner.is_some_and(|(_, _, bell)| granted(bell)), "in turn");
                }
            }
            Step::TakeUnstarted(most) if model.phase == Phase::Closed => {
                let unstarted = model.pending.iter().chain(&model.deferred);
                let expected: Vec<_> = unstarted.copied().take(most).collect();
                assert_eq!(bench.take_unstarted(most), expected);
                expected.iter().for_each(|number| model.end(*number, Outcome::NeverStarted));
            }
            Step::TakeWaiters(_) | Step::TakeUnstarted(_) => continue,
            Step::TakeEnded => {
                let ended = bench.queue.take_ended();
                let id =
                    |(number, outcome): &(usize, Outcome)| (bench.jobs[*number].id(), *outcome);
                let expected: Vec<_> = model.ended.drain(..).map(|ended| id(&ended)).collect();
                let ended: Vec<_> = ended.iter().map(|(job, how)| (job.id(), *how)).collect();
                assert_eq!(ended, expected); // 9
            }
        }
        model.settle();
        let queue = &bench.queue;
        assert_eq!(bench.started, model.started); // 3, 5, 6: when, in which order
        assert!(model.running() <= model.limit); // 1
        assert_eq!(bench.counts(), (model.active.len(), model.pending.len()));
        assert_eq!(queue.deferred_count(), model.deferred.len());
        assert!(queue.pending_count() <= model.pending_limit); // 2
        assert_eq!(queue.waiting_count(), model.waiting.len()); // 4
        assert_eq!((queue.phase(), queue.is_idle()), (model.phase, model.idle())); // 8
        assert_eq!(queue.totals().accepted, model.accepted);
        let ended: u64 = queue.totals().outcomes.iter().sum();
        assert_eq!(model.accepted, queue.len() as u64 + ended); // 7
        for outcome in [Outcome::Completed, Outcome::TimedOut, Outcome::NeverStarted] {
            let expected = model.outcomes.iter().filter(|other| **other == outcome).count();
            assert_eq!(queue.totals().of(outcome), expected as u64);
        }
        if model.phase != Phase::Closed {
            for (number, _, bell) in &spawners {
                assert_eq!(granted(bell), model.granted.contains(number), "woken once granted");
                assert!(bell.rings() <= 1);
            }
        }
        for (number, job) in bench.jobs.iter().enumerate() {
            let expected = match () {
                () if model.active.contains(&number) => JobState::Active,
                () if model.pending.contains(&number) => JobState::Pending,
                () if model.deferred.contains(&number) => JobState::Deferred,
                // Not taken in.
                () if job.slot() == usize::MAX => JobState::Deferred,
                () => JobState::Finished,
            };
            assert_eq!(job.state(), expected, "job {number}");
            since.resize(bench.jobs.len(), (JobState::Deferred, bench.now));
            if since[number].0 != expected {
                since[number] = (expected, bench.now);
            }
        }
        let oldest = |jobs: &[usize]| jobs.iter().map(|number| since[*number].1).min();
        assert_eq!(queue.oldest(), (oldest(&model.pending), oldest(&model.active)));
    }
}

#[test]
fn every_invariant_holds_after_every_step() {
    let limits = (
        prop_oneof![4 => (1..4_usize).prop_map(Some), 1 => Just(None)],
        prop_oneof![1 => Just(Some(0)), 4 => (1..4_usize).prop_map(Some), 1 => Just(None)],
    );
    let history = (limits, prop::collection::vec(step(), 1..80));
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 2_000;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(RandomState::new().hash_one(()));
    }
    let seed = config.rng_seed;
    let checked = TestRunner::new(config).run(&history, |((limit, pending_limit), steps)| {
        check(limit, pending_limit, steps);
        Ok(())
    });
    if let Err(error) = checked {
        panic!("{error}\nto see it again: PROPTEST_RNG_SEED={seed}");
    }
}
