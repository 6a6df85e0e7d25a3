//! Measures both engines, each beside its own worker and beside a plain `INSERT`, in the same run. It prints the
//! tables of RELIABILITY.md:
//!
//! ```sh
//! cargo run --release --package tower-jobs-durable-reliability --bin measure
//! ```

#![allow(clippy::print_stdout, reason = "it is what it is for")]

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use apalis::prelude::{BackendExt as _, BoxDynError, TaskSink as _, WorkerBuilder};
use apalis_sqlite::SqliteStorage;
use graphile_worker::{
    IntoTaskHandlerResult, LocalQueueConfig, TaskHandler, WorkerContext, WorkerOptions,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, SqlitePool};
use tokio::{sync::mpsc, time::sleep};
use tower_jobs_durable::{Durable, DurableContext, DurableJob, Outbox};
use tower_jobs_durable_reliability::{postgres::Server, store::Store};

#[derive(Serialize, Deserialize)]
struct NoOp {
    n: usize,
}

impl DurableJob for NoOp {
    const KIND: &str = "no_op";
}

#[derive(Serialize, Deserialize)]
struct BareNoOp {
    n: usize,
}

#[derive(Clone, Debug)]
struct Counter(Arc<AtomicUsize>);

impl TaskHandler for BareNoOp {
    const IDENTIFIER: &'static str = "bare_no_op";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        context.get_ext::<Counter>().expect("it is given").0.fetch_add(1, SeqCst);
        Ok::<(), String>(())
    }
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1_000.0)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn rate(jobs: usize, time: Duration) -> f64 {
    jobs as f64 / time.as_secs_f64()
}

async fn until(count: &AtomicUsize, reached: usize) {
    while count.load(SeqCst) < reached {
        sleep(Duration::from_millis(1)).await;
    }
}

/// From the beginning of a push to the job's start, one at a time.
async fn push_to_start(store: &Store, jobs: usize) -> (Duration, Duration) {
    let (seen, mut sees) = mpsc::unbounded_channel();
    let durable = Durable::builder_of(store.engine().await)
        .register(move |_: NoOp, _: DurableContext| {
            seen.send(Instant::now()).expect("it is awaited");
            async {}
        })
        .start();
    let outbox = durable.outbox();
    // The first is not measured: connections are opened.
    let (mut pushes, mut starts) = (Vec::new(), Vec::new());
    for n in 0..=jobs {
        let began = Instant::now();
        outbox.push(NoOp { n }).await.expect("it is stored");
        pushes.push(began.elapsed());
        starts.push(sees.recv().await.expect("it starts").duration_since(began));
        sleep(Duration::from_millis(20)).await;
    }
    (median(pushes.split_off(1)), median(starts.split_off(1)))
}

async fn push_all(outbox: &Outbox, jobs: usize) {
    for n in 0..jobs {
        outbox.push(NoOp { n }).await.expect("it is stored");
    }
}

/// Runs a backlog that is there before the worker.
async fn drain(store: &Store, jobs: usize, limit: usize) -> Duration {
    let count = Arc::new(AtomicUsize::new(0));
    push_all(&Durable::builder_of(store.engine().await).start().outbox(), jobs).await;
    let began = Instant::now();
    let counted = count.clone();
    let durable = Durable::builder_of(store.engine().await)
        .limit(limit)
        .register(move |_: NoOp, _: DurableContext| {
            counted.fetch_add(1, SeqCst);
            async {}
        })
        .start();
    until(&count, jobs).await;
    let admin = durable.admin().expect("it has figures");
    while admin.depth().await.expect("the store answers").running > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

/// The same with the engine's own worker, which takes rows ahead into its local queue.
async fn drain_graphile(url: &str, jobs: usize, limit: usize) -> Duration {
    let pool = PgPool::connect(url).await.expect("the database answers");
    let payloads = "select graphile_worker.add_job('bare_no_op', json_build_object('n', n)) from generate_series(1, $1) n";
    sqlx::query(payloads)
        .bind(i64::try_from(jobs).expect("few"))
        .execute(&pool)
        .await
        .expect("they are stored");
    let count = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let worker = WorkerOptions::default()
        .concurrency(limit)
        .local_queue(LocalQueueConfig::default())
        .pg_pool(pool.clone())
        .define_job::<BareNoOp>()
        .add_extension(Counter(count.clone()))
        .init()
        .await
        .expect("it starts");
    let running = tokio::spawn(async move { worker.run().await });
    until(&count, jobs).await;
    let left = "select count(*) from graphile_worker._private_jobs";
    while sqlx::query_scalar::<_, i64>(left).fetch_one(&pool).await.expect("it answers") > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    let time = began.elapsed();
    running.abort();
    time
}

async fn drain_apalis(path: &str, jobs: usize) -> Duration {
    let pool = SqlitePool::connect(path).await.expect("the file opens");
    let mut storage = SqliteStorage::<usize>::new(&pool);
    for n in 0..jobs {
        storage.push(n).await.expect("it is stored");
    }
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let began = Instant::now();
    let worker = WorkerBuilder::new("bare")
        .backend(storage.poll_with_interval(Duration::from_millis(50)))
        .build(move |_: usize| {
            counted.fetch_add(1, SeqCst);
            async { Ok::<(), BoxDynError>(()) }
        });
    tokio::select! {
        ended = worker.run() => panic!("the worker ended: {ended:?}"),
        () = until(&count, jobs) => began.elapsed(),
    }
}

/// One row in a table of one's own, for comparison.
async fn insert(store: &Store, rows: i32) -> Duration {
    let mut times = Vec::new();
    let (create, insert) = (
        "create table if not exists audit (id integer, text text)",
        "insert into audit values ($1, 'a user signed up')",
    );
    match store {
        Store::Sqlite(_) => {
            let pool = SqlitePool::connect(&store.url()).await.expect("the file opens");
            sqlx::query(create).execute(&pool).await.expect("it is made");
            for n in 0..rows {
                let began = Instant::now();
                sqlx::query(insert).bind(n).execute(&pool).await.expect("it is stored");
                times.push(began.elapsed());
            }
        }
        Store::Postgres { url, .. } => {
            let pool = PgPool::connect(url).await.expect("the database answers");
            sqlx::query(create).execute(&pool).await.expect("it is made");
            for n in 0..rows {
                let began = Instant::now();
                sqlx::query(insert).bind(n).execute(&pool).await.expect("it is stored");
                times.push(began.elapsed());
            }
        }
    }
    median(times)
}

/// Jobs a second at a limit, of ours and of the engine's own worker. Twice, in turn: the second is told.
async fn drain_both(server: &Server, jobs: usize, limit: usize) -> [f64; 2] {
    let mut rates = [0.0; 2];
    for _ in 0..2 {
        rates[0] = rate(jobs, drain(&postgres(server).await, jobs, limit).await);
        let store = postgres(server).await;
        drop(store.engine().await);
        rates[1] = rate(jobs, drain_graphile(&store.url(), jobs, limit).await);
    }
    rates
}

async fn postgres(server: &Server) -> Store {
    Store::Postgres { url: server.database().await, server: None }
}

#[tokio::main]
async fn main() {
    let jobs = env::args().nth(1).map_or(3_000, |text| text.parse().expect("a number of jobs"));
    let server = Server::start_synced().expect("PostgreSQL is installed");
    println!("| | Postgres | Sqlite |\n|---|---|---|");
    let mut columns = Vec::new();
    for store in [postgres(&server).await, Store::sqlite()] {
        let (push, start) = push_to_start(&store, 200).await;
        columns.push([ms(start), ms(push), ms(insert(&store, 200).await)]);
    }
    let rows = ["push to start, median", "push, median", "a plain `INSERT`, median"];
    for (row, name) in rows.iter().enumerate() {
        println!("| {name} | {} | {} |", columns[0][row], columns[1][row]);
    }

    println!("\n| jobs at once | Postgres | its own worker | ratio | Sqlite |");
    println!("|---|---|---|---|---|");
    for limit in [1, 5, 20, 100] {
        let [ours, bare] = drain_both(&server, jobs, limit).await;
        let sqlite = rate(jobs, drain(&Store::sqlite(), jobs, limit).await);
        println!("| {limit} | {ours:.0} | {bare:.0} | {:.2} | {sqlite:.0} |", ours / bare);
    }

    let store = Store::sqlite();
    drop(store.engine().await);
    let bare = rate(jobs, drain_apalis(&store.url(), jobs).await);
    println!("\nThe worker of apalis-sqlite: {bare:.0} jobs a second.");
}
