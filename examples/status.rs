//! The status of a job, for the client that ordered it: 202 with a `Location`, then progress, then the result.
//!
//! ```sh
//! cargo run --example status
//! # open http://127.0.0.1:3000 in a browser, or in another terminal:
//! curl -i -X POST http://127.0.0.1:3000/exports -H 'x-user: ada' -d 5
//! curl -i http://127.0.0.1:3000/exports/THE-ID-OF-LOCATION -H 'x-user: ada'
//! ```
//!
//! `POST /exports` takes the number of pages, and answers 202 Accepted with the place of the status in `Location`
//! (RFC 9110, section 15.3.3). `GET` on that place gives `{"state": "active", "progress": 0.4}`, and at the end
//! the result's place or the error. It answers 404 for what never was or is another user's, and 410 for what
//! is forgotten.
//!
//! - The id in the URL is random: a job's own id can be guessed, and is for logs. The route checks the owner too.
//! - It is for **one process**. Behind a load balancer without stickiness, another process answers 404, and
//!   after a restart everything is 404. Where that is not enough, keep the status in a database.
//! - `ADDR` is where to listen: `127.0.0.1:3000` by default.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "where a program listens, why it cannot, and how it ended is its output"
)]

use std::{
    collections::{HashMap, VecDeque},
    env,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, header, request::Parts},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio::{net::TcpListener, time::sleep};
use tower_jobs::{
    Error, JobContext, JobId, JobState, Jobs, JobsLayer, Lookup, Outcome, Scheduler, Shutdown,
};
use uuid::Uuid;

/// Exports that are remembered after their end.
const REMEMBERED: usize = 1000;

/// The user that a request names. A real application has this from its session.
struct User(String);

impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let name = parts.headers.get("x-user").and_then(|name| name.to_str().ok());
        let name = name.filter(|name| !name.is_empty());
        name.map(|name| Self(name.to_owned()))
            .ok_or((StatusCode::UNAUTHORIZED, "say who you are in the header x-user"))
    }
}

/// The exports by the random id of their URL.
#[derive(Clone, Default)]
struct Exports(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    jobs: HashMap<String, (JobId, String)>,
    /// The oldest first. It may be forgotten before a younger one, but never before its end.
    order: VecDeque<String>,
}

impl Exports {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, scheduler: &Scheduler, job: JobId, owner: String) -> String {
        let id = Uuid::new_v4().to_string();
        let mut known = self.known();
        known.jobs.insert(id.clone(), (job, owner));
        known.order.push_back(id.clone());
        // Twice as many: that a job is forgotten is known longer than the job.
        if known.order.len() > 2 * REMEMBERED {
            let oldest = known.order.pop_front().unwrap_or_default();
            match known.jobs.get(&oldest).map(|(job, _)| scheduler.get(*job)) {
                Some(Lookup::Live(_)) => known.order.push_back(oldest),
                _ => drop(known.jobs.remove(&oldest)),
            }
        }
        id
    }

    fn of(&self, id: &str, user: &str) -> Option<JobId> {
        let known = self.known();
        known.jobs.get(id).filter(|(_, owner)| owner == user).map(|(job, _)| *job)
    }
}

/// Orders an export of so many pages.
async fn order(
    State(exports): State<Exports>,
    User(user): User,
    jobs: Jobs,
    pages: String,
) -> Result<Response, Error> {
    let Some(pages) = pages.trim().parse().ok().filter(|pages| (1..=1000).contains(pages)) else {
        let cure = "send a number of pages from 1 to 1000";
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, cure).into_response());
    };
    let job = jobs.job("export").spawn_with(move |context| export(context, pages)).await?;
    let place = format!("/exports/{}", exports.add(jobs.scheduler(), job.id(), user));
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], "accepted").into_response())
}

/// Writes one page after the other. There is no page 13.
async fn export(context: JobContext, pages: u16) -> Result<(), &'static str> {
    for page in 1..=pages {
        sleep(Duration::from_millis(100)).await;
        if page == 13 {
            return Err("page 13 is missing");
        }
        context.progress(f32::from(page) / f32::from(pages));
    }
    Ok(())
}

async fn status(
    State(exports): State<Exports>,
    User(user): User,
    jobs: Jobs,
    Path(id): Path<String>,
) -> Response {
    let Some(job) = exports.of(&id, &user) else {
        return (StatusCode::NOT_FOUND, "there is no such export of yours").into_response();
    };
    match jobs.scheduler().get(job) {
        Lookup::Live(job) => {
            let is_waiting = matches!(job.state, JobState::Pending | JobState::Deferred);
            let state = if is_waiting { "waiting" } else { "active" };
            Json(json!({ "state": state, "progress": job.progress.unwrap_or(0.0) })).into_response()
        }
        Lookup::Ended(ended) if ended.outcome == Outcome::Completed => {
            let result = format!("/exports/{id}/result");
            Json(json!({ "state": "completed", "progress": 1.0, "result": result })).into_response()
        }
        // The error is one that this program made for its users.
        Lookup::Ended(ended) => {
            let error = ended.error.unwrap_or_else(|| "the export was cancelled".to_owned());
            Json(json!({ "state": "failed", "error": error })).into_response()
        }
        _ => (StatusCode::GONE, "this export is forgotten").into_response(),
    }
}

async fn result(
    State(exports): State<Exports>,
    User(user): User,
    Path(id): Path<String>,
) -> Response {
    match exports.of(&id, &user) {
        Some(_) => "the pages\n".into_response(),
        None => (StatusCode::NOT_FOUND, "there is no such export of yours").into_response(),
    }
}

const PAGE: &str = r##"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Export</title>
<style>
  :root { color-scheme: light dark }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 32rem; margin: 2rem auto; padding: 0 1rem }
  progress { width: 100%; height: 1.5rem }
</style>
<h1>Export</h1>
<form>
  <label>Pages <input name="pages" type="number" value="8" min="1" max="1000" required></label>
  <button>Export</button>
</form>
<p><progress max="1" value="0" aria-label="progress"></progress>
<p id="state" role="status">Nothing ordered.</p>
<script>
  const form = document.querySelector("form"), bar = document.querySelector("progress");
  const state = document.querySelector("#state"), headers = { "x-user": "ada" };
  const pause = ms => new Promise(done => setTimeout(done, ms));
  form.addEventListener("submit", async event => {
    event.preventDefault();
    form.querySelector("button").disabled = true;
    try { await run(form.pages.value) } catch (error) { state.textContent = "Failed: " + error.message }
    form.querySelector("button").disabled = false;
  });
  async function run(pages) {
    bar.value = 0;
    const ordered = await fetch("/exports", { method: "POST", headers, body: pages });
    if (!ordered.ok) throw new Error(await ordered.text());
    const place = ordered.headers.get("location");
    for (;;) {
      const answer = await fetch(place, { headers });
      if (!answer.ok) throw new Error(await answer.text());
      const job = await answer.json();
      if (job.state === "failed") throw new Error(job.error);
      bar.value = job.progress;
      state.textContent = job.state === "completed" ? "Done: " + job.result : "Working: " + job.state;
      if (job.state === "completed") return;
      await pause(100);
    }
  }
</script>
"##;

#[tokio::main]
async fn main() -> ExitCode {
    let scheduler = Scheduler::builder().limit(4).remember(REMEMBERED).build();
    let shutdown = Shutdown::new(&scheduler);
    let app = Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/exports", post(order))
        .route("/exports/{id}", get(status))
        .route("/exports/{id}/result", get(result))
        .layer(JobsLayer::new(scheduler))
        .with_state(Exports::default());
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
