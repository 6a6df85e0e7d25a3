//! The README's first program, with a mail server that never answers.
#![allow(clippy::print_stdout, reason = "as printed")]
#![allow(unreachable_code, clippy::needless_return, reason = "a line was replaced")]
include!(concat!(env!("OUT_DIR"), "/stuck.rs"));
