//! Waiting for a condition that another thread makes true and then announces.
//!
//! A waiter registers first, and asks for the condition second. If the condition comes true between the
//! two, the announcement finds the waiter.

use std::{future::Future, pin::pin};

use tokio::sync::Notify;

#[cfg(all(test, tower_jobs_loom))]
use crate::util::sync::atomic::fence;
#[cfg(not(all(test, tower_jobs_loom)))]
use std::sync::atomic::fence;

use crate::util::{
    panics::notify,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Announces to all waiters.
pub(crate) trait Announce {
    /// Registers a waiter. The future resolves at the first announcement after this call, whether it
    /// has been polled before or not.
    fn register(&self) -> impl Future<Output = ()> + Send;

    fn announce(&self);
}

impl Announce for Notify {
    fn register(&self) -> impl Future<Output = ()> + Send {
        self.notified()
    }

    fn announce(&self) {
        notify(self);
    }
}

/// Resolves when `done` returns true. It is called again at each announcement.
pub(crate) async fn wait_until(announced: &impl Announce, done: impl Fn() -> bool) {
    loop {
        let announcement = pin!(announced.register());
        // Pairs with the fence of an announcer that first looks whether there is a waiter.
        fence(Ordering::SeqCst);
        if done() {
            return;
        }
        announcement.await;
    }
}

/// Announces only while a task waits, at the price of one load otherwise.
pub(crate) struct Counted<N> {
    waiting: AtomicUsize,
    announced: N,
}

impl<N: Announce> Counted<N> {
    pub(crate) fn new(announced: N) -> Self {
        Self { waiting: AtomicUsize::new(0), announced }
    }

    /// As [`wait_until`].
    pub(crate) async fn wait_until(&self, done: impl Fn() -> bool) {
        // Counted before `done` is asked, so that a step after that sees the count.
        let _waiter = Waiter::new(&self.waiting);
        wait_until(&self.announced, done).await;
    }

    /// Announces that the condition may be true. Not under a lock, since wakers run.
    pub(crate) fn announce(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.announced.announce();
        }
    }
}

/// Adds one to a count while it lives.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// All interleavings of a waiter and an announcer, with a model of tokio's `Notify`.
#[cfg(all(test, tower_jobs_loom))]
mod all_orders {
    use std::{
        future::poll_fn,
        mem,
        sync::Arc,
        task::{Poll, Waker},
    };

    use loom::future::block_on;

    use super::*;
    use crate::util::sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32},
        beside, in_all_orders, lock,
    };

    /// As `Notify` with `notify_waiters`: a waiter is registered when the future is made.
    #[derive(Default)]
    struct Model(Mutex<(u32, Vec<Waker>)>);

    impl Announce for Model {
        fn register(&self) -> impl Future<Output = ()> + Send {
            let (before, _) = *lock(&self.0);
            poll_fn(move |cx| {
                let mut state = lock(&self.0);
                if state.0 != before {
                    return Poll::Ready(());
                }
                state.1.push(cx.waker().clone());
                Poll::Pending
            })
        }

        fn announce(&self) {
            let mut state = lock(&self.0);
            state.0 += 1;
            let wakers = mem::take(&mut state.1);
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// As tasks that wait for an idle scheduler: the condition is under a lock.
    #[test]
    fn counted_waiter_sees_a_condition_that_comes_meanwhile() {
        in_all_orders(|| {
            let state = (Mutex::new(false), Counted::new(Model::default()));
            let state = Arc::new(state);
            let announcer = beside(&state, |(is_idle, announced)| {
                *lock(is_idle) = true;
                announced.announce();
            });
            block_on(state.1.wait_until(|| *lock(&state.0)));
            announcer.join().expect("no panic");
        });
    }

    /// As tasks that wait for the shutdown.
    #[test]
    fn waiter_sees_a_phase_that_comes_meanwhile() {
        in_all_orders(|| {
            let state = Arc::new((Mutex::new(false), Model::default()));
            let announcer = beside(&state, |(has_begun, announced)| {
                *lock(has_begun) = true;
                announced.announce();
            });
            block_on(wait_until(&state.1, || *lock(&state.0)));
            announcer.join().expect("no panic");
        });
    }

    /// As tasks that wait for the jobs of a group: the condition is a counter without a lock, and the
    /// announcer looks first whether any task has ever waited.
    #[test]
    fn waiter_of_a_group_sees_the_last_end() {
        struct Group {
            jobs: AtomicU32,
            has_waiter: AtomicBool,
            announced: Model,
        }
        in_all_orders(|| {
            let group = Arc::new(Group {
                jobs: AtomicU32::new(1),
                has_waiter: AtomicBool::new(false),
                announced: Model::default(),
            });
            let ends = beside(&group, |group| {
                group.jobs.fetch_sub(1, Ordering::Release);
                fence(Ordering::SeqCst);
                if group.has_waiter.load(Ordering::Acquire) {
                    group.announced.announce();
                }
            });
            group.has_waiter.store(true, Ordering::Release);
            block_on(wait_until(&group.announced, || group.jobs.load(Ordering::Acquire) == 0));
            ends.join().expect("no panic");
        });
    }
}
