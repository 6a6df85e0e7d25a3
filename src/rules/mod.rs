//! The rules, pure and synchronous: which job starts, which waits, and which is refused.
//!
//! A step of the [`queue`] does no I/O, runs no user code and wakes no task. It returns effects, which
//! the room `run` applies after it has unlocked the queue.
//!
//! In reading order:
//!
//! 1. `state`: a job's id, its states and its outcomes.
//! 2. `config`: the settings, their defaults and their validation.
//! 3. `step`: the input of the queue's steps, and the effects that they return.
//! 4. `table`: rows that never move, one for each job.
//! 5. `line`: the contents of a row, and the lists that link rows.
//! 6. `ledger`: counts of jobs, unique keys, and the jobs that a report lists.
//! 7. `keys`: concurrency keys, and the spawners that wait.
//! 8. `dispatch`: which runners to request for ready jobs.
//! 9. `queue`: the state machine that all of these are parts of.

pub(crate) mod config;
pub(crate) mod dispatch;
pub(crate) mod keys;
pub(crate) mod ledger;
pub(crate) mod line;
pub(crate) mod queue;
pub(crate) mod reservations;
pub(crate) mod state;
pub(crate) mod step;
pub(crate) mod table;
