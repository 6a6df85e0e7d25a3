//! Tests that set something of the whole process: here, no other test can be disturbed.

mod log;
mod panic_hook;
