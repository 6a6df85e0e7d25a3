//! Dead letters as a tab of the live page.

use std::{fmt::Write, time::SystemTime};

use axum::{
    Router,
    extract::{OriginalUri, Path, State},
    response::{IntoResponse, Redirect, Response},
    routing::post,
};
use http::StatusCode;
use tower_jobs::BoxError;
use tower_jobs_dashboard::{Fragment, Tab, TabContext, escape};

use crate::{durable::Durable, engine::DeadLetter, job::DurableId};

/// Most dead letters that the page lists.
const LISTED: usize = 100;

const COLUMNS: [&str; 5] = ["Job", "Kind", "Starts", "Ended", "Error"];

/// A tab of `tower-jobs-dashboard`: the store's figures, and its dead letters.
///
/// With [`allow_actions`](tower_jobs_dashboard::Dashboard::allow_actions) each dead letter can be retried and
/// discarded. Payloads are not shown.
///
/// ```
/// # fn page(scheduler: &tower_jobs::Scheduler, durable: &tower_jobs_durable::Durable) -> axum::Router {
/// use tower_jobs_dashboard::Dashboard;
/// use tower_jobs_durable::DeadLetters;
///
/// Dashboard::new(scheduler).and(durable.scheduler()).tab(DeadLetters::new(durable)).allow_actions().router()
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DeadLetters(Durable);

impl DeadLetters {
    /// Makes the tab.
    pub fn new(durable: &Durable) -> Self {
        Self(durable.clone())
    }

    async fn html(&self, context: &TabContext) -> Result<String, BoxError> {
        let Some(admin) = self.0.admin() else {
            return Ok("<p>The engine shows no figures and no dead letters.</p>".into());
        };
        let depth = admin.depth().await?;
        let letters = admin.dead_letters(LISTED).await?;
        let oldest = depth
            .oldest_ready
            .map_or_else(String::new, |age| format!(", the oldest for {} s", age.as_secs()));
        let mut html = format!(
            "<p>{} ready{oldest}; {} later; {} running; {} dead.</p>",
            depth.ready, depth.later, depth.running, depth.dead
        );
        if letters.is_empty() {
            html += "<p>No dead letters.</p>";
            return Ok(html);
        }
        // Roles are written out, because a phone shows rows as blocks.
        html += "<table class=\"stacked\" role=\"table\"><caption>Dead letters, the newest first</caption>\
            <thead role=\"rowgroup\"><tr role=\"row\">";
        let actions = context.allows_actions.then_some("Actions");
        for column in COLUMNS.into_iter().chain(actions) {
            write!(html, "<th scope=\"col\" role=\"columnheader\">{column}</th>")?;
        }
        html += "</tr></thead><tbody role=\"rowgroup\">";
        for letter in &letters {
            write_row(&mut html, letter, context)?;
        }
        html += "</tbody></table>";
        Ok(html)
    }
}

fn write_row(html: &mut String, letter: &DeadLetter, context: &TabContext) -> Result<(), BoxError> {
    let id = escape(letter.id.as_str());
    let ended = letter.ended.map_or_else(String::new, ago);
    let (kind, starts, error) =
        (escape(&letter.kind), letter.starts.to_string(), escape(&letter.error));
    html.push_str("<tr role=\"row\">");
    for (column, value) in COLUMNS.iter().zip([&id, &kind, &starts, &ended, &error]) {
        write!(html, "<td role=\"cell\" data-l=\"{column}\">{value}</td>")?;
    }
    if context.allows_actions {
        let base = escape(&context.base);
        html.push_str("<td role=\"cell\">");
        for (action, label) in [("retry", "Retry"), ("discard", "Discard")] {
            write!(
                html,
                "<form method=\"post\" action=\"{base}/{action}/{id}\">\
                 <button aria-label=\"{label} job {id}\">{label}</button></form>"
            )?;
        }
        html.push_str("</td>");
    }
    html.push_str("</tr>");
    Ok(())
}

fn ago(at: SystemTime) -> String {
    let seconds = at.elapsed().unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3_600),
    }
}

impl Tab for DeadLetters {
    fn id(&self) -> &str {
        "durable"
    }

    fn title(&self) -> &str {
        "Durable"
    }

    fn fragment(&self, context: TabContext) -> Fragment<'_> {
        Box::pin(async move {
            self.html(&context).await.unwrap_or_else(|error| {
                format!("<p>The store does not answer: {}</p>", escape(&error.to_string()))
            })
        })
    }

    fn routes(&self) -> Router {
        Router::new()
            .route("/retry/{id}", post(retry))
            .route("/discard/{id}", post(discard))
            .with_state(self.0.clone())
    }
}

async fn retry(
    State(durable): State<Durable>,
    Path(id): Path<String>,
    uri: OriginalUri,
) -> Response {
    let id = DurableId::new(id);
    let Some(admin) = durable.admin() else { return StatusCode::NOT_FOUND.into_response() };
    answer(admin.retry(&id).await, &uri)
}

async fn discard(
    State(durable): State<Durable>,
    Path(id): Path<String>,
    uri: OriginalUri,
) -> Response {
    let id = DurableId::new(id);
    let Some(admin) = durable.admin() else { return StatusCode::NOT_FOUND.into_response() };
    answer(admin.discard(&id).await, &uri)
}

/// Back to the tab, two levels up.
fn answer(done: Result<bool, BoxError>, uri: &OriginalUri) -> Response {
    let tab = uri.path().rsplitn(3, '/').last().unwrap_or("/");
    match done {
        Ok(true) => Redirect::to(tab).into_response(),
        Ok(false) => {
            (StatusCode::NOT_FOUND, "there is no such dead letter any more").into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a dead letter could not be changed");
            (StatusCode::SERVICE_UNAVAILABLE, "the store does not answer").into_response()
        }
    }
}
