use std::sync::{Mutex, MutexGuard, PoisonError};

/// No user code runs under our locks, so a poisoned one is still in order.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
