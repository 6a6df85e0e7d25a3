//! The rules: which job starts, waits or is refused.

mod accounting;
mod config;
mod keys;
