//! The tasks that poll jobs, and closing.
//!
//! This room applies the rules: it locks the queue, takes one step, unlocks, and applies the effects.
//!
//! In reading order:
//!
//! 1. `core`: the state that all handles of a scheduler share, and `apply`.
//! 2. `admission`: a spawned job gets into the queue.
//! 3. `deferred`: deferred jobs start, are skipped, or are given up.
//! 4. `runner`: the task that polls one job after the other.
//! 5. `idle_runners`: parked runners, which wait for the next ready job.
//! 6. `failures`: reports failures that no handle awaits.
//! 7. `spans`: the end of a job in its span.
//! 8. `cancel`: closes, aborts or replaces single jobs.
//! 9. `close`: `close` and `wait_and_close`.
//! 10. `hooks`: plain threads for hooks beside closing.
//! 11. `standard_error`: lines of failures where nothing else would show them.
//! 12. `observers`: calls the observers.
//! 13. `steer`: limits, pausing, reservations, and single jobs by id.
//! 14. `recorded`: waiting for jobs that a recorder holds back.
//! 15. `deadlines`: timeouts, inside a runtime or outside any.

pub(crate) mod admission;
pub(crate) mod cancel;
pub(crate) mod close;
pub(crate) mod core;
pub(crate) mod deadlines;
pub(crate) mod deferred;
mod failures;
pub(crate) mod hooks;
pub(crate) mod idle_runners;
pub(crate) mod observers;
mod recorded;
pub(crate) mod runner;
mod spans;
pub(crate) mod standard_error;
pub(crate) mod steer;
