//! The status of a job, for the client that ordered it: 202 with a `Location`, then progress, then the result.
//!
//! ```sh
//! cargo run --example status
//! # open http://127.0.0.1:3000 in a browser, or in another terminal:
//! curl -i http://127.0.0.1:3000/exports -b user=ada -d name=Orders -d pages=50
//! curl -i http://127.0.0.1:3000/exports/THE-ID-OF-LOCATION -b user=ada
//! curl -i http://127.0.0.1:3000/exports/THE-ID-OF-LOCATION/result -b user=ada
//! ```
//!
//! | request | answer |
//! |---|---|
//! | `POST /exports` | 202 Accepted with the place of the status in `Location` (RFC 9110, section 15.3.3) |
//! | `GET /exports/ID` | `{"name": "Orders", "state": "active", "progress": 0.4}`; at the end `completed` with the `result`'s place, or `failed` with an `error` |
//! | `GET /exports/ID/result` | the file; 404 while there is none |
//! | either | 404 for an id that never was or is another user's, 410 for an export that is forgotten |
//!
//! - The id in the URL is random: a job's own id can be guessed, and is for logs. The routes check the owner too.
//! - The owner is known by the cookie `user`, which the page sets to a random text. A real application has a
//!   session, and sets its cookie `Secure`.
//! - The client reads an error only if the job made it for the client. The text of any other error, and of a
//!   panic, is for the log. To see all three, order 13, 17 or 19 pages.
//! - It is for **one process**. Behind a load balancer without stickiness, another process answers 404, and
//!   after a restart everything is 404. Where that is not enough, keep the status in a database.
//! - `ADDR` is where to listen: `127.0.0.1:3000` by default. `REMEMBER` is the maximum number of exports that
//!   are remembered after their end: 1000 by default.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "where a program listens, why it cannot, and how it ended is its output"
)]

use std::{
    collections::{HashMap, VecDeque},
    env, fmt, io,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    Form, Json, Router,
    extract::{FromRequestParts, Path, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tower_jobs::{
    Error, JobContext, JobId, JobState, Jobs, JobsLayer, Lookup, Outcome, Scheduler, Shutdown,
};
use uuid::Uuid;

type Refusal = (StatusCode, &'static str);

/// The user that a request is from, by its cookie.
struct User(String);

impl User {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|c| c.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';'));
        let user = pairs.find_map(|pair| pair.trim().strip_prefix("user="))?;
        (!user.is_empty()).then(|| Self(user.to_owned()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let cure = "The cookie `user` is missing: open the page first.";
        Self::of(&parts.headers).ok_or((StatusCode::UNAUTHORIZED, cure))
    }
}

/// What a user orders.
#[derive(Clone, Deserialize)]
struct Order {
    name: String,
    pages: u16,
}

impl Order {
    fn is_valid(&self) -> bool {
        let name = self.name.trim();
        let is_text = !name.is_empty() && !name.contains(char::is_control);
        is_text && name.chars().count() <= 100 && (1..=1000).contains(&self.pages)
    }

    /// The file. A real export writes it to a store, and its place is kept instead.
    fn file(&self) -> String {
        (1..=self.pages).map(|page| format!("{}, page {page}\n", self.name)).collect()
    }
}

/// An export that was ordered.
#[derive(Clone)]
struct Export {
    job: JobId,
    owner: String,
    order: Order,
    /// The error of the job, if it is for the client.
    error: Arc<OnceLock<String>>,
}

/// The exports by the random id of their URL.
#[derive(Clone)]
struct Exports {
    known: Arc<Mutex<Known>>,
    /// Maximum number that is known, apart from those that have not ended.
    most: usize,
}

#[derive(Default)]
struct Known {
    exports: HashMap<String, Export>,
    /// The oldest first.
    order: VecDeque<String>,
}

impl Exports {
    /// Twice as many as the scheduler remembers: that an export is forgotten is known longer than the export.
    fn new(remember: usize) -> Self {
        Self { known: Arc::default(), most: remember.saturating_mul(2) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, scheduler: &Scheduler, export: Export) -> String {
        let id = Uuid::new_v4().to_string();
        let mut known = self.known();
        known.exports.insert(id.clone(), export);
        known.order.push_back(id.clone());
        // Two looks for each one added, so that it shrinks again after a time with many that had not ended.
        for _ in 0..2 {
            if known.order.len() <= self.most {
                break;
            }
            let oldest = known.order.pop_front().unwrap_or_default();
            match known.exports.get(&oldest).map(|export| scheduler.get(export.job)) {
                Some(Lookup::Live(_)) => known.order.push_back(oldest),
                _ => drop(known.exports.remove(&oldest)),
            }
        }
        id
    }

    fn of(&self, id: &str, user: &User) -> Option<Export> {
        self.known().exports.get(id).filter(|export| export.owner == user.0).cloned()
    }
}

/// An error of an export.
#[derive(Debug)]
enum ExportError {
    /// For the client: it can order fewer pages.
    NoPage(u16),
    /// For the log alone.
    Store(io::Error),
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPage(page) => write!(f, "page {page} is missing"),
            Self::Store(error) => write!(f, "the export was not stored: {error}"),
        }
    }
}

impl std::error::Error for ExportError {}

/// Writes one page after the other.
async fn export(context: JobContext, pages: u16) -> Result<(), ExportError> {
    for page in 1..=pages {
        sleep(Duration::from_millis(100)).await;
        context.progress(f32::from(page) / f32::from(pages));
    }
    match pages {
        13 => Err(ExportError::NoPage(13)),
        17 => Err(ExportError::Store(io::Error::other("no route to 10.0.0.17"))),
        19 => panic!("a bug, at the user's key 0f3a9"),
        _ => Ok(()),
    }
}

/// Starts an export. While too many wait, it answers 503 after a second.
async fn order(
    State(exports): State<Exports>,
    User(owner): User,
    jobs: Jobs,
    Form(order): Form<Order>,
) -> Result<Response, Error> {
    if !order.is_valid() {
        let cure = "Give a name of 1 to 100 characters, and from 1 to 1000 pages.";
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, cure).into_response());
    }
    let (pages, error) = (order.pages, Arc::new(OnceLock::new()));
    let for_client = error.clone();
    let job = jobs.job("export").spawn_with(move |context| async move {
        let written = export(context, pages).await;
        if let Err(error @ ExportError::NoPage(_)) = &written {
            for_client.get_or_init(|| error.to_string());
        }
        written
    });
    let Ok(job) = timeout(Duration::from_secs(1), job).await else {
        let refusal = [(header::RETRY_AFTER, "5")];
        let text = "Too many exports are waiting. Try again later.";
        return Ok((StatusCode::SERVICE_UNAVAILABLE, refusal, text).into_response());
    };
    let job = job?.id();
    let id = exports.add(jobs.scheduler(), Export { job, owner, order, error });
    let place = format!("/exports/{id}");
    let body = Json(json!({ "state": "waiting", "status": place }));
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], body).into_response())
}

/// How far an export is.
enum Status {
    Waiting,
    Active(f32),
    Completed,
    Failed,
}

impl Exports {
    /// The export and its status, or the refusal.
    fn status(&self, id: &str, user: &User, jobs: &Jobs) -> Result<(Export, Status), Refusal> {
        let Some(export) = self.of(id, user) else {
            return Err((StatusCode::NOT_FOUND, "There is no such export of yours."));
        };
        let status = match jobs.scheduler().get(export.job) {
            Lookup::Live(job) => match job.state {
                JobState::Pending | JobState::Deferred => Status::Waiting,
                _ => Status::Active(job.progress.unwrap_or(0.0)),
            },
            Lookup::Ended(ended) if ended.outcome == Outcome::Completed => Status::Completed,
            Lookup::Ended(_) => Status::Failed,
            _ => return Err((StatusCode::GONE, "This export is forgotten.")),
        };
        Ok((export, status))
    }
}

async fn status(
    State(exports): State<Exports>,
    user: User,
    jobs: Jobs,
    Path(id): Path<String>,
) -> Response {
    let (export, status) = match exports.status(&id, &user, &jobs) {
        Ok(found) => found,
        Err(refusal) => return refusal.into_response(),
    };
    let mut body = json!({ "name": export.order.name });
    match status {
        Status::Waiting => body["state"] = json!("waiting"),
        Status::Active(progress) => {
            body["state"] = json!("active");
            body["progress"] = json!(progress);
        }
        Status::Completed => {
            body["state"] = json!("completed");
            body["progress"] = json!(1.0);
            body["result"] = json!(format!("/exports/{id}/result"));
        }
        Status::Failed => {
            let unsaid = || format!("something went wrong; ask us about job {}", export.job);
            body["state"] = json!("failed");
            body["error"] = json!(export.error.get().cloned().unwrap_or_else(unsaid));
        }
    }
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

async fn result(
    State(exports): State<Exports>,
    user: User,
    jobs: Jobs,
    Path(id): Path<String>,
) -> Response {
    match exports.status(&id, &user, &jobs) {
        Ok((export, Status::Completed)) => {
            let attachment = "attachment; filename=\"export.txt\"";
            let headers = [
                (header::CONTENT_DISPOSITION, attachment),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (header::CACHE_CONTROL, "no-store"),
            ];
            (headers, export.order.file()).into_response()
        }
        Ok((_, Status::Failed)) => {
            (StatusCode::NOT_FOUND, "The export has failed: it has no result.").into_response()
        }
        Ok(_) => (StatusCode::NOT_FOUND, "The export has not ended.").into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// The page. It gives a user that is new a name.
async fn page(headers: HeaderMap) -> Response {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                  img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    let content = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let page = (content, include_str!("status/page.html"));
    if User::of(&headers).is_some() {
        return page.into_response();
    }
    let cookie = format!("user={}; Path=/; HttpOnly; SameSite=Strict", Uuid::new_v4());
    ([(header::SET_COOKIE, cookie)], page).into_response()
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("status/page.css"))
}

async fn script() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("status/page.js"))
}

/// The value of REMEMBER.
fn remember() -> Result<usize, String> {
    match env::var("REMEMBER") {
        Ok(text) => text.parse().map_err(|error| format!("REMEMBER {text:?}: {error}; give 1000")),
        Err(_) => Ok(1000),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let remember = match remember() {
        Ok(remember) => remember,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let scheduler = Scheduler::builder().limit(10).pending_limit(100).remember(remember).build();
    let shutdown = Shutdown::new(&scheduler);
    let app = Router::new()
        .route("/", get(page))
        .route("/page.css", get(style))
        .route("/page.js", get(script))
        .route("/exports", post(order))
        .route("/exports/{id}", get(status))
        .route("/exports/{id}/result", get(result))
        .layer(JobsLayer::new(scheduler))
        .with_state(Exports::new(remember));
    let address = env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = match TcpListener::bind(&address).await {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!(
                "ADDR {address:?}: {error}; give HOST:PORT of a free port, like 127.0.0.1:3000"
            );
            return ExitCode::FAILURE;
        }
    };
    let address = listener.local_addr().map_or(address, |address| address.to_string());
    let report = shutdown
        .serve(|stop| {
            println!("listening on http://{address}");
            axum::serve(listener, app).with_graceful_shutdown(stop).into_future()
        })
        .await;
    report.print();
    ExitCode::from(report)
}
