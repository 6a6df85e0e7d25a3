//! Reporting failures that no code awaits.

use tokio::runtime::Handle;

use crate::{
    job::{context::Contexts, error::JobError, harness::ActiveJob, record::Record},
    report::failure::JobFailure,
    run::{
        core::{Core, FailureHook},
        spans::text_of,
        standard_error::is_last_resort,
    },
    util::{
        one_line::OneLine,
        panics::{catch_panic, drop_contained, forget_panic, ignore_panic},
    },
};

impl Core {
    /// Reports the failure of a job whose handle is gone, if there is one.
    #[inline(always)]
    pub(super) fn report_unobserved(&self, record: &Record, failure: Option<JobError>) {
        if let Some(error) = failure {
            self.report(record, error);
        }
    }

    /// Makes the result final. Of an observed job, reports a failure that a handle has left: see
    /// [`take_unobserved`](crate::job::result::ResultCell::take_unobserved).
    #[inline(always)]
    pub(super) fn publish(&self, record: &Record) {
        record.publish();
        if record.is_observed() {
            self.report_unobserved(record, record.result().take_unobserved());
        }
    }

    /// Reports a failure of an active job, in its surroundings. Its span has the text too.
    #[cold]
    pub(super) fn report_job(&self, job: &mut ActiveJob, error: JobError) {
        if let Some(span) = job.span_mut() {
            span.keep_failure(text_of(&error));
        }
        job.within(|| self.report_within(job.contexts(), job.record(), error));
    }

    /// As [`report_job`](Self::report_job), if there is a failure.
    pub(super) fn report_unobserved_job(&self, job: &mut ActiveJob, failure: Option<JobError>) {
        if let Some(error) = failure {
            self.report_job(job, error);
        }
    }

    /// Reports the failure of a job whose surroundings are gone.
    #[cold]
    pub(crate) fn report(&self, record: &Record, error: JobError) {
        self.report_within(None, record, error);
    }

    /// Calls `on_failure` inside the jobs' runtime, or logs the failure. While the scheduler closes, a plain
    /// thread does so, inside these contexts: neither may hold up the closing. Where no log is set up, the
    /// failure goes to standard error.
    pub(super) fn report_within(
        &self,
        contexts: Option<&Contexts>,
        record: &Record,
        error: JobError,
    ) {
        let job = self.info(record);
        let (hook, runtime) = (self.on_failure.clone(), self.runtime().cloned());
        let failure = JobFailure { job, error };
        if hook.is_none() && is_last_resort() {
            return self.write_to_standard_error(failure);
        }
        let is_closing = self.close_deadline.get().is_some() && self.drained.get().is_none();
        if is_closing {
            let contexts = contexts.cloned();
            self.hooks.run(runtime, move || {
                let report = || report_to(hook.as_ref(), None, failure);
                match contexts {
                    Some(contexts) => contexts.run(report),
                    None => report(),
                }
            });
        } else {
            report_to(hook.as_ref(), runtime.as_ref(), failure);
        }
    }
}

impl Core {
    #[cold]
    fn write_to_standard_error(&self, failure: JobFailure) {
        // The error is user code: showing or dropping it may panic.
        let shown = catch_panic(|| format!("tower-jobs: {failure}"));
        let line = shown.unwrap_or_else(|payload| {
            forget_panic(payload);
            format!("tower-jobs: {}: its error cannot be shown", failure.job)
        });
        drop_contained(failure);
        self.standard_error.write(line, &self.hooks);
    }
}

fn report_to(hook: Option<&FailureHook>, runtime: Option<&Handle>, failure: JobFailure) {
    let job = failure.job.clone();
    // The hook is user code, and so is the error: showing or dropping it may panic.
    let reported = match hook {
        Some(hook) => catch_panic(|| {
            // The caller may be a thread without a runtime, and the hook may spawn tasks.
            let _runtime = runtime.map(Handle::enter);
            hook(failure);
        }),
        None => {
            let logged = catch_panic(|| log_failure(&failure));
            drop_contained(failure);
            logged
        }
    };
    let Err(payload) = reported else { return };
    let error = JobError::panicked(payload);
    ignore_panic(|| {
        let error = OneLine(&error);
        tracing::error!(
            target: "tower_jobs",
            %job,
            %error,
            "on_failure, or the error it was called with, panicked"
        );
    });
    if let Ok(payload) = error.into_panic() {
        forget_panic(payload);
    }
}

fn log_failure(failure: &JobFailure) {
    let job = &failure.job;
    tracing::error!(
        target: "tower_jobs",
        {
            job.id = %job.id,
            job.name = %OneLine(&job.name),
            job.request = job.request.as_deref(),
            job.key = job.key.as_deref(),
            job.location = %job.location,
        },
        "{}",
        failure.chain()
    );
}
