//! The README's first program.
#![allow(clippy::print_stdout, reason = "as printed")]

include!(concat!(env!("OUT_DIR"), "/as_printed.rs"));
