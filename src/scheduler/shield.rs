//! Shielded work: a job that passes its output through to its caller.

use std::{marker::PhantomData, panic::resume_unwind, sync::Arc};

use crate::{
    job::{body::Work, error::JobError, output::JobOutput, record::Record},
    report::observer::RefusalReason,
    rules::step::Admit,
    run::core::Core,
    scheduler::handle::Job,
    util::panics::{catch_panic, drop_contained},
};

/// Shielded work that has not been admitted yet.
pub(crate) struct ShieldedWork<T> {
    pub(super) core: Arc<Core>,
    pub(super) record: Arc<Record>,
    pub(super) work: Work,
    pub(super) output: PhantomData<fn() -> T>,
}

impl<T: JobOutput + Send + 'static> ShieldedWork<T> {
    /// Runs the work as a job, and passes its output through.
    pub(crate) async fn run(self) -> Result<T, JobError> {
        let Self { core, record, work, .. } = self;
        if let Err(error) = core.bind_runtime() {
            core.refuse(RefusalReason::NoRuntime, &record);
            return Err(JobError::refused(error));
        }
        // If it is refused it is dropped after unlocking, since its `Drop` is user code.
        let mut work = Some(work);
        let mut take = || work.take().expect("admitted once");
        let admitted = core.admit(Admit::Outside, &record, &mut take);
        if let Err(refusal) = admitted {
            core.refuse(refusal.reason(), &record);
            return Err(JobError::refused(refusal.into_error()));
        }
        let mut shielded = Shielded(Job::new(record, core));
        match shielded.0.wait().await.map_err(JobError::into_panic) {
            Ok(output) => Ok(output),
            Err(Ok(payload)) => resume_unwind(payload),
            Err(Err(error)) => Err(error),
        }
    }
}

/// Waits for shielded work. If this is dropped first, a failure that is stored already is reported.
struct Shielded<T: JobOutput + Send + 'static>(Job<T>);

impl<T: JobOutput + Send + 'static> Drop for Shielded<T> {
    fn drop(&mut self) {
        let error = match self.0.take_result_if_unread() {
            None => return,
            Some(Err(error)) => error,
            Some(Ok(output)) => match catch_panic(|| output.into_result()) {
                Ok(Ok(value)) => return drop_contained(value),
                Ok(Err(error)) => JobError::failed(error),
                Err(payload) => JobError::panicked(payload),
            },
        };
        self.0.report(error);
    }
}
