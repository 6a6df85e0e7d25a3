//! Data about jobs that have ended.

pub(crate) mod drain_report;
pub(crate) mod failure;
pub(crate) mod job_list;
