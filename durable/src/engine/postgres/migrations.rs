//! The engine's tables.

use std::fmt::Write;

use graphile_worker_database::Schema;
use graphile_worker_migrations::{migrate, sql::GRAPHILE_WORKER_MIGRATIONS};
use tower_jobs::BoxError;

use super::Postgres;

/// Placeholder of the schema in the engine's statements.
const PLACEHOLDER: &str = ":GRAPHILE_WORKER_SCHEMA";

impl Postgres {
    /// Creates the engine's tables and functions, or brings them up to date.
    ///
    /// Several processes may call it at once. It needs the right to create a schema.
    ///
    /// # Errors
    ///
    /// If the database refuses a statement, is older than PostgreSQL 12, or has tables of a newer engine
    /// that this one cannot use.
    ///
    /// # Cancel safety
    ///
    /// Each migration is a transaction: dropped, it leaves those that were committed.
    pub async fn migrate(&self) -> Result<(), BoxError> {
        Ok(migrate(&self.pool, &self.schema).await?)
    }

    /// Returns the SQL that creates the engine's tables in an empty schema.
    ///
    /// It is for applications that run their migrations apart: store it as one of them, which runs once and in one
    /// transaction. [`migrate`](Self::migrate) then has nothing to do, until this crate uses a newer engine.
    pub fn migrations_sql(schema: &str) -> String {
        let schema = Schema::new(schema);
        let migrations = schema.identifier("migrations");
        // The same as `migrate` makes before it begins.
        let mut text = format!(
            "create schema if not exists {schema};\n\n\
             create table if not exists {migrations} (\n    id int primary key,\n    \
             ts timestamptz default now() not null,\n    breaking boolean not null default false\n);\n"
        );
        for migration in GRAPHILE_WORKER_MIGRATIONS {
            let (number, breaking) = (migration.migration_number(), migration.is_breaking());
            write!(text, "\n-- {}\n", migration.name()).expect("a string takes all");
            for statement in migration.stmts {
                let statement = statement.replace(PLACEHOLDER, schema.escaped());
                let statement = statement.trim().trim_end_matches(';');
                write!(text, "\n{statement};\n").expect("a string takes all");
            }
            write!(
                text,
                "\ninsert into {migrations} (id, breaking) values ({number}, {breaking});\n"
            )
            .expect("a string takes all");
        }
        text
    }
}
