//! Calling the observers of a scheduler.
//!
//! Each call is made after unlocking, and its panic is contained.
//!
//! # Invariants
//!
//! 1. An observer sees all of a job or nothing. It is in the list before it takes an id, and sees the jobs
//!    with later ids. Such a job reads the list after it has taken its own id, so it finds the observer.
//! 2. A job is marked as observed before it is offered to the queue, if there is an observer then. A job
//!    without the mark is older than every observer, so it is shown to none.
//! 3. `unseen` counts the acceptances and ends of marked jobs that are still to be shown, from before the
//!    queue counts them, and the beginning of the drain. So `closed` comes after all of them.

use std::{
    fmt,
    iter::successors,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::time::Instant;

use crate::{
    job::{error::JobError, options::JobKind, record::Record},
    report::{
        drain_report::DrainReport,
        observer::{JobEnd, JobSeen, Observer, RefusalReason},
    },
    rules::state::{JobId, Outcome},
    util::{clock::Moment, panics::ignore_panic, sync::lock_std},
};

#[derive(Clone)]
pub(crate) struct Observers(Arc<Shared>);

struct Shared {
    /// The list, which only grows.
    first: OnceLock<Box<Node>>,
    scheduler: Option<Arc<str>>,
    unseen: AtomicUsize,
    /// A thread waits until `unseen` is zero.
    is_awaited: AtomicBool,
    awaited: Mutex<()>,
    is_zero: Condvar,
    has_closed: AtomicBool,
}

struct Node {
    observer: Arc<dyn Observer>,
    /// The id that was taken once it was in the list (1).
    since: OnceLock<JobId>,
    next: OnceLock<Box<Self>>,
}

impl Node {
    /// The id above which jobs are seen. The first call takes it.
    fn since(&self) -> JobId {
        *self.since.get_or_init(JobId::next)
    }
}

/// An observed job that is offered to the queue. Dropped, it was refused.
pub(crate) struct Admission<'a> {
    shared: &'a Shared,
    unseen: usize,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.shared.seen(self.unseen);
    }
}

impl Admission<'_> {
    /// The queue has accepted the job. Its end is unseen from now on.
    #[inline(never)]
    pub(crate) fn accepted(mut self, record: &Arc<Record>) {
        self.unseen = 1;
        self.shared.call_for(record, |observer, job| observer.accepted(job));
    }
}

/// A call that `closed` must come after.
pub(crate) struct Unseen(Observers);

impl Drop for Unseen {
    fn drop(&mut self) {
        self.0.0.seen(1);
    }
}

impl Shared {
    fn nodes(&self) -> impl Iterator<Item = &Node> {
        successors(self.first.get(), |node| node.next.get()).map(|node| &**node)
    }

    fn call(&self, call: impl Fn(&dyn Observer)) {
        self.nodes().for_each(|node| ignore_panic(|| call(&*node.observer)));
    }

    /// Calls the observers that see this job (1).
    fn call_for(&self, record: &Arc<Record>, call: impl Fn(&dyn Observer, &JobSeen<'_>)) {
        let job = JobSeen { record, scheduler: self.scheduler.as_deref() };
        for node in self.nodes().filter(|node| record.id() > node.since()) {
            ignore_panic(|| call(&*node.observer, &job));
        }
    }

    fn seen(&self, count: usize) {
        // Either this sees that a thread waits, or that thread sees the zero.
        let before = self.unseen.fetch_sub(count, Ordering::SeqCst);
        if before == count && self.is_awaited.load(Ordering::SeqCst) {
            drop(lock_std(&self.awaited));
            self.is_zero.notify_all();
        }
    }
}

impl Observers {
    pub(crate) fn new(all: Vec<Arc<dyn Observer>>, scheduler: Option<Arc<str>>) -> Self {
        let observers = Self(Arc::new(Shared {
            first: OnceLock::new(),
            scheduler,
            unseen: AtomicUsize::new(0),
            is_awaited: AtomicBool::new(false),
            awaited: Mutex::new(()),
            is_zero: Condvar::new(),
            has_closed: AtomicBool::new(false),
        }));
        all.into_iter().for_each(|observer| observers.add(observer));
        observers
    }

    /// Adds an observer, which sees the jobs that are made from now on.
    pub(crate) fn add(&self, observer: Arc<dyn Observer>) {
        let mut node = Box::new(Node { observer, since: OnceLock::new(), next: OnceLock::new() });
        let mut end = &self.0.first;
        while let Err(back) = end.set(node) {
            node = back;
            end = &end.get().expect("it is set").next;
        }
        end.get().expect("it was set just now").since();
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.first.get().is_none()
    }

    /// Begins the admission of a job; `None` if no observer sees it.
    #[inline(always)]
    pub(crate) fn begin_admission(&self, record: &Record) -> Option<Admission<'_>> {
        if self.is_empty() { None } else { Some(self.begin_observed(record)) }
    }

    #[inline(never)]
    fn begin_observed(&self, record: &Record) -> Admission<'_> {
        record.result().mark_observed();
        self.0.unseen.fetch_add(2, Ordering::SeqCst);
        Admission { shared: &self.0, unseen: 2 }
    }

    /// An observed job starts. Returns the moment.
    #[inline(never)]
    pub(crate) fn started(&self, record: &Arc<Record>) -> Moment {
        let now = Moment::now();
        // An abandoned job has been shown as ended.
        if record.show_start() {
            let queued = now.since(record.queued_at());
            self.0.call_for(record, |observer, job| observer.started(job, queued));
        }
        now
    }

    #[cold]
    pub(crate) fn refused(&self, reason: RefusalReason, name: &str) {
        self.0.call(|observer| observer.refused(reason, name));
    }

    /// Keeps `closed` from being called until the value is dropped.
    pub(crate) fn hold_closed(&self) -> Unseen {
        self.0.unseen.fetch_add(1, Ordering::SeqCst);
        Unseen(self.clone())
    }

    pub(crate) fn draining(&self, deadline: Option<Instant>) {
        self.0.call(|observer| observer.draining(deadline));
    }

    /// The queue has counted the end of this observed job, which started at that moment, if it did. Its
    /// result is stored and not published yet, or `error` was taken from it.
    #[inline(never)]
    pub(crate) fn ended(
        &self,
        record: &Arc<Record>,
        outcome: Outcome,
        error: Option<&JobError>,
        started: Option<Moment>,
        now: Moment,
    ) {
        let is_lent = record.kind() != JobKind::Shielded;
        let lent = if is_lent && error.is_none() { record.result().lend_failure() } else { None };
        let error = error.filter(|_| is_lent).or(lent.as_ref());
        let queued = started.unwrap_or(now).since(record.queued_at());
        let ran = now.since(started.unwrap_or(now));
        let end = JobEnd { outcome, has_started: started.is_some(), queued, ran, error };
        self.0.call_for(record, |observer, job| observer.ended(job, &end));
        if let Some(failure) = lent {
            record.result().put_back(failure);
        }
        self.0.seen(1);
    }

    /// Calls `closed` once, after all other calls but refusals. Blocks until then.
    pub(crate) fn closed(&self, report: &DrainReport) {
        let shared = &*self.0;
        if shared.has_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut awaited = lock_std(&shared.awaited);
        shared.is_awaited.store(true, Ordering::SeqCst);
        while shared.unseen.load(Ordering::SeqCst) > 0 {
            awaited = shared.is_zero.wait(awaited).unwrap_or_else(PoisonError::into_inner);
        }
        drop(awaited);
        shared.call(|observer| observer.closed(report));
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observers").field("len", &self.0.nodes().count()).finish()
    }
}
