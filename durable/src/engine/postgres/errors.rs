//! Which of the database's errors pass.

use std::time::Duration;

use crate::error::PushError;

pub(super) fn no_answer(limit: Duration) -> PushError {
    PushError::Unavailable(format!("no answer from PostgreSQL within {limit:?}").into())
}

pub(super) fn as_push_error(error: sqlx::Error) -> PushError {
    if is_away(&error) {
        return PushError::Unavailable(error.into());
    }
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        // No such table, schema or function.
        Some("42P01" | "3F000" | "42883") => PushError::Refused(
            format!(
                "{error}. The tables of Graphile Worker are missing or old: run `Postgres::migrate()`, \
                 or run the statements of `Postgres::migrations_sql()`"
            )
            .into(),
        ),
        _ => PushError::Refused(error.into()),
    }
}

/// Whether the database does not answer, or takes no more connections.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Connection lost, shut down, and too many connections.
            code.starts_with("08") || code.starts_with("57P0") || code == "53300"
        }),
        _ => false,
    }
}
