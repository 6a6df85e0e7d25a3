//! The queue as all threads share it: behind a lock, and before that an *inbox*, so that who spawns
//! into a backlog does not wait for the lock, which its runners take for every job.
//!
//! The inbox has a lock of its own, held for as long as it takes to put a job in. What is in it has
//! been accepted, and is as if it were in the queue already: whoever takes the queue's lock finds it
//! there. Only runners leave it where it is while it makes no difference.
//!
//! # Invariants
//!
//! 1. The inbox is opened and emptied only by who holds the queue's lock, and takes the inbox's
//!    second. The queue knows of it whenever it is open, or has jobs; `is_open` is a hint.
//! 2. While it is open a runner in reach has been called and has not come. The last of these leaves
//!    nothing in it: nobody need be called for a job that is put in.
//! 3. While it is open nothing else takes a place, and it has room for no more jobs than there are
//!    places.
//! 4. What is in it came after all that is in the queue, and leaves it in the order in which it came.
//! 5. All that is in it could have started when it came, or all has had to wait since.
//! 6. While the inbox is open the queue is not idle, and so does not close.

use std::mem;

use crate::{
    rules::queue::{Accepted, Admit, Advance, Call, Effects, Entry, Queue, Reach, Refusal},
    rules::state::{JobId, Outcome},
    rules::table::Key,
    util::clock::Moment,
    util::sync::{
        CachePadded, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        lock,
    },
};

/// How many jobs may be in the inbox, so that the step which empties it is bounded.
const ROOM: usize = 64;

pub(crate) struct SharedQueue<R, W> {
    queue: CachePadded<Mutex<Queue<R, W>>>,
    inbox: CachePadded<Inbox<R, W>>,
}

struct Inbox<R, W> {
    /// Whether there may be room: to look takes no lock, and mostly there is none.
    is_open: AtomicBool,
    inside: Mutex<Inside<R, W>>,
}

struct Inside<R, W> {
    room: usize,
    jobs: Vec<Accepted<R, W>>,
}

/// Room in the inbox for one job.
struct Place<'a, R, W>(MutexGuard<'a, Inside<R, W>>);

impl<R, W> Inbox<R, W> {
    fn new() -> Self {
        let inside = Inside { room: 0, jobs: Vec::new() };
        Self { is_open: AtomicBool::new(false), inside: Mutex::new(inside) }
    }

    #[inline(always)]
    fn place(&self) -> Option<Place<'_, R, W>> {
        if !self.is_open.load(Ordering::Relaxed) {
            return None;
        }
        let inside = lock(&self.inside);
        (inside.room > 0).then_some(Place(inside))
    }

    fn open(&self, room: usize) {
        lock(&self.inside).room = room.min(ROOM);
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// Exchanges what is in it for an empty list. If there was anything, and there is `room` for more
    /// than that, it stays open. Whether it is open.
    fn take(&self, jobs: &mut Vec<Accepted<R, W>>, room: usize) -> bool {
        let mut inside = lock(&self.inside);
        mem::swap(&mut inside.jobs, jobs);
        let left = room.saturating_sub(jobs.len()).min(ROOM);
        inside.room = if jobs.is_empty() { 0 } else { left };
        let is_open = inside.room > 0;
        self.is_open.store(is_open, Ordering::Relaxed);
        is_open
    }
}

impl<R, W> Place<'_, R, W> {
    #[inline(always)]
    fn put(mut self, job: Accepted<R, W>) {
        self.0.room -= 1;
        self.0.jobs.push(job);
    }
}

impl<R: Entry, W> SharedQueue<R, W> {
    pub(crate) fn new(queue: Queue<R, W>) -> Self {
        Self { queue: CachePadded(Mutex::new(queue)), inbox: CachePadded(Inbox::new()) }
    }

    /// The queue with all that has been accepted.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Queue<R, W>> {
        let mut queue = lock(&self.queue.0);
        if queue.has_inbox() {
            self.empty(&mut queue, 0); // 3, 6
        }
        queue
    }

    /// [`Queue::admit`]
    #[inline(always)]
    pub(crate) fn admit(
        &self,
        how: Admit,
        entry: R,
        work: impl FnOnce() -> W,
        now: Moment,
    ) -> Result<Effects<R, W>, Refusal> {
        if how == Admit::Limited && entry.unique().is_none() {
            if let Some(place) = self.inbox.0.place() {
                entry.accepted(now);
                place.put(Accepted { entry, work: work(), at: now });
                return Ok(Effects { call: Call::Nobody, more: None });
            }
        }
        let mut queue = self.lock();
        let admitted = queue.admit(how, entry, work, now);
        let room = queue.open_inbox();
        if room > 0 {
            self.inbox.0.open(room);
        }
        admitted
    }

    /// [`Queue::come`]
    pub(crate) fn come(&self, reach: Reach) -> (Option<W>, Call) {
        let mut queue = lock(&self.queue.0);
        queue.answer(reach);
        self.look_into(&mut queue);
        queue.come()
    }

    /// [`Queue::advance`]
    #[inline(always)]
    pub(crate) fn advance(
        &self,
        slot: Key,
        id: JobId,
        outcome: Outcome,
        now: Moment,
        may_go_on: bool,
    ) -> Advance<R, W> {
        let mut queue = lock(&self.queue.0);
        self.look_into(&mut queue);
        queue.advance(slot, id, outcome, now, may_go_on)
    }

    /// A runner empties the inbox if it has to.
    #[inline(always)]
    fn look_into(&self, queue: &mut Queue<R, W>) {
        if queue.needs_inbox() {
            self.empty(queue, queue.room_for_inbox());
        }
    }

    /// Moves what is in the inbox to the queue. There was `room` for that, and may be for more.
    fn empty(&self, queue: &mut Queue<R, W>, room: usize) {
        let mut jobs = queue.spare_list();
        let is_open = self.inbox.0.take(&mut jobs, room);
        queue.take_in(jobs, is_open);
    }
}

#[cfg(test)]
mod tests;

/// All orders of events.
#[cfg(all(test, tower_jobs_loom))]
mod all_orders {
    use std::sync::{Arc, atomic::AtomicU32};

    use super::*;
    use crate::{
        rules::queue::{Next, Phase, Unique},
        util::sync::{beside, in_all_orders},
    };

    /// A job, which is its own work.
    #[derive(Clone)]
    struct Job(Arc<(JobId, AtomicU32)>);

    impl Job {
        fn new() -> Self {
            Self(Arc::new((JobId::next(), AtomicU32::new(Key::MAX))))
        }

        fn slot(&self) -> Key {
            self.0.1.load(Ordering::Relaxed)
        }
    }

    impl Entry for Job {
        fn id(&self) -> JobId {
            self.0.0
        }

        fn has_place(&self) -> bool {
            true
        }

        fn key(&self) -> Option<&Arc<str>> {
            None
        }

        fn unique(&self) -> Option<&Unique> {
            None
        }

        fn accepted(&self, _: Moment) {}

        fn placed(&self, slot: Key) {
            self.0.1.store(slot, Ordering::Relaxed);
        }

        fn ended(&self) {}
    }

    /// A queue, runners that were called, and how many jobs have been run.
    struct Model {
        queue: SharedQueue<Job, Job>,
        called: Mutex<Vec<Reach>>,
        ran: Mutex<usize>,
    }

    const NOW: Moment = Moment::NEVER;

    impl Model {
        /// Two jobs are there, and for them have been called a runner and a pair.
        fn new() -> Arc<Self> {
            let mut queue = Queue::new(None, None, None);
            queue.set_threads(2);
            let called = Mutex::new(Vec::new());
            let model =
                Arc::new(Self { queue: SharedQueue::new(queue), called, ran: Mutex::new(0) });
            assert!(model.spawn() && model.spawn());
            model
        }

        fn call(&self, call: Call) {
            lock(&self.called).extend(match call {
                Call::Nobody | Call::Idle => &[][..],
                Call::One => &[Reach::Unknown],
                Call::OneInReach => &[Reach::InReach],
                Call::Pair => &[Reach::InReach, Reach::Unknown],
            });
        }

        /// Whether it was taken in.
        fn spawn(&self) -> bool {
            let job = Job::new();
            let admitted = self.queue.admit(Admit::Limited, job.clone(), || job, NOW);
            admitted.map(|effects| self.call(effects.call)).is_ok()
        }

        /// A runner comes, if one of that kind was called, and takes a job.
        fn come(&self, reach: Reach) -> Option<Job> {
            let was_called = {
                let mut called = lock(&self.called);
                let at = called.iter().position(|called| *called == reach);
                at.map(|at| called.remove(at))
            };
            let (job, call) = self.queue.come(was_called?);
            self.call(call);
            *lock(&self.ran) += usize::from(job.is_some());
            job
        }

        /// The same, and takes others until there are none.
        fn run(&self, reach: Reach) {
            let mut work = self.come(reach);
            while let Some(job) = work {
                let end = Outcome::Completed;
                let step = self.queue.advance(job.slot(), job.id(), end, NOW, true);
                self.call(step.call);
                work = match step.next {
                    Next::Take(job) => Some(job),
                    Next::Yield | Next::End => None,
                };
                *lock(&self.ran) += usize::from(work.is_some());
            }
        }
    }

    #[test]
    fn runners_in_reach_come_to_all_jobs_though_each_stays_with_its_own() {
        in_all_orders(|| {
            let model = Model::new();
            let spawn = beside(&model, |model| assert!(model.spawn()));
            let come = beside(&model, |model| model.come(Reach::InReach).is_some());
            assert!(model.spawn());
            spawn.join().expect("no panic");
            assert!(come.join().expect("no panic"));
            while model.come(Reach::InReach).is_some() {}
            assert_eq!(*lock(&model.ran), 4);
        });
    }

    #[test]
    fn a_draining_queue_closes_once_and_loses_no_job() {
        in_all_orders(|| {
            let model = Model::new();
            model.queue.lock().drain();
            let spawn =
                beside(&model, |model| [(); 3].into_iter().filter(|()| model.spawn()).count());
            model.run(Reach::Unknown);
            let accepted = 2 + spawn.join().expect("no panic");
            assert_eq!(*lock(&model.ran), accepted);
            // Not by `model.queue.lock()`, which looks into the inbox.
            assert_eq!(lock(&model.queue.queue.0).phase(), Phase::Closed);
        });
    }

    #[test]
    fn a_closing_queue_accounts_for_every_job_that_was_accepted() {
        in_all_orders(|| {
            let model = Model::new();
            let spawn =
                beside(&model, |model| [(); 3].into_iter().filter(|()| model.spawn()).count());
            let come = beside(&model, |model| {
                model.come(Reach::InReach);
            });
            model.queue.lock().close();
            let accepted = 2 + spawn.join().expect("no panic");
            come.join().expect("no panic");
            // Not by `model.queue.lock()`.
            let mut queue = lock(&model.queue.queue.0);
            assert_eq!(queue.totals().accepted, accepted as u64);
            let unstarted = queue.take_unstarted(usize::MAX).1.len();
            let ready = std::iter::from_fn(|| queue.take()).count();
            assert_eq!(*lock(&model.ran) + unstarted + ready, accepted);
        });
    }
}
