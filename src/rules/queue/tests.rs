use std::{
    cell::Cell,
    collections::BTreeSet,
    env,
    hash::{BuildHasher, RandomState},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};

use super::*;

/// What a job is called: its key, and its unique key with whether it replaces.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Names {
    key: Option<&'static str>,
    unique: Option<(&'static str, bool)>,
}

pub(crate) const NO_NAMES: Names = Names { key: None, unique: None };

pub(crate) fn key(key: &'static str) -> Names {
    Names { key: Some(key), ..NO_NAMES }
}

pub(crate) fn unique(unique: &'static str) -> Names {
    Names { unique: Some((unique, false)), ..NO_NAMES }
}

pub(crate) fn replacing(unique: &'static str) -> Names {
    Names { unique: Some((unique, true)), ..NO_NAMES }
}

/// What the table keeps of a job: what it has been told of itself.
#[derive(Clone)]
pub(crate) struct Job(Rc<Told>);

struct Told {
    id: JobId,
    accepted: Cell<bool>,
    ended: Cell<bool>,
    slot: Cell<Key>,
    has_place: bool,
    key: Option<Arc<str>>,
    unique: Option<Unique>,
}

impl Job {
    pub(crate) fn new(how: Admit, names: Names) -> Self {
        Self(Rc::new(Told {
            id: JobId::next(),
            accepted: Cell::new(false),
            ended: Cell::new(false),
            slot: Cell::new(NONE),
            has_place: how != Admit::Outside,
            key: names.key.map(Arc::from),
            unique: names.unique.map(|(key, replace)| Unique { key: key.into(), replace }),
        }))
    }

    pub(crate) fn slot(&self) -> Key {
        self.0.slot.get()
    }
}

impl Entry for Job {
    fn id(&self) -> JobId {
        self.0.id
    }

    fn key(&self) -> Option<&Arc<str>> {
        self.0.key.as_ref()
    }

    fn unique(&self) -> Option<&Unique> {
        self.0.unique.as_ref()
    }

    fn has_place(&self) -> bool {
        self.0.has_place
    }

    fn accepted(&self, _: Moment) {
        assert!(!self.0.accepted.replace(true), "accepted once");
    }

    fn placed(&self, slot: Key) {
        assert!(self.0.accepted.get() && self.slot() == NONE, "placed once");
        self.0.slot.set(slot);
    }

    fn ended(&self) {
        assert!(self.slot() != NONE && !self.0.ended.replace(true), "ended once");
    }
}

/// The number of a job, and a future that the queue must never drop.
pub(crate) struct Task(usize, bool);

impl Task {
    pub(crate) fn new(number: usize) -> Self {
        Self(number, false)
    }

    pub(crate) fn take(mut self) -> usize {
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
    now: Moment,
    /// Jobs in the order in which they were started.
    started: Vec<usize>,
    /// Jobs in the order in which others took over from them.
    replaced: Vec<usize>,
    idle: bool,
}

use Answer::{Closed, Duplicate, Full, Taken, Waits};

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Taken,
    Waits(Ticket),
    Full,
    Closed,
    /// The number of the job that is there already.
    Duplicate(usize),
}

impl Bench {
    fn new(limit: impl Into<Option<usize>>, pending_limit: impl Into<Option<usize>>) -> Self {
        Self::with_keys(limit, pending_limit, None)
    }

    fn with_keys(
        limit: impl Into<Option<usize>>,
        pending_limit: impl Into<Option<usize>>,
        limit_per_key: impl Into<Option<usize>>,
    ) -> Self {
        Self {
            queue: Queue::new(limit.into(), pending_limit.into(), limit_per_key.into()),
            jobs: Vec::new(),
            now: Moment::from_nanos(0),
            started: Vec::new(),
            replaced: Vec::new(),
            idle: true,
        }
    }

    fn state(&self, number: usize) -> JobState {
        let job = &self.jobs[number];
        self.queue.state(job.slot(), job.id())
    }

    /// Has a runner for every job that starts.
    fn follow(&mut self, effects: Effects<Job, Task>) {
        while let Some(task) = self.queue.take() {
            let number = task.take();
            assert_eq!(self.state(number), JobState::Active);
            self.started.push(number);
        }
        if let Some(more) = effects.more {
            if let Some((entry, work)) = more.replaced {
                assert!(entry.0.ended.get());
                self.replaced.push(work.take());
            }
            more.wake.into_iter().for_each(Waker::wake);
        }
        self.idle = effects.call == Call::Idle;
    }

    fn answer(&mut self, result: Result<Effects<Job, Task>, Refusal>) -> Answer {
        match result {
            Ok(effects) => {
                self.follow(effects);
                Taken
            }
            Err(Refusal::Full) => Full,
            Err(Refusal::Closed) => Closed,
            Err(Refusal::Duplicate(id)) => {
                let first = self.jobs.iter().position(|job| job.id() == id);
                Duplicate(first.expect("a job that was offered"))
            }
        }
    }

    fn offer(&mut self) -> Answer {
        self.offer_as(Admit::Limited, NO_NAMES)
    }

    fn offer_as(&mut self, how: Admit, names: Names) -> Answer {
        let job = Job::new(how, names);
        self.jobs.push(job.clone());
        let number = self.jobs.len() - 1;
        let result = self.queue.admit(how, job, || Task::new(number), self.now);
        self.answer(result)
    }

    /// Offers a job, and joins the line if the queue is full.
    fn offer_or_wait(&mut self, names: Names, bell: &Arc<Bell>) -> Answer {
        match self.offer_as(Admit::Limited, names) {
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
        match self.queue.take_turn(ticket, job, || Task::new(number), self.now) {
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
        let (effects, _, work) = self.queue.finish(job.slot(), job.id(), outcome, self.now);
        assert!(work.is_none(), "a runner has it");
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
        let (jobs, work) = self.queue.take_unstarted(most);
        assert!(jobs.len() == work.len() && jobs.iter().all(|job| job.0.ended.get()));
        work.into_iter().map(Task::take).collect()
    }

    /// Those that never started come first.
    fn take_ended(&mut self) -> Vec<(JobId, Outcome)> {
        let Ended { never_started, others } = self.queue.take_ended();
        let never_started = never_started.iter().flat_map(|page| page.iter());
        never_started
            .map(|job| (job.id(), Outcome::NeverStarted))
            .chain(others.iter().flatten().map(|(job, outcome)| (job.id(), *outcome)))
            .collect()
    }

    fn counts(&self) -> (usize, usize) {
        (self.queue.active_count(), self.queue.pending_count())
    }

    fn offer_all<const N: usize>(&mut self) -> [Answer; N] {
        [(); N].map(|()| self.offer())
    }

    fn offer_named<const N: usize>(&mut self, names: [Names; N]) -> [Answer; N] {
        names.map(|names| self.offer_as(Admit::Limited, names))
    }

    /// A spawner joins the line.
    fn join(&mut self, names: Names) -> (Ticket, Arc<Bell>) {
        let bell = Arc::new(Bell::default());
        match self.offer_or_wait(names, &bell) {
            Waits(ticket) => (ticket, bell),
            answer => panic!("{answer:?}"),
        }
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
    assert_eq!(bench.offer_as(Admit::Outside, NO_NAMES), Taken);
    assert_eq!(bench.started, [0, 2]);
    bench.finish(2, Outcome::Completed);
    assert_eq!(bench.offer(), Full);
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.offer_as(Admit::Outside, NO_NAMES), Taken);
    assert_eq!(bench.offer(), Taken);
}

/// Invariant 2: a deferred job has its place from the start, and needs no other.
#[test]
fn a_deferred_job_is_refused_at_once_or_never() {
    let mut bench = Bench::new(2, 0);
    assert_eq!([(); 3].map(|()| bench.offer_as(Admit::Deferred, NO_NAMES)), [Taken, Taken, Full]);
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
    assert_eq!([(); 3].map(|()| bench.offer_as(Admit::Deferred, NO_NAMES)), [Taken, Taken, Full]);
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
    assert_eq!(bench.state(1), JobState::Active);
    assert_eq!(bench.counts(), (1, 1));
}

/// Invariant 3: what is granted and not used yet holds up nobody's start.
#[test]
fn a_job_starts_at_once_though_spawners_have_not_used_their_places_yet() {
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
fn a_newcomer_does_not_overtake_a_waiting_spawner() {
    let (mut bench, bell) = (Bench::new(1, 1), Arc::new(Bell::default()));
    bench.offer_all::<2>();
    let Waits(ticket) = bench.offer_or_wait(NO_NAMES, &bell) else { panic!("the queue is full") };
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.offer(), Full, "the place that came free is the spawner's");
    assert_eq!(bench.ask(2, ticket, &bell), Taken);
}

/// Invariant 4: a spawner that leaves passes its place on, and one without leaks none.
#[test]
fn a_spawner_that_leaves_leaks_no_place() {
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
fn pending_jobs_start_and_spawners_are_granted_places_in_the_order_they_came() {
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

/// Invariant 6.
#[test]
fn a_closed_queue_admits_grants_and_starts_nothing() {
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

/// Invariant 8: the step may be a spawner's leaving, or the drain itself.
#[test]
fn a_draining_queue_closes_when_its_last_spawner_leaves_or_there_is_none() {
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
    assert_eq!(bench.take_ended().len(), 1);
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
    let expected = [(2, Outcome::Panicked), (3, Outcome::Abandoned), (4, Outcome::Cancelled)];
    let expected = expected.map(|(number, outcome)| (bench.jobs[number].id(), outcome));
    assert_eq!(bench.take_ended(), expected);
    assert!(bench.take_ended().is_empty());
}

/// A queue with runners that come when they are told to.
struct Crew {
    queue: Queue<Job, Task>,
    offered: usize,
    jobs: Vec<Job>,
    called: Vec<Reach>,
    /// The jobs that runners have.
    taken: Vec<usize>,
    /// In the order in which they were taken.
    order: Vec<usize>,
}

impl Crew {
    fn new(limit: impl Into<Option<usize>>) -> Self {
        Self {
            queue: Queue::new(limit.into(), None, None),
            offered: 0,
            jobs: Vec::new(),
            called: Vec::new(),
            taken: Vec::new(),
            order: Vec::new(),
        }
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Nobody | Call::Idle => {}
            Call::One => self.called.push(Reach::Unknown),
            Call::OneInReach => self.called.push(Reach::InReach),
            Call::Pair => self.called.extend([Reach::InReach, Reach::Unknown]),
        }
    }

    fn take(&mut self, task: Task) {
        let number = task.take();
        self.taken.push(number);
        self.order.push(number);
    }

    fn offer(&mut self) -> Call {
        self.offer_as(Admit::Limited)
    }

    fn offer_as(&mut self, how: Admit) -> Call {
        let job = Job::new(how, NO_NAMES);
        let task = Task::new(self.offered);
        let admitted = self.queue.admit(how, job.clone(), || task, Moment::from_nanos(0));
        let Ok(Effects { call, .. }) = admitted else { panic!("there is room") };
        self.offered += 1;
        self.jobs.push(job);
        self.call(call);
        call
    }

    fn offer_many(&mut self, jobs: usize) {
        for _ in 0..jobs {
            self.offer();
        }
    }

    /// A runner comes that was called, and takes a job if there is one.
    fn come(&mut self, at: usize) -> Call {
        let reach = self.called.remove(at);
        self.queue.answer(reach);
        let (task, call) = self.queue.come();
        task.into_iter().for_each(|task| self.take(task));
        self.call(call);
        call
    }

    /// The job of a runner ends.
    fn advance(&mut self, at: usize, may_go_on: bool) -> Next<Task> {
        let job = self.jobs[self.taken.remove(at)].clone();
        let (slot, id, now) = (job.slot(), job.id(), Moment::from_nanos(0));
        let Advance { call, more: _, ended: _, next } =
            self.queue.advance(slot, id, Outcome::Completed, now, may_go_on);
        if let Next::Yield = next {
            self.called.push(Reach::InReach);
        }
        self.call(call);
        next
    }

    /// Invariant 13, and the line.
    fn check(&self) {
        check_line(&self.queue);
        let in_reach = self.called.contains(&Reach::InReach);
        let ready = self.queue.ready_len;
        let is_enough = in_reach || (ready == 1 && !self.called.is_empty());
        assert!(ready == 0 || is_enough, "{ready} jobs are stuck");
    }
}

/// The jobs that run come before those that wait, the ready ones are the last of them, and the links
/// agree.
fn check_line(queue: &Queue<Job, Task>) {
    let line = &queue.line;
    let (mut active, mut pending, mut ready) = (0, 0, 0);
    let (mut first_pending, mut first_ready) = (NONE, NONE);
    let (mut key, mut previous) = (line.list.first, NONE);
    while key != NONE {
        let job = &queue.slots[key];
        assert_eq!(job.previous, previous);
        if job.state() == JobState::Active {
            assert_eq!(pending, 0, "a job that runs is behind one that waits");
            active += 1;
            if job.work.is_some() {
                ready += 1;
                if ready == 1 {
                    first_ready = key;
                }
            }
            assert!(ready == 0 || job.work.is_some(), "a taken job is behind a ready one");
        } else {
            pending += 1;
            if pending == 1 {
                first_pending = key;
            }
        }
        (previous, key) = (key, job.next);
    }
    assert_eq!((line.list.last, line.border), (previous, first_pending));
    assert_eq!((line.active, line.pending, queue.ready_len), (active, pending, ready));
    assert!(ready == 0 || queue.ready == first_ready);
}

/// What every job changes, and the lock before it, which is a word.
#[test]
fn what_every_job_changes_is_in_two_cache_lines() {
    let completed = std::mem::offset_of!(Totals, outcomes) + Outcome::Completed as usize * 8;
    let end = std::mem::offset_of!(Queue<Job, Task>, totals) + completed + 8;
    assert!(8 + end <= 128, "{end}");
}

/// Whatever leaves from between: shielded work comes and goes, jobs that wait are taken out, ready
/// ones end without a runner.
#[test]
fn the_line_stays_in_order_whoever_leaves_it() {
    let step = (0..7_u8, any::<usize>(), any::<bool>());
    let history = (prop::option::of(1..4_usize), prop::collection::vec(step, 1..80));
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let ran = TestRunner::new(config).run(&history, |(limit, steps)| {
        let mut crew = Crew::new(limit);
        crew.queue.set_threads(2);
        for (what, at, may_go_on) in steps {
            let now = Moment::from_nanos(0);
            // Any that has been offered, ended ones too.
            let number = at % crew.jobs.len().max(1);
            let job = crew.jobs.get(number).cloned();
            match (what, job) {
                (0 | 1, _) => crew.offer_many(1),
                (2, _) => {
                    crew.offer_as(Admit::Outside);
                }
                (3, _) if !crew.called.is_empty() => {
                    crew.come(at % crew.called.len());
                }
                (4, _) if !crew.taken.is_empty() => {
                    if let Next::Take(task) = crew.advance(at % crew.taken.len(), may_go_on) {
                        crew.take(task);
                    }
                }
                (5, Some(job)) => {
                    let removed = crew.queue.remove(job.slot(), job.id(), Outcome::Cancelled, now);
                    if let Some((task, effects)) = removed {
                        task.take();
                        crew.call(effects.call);
                    }
                }
                (6, Some(job)) if !crew.taken.contains(&number) => {
                    let (slot, id) = (job.slot(), job.id());
                    let (effects, _, task) = crew.queue.finish(slot, id, Outcome::Abandoned, now);
                    task.map(Task::take);
                    crew.call(effects.call);
                }
                _ => {}
            }
            crew.check();
        }
        crew.queue.close();
        loop {
            let (jobs, tasks) = crew.queue.take_unstarted(2);
            tasks.into_iter().for_each(|task| assert!(task.take() < crew.offered));
            check_line(&crew.queue);
            if jobs.is_empty() {
                return Ok(());
            }
        }
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}

impl Drop for Crew {
    /// The table still owns the work of what no runner has taken.
    fn drop(&mut self) {
        self.queue.close();
        for task in self.queue.take_unstarted(usize::MAX).1 {
            task.take();
        }
        while let Some(task) = self.queue.take() {
            task.take();
        }
    }
}

/// Invariant 13: one job needs no more than a runner, many share some.
#[test]
fn a_runner_is_called_for_one_job_and_a_pair_for_many() {
    let mut crew = Crew::new(None);
    let calls = [(); 4].map(|()| crew.offer());
    assert_eq!(calls, [Call::One, Call::Pair, Call::Nobody, Call::Nobody]);
}

#[test]
fn where_there_is_one_thread_one_runner_is_on_its_way() {
    let mut crew = Crew::new(None);
    crew.queue.set_threads(1);
    let one = Call::OneInReach;
    assert_eq!([(); 3].map(|()| crew.offer()), [one, Call::Nobody, Call::Nobody]);
    assert_eq!(crew.come(0), one, "it may stay with its job");
    assert_eq!(crew.come(0), one);
    assert_eq!(crew.come(0), Call::Nobody);
}

/// Invariant 13: the runner that is left may be stuck with the thread that called it.
#[test]
fn nobody_relies_on_a_runner_that_another_thread_called() {
    let mut crew = Crew::new(None);
    crew.offer();
    crew.come(0);
    crew.offer();
    let Next::Take(task) = crew.advance(0, true) else { panic!("there is another job") };
    crew.take(task);
    assert_eq!(crew.called, [Reach::Unknown]);
    assert_eq!(crew.offer(), Call::One, "by its own thread");
    assert_eq!(crew.offer(), Call::Pair);
}

/// Invariant 13: a runner does not rely on one that only its own thread could take up.
#[test]
fn a_runner_that_comes_has_a_pair_called_while_jobs_are_ready() {
    let mut crew = Crew::new(None);
    crew.offer();
    crew.come(0);
    crew.offer();
    crew.offer();
    assert!(matches!(crew.advance(0, false), Next::Yield));
    while crew.called.len() > 1 {
        // All but the one that has yielded, which was called last.
        crew.come(0);
        crew.check();
    }
    crew.offer_many(2);
    let ready = crew.queue.ready_len;
    assert_eq!((ready, crew.come(0)), (2, Call::Pair));
}

/// Invariant 12.
#[test]
fn jobs_are_taken_in_the_order_they_started() {
    let mut crew = Crew::new(3);
    crew.offer_many(6);
    crew.come(0);
    while let Next::Take(task) = crew.advance(0, true) {
        crew.take(task);
    }
    assert_eq!(crew.order, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_runner_that_goes_on_needs_no_other_to_be_called() {
    let mut crew = Crew::new(1);
    crew.offer_many(4);
    crew.come(0);
    while let Next::Take(task) = crew.advance(0, true) {
        assert!(crew.called.is_empty());
        crew.take(task);
    }
    assert_eq!(crew.order.len(), 4);
}

#[test]
fn a_runner_whose_turn_is_over_comes_again_only_if_there_is_a_job() {
    let mut crew = Crew::new(1);
    crew.offer_many(2);
    crew.come(0);
    assert!(matches!(crew.advance(0, false), Next::Yield));
    assert_eq!(crew.called, [Reach::InReach]);
    assert_eq!(crew.come(0), Call::Nobody);
    assert!(matches!(crew.advance(0, false), Next::End));
    assert!(crew.called.is_empty());
}

/// Invariant 14.
#[test]
fn runners_that_are_not_needed_end_when_their_turn_is_over() {
    let mut crew = Crew::new(None);
    crew.queue.set_threads(2);
    crew.offer_many(10);
    while !crew.called.is_empty() {
        crew.come(0);
    }
    assert_eq!(crew.taken.len(), 10, "each of them with a runner of its own");
    crew.offer_many(40);
    let called = crew.called.len();
    let mut ended = 0;
    for _ in 0..10 {
        ended += usize::from(matches!(crew.advance(0, false), Next::End));
        crew.check();
    }
    let in_reach = crew.called.iter().filter(|reach| **reach == Reach::InReach).count();
    assert_eq!((in_reach, crew.called.len() - called), (3, 10 - ended));
}

/// Invariant 12: its neighbours stay in order.
#[test]
fn a_ready_job_that_ends_without_a_runner_gives_its_work_back() {
    let mut crew = Crew::new(None);
    crew.offer_many(3);
    for number in [1, 0] {
        let job = crew.jobs[number].clone();
        let now = Moment::from_nanos(0);
        let (.., task) = crew.queue.finish(job.slot(), job.id(), Outcome::Abandoned, now);
        assert_eq!(task.map(Task::take), Some(number));
    }
    crew.come(0);
    assert_eq!(crew.order, [2]);
    assert_eq!(crew.queue.active_count(), 1);
}

/// Invariants 12 and 13, whatever runners do; and if those that are called come, all jobs run.
#[test]
fn a_runner_is_on_its_way_while_jobs_are_ready() {
    let step = (0..4_u8, any::<usize>(), any::<bool>());
    let history = (1..4_u32, prop::option::of(1..5_usize), prop::collection::vec(step, 1..80));
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let ran = TestRunner::new(config).run(&history, |(threads, limit, steps)| {
        let mut crew = Crew::new(limit);
        crew.queue.set_threads(threads);
        for (what, at, may_go_on) in steps {
            match what {
                0 | 1 => crew.offer_many(1),
                2 if !crew.called.is_empty() => {
                    crew.come(at % crew.called.len());
                }
                3 if !crew.taken.is_empty() => {
                    if let Next::Take(task) = crew.advance(at % crew.taken.len(), may_go_on) {
                        crew.take(task);
                    }
                }
                _ => {}
            }
            crew.check();
        }
        while !(crew.called.is_empty() && crew.taken.is_empty()) {
            if crew.taken.is_empty() {
                crew.come(0);
            } else if let Next::Take(task) = crew.advance(0, true) {
                crew.take(task);
            }
            crew.check();
        }
        assert!(crew.queue.is_idle());
        assert_eq!(crew.order, Vec::from_iter(0..crew.offered));
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}

/// Invariant 1.
#[test]
fn no_more_than_limit_per_key_jobs_of_one_key_run() {
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
fn without_a_limit_per_key_keys_are_names() {
    let mut bench = Bench::with_keys(2, None, None);
    assert_eq!(bench.offer_named([key("a"), key("a"), key("a"), NO_NAMES]), [Taken; 4]);
    assert_eq!(bench.started, [0, 1]);
    bench.finish(0, Outcome::Completed);
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.started, [0, 1, 2, 3]);
    assert_eq!(bench.queue.lanes.count(), 0);
}

/// Invariant 1: shielded work is outside the limit of its key too.
#[test]
fn shielded_work_neither_takes_nor_gives_a_place_of_its_key() {
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
fn a_job_that_leaves_before_it_ran_lets_the_next_of_its_key_in() {
    let mut bench = Bench::with_keys(1, None, 1);
    bench.offer_named([NO_NAMES, key("a"), key("a"), key("b")]);
    assert!(bench.remove(1, Outcome::Cancelled));
    bench.finish(0, Outcome::Completed);
    assert_eq!(bench.started, [0, 2], "2 has been let in, and came before 3");
    assert!(bench.remove(3, Outcome::Cancelled));
    bench.finish(2, Outcome::Completed);
    assert_eq!(bench.queue.lanes.count(), 0);
}

/// Invariant 3: a grant may hold its key, and gives it up when its spawner leaves.
#[test]
fn a_spawner_that_leaves_lets_the_next_of_its_key_in() {
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

/// Invariant 4: the first in line waits for its key, those behind it do not.
#[test]
fn spawners_of_a_key_at_its_limit_keep_no_others_waiting() {
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

/// Invariant 4: nor is it overtaken by newcomers of its own key.
#[test]
fn a_newcomer_does_not_overtake_a_spawner_of_its_key() {
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
fn of_the_jobs_that_may_start_the_longest_pending_is_first_whatever_its_key() {
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

/// Invariant 10: held back by its key, a job waits, and needs a place to wait in.
#[test]
fn a_job_whose_key_is_at_its_limit_needs_room_to_wait_though_running_places_are_free() {
    let mut bench = Bench::with_keys(9, 2, 1);
    assert_eq!(bench.offer_named([key("a"); 4]), [Taken, Taken, Taken, Full]);
    assert_eq!(bench.offer_as(Admit::Deferred, NO_NAMES), Full);
    assert_eq!(bench.offer_named([key("b"), NO_NAMES]), [Taken; 2]);
    assert_eq!(bench.counts(), (3, 2));

    let mut no_queue = Bench::with_keys(9, 0, 1);
    assert_eq!(no_queue.offer_named([key("a"), key("a"), key("b")]), [Taken, Full, Taken]);
}

/// Invariants 1 and 2: a deferred job is not refused late, nor is its key's limit broken.
#[test]
fn a_deferred_job_with_no_queue_waits_for_its_key_in_the_place_it_has() {
    let mut bench = Bench::with_keys(2, 0, 1);
    assert_eq!(bench.offer_as(Admit::Deferred, key("a")), Taken);
    assert_eq!(bench.offer_as(Admit::Limited, key("a")), Taken);
    bench.begin(0);
    assert_eq!(bench.started, [1]);
    assert_eq!(bench.offer(), Full, "two places, both held");
    bench.finish(1, Outcome::Completed);
    assert_eq!(bench.started, [1, 0]);
}

#[test]
fn what_is_held_back_when_the_queue_closes_never_starts() {
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
    assert_eq!(bench.queue.lanes.count(), 0);
}

/// Invariant 11.
#[test]
fn at_most_one_job_of_a_unique_key_is_there() {
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
fn a_job_replaces_one_that_has_not_started() {
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

/// Invariant 2: what replaces a deferred job may not wait where nothing may.
#[test]
fn a_job_that_would_wait_replaces_none_where_there_is_no_queue() {
    let mut bench = Bench::with_keys(9, 0, 1);
    assert_eq!(bench.offer_as(Admit::Limited, key("a")), Taken);
    assert_eq!(bench.offer_as(Admit::Deferred, unique("u")), Taken);
    assert_eq!(bench.offer_as(Admit::Limited, Names { ..replacing("u") }), Taken);
    assert_eq!(bench.offer_as(Admit::Deferred, unique("v")), Taken);
    let names = Names { key: Some("a"), ..replacing("v") };
    assert_eq!(bench.offer_as(Admit::Limited, names), Full);
    assert_eq!(bench.replaced, [1]);
}

/// Invariant 11: in line, spawners of one unique key are not jobs yet.
#[test]
fn a_spawner_whose_turn_finds_a_duplicate_gives_its_place_on() {
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

/// The work of a step does not grow with the backlog, and nothing is kept of what is over.
#[test]
fn a_hot_key_among_many_cold_ones_neither_starves_them_nor_leaves_anything_behind() {
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
    assert_eq!(bench.queue.lanes.count(), COLD + 1);
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
    assert_eq!((bench.queue.lanes.count(), bench.queue.len()), (0, 0));
}

#[test]
fn paging_lists_every_job() {
    let mut bench = Bench::new(3, None);
    bench.offer_all::<7>();
    bench.finish(1, Outcome::Completed);
    let expected = [0, 2, 3, 4, 5, 6].map(|number: usize| bench.jobs[number].id());
    for most in [2, 3, 6, 9] {
        let mut listed = Vec::new();
        let mut from = Some(0);
        while let Some(key) = from {
            let (page, next) = bench.queue.page(key, most);
            listed.extend(page.iter().map(|(job, _)| job.id()));
            from = next;
        }
        assert_eq!(listed, expected, "{most} at a time");
    }
}

#[test]
fn the_jobs_that_are_left_of_a_long_queue_are_one_page() {
    let mut bench = Bench::new(4, None);
    bench.offer_all::<300>();
    bench.queue.close();
    bench.take_unstarted(usize::MAX);
    bench.finish(1, Outcome::Cancelled);
    let page = |most| {
        let (page, next) = bench.queue.page(0, most);
        let ids = page.iter().map(|(job, state)| (job.id(), *state)).collect::<Vec<_>>();
        (ids, next)
    };
    let left = [0, 2, 3].map(|number: usize| (bench.jobs[number].id(), JobState::Active));
    assert_eq!(page(3), (left.to_vec(), None));
    assert_eq!(page(2), (left[..1].to_vec(), Some(2)), "not more than asked for");
}

// All invariants, over random histories, against a model that knows no better than to look
// through lists again and again until nothing more can happen.

#[derive(Clone, Debug)]
enum Step {
    Offer(Names),
    OfferOrWait(Names),
    OfferDeferred(Names),
    OfferOutside(Names),
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

fn names() -> impl Strategy<Value = Names> {
    let keys = prop::sample::select(vec!["a", "b", "c"]);
    let uniques = (prop::sample::select(vec!["one", "two"]), any::<bool>());
    (prop::option::weighted(0.7, keys), prop::option::weighted(0.2, uniques))
        .prop_map(|(key, unique)| Names { key, unique })
}

fn step() -> impl Strategy<Value = Step> {
    let any = any::<u8>().prop_map(usize::from);
    prop_oneof![
        8 => names().prop_map(Step::Offer),
        10 => names().prop_map(Step::OfferOrWait),
        4 => names().prop_map(Step::OfferDeferred),
        2 => names().prop_map(Step::OfferOutside),
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
    limit_per_key: usize,
    phase: Phase,
    names: Vec<Names>,
    deferred: Vec<usize>,
    pending: Vec<usize>,
    active: Vec<usize>,
    outside: Vec<usize>,
    /// Spawners, by the number of their job, in the order they came.
    waiting: Vec<usize>,
    granted: Vec<usize>,
    /// The pending jobs and granted spawners that count against the limit of their key.
    let_in: Vec<usize>,
    started: Vec<usize>,
    replaced: Vec<usize>,
    accepted: u64,
    outcomes: Vec<Outcome>,
    ended: Vec<(usize, Outcome)>,
}

impl Model {
    fn running(&self) -> Vec<usize> {
        let inside = |number: &&usize| !self.outside.contains(number);
        self.active.iter().filter(inside).copied().collect()
    }

    fn to_wait(&self) -> usize {
        self.pending.len() + self.deferred.len() + self.granted.len()
    }

    fn free(&self) -> bool {
        let held = self.running().len() + self.to_wait();
        self.limit.checked_add(self.pending_limit).is_none_or(|places| held < places)
    }

    fn may_wait(&self) -> bool {
        self.to_wait() < self.pending_limit // 10
    }

    fn of_key(&self, key: &str) -> usize {
        let all = self.running().into_iter().chain(self.let_in.iter().copied());
        all.filter(|number| self.names[*number].key == Some(key)).count()
    }

    fn key_is_open(&self, names: Names) -> bool {
        names.key.is_none_or(|key| self.of_key(key) < self.limit_per_key)
    }

    fn has_room(&self, how: Admit, names: Names) -> bool {
        match how {
            Admit::Outside => true,
            Admit::Limited if self.key_is_open(names) => self.free(),
            Admit::Limited => self.may_wait(),
            Admit::Deferred if self.pending_limit == 0 => self.free(),
            Admit::Deferred => self.may_wait(),
        }
    }

    /// The job of the same unique key, and whether it may be replaced.
    fn rival(&self, names: Names) -> Option<(usize, bool)> {
        let (unique, replace) = names.unique?;
        let mut all = self.deferred.iter().chain(&self.pending).chain(&self.active);
        let same =
            |number: &&usize| self.names[**number].unique.is_some_and(|(other, _)| other == unique);
        let rival = *all.find(same)?;
        Some((rival, replace && !self.active.contains(&rival)))
    }

    /// What is said to a job that is offered.
    fn offer(&mut self, number: usize, how: Admit) -> Answer {
        let names = self.names[number];
        let rival = self.rival(names);
        match rival {
            _ if self.phase == Phase::Closed => Closed,
            Some((rival, false)) => Duplicate(rival),
            // It would have to wait, and there is nothing to wait in.
            Some(_)
                if how == Admit::Limited && self.pending_limit == 0 && !self.key_is_open(names) =>
            {
                Full
            }
            None if !self.has_room(how, names) => Full,
            _ => self.accept(number, how),
        }
    }

    fn accept(&mut self, number: usize, how: Admit) -> Answer {
        if let Some((rival, true)) = self.rival(self.names[number]) {
            self.end(rival, Outcome::Cancelled);
            self.replaced.push(rival);
        }
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

    /// A spawner leaves the line, granted or not.
    fn leave(&mut self, number: usize) {
        self.waiting.retain(|other| *other != number);
        self.granted.retain(|other| *other != number);
        if !self.pending.contains(&number) {
            self.let_in.retain(|other| *other != number);
        }
    }

    fn idle(&self) -> bool {
        let spawners = self.waiting.len() + self.granted.len();
        self.deferred.is_empty()
            && self.pending.is_empty()
            && self.active.is_empty()
            && (spawners == 0 || self.phase == Phase::Closed)
    }

    fn end(&mut self, number: usize, outcome: Outcome) {
        self.active.retain(|other| *other != number);
        self.pending.retain(|other| *other != number);
        self.deferred.retain(|other| *other != number);
        self.let_in.retain(|other| *other != number);
        self.outcomes.push(outcome);
        let well = [Outcome::Completed, Outcome::Skipped].contains(&outcome);
        if self.phase != Phase::Open && !well {
            self.ended.push((number, outcome));
        }
    }

    fn settle(&mut self) {
        while self.phase != Phase::Closed && self.settle_one() {}
    }

    /// Does the first thing that can be done, if there is one.
    fn settle_one(&mut self) -> bool {
        let opens = |number: &&usize| self.key_is_open(self.names[**number]);
        let held = self.pending.iter().filter(|number| !self.let_in.contains(number));
        let ready = self.pending.iter().find(|number| self.let_in.contains(number));
        let call = match self.free() {
            true if self.may_wait() => self.waiting.first(),
            true => self.waiting.iter().find(opens),
            false => None,
        };
        if let Some(number) = held.copied().find(|number| opens(&number)) {
            self.let_in.push(number);
        } else if let Some(&number) = ready.filter(|_| self.running().len() < self.limit) {
            self.pending.retain(|other| *other != number);
            self.let_in.retain(|other| *other != number);
            self.active.push(number);
            self.started.push(number);
        } else if let Some(&number) = call {
            if opens(&&number) {
                self.let_in.push(number);
            }
            self.waiting.retain(|other| *other != number);
            self.granted.push(number);
        } else if self.phase == Phase::Draining && self.idle() {
            self.phase = Phase::Closed;
        } else {
            return false;
        }
        true
    }

    /// The keys of which the queue must know something.
    fn lanes(&self) -> BTreeSet<&'static str> {
        let (running, limited) = (self.running(), self.limit_per_key < usize::MAX);
        let all = [&running, &self.pending, &self.let_in, &self.waiting].into_iter().flatten();
        all.filter_map(|number| self.names[*number].key).filter(|_| limited).collect()
    }

    /// In the order in which a closed queue gives them up.
    fn unstarted(&self) -> Vec<usize> {
        [self.pending.clone(), self.deferred.clone()].concat()
    }
}

fn pick<T: Copy>(from: &[T], at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from[at % from.len()])
}

fn check([limit, pending_limit, limit_per_key]: [Option<usize>; 3], steps: Vec<Step>) {
    let mut bench = Bench::with_keys(limit, pending_limit, limit_per_key);
    let mut model = Model {
        limit: limit.unwrap_or(usize::MAX),
        pending_limit: pending_limit.unwrap_or(usize::MAX),
        limit_per_key: limit_per_key.unwrap_or(usize::MAX),
        phase: Phase::Open,
        names: Vec::new(),
        deferred: Vec::new(),
        pending: Vec::new(),
        active: Vec::new(),
        outside: Vec::new(),
        waiting: Vec::new(),
        granted: Vec::new(),
        let_in: Vec::new(),
        started: Vec::new(),
        replaced: Vec::new(),
        accepted: 0,
        outcomes: Vec::new(),
        ended: Vec::new(),
    };
    // Spawners that have joined the line and not left it, and the time of each job's last move.
    let mut spawners: Vec<(usize, Ticket, Arc<Bell>)> = Vec::new();
    let mut since: Vec<(JobState, Moment)> = Vec::new();
    // Jobs that were deferred, and are so no more.
    let mut begun = Vec::new();
    for step in steps {
        bench.now = Moment::from_nanos(bench.now.as_nanos() + 1);
        match step {
            Step::Offer(names)
            | Step::OfferOrWait(names)
            | Step::OfferDeferred(names)
            | Step::OfferOutside(names) => {
                let (number, bell) = (bench.jobs.len(), Arc::new(Bell::default()));
                let how = match step {
                    Step::OfferDeferred(_) => Admit::Deferred,
                    Step::OfferOutside(_) => Admit::Outside,
                    _ => Admit::Limited,
                };
                model.names.push(names);
                let expected = model.offer(number, how);
                if !matches!(step, Step::OfferOrWait(_)) {
                    assert_eq!(bench.offer_as(how, names), expected);
                } else if let Waits(ticket) = bench.offer_or_wait(names, &bell) {
                    assert_eq!(expected, Full);
                    assert!(spawners.iter().all(|(_, earlier, _)| *earlier < ticket));
                    spawners.push((number, ticket, bell));
                    model.waiting.push(number);
                } else {
                    let job = bench.jobs.last().expect("just offered");
                    assert_eq!(expected == Taken, job.slot() != NONE);
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
                    begun.push(number);
                }
            }
            Step::Ask(at) => {
                let Some(at) = pick(&Vec::from_iter(0..spawners.len()), at) else { continue };
                let (number, ticket, _) = spawners[at];
                let bell = Arc::new(Bell::default());
                let answer = bench.ask(number, ticket, &bell);
                let rival = model.rival(model.names[number]);
                match rival {
                    _ if model.phase == Phase::Closed => assert_eq!(answer, Closed),
                    _ if !model.granted.contains(&number) => {
                        assert_eq!(answer, Waits(ticket));
                        spawners[at].2 = bell;
                        continue;
                    }
                    Some((rival, false)) => assert_eq!(answer, Duplicate(rival)),
                    _ => assert_eq!(answer, model.accept(number, Admit::Limited)),
                }
                if answer != Taken {
                    spawners[at].2 = bell;
                    bench.leave(ticket);
                }
                spawners.remove(at);
                model.leave(number);
            }
            Step::Leave(at) => {
                let Some(at) = pick(&Vec::from_iter(0..spawners.len()), at) else { continue };
                let (number, ticket, _) = spawners.remove(at);
                bench.leave(ticket);
                model.leave(number);
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
                let mut expected = model.unstarted();
                expected.truncate(most);
                assert_eq!(bench.take_unstarted(most), expected);
                expected.iter().for_each(|number| model.end(*number, Outcome::NeverStarted));
            }
            Step::TakeWaiters(_) | Step::TakeUnstarted(_) => continue,
            Step::TakeEnded => {
                let id = |(number, outcome): (usize, Outcome)| (bench.jobs[number].id(), outcome);
                let mut expected: Vec<_> = model.ended.drain(..).map(id).collect();
                // Those that never started are kept by themselves.
                expected.sort_by_key(|(_, outcome)| *outcome != Outcome::NeverStarted);
                assert_eq!(bench.take_ended(), expected); // 9
            }
        }
        model.settle();
        let queue = &bench.queue;
        assert_eq!(bench.started, model.started); // 3, 5, 6: when, in which order
        assert_eq!(bench.replaced, model.replaced); // 11
        assert!(model.running().len() <= model.limit); // 1
        for key in model.lanes() {
            assert!(model.of_key(key) <= model.limit_per_key); // 1
        }
        assert_eq!(queue.lanes.count(), model.lanes().len(), "those of quiet keys are forgotten");
        assert_eq!(bench.counts(), (model.active.len(), model.pending.len()));
        assert_eq!(queue.deferred_count(), model.deferred.len());
        let waits_beside_no_queue =
            |number: &&usize| model.pending_limit == 0 && begun.contains(number);
        let beside = model.pending.iter().filter(waits_beside_no_queue).count();
        assert!(queue.pending_count() <= model.pending_limit.saturating_add(beside)); // 2
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
        for number in 0..bench.jobs.len() {
            let expected = match () {
                () if model.active.contains(&number) => JobState::Active,
                () if model.pending.contains(&number) => JobState::Pending,
                () if model.deferred.contains(&number) => JobState::Deferred,
                // Or not taken in.
                () => JobState::Finished,
            };
            assert_eq!(bench.state(number), expected, "job {number}");
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
        prop_oneof![4 => (1..4_usize).prop_map(Some), 1 => Just(None)],
    );
    let limits = limits
        .prop_map(|(limit, pending_limit, limit_per_key)| [limit, pending_limit, limit_per_key]);
    let history = (limits, prop::collection::vec(step(), 1..80));
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 2_000;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(RandomState::new().hash_one(()));
    }
    let seed = config.rng_seed;
    let checked = TestRunner::new(config).run(&history, |(limits, steps)| {
        check(limits, steps);
        Ok(())
    });
    if let Err(error) = checked {
        panic!("{error}\nto see it again: PROPTEST_RNG_SEED={seed}");
    }
}
