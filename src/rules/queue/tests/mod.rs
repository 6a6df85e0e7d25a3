//! Tests of the queue: a bench that drives it, and one file for each subject.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
};

use super::{steer::Reserve, *};
use crate::rules::{ledger::Ended, state::JobId, step::UniqueKey};

mod admission;
mod closing;
mod dispatch;
mod keys;
mod oracle;
mod paging;
mod unique;

/// A job's concurrency key, and its unique key with whether it replaces.
#[derive(Clone, Copy, Debug, Default)]
struct Names {
    key: Option<&'static str>,
    unique: Option<(&'static str, bool)>,
}

const NO_NAMES: Names = Names { key: None, unique: None };

fn key(key: &'static str) -> Names {
    Names { key: Some(key), ..NO_NAMES }
}

fn unique(unique: &'static str) -> Names {
    Names { unique: Some((unique, false)), ..NO_NAMES }
}

fn replacing(unique: &'static str) -> Names {
    Names { unique: Some((unique, true)), ..NO_NAMES }
}

/// The part of a job in the table. It checks the order of the queue's calls.
#[derive(Clone)]
struct Job(Rc<Seen>);

struct Seen {
    id: JobId,
    accepted: Cell<bool>,
    ended: Cell<bool>,
    row: Cell<RowIndex>,
    needs_permit: bool,
    key: Option<Arc<str>>,
    unique: Option<UniqueKey>,
}

impl Job {
    fn new(how: Admit, names: Names) -> Self {
        Self(Rc::new(Seen {
            id: JobId::next(),
            accepted: Cell::new(false),
            ended: Cell::new(false),
            row: Cell::new(NONE),
            needs_permit: how != Admit::Outside,
            key: names.key.map(Arc::from),
            unique: names.unique.map(|(key, replace)| UniqueKey { key: key.into(), replace }),
        }))
    }

    fn row(&self) -> RowIndex {
        self.0.row.get()
    }

    fn place(&self) -> JobKey {
        JobKey { row: self.row(), id: self.0.id }
    }
}

impl JobMeta for Job {
    fn id(&self) -> JobId {
        self.0.id
    }

    fn key(&self) -> Option<&Arc<str>> {
        self.0.key.as_ref()
    }

    fn unique(&self) -> Option<&UniqueKey> {
        self.0.unique.as_ref()
    }

    fn needs_permit(&self) -> bool {
        self.0.needs_permit
    }

    fn accepted(&self, _: Moment) {
        assert!(!self.0.accepted.replace(true), "accepted once");
    }

    fn undeferred(&self, _: Moment) {
        assert!(self.0.accepted.get() && !self.0.ended.get(), "while it is deferred");
    }

    fn placed(&self, row: RowIndex) {
        assert!(self.0.accepted.get() && self.row() == NONE, "placed once");
        self.0.row.set(row);
    }

    fn ended(&self) {
        assert!(self.row() != NONE && !self.0.ended.replace(true), "ended once");
    }
}

/// The number of a job, as work that the queue must never drop.
struct Task(usize, bool);

impl Task {
    fn new(number: usize) -> Self {
        Self(number, false)
    }

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

impl std::task::Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A queue, and all jobs that were ever offered to it.
struct Bench {
    queue: Queue<Job, Task>,
    jobs: Vec<Job>,
    now: Moment,
    /// Jobs in the order in which they were started.
    started: Vec<usize>,
    /// Jobs in the order in which they were replaced.
    replaced: Vec<usize>,
    idle: bool,
}

use Answer::{Closed, DeferredFull, Duplicate, Full, Taken, Waits};

/// The answer to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Taken,
    Waits(Ticket),
    Full,
    DeferredFull,
    Closed,
    /// The number of the job that has the unique key.
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
        Self::with_all([limit.into(), pending_limit.into(), None, limit_per_key.into()])
    }

    fn with_deferred_limit(limit: usize, pending_limit: usize, deferred_limit: usize) -> Self {
        Self::with_all([Some(limit), Some(pending_limit), Some(deferred_limit), None])
    }

    /// With `limit`, `pending_limit`, `deferred_limit` and `limit_per_key`.
    fn with_all(limits: [Option<usize>; 4]) -> Self {
        let [limit, pending_limit, deferred_limit, limit_per_key] = limits;
        Self {
            queue: Queue::new(limit, pending_limit, deferred_limit, limit_per_key),
            jobs: Vec::new(),
            now: Moment::from_nanos(0),
            started: Vec::new(),
            replaced: Vec::new(),
            idle: true,
        }
    }

    fn state(&self, number: usize) -> JobState {
        let job = &self.jobs[number];
        self.queue.state(job.place())
    }

    /// Applies the effects, with a runner for each job that starts.
    fn apply(&mut self, effects: Effects<Job, Task>) {
        while let Some(task) = self.queue.pop_ready() {
            let number = task.take();
            assert_eq!(self.state(number), JobState::Active);
            self.started.push(number);
        }
        if let Some(rare) = effects.rare {
            if let Some((meta, work)) = rare.replaced {
                assert!(meta.0.ended.get());
                self.replaced.push(work.take());
            }
            rare.wakers.into_iter().for_each(Waker::wake);
            if rare.is_unfinished {
                let effects = self.queue.go_on(self.now);
                return self.apply(effects);
            }
        }
        self.idle = effects.wake == Wake::IdleWaiters;
    }

    fn answer(&mut self, result: Result<Effects<Job, Task>, Refusal>) -> Answer {
        match result {
            Ok(effects) => {
                self.apply(effects);
                Taken
            }
            Err(Refusal::Full) => Full,
            Err(Refusal::DeferredFull) => DeferredFull,
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

    /// Offers a job. Joins the line if the queue is full.
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
        match self.queue.admit_granted(ticket, job, || Task::new(number), self.now) {
            Some(result) => self.answer(result),
            None => {
                let replaced = self.queue.replace_waker(ticket, bell.clone().into());
                assert!(replaced.is_some(), "a spawner that waits has left its waker");
                Waits(ticket)
            }
        }
    }

    /// Offers a job with a held permit.
    fn use_permit(&mut self, names: Names) -> Answer {
        let job = Job::new(Admit::Limited, names);
        self.jobs.push(job.clone());
        let number = self.jobs.len() - 1;
        let result = self.queue.admit_reserved(job, || Task::new(number), self.now);
        self.answer(result)
    }

    /// Ends all pending jobs.
    fn clear(&mut self) -> Vec<usize> {
        let by = self.queue.last_turn();
        let (jobs, work) = self.queue.clear_pending(by, usize::MAX);
        assert!(jobs.iter().all(|job| job.0.ended.get()));
        let effects = self.queue.go_on(self.now);
        self.apply(effects);
        work.into_iter().map(Task::take).collect()
    }

    fn begin(&mut self, number: usize) {
        let job = self.jobs[number].clone();
        let effects = self.queue.undefer(job.place(), self.now);
        self.apply(effects);
    }

    fn leave(&mut self, ticket: Ticket) {
        let (effects, _waker) = self.queue.cancel_wait(ticket, self.now);
        self.apply(effects);
    }

    fn finish(&mut self, number: usize, outcome: Outcome) {
        let job = self.jobs[number].clone();
        let (effects, _, work) = self.queue.finish(job.place(), outcome, self.now);
        assert!(work.is_none(), "a runner has it");
        self.apply(effects);
    }

    fn remove(&mut self, number: usize, outcome: Outcome) -> bool {
        let job = self.jobs[number].clone();
        let removed = self.queue.remove(job.place(), outcome, self.now);
        removed.is_some_and(|(work, effects)| {
            assert_eq!(work.take(), number);
            self.apply(effects);
            true
        })
    }

    fn take_unstarted(&mut self, most: usize) -> Vec<usize> {
        let (jobs, work) = self.queue.drain_unstarted(most);
        assert!(jobs.len() == work.len() && jobs.iter().all(|job| job.0.ended.get()));
        work.into_iter().map(Task::take).collect()
    }

    /// The jobs that never started come first.
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
    /// Takes back the work that is still in the table.
    fn drop(&mut self) {
        self.queue.close();
        self.take_unstarted(usize::MAX);
    }
}

fn granted(bell: &Arc<Bell>) -> bool {
    bell.rings() > 0
}
