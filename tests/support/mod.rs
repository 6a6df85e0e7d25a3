//! Helpers of more than one test file.
#![allow(dead_code, reason = "no binary uses all of them")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    future::{Future, pending, poll_fn},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use tokio::{runtime::Handle, sync::mpsc, task::yield_now};
use tower_jobs::{JobFailure, JobInfo, Scheduler, SchedulerBuilder, Stats};

pub(crate) mod http;
pub(crate) mod logs;
pub(crate) mod mail;
pub(crate) mod oneshot;
pub(crate) mod process;
pub(crate) mod slow_clients;
pub(crate) mod wire;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The real time after which a test fails. Only a future that hangs takes as long.
pub(crate) const PLENTY: Duration = Duration::from_secs(60);

// Waiting.

/// The output of `future`, or a failed test after [`PLENTY`].
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PLENTY, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {PLENTY:?} in vain for {what}"),
    }
}

/// Lets every task of a current-thread runtime do what it can.
pub(crate) async fn turn() {
    for _ in 0..10 {
        yield_now().await;
    }
}

/// Lets the tasks go first that are ready. Unlike `yield_now`, it does not wait until the runtime
/// has looked for I/O.
pub(crate) async fn give_way_once() {
    let mut first = true;
    poll_fn(|cx| {
        cx.waker().wake_by_ref();
        if mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future in this thread, outside any runtime.
#[track_caller]
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    assert!(Handle::try_current().is_err(), "this thread has a runtime");
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut waits = 0;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park_timeout(PLENTY / 4);
        waits += 1;
        assert!(waits < 100_000, "woken without end, or never");
    }
}

// Schedulers and their accounts.

pub(crate) fn limited(limit: usize, pending_limit: usize) -> Scheduler {
    Scheduler::builder().limit(limit).pending_limit(pending_limit).build()
}

pub(crate) type Failures = mpsc::UnboundedReceiver<JobFailure>;

/// A scheduler, and the failures that its `on_failure` is called with.
pub(crate) fn watched(builder: SchedulerBuilder) -> (Scheduler, Failures) {
    let (sender, failures) = mpsc::unbounded_channel();
    (builder.on_failure(move |failure| drop(sender.send(failure))).build(), failures)
}

/// The failures so far, as text.
pub(crate) fn all(failures: &mut Failures) -> Vec<String> {
    received(failures).iter().map(JobFailure::to_string).collect()
}

/// The messages so far.
pub(crate) fn received<T>(messages: &mut mpsc::UnboundedReceiver<T>) -> Vec<T> {
    std::iter::from_fn(|| messages.try_recv().ok()).collect()
}

/// The number of a job that is named by it.
pub(crate) fn number(name: &str) -> usize {
    name.parse().expect("a number")
}

pub(crate) fn names(jobs: &[JobInfo]) -> Vec<&str> {
    jobs.iter().map(|job| &*job.name).collect()
}

/// The accounting law: every accepted job is in exactly one of the counts.
#[track_caller]
pub(crate) fn assert_adds_up(stats: &Stats) {
    let live = stats.deferred + stats.pending + stats.active;
    let well = stats.completed + stats.skipped;
    let cut_short = stats.cancelled + stats.never_started + stats.abandoned;
    let failed = stats.failed + stats.panicked + stats.timed_out;
    assert_eq!(stats.accepted, live + well + cut_short + failed, "{stats:?}");
}

// Panics and drops.

/// The text of the panic of `code`.
#[track_caller]
pub(crate) fn panic_text<T>(code: impl FnOnce() -> T) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(code()))) else {
        panic!("no panic");
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().expect("a text")).to_owned(),
    }
}

/// Runs its code when it is dropped.
pub(crate) struct OnDrop<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Panics with "boom" when it is dropped.
pub(crate) struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("boom");
    }
}

/// A job that holds this, and never ends by itself.
pub(crate) async fn holding(held: impl Sized) {
    pending::<()>().await;
    drop(held);
}

/// Counts the drops of the values of `one`.
#[derive(Clone, Default)]
pub(crate) struct Drops(Arc<AtomicUsize>);

impl Drops {
    pub(crate) fn one(&self) -> Dropped {
        Dropped(self.0.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

pub(crate) struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

// Numbers.

/// SplitMix64: the same numbers for the same seed.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).expect("an index")]
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn ms(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1);
            items.swap(last, usize::try_from(other).expect("an index"));
        }
    }
}
