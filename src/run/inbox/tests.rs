use std::{cell::Cell, env, task::Waker, thread, time::Duration};

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::{
    rules::keys::Ticket,
    rules::queue::{
        Next, Phase,
        tests::{Job, NO_NAMES, Names, Task, key, replacing, unique},
    },
    rules::state::JobState,
};

/// A queue with runners that come when they are told to.
struct Crew {
    queue: SharedQueue<Job, Task>,
    /// Somebody looks after every step, and so there is never anything in the inbox.
    is_watched: bool,
    now: Moment,
    jobs: Vec<Job>,
    called: Vec<Reach>,
    /// The jobs that runners have.
    taken: Vec<usize>,
    /// Spawners that wait for a place, and their jobs.
    waiting: Vec<(Ticket, Job)>,
    put: usize,
}

/// What somebody is told by a step, or sees.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Refused(Refusal),
    Call(Call),
    Came(Option<usize>, Call),
    Next(Option<usize>, Call),
    Yields(Call),
    Removed(Option<usize>, Call),
    Unstarted(Vec<usize>),
    Seen {
        states: Vec<JobState>,
        counts: [usize; 4],
        /// Since when the longest pending job has waited, and the longest active one has run.
        oldest: (Option<Moment>, Option<Moment>),
        accepted: u64,
        is_idle: bool,
        phase: Phase,
    },
    Nothing,
}

impl Crew {
    fn new([limit, pending_limit, limit_per_key]: [Option<usize>; 3], threads: u32) -> Self {
        let mut queue = Queue::new(limit, pending_limit, limit_per_key);
        queue.set_threads(threads);
        Self {
            queue: SharedQueue::new(queue),
            is_watched: false,
            now: Moment::from_nanos(0),
            jobs: Vec::new(),
            called: Vec::new(),
            taken: Vec::new(),
            waiting: Vec::new(),
            put: 0,
        }
    }

    fn in_inbox(&self) -> usize {
        lock(&self.queue.inbox.0.inside).jobs.len()
    }

    fn call(&mut self, call: Call) -> Call {
        match call {
            Call::Nobody | Call::Idle => {}
            Call::One => self.called.push(Reach::Unknown),
            Call::OneInReach => self.called.push(Reach::InReach),
            Call::Pair => self.called.extend([Reach::InReach, Reach::Unknown]),
        }
        call
    }

    fn take(&mut self, task: Option<Task>) -> Option<usize> {
        let number = task.map(Task::take);
        self.taken.extend(number);
        number
    }

    fn offer(&mut self) -> Told {
        self.offer_as(Admit::Limited, NO_NAMES)
    }

    fn offer_as(&mut self, how: Admit, names: Names) -> Told {
        let (job, number) = (Job::new(how, names), self.jobs.len());
        self.jobs.push(job.clone());
        let before = self.in_inbox();
        let admitted = self.queue.admit(how, job, || Task::new(number), self.now);
        self.put += usize::from(self.in_inbox() > before);
        self.answer(admitted)
    }

    fn answer(&mut self, admitted: Result<Effects<Job, Task>, Refusal>) -> Told {
        match admitted {
            Err(Refusal::Duplicate(id)) => {
                assert!(self.jobs.iter().any(|job| job.id() == id));
                Told::Nothing
            }
            Err(refusal) => Told::Refused(refusal),
            Ok(effects) => {
                if let Some((_, task)) = effects.more.and_then(|more| more.replaced) {
                    task.take();
                }
                Told::Call(self.call(effects.call))
            }
        }
    }

    /// A spawner that waits if there is no place.
    fn spawn(&mut self) -> Told {
        let (job, number) = (Job::new(Admit::Limited, NO_NAMES), self.jobs.len());
        self.jobs.push(job.clone());
        let mut queue = self.queue.lock();
        match queue.admit(Admit::Limited, job.clone(), || Task::new(number), self.now) {
            Err(Refusal::Full) => {
                let ticket = queue.wait(&job, Waker::noop().clone());
                drop(queue);
                self.waiting.push((ticket, job));
                Told::Refused(Refusal::Full)
            }
            admitted => {
                drop(queue);
                self.answer(admitted)
            }
        }
    }

    /// A spawner asks whether it has a place, or gives up.
    fn ask(&mut self, at: usize, gives_up: bool) -> Told {
        if self.waiting.is_empty() {
            return Told::Nothing;
        }
        let (ticket, job) = self.waiting.remove(at % self.waiting.len());
        let mut queue = self.queue.lock();
        if gives_up {
            let (effects, _waker) = queue.leave(ticket, self.now);
            drop(queue);
            return self.answer(Ok(effects));
        }
        let number = self.jobs.iter().position(|other| other.id() == job.id());
        let number = number.expect("a job that was offered");
        let turn = queue.take_turn(ticket, job.clone(), || Task::new(number), self.now);
        drop(queue);
        let Some(admitted) = turn else {
            self.waiting.push((ticket, job));
            return Told::Nothing;
        };
        self.answer(admitted)
    }

    fn come(&mut self, at: usize) -> Told {
        if self.called.is_empty() {
            return Told::Nothing;
        }
        let reach = self.called.remove(at % self.called.len());
        let (task, call) = self.queue.come(reach);
        Told::Came(self.take(task), self.call(call))
    }

    fn advance(&mut self, at: usize, may_go_on: bool) -> Told {
        if self.taken.is_empty() {
            return Told::Nothing;
        }
        let job = self.jobs[self.taken.remove(at % self.taken.len())].clone();
        let (slot, id) = (job.slot(), job.id());
        let step = self.queue.advance(slot, id, Outcome::Completed, self.now, may_go_on);
        let call = self.call(step.call);
        match step.next {
            Next::Take(task) => Told::Next(self.take(Some(task)), call),
            Next::End => Told::Next(None, call),
            Next::Yield => {
                self.called.push(Reach::InReach);
                Told::Yields(call)
            }
        }
    }

    /// A job is taken out before it starts, or abandoned.
    fn end(&mut self, at: usize) -> Told {
        let number = at % self.jobs.len().max(1);
        let Some(job) = self.jobs.get(number).filter(|_| !self.taken.contains(&number)).cloned()
        else {
            return Told::Nothing;
        };
        let mut queue = self.queue.lock();
        if let Some((task, effects)) =
            queue.remove(job.slot(), job.id(), Outcome::Cancelled, self.now)
        {
            drop(queue);
            return Told::Removed(Some(task.take()), self.call(effects.call));
        }
        let (effects, _, task) = queue.finish(job.slot(), job.id(), Outcome::Abandoned, self.now);
        drop(queue);
        Told::Removed(task.map(Task::take), self.call(effects.call))
    }

    fn take_unstarted(&mut self) -> Told {
        let mut queue = self.queue.lock();
        queue.close();
        let (_, tasks) = queue.take_unstarted(usize::MAX);
        Told::Unstarted(tasks.into_iter().map(Task::take).collect())
    }

    fn look(&self) -> Told {
        let queue = self.queue.lock();
        let counts =
            [queue.len(), queue.active_count(), queue.pending_count(), queue.deferred_count()];
        Told::Seen {
            states: self.jobs.iter().map(|job| queue.state(job.slot(), job.id())).collect(),
            counts,
            oldest: queue.oldest(),
            accepted: queue.totals().accepted,
            is_idle: queue.is_idle(),
            phase: queue.phase(),
        }
    }

    fn step(&mut self, (what, at, flag): Step) -> Told {
        self.now = self.now.plus(Duration::from_nanos(1));
        let told = match what {
            0..=6 => self.offer(),
            7 => self.offer_as(Admit::Limited, key("one")),
            8 => self.offer_as(Admit::Deferred, NO_NAMES),
            9 => self.offer_as(Admit::Limited, if flag { unique("one") } else { replacing("one") }),
            10..=12 => self.come(at),
            13..=18 => self.advance(at, flag),
            19 => self.end(at),
            20 => {
                self.queue.lock().drain();
                Told::Nothing
            }
            21 if at % 8 == 0 => self.take_unstarted(),
            22 => {
                let job = self.jobs.get(at % self.jobs.len().max(1)).cloned();
                let Some(job) = job else { return Told::Nothing };
                let effects = self.queue.lock().begin(job.slot(), job.id(), self.now);
                Told::Call(self.call(effects.call))
            }
            23 => self.look(),
            24 => self.spawn(),
            25 => self.ask(at, flag),
            26 => self.offer_as(Admit::Outside, NO_NAMES),
            _ => Told::Nothing,
        };
        if self.is_watched {
            drop(self.queue.lock());
        }
        told
    }
}

impl Drop for Crew {
    /// The table still owns the work of what no runner has taken.
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        self.take_unstarted();
        while let Some(task) = { self.queue.lock().take() } {
            task.take();
        }
    }
}

type Step = (u8, usize, bool);

#[test]
fn nobody_can_tell_whether_jobs_were_in_the_inbox() {
    let limits = (
        prop_oneof![4 => (1..6_usize).prop_map(Some), 1 => Just(None)],
        prop_oneof![1 => Just(Some(0)), 4 => (1..9_usize).prop_map(Some), 1 => Just(None)],
        prop_oneof![1 => (1..3_usize).prop_map(Some), 4 => Just(None)],
    );
    let limits = limits
        .prop_map(|(limit, pending_limit, limit_per_key)| [limit, pending_limit, limit_per_key]);
    let step = (0..27_u8, any::<usize>(), any::<bool>());
    let history = (limits, 1..4_u32, prop::collection::vec(step, 1..120));
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 2_000;
    }
    let (put, offered) = (Cell::new(0), Cell::new(0));
    let ran = TestRunner::new(config).run(&history, |(limits, threads, steps)| {
        let mut crew = Crew::new(limits, threads);
        let mut watched = Crew::new(limits, threads);
        watched.is_watched = true;
        for step in steps {
            assert_eq!(crew.step(step), watched.step(step));
            assert_eq!((&crew.called, &crew.taken), (&watched.called, &watched.taken));
        }
        // If those that are called come, all jobs run: nobody has to look for that.
        while !(crew.called.is_empty() && crew.taken.is_empty()) {
            for step in [(10, 0, true), (13, 0, true)] {
                assert_eq!(crew.step(step), watched.step(step));
            }
        }
        assert_eq!(crew.in_inbox(), 0);
        assert_eq!(crew.look(), watched.look());
        put.set(put.get() + crew.put);
        offered.set(offered.get() + crew.jobs.len());
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
    assert!(put.get() > offered.get() / 50, "{put:?} of {offered:?}: the inbox was hardly used");
}

fn crew(limit: usize, pending_limit: usize, threads: u32) -> Crew {
    Crew::new([Some(limit), Some(pending_limit), None], threads)
}

#[test]
fn jobs_are_put_in_while_a_runner_in_reach_is_on_its_way() {
    let mut crew = crew(100, 100, 2);
    assert_eq!(crew.offer(), Told::Call(Call::One));
    assert_eq!(crew.offer(), Told::Call(Call::Pair));
    assert_eq!(crew.in_inbox(), 0, "somebody had to be called");
    for _ in 0..3 {
        assert_eq!(crew.offer(), Told::Call(Call::Nobody));
    }
    assert_eq!(crew.in_inbox(), 3);
    // The one that thread called for itself, and another that comes in reach.
    assert_eq!(crew.come(0), Told::Came(Some(0), Call::Nobody));
    assert_eq!(crew.in_inbox(), 3);
    assert_eq!(crew.come(0), Told::Came(Some(1), Call::Pair));
    assert_eq!(crew.in_inbox(), 0);
}

#[test]
fn where_there_is_one_thread_nothing_is_put_in() {
    let mut crew = crew(100, 100, 1);
    for _ in 0..4 {
        crew.offer();
    }
    assert_eq!(crew.put, 0);
}

#[test]
fn no_more_are_put_in_than_there_are_places_for_and_room() {
    let mut few = crew(2, 3, 2);
    let mut many = crew(1000, 1000, 2);
    for _ in 0..2 + 3 {
        assert!(matches!(few.offer(), Told::Call(_)));
    }
    assert_eq!((few.put, few.offer()), (3, Told::Refused(Refusal::Full)));
    for _ in 0..2 + ROOM {
        many.offer();
    }
    assert_eq!(many.in_inbox(), ROOM);
    many.offer();
    assert_eq!((many.in_inbox(), many.put), (0, ROOM), "who finds it full empties it");
}

#[test]
fn an_inbox_that_is_emptied_stays_open_for_the_places_that_are_left() {
    let mut crew = crew(2, 4, 2);
    for _ in 0..5 {
        crew.offer();
    }
    assert_eq!(crew.in_inbox(), 3);
    // Both that may not be in reach.
    while let Some(at) = crew.called.iter().position(|called| *called == Reach::Unknown) {
        crew.come(at);
    }
    crew.advance(0, true);
    let taken_in = (0..9).filter(|_| matches!(crew.offer(), Told::Call(_))).count();
    assert_eq!((taken_in, crew.queue.lock().pending_count()), (2, 4));
}

#[test]
fn a_job_that_was_in_the_inbox_has_run_since_there_was_a_place_for_it() {
    let mut crew = crew(3, 100, 2);
    for _ in 0..4 {
        crew.offer();
    }
    let unknown = crew.called.iter().position(|called| *called == Reach::Unknown);
    crew.come(unknown.expect("one of a pair"));
    crew.now = Moment::from_nanos(10);
    assert_eq!(crew.advance(0, true), Told::Next(Some(1), Call::Nobody));
    crew.now = Moment::from_nanos(20);
    for number in [2, 3] {
        assert_eq!(crew.advance(0, true), Told::Next(Some(number), Call::Nobody));
    }
    assert_eq!(crew.queue.lock().oldest(), (None, Some(Moment::from_nanos(10))));
}

#[test]
fn a_draining_queue_does_not_close_while_there_are_jobs_in_the_inbox() {
    let mut crew = crew(100, 100, 2);
    crew.offer();
    crew.offer();
    crew.queue.lock().drain();
    crew.offer();
    crew.offer();
    assert_eq!(crew.in_inbox(), 1);
    for number in 0..4 {
        if number == 0 {
            assert_eq!(crew.come(0), Told::Came(Some(0), Call::Nobody));
        } else {
            assert_eq!(crew.advance(0, true), Told::Next(Some(number), Call::Nobody));
        }
    }
    assert_eq!(crew.advance(0, true), Told::Next(None, Call::Idle));
    assert_eq!(crew.offer(), Told::Refused(Refusal::Closed));
}

#[test]
fn what_is_in_the_inbox_when_the_queue_closes_is_accounted_for() {
    let mut crew = crew(2, 100, 2);
    for _ in 0..2 + 3 {
        crew.offer();
    }
    assert_eq!((crew.in_inbox(), crew.take_unstarted()), (3, Told::Unstarted(vec![2, 3, 4])));
    assert_eq!(crew.offer(), Told::Refused(Refusal::Closed));
}
