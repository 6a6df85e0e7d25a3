//! Each recipe's program, as a process; and the chapter's text beside the programs.
#![expect(clippy::disallowed_methods, reason = "tests start tasks themselves")]

mod chapter;
mod clocks;
mod kubernetes;
mod outside;
mod servers;
mod support;
