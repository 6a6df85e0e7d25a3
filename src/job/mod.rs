//! One job: its options, its shared record, its result and its future.
//!
//! In reading order:
//!
//! 1. `error`: errors of spawning, and errors of jobs.
//! 2. `any_error`: either of them, for handlers.
//! 3. `output`: the types that a job may return.
//! 4. `options`: the kind, flags and names of a job.
//! 5. `group`: jobs that belong together, such as those of one request.
//! 6. `info`: a snapshot of one job.
//! 7. `result`: the result cell, which reports each failure exactly once.
//! 8. `record`: the part of a job that its handle, the queue and its runner share.
//! 9. `span`: the job's `tracing` span.
//! 10. `context`: contexts of the application, which a job takes from its spawner.
//! 11. `surroundings`: span and contexts, around all code of a job.
//! 12. `boxed`: large futures, boxed where they come in.
//! 13. `body`: the user's future, and the code that stores its output.
//! 14. `harness`: a job as a runner polls it.

pub(crate) mod any_error;
pub(crate) mod body;
pub(crate) mod boxed;
pub(crate) mod context;
pub(crate) mod error;
pub(crate) mod group;
pub(crate) mod harness;
pub(crate) mod info;
pub(crate) mod options;
pub(crate) mod output;
pub(crate) mod record;
pub(crate) mod result;
pub(crate) mod span;
pub(crate) mod surroundings;
