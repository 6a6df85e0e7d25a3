//! When a job was queued and started, for observers.

use std::time::Duration;

use crate::{
    job::record::Record,
    util::{
        clock::Moment,
        sync::atomic::{AtomicI64, Ordering},
    },
};

/// Moments that are kept only for observers; [`Moment::NEVER`] until then.
pub(super) struct Times {
    queued: AtomicI64,
    started: AtomicI64,
}

impl Default for Times {
    fn default() -> Self {
        let never = || AtomicI64::new(Moment::NEVER.as_nanos());
        Self { queued: never(), started: never() }
    }
}

impl Times {
    pub(super) fn set_queued(&self, now: Moment) {
        self.queued.store(now.as_nanos(), Ordering::Relaxed);
    }
}

impl Record {
    /// Makes room for the times, and keeps a failure for the observers.
    pub(crate) fn keep_for_observers(&self) {
        self.result().keep_failure_for_observers();
    }

    /// The job starts. Returns the time for which it was queued.
    pub(crate) fn set_started(&self, now: Moment) -> Duration {
        self.cold().times.started.store(now.as_nanos(), Ordering::Relaxed);
        now.since(self.queued_at())
    }

    pub(super) fn queued_at(&self) -> Moment {
        let moment = |at: &AtomicI64| Moment::from_nanos(at.load(Ordering::Relaxed));
        let queued = self.cold.get().map_or(Moment::NEVER, |cold| moment(&cold.times.queued));
        if queued == Moment::NEVER { moment(&self.accepted_at) } else { queued }
    }

    /// Whether the job has started, and the times from being queued to the start, and from there to the end.
    pub(crate) fn times_until(&self, end: Moment) -> (bool, Duration, Duration) {
        let started = &self.cold().times.started;
        match Moment::from_nanos(started.load(Ordering::Relaxed)) {
            Moment::NEVER => (false, end.since(self.queued_at()), Duration::ZERO),
            started => (true, started.since(self.queued_at()), end.since(started)),
        }
    }
}
