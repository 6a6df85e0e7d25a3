//! The README's first program, with an e-mail that cannot be sent.
#![allow(clippy::print_stdout, reason = "as printed")]
#![allow(unreachable_code, clippy::needless_return, reason = "a line was replaced")]
include!(concat!(env!("OUT_DIR"), "/failing.rs"));
