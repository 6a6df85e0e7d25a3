//! Calling the observers of a scheduler.
//!
//! Each call is made after unlocking, and its panic is contained. `unseen` counts the steps of the queue
//! whose acceptances and ends the observers have not seen yet, so that `closed` comes after all of them.

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
    util::{clock::Moment, panics::ignore_panic, sync::lock_std},
};

#[derive(Clone)]
pub(crate) struct Observers {
    all: Arc<[Arc<dyn Observer>]>,
    scheduler: Option<Arc<str>>,
    in_flight: Arc<InFlight>,
}

#[derive(Default)]
struct InFlight {
    unseen: Mutex<usize>,
    is_zero: Condvar,
    has_closed: AtomicBool,
}

/// A step that the queue counts, or may count, and the observers have not seen: an acceptance, ends, or the
/// beginning of the drain.
pub(crate) struct Unseen(Option<Arc<InFlight>>);

impl Drop for Unseen {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.0 {
            let mut unseen = lock_std(&in_flight.unseen);
            *unseen -= 1;
            if *unseen == 0 {
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

    /// Begins the admission of a job.
    #[inline(always)]
    pub(crate) fn begin_admission(&self, record: &Record) -> Unseen {
        if !self.is_empty() {
            record.keep_for_observers();
        }
        self.begin()
    }

    #[cold]
    pub(crate) fn accepted(&self, record: &Arc<Record>) {
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

    /// Begins a step, before the queue counts it.
    #[inline(always)]
    pub(crate) fn begin(&self) -> Unseen {
        if self.is_empty() { Unseen(None) } else { self.begin_observed() }
    }

    #[cold]
    fn begin_observed(&self) -> Unseen {
        *lock_std(&self.in_flight.unseen) += 1;
        Unseen(Some(self.in_flight.clone()))
    }

    /// The queue has counted the end of this job. Its result is stored and not published yet, or `error`
    /// was taken from it.
    #[cold]
    pub(crate) fn ended(&self, record: &Arc<Record>, outcome: Outcome, error: Option<&JobError>) {
        let is_lent = record.kind() != JobKind::Shielded;
        let lent = if is_lent && error.is_none() { record.result().lend_failure() } else { None };
        let (has_started, queued, ran) = record.times_until(Moment::now());
        let error = error.filter(|_| is_lent).or(lent.as_ref());
        let job = self.seen(record);
        let end = JobEnd { outcome, has_started, queued, ran, error };
        self.call(|observer| observer.ended(&job, &end));
        if let Some(failure) = lent {
            record.result().put_back(failure);
        }
    }

    /// Calls `closed` once, after all other calls but refusals. Blocks until then.
    pub(crate) fn closed(&self, report: &DrainReport) {
        if self.in_flight.has_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut unseen = lock_std(&self.in_flight.unseen);
        while *unseen > 0 {
            unseen = self.in_flight.is_zero.wait(unseen).unwrap_or_else(PoisonError::into_inner);
        }
        drop(unseen);
        self.call(|observer| observer.closed(report));
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observers").field("len", &self.all.len()).finish()
    }
}
