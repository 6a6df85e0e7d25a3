//! The end of a response, and what waits for it. A plain type: it knows no jobs, and runs nothing.
//!
//! One word says how the response ended, and whether anything waits for that. Whoever changes it is
//! told what it was before, and these changes have one order, for all threads. So:
//!
//! 1. `over` writes the outcome, once, and nothing takes it back.
//! 2. `wait` sets `AWAITED` and puts its item on the list under one lock, in this order. `over` takes
//!    the list under that lock after its change. So it misses no item whose bit it has found set: it
//!    is there once the lock is free.
//! 3. An item comes back exactly once. Either the change of its `wait` came first: then `over` finds
//!    `AWAITED`, and the item on the list. Or that of `over` did: then `wait` finds the outcome, and
//!    gives the item back at once.
//! 4. Items that have waited come back in the order in which they came, and nothing is locked any
//!    more: what their owners do with them is up to them.

use std::{mem, sync::OnceLock};

use http::StatusCode;

use crate::{
    http::outcome::ResponseOutcome,
    util::sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
        lock,
    },
};

pub(crate) struct ResponseEnd<T> {
    word: AtomicU32,
    /// Few responses have anything that waits for them.
    list: OnceLock<Box<Mutex<List<T>>>>,
}

/// The bits of the word above the status.
mod bit {
    /// How the response ended is known.
    pub(super) const OVER: u32 = 1 << 16;
    /// It had begun, and its status is in the word.
    pub(super) const BEGUN: u32 = 1 << 17;
    pub(super) const COMPLETE: u32 = 1 << 18;
    /// Something is on the list, or was, or would have been had it come earlier.
    pub(super) const AWAITED: u32 = 1 << 19;
}

/// Mostly it is one.
struct List<T> {
    first: Option<T>,
    others: Vec<T>,
}

impl<T> List<T> {
    fn new() -> Self {
        Self { first: None, others: Vec::new() }
    }

    fn push(&mut self, item: T) {
        if self.first.is_none() {
            self.first = Some(item);
        } else {
            self.others.push(item);
        }
    }
}

impl<T> ResponseEnd<T> {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(0), list: OnceLock::new() }
    }

    /// How the response ended, if it has.
    pub(crate) fn outcome(&self) -> Option<ResponseOutcome> {
        outcome(self.word.load(Ordering::Acquire))
    }

    /// Keeps `item` until the response is over. If it is, it comes back, with how it ended.
    pub(crate) fn wait(&self, item: T) -> Option<(T, ResponseOutcome)> {
        let mut list = lock(self.list.get_or_init(|| Box::new(Mutex::new(List::new()))));
        match outcome(self.word.fetch_or(bit::AWAITED, Ordering::AcqRel)) {
            Some(outcome) => Some((item, outcome)),
            None => {
                list.push(item);
                None
            }
        }
    }

    /// The response is over, which it is only once. What has waited comes back.
    pub(crate) fn over(
        &self,
        outcome: ResponseOutcome,
    ) -> Option<impl Iterator<Item = T> + use<T>> {
        let before = self.word.swap(word(outcome), Ordering::AcqRel);
        debug_assert_eq!(before & bit::OVER, 0, "a response ends once");
        if before & bit::AWAITED == 0 {
            return None;
        }
        let list = mem::replace(
            &mut *lock(self.list.get().expect("made before the bit was set")),
            List::new(),
        );
        Some(list.first.into_iter().chain(list.others))
    }
}

fn word(outcome: ResponseOutcome) -> u32 {
    match outcome {
        ResponseOutcome::NoResponse => bit::OVER,
        ResponseOutcome::Aborted(status) => bit::OVER | bit::BEGUN | u32::from(status.as_u16()),
        ResponseOutcome::Complete(status) => {
            bit::OVER | bit::BEGUN | bit::COMPLETE | u32::from(status.as_u16())
        }
    }
}

fn outcome(word: u32) -> Option<ResponseOutcome> {
    if word & bit::OVER == 0 {
        return None;
    }
    if word & bit::BEGUN == 0 {
        return Some(ResponseOutcome::NoResponse);
    }
    #[allow(clippy::cast_possible_truncation, reason = "the status is the lower half")]
    let status = StatusCode::from_u16(word as u16).expect("it was one");
    let is_complete = word & bit::COMPLETE != 0;
    Some(if is_complete {
        ResponseOutcome::Complete(status)
    } else {
        ResponseOutcome::Aborted(status)
    })
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread};

    use super::*;

    const COMPLETE: ResponseOutcome = ResponseOutcome::Complete(StatusCode::OK);

    fn ended<T>(end: &ResponseEnd<T>, outcome: ResponseOutcome) -> Vec<T> {
        end.over(outcome).into_iter().flatten().collect()
    }

    #[test]
    fn an_outcome_is_read_as_it_was_written() {
        for status in 100..1000 {
            let status = StatusCode::from_u16(status).expect("a status");
            for written in [ResponseOutcome::Complete(status), ResponseOutcome::Aborted(status)] {
                assert_eq!(outcome(word(written)), Some(written));
                assert_eq!(outcome(word(written) | bit::AWAITED), Some(written));
            }
        }
        assert_eq!(outcome(word(ResponseOutcome::NoResponse)), Some(ResponseOutcome::NoResponse));
    }

    #[test]
    fn a_response_that_is_awaited_is_not_over() {
        let end = ResponseEnd::new();
        assert_eq!(end.outcome(), None);
        assert_eq!(end.wait(1), None);
        assert_eq!(end.outcome(), None);
    }

    #[test]
    fn what_waits_comes_back_in_order_and_once() {
        let end = ResponseEnd::new();
        for item in 0..4 {
            assert_eq!(end.wait(item), None);
        }
        assert_eq!(ended(&end, COMPLETE), [0, 1, 2, 3]);
        assert_eq!(end.outcome(), Some(COMPLETE));
        assert!(end.list.get().is_some_and(|list| lock(list).first.is_none()));
    }

    #[test]
    fn what_comes_too_late_to_wait_comes_back_at_once() {
        let end = ResponseEnd::new();
        assert!(end.over(ResponseOutcome::NoResponse).is_none());
        assert_eq!(end.wait(1), Some((1, ResponseOutcome::NoResponse)));
        assert_eq!(end.wait(2), Some((2, ResponseOutcome::NoResponse)));
        assert_eq!(end.outcome(), Some(ResponseOutcome::NoResponse));
    }

    #[test]
    fn nothing_is_locked_while_items_come_back() {
        let end = ResponseEnd::new();
        assert_eq!(end.wait(1), None);
        for item in end.over(COMPLETE).expect("it is awaited") {
            assert_eq!(end.wait(item + 1), Some((item + 1, COMPLETE)));
        }
    }

    #[test]
    fn an_item_that_races_with_the_end_comes_back_once() {
        const RACES: usize = if cfg!(miri) { 50 } else { 20_000 };
        let endings: Vec<_> = (0..RACES).map(|_| ResponseEnd::new()).collect();
        let arrived = AtomicUsize::new(0);
        // Both go on as soon as both are there.
        let meet = |race: usize| {
            arrived.fetch_add(1, Ordering::AcqRel);
            while arrived.load(Ordering::Acquire) < 2 * (race + 1) {
                thread::yield_now();
            }
        };
        let end = || -> Vec<usize> {
            let ends = endings.iter().enumerate().map(|(race, end)| {
                meet(race);
                ended(end, COMPLETE).len()
            });
            ends.collect()
        };
        let wait = || -> Vec<usize> {
            let waits = endings.iter().enumerate().map(|(race, end)| {
                meet(race);
                (0..2).filter_map(|item| end.wait(item)).count()
            });
            waits.collect()
        };
        let (ended, waited) = thread::scope(|scope| {
            let ended = scope.spawn(end);
            let waited = wait();
            (ended.join().expect("no panic"), waited)
        });
        for (from_end, from_wait) in ended.into_iter().zip(waited) {
            assert_eq!(from_end + from_wait, 2);
        }
    }
}

/// All orders of events.
#[cfg(all(test, tower_jobs_loom))]
mod all_orders {
    use std::sync::Arc;

    use super::*;
    use crate::util::sync::{beside, in_all_orders};

    #[test]
    fn an_item_that_races_with_the_end_comes_back_once() {
        in_all_orders(|| {
            const COMPLETE: ResponseOutcome = ResponseOutcome::Complete(StatusCode::OK);
            let end = Arc::new(ResponseEnd::new());
            let waits = [1, 2].map(|item| beside(&end, move |end| end.wait(item)));
            let mut back: Vec<_> = end.over(COMPLETE).into_iter().flatten().collect();
            for wait in waits {
                let at_once = wait.join().expect("no panic");
                back.extend(at_once.map(|(item, outcome)| {
                    assert_eq!(outcome, COMPLETE);
                    item
                }));
            }
            back.sort_unstable();
            assert_eq!(back, [1, 2]);
        });
    }
}
