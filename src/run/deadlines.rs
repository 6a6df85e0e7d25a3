//! Waiting with a deadline, inside a runtime or outside any.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    time::{self, Instant},
};

/// The deadline passed first.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Awaits `future` until `deadline`; `None` is never.
///
/// A caller outside any runtime has no timer. It does not borrow that of the jobs' runtime, which
/// may go away before the deadline, or may not be driven by anybody.
pub(crate) async fn timeout_at<F: Future>(
    deadline: Option<Instant>,
    future: F,
) -> Result<F::Output, Elapsed> {
    let Some(deadline) = deadline else {
        return Ok(future.await);
    };
    if Handle::try_current().is_ok() {
        return time::timeout_at(deadline, future).await.map_err(|_| Elapsed);
    }
    let mut future = pin!(future);
    let mut alarm = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let alarm = alarm.get_or_insert_with(|| alarm_at(deadline));
        Pin::new(alarm).poll(cx).map(|_| Err(Elapsed))
    })
    .await
}

/// Resolves at `deadline`, by a thread that ends then, or when this is dropped. Should there be
/// no thread to be had, it resolves at once: too early is better than never.
fn alarm_at(deadline: Instant) -> oneshot::Receiver<()> {
    let (mut alarm, rings) = oneshot::channel();
    let wait = move || {
        if let Ok(timer) = Builder::new_current_thread().enable_time().build() {
            let given_up = alarm.closed();
            drop(timer.block_on(async { time::timeout_at(deadline, given_up).await }));
        }
    };
    // The thread is not joined, and drops `alarm` at its end.
    drop(thread::Builder::new().name("tower-jobs timer".into()).spawn(wait));
    rings
}
