//! Rows and jobs: the row is the memory, the job the work; the pool is closed when no job needs it.
//!
//! ```sh
//! cargo run --package tower-jobs-recipes --bin sql
//! curl -X POST http://127.0.0.1:3000/orders -d tea  # in another terminal
//! ```
//!
//! A job is spawned after its row is committed, and does its work from the row. A killed process loses the job, and
//! not the row: at its start the program spawns a job for each order that has no receipt.
#![expect(clippy::print_stdout, reason = "events are the program's output")]

use std::{env, process::ExitCode, time::Duration};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use tokio::net::TcpListener;
use tower_jobs::{BoxError, Jobs, JobsLayer, Scheduler, Shutdown};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS receipts (id INTEGER PRIMARY KEY REFERENCES orders, text TEXT);";
const WITHOUT_RECEIPT: &str = "SELECT id FROM orders WHERE id NOT IN (SELECT id FROM receipts)";

async fn order(
    State(pool): State<SqlitePool>,
    jobs: Jobs,
    item: String,
) -> Result<StatusCode, Response> {
    let insert = sqlx::query_scalar("INSERT INTO orders (item) VALUES (?) RETURNING id");
    let id: i64 = insert.bind(item).fetch_one(&pool).await.map_err(failed)?; // committed here
    // Refused, it has its receipt at the next start.
    let job = jobs.job("receipt").timeout(Duration::from_secs(10));
    let job = job.after_response(receipt(pool, id));
    Ok(job.map_or(StatusCode::ACCEPTED, |_| StatusCode::CREATED))
}

/// Can be repeated: the receipt of an order is written once.
async fn receipt(pool: SqlitePool, id: i64) -> Result<(), sqlx::Error> {
    let insert = "INSERT INTO receipts SELECT id, 'for ' || item FROM orders WHERE id = ? \
                  ON CONFLICT DO NOTHING";
    sqlx::query(insert).bind(id).execute(&pool).await?;
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed by `map_err`")]
fn failed(error: sqlx::Error) -> Response {
    println!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let file = env::var("DATABASE").unwrap_or_else(|_| "orders.sqlite".into());
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePoolOptions::new().max_connections(10).connect_with(options).await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;

    // Fewer than the connections, so that jobs leave some to the handlers.
    let scheduler = Scheduler::builder().limit(5).build();
    let closed = pool.clone();
    let shutdown = Shutdown::new(&scheduler).part("pool", move |part| async move {
        part.jobs_over().await;
        closed.close().await;
        println!("connections left: {}", closed.size());
    });
    for id in sqlx::query_scalar(WITHOUT_RECEIPT).fetch_all(&pool).await? {
        scheduler.job("receipt").spawn(receipt(pool.clone(), id)).await?;
    }
    let app = Router::new()
        .route("/orders", post(order))
        .layer(JobsLayer::new(scheduler))
        .with_state(pool);
    let address = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let serve = axum::serve(listener, app);
    let report = shutdown.serve(|stop| serve.with_graceful_shutdown(stop).into_future()).await;
    report.print();
    Ok(ExitCode::from(report))
}
