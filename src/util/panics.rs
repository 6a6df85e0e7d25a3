//! Containing panics of user code: of jobs, hooks, wakers and `Drop` impls.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
};

use tokio::sync::Notify;

/// Runs user code. A panic leaves no state of this crate half-changed: callers hold no lock, and have
/// put their own state in order.
pub(crate) fn catch_panic<T>(code: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(code))
}

/// Drops a value whose panic no code can be given. The panic is logged.
pub(crate) fn drop_contained<T>(value: T) {
    if let Err(payload) = catch_panic(|| drop(value)) {
        ignore_panic(|| {
            tracing::error!(target: "tower_jobs", "a value of a job panicked while it was dropped");
        });
        forget_panic(payload);
    }
}

/// Runs user code whose panic changes nothing: a waker, or a `tracing` subscriber.
pub(crate) fn ignore_panic(code: impl FnOnce()) {
    if let Err(payload) = catch_panic(code) {
        forget_panic(payload);
    }
}

/// Drops a panic's payload, whose own `Drop` may panic in turn.
pub(crate) fn forget_panic(payload: Box<dyn Any + Send>) {
    if let Err(payload) = catch_panic(|| drop(payload)) {
        #[allow(clippy::mem_forget, reason = "each drop could panic with a payload that panics")]
        std::mem::forget(payload);
    }
}

/// Wakes a task by its waker, which may be user code.
pub(crate) fn wake(waker: Waker) {
    ignore_panic(|| waker.wake());
}

/// Wakes all tasks that wait. A waker that panics may keep others from being woken.
pub(crate) fn notify(waiters: &Notify) {
    ignore_panic(|| waiters.notify_waiters());
}
