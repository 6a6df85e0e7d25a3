//! The tasks that poll jobs.

mod runner;
