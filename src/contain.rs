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
        tracing::error!("a value of a job that was given up panicked while it was dropped");
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
    if let Err(payload) = contain(|| waker.wake()) {
        forget_panic(payload);
    }
}

/// Wakes all that wait, by wakers of any make.
pub(crate) fn notify(all: &Notify) {
    if let Err(payload) = contain(|| all.notify_waiters()) {
        forget_panic(payload);
    }
}
