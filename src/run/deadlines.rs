//! Waiting with a deadline, inside a runtime or outside any.
//!
//! One worker at a time drives tokio's timers. While a job blocks that worker, no timer fires. So one
//! plain thread of the process wakes the waiting tasks too. It only wakes: the task compares the deadline
//! with tokio's clock, so a paused clock stays exact.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::{Condvar, Mutex, PoisonError},
    task::{Poll, Waker},
    thread,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::coop,
    time::{self, Instant},
};

use crate::util::{panics::wake, sync::lock_std};

#[expect(clippy::disallowed_types, reason = "the thread sleeps in real time")]
type RealInstant = std::time::Instant;

/// How long the thread waits for another alarm before it ends.
const LINGER: Duration = Duration::from_millis(100);

/// The deadline passed first.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Awaits `future` until `deadline` of tokio's clock; `None` is never.
///
/// A caller outside any runtime has no timer, and needs none.
pub(crate) async fn timeout_at<F: Future>(
    deadline: Option<Instant>,
    future: F,
) -> Result<F::Output, Elapsed> {
    let Some(deadline) = deadline else {
        return Ok(future.await);
    };
    let mut future = pin!(future);
    // The timer makes a paused clock advance.
    let timer = Handle::try_current().is_ok().then(|| time::sleep_until(deadline));
    let mut timer = pin!(timer);
    let mut alarm = Alarm::default();
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Poll::Ready(Err(Elapsed));
        }
        let is_set = alarm.set(left, cx.waker());
        match timer.as_mut().as_pin_mut() {
            // A future that uses up its cooperative budget must not put off the deadline.
            Some(timer) => pin!(coop::unconstrained(timer)).poll(cx).map(|()| Err(Elapsed)),
            // Without a thread, too early is better than never.
            None if !is_set => Poll::Ready(Err(Elapsed)),
            None => Poll::Pending,
        }
    })
    .await
}

/// Awaits `future`, which depends on a plain thread, for up to `timeout` of real time. A paused clock
/// does not advance meanwhile.
pub(crate) async fn real_timeout<F: Future>(
    timeout: Duration,
    future: F,
) -> Result<F::Output, Elapsed> {
    let deadline = RealInstant::now() + timeout;
    let mut future = pin!(future);
    let mut alarm = Alarm::default();
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let left = deadline.saturating_duration_since(RealInstant::now());
        if left.is_zero() || !alarm.set(left, cx.waker()) {
            return Poll::Ready(Err(Elapsed));
        }
        Poll::Pending
    })
    .await
}

type Key = (RealInstant, u64);

/// A request to the thread to wake a task. Cancelled when dropped.
#[derive(Default)]
struct Alarm(Option<(Key, Waker)>);

impl Alarm {
    /// Wakes the task once, after `left`. Returns false if there is no thread to do so.
    fn set(&mut self, left: Duration, waker: &Waker) -> bool {
        let now = RealInstant::now();
        // Beyond the clock's range is never.
        let Some(at) = now.checked_add(left) else { return true };
        if let Some((key, known)) = &self.0 {
            if known.will_wake(waker) && key.0 > now && key.0 <= at {
                return true;
            }
        }
        self.cancel();
        let key = ALARMS.add(at, waker.clone());
        self.0 = key.map(|key| (key, waker.clone()));
        self.0.is_some()
    }

    fn cancel(&mut self) {
        if let Some((key, _)) = self.0.take() {
            ALARMS.remove(key);
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.cancel();
    }
}

static ALARMS: Alarms = Alarms { state: Mutex::new(AlarmState::new()), is_earlier: Condvar::new() };

struct Alarms {
    state: Mutex<AlarmState>,
    /// Notified for an alarm that is earlier than the moment slept to.
    is_earlier: Condvar,
}

struct AlarmState {
    wakers: BTreeMap<Key, Waker>,
    last_id: u64,
    thread: ThreadState,
}

enum ThreadState {
    None,
    Awake,
    SleepsTo(RealInstant),
}

impl AlarmState {
    const fn new() -> Self {
        Self { wakers: BTreeMap::new(), last_id: 0, thread: ThreadState::None }
    }

    fn take_due(&mut self, now: RealInstant) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(entry) = self.wakers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            due.push(entry.remove());
        }
        due
    }
}

impl Alarms {
    /// Adds an alarm; `None` if there is no thread to keep it.
    fn add(&'static self, at: RealInstant, waker: Waker) -> Option<Key> {
        let mut state = lock_std(&self.state);
        state.last_id += 1;
        let key = (at, state.last_id);
        match state.thread {
            ThreadState::Awake => {}
            ThreadState::SleepsTo(earliest) => {
                if at < earliest {
                    self.is_earlier.notify_one();
                }
            }
            ThreadState::None => {
                let thread = thread::Builder::new().name("tower-jobs deadlines".into());
                // The thread is not joined: it ends when it is idle.
                if thread.spawn(|| self.keep()).is_err() {
                    drop(state);
                    drop(waker);
                    return None;
                }
                state.thread = ThreadState::Awake;
            }
        }
        state.wakers.insert(key, waker);
        Some(key)
    }

    fn remove(&self, key: Key) {
        let removed = lock_std(&self.state).wakers.remove(&key);
        // Dropping a waker may be user code, so it is dropped after unlocking.
        drop(removed);
    }

    /// The thread: wakes tasks until no alarm is left.
    fn keep(&self) {
        let mut state = lock_std(&self.state);
        let mut is_idle = false;
        loop {
            let now = RealInstant::now();
            let due = state.take_due(now);
            if !due.is_empty() {
                drop(state);
                due.into_iter().for_each(wake);
                state = lock_std(&self.state);
                continue;
            }
            let next = state.wakers.first_key_value().map(|(key, _)| key.0);
            if next.is_none() && mem::replace(&mut is_idle, true) {
                state.thread = ThreadState::None;
                return;
            }
            is_idle = next.is_none();
            let until = next.unwrap_or(now + LINGER);
            state.thread = ThreadState::SleepsTo(until);
            let slept = self.is_earlier.wait_timeout(state, until - now);
            state = slept.unwrap_or_else(PoisonError::into_inner).0;
            state.thread = ThreadState::Awake;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::mpsc};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// One worker drives the timers and I/O: the one whose job blocks, once a timer has woken it.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a worker is to be blocked")]
    fn deadline_holds_while_the_timers_thread_is_blocked() {
        let mut late = 0;
        for _ in 0..8 {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            let (release, held) = mpsc::channel::<()>();
            runtime.block_on(async {
                let (blocks, has_blocked) = tokio::sync::oneshot::channel();
                drop(tokio::spawn(async move {
                    time::sleep(20 * MS).await;
                    blocks.send(()).expect("awaited");
                    // Released at the test's end, or after 5 s.
                    _ = held.recv_timeout(5000 * MS);
                }));
                has_blocked.await.expect("it blocks");
                let began = RealInstant::now();
                let deadline = Some(Instant::now() + 50 * MS);
                timeout_at(deadline, pending::<()>()).await.expect_err("it never ends");
                late += u32::from(began.elapsed() > 3000 * MS);
            });
            drop(release);
        }
        assert_eq!(late, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn paused_clock_stays_exact() {
        let began = Instant::now();
        for timeout in [1, 500, 86_400_000] {
            let deadline = Instant::now() + timeout * MS;
            timeout_at(Some(deadline), pending::<()>()).await.expect_err("it never ends");
            assert_eq!(Instant::now(), deadline);
        }
        let real = real_timeout(20 * MS, pending::<()>());
        real.await.expect_err("it never ends");
        assert_eq!(began.elapsed(), 86_400_501 * MS);
    }

    #[test]
    fn deadline_needs_no_runtime() {
        let began = RealInstant::now();
        let waits = timeout_at(Some(Instant::now() + 20 * MS), pending::<()>());
        futures_block_on(waits).expect_err("it never ends");
        assert!(began.elapsed() >= 20 * MS);
    }

    /// Polls on this thread, outside any runtime.
    fn futures_block_on<F: Future>(future: F) -> F::Output {
        struct Unpark(thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) =
                future.as_mut().poll(&mut std::task::Context::from_waker(&waker))
            {
                return output;
            }
            thread::park();
        }
    }
}
