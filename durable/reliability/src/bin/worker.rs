//! A process that runs durable jobs until it is told to end, or dies. Its settings are in its environment.

#![allow(clippy::print_stdout, reason = "the test reads it")]

use std::{alloc::System, env, process::ExitCode, thread, time::Duration};

use sqlx::{Connection, Executor, PgConnection, SqliteConnection};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::time::sleep;
use tower_jobs::{Scheduler, Shutdown};
use tower_jobs_durable::{Durable, DurableContext, Interrupted, Outbox};
use tower_jobs_durable_reliability::{Abort, How, Newer, Work, log::Log, store};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that are allocated now.
fn held() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let code = runtime.block_on(run());
    runtime.shutdown_background();
    code
}

async fn run() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    let log = Log::new(env::var("WORKER_LOG").expect("WORKER_LOG"));
    let engine = store::open(&env::var("DATABASE_URL").expect("DATABASE_URL")).await;
    if let Ok(mode) = env::var("WORKER_MODE") {
        println!("ready");
        push_in_and_die(
            &Durable::builder_of(engine.clone()).start().outbox(),
            mode.ends_with("after-commit"),
        )
        .await;
    }
    let (worked, aborted) = (log.clone(), log.clone());
    let work = move |job: Work, context: DurableContext| {
        let log = worked.clone();
        async move {
            log.line("start", job.n);
            match job.how {
                How::Sleep => sleep(job.takes).await,
                How::Block => thread::sleep(job.takes),
                How::Weigh => log.line("bytes", held() as u64),
                How::Listen => tokio::select! {
                    () = sleep(job.takes) => {}
                    () = context.shutting_down() => return Err(Interrupted),
                },
            }
            log.line("end", job.n);
            Ok(())
        }
    };
    let abort = move |job: Abort, _: DurableContext| {
        let log = aborted.clone();
        async move {
            log.line("abort", job.n);
            // Time for others to be running.
            sleep(Duration::from_millis(100)).await;
            std::process::abort();
        }
    };
    let mut builder = Durable::builder_of(engine)
        .limit(usize::try_from(number("WORKER_LIMIT", 20)).expect("a limit"))
        .dead_after(Duration::from_millis(number("WORKER_DEAD_AFTER", 3_000)))
        .register(work)
        .register(abort);
    if env::var_os("WORKER_IS_NEWER").is_some() {
        let newer = log.clone();
        builder = builder.register(move |job: Newer, _: DurableContext| {
            let log = newer.clone();
            async move { log.line("end", job.n) }
        });
    }
    let durable = builder.start();
    let scheduler = Scheduler::new();
    let report = Shutdown::new(&scheduler)
        .grace(Duration::from_millis(number("WORKER_GRACE", 4_000)))
        .part("durable", durable.part())
        .serve(|stop| {
            println!("ready");
            stop
        })
        .await;
    report.print();
    ExitCode::from(&report)
}

/// Pushes in a transaction with a row of the application, and dies before the commit or after it.
async fn push_in_and_die(outbox: &Outbox, commits: bool) {
    const TABLE: &str = "CREATE TABLE IF NOT EXISTS users (name TEXT)";
    const USER: &str = "INSERT INTO users VALUES ('ada')";
    let url = env::var("DATABASE_URL").expect("DATABASE_URL");
    let job = Work { n: 7, takes: Duration::ZERO, how: How::Sleep };
    if url.starts_with("postgres") {
        let mut connection = PgConnection::connect(&url).await.expect("the database answers");
        connection.execute(TABLE).await.expect("the table is made");
        let mut transaction = connection.begin().await.expect("it begins");
        transaction.execute(USER).await.expect("the row is stored");
        outbox.push_in(&mut transaction, job).await.expect("the job is stored");
        if commits {
            transaction.commit().await.expect("it commits");
        }
    } else {
        let mut connection = SqliteConnection::connect(&url).await.expect("the file opens");
        connection.execute(TABLE).await.expect("the table is made");
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.expect("it begins");
        transaction.execute(USER).await.expect("the row is stored");
        outbox.push_in(&mut transaction, job).await.expect("the job is stored");
        if commits {
            transaction.commit().await.expect("it commits");
        }
    }
    std::process::abort();
}
