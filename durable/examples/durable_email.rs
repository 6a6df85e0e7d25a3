//! A welcome e-mail that is not lost: it is stored in the transaction that stores the user.
//!
//! ```sh
//! cargo run -p tower-jobs-durable --example durable_email
//!
//! # in another terminal
//! curl -i http://127.0.0.1:3000/users -H 'content-type: application/json' -d '{"email": "ada@example.org"}'
//! ```
//!
//! `POST /users` answers 201 once the user and the e-mail are committed. A crash after that loses neither: start
//! the program again with the same `DATABASE_URL`, and the e-mail is sent. On Ctrl-C or SIGTERM the program
//! stops accepting, ends the e-mails that are being sent, and leaves the others stored.
//!
//! | variable       | meaning                                                  | default                    |
//! |----------------|----------------------------------------------------------|----------------------------|
//! | `ADDR`         | where to listen; port 0 takes a free one                 | `127.0.0.1:3000`           |
//! | `DATABASE_URL` | `postgres://USER:PASSWORD@HOST/NAME`, or an SQLite file  | a file in a new folder     |
#![expect(clippy::print_stdout, reason = "where a program listens and how it ended is its output")]

use std::{env, process::ExitCode, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;
use tokio::net::TcpListener;
use tower_jobs::{BoxError, Scheduler, Shutdown};
use tower_jobs_durable::{Durable, DurableContext, DurableJob, Engine, Outbox, Sqlite};

const TABLES: &str = "CREATE TABLE IF NOT EXISTS users (email TEXT PRIMARY KEY)";
const INSERT: &str = "INSERT INTO users VALUES ($1) ON CONFLICT DO NOTHING";

#[derive(Serialize, Deserialize)]
struct WelcomeEmail {
    to: String,
}

impl DurableJob for WelcomeEmail {
    const KIND: &str = "welcome_email";
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(10));
}

/// May run again after a crash. A mail server that knows the id sends it once.
async fn send(email: WelcomeEmail, context: DurableContext) {
    println!("message {} to {}, try {}", context.id, email.to, context.attempt);
}

#[derive(Deserialize)]
struct NewUser {
    email: String,
}

async fn sign_up(
    State(database): State<Database>,
    outbox: Outbox,
    Json(user): Json<NewUser>,
) -> Result<StatusCode, Response> {
    let email = WelcomeEmail { to: user.email.clone() };
    match database {
        Database::Sqlite(pool) => {
            // A transaction that reads before it writes would not wait for another writer.
            let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            let inserted = sqlx::query(INSERT).bind(user.email).execute(&mut *transaction);
            if inserted.await.map_err(failed)?.rows_affected() == 0 {
                return Ok(StatusCode::CONFLICT);
            }
            let pushed = outbox.push_in(&mut transaction, email).await;
            pushed.map_err(IntoResponse::into_response)?;
            transaction.commit().await.map_err(failed)?;
        }
        #[cfg(feature = "postgres")]
        Database::Postgres(pool) => {
            let mut transaction = pool.begin().await.map_err(failed)?;
            let inserted = sqlx::query(INSERT).bind(user.email).execute(&mut *transaction);
            if inserted.await.map_err(failed)?.rows_affected() == 0 {
                return Ok(StatusCode::CONFLICT);
            }
            let pushed = outbox.push_in(&mut transaction, email).await;
            pushed.map_err(IntoResponse::into_response)?;
            transaction.commit().await.map_err(failed)?;
        }
    }
    Ok(StatusCode::CREATED)
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed by `map_err`")]
fn failed(error: sqlx::Error) -> Response {
    println!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

/// Where users are, beside the jobs.
#[derive(Clone)]
enum Database {
    Sqlite(SqlitePool),
    #[cfg(feature = "postgres")]
    Postgres(sqlx::PgPool),
}

impl Database {
    async fn open() -> Result<(Self, Arc<dyn Engine>), BoxError> {
        let url = env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
        #[cfg(feature = "postgres")]
        if let Some(url) = url.as_deref().filter(|url| url.starts_with("postgres")) {
            let postgres = tower_jobs_durable::Postgres::connect(url).await?;
            postgres.migrate().await?;
            let pool = postgres.pool().clone();
            sqlx::raw_sql(TABLES).execute(&pool).await?;
            return Ok((Self::Postgres(pool), Arc::new(postgres)));
        }
        let path = match url {
            Some(path) => path.into(),
            // Kept, so that the next start can go on.
            None => tempfile::tempdir()?.keep().join("jobs.db"),
        };
        println!("the jobs are in {}", path.display());
        let sqlite = Sqlite::open(&path).await?;
        let pool = sqlite.pool().clone();
        sqlx::raw_sql(TABLES).execute(&pool).await?;
        Ok((Self::Sqlite(pool), Arc::new(sqlite)))
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let (database, engine) = Database::open().await?;
    let durable = Durable::builder_of(engine).register(send).start();
    // For jobs that need not be stored; there are none here.
    let shutdown = Shutdown::new(&Scheduler::new()).part("durable", durable.part());
    let app =
        Router::new().route("/users", post(sign_up)).layer(durable.layer()).with_state(database);

    let address = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let serve = axum::serve(listener, app);
    let report = shutdown.serve(|stop| serve.with_graceful_shutdown(stop).into_future()).await;
    report.print();
    Ok(ExitCode::from(report))
}
