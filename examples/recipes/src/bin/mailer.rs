//! Sends e-mails over a pool of connections, whose exchanges are never cut short.
//!
//! ```sh
//! SMTP_URL=smtp://127.0.0.1:1025 cargo run --package tower-jobs-recipes --bin mailer
//! curl -X POST http://127.0.0.1:3000/signup -d ada@example.org  # in another terminal
//! ```
//!
//! A run timeout drops a future at its `await`. If that is inside an SMTP exchange of the async transport, the
//! connection goes back to the pool half used, and the next message reads the answer to this one. So each message
//! is sent by a blocking job with the blocking transport: no timeout cuts its exchange, and the transport's own
//! timeout, of each answer, takes a connection out of the pool.
#![expect(clippy::print_stdout, reason = "events are the program's output")]

use std::{env, process::ExitCode, time::Duration};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::post};
use lettre::{Message, SmtpTransport, Transport, transport::smtp::PoolConfig};
use tokio::{net::TcpListener, runtime::Runtime, time::timeout};
use tower_jobs::{BoxError, Jobs, JobsLayer, Scheduler, Shutdown, SpawnError};

/// Messages that are sent at once, and so connections and threads.
const AT_ONCE: u16 = 10;
/// A caller waits so long for a place in the queue.
const PATIENCE: Duration = Duration::from_secs(1);

fn mailer(url: &str, answer: Duration) -> Result<SmtpTransport, BoxError> {
    let pool = PoolConfig::new().max_size(AT_ONCE.into()).idle_timeout(Duration::from_secs(30));
    Ok(SmtpTransport::from_url(url)?.pool_config(pool).timeout(Some(answer)).build())
}

async fn signup(
    State(mailer): State<SmtpTransport>,
    jobs: Jobs,
    to: String,
) -> Result<StatusCode, axum::response::Response> {
    let message = welcome(&to).map_err(|error| {
        (StatusCode::UNPROCESSABLE_ENTITY, format!("{to:?}: {error}")).into_response()
    })?;
    let job = jobs.job(format!("welcome {to}"));
    let send = move || mailer.send(&message).map(|_| println!("sent to {to}"));
    let spawned = timeout(PATIENCE, job.spawn_blocking(send)).await;
    let spawned = spawned.unwrap_or(Err(SpawnError::TimedOut)); // the queue is full: 503
    spawned.map_err(IntoResponse::into_response)?;
    Ok(StatusCode::ACCEPTED)
}

fn welcome(to: &str) -> Result<Message, BoxError> {
    let message = Message::builder().from("welcome@example.com".parse()?).to(to.parse()?);
    Ok(message
        .subject("Welcome")
        .message_id(None)
        .body("It is good to have you here.\n".to_owned())?)
}

fn main() -> Result<ExitCode, BoxError> {
    let runtime = Runtime::new()?;
    let report = runtime.block_on(run());
    runtime.shutdown_background(); // a message that still waits for an answer holds a thread
    report
}

async fn run() -> Result<ExitCode, BoxError> {
    let answer = env::var("ANSWER_SECONDS").unwrap_or_else(|_| "10".into()).parse()?;
    let mailer = mailer(&env::var("SMTP_URL")?, Duration::from_secs(answer))?;
    let scheduler = Scheduler::builder()
        .limit(usize::from(AT_ONCE))
        .pending_limit(1_000)
        .on_failure(|failure| println!("not sent: {failure}"))
        .build();
    let pool = mailer.clone();
    let shutdown = Shutdown::new(&scheduler).part("mail connections", |part| async move {
        part.jobs_over().await;
        #[expect(clippy::disallowed_methods, reason = "the scheduler is closed")]
        let goodbye = tokio::task::spawn_blocking(move || pool.shutdown()); // QUIT
        goodbye.await
    });
    let app = Router::new()
        .route("/signup", post(signup))
        .layer(JobsLayer::new(scheduler))
        .with_state(mailer);
    let address = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let serve = axum::serve(listener, app);
    let report = shutdown.serve(|stop| serve.with_graceful_shutdown(stop).into_future()).await;
    report.print();
    Ok(ExitCode::from(report))
}
