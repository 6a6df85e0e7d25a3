//! The engine's tables: how they are made, and what of them this crate relies on.

use sqlx::AssertSqlSafe;
use tower_jobs_durable::{Engine, Postgres};

use crate::store::{Store, email, empty_store, store};

/// Each column, constraint and function of a schema, in text.
async fn described(store: &Store, schema: &str) -> String {
    let sql = format!(
        "select string_agg(line, E'\\n' order by line) from (
            select concat_ws(' ', table_name, column_name, data_type, column_default, is_nullable,
                generation_expression) as line
            from information_schema.columns where table_schema = '{schema}'
            union all select pg_get_functiondef(oid) from pg_proc
            where pronamespace = '{schema}'::regnamespace
            union all select indexdef from pg_indexes where schemaname = '{schema}'
            union all select concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
            from pg_constraint where connamespace = '{schema}'::regnamespace) as lines"
    );
    store.value(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn printed_migrations_are_those_that_run() {
    let (Some(run), Some(printed)) = (store().await, empty_store().await) else { return };
    let sql = Postgres::migrations_sql("graphile_worker");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&printed.pool).await.unwrap();
    let made = described(&printed, "graphile_worker").await;
    assert_eq!(made, described(&run, "graphile_worker").await);
    assert!(made.contains("add_job"));
    let rows = "select string_agg(concat(id, breaking, ts), ' ' order by id) \
                from graphile_worker.migrations";
    let before = printed.value(rows).await;
    printed.engine().migrate().await.unwrap();
    assert_eq!(printed.value(rows).await, before, "migrate has nothing to do");
    printed.durable().outbox().push(email("a")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_of_another_name_is_used_by_all() {
    let Some(store) = empty_store().await else { return };
    let name = "My \"jobs\"";
    let sql = Postgres::migrations_sql(name);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&store.pool).await.unwrap();
    let seen = crate::store::Seen::default();
    let noted = seen.clone();
    let engine = store.engine().schema(name);
    engine.migrate().await.unwrap();
    assert_eq!(engine.admin().unwrap().depth().await.unwrap().ready, 0);
    let durable = tower_jobs_durable::Durable::builder(engine)
        .register(move |job: crate::store::SendEmail, _| {
            let noted = noted.clone();
            async move { noted.add(job.to) }
        })
        .start();
    durable.outbox().push(email("a")).await.unwrap();
    seen.reach(1).await;
    let schemas = "select count(*) from pg_namespace where nspname = 'graphile_worker'";
    assert_eq!(store.value(schemas).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_may_migrate_at_once() {
    let Some(store) = empty_store().await else { return };
    let (one, two) = (store.engine(), store.engine());
    let (one, two) = tokio::join!(one.migrate(), two.migrate());
    one.unwrap();
    two.unwrap();
    store.durable().outbox().push(email("a")).await.unwrap();
}

/// A newer engine that changes one of these needs a look at this crate's statements.
#[tokio::test(flavor = "multi_thread")]
async fn engine_has_the_columns_and_functions_relied_on() {
    let Some(store) = store().await else { return };
    let columns = "select string_agg(column_name || ' ' || data_type, ', ' order by column_name) \
                   from information_schema.columns where table_schema = 'graphile_worker' \
                   and table_name = '_private_jobs'";
    assert_eq!(
        store.value(columns).await,
        "attempts smallint, created_at timestamp with time zone, flags jsonb, id bigint, \
         is_available boolean, job_queue_id integer, key text, last_error text, \
         locked_at timestamp with time zone, locked_by text, max_attempts smallint, payload json, \
         priority smallint, revision integer, run_at timestamp with time zone, task_id integer, \
         updated_at timestamp with time zone"
    );
    let view = "select count(*) from information_schema.columns where \
                table_schema = 'graphile_worker' and table_name = 'jobs' and column_name = 'payload'";
    assert_eq!(store.value(view).await, "0", "the view shows no payload");
    for (function, arguments) in [
        (
            "add_job",
            "identifier text, payload json, queue_name text, run_at timestamp with time zone, \
             max_attempts integer, job_key text, priority integer, flags text[], job_key_mode text",
        ),
        ("complete_jobs", "job_ids bigint[]"),
        ("force_unlock_workers", "worker_ids text[]"),
        ("permanently_fail_jobs", "job_ids bigint[], error_message text"),
        (
            "reschedule_jobs",
            "job_ids bigint[], run_at timestamp with time zone, priority integer, attempts integer, \
             max_attempts integer",
        ),
    ] {
        let found = format!(
            "select string_agg(pg_get_function_identity_arguments(oid), '; ') from pg_proc \
             where pronamespace = 'graphile_worker'::regnamespace and proname = '{function}'"
        );
        assert_eq!(store.value(&found).await, arguments, "{function}");
    }
    let migrations = "select max(id) from graphile_worker.migrations";
    assert_eq!(store.value(migrations).await, "22");

    store.run("select graphile_worker.add_job('a', '{}', job_key => 'k')").await;
    let again = "select revision from graphile_worker.add_job('a', '{}', job_key => 'k', \
                 job_key_mode => 'unsafe_dedupe')";
    assert_eq!(store.value(again).await, "1", "a push that meets its key counts");
    store
        .run(
            "update graphile_worker._private_jobs set attempts = 3, locked_by = 'w', locked_at = now()",
        )
        .await;
    store.run("select graphile_worker.force_unlock_workers(array['w'])").await;
    let left = "select concat_ws(' ', attempts, locked_by, locked_at) from graphile_worker.jobs";
    assert_eq!(store.value(left).await, "3", "unlocking leaves the starts counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_job_is_notified_on_the_channel() {
    let Some(store) = store().await else { return };
    let mut listener = sqlx::postgres::PgListener::connect_with(&store.pool).await.unwrap();
    listener.listen("jobs:insert").await.unwrap();
    store.durable().outbox().push(email("a")).await.unwrap();
    listener.recv().await.unwrap();
    store.durable().outbox().push_with(email("a"), crate::store::keyed("1")).await.unwrap();
    listener.recv().await.unwrap();
}
