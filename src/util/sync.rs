//! Locks and atomics: those of the standard library, or loom's for the tests of all interleavings:
//!
//! ```sh
//! RUSTFLAGS='--cfg tower_jobs_loom' cargo test --lib all_orders
//! ```

#[cfg(not(all(test, tower_jobs_loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

#[cfg(all(test, tower_jobs_loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};

use std::sync::{Mutex as StdMutex, MutexGuard as StdMutexGuard, PoisonError};

/// Aligned to a pair of cache lines, which processors fetch together. It prevents false sharing between
/// the lock and the settings and reference counts around it.
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

/// As [`lock`], for the standard library's locks where a loom model has others: statics, and locks with a
/// `Condvar`.
pub(crate) fn lock_std<T: ?Sized>(mutex: &StdMutex<T>) -> StdMutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the model in all interleavings with up to three preemptions.
#[cfg(all(test, tower_jobs_loom))]
pub(crate) fn in_all_orders(model: impl Fn() + Send + Sync + 'static) {
    let mut orders = loom::model::Builder::new();
    orders.preemption_bound = Some(3);
    orders.check(model);
}

/// Spawns a thread of a model.
#[cfg(all(test, tower_jobs_loom))]
pub(crate) fn beside<T: Send + Sync + 'static, R: 'static>(
    shared: &std::sync::Arc<T>,
    does: impl FnOnce(&T) -> R + 'static,
) -> loom::thread::JoinHandle<R> {
    let shared = shared.clone();
    loom::thread::spawn(move || does(&shared))
}

/// Counts locks for the benchmark `counts`, which builds this crate with that cfg.
#[cfg(tower_jobs_count_locks)]
pub(crate) mod counting {
    use std::sync::{
        Mutex, MutexGuard, TryLockError,
        atomic::{AtomicU64, Ordering},
    };

    static TAKEN: AtomicU64 = AtomicU64::new(0);
    static CONTENDED: AtomicU64 = AtomicU64::new(0);

    /// Counts one lock, and takes it unless it is contended.
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

    /// Locks of this crate that the process has taken so far, and how many of them were contended.
    pub(crate) fn counts() -> (u64, u64) {
        (TAKEN.load(Ordering::Relaxed), CONTENDED.load(Ordering::Relaxed))
    }
}
