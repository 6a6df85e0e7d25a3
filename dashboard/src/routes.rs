//! The routes.

use std::{borrow::Cow, convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{OriginalUri, Path, Query, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use http::{HeaderValue, StatusCode, Uri, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tower_jobs::{JobId, JobState};

use crate::{
    hub::Hub,
    json::{self, Failed, VERSION},
    page::{FILES, Frame, POLICY},
    same_origin::is_same_origin,
    tab::{Tab, TabContext},
    text::Search,
    view::Reader,
    watched::Watched,
};

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 200;

/// What the handlers share.
#[derive(Clone)]
struct App {
    hub: Arc<Hub>,
    tabs: Arc<[(String, String)]>,
}

pub(crate) fn router(hub: Arc<Hub>, tabs: Vec<Arc<dyn Tab>>) -> Router {
    let titles = tabs.iter().map(|tab| (tab.id().to_owned(), tab.title().to_owned()));
    let allows_actions = hub.process.actions;
    let app = App { hub, tabs: titles.collect() };
    let mut router = Router::new()
        .route("/", get(page))
        .route("/assets/{file}", get(file))
        .route("/api/v1/overview", get(overview))
        .route("/api/v1/jobs", get(jobs))
        .route("/api/v1/failures", get(failures))
        .route("/api/v1/names", get(names))
        .route("/api/v1/series", get(series))
        .route("/api/v1/events", get(events));
    if allows_actions {
        router = router
            .route("/api/v1/pause", post(pause))
            .route("/api/v1/resume", post(resume))
            .route("/api/v1/jobs/{id}/cancel", post(cancel));
    }
    let mut router = router.with_state(app.clone());
    for tab in tabs {
        router = router.merge(tab_router(&app, tab));
    }
    router
        .fallback(|| async { failed(StatusCode::NOT_FOUND, "there is no such route") })
        .layer(middleware::from_fn_with_state(allows_actions, guard))
        .layer(middleware::map_response(with_headers))
        .layer(middleware::from_fn_with_state(app, ensure_ticks))
}

fn tab_router(app: &App, tab: Arc<dyn Tab>) -> Router {
    let path = format!("/tabs/{}", tab.id());
    let routes = tab.routes();
    let page = get(move |State(app): State<App>, original: OriginalUri, uri: Uri| async move {
        let base = base_of(&original, &uri);
        let dashboard = base.strip_suffix(&*format!("/tabs/{}", tab.id())).unwrap_or(&base);
        let context = TabContext { base: base.clone(), allows_actions: app.hub.process.actions };
        let fragment = tab.fragment(context).await;
        html(app.frame(dashboard).tab(tab.title(), &fragment))
    });
    Router::new().route(&path, page).with_state(app.clone()).nest(&path, routes)
}

impl App {
    fn frame<'a>(&'a self, base: &'a str) -> Frame<'a> {
        let process = &self.hub.process;
        let app = process.app.as_deref().unwrap_or("Jobs");
        Frame { base, app, allows_actions: process.actions, tabs: &self.tabs }
    }
}

/// The path at which the dashboard, or a page in it, is mounted, without a slash at its end.
///
/// `uri` is without the prefix under which this router is nested.
fn base_of(OriginalUri(original): &OriginalUri, uri: &Uri) -> String {
    let original = original.path();
    let inside = original.strip_suffix(uri.path()).filter(|_| uri.path() == "/");
    inside.unwrap_or(original).trim_end_matches('/').to_owned()
}

/// Starts the ticks, if they were not started with the router.
async fn ensure_ticks(State(app): State<App>, request: Request, next: Next) -> Response {
    app.hub.ensure_ticks();
    next.run(request).await
}

/// Lets through only requests that change nothing, or come from the page.
async fn guard(State(allows_actions): State<bool>, request: Request, next: Next) -> Response {
    let changes_nothing = request.method().is_safe();
    if changes_nothing || allows_actions && is_same_origin(request.headers()) {
        return next.run(request).await;
    }
    if allows_actions {
        return failed(StatusCode::FORBIDDEN, "actions are taken from the page itself only");
    }
    failed(StatusCode::NOT_FOUND, "there is no such route")
}

async fn with_headers(mut response: Response) -> Response {
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn typed(content_type: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body.into()).into_response()
}

fn html(page: String) -> Response {
    typed("text/html; charset=utf-8", page)
}

fn json_of(body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(text) => typed("application/json", text),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn failed(status: StatusCode, error: &str) -> Response {
    (status, json_of(&Failed { v: VERSION, error })).into_response()
}

/// A request that cannot be answered as it is.
struct Refusal(StatusCode, Cow<'static, str>);

impl Refusal {
    fn bad(error: impl Into<Cow<'static, str>>) -> Self {
        Self(StatusCode::BAD_REQUEST, error.into())
    }

    fn unknown(error: &'static str) -> Self {
        Self(StatusCode::NOT_FOUND, error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        failed(self.0, &self.1)
    }
}

async fn page(State(app): State<App>, original: OriginalUri, uri: Uri) -> Response {
    html(app.frame(&base_of(&original, &uri)).jobs())
}

// Named, since the path under which the router is nested may have parts of its own.
#[derive(Deserialize)]
struct File {
    file: String,
}

#[derive(Deserialize)]
struct Job {
    id: String,
}

async fn file(Path(File { file }): Path<File>) -> Response {
    match FILES.iter().find(|(name, ..)| *name == file) {
        Some((_, content_type, text)) => typed(content_type, *text),
        None => failed(StatusCode::NOT_FOUND, "there is no such file"),
    }
}

async fn overview(State(app): State<App>) -> Response {
    json_of(&app.hub.overview())
}

/// The part of the query that all routes of one scheduler have.
#[derive(Deserialize)]
struct Chosen {
    scheduler: Option<String>,
}

fn read<T: DeserializeOwned>(uri: &Uri) -> Result<T, Refusal> {
    let query = Query::try_from_uri(uri).map_err(|error| Refusal::bad(error.to_string()))?;
    Ok(query.0)
}

fn chosen<'a>(hub: &'a Hub, uri: &Uri) -> Result<&'a Watched, Refusal> {
    let Chosen { scheduler } = read(uri)?;
    let mut all = hub.watched.iter();
    let found = match scheduler {
        Some(name) => all.find(|watched| watched.name == name),
        None => all.next(),
    };
    found.map(|found| &**found).ok_or(Refusal::unknown("there is no such scheduler"))
}

fn body<T: Serialize>(reader: &Reader<'_>, data: T) -> Response {
    let scheduler = &*reader.watched.name;
    json_of(&json::Body { v: VERSION, now_at: reader.now, scheduler, data })
}

#[derive(Deserialize)]
struct JobsQuery {
    state: Option<String>,
    order: Option<String>,
    limit: Option<usize>,
    after: Option<usize>,
    #[serde(default)]
    q: String,
}

async fn jobs(State(app): State<App>, uri: Uri) -> Result<Response, Refusal> {
    let query: JobsQuery = read(&uri)?;
    let state = match query.state.as_deref() {
        None | Some("active") => JobState::Active,
        Some("pending") => JobState::Pending,
        Some("deferred") => JobState::Deferred,
        Some(_) => return Err(Refusal::bad("state is active, pending or deferred")),
    };
    if !matches!(query.order.as_deref(), None | Some("longest")) {
        return Err(Refusal::bad("order is longest"));
    }
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let after = query.after.unwrap_or(0).min(crate::view::SEARCHED);
    let reader = app.hub.reader(chosen(&app.hub, &uri)?);
    Ok(body(&reader, reader.jobs(state, after, limit, &Search::new(&query.q))))
}

#[derive(Deserialize)]
struct FailuresQuery {
    limit: Option<usize>,
    #[serde(default)]
    q: String,
}

async fn failures(State(app): State<App>, uri: Uri) -> Result<Response, Refusal> {
    let query: FailuresQuery = read(&uri)?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let reader = app.hub.reader(chosen(&app.hub, &uri)?);
    Ok(body(&reader, reader.failures(limit, &Search::new(&query.q))))
}

async fn names(State(app): State<App>, uri: Uri) -> Result<Response, Refusal> {
    let reader = app.hub.reader(chosen(&app.hub, &uri)?);
    Ok(body(&reader, reader.names()))
}

#[derive(Deserialize)]
struct SeriesQuery {
    step: Option<u64>,
}

async fn series(State(app): State<App>, uri: Uri) -> Result<Response, Refusal> {
    let query: SeriesQuery = read(&uri)?;
    let step = query.step.unwrap_or(1);
    if !matches!(step, 1 | 5) {
        return Err(Refusal::bad("step is 1 or 5"));
    }
    let reader = app.hub.reader(chosen(&app.hub, &uri)?);
    Ok(body(&reader, reader.series(step)))
}

async fn events(State(app): State<App>) -> Response {
    let Some(viewer) = app.hub.viewer() else {
        let full = failed(StatusCode::SERVICE_UNAVAILABLE, "all event streams are in use");
        return ([(header::RETRY_AFTER, "5")], full).into_response();
    };
    let events = stream::unfold(viewer, |mut viewer| async move {
        let text = viewer.next().await?;
        Some((Ok::<_, Infallible>(text), viewer))
    });
    typed("text/event-stream", Body::from_stream(events))
}

#[derive(Serialize)]
struct Paused {
    paused: bool,
}

#[derive(Serialize)]
struct Cancelled {
    id: String,
}

fn set_paused(app: &App, uri: &Uri, paused: bool) -> Result<Response, Refusal> {
    let watched = chosen(&app.hub, uri)?;
    let scheduler = watched.scheduler().ok_or(Refusal::unknown("the scheduler is gone"))?;
    if paused {
        scheduler.pause();
    } else {
        scheduler.resume();
    }
    Ok(body(&app.hub.reader(watched), Paused { paused }))
}

async fn pause(State(app): State<App>, uri: Uri) -> Result<Response, Refusal> {
    set_paused(&app, &uri, true)
}

async fn resume(State(app): State<App>, uri: Uri) -> Result<Response, Refusal> {
    set_paused(&app, &uri, false)
}

async fn cancel(
    State(app): State<App>,
    Path(Job { id }): Path<Job>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let watched = chosen(&app.hub, &uri)?;
    let id: Option<JobId> = id.parse().ok();
    let found = id.zip(watched.scheduler());
    let (id, _) = found
        .filter(|(id, scheduler)| scheduler.close_job(*id))
        .ok_or(Refusal::unknown("there is no such unfinished job"))?;
    let cancelled = Cancelled { id: id.to_string() };
    Ok((StatusCode::ACCEPTED, body(&app.hub.reader(watched), cancelled)).into_response())
}
