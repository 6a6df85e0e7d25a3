//! Calling the observers of a scheduler.
//!
//! Each call is made after unlocking, and its panic is contained. `ends` counts the ends that the queue
//! has counted and the observers have not seen yet, so that `closed` comes after all of them.

use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::time::Instant;

use crate::{
    job::{error::JobError, options::JobKind, record::Record},
    report::{
        drain_report::DrainReport,
        observer::{JobEnd, JobSeen, Observer, RefusalReason},
    },
    rules::state::Outcome,
    util::{clock::Moment, panics::ignore_panic, sync::lock},
};

#[derive(Clone)]
pub(crate) struct Observers {
    all: Arc<[Arc<dyn Observer>]>,
    scheduler: Option<Arc<str>>,
    in_flight: Arc<InFlight>,
}

#[derive(Default)]
struct InFlight {
    ends: Mutex<usize>,
    is_zero: Condvar,
    has_closed: AtomicBool,
}

/// An end that the queue counts, or may count, and the observers have not seen.
pub(crate) struct UnseenEnd(Option<Arc<InFlight>>);

impl Drop for UnseenEnd {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.0 {
            let mut ends = lock(&in_flight.ends);
            *ends -= 1;
            if *ends == 0 {
                in_flight.is_zero.notify_all();
            }
        }
    }
}

impl Observers {
    pub(crate) fn new(all: Vec<Arc<dyn Observer>>, scheduler: Option<Arc<str>>) -> Self {
        Self { all: all.into(), scheduler, in_flight: Arc::default() }
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn call(&self, call: impl Fn(&dyn Observer)) {
        for observer in &*self.all {
            ignore_panic(|| call(&**observer));
        }
    }

    fn seen<'a>(&'a self, record: &'a Arc<Record>) -> JobSeen<'a> {
        JobSeen { record, scheduler: self.scheduler.as_deref() }
    }

    #[cold]
    pub(crate) fn accepted(&self, record: &Arc<Record>) {
        record.keep_times();
        let job = self.seen(record);
        self.call(|observer| observer.accepted(&job));
    }

    #[cold]
    pub(crate) fn started(&self, record: &Arc<Record>) {
        let queued = record.set_started(Moment::now());
        let job = self.seen(record);
        self.call(|observer| observer.started(&job, queued));
    }

    #[cold]
    pub(crate) fn refused(&self, reason: RefusalReason, name: &str) {
        self.call(|observer| observer.refused(reason, name));
    }

    pub(crate) fn draining(&self, deadline: Option<Instant>) {
        self.call(|observer| observer.draining(deadline));
    }

    /// Begins an end, before the queue counts it.
    #[inline(always)]
    pub(crate) fn begin_end(&self) -> UnseenEnd {
        if self.is_empty() { UnseenEnd(None) } else { self.begin_observed_end() }
    }

    #[cold]
    fn begin_observed_end(&self) -> UnseenEnd {
        *lock(&self.in_flight.ends) += 1;
        UnseenEnd(Some(self.in_flight.clone()))
    }

    /// The queue has counted the end of this job. Its result is stored and not published yet, or `error`
    /// was taken from it.
    #[cold]
    pub(crate) fn ended(&self, record: &Arc<Record>, outcome: Outcome, error: Option<&JobError>) {
        let is_lent = record.kind() != JobKind::Shielded;
        let lent = if is_lent && error.is_none() { record.result().lend_failure() } else { None };
        let (queued, ran) = record.times_until(Moment::now());
        let error = error.filter(|_| is_lent).or(lent.as_ref());
        let (job, end) = (self.seen(record), JobEnd { outcome, queued, ran, error });
        self.call(|observer| observer.ended(&job, &end));
        if let Some(failure) = lent {
            record.result().put_back(failure);
        }
    }

    /// Calls `closed` once, after all ends have been seen. Blocks until then.
    pub(crate) fn closed(&self, report: &DrainReport) {
        if self.in_flight.has_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut ends = lock(&self.in_flight.ends);
        while *ends > 0 {
            ends = self.in_flight.is_zero.wait(ends).unwrap_or_else(PoisonError::into_inner);
        }
        drop(ends);
        self.call(|observer| observer.closed(report));
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observers").field("len", &self.all.len()).finish()
    }
}
