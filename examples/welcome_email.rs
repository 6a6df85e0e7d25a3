//! The main job of this crate: a handler answers, then its e-mail goes out.
//!
//! ```sh
//! cargo run --example welcome_email
//!
//! # in another terminal
//! curl -i http://127.0.0.1:3000/signup -H 'content-type: application/json' \
//!     -d '{"name": "Ada", "email": "ada@example.org"}'
//! cat outbox/*.eml
//! curl http://127.0.0.1:3000/stats
//! ```
//!
//! `POST /signup` answers 202 with the job's id; the message is rendered and sent after that. On
//! Ctrl-C or SIGTERM the program stops accepting, sends what it has accepted, and prints what
//! became of it. It exits with 0 only if none of that was lost or failed.
//!
//! | variable   | meaning                                                             | default          |
//! |------------|---------------------------------------------------------------------|------------------|
//! | `ADDR`     | where to listen; port 0 takes a free one                            | `127.0.0.1:3000` |
//! | `SMTP_URL` | the mail server: `smtp://HOST:PORT` or `smtps://USER:PASSWORD@HOST` | no server        |
//! | `OUTBOX`   | without a server, the folder that gets the messages as `.eml` files | `outbox`         |
#![expect(clippy::print_stdout, reason = "where a program listens and how it ended is its output")]

use std::{env, fs, io, process::ExitCode, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use lettre::{
    AsyncFileTransport, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tower_jobs::{
    BoxError, Jobs, JobsLayer, Scheduler, Shutdown, ShutdownReport, SpawnError, Stats,
};

/// Messages sent at once, and messages that may wait for that: no more than can be sent within
/// `GRACE`.
const AT_ONCE: usize = 10;
const QUEUE: usize = 1_000;
/// One message may take this long: lettre's own timeout covers only the connecting.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// All this takes no longer once the program is told to stop (Kubernetes kills after 30 s) ...
const GRACE: Duration = Duration::from_secs(20);
/// ... and open connections may take this much of it.
const CONNECTION_GRACE: Duration = Duration::from_secs(5);

async fn signup(
    State(mailer): State<Mailer>,
    jobs: Jobs,
    Json(Signup(to)): Json<Signup>,
) -> Result<impl IntoResponse, SpawnError> {
    let job = jobs
        .job("welcome e-mail")
        .timeout(SEND_TIMEOUT)
        .try_spawn(async move { mailer.welcome(to).await })?; // no place left: 503, Retry-After
    Ok((StatusCode::ACCEPTED, Json(json!({ "job": job.id() }))))
}

async fn stats(jobs: Jobs) -> Json<Stats> {
    Json(jobs.scheduler().stats())
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    match run().await {
        Ok(report) => {
            report.print();
            ExitCode::from(report)
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ShutdownReport<io::Result<()>>, BoxError> {
    let mailer = Mailer::from_env()?;
    let scheduler = Scheduler::builder().limit(AT_ONCE).pending_limit(QUEUE).build();
    let app = Router::new()
        .route("/signup", post(signup))
        .route("/stats", get(stats))
        .layer(DefaultBodyLimit::max(4 * 1024))
        .layer(JobsLayer::new(scheduler.clone()))
        .with_state(mailer);

    let addr = setting("ADDR")?.unwrap_or_else(|| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(&addr).await.map_err(|error| {
        format!("ADDR {addr:?}: {error}; give HOST:PORT of a free port, like 127.0.0.1:3000")
    })?;
    let addr = listener.local_addr()?;

    let shutdown = Shutdown::new(&scheduler).grace(GRACE).connection_grace(CONNECTION_GRACE);
    Ok(shutdown
        .serve(|stop| {
            println!("listening on http://{addr}");
            axum::serve(listener, app).with_graceful_shutdown(stop).into_future()
        })
        .await)
}

/// An environment variable; an empty one counts as unset.
fn setting(name: &str) -> Result<Option<String>, BoxError> {
    match env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(format!("{name}: {error}; give it in UTF-8").into()),
    }
}

/// Somebody we can write to. A [`Form`] that gives none never reaches the handler: axum answers
/// 422 with the text of the error.
#[derive(Deserialize)]
#[serde(try_from = "Form")]
struct Signup(Mailbox);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    name: String,
    email: String,
}

impl TryFrom<Form> for Signup {
    type Error = String;

    fn try_from(Form { name, email }: Form) -> Result<Self, String> {
        let name = name.trim();
        if !(1..=100).contains(&name.chars().count()) || name.contains(char::is_control) {
            return Err(format!(
                "name {name:?} is refused; give 1 to 100 characters, without control characters"
            ));
        }
        let email = email.parse().map_err(|error| {
            format!("email {email:?} is refused ({error}); give one like ada@example.org")
        })?;
        Ok(Self(Mailbox::new(Some(name.into()), email)))
    }
}

#[derive(Clone)]
enum Mailer {
    Server(AsyncSmtpTransport<Tokio1Executor>),
    Folder(AsyncFileTransport<Tokio1Executor>),
}

impl Mailer {
    fn from_env() -> Result<Self, BoxError> {
        if let Some(url) = setting("SMTP_URL")? {
            let server = AsyncSmtpTransport::<Tokio1Executor>::from_url(&url).map_err(|error| {
                // What stands before the @ may be a password.
                let shown = url.rsplit('@').next().unwrap_or_default();
                format!("SMTP_URL {shown:?}: {error}; give smtp://HOST:PORT or smtps://HOST:PORT")
            })?;
            return Ok(Self::Server(server.build()));
        }
        let folder = setting("OUTBOX")?.unwrap_or_else(|| "outbox".into());
        fs::create_dir_all(&folder).map_err(|error| {
            format!("OUTBOX {folder:?}: {error}; give a folder that can be created")
        })?;
        Ok(Self::Folder(AsyncFileTransport::new(folder)))
    }

    async fn welcome(&self, to: Mailbox) -> Result<(), BoxError> {
        let name = to.name.clone().unwrap_or_default();
        let message = Message::builder()
            .from("Welcome desk <welcome@example.com>".parse()?)
            .to(to)
            .subject(format!("Welcome, {name}!"))
            .message_id(None)
            .header(ContentType::TEXT_PLAIN)
            .body(format!("Hello {name},\n\nit is good to have you here.\n"))?;
        match self {
            Self::Server(server) => drop(server.send(message).await?),
            Self::Folder(folder) => drop(folder.send(message).await?),
        }
        Ok(())
    }
}
