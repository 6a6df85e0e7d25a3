//! Admission: how a job gets into the queue, at once or after waiting for a permit or a place.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    job::{body::Work, error::SpawnError, record::Record},
    report::observer::RefusalReason,
    rules::{
        keys::Ticket,
        step::{Admit, Refusal},
    },
    run::{core::Core, observers::Admission},
    util::clock::Moment,
};

impl Core {
    /// Admits a job, or refuses it without having called `work`. A call, since each future type has its
    /// own copy of the code around it.
    pub(crate) fn admit(
        self: &Arc<Self>,
        how: Admit,
        record: &Arc<Record>,
        work: &mut dyn FnMut() -> Work,
    ) -> Result<(), Refusal> {
        self.admit_inline(how, record, work)
    }

    #[inline(always)]
    fn admit_inline(
        self: &Arc<Self>,
        how: Admit,
        record: &Arc<Record>,
        work: impl FnOnce() -> Work,
    ) -> Result<(), Refusal> {
        let (now, admission) = (Moment::now(), self.observers.begin_admission(record));
        // Cloned before locking: the reference count may be in another processor's cache.
        let meta = record.clone();
        let admitted = self.queue().admit(how, meta, work, now);
        self.apply(admitted?);
        observe_accepted(admission, record);
        Ok(())
    }

    /// Admits a spawner's job, once there is a permit or a place for it.
    pub(crate) fn poll_admit(
        self: &Arc<Self>,
        record: &Arc<Record>,
        work: &mut Option<Work>,
        ticket: &mut Option<Ticket>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SpawnError>> {
        self.bind_runtime()?;
        let Some(waiting) = *ticket else {
            return self.poll_first_admit(record, work, ticket, cx);
        };
        let admission = self.observers.begin_admission(record);
        let (waker, meta, now) = (cx.waker().clone(), record.clone(), Moment::now());
        let mut queue = self.queue();
        let Some(admitted) = queue.admit_granted(waiting, meta, || take_work(work), now) else {
            let previous = queue.replace_waker(waiting, waker);
            drop(queue);
            drop(previous);
            return Poll::Pending;
        };
        drop(queue);
        let effects = admitted.map_err(Refusal::into_error)?;
        *ticket = None;
        self.apply(effects);
        observe_accepted(admission, record);
        Poll::Ready(Ok(()))
    }

    #[inline(always)]
    fn poll_first_admit(
        self: &Arc<Self>,
        record: &Arc<Record>,
        work: &mut Option<Work>,
        ticket: &mut Option<Ticket>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SpawnError>> {
        let admitted = self.admit_inline(Admit::Limited, record, || take_work(work));
        if admitted != Err(Refusal::Full) {
            return Poll::Ready(admitted.map_err(Refusal::into_error));
        }
        let admission = self.observers.begin_admission(record);
        // Cloning a waker may be user code, so it is cloned before locking.
        let (waker, meta, now) = (cx.waker().clone(), record.clone(), Moment::now());
        let mut queue = self.queue();
        let admitted = queue.admit(Admit::Limited, meta, || take_work(work), now);
        if admitted.as_ref().is_err_and(|refusal| *refusal == Refusal::Full) {
            if queue.pending_limit() == 0 {
                return Poll::Ready(Err(SpawnError::Full));
            }
            *ticket = Some(queue.wait(record, waker));
            return Poll::Pending;
        }
        drop(queue);
        self.apply(admitted.map_err(Refusal::into_error)?);
        observe_accepted(admission, record);
        Poll::Ready(Ok(()))
    }

    /// Takes a spawner out of the line.
    pub(crate) fn cancel_wait(self: &Arc<Self>, ticket: Ticket) {
        let now = Moment::now();
        let (effects, waker) = self.queue().cancel_wait(ticket, now);
        drop(waker);
        self.apply(effects);
    }
}

#[inline(always)]
pub(super) fn observe_accepted(admission: Option<Admission<'_>>, record: &Arc<Record>) {
    if let Some(admission) = admission {
        admission.accepted(record);
    }
}

fn take_work(work: &mut Option<Work>) -> Work {
    work.take().expect("admitted once")
}

// No impls of `From`: the compiler would list them to applications.
impl Refusal {
    pub(crate) fn into_error(self) -> SpawnError {
        match self {
            Self::Full => SpawnError::Full,
            Self::DeferredFull => SpawnError::DeferredFull,
            Self::Closed => SpawnError::Closed,
            Self::Duplicate(id) => SpawnError::Duplicate(id),
        }
    }

    pub(crate) fn reason(self) -> RefusalReason {
        match self {
            Self::Full => RefusalReason::PendingFull,
            Self::DeferredFull => RefusalReason::DeferredFull,
            Self::Closed => RefusalReason::Closed,
            Self::Duplicate(_) => RefusalReason::Duplicate,
        }
    }
}
