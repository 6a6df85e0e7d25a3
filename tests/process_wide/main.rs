//! Tests that set a hook or a logger of the whole process. They do not disturb each other.

mod log;
mod panic_hook;
