//! The span of a job: its fields, its tie to the span of the request, and the events inside it.

use std::{
    fmt::{self, Write},
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{self, Wake},
};

use tokio::{sync::oneshot, task::yield_now};
use tower_jobs::{Jobs, Scheduler, SpanLink};
use tracing::{
    Dispatch, Event, Instrument, Subscriber, dispatcher,
    field::{Field, Visit},
    info, info_span,
    span::{Attributes, Id},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use crate::support::{
    Grenade, holding,
    logs::{self, Broken},
    oneshot::respond,
    within,
};

/// A line for every change of a span, and for every event with the spans around it.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

/// The fields of a span or an event, as ` name=value`.
#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            write!(self.0, "{value:?}").expect("room");
        } else {
            write!(self.0, " {}={value:?}", field.name()).expect("room");
        }
    }
}

/// The name of a span: for the span of a job, the name of the job.
struct Called(String);

fn called<'a>(span: &SpanRef<'a, impl LookupSpan<'a>>) -> String {
    span.extensions().get::<Called>().expect("a recorded span").0.clone()
}

impl Recorder {
    /// Records the spans and events of this thread until the guard is dropped.
    fn start() -> (Self, DefaultGuard) {
        let recorder = Self::default();
        let guard = logs::subscribe(recorder.clone());
        (recorder, guard)
    }

    fn write(&self, line: String) {
        self.0.lock().expect("no panic").push(line);
    }

    fn has(&self, line: &str) -> bool {
        self.0.lock().expect("no panic").iter().any(|written| written == line)
    }

    #[track_caller]
    fn assert(&self, line: &str) {
        assert!(self.has(line), "no {line:?} in {self:#?}");
    }

    #[track_caller]
    fn assert_begin(&self, start: &str) {
        let lines = self.0.lock().expect("no panic");
        assert!(lines.iter().any(|line| line.starts_with(start)), "no {start:?} in {lines:#?}");
    }

    #[track_caller]
    fn assert_not(&self, line: &str) {
        assert!(!self.has(line), "{line:?} in {self:#?}");
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let span = context.span(id).expect("a new span");
        let name = fields.0.split_once(" name=").map(|(_, rest)| rest.split(' ').next());
        let name = name.flatten().unwrap_or(span.name()).to_owned();
        let parent = span.parent().map_or("none".to_owned(), |parent| called(&parent));
        self.write(format!("{name}: {}/{}{}", span.metadata().target(), span.name(), fields.0));
        self.write(format!("{name}: child of {parent}"));
        span.extensions_mut().insert(Called(name));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        let of = |id| called(&context.span(id).expect("an open span"));
        self.write(format!("{}: follows from {}", of(id), of(follows)));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let scope = context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
        let scope: Vec<_> = scope.map(|span| called(&span)).collect();
        self.write(format!("in [{}]: {}", scope.join(" "), fields.0));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.write(format!("{}: closed", called(&context.span(&id).expect("a closing span"))));
    }
}

/// Serves one request in a span called `request`.
async fn serve<F: Future>(scheduler: &Scheduler, handler: impl FnOnce(Jobs) -> F) -> F::Output {
    let open = respond(scheduler).await;
    async { handler(open.jobs.clone()).await }.instrument(info_span!("request")).await
}

/// Serves a request that leaves a job behind. The job runs until the sender is dropped.
async fn with_a_job_running(link: SpanLink) -> (Scheduler, oneshot::Sender<()>) {
    let scheduler = Scheduler::builder().span(link).build();
    let (release, released) = oneshot::channel::<()>();
    serve(&scheduler, async |jobs| {
        jobs.job("mail").spawn(async { drop(released.await) }).await.expect("a place");
    })
    .await;
    yield_now().await;
    assert_eq!(scheduler.active_count(), 1);
    (scheduler, release)
}

// Its fields.

#[tokio::test]
async fn span_of_a_job_has_its_id_name_and_request() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::new();
    let of_request =
        serve(&scheduler, |jobs| jobs.job("mail").spawn(async {})).await.expect("a place");
    let of_no_request = scheduler.job("cleanup").spawn(async {}).await.expect("a place");
    let unnamed = scheduler.spawn(async {}).await.expect("a place");

    let id = of_request.id();
    recorder
        .assert_begin(&format!("mail: tower_jobs/job id={id} name=mail request=\"POST /signup\" "));
    recorder
        .assert_begin(&format!("cleanup: tower_jobs/job id={} name=cleanup ", of_no_request.id()));
    let name = unnamed.name();
    recorder.assert_begin(&format!("{name}: tower_jobs/job id={} name={name} ", unnamed.id()));
}

// Its tie to the request.

#[tokio::test]
async fn request_span_closes_while_a_job_following_from_it_runs() {
    let (recorder, _guard) = Recorder::start();
    let (scheduler, release) = with_a_job_running(SpanLink::default()).await;

    recorder.assert("mail: follows from request");
    recorder.assert("mail: child of none");
    recorder.assert("request: closed");
    recorder.assert_not("mail: closed");

    drop(release);
    scheduler.wait_idle().await;
    recorder.assert("mail: closed");
}

#[tokio::test]
async fn request_span_stays_open_while_its_child_runs() {
    let (recorder, _guard) = Recorder::start();
    let (scheduler, release) = with_a_job_running(SpanLink::Child).await;

    recorder.assert("mail: child of request");
    recorder.assert_not("mail: follows from request");
    recorder.assert_not("request: closed");

    drop(release);
    scheduler.wait_idle().await;
    recorder.assert("mail: closed");
    recorder.assert("request: closed");
}

#[tokio::test]
async fn span_of_a_job_may_have_no_tie_to_the_request() {
    let (recorder, _guard) = Recorder::start();
    let (_scheduler, _release) = with_a_job_running(SpanLink::None).await;

    recorder.assert("mail: child of none");
    recorder.assert_not("mail: follows from request");
    recorder.assert("request: closed");
}

#[tokio::test]
async fn span_of_a_job_that_a_job_spawns_follows_from_that_jobs() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::new();
    let inner = scheduler.clone();
    let outer = scheduler.job("outer").spawn(async move {
        drop(inner.job("inner").spawn(async {}).await.expect("a place"));
    });
    drop(outer.await.expect("a place"));
    scheduler.wait_idle().await;

    recorder.assert("inner: follows from outer");
    recorder.assert("outer: child of none");
}

#[tokio::test]
async fn span_closes_with_its_job_and_not_with_the_handle() {
    for link in [SpanLink::FollowsFrom, SpanLink::Child] {
        let (recorder, _guard) = Recorder::start();
        let scheduler = Scheduler::builder().span(link).build();
        let job = serve(&scheduler, |jobs| jobs.job("mail").spawn(async {})).await;
        scheduler.wait_idle().await;

        assert!(job.as_ref().expect("a place").is_finished());
        recorder.assert("mail: closed");
        recorder.assert("request: closed");
        drop(job);
    }
}

#[tokio::test]
async fn span_has_closed_when_the_waiter_of_its_job_is_woken() {
    struct Hears(Recorder);
    impl Wake for Hears {
        fn wake(self: Arc<Self>) {
            self.0.assert("mail: closed");
            self.0.write("heard".to_owned());
        }
    }
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::new();
    let mut job = scheduler.job("mail").spawn(async {}).await.expect("a place");
    let waker = Arc::new(Hears(recorder.clone())).into();
    let waits = Pin::new(&mut job).poll(&mut task::Context::from_waker(&waker));
    assert!(waits.is_pending());

    scheduler.wait_idle().await;

    recorder.assert("heard");
}

// Events inside.

/// A job that logs its polls and its drop.
async fn speak() {
    let _guard = Guard;
    info!("first poll");
    yield_now().await;
    info!("second poll");
}

struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        info!("dropped");
    }
}

#[tokio::test]
async fn events_of_a_job_are_in_its_span_at_every_poll() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::new();
    for name in ["a", "b"] {
        drop(scheduler.job(name).spawn(speak()).await.expect("a place"));
    }
    scheduler.wait_idle().await;
    info!("after");

    for name in ["a", "b"] {
        recorder.assert(&format!("in [{name}]: first poll"));
        recorder.assert(&format!("in [{name}]: second poll"));
        recorder.assert(&format!("in [{name}]: dropped"));
    }
    recorder.assert("in []: after");
}

#[tokio::test]
async fn events_of_a_child_job_are_in_the_request_span_too() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::builder().span(SpanLink::Child).build();
    drop(serve(&scheduler, |jobs| jobs.job("mail").spawn(speak())).await);
    scheduler.wait_idle().await;
    recorder.assert("in [request mail]: second poll");
}

#[tokio::test]
async fn events_of_a_blocking_job_are_in_its_span() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::new();
    // The blocking thread has no recorder. The span has one.
    let dispatch = dispatcher::get_default(Dispatch::clone);
    let job = scheduler.job("report").spawn_blocking(move || {
        dispatcher::with_default(&dispatch, || info!("at work"));
    });
    job.await.expect("a place").await.expect("no failure");
    recorder.assert("in [report]: at work");
}

#[tokio::test]
async fn jobs_that_share_a_task_have_each_their_own_span() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::builder().limit(1).build();
    let mut jobs = Vec::new();
    for name in ["a", "b", "c"] {
        let job = scheduler.job(name).spawn(async {
            speak().await;
            tokio::task::id().to_string()
        });
        jobs.push(job.await.expect("a place"));
    }
    let mut tasks = Vec::new();
    for job in jobs {
        tasks.push(job.await.expect("a task id"));
    }

    assert!(tasks.iter().all(|task| *task == tasks[0]), "one task was reused: {tasks:?}");
    for name in ["a", "b", "c"] {
        recorder.assert(&format!("in [{name}]: first poll"));
        recorder.assert(&format!("in [{name}]: second poll"));
        recorder.assert(&format!("in [{name}]: dropped"));
    }
}

#[tokio::test]
async fn report_of_a_failed_job_is_in_its_span() {
    let (recorder, _guard) = Recorder::start();
    let on_failure = |_| info!("reported");
    let scheduler = Scheduler::builder().on_failure(on_failure).build();
    drop(scheduler.job("fails").spawn(async { Err::<(), _>("no") }).await.expect("a place"));
    scheduler.wait_idle().await;
    recorder.assert("in [fails]: reported");
}

// The drop of a job's future is inside its span.

#[tokio::test]
async fn aborted_job_is_dropped_in_its_span_if_it_started() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::builder().limit(1).build();
    let active = scheduler.job("active").spawn(holding(Guard)).await.expect("a place");
    let pending = scheduler.job("pending").spawn(holding(Guard)).await.expect("a place");
    yield_now().await;

    pending.abort();
    active.abort();
    scheduler.wait_idle().await;

    recorder.assert("in []: dropped");
    recorder.assert("in [active]: dropped");
}

#[tokio::test]
async fn job_that_panics_is_dropped_in_its_span() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::builder().on_failure(drop).build();
    async fn panic() {
        let _guard = Guard;
        panic!("as it should");
    }
    drop(scheduler.job("panics").spawn(panic()).await.expect("a place"));
    scheduler.wait_idle().await;
    recorder.assert("in [panics]: dropped");
}

#[tokio::test]
async fn started_jobs_of_a_closed_scheduler_are_dropped_in_their_spans() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::builder().limit(1).build();
    for name in ["active", "pending"] {
        drop(scheduler.job(name).spawn(holding(Guard)).await.expect("a place"));
    }
    yield_now().await;

    scheduler.close().await;

    // The pending one is dropped by another thread.
    let dropped = || recorder.has("in [active]: dropped") && recorder.has("in []: dropped");
    let both = async {
        while !dropped() {
            yield_now().await;
        }
    };
    within("both drops", both).await;
}

#[test]
fn started_jobs_of_a_runtime_that_ends_are_dropped_in_their_spans() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::builder().limit(1).build();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        for name in ["active", "pending"] {
            drop(scheduler.job(name).spawn(holding(Guard)).await.expect("a place"));
        }
        yield_now().await;
    });

    drop(runtime);

    recorder.assert("in [active]: dropped");
    recorder.assert("in []: dropped");
}

#[test]
fn unaccepted_job_is_dropped_in_the_span_of_its_caller() {
    let (recorder, _guard) = Recorder::start();
    let scheduler = Scheduler::new();
    let spawn = scheduler.job("lazy").spawn(holding(Guard));
    info_span!("request").in_scope(|| drop(spawn));
    recorder.assert("in [request]: dropped");
    recorder.assert("lazy: closed");
}

#[test]
fn blocking_job_without_a_thread_is_dropped_in_its_span() {
    struct Says;

    impl Drop for Says {
        fn drop(&mut self) {
            info!("dropped");
            panic!("boom");
        }
    }

    // The threads of blocking jobs have the subscriber too.
    let recorder = Recorder::default();
    let dispatch = logs::dispatch(recorder.clone());
    let _guard = dispatcher::set_default(&dispatch);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .on_thread_start(move || {
            #[allow(clippy::mem_forget, reason = "for as long as the thread lives")]
            std::mem::forget(dispatcher::set_default(&dispatch));
        })
        .build()
        .expect("a runtime");
    let scheduler = Scheduler::new();
    let (release, released) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let busy =
            scheduler.spawn_blocking(move || released.recv().is_err()).await.expect("a place");
        let says = Says;
        let never_run = scheduler.job("mail").spawn_blocking(move || drop(says));
        let never_run = never_run.await.expect("a place");
        yield_now().await;
        never_run.abort();
        assert!(never_run.await.expect_err("no thread came to it").is_cancelled());
        recorder.assert_not("in [mail]: dropped");
        drop(release);
        assert!(busy.await.expect("no panic"));
    });
    drop(runtime);
    recorder.assert("in [mail]: dropped");
    recorder.assert("mail: closed");
}

// A subscriber that panics.

#[tokio::test(start_paused = true)]
async fn panicking_subscriber_harms_neither_jobs_nor_scheduler() {
    for callback in ["enter", "exit", "record", "close", "event"] {
        let (broken, _guard) = Broken::start(callback);
        let scheduler = Scheduler::builder().limit(2).build();
        let good = scheduler.try_spawn(async { yield_now().await }).expect("a place");
        let failing = scheduler.try_spawn(async { Err::<(), _>("no") }).expect("a place");
        let held = Grenade;
        let never_run = scheduler.try_spawn(async move { drop(held) }).expect("a place");
        let blocking = scheduler.job("thread").spawn_blocking(|| 7).await.expect("a place");
        let late = scheduler.try_spawn(pending::<()>()).expect("a place");

        broken.switch(true);
        drop(failing);
        never_run.abort();
        good.await.expect("no panic of its own");
        assert_eq!(blocking.await.expect("no panic of its own"), 7);
        yield_now().await;
        assert!(late.is_active() && !scheduler.is_closed());
        let report = scheduler.close().await;
        broken.switch(false);

        assert!(broken.panics() > 0, "{callback}");
        assert_eq!((report.cancelled.len(), scheduler.len()), (1, 0), "{callback}");
        let stats = scheduler.stats();
        assert_eq!((stats.completed, stats.failed, stats.panicked), (2, 1, 0), "{callback}");
        assert_eq!((stats.accepted, stats.cancelled), (5, 2), "{callback}");
    }
}
