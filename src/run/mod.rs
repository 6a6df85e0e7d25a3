//! The tasks that poll jobs, and closing.
//!
//! This room applies the rules: it locks the queue, takes one step, unlocks, and applies the effects.
//!
//! In reading order:
//!
//! 1. `core`: the state that all handles of a scheduler share, and `apply`.
//! 2. `admission`: a spawned job gets into the queue.
//! 3. `runner`: the task that polls one job after the other.
//! 4. `idle_runners`: parked runners, which wait for the next ready job.
//! 5. `failures`: reports failures that no handle awaits.
//! 6. `cancel`: closes, aborts, skips or replaces single jobs.
//! 7. `close`: `close` and `wait_and_close`.
//! 8. `deadlines`: timeouts, inside a runtime or outside any.

pub(crate) mod admission;
pub(crate) mod cancel;
pub(crate) mod close;
pub(crate) mod core;
pub(crate) mod deadlines;
pub(crate) mod deferred;
pub(crate) mod failures;
pub(crate) mod idle_runners;
pub(crate) mod runner;
