//! Reports: plain data about jobs that have ended.
//!
//! In reading order:
//!
//! 1. `stats`: counts of all jobs, at one moment.
//! 2. `job_list`: the jobs of one outcome, made into infos on first use.
//! 3. `drain_report`: the outcomes of all jobs during a shutdown.
//! 4. `failure`: a failed job that no handle awaits.
//! 5. `observer`: the calls for each event in the life of a job.
//! 6. `memory`: the last jobs that ended, by id.
//! 7. `metrics`: an observer that counts for the facade `metrics`.

pub(crate) mod drain_report;
pub(crate) mod failure;
pub(crate) mod job_list;
pub(crate) mod memory;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod observer;
pub(crate) mod stats;
