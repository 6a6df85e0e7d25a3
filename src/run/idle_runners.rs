//! Idle runners: tasks that are parked until a job becomes ready. Waking a task costs half of spawning
//! one, and a lone job costs little else.

use std::{array, task::Waker};

use crate::{
    rules::step::Stealable,
    util::sync::{
        Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
        lock,
    },
};

/// Places to park, one bit each. Loom keeps the history of each atomic, so it gets few.
const PLACES: usize = if cfg!(all(test, tower_jobs_loom)) { 2 } else { 63 };
/// The bit beside those of the places.
const SHUTDOWN: u64 = 1 << PLACES;

/// # Invariants
///
/// 1. A place belongs to one runner, from its first parking until it ends.
/// 2. A parked runner's bit is set until the runner is unparked. The thread that clears the bit is the
///    one that unparks it.
/// 3. At most `enough` runners are parked.
/// 4. After the shutdown no runner parks or is requested, and all parked runners are woken.
pub(crate) struct IdleRunners {
    parked: AtomicU64,
    /// The places that belong to a runner.
    taken: AtomicU64,
    places: [Place; PLACES],
}

#[derive(Default)]
struct Place {
    waker: Mutex<Option<Waker>>,
    request: AtomicU8,
}

mod request {
    pub(super) const NONE: u8 = 0;
    pub(super) const STEALABLE: u8 = 1;
    pub(super) const UNKNOWN: u8 = 2;
}

/// The index of a runner's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ParkKey(u8);

impl ParkKey {
    fn bit(self) -> u64 {
        1 << self.0
    }
}

impl IdleRunners {
    pub(crate) fn new() -> Self {
        let places = array::from_fn(|_| Place::default());
        Self { parked: AtomicU64::new(0), taken: AtomicU64::new(0), places }
    }

    /// Gives a runner its place. The waker is that of its task.
    pub(crate) fn join(&self, waker: &Waker) -> Option<ParkKey> {
        let with_first_free = |taken: u64| {
            let free = taken.trailing_ones() as usize;
            (free < PLACES).then(|| taken | 1 << free)
        };
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        let before = self.taken.fetch_update(order.0, order.1, with_first_free).ok()?;
        let key = ParkKey(u8::try_from(before.trailing_ones()).ok()?);
        *lock(&self.place(key).waker) = Some(waker.clone());
        Some(key)
    }

    /// Takes back the place of a runner that ends.
    pub(crate) fn leave(&self, key: ParkKey) {
        self.unpark(key);
        let waker = lock(&self.place(key).waker).take();
        drop(waker);
        self.taken.fetch_and(!key.bit(), Ordering::AcqRel);
    }

    /// Parks the runner, unless `enough` are parked, or after the shutdown. The last act of a poll.
    pub(crate) fn park(&self, key: ParkKey, enough: u32) -> bool {
        let with_key = |parked: u64| {
            let may_park = parked & SHUTDOWN == 0 && parked.count_ones() < enough;
            may_park.then(|| parked | key.bit())
        };
        self.parked.fetch_update(Ordering::AcqRel, Ordering::Relaxed, with_key).is_ok()
    }

    /// Takes the request for which a parked runner was unparked, if it was.
    pub(crate) fn take_request(&self, key: ParkKey) -> Option<Stealable> {
        let request = &self.place(key).request;
        let stealable = match request.load(Ordering::Acquire) {
            request::NONE => return None,
            request::STEALABLE => Stealable::Yes,
            _ => Stealable::Unknown,
        };
        request.store(request::NONE, Ordering::Relaxed);
        Some(stealable)
    }

    /// Clears the bit of a runner that ends. Returns whether it was parked.
    fn unpark(&self, key: ParkKey) -> bool {
        self.parked.fetch_and(!key.bit(), Ordering::AcqRel) & key.bit() != 0
    }

    /// Unparks one runner and requests it. Returns false if none is parked.
    pub(crate) fn unpark_one(&self, stealable: Stealable) -> bool {
        let without_first = |parked: u64| {
            let may_unpark = parked != 0 && parked & SHUTDOWN == 0;
            may_unpark.then(|| parked & (parked - 1))
        };
        let before = self.parked.fetch_update(Ordering::AcqRel, Ordering::Relaxed, without_first);
        let Ok(parked) = before else { return false };
        let place = &self.places[parked.trailing_zeros() as usize];
        let request = match stealable {
            Stealable::Yes => request::STEALABLE,
            Stealable::Unknown => request::UNKNOWN,
        };
        place.request.store(request, Ordering::Release);
        place.wake();
        true
    }

    /// Wakes all parked runners, so that they end. From here on no runner parks.
    pub(crate) fn shutdown(&self) {
        let mut parked = self.parked.fetch_or(SHUTDOWN, Ordering::AcqRel) & !SHUTDOWN;
        while parked != 0 {
            self.places[parked.trailing_zeros() as usize].wake();
            parked &= parked - 1;
        }
    }

    /// Whether a parked runner without a request must end.
    pub(crate) fn is_over(&self, key: ParkKey) -> bool {
        // A requested runner that cannot see its request yet is about to be woken for it.
        self.parked.load(Ordering::Acquire) & SHUTDOWN != 0 && self.unpark(key)
    }

    fn place(&self, key: ParkKey) -> &Place {
        &self.places[usize::from(key.0)]
    }
}

impl Place {
    /// The waker is that of a runner's task, so no user code runs under the lock.
    fn wake(&self) {
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicUsize},
        task::Wake,
        thread,
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn runner(idle: &IdleRunners) -> (ParkKey, Arc<Woken>) {
        let woken = Arc::new(Woken::default());
        let key = idle.join(&woken.clone().into()).expect("a place");
        (key, woken)
    }

    fn times(woken: &Woken) -> usize {
        woken.0.load(Ordering::Relaxed)
    }

    #[test]
    fn parked_runner_is_requested_once() {
        let idle = IdleRunners::new();
        assert!(!idle.unpark_one(Stealable::Unknown), "none is parked");
        let (first, first_woken) = runner(&idle);
        let (second, second_woken) = runner(&idle);
        assert!(!idle.unpark_one(Stealable::Unknown), "none is parked yet");
        assert!(idle.park(first, u32::MAX) && idle.park(second, u32::MAX));
        assert_eq!((idle.take_request(first), idle.take_request(second)), (None, None));

        assert!(idle.unpark_one(Stealable::Yes) && idle.unpark_one(Stealable::Unknown));
        assert!(!idle.unpark_one(Stealable::Unknown), "both are requested");
        assert_eq!((times(&first_woken), times(&second_woken)), (1, 1));
        let calls = [first, second].map(|key| idle.take_request(key));
        assert_eq!(calls, [Some(Stealable::Yes), Some(Stealable::Unknown)]);
        assert_eq!([first, second].map(|key| idle.take_request(key)), [None, None]);

        assert!(idle.park(second, u32::MAX) && idle.unpark_one(Stealable::Yes));
        assert_eq!(idle.take_request(second), Some(Stealable::Yes));
    }

    #[test]
    fn leaving_runner_learns_whether_it_was_requested() {
        let idle = IdleRunners::new();
        let (key, woken) = runner(&idle);
        assert!(idle.park(key, u32::MAX) && idle.unpark(key));
        assert!(!idle.unpark_one(Stealable::Unknown));
        assert!(idle.park(key, u32::MAX) && idle.unpark_one(Stealable::Unknown));
        assert!(!idle.unpark(key), "it was requested");
        assert_eq!(times(&woken), 1);
    }

    #[test]
    fn shutdown_wakes_parked_runners_and_requests_none() {
        let idle = IdleRunners::new();
        let [(waits, woken), (called, called_woken), (runs, not_woken)] =
            [(); 3].map(|()| runner(&idle));
        assert!(idle.park(called, u32::MAX) && idle.unpark_one(Stealable::Yes));
        assert!(idle.park(waits, u32::MAX) && !idle.is_over(waits));
        idle.shutdown();
        assert!(!idle.unpark_one(Stealable::Unknown));
        assert_eq!((times(&woken), times(&called_woken), times(&not_woken)), (1, 1, 0));
        assert!(idle.is_over(waits));
        assert!(!idle.park(runs, u32::MAX), "no runner parks any more");
        assert!(!idle.is_over(called), "it must answer its request first");
        assert_eq!(idle.take_request(called), Some(Stealable::Yes));
    }

    #[test]
    fn no_more_park_than_are_enough() {
        let idle = IdleRunners::new();
        let [(first, _), (second, _)] = [(); 2].map(|()| runner(&idle));
        assert!(idle.park(first, 1) && !idle.park(second, 1));
        assert!(idle.unpark_one(Stealable::Unknown) && idle.park(second, 1));
    }

    #[test]
    fn places_are_limited_and_used_again() {
        let idle = IdleRunners::new();
        let waker = Waker::noop();
        let keys: Vec<ParkKey> = (0..PLACES).map(|_| idle.join(waker).expect("a place")).collect();
        assert_eq!(idle.join(waker), None);
        idle.leave(keys[7]);
        assert_eq!(idle.join(waker), Some(keys[7]));
    }

    #[test]
    fn one_of_many_requests_gets_the_parked_runner() {
        let idle = IdleRunners::new();
        let (key, woken) = runner(&idle);
        for round in 1..=1000 {
            assert!(idle.park(key, u32::MAX));
            let called = thread::scope(|threads| {
                let callers =
                    [(); 3].map(|()| threads.spawn(|| idle.unpark_one(Stealable::Unknown)));
                callers.map(|caller| caller.join().expect("no panic"))
            });
            assert_eq!(called.into_iter().filter(|called| *called).count(), 1);
            assert_eq!((idle.take_request(key), times(&woken)), (Some(Stealable::Unknown), round));
        }
    }
}

/// All interleavings.
#[cfg(all(test, tower_jobs_loom))]
mod all_orders {
    use std::{future::poll_fn, task::Poll};

    use std::sync::Arc;

    use loom::future::block_on;

    use super::*;
    use crate::util::sync::{Mutex, beside, in_all_orders, lock};

    struct Jobs {
        idle: IdleRunners,
        ready: Mutex<usize>,
    }

    impl Jobs {
        fn new() -> Arc<Self> {
            Arc::new(Self { idle: IdleRunners::new(), ready: Mutex::new(0) })
        }

        fn work_off(&self) {
            *lock(&self.ready) = 0;
        }

        /// Spawns a job. Returns whether a parked runner was requested; without one there is a new one.
        fn spawn(&self) -> bool {
            *lock(&self.ready) += 1;
            let was_called = self.idle.unpark_one(Stealable::Unknown);
            if !was_called {
                self.work_off();
            }
            was_called
        }

        /// Runs a runner until it parks no more. Returns how often it was requested.
        fn run(&self) -> usize {
            let (mut key, mut waits, mut calls) = (None, false, 0);
            block_on(poll_fn(|cx| {
                key = key.or_else(|| self.idle.join(cx.waker()));
                let Some(key) = key else { return Poll::Ready(()) };
                if waits {
                    match self.idle.take_request(key) {
                        Some(reach) => assert_eq!(reach, Stealable::Unknown),
                        None if self.idle.is_over(key) => return Poll::Ready(()),
                        None => return Poll::Pending,
                    }
                    calls += 1;
                    self.work_off();
                }
                waits = self.idle.park(key, u32::MAX);
                if waits { Poll::Pending } else { Poll::Ready(()) }
            }));
            calls
        }
    }

    #[test]
    fn each_request_is_answered_and_no_job_is_left() {
        in_all_orders(|| {
            let jobs = Jobs::new();
            let run = beside(&jobs, Jobs::run);
            let spawn = beside(&jobs, Jobs::spawn);
            let were_called = [jobs.spawn(), spawn.join().expect("no panic")];
            let calls = were_called.into_iter().filter(|was_called| *was_called).count();
            jobs.idle.shutdown();
            assert_eq!(run.join().expect("no panic"), calls);
            assert_eq!(*lock(&jobs.ready), 0);
        });
    }

    #[test]
    fn request_before_the_shutdown_is_answered() {
        in_all_orders(|| {
            let jobs = Jobs::new();
            let run = beside(&jobs, Jobs::run);
            let retire = beside(&jobs, |jobs| jobs.idle.shutdown());
            let calls = usize::from(jobs.spawn());
            retire.join().expect("no panic");
            assert_eq!(run.join().expect("no panic"), calls);
            assert_eq!(*lock(&jobs.ready), 0);
        });
    }
}
