//! Keeping a user's panic where it happened.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
};

use tokio::sync::Notify;

/// Runs code that is not ours. Nothing of ours is half-changed when it panics: callers hold no
/// lock and have put their own state in order.
pub(crate) fn contain<T>(code: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(code))
}

/// Drops what has nobody left to tell. A panic in its `Drop` is logged.
pub(crate) fn discard<T>(value: T) {
    if let Err(payload) = contain(|| drop(value)) {
        ignore_panic(|| {
            tracing::error!("a value of a job that was given up panicked while it was dropped");
        });
        forget_panic(payload);
    }
}

/// Runs code that is not ours, of which nothing depends on whether it panics: wakers, and the
/// subscribers of `tracing`.
pub(crate) fn ignore_panic(code: impl FnOnce()) {
    if let Err(payload) = contain(code) {
        forget_panic(payload);
    }
}

/// Drops a panic's payload, whose own `Drop` may panic in turn.
pub(crate) fn forget_panic(payload: Box<dyn Any + Send>) {
    if let Err(payload) = contain(|| drop(payload)) {
        #[allow(clippy::mem_forget, reason = "dropping it could go on for ever")]
        std::mem::forget(payload);
    }
}

/// Wakes a waker that may be of any make.
pub(crate) fn wake(waker: Waker) {
    ignore_panic(|| waker.wake());
}

/// Wakes all that wait, by wakers of any make. One that panics may keep others from being woken.
pub(crate) fn notify(all: &Notify) {
    ignore_panic(|| all.notify_waiters());
}
