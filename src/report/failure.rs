//! Failures that no handle awaits.

use std::fmt;

use crate::{
    job::{error::JobError, info::JobInfo},
    util::one_line::chain,
};

/// Describes a failed job that no handle awaits: the argument of [`on_failure`].
///
/// [`on_failure`]: crate::SchedulerBuilder::on_failure
#[derive(Debug)]
#[non_exhaustive]
#[doc(alias = "Failure")]
pub struct JobFailure {
    /// The failed job.
    pub job: JobInfo,
    /// The job's error.
    pub error: JobError,
}

impl JobFailure {
    /// Formats the error and its causes, in one line.
    pub(crate) fn chain(&self) -> String {
        chain(&self.error)
    }
}

impl fmt::Display for JobFailure {
    /// Formats the job, its error and the error's causes, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.job, self.chain())
    }
}
