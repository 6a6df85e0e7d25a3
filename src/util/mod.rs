//! Helpers that know nothing of jobs.

pub(crate) mod clock;
pub(crate) mod one_line;
pub(crate) mod panics;
pub(crate) mod sync;
