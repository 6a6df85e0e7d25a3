//! Other middleware outside and inside the `JobsLayer`: the facts of the chapter "Middleware order".

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::Request,
    http::{
        Response, StatusCode,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING},
    },
    routing::{MethodRouter, get},
};
use http_body_util::BodyExt;
use tokio::{sync::mpsc, time::sleep};
use tokio_test::{assert_pending, task};
use tower::ServiceExt;
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, timeout::TimeoutLayer,
    trace::TraceLayer,
};
use tower_jobs::{
    AtomicLayer, Job, Jobs, JobsLayer,
    ResponseOutcome::{self, Aborted, Complete, NoResponse},
    Scheduler, SpanLink,
};
use tracing::{Subscriber, span};
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::LookupSpan,
};

use crate::support::{SECOND, logs::subscribe};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Outside,
    Inside,
}
use Position::{Inside, Outside};

/// `GET /` with a layer outside or inside another.
fn around(
    position: Position,
    add: impl FnOnce(Router) -> Router,
    other: impl FnOnce(Router) -> Router,
    route: MethodRouter,
) -> Router {
    let app = Router::new().route("/", route);
    match position {
        Outside => add(other(app)),
        Inside => other(add(app)),
    }
}

fn request() -> Request {
    Request::get("/").header(ACCEPT_ENCODING, "gzip").body(Body::empty()).unwrap()
}

/// The jobs that a handler has left behind.
struct Left {
    at_once: Job<()>,
    after: Job<Option<ResponseOutcome>>,
    after_success: Job<()>,
}

type Leave = Extension<mpsc::UnboundedSender<Left>>;

async fn leave(jobs: &Jobs, to: &Leave) {
    let left = Left {
        at_once: jobs.spawn(sleep(10 * SECOND)).await.unwrap(),
        after: jobs.after_response_with(|outcome| async move { Some(outcome) }).unwrap(),
        after_success: jobs.after_success(async {}).unwrap(),
    };
    to.send(left).unwrap();
}

async fn slow(jobs: Jobs, to: Leave) {
    leave(&jobs, &to).await;
    pending::<()>().await;
}

async fn panics(jobs: Jobs, to: Leave) -> StatusCode {
    leave(&jobs, &to).await;
    out_of_order().await
}

async fn out_of_order() -> StatusCode {
    panic!("out of order")
}

/// Text in one piece that compresses badly.
async fn long_text(jobs: Jobs, to: Leave) -> String {
    leave(&jobs, &to).await;
    let mut number = 1_u32;
    let mut character = || {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'0' + (number >> 26) as u8)
    };
    (0..64 * 1024).map(|_| character()).collect()
}

/// Calls a handler that leaves jobs behind, with a layer outside or inside the `JobsLayer`.
async fn call(
    position: Position,
    add: impl FnOnce(Router) -> Router,
    route: MethodRouter,
) -> (Response<Body>, Left) {
    let (to, mut left) = mpsc::unbounded_channel::<Left>();
    let jobs = |app: Router| app.layer(JobsLayer::new(Scheduler::new()));
    let app = around(position, add, jobs, route).layer(Extension(to));
    let response = app.oneshot(request()).await.unwrap();
    (response, left.recv().await.expect("the handler has left jobs"))
}

/// The outcome of the response that the jobs were given.
async fn outcome(left: Left) -> ResponseOutcome {
    left.at_once.await.expect("what has started goes on");
    let outcome = left.after.await.unwrap().unwrap();
    let skipped = left.after_success.await.is_err_and(|error| error.is_skipped());
    assert_eq!(skipped, outcome != Complete(StatusCode::OK), "{outcome:?}");
    outcome
}

/// The status that a client gets which reads to the end, and the outcome that the jobs get.
async fn seen(
    position: Position,
    add: impl FnOnce(Router) -> Router,
    route: MethodRouter,
) -> (u16, ResponseOutcome) {
    let (response, left) = call(position, add, route).await;
    let status = response.status();
    response.into_body().collect().await.unwrap();
    (status.as_u16(), outcome(left).await)
}

// TimeoutLayer.

fn timeout(app: Router) -> Router {
    app.layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SECOND))
}

#[tokio::test(start_paused = true)]
async fn a_timeout_outside_leaves_the_jobs_without_a_response() {
    assert_eq!(seen(Outside, timeout, get(slow)).await, (408, NoResponse));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_inside_is_a_response_like_any_other() {
    let complete = Complete(StatusCode::REQUEST_TIMEOUT);
    assert_eq!(seen(Inside, timeout, get(slow)).await, (408, complete));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_wherever_it_is_does_not_end_the_body() {
    for position in [Outside, Inside] {
        let (response, left) = call(position, timeout, get(long_text)).await;
        sleep(10 * SECOND).await;
        assert!(left.after.is_deferred());
        response.into_body().collect().await.unwrap();
        assert_eq!(outcome(left).await, Complete(StatusCode::OK));
    }
}

// CatchPanicLayer.

fn catch_panic(app: Router) -> Router {
    app.layer(CatchPanicLayer::new())
}

#[tokio::test(start_paused = true)]
async fn a_panic_caught_outside_leaves_the_jobs_without_a_response() {
    assert_eq!(seen(Outside, catch_panic, get(panics)).await, (500, NoResponse));
}

#[tokio::test(start_paused = true)]
async fn a_panic_caught_inside_is_a_response_like_any_other() {
    let complete = Complete(StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(seen(Inside, catch_panic, get(panics)).await, (500, complete));
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_job_reaches_no_layer_but_its_scheduler() {
    for position in [Outside, Inside] {
        let failures = Arc::new(AtomicUsize::new(0));
        let count = failures.clone();
        let scheduler = Scheduler::builder()
            .on_failure(move |failure| {
                assert!(failure.error.is_panic());
                count.fetch_add(1, Ordering::Relaxed);
            })
            .build();
        let jobs = |app: Router| app.layer(JobsLayer::new(scheduler.clone()));
        let handler = |jobs: Jobs| async move {
            drop(jobs.spawn(out_of_order()).await.unwrap());
            jobs.wait_idle().await;
        };
        let app = around(position, catch_panic, jobs, get(handler));
        assert_eq!(app.oneshot(request()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(failures.load(Ordering::Relaxed), 1);
    }
}

// CompressionLayer.

fn compression(app: Router) -> Router {
    app.layer(CompressionLayer::new())
}

#[tokio::test(start_paused = true)]
async fn compressed_response_is_complete_once_it_is_read() {
    for position in [Outside, Inside] {
        let (response, left) = call(position, compression, get(long_text)).await;
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.unwrap();
            assert!(left.after.is_deferred(), "not before the last piece was handed over");
        }
        drop(body);
        assert_eq!(outcome(left).await, Complete(StatusCode::OK));
    }
}

/// The outcome that the jobs get when the client leaves after the first piece of many.
async fn after_one_piece(position: Position) -> ResponseOutcome {
    let (response, left) = call(position, compression, get(long_text)).await;
    assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.len() < 16 * 1024, "{} bytes", first.len());
    drop(body);
    outcome(left).await
}

#[tokio::test(start_paused = true)]
async fn outer_compression_takes_the_response_before_the_client() {
    assert_eq!(after_one_piece(Outside).await, Complete(StatusCode::OK));
}

#[tokio::test(start_paused = true)]
async fn inner_compression_is_complete_once_its_output_is_read() {
    assert_eq!(after_one_piece(Inside).await, Aborted(StatusCode::OK));
}

// TraceLayer.

/// The ties of spans, and the order in which they close.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, _: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        if let Some(parent) = span.parent() {
            self.push(format!("{} is a child of {}", span.name(), parent.name()));
        }
    }

    fn on_follows_from(&self, id: &span::Id, before: &span::Id, context: Context<'_, S>) {
        let name = |id| context.span(id).unwrap().name();
        self.push(format!("{} follows {}", name(id), name(before)));
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        self.push(format!("{} closes", context.span(&id).unwrap().name()));
    }
}

impl Spans {
    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

async fn spans(position: Position, link: SpanLink) -> Vec<String> {
    let spans = Spans::default();
    let _guard = subscribe(spans.clone());
    let scheduler = Scheduler::builder().span(link).build();
    let jobs = |app: Router| app.layer(JobsLayer::new(scheduler.clone()));
    let handler = |jobs: Jobs| async move {
        jobs.spawn(sleep(SECOND)).await.unwrap();
    };
    let trace = |app: Router| app.layer(TraceLayer::new_for_http());
    let app = around(position, trace, jobs, get(handler));
    app.oneshot(request()).await.unwrap().into_body().collect().await.unwrap();
    scheduler.wait_and_close().await;
    drop(scheduler);
    spans.0.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn request_span_closes_before_its_jobs_end() {
    for position in [Outside, Inside] {
        let lines = spans(position, SpanLink::FollowsFrom).await;
        assert_eq!(lines, ["job follows request", "request closes", "job closes"]);
    }
}

#[tokio::test(start_paused = true)]
async fn request_span_stays_open_for_its_child_jobs() {
    for position in [Outside, Inside] {
        let lines = spans(position, SpanLink::Child).await;
        assert_eq!(lines, ["job is a child of request", "job closes", "request closes"]);
    }
}

#[tokio::test(start_paused = true)]
async fn trace_inside_atomic_sees_the_response_of_a_gone_client() {
    for position in [Outside, Inside] {
        let logged = Arc::new(AtomicBool::new(false));
        let log = logged.clone();
        let trace = move |app: Router| {
            app.layer(TraceLayer::new_for_http().on_response(
                move |_: &Response<Body>, _: Duration, _: &tracing::Span| {
                    log.store(true, Ordering::Relaxed);
                },
            ))
        };
        let scheduler = Scheduler::new();
        let atomic = |app: Router| app.layer(AtomicLayer::new(scheduler.clone()));
        let app = around(position, trace, atomic, get(|| sleep(SECOND)));
        let mut call = task::spawn(app.oneshot(request()));
        assert_pending!(call.poll());
        drop(call);
        scheduler.wait_idle().await;
        assert_eq!(scheduler.stats().completed, 1);
        assert_eq!(logged.load(Ordering::Relaxed), position == Inside, "{position:?}");
    }
}

// ConcurrencyLimitLayer.

fn one_at_once(app: Router) -> Router {
    app.layer(tower::limit::GlobalConcurrencyLimitLayer::new(1))
}

#[tokio::test(start_paused = true)]
async fn jobs_hold_no_place_of_a_concurrency_limit() {
    for position in [Outside, Inside] {
        let (to, mut left) = mpsc::unbounded_channel::<Left>();
        let jobs = |app: Router| app.layer(JobsLayer::new(Scheduler::new()));
        let app = around(position, one_at_once, jobs, get(long_text)).layer(Extension(to));
        let mut unread = Vec::new();
        for _ in 0..3 {
            unread.push(app.clone().oneshot(request()).await.unwrap());
        }
        for _ in &unread {
            let left = left.try_recv().unwrap();
            assert!(left.at_once.is_active() && left.after.is_deferred());
        }
    }
}

/// How many handlers run at once when the clients do not wait.
async fn handlers_at_once(position: Position) -> usize {
    let running = Arc::new(AtomicUsize::new(0));
    let count = running.clone();
    let handler = move || async move {
        count.fetch_add(1, Ordering::Relaxed);
        pending::<()>().await;
    };
    let scheduler = Scheduler::new();
    let atomic = |app: Router| app.layer(AtomicLayer::new(scheduler.clone()));
    let app = around(position, one_at_once, atomic, get(handler));
    for _ in 0..3 {
        let mut call = task::spawn(app.clone().oneshot(request()));
        for _ in 0..10 {
            assert_pending!(call.poll());
            tokio::task::yield_now().await;
        }
    }
    running.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn outer_concurrency_limit_skips_handlers_of_gone_clients() {
    assert_eq!(handlers_at_once(Outside).await, 3);
}

#[tokio::test(start_paused = true)]
async fn concurrency_limit_inside_atomic_counts_all_handlers() {
    assert_eq!(handlers_at_once(Inside).await, 1);
}

// AtomicLayer.

#[tokio::test(start_paused = true)]
async fn atomic_inside_shows_the_jobs_a_leaving_client_at_once() {
    let (label, outcome, after) = leaves_early(Inside).await;
    assert_eq!(label.as_deref(), Some("GET /"));
    assert_eq!((outcome, after), (NoResponse, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn atomic_outside_hides_the_client_from_the_jobs() {
    let (label, outcome, after) = leaves_early(Outside).await;
    assert_eq!(label, None);
    assert_eq!((outcome, after), (Aborted(StatusCode::OK), SECOND));
}

/// The label of the atomic job, the outcome that the request's own jobs get, and the time from the
/// leave of the client to that outcome.
async fn leaves_early(position: Position) -> (Option<Arc<str>>, ResponseOutcome, Duration) {
    let (to, mut left) = mpsc::unbounded_channel::<Left>();
    let scheduler = Scheduler::new();
    let atomic = |app: Router| app.layer(AtomicLayer::new(scheduler.clone()));
    let jobs = |app: Router| app.layer(JobsLayer::new(scheduler.clone()));
    let handler = |jobs: Jobs, to: Leave| async move {
        leave(&jobs, &to).await;
        sleep(SECOND).await;
        "done"
    };
    let app = around(position, atomic, jobs, get(handler)).layer(Extension(to));
    let mut call = task::spawn(app.oneshot(request()));
    assert_pending!(call.poll());
    let mut left = left.recv().await.unwrap();
    let label = scheduler.jobs().into_iter().find(|job| job.name == "atomic").unwrap().request;
    drop(call);
    let began = tokio::time::Instant::now();
    let outcome = left.after.wait().await.unwrap().unwrap();
    (label, outcome, began.elapsed())
}

// The chapter.

#[tokio::test(start_paused = true)]
async fn recommended_order_gives_jobs_the_status_of_the_client() {
    let inside = |app| compression(catch_panic(timeout(app)));
    let complete = |status: StatusCode| (status.as_u16(), Complete(status));
    assert_eq!(seen(Inside, inside, get(slow)).await, complete(StatusCode::REQUEST_TIMEOUT));
    let panicked = complete(StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(seen(Inside, inside, get(panics)).await, panicked);
    assert_eq!(seen(Inside, inside, get(long_text)).await, complete(StatusCode::OK));
}

#[test]
fn every_row_of_the_chapter_names_its_test() {
    let chapter = include_str!("../../../src/docs/middleware_order.md");
    let tests = [include_str!("middleware_order.rs"), include_str!("atomic.rs")].concat();
    let is_row = |line: &&str| {
        line.starts_with('|') && !line.starts_with("| layer") && !line.starts_with("|---")
    };
    let rows: Vec<_> = chapter.lines().filter(is_row).collect();
    assert!(rows.len() > 20, "{rows:#?}");
    for row in rows {
        let fact = row.split("<!-- ").nth(1).and_then(|rest| rest.split(" -->").next());
        let fact = fact.unwrap_or_else(|| panic!("no test is named in {row}"));
        assert!(tests.contains(&format!("async fn {fact}()")), "no test {fact}");
    }
}
