//! What the span of a job has once it has closed: queue time, outcome and status.
#![allow(clippy::async_yields_async, reason = "spawning gives a handle, which may be awaited")]

use std::{
    error::Error,
    fmt,
    future::pending,
    sync::{Arc, Mutex, mpsc as threads},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{advance, sleep, timeout},
};
use tower_jobs::{Job, JobOutput, Scheduler, SchedulerBuilder};
use tracing::{
    Subscriber,
    span::{Attributes, Id, Record},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

use crate::support::{
    Grenade, PLENTY, SECOND,
    logs::{Event, subscribe},
    oneshot::respond,
    turn, watched, within,
};

#[derive(Clone, Default)]
struct Spans {
    /// The spans of jobs that have closed, and how often each was entered.
    closed: Arc<Mutex<Vec<(Event, usize)>>>,
    /// The span around each event, as it was then.
    around_events: Arc<Mutex<Vec<Event>>>,
}

impl Spans {
    /// Records the spans of this thread until the guard is dropped.
    fn start() -> (Self, DefaultGuard) {
        let spans = Self::default();
        let guard = subscribe(spans.clone());
        (spans, guard)
    }

    fn all(&self) -> Vec<(Event, usize)> {
        self.closed.lock().unwrap().clone()
    }

    /// The fields of the span of the job of this name, and how often it was entered. Waits for its end.
    async fn of(&self, name: &str) -> (Event, usize) {
        let found = || self.all().into_iter().find(|(span, _)| span.field("name") == name);
        let closed = async {
            loop {
                match found() {
                    Some(span) => return span,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        within("the span closes", closed).await
    }

    /// Outcome, status and its description.
    async fn end_of(&self, name: &str) -> [String; 3] {
        let (span, _) = self.of(name).await;
        ["outcome", "otel.status_code", "otel.status_description"]
            .map(|field| span.field(field).to_owned())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Event::default();
        attributes.record(&mut fields);
        context.span(id).unwrap().extensions_mut().insert((fields, 0_usize));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        values.record(&mut span.extensions_mut().get_mut::<(Event, usize)>().unwrap().0);
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        if let Some(span) = context.event_span(event) {
            let fields = span.extensions().get::<(Event, usize)>().unwrap().0.clone();
            self.around_events.lock().unwrap().push(fields);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        span.extensions_mut().get_mut::<(Event, usize)>().unwrap().1 += 1;
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        let closed = span.extensions().get::<(Event, usize)>().unwrap().clone();
        self.closed.lock().unwrap().push(closed);
    }
}

// Where it comes from.

#[tokio::test]
async fn span_has_the_location_and_a_name_for_opentelemetry() {
    let (spans, _guard) = Spans::start();
    let scheduler = Scheduler::new();
    drop(scheduler.job("mail").spawn(async {}).await.unwrap());
    let line = line!() - 1;
    let unnamed = scheduler.spawn(async {}).await.unwrap().name().into_owned();
    scheduler.wait_idle().await;

    let (mail, _) = spans.of("mail").await;
    assert!(mail.field("location").starts_with(&format!("{}:{line}:", file!())), "{mail:?}");
    assert_eq!(mail.field("otel.name"), "mail");
    let (unnamed, _) = spans.of(&unnamed).await;
    assert_eq!(unnamed.field("location"), unnamed.field("name"));
    assert_eq!(unnamed.field("otel.name"), "", "the span keeps its name `job`");
}

// Queue time.

#[tokio::test(start_paused = true)]
async fn queue_time_in_seconds_is_recorded_at_the_start() {
    let (spans, _guard) = Spans::start();
    let scheduler = Scheduler::builder().limit(1).build();
    drop(scheduler.job("first").spawn(sleep(3 * SECOND)).await.unwrap());
    drop(scheduler.job("second").spawn(sleep(SECOND)).await.unwrap());
    scheduler.wait_idle().await;

    assert_eq!(spans.of("first").await.0.field("queued"), "0.0");
    // Timers of a paused clock are exact to the millisecond.
    let queued: f64 = spans.of("second").await.0.field("queued").parse().unwrap();
    assert!((3.0..3.01).contains(&queued), "{queued}");
}

#[tokio::test(start_paused = true)]
async fn deferred_job_is_queued_from_the_end_of_its_response() {
    let (spans, _guard) = Spans::start();
    let scheduler = Scheduler::builder().limit(1).build();
    let (release, released) = oneshot::channel::<()>();
    drop(scheduler.spawn(async { drop(released.await) }).await.unwrap());
    let open = respond(&scheduler).await;
    drop(open.jobs.job("mail").after_response(async {}).unwrap());
    advance(5 * SECOND).await;
    drop(open.response);
    advance(2 * SECOND).await;
    release.send(()).unwrap();
    scheduler.wait_idle().await;

    assert_eq!(spans.of("mail").await.0.field("queued"), "2.0");
}

// Outcome and status.

const NONE: [&str; 2] = ["", ""];

#[tokio::test]
async fn job_that_ends_well_has_an_outcome_and_no_status() {
    let (spans, _guard) = Spans::start();
    let scheduler = Scheduler::builder().limit(2).build();
    scheduler.job("good").spawn(async { 7 }).await.unwrap().await.unwrap();
    let aborted = scheduler.job("aborted").spawn(pending::<()>()).await.unwrap();
    turn().await;
    aborted.abort();
    assert!(aborted.await.unwrap_err().is_cancelled());

    for (name, outcome) in [("good", "completed"), ("aborted", "cancelled")] {
        assert_eq!(spans.end_of(name).await, [outcome, NONE[0], NONE[1]], "{name}");
    }
}

async fn fail() -> Result<(), &'static str> {
    Err("no mail today")
}

async fn panic() {
    panic!("boom");
}

/// Runs a job to its end, and returns what its span ends with. It is awaited, or its handle dropped.
async fn ends<T, F>(
    is_awaited: bool,
    builder: SchedulerBuilder,
    spawn: impl FnOnce(Scheduler) -> F,
) -> [String; 3]
where
    T: JobOutput + Send + 'static,
    F: Future<Output = Job<T>>,
{
    let (spans, _guard) = Spans::start();
    let (scheduler, mut failures) = watched(builder);
    let job = spawn(scheduler.clone()).await;
    let name = job.name().into_owned();
    if is_awaited {
        assert!(job.await.is_err());
    } else {
        drop(job);
        scheduler.wait_idle().await;
    }
    let end = spans.end_of(&name).await;
    assert_eq!(failures.try_recv().is_ok(), !is_awaited, "reported once");
    assert!(failures.try_recv().is_err(), "reported once");
    end
}

#[tokio::test(start_paused = true)]
async fn each_failure_has_a_status_awaited_or_not() {
    let new = Scheduler::builder;
    for awaited in [true, false] {
        let end = ends(awaited, new(), async |all| all.job("a").spawn(fail()).await.unwrap()).await;
        assert_eq!(end, ["failed", "ERROR", "the job failed: no mail today"]);

        let end =
            ends(awaited, new(), async |all| all.job("a").spawn(panic()).await.unwrap()).await;
        assert_eq!(end, ["panicked", "ERROR", "the job panicked: boom"]);

        let slow = async |all: Scheduler| {
            all.job("a").timeout(SECOND).spawn(pending::<()>()).await.unwrap()
        };
        let end = ends(awaited, new(), slow).await;
        assert_eq!(end, ["timed_out", "ERROR", "the job ran longer than its timeout of 1s"]);

        let blocking = async |all: Scheduler| {
            all.job("a").spawn_blocking(|| Err::<(), _>("no")).await.unwrap()
        };
        let end = ends(awaited, new(), blocking).await;
        assert_eq!(end, ["failed", "ERROR", "the job failed: no"]);
    }
}

#[tokio::test(start_paused = true)]
async fn job_past_the_close_timeout_has_a_status() {
    for is_awaited in [true, false] {
        let closing = async |all: Scheduler| {
            let stubborn = all.spawn_with(|_| pending::<()>()).await.unwrap();
            turn().await;
            all.close().await;
            stubborn
        };
        let builder = Scheduler::builder().close_timeout(SECOND);
        let end = ends(is_awaited, builder, closing).await;
        assert_eq!(end[..2], ["timed_out", "ERROR"]);
        assert_eq!(end[2], "the job did not end within 1s after it was asked to");
    }
}

#[tokio::test]
async fn abandoned_job_that_ends_at_last_has_a_status() {
    let (spans, _guard) = Spans::start();
    let (scheduler, mut failures) = watched(Scheduler::builder().close_timeout(Duration::ZERO));
    let (release, released) = threads::channel::<()>();
    let (begun, begins) = oneshot::channel();
    let stuck = move || {
        begun.send(()).unwrap();
        released.recv_timeout(PLENTY).unwrap();
    };
    drop(scheduler.job("stuck").spawn_blocking(stuck).await.unwrap());
    begins.await.unwrap();
    scheduler.close().await;
    assert!(failures.recv().await.unwrap().error.is_abandoned());
    assert!(spans.all().is_empty(), "it still runs");
    release.send(()).unwrap();

    assert_eq!(spans.end_of("stuck").await, ["abandoned", "ERROR", "the job was abandoned"]);
    assert!(failures.try_recv().is_err(), "reported once");
}

#[tokio::test]
async fn shielded_failure_has_a_status_without_its_text() {
    let (spans, _guard) = Spans::start();
    let scheduler = Scheduler::new();
    let shielded = scheduler.job("paid").shield(fail());
    assert_eq!(shielded.await.unwrap(), Err("no mail today"));
    assert_eq!(spans.end_of("paid").await, ["failed", "ERROR", "the job failed"]);
}

/// Whether code is run while the text of the error is made.
struct Hooked(Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl fmt::Display for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)();
        f.write_str("hooked")
    }
}

impl Error for Hooked {}

#[tokio::test]
async fn handle_dropped_while_the_span_gets_the_text_reports_once() {
    let (spans, _guard) = Spans::start();
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let handle = Arc::new(Mutex::new(None));
    let held = handle.clone();
    let error = Hooked(Arc::new(move || drop(held.lock().unwrap().take())));
    let job = scheduler.job("mail").spawn(async { Err::<(), _>(error) }).await.unwrap();
    *handle.lock().unwrap() = Some(job);
    scheduler.wait_idle().await;

    assert_eq!(spans.end_of("mail").await, ["failed", "ERROR", "the job failed: hooked"]);
    assert!(handle.lock().unwrap().is_none());
    assert!(failures.try_recv().is_ok(), "reported");
    assert!(failures.try_recv().is_err(), "once");
}

#[tokio::test]
async fn error_whose_text_panics_still_has_a_status() {
    let (spans, _guard) = Spans::start();
    let scheduler = Scheduler::new();
    let error = Hooked(Arc::new(|| panic!("no text")));
    let job = scheduler.job("mail").spawn(async { Err::<(), _>(error) }).await.unwrap();
    let error = within("the job ends", job).await.unwrap_err();
    assert!(error.into_source().is_ok(), "the awaiter has it");
    assert_eq!(spans.end_of("mail").await, ["failed", "ERROR", "the error cannot be shown"]);
}

#[tokio::test]
async fn line_of_a_failure_does_not_have_its_text_twice() {
    let (spans, _guard) = Spans::start();
    let scheduler = Scheduler::new();
    drop(scheduler.job("mail").spawn(fail()).await.unwrap());
    scheduler.wait_idle().await;

    let around = spans.around_events.lock().unwrap().clone();
    assert_eq!(around.len(), 1, "the span of the event of the failure");
    let fields = ["name", "outcome", "otel.status_description"].map(|name| around[0].field(name));
    assert_eq!(fields, ["mail", "", ""]);
    assert_eq!(spans.end_of("mail").await[0], "failed");
}

// Jobs that never start.

#[tokio::test]
async fn span_of_a_job_that_never_started_is_not_entered() {
    let (spans, _guard) = Spans::start();
    let scheduler = Scheduler::builder().limit(1).build();
    drop(scheduler.job("active").spawn(pending::<()>()).await.unwrap());
    let open = respond(&scheduler).await;
    let trap = Grenade;
    let skipped = open.jobs.job("skipped").after_success(async move { drop(trap) }).unwrap();
    let aborted = scheduler.job("aborted").spawn(async {}).await.unwrap();
    drop(scheduler.job("left").spawn(async {}).await.unwrap());
    turn().await;
    skipped.abort();
    aborted.abort();
    timeout(PLENTY, scheduler.close()).await.unwrap();

    for (name, outcome) in
        [("skipped", "cancelled"), ("aborted", "cancelled"), ("left", "never_started")]
    {
        let (span, entered) = spans.of(name).await;
        assert_eq!((span.field("outcome"), entered), (outcome, 0), "{name}");
        assert_eq!((span.field("queued"), span.field("otel.status_code")), ("", ""), "{name}");
    }
    let (active, entered) = spans.of("active").await;
    assert_eq!(active.field("outcome"), "cancelled");
    assert!(entered > 0);
}
