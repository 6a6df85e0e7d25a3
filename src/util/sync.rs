//! Locks and atomics: the standard library's, or, for tests that try all orders of events, loom's:
//!
//! ```sh
//! RUSTFLAGS='--cfg tower_jobs_loom' cargo test --lib all_orders
//! ```

#[cfg(not(all(test, tower_jobs_loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

#[cfg(all(test, tower_jobs_loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};

use std::sync::PoisonError;

/// Where cache lines begin (processors fetch them in pairs), so that who only counts a handle or
/// reads a setting does not take them from who holds the lock.
#[repr(align(128))]
pub(crate) struct CachePadded<T>(pub(crate) T);

/// No user code runs under our locks, so a poisoned one is still in order.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    #[cfg(tower_jobs_count_locks)]
    if let Some(guard) = counting::try_lock(mutex) {
        return guard;
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tries all orders of what the threads do that interrupt one up to three times.
#[cfg(all(test, tower_jobs_loom))]
pub(crate) fn in_all_orders(what: impl Fn() + Send + Sync + 'static) {
    let mut orders = loom::model::Builder::new();
    orders.preemption_bound = Some(3);
    orders.check(what);
}

/// Another thread of such a model, and what it is to do with what all have.
#[cfg(all(test, tower_jobs_loom))]
pub(crate) fn beside<T: Send + Sync + 'static, R: 'static>(
    shared: &std::sync::Arc<T>,
    does: impl FnOnce(&T) -> R + 'static,
) -> loom::thread::JoinHandle<R> {
    let shared = shared.clone();
    loom::thread::spawn(move || does(&shared))
}

/// For the benchmark `counts`, which builds this crate with that cfg. No other build has it.
#[cfg(tower_jobs_count_locks)]
mod counting {
    use std::sync::{
        Mutex, MutexGuard, TryLockError,
        atomic::{AtomicU64, Ordering},
    };

    static TAKEN: AtomicU64 = AtomicU64::new(0);
    static CONTENDED: AtomicU64 = AtomicU64::new(0);

    /// Counts the lock as taken, which the caller will do if this does not.
    pub(super) fn try_lock<T: ?Sized>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        match mutex.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                CONTENDED.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    impl crate::Scheduler {
        /// How often this process has taken locks of this crate by now, and how many of them were
        /// held by another thread at that time.
        #[doc(hidden)]
        pub fn locks() -> (u64, u64) {
            (TAKEN.load(Ordering::Relaxed), CONTENDED.load(Ordering::Relaxed))
        }
    }
}
