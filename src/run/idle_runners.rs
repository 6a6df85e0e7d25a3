//! Runners that have nothing to do and wait to be called: to wake a task takes half of what it
//! takes to make one, and a job that is alone is mostly that.

use std::{array, sync::OnceLock, task::Waker};

use crate::{
    rules::queue::Reach,
    util::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
};

// Loom remembers every value that each of them had.
const SEATS: usize = if cfg!(all(test, tower_jobs_loom)) { 2 } else { 63 };
/// Beside the bits of the seats.
const RETIRED: u64 = 1 << SEATS;

/// # Invariants
///
/// 1. A seat belongs to one runner, for good: there it waits whenever it does.
/// 2. While a runner waits its bit is set, until it is called or leaves: whoever clears it did that.
/// 3. Once retired nobody is called, and all who waited are woken.
pub(crate) struct Spare {
    waiting: AtomicU64,
    /// How many seats belong to somebody.
    given: AtomicUsize,
    seats: [Seat; SEATS],
}

#[derive(Default)]
struct Seat {
    waker: OnceLock<Waker>,
    call: AtomicU8,
}

mod call {
    pub(super) const NONE: u8 = 0;
    pub(super) const IN_REACH: u8 = 1;
    pub(super) const UNKNOWN: u8 = 2;
}

/// What a runner's seat is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeatKey(u8);

impl SeatKey {
    fn bit(self) -> u64 {
        1 << self.0
    }
}

impl Spare {
    pub(crate) fn new() -> Self {
        let seats = array::from_fn(|_| Seat::default());
        Self { waiting: AtomicU64::new(0), given: AtomicUsize::new(0), seats }
    }

    /// A seat for a runner that has none, unless `enough` others wait. Its task has one waker.
    pub(crate) fn seat(&self, waker: &Waker, enough: u32) -> Option<SeatKey> {
        if self.waiting.load(Ordering::Relaxed).count_ones() >= enough {
            return None;
        }
        let next = |given: usize| (given < SEATS).then_some(given + 1);
        let free = self.given.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        let key = SeatKey(u8::try_from(free).ok()?);
        self.seats[free].waker.set(waker.clone()).ok()?;
        Some(key)
    }

    /// The runner waits, unless nobody is to any more. The last it does before it returns.
    pub(crate) fn wait(&self, key: SeatKey) -> bool {
        self.waiting.fetch_or(key.bit(), Ordering::AcqRel) & RETIRED == 0
    }

    /// What a runner that waited is called for, once it is.
    pub(crate) fn called(&self, key: SeatKey) -> Option<Reach> {
        let call = &self.seats[usize::from(key.0)].call;
        let reach = match call.load(Ordering::Acquire) {
            call::NONE => return None,
            call::IN_REACH => Reach::InReach,
            _ => Reach::Unknown,
        };
        call.store(call::NONE, Ordering::Relaxed);
        Some(reach)
    }

    /// A runner that waits goes away. Whether nobody had called it.
    pub(crate) fn leave(&self, key: SeatKey) -> bool {
        self.waiting.fetch_and(!key.bit(), Ordering::AcqRel) & key.bit() != 0
    }

    /// Calls a runner that waits, if there is one.
    pub(crate) fn call(&self, reach: Reach) -> bool {
        let first = |waiting: u64| {
            let may_call = waiting != 0 && waiting & RETIRED == 0;
            may_call.then(|| waiting & (waiting - 1))
        };
        let before = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Relaxed, first);
        let Ok(waiting) = before else { return false };
        let seat = &self.seats[waiting.trailing_zeros() as usize];
        let call = match reach {
            Reach::InReach => call::IN_REACH,
            Reach::Unknown => call::UNKNOWN,
        };
        seat.call.store(call, Ordering::Release);
        seat.wake();
        true
    }

    /// From here on nobody waits.
    pub(crate) fn retire(&self) {
        let mut waiting = self.waiting.fetch_or(RETIRED, Ordering::AcqRel) & !RETIRED;
        while waiting != 0 {
            self.seats[waiting.trailing_zeros() as usize].wake();
            waiting &= waiting - 1;
        }
    }

    /// Whether a runner that nobody has called is not to wait any longer.
    pub(crate) fn is_over(&self, key: SeatKey) -> bool {
        // One that has been called, but cannot see that yet, is about to be woken for it.
        self.waiting.load(Ordering::Acquire) & RETIRED != 0 && self.leave(key)
    }
}

impl Seat {
    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
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

    fn runner(spare: &Spare) -> (SeatKey, Arc<Woken>) {
        let woken = Arc::new(Woken::default());
        let seat = spare.seat(&woken.clone().into(), u32::MAX).expect("a seat");
        (seat, woken)
    }

    fn times(woken: &Woken) -> usize {
        woken.0.load(Ordering::Relaxed)
    }

    #[test]
    fn who_waits_is_called_once_and_told_what_for() {
        let spare = Spare::new();
        assert!(!spare.call(Reach::Unknown), "nobody waits");
        let (first, first_woken) = runner(&spare);
        let (second, second_woken) = runner(&spare);
        assert!(!spare.call(Reach::Unknown), "nobody waits yet");
        assert!(spare.wait(first) && spare.wait(second));
        assert_eq!((spare.called(first), spare.called(second)), (None, None));

        assert!(spare.call(Reach::InReach) && spare.call(Reach::Unknown));
        assert!(!spare.call(Reach::Unknown), "both have been called");
        assert_eq!((times(&first_woken), times(&second_woken)), (1, 1));
        let calls = [first, second].map(|seat| spare.called(seat));
        assert_eq!(calls, [Some(Reach::InReach), Some(Reach::Unknown)]);
        assert_eq!([first, second].map(|seat| spare.called(seat)), [None, None]);

        assert!(spare.wait(second) && spare.call(Reach::InReach));
        assert_eq!(spare.called(second), Some(Reach::InReach));
    }

    #[test]
    fn who_leaves_is_not_called_and_knows_whether_it_was() {
        let spare = Spare::new();
        let (seat, woken) = runner(&spare);
        assert!(spare.wait(seat) && spare.leave(seat));
        assert!(!spare.call(Reach::Unknown));
        assert!(spare.wait(seat) && spare.call(Reach::Unknown));
        assert!(!spare.leave(seat), "it was called");
        assert_eq!(times(&woken), 1);
    }

    #[test]
    fn the_retired_are_woken_and_never_called() {
        let spare = Spare::new();
        let [(waits, woken), (called, called_woken), (runs, not_woken)] =
            [(); 3].map(|()| runner(&spare));
        assert!(spare.wait(called) && spare.call(Reach::InReach));
        assert!(spare.wait(waits) && !spare.is_over(waits));
        spare.retire();
        assert!(!spare.call(Reach::Unknown));
        assert_eq!((times(&woken), times(&called_woken), times(&not_woken)), (1, 1, 0));
        assert!(spare.is_over(waits));
        assert!(!spare.wait(runs), "nobody waits any more");
        assert!(!spare.is_over(called), "it has to come first");
        assert_eq!(spare.called(called), Some(Reach::InReach));
    }

    #[test]
    fn no_more_wait_than_are_enough_and_there_are_so_many_seats() {
        let spare = Spare::new();
        let (seat, woken) = runner(&spare);
        assert!(spare.wait(seat));
        let waker = woken.into();
        assert_eq!(spare.seat(&waker, 1), None);
        assert_eq!(spare.seat(&waker, 0), None);
        assert!((1..SEATS).all(|_| spare.seat(&waker, 2).is_some()));
        assert_eq!(spare.seat(&waker, 2), None);
    }

    #[test]
    fn of_many_calls_at_once_one_finds_the_runner_that_waits() {
        let spare = Spare::new();
        let (seat, woken) = runner(&spare);
        for round in 1..=1000 {
            assert!(spare.wait(seat));
            let called = thread::scope(|threads| {
                let callers = [(); 3].map(|()| threads.spawn(|| spare.call(Reach::Unknown)));
                callers.map(|caller| caller.join().expect("no panic"))
            });
            assert_eq!(called.into_iter().filter(|called| *called).count(), 1);
            assert_eq!((spare.called(seat), times(&woken)), (Some(Reach::Unknown), round));
        }
    }
}

/// All orders of events.
#[cfg(all(test, tower_jobs_loom))]
mod all_orders {
    use std::{future::poll_fn, task::Poll};

    use std::sync::Arc;

    use loom::future::block_on;

    use super::*;
    use crate::util::sync::{Mutex, beside, in_all_orders, lock};

    struct Jobs {
        spare: Spare,
        ready: Mutex<usize>,
    }

    impl Jobs {
        fn new() -> Arc<Self> {
            Arc::new(Self { spare: Spare::new(), ready: Mutex::new(0) })
        }

        fn work_off(&self) {
            *lock(&self.ready) = 0;
        }

        /// Spawns a job, and says whether a runner that waited was called: if not, there is a new one.
        fn spawn(&self) -> bool {
            *lock(&self.ready) += 1;
            let was_called = self.spare.call(Reach::Unknown);
            if !was_called {
                self.work_off();
            }
            was_called
        }

        /// A runner, until it does not wait any longer. How often it was called.
        fn run(&self) -> usize {
            let (mut seat, mut waits, mut calls) = (None, false, 0);
            block_on(poll_fn(|cx| {
                seat = seat.or_else(|| self.spare.seat(cx.waker(), 1));
                let Some(seat) = seat else { return Poll::Ready(()) };
                if waits {
                    match self.spare.called(seat) {
                        Some(reach) => assert_eq!(reach, Reach::Unknown),
                        None if self.spare.is_over(seat) => return Poll::Ready(()),
                        None => return Poll::Pending,
                    }
                    calls += 1;
                    self.work_off();
                }
                waits = self.spare.wait(seat);
                if waits { Poll::Pending } else { Poll::Ready(()) }
            }));
            calls
        }
    }

    #[test]
    fn every_call_is_answered_and_no_job_is_left() {
        in_all_orders(|| {
            let jobs = Jobs::new();
            let run = beside(&jobs, Jobs::run);
            let spawn = beside(&jobs, Jobs::spawn);
            let were_called = [jobs.spawn(), spawn.join().expect("no panic")];
            let calls = were_called.into_iter().filter(|was_called| *was_called).count();
            jobs.spare.retire();
            assert_eq!(run.join().expect("no panic"), calls);
            assert_eq!(*lock(&jobs.ready), 0);
        });
    }

    #[test]
    fn who_is_called_and_retired_at_once_comes_if_the_call_was_first() {
        in_all_orders(|| {
            let jobs = Jobs::new();
            let run = beside(&jobs, Jobs::run);
            let retire = beside(&jobs, |jobs| jobs.spare.retire());
            let calls = usize::from(jobs.spawn());
            retire.join().expect("no panic");
            assert_eq!(run.join().expect("no panic"), calls);
            assert_eq!(*lock(&jobs.ready), 0);
        });
    }
}
