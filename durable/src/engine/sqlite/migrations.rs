//! The engine's migrations, beside those of the application.

use std::fmt::Write;

use apalis_sqlite::SqliteStorage;
use sqlx::{SqliteConnection, SqlitePool, migrate::Migrator};
use tower_jobs::BoxError;

use super::sql::BEGIN;

/// The engine's migrator would share `_sqlx_migrations` with the application's, and each would report the
/// other's as missing.
const TABLE: &str = "_apalis_sqlite_migrations";

fn migrator() -> Migrator {
    // Not `SqliteStorage::setup`, which turns `synchronous` off.
    let mut migrator = SqliteStorage::migrations();
    migrator.dangerous_set_table_name(TABLE);
    migrator
}

pub(super) async fn run(pool: &SqlitePool) -> Result<(), BoxError> {
    // In a transaction of our own, since sqlx locks nothing in SQLite: of two processes that start at once, the
    // second would fail.
    let mut transaction = pool.begin_with(BEGIN).await?;
    let mut migrator = migrator();
    if is_set_up_by_the_engine(&mut transaction, &migrator).await? {
        migrator = SqliteStorage::migrations();
        migrator.set_ignore_missing(true);
    }
    // `Migrator::run` would make a future that cannot be spawned.
    migrator.run_direct(None, &mut *transaction, false).await?;
    transaction.commit().await?;
    Ok(())
}

async fn is_set_up_by_the_engine(
    connection: &mut SqliteConnection,
    migrator: &Migrator,
) -> Result<bool, sqlx::Error> {
    const TABLE_EXISTS: &str = "SELECT EXISTS(SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations')";
    const MIGRATION_RAN: &str =
        "SELECT EXISTS(SELECT 1 FROM _sqlx_migrations WHERE version = ? AND checksum = ?)";
    let Some(first) = migrator.iter().next() else { return Ok(false) };
    if !sqlx::query_scalar::<_, bool>(TABLE_EXISTS).fetch_one(&mut *connection).await? {
        return Ok(false);
    }
    sqlx::query_scalar(MIGRATION_RAN)
        .bind(first.version)
        .bind(&*first.checksum)
        .fetch_one(connection)
        .await
}

pub(super) fn printed() -> String {
    let mut text = format!(
        "BEGIN IMMEDIATE;\n\
         CREATE TABLE {TABLE} (\n    \
             version BIGINT PRIMARY KEY,\n    \
             description TEXT NOT NULL,\n    \
             installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,\n    \
             success BOOLEAN NOT NULL,\n    \
             checksum BLOB NOT NULL,\n    \
             execution_time BIGINT NOT NULL\n\
         );\n"
    );
    for migration in migrator().iter().filter(|one| !one.migration_type.is_down_migration()) {
        let sql = migration.sql.as_str().trim().trim_end_matches(';');
        let checksum: String =
            migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(
            text,
            "\n-- {version} {description}\n{sql};\n\
             INSERT INTO {TABLE} (version, description, success, checksum, execution_time)\n\
             VALUES ({version}, '{description}', TRUE, X'{checksum}', -1);\n",
            version = migration.version,
            description = migration.description.replace('\'', "''"),
        )
        .expect("a string takes text");
    }
    text.push_str("\nCOMMIT;\n");
    text
}
