//! What applications hold: the scheduler and the handles of jobs.

mod closing;
mod handle;
mod inspect;
mod job_context;
mod lookup;
mod nested;
mod permit;
mod runtimes;
mod steer;
