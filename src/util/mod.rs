//! Helpers that know nothing of jobs.
//!
//! In reading order:
//!
//! 1. `sync`: locks and atomics, and loom's in the tests of all interleavings.
//! 2. `clock`: a moment of tokio's clock, in eight bytes.
//! 3. `panics`: catches the panics of user code.
//! 4. `waiting`: waits for a condition that another thread announces.
//! 5. `log_context`: the subscriber and the span, for another thread.
//! 6. `one_line`: text for logs, without line breaks.
//! 7. `picture`: pictures of the documentation.

pub(crate) mod clock;
pub(crate) mod log_context;
pub(crate) mod one_line;
pub(crate) mod panics;
#[cfg(any(doc, doctest, test, feature = "shutdown"))]
#[macro_use]
mod picture;
pub(crate) mod sync;
pub(crate) mod waiting;
