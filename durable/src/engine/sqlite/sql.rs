//! Parts that the statements share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::Error;
use tower_jobs::BoxError;

use crate::error::PushError;

/// Begins a transaction that waits for the write lock. A deferred one that reads first could not wait: its view
/// would be outdated by then, and SQLite refuses it at once.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

const NO_TABLES: &str = "the file has no tables of apalis-sqlite: call `Sqlite::migrate`, or run the text of \
    `Sqlite::migrations_sql`";

/// Says whether the store is away, or has refused.
pub(super) fn push_error(error: Error) -> PushError {
    if is_away(&error) {
        return PushError::Unavailable(error.into());
    }
    PushError::Refused(explained(error))
}

/// Names the cure of missing tables.
pub(super) fn explained(error: Error) -> BoxError {
    if error.as_database_error().is_some_and(|error| error.message().starts_with("no such table")) {
        return NO_TABLES.into();
    }
    error.into()
}

/// Whether a second try may succeed.
fn is_away(error: &Error) -> bool {
    /// Primary result codes: BUSY, LOCKED, IOERR, FULL, CANTOPEN.
    const AWAY: [u32; 5] = [5, 6, 10, 13, 14];
    match error {
        Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse::<u32>().ok());
            code.is_some_and(|code| AWAY.contains(&(code & 0xff)))
        }
        Error::Io(_) | Error::PoolTimedOut | Error::PoolClosed | Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Whole seconds, rounded up. The engine's columns hold whole seconds.
pub(super) fn seconds(duration: Duration) -> i64 {
    let seconds = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
    // SQLite adds it to the time.
    i64::try_from(seconds).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

/// Seconds since the epoch, rounded up.
pub(super) fn timestamp(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, seconds)
}

pub(super) fn time(seconds: i64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// The text of `last_result` for an error, as the engine writes it.
pub(super) fn err_result(error: &str) -> String {
    serde_json::json!({ "Err": error }).to_string()
}
