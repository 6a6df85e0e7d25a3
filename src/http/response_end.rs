//! The end of one response, and the items that wait for it. This type knows no jobs and runs no code
//! of its callers.
//!
//! One atomic word holds the response's outcome and a bit for waiting items. Each change of the word
//! returns the word's previous value, and all threads see the changes in one order. So:
//!
//! 1. `end` writes the outcome, once. No later change removes it.
//! 2. `wait` sets `HAS_WAITERS` and adds its item to the list under one lock, in this order. `end`
//!    takes the list under the same lock, after its change of the word. If `end` finds the bit set, the
//!    item is therefore in the list by the time `end` gets the lock.
//! 3. Each item is returned exactly once. If the change of `wait` is first, `end` finds `HAS_WAITERS`,
//!    and the item in the list. If the change of `end` is first, `wait` finds the outcome, and returns
//!    the item at once.
//! 4. `end` returns the items in their order, after it has unlocked the list. Their owner may therefore call `wait` while it handles them.

use std::{collections::BTreeSet, mem, sync::OnceLock};

use http::StatusCode;

use crate::{
    http::outcome::ResponseOutcome,
    util::sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
        lock,
    },
};

/// Stores the outcome of one response, and the items that wait for it.
pub(crate) struct ResponseEnd<T> {
    /// The bits of [`bit`], above the status.
    word: AtomicU32,
    /// Allocated by the first `wait`: few responses have waiters.
    waiters: OnceLock<Box<Mutex<Waiters<T>>>>,
}

/// The bits of the word. The bits below `ENDED` hold the status.
mod bit {
    /// The response has ended, and the word holds its outcome.
    pub(super) const ENDED: u32 = 1 << 16;
    /// The response had begun, and the word holds its status.
    pub(super) const HAS_STATUS: u32 = 1 << 17;
    /// The server took the response in full.
    pub(super) const COMPLETE: u32 = 1 << 18;
    /// `wait` has been called. The list may be empty: `end` takes it, and a late `wait` adds nothing.
    pub(super) const HAS_WAITERS: u32 = 1 << 19;
}

/// The items that wait. Most responses with waiters have one.
struct Waiters<T> {
    first: Option<T>,
    others: BTreeSet<T>,
}

impl<T: Ord> Waiters<T> {
    fn new() -> Self {
        Self { first: None, others: BTreeSet::new() }
    }

    fn insert(&mut self, item: T) {
        if self.first.is_none() && self.others.is_empty() {
            self.first = Some(item);
        } else {
            self.others.insert(item);
        }
    }

    fn remove(&mut self, item: &T) {
        if self.first.as_ref() == Some(item) {
            self.first = None;
        } else {
            self.others.remove(item);
        }
    }
}

impl<T: Ord> ResponseEnd<T> {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(0), waiters: OnceLock::new() }
    }

    /// Returns the outcome, if the response has ended.
    pub(crate) fn outcome(&self) -> Option<ResponseOutcome> {
        outcome(self.word.load(Ordering::Acquire))
    }

    /// Keeps `item` until [`end`](Self::end) returns it. If the response has ended, returns `item` at
    /// once, with the outcome.
    pub(crate) fn wait(&self, item: T) -> Option<(T, ResponseOutcome)> {
        let mut waiters = lock(self.waiters.get_or_init(|| Box::new(Mutex::new(Waiters::new()))));
        match outcome(self.word.fetch_or(bit::HAS_WAITERS, Ordering::AcqRel)) {
            Some(outcome) => Some((item, outcome)),
            None => {
                waiters.insert(item);
                None
            }
        }
    }

    /// Forgets an item that waits.
    pub(crate) fn forget(&self, item: &T) {
        if let Some(waiters) = self.waiters.get() {
            lock(waiters).remove(item);
        }
    }

    /// The number of items that wait.
    #[cfg(test)]
    pub(crate) fn waiting_count(&self) -> usize {
        let Some(waiters) = self.waiters.get() else { return 0 };
        let waiters = lock(waiters);
        usize::from(waiters.first.is_some()) + waiters.others.len()
    }

    /// Ends the response, which must not have ended yet. Returns the items that wait.
    pub(crate) fn end(&self, outcome: ResponseOutcome) -> Option<impl Iterator<Item = T> + use<T>> {
        let before = self.word.swap(word(outcome), Ordering::AcqRel);
        debug_assert_eq!(before & bit::ENDED, 0, "a response ends once");
        if before & bit::HAS_WAITERS == 0 {
            return None;
        }
        let waiters = self.waiters.get().expect("`wait` makes the list before it sets the bit");
        let waiters = mem::replace(&mut *lock(waiters), Waiters::new());
        Some(waiters.first.into_iter().chain(waiters.others))
    }
}

/// Encodes an outcome.
fn word(outcome: ResponseOutcome) -> u32 {
    match outcome {
        ResponseOutcome::Unfinished(_) => unreachable!("a response does not end as unfinished"),
        ResponseOutcome::NoResponse => bit::ENDED,
        ResponseOutcome::Aborted(status) => {
            bit::ENDED | bit::HAS_STATUS | u32::from(status.as_u16())
        }
        ResponseOutcome::Complete(status) => {
            bit::ENDED | bit::HAS_STATUS | bit::COMPLETE | u32::from(status.as_u16())
        }
    }
}

/// Decodes the outcome, if the response has ended.
fn outcome(word: u32) -> Option<ResponseOutcome> {
    if word & bit::ENDED == 0 {
        return None;
    }
    if word & bit::HAS_STATUS == 0 {
        return Some(ResponseOutcome::NoResponse);
    }
    #[allow(clippy::cast_possible_truncation, reason = "the lower 16 bits are the status")]
    let status = StatusCode::from_u16(word as u16).expect("the word was made from a status");
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

    fn ended<T: Ord>(end: &ResponseEnd<T>, outcome: ResponseOutcome) -> Vec<T> {
        end.end(outcome).into_iter().flatten().collect()
    }

    #[test]
    fn word_keeps_every_outcome() {
        for status in 100..1000 {
            let status = StatusCode::from_u16(status).expect("a valid status");
            for written in [ResponseOutcome::Complete(status), ResponseOutcome::Aborted(status)] {
                assert_eq!(outcome(word(written)), Some(written));
                assert_eq!(outcome(word(written) | bit::HAS_WAITERS), Some(written));
            }
        }
        assert_eq!(outcome(word(ResponseOutcome::NoResponse)), Some(ResponseOutcome::NoResponse));
    }

    #[test]
    fn wait_does_not_end_the_response() {
        let end = ResponseEnd::new();
        assert_eq!(end.outcome(), None);
        assert_eq!(end.wait(1), None);
        assert_eq!(end.outcome(), None);
    }

    #[test]
    fn end_returns_waiting_items_in_order_once() {
        let end = ResponseEnd::new();
        for item in 0..4 {
            assert_eq!(end.wait(item), None);
        }
        assert_eq!(ended(&end, COMPLETE), [0, 1, 2, 3]);
        assert_eq!(end.outcome(), Some(COMPLETE));
        assert!(end.waiters.get().is_some_and(|waiters| lock(waiters).first.is_none()));
    }

    #[test]
    fn forgotten_items_are_not_returned() {
        let end = ResponseEnd::new();
        for item in 0..4 {
            assert_eq!(end.wait(item), None);
        }
        end.forget(&0);
        end.forget(&2);
        end.forget(&7);
        assert_eq!(end.wait(4), None);
        assert_eq!(ended(&end, COMPLETE), [1, 3, 4]);
        end.forget(&1);
    }

    #[test]
    fn wait_after_the_end_returns_the_item() {
        let end = ResponseEnd::new();
        assert!(end.end(ResponseOutcome::NoResponse).is_none());
        assert_eq!(end.wait(1), Some((1, ResponseOutcome::NoResponse)));
        assert_eq!(end.wait(2), Some((2, ResponseOutcome::NoResponse)));
        assert_eq!(end.outcome(), Some(ResponseOutcome::NoResponse));
    }

    #[test]
    fn list_is_unlocked_while_items_are_handled() {
        let end = ResponseEnd::new();
        assert_eq!(end.wait(1), None);
        for item in end.end(COMPLETE).expect("an item waits") {
            assert_eq!(end.wait(item + 1), Some((item + 1, COMPLETE)));
        }
    }

    #[test]
    fn wait_beside_the_end_returns_the_item_once() {
        const RACES: usize = if cfg!(miri) { 50 } else { 20_000 };
        let endings: Vec<_> = (0..RACES).map(|_| ResponseEnd::new()).collect();
        let arrived = AtomicUsize::new(0);
        // A barrier that spins, so that both threads leave it at nearly the same time.
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
            (ended.join().expect("the thread does not panic"), waited)
        });
        for (from_end, from_wait) in ended.into_iter().zip(waited) {
            assert_eq!(from_end + from_wait, 2);
        }
    }
}

/// The test in all interleavings.
#[cfg(all(test, tower_jobs_loom))]
mod all_orders {
    use std::sync::Arc;

    use super::*;
    use crate::util::sync::{beside, in_all_orders};

    #[test]
    fn wait_beside_the_end_returns_the_item_once() {
        in_all_orders(|| {
            const COMPLETE: ResponseOutcome = ResponseOutcome::Complete(StatusCode::OK);
            let end = Arc::new(ResponseEnd::new());
            let waits = [1, 2].map(|item| beside(&end, move |end| end.wait(item)));
            let mut back: Vec<_> = end.end(COMPLETE).into_iter().flatten().collect();
            for wait in waits {
                let at_once = wait.join().expect("the thread does not panic");
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
