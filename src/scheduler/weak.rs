//! A handle that does not keep a scheduler open.

use std::{fmt, sync::Weak};

use crate::scheduler::{Handle, Scheduler};

/// Refers to a scheduler without counting as a handle.
///
/// It is for parts of an application that outlive the scheduler, such as a cache of clients, or that the
/// scheduler's own jobs hold. It neither delays the warning of a last handle that is dropped with jobs left,
/// nor frees anything early. The nearest relative is [`std::sync::Weak`].
///
/// ```
/// let scheduler = tower_jobs::Scheduler::new();
/// let weak = scheduler.downgrade();
/// assert!(weak.upgrade().is_some());
/// drop(scheduler);
/// assert!(weak.upgrade().is_none());
/// ```
#[derive(Clone, Default)]
pub struct WeakScheduler(Weak<Handle>);

impl WeakScheduler {
    /// Returns the scheduler, unless all its handles have been dropped.
    #[must_use]
    pub fn upgrade(&self) -> Option<Scheduler> {
        self.0.upgrade().map(|handle| Scheduler { handle })
    }
}

impl Scheduler {
    /// Returns a weak handle.
    #[must_use]
    pub fn downgrade(&self) -> WeakScheduler {
        WeakScheduler(std::sync::Arc::downgrade(&self.handle))
    }
}

impl fmt::Debug for WeakScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakScheduler").finish_non_exhaustive()
    }
}
