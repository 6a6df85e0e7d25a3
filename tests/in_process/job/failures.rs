//! Failures: each is reported exactly once, to the awaiter or to the hook.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::{Future, pending},
    panic::panic_any,
    pin::{Pin, pin},
    sync::{Arc, Mutex, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceExt};
use tower_jobs::{
    BoxError, Job, JobError, JobFailure, JobOutput, Jobs, JobsLayer, Outcome, Scheduler,
};

use crate::support::{
    Failures, Grenade, PLENTY, SECOND,
    logs::{Event, Logs},
    received, turn, watched, within,
};

/// A scheduler that closes in a second, and its failures.
fn closing_in_time() -> (Scheduler, Failures) {
    watched(Scheduler::builder().close_timeout(SECOND))
}

/// How a job fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Err,
    Panic,
    PanicWhenDropped,
    RunTimeout,
    CloseTimeout,
}

const ALL: [How; 5] =
    [How::Err, How::Panic, How::PanicWhenDropped, How::RunTimeout, How::CloseTimeout];

impl How {
    async fn spawn(self, scheduler: &Scheduler, go: Arc<Notify>) -> Job<()> {
        let job = async move {
            // Moved into the future, and dropped with it.
            let _held = (self == How::PanicWhenDropped).then(|| Grenade);
            go.notified().await;
            match self {
                How::Err => Err("no"),
                How::Panic => panic!("no"),
                How::PanicWhenDropped => Ok(()),
                How::RunTimeout | How::CloseTimeout => pending().await,
            }
        };
        let builder = scheduler.job("failing");
        match self {
            How::RunTimeout => builder.timeout(SECOND).spawn(job).await,
            How::CloseTimeout => builder.spawn_with(|_| job).await,
            _ => builder.spawn(job).await,
        }
        .expect("there is a place")
    }

    fn is(self, error: &JobError) -> bool {
        match self {
            How::Err => error.is_failed(),
            How::Panic | How::PanicWhenDropped => error.is_panic(),
            How::RunTimeout => error.is_timeout() && !error.is_close_timeout(),
            How::CloseTimeout => error.is_close_timeout(),
        }
    }

    /// Lets the job fail, and waits until it has.
    async fn fail(self, scheduler: &Scheduler, go: &Notify) {
        turn().await;
        go.notify_one();
        match self {
            How::CloseTimeout => drop(scheduler.close().await),
            _ => scheduler.wait_idle().await,
        }
    }
}

/// Asserts that the hook got the one failure exactly once.
#[track_caller]
fn assert_reported(how: How, failures: &mut Failures) {
    let failure = failures.try_recv().unwrap_or_else(|_| panic!("{how:?} was not reported"));
    assert!(how.is(&failure.error), "{how:?}: {failure}");
    assert_not_reported(how, failures);
}

#[track_caller]
fn assert_not_reported(how: How, failures: &mut Failures) {
    if let Ok(failure) = failures.try_recv() {
        panic!("{how:?} was reported once too often: {failure}");
    }
}

fn assert_counted(how: How, scheduler: &Scheduler) {
    let stats = scheduler.stats();
    let terms = [stats.failed, stats.panicked, stats.timed_out];
    let expected = match how {
        How::Err => [1, 0, 0],
        How::Panic | How::PanicWhenDropped => [0, 1, 0],
        How::RunTimeout | How::CloseTimeout => [0, 0, 1],
    };
    assert_eq!((stats.accepted, terms), (1, expected), "{how:?}");
}

#[tokio::test(start_paused = true)]
async fn awaited_failure_reaches_the_awaiter_only() {
    for how in ALL {
        let (scheduler, mut failures) = closing_in_time();
        let go = Arc::new(Notify::new());
        let mut job = how.spawn(&scheduler, go.clone()).await;
        let (awaited, ()) = tokio::join!(job.wait(), how.fail(&scheduler, &go));
        assert!(how.is(&awaited.unwrap_err()), "{how:?}");
        drop(job);
        drop(scheduler.close().await);
        assert_not_reported(how, &mut failures);
        assert_counted(how, &scheduler);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_handle_reports_failure_once() {
    for how in ALL {
        let (scheduler, mut failures) = closing_in_time();
        let go = Arc::new(Notify::new());
        let job = how.spawn(&scheduler, go.clone()).await;
        how.fail(&scheduler, &go).await;
        turn().await;
        assert_not_reported(how, &mut failures);
        drop(job);
        assert_reported(how, &mut failures);
        assert_counted(how, &scheduler);
    }
}

#[tokio::test(start_paused = true)]
async fn detached_job_reports_its_failure_when_it_fails() {
    for how in ALL {
        let (scheduler, mut failures) = closing_in_time();
        let go = Arc::new(Notify::new());
        drop(how.spawn(&scheduler, go.clone()).await);
        assert_not_reported(how, &mut failures);
        how.fail(&scheduler, &go).await;
        assert_reported(how, &mut failures);
        drop(scheduler.close().await);
        assert_not_reported(how, &mut failures);
        assert_counted(how, &scheduler);
    }
}

#[tokio::test(start_paused = true)]
async fn wait_that_was_given_up_counts_for_nothing() {
    for how in ALL {
        let (scheduler, mut failures) = closing_in_time();
        let go = Arc::new(Notify::new());
        let mut job = how.spawn(&scheduler, go.clone()).await;
        {
            let mut wait = task::spawn(job.wait());
            assert_pending!(wait.poll());
            how.fail(&scheduler, &go).await;
            assert!(wait.is_woken());
        }
        assert_not_reported(how, &mut failures);
        drop(job);
        assert_reported(how, &mut failures);
    }
}

/// A future that ends with an error, drops the value it holds, and then panics.
struct Spiteful<T>(Arc<Mutex<Option<T>>>);

impl<T> Future for Spiteful<T> {
    type Output = Result<(), &'static str>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err("no"))
    }
}

impl<T> Drop for Spiteful<T> {
    fn drop(&mut self) {
        let held = self.0.lock().expect("no panic yet").take();
        drop(held);
        panic!("boom");
    }
}

#[tokio::test]
async fn handle_dropped_by_its_own_failing_job_reports_once() {
    let (scheduler, mut failures) = closing_in_time();
    let own_handle = Arc::default();
    let job = scheduler.try_spawn(Spiteful(Arc::clone(&own_handle))).unwrap();
    *own_handle.lock().unwrap() = Some(job);
    scheduler.wait_idle().await;
    failures.try_recv().unwrap();
    assert_not_reported(How::Err, &mut failures);
}

#[tokio::test]
async fn shield_that_drops_its_caller_reports_its_failure_once() {
    type Caller = task::Spawn<Pin<Box<dyn Future<Output = ()> + Send>>>;
    let (scheduler, mut failures) = closing_in_time();
    let caller: Arc<Mutex<Option<Caller>>> = Arc::default();
    let shielded = scheduler.shield(Spiteful(Arc::clone(&caller)));
    let mut waits: Caller = task::spawn(Box::pin(async { drop(shielded.await) }));
    assert_pending!(waits.poll());
    *caller.lock().unwrap() = Some(waits);
    scheduler.wait_idle().await;
    assert_reported(How::Err, &mut failures);
    assert_eq!(scheduler.stats().panicked, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handle_dropped_while_its_job_fails_reports_once() {
    let (scheduler, mut failures) = closing_in_time();
    for n in 0..2_000 {
        let (go, goes) = oneshot::channel::<()>();
        let job = scheduler
            .spawn(async move {
                drop(goes.await);
                if n % 2 == 0 { Err::<(), _>("no") } else { panic_any(n) }
            })
            .await
            .unwrap();
        go.send(()).unwrap();
        for _ in 0..n % 50 {
            std::hint::spin_loop();
        }
        drop(job);
        let failure = failures.recv().await.expect("a failure");
        assert_eq!(failure.error.is_panic(), n % 2 == 1);
    }
    scheduler.close().await;
    assert_not_reported(How::Err, &mut failures);
}

#[tokio::test(start_paused = true)]
async fn closing_handle_gets_the_failure_of_its_job_once() {
    let (scheduler, mut failures) = closing_in_time();
    let mut deaf = scheduler.spawn_with(|_| pending::<()>()).await.unwrap();
    assert!(deaf.close().await.unwrap_err().is_close_timeout());
    drop(deaf);
    let mut panicking = scheduler
        .spawn(async {
            let _held = Grenade;
            pending::<()>().await;
        })
        .await
        .unwrap();
    turn().await;
    assert!(panicking.close().await.unwrap_err().is_panic());
    drop(panicking);
    scheduler.wait_idle().await;
    assert_not_reported(How::CloseTimeout, &mut failures);
}

#[tokio::test]
async fn close_timeout_is_reported_once_and_a_later_failure_too() {
    for how in [How::CloseTimeout, How::Panic] {
        let builder = Scheduler::builder().close_timeout(Duration::ZERO);
        let (scheduler, mut failures) = watched(builder);
        let (go, goes) = std::sync::mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let stuck = move || {
            begun.send(()).expect("the test waits");
            goes.recv().expect("the sender is dropped, and that fails the job");
        };
        let mut job = scheduler.spawn_blocking(stuck).await.unwrap();
        begins.await.unwrap();
        assert!(job.close().await.unwrap_err().is_close_timeout());
        if how == How::CloseTimeout {
            assert_eq!(scheduler.close().await.abandoned.len(), 1);
            let error = job.wait().await.unwrap_err();
            assert!(error.to_string().contains("given to an earlier wait"), "{error}");
            drop((job, go));
            assert_not_reported(how, &mut failures);
        } else {
            drop(go);
            scheduler.wait_idle().await;
            drop(job);
            assert_reported(how, &mut failures);
        }
    }
}

/// Panics when it is polled, and again when it is dropped.
struct Twice;

impl Future for Twice {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        panic!("the first")
    }
}

impl Drop for Twice {
    fn drop(&mut self) {
        panic!("the second");
    }
}

#[tokio::test]
async fn first_of_two_panics_is_reported() {
    let (scheduler, mut failures) = closing_in_time();
    drop(scheduler.try_spawn(Twice).unwrap());
    scheduler.wait_idle().await;
    let failure = failures.try_recv().unwrap();
    assert!(failure.error.to_string().ends_with("the first"), "{failure}");
    assert_not_reported(How::Panic, &mut failures);
}

/// The handle is dropped in a thread without a runtime.
#[tokio::test]
async fn hook_runs_inside_the_runtime_of_the_jobs() {
    let (tell, mut alerts) = mpsc::unbounded_channel();
    let scheduler = Scheduler::builder().on_failure(move |failure| {
        let (tell, name) = (tell.clone(), failure.job.name.clone());
        tokio::spawn(async move { drop(tell.send(name)) });
    });
    let scheduler = scheduler.build();
    let job = scheduler.job("failed").try_spawn(async { Err::<(), _>("no") }).unwrap();
    scheduler.wait_idle().await;
    std::thread::spawn(move || drop(job)).join().unwrap();
    assert_eq!(within("the alert", alerts.recv()).await.as_deref(), Some("failed"));
}

/// A job that ignores its cancellation, and panics as it is dropped.
#[tokio::test(start_paused = true)]
async fn close_timeout_given_to_the_closer_is_not_reported_again() {
    for panics in [false, true] {
        let (scheduler, mut failures) = closing_in_time();
        let job = move |_| async move {
            let _held = panics.then(|| Grenade);
            pending::<()>().await;
        };
        let mut deaf = scheduler.spawn_with(job).await.unwrap();
        turn().await;
        let closing = task::spawn(scheduler.close());
        assert!(deaf.close().await.unwrap_err().is_close_timeout());
        drop((deaf, closing.await));
        turn().await;
        // A panic is a failure of its own.
        let reported = received(&mut failures);
        assert!(reported.iter().all(|failure| failure.error.is_panic()), "{reported:?}");
        assert_eq!(reported.len(), usize::from(panics), "{reported:?}");
    }
}

/// A future that fails, and whose drop holds the thread until it is released, and then panics.
struct FailsAndClings {
    dropping: Option<oneshot::Sender<()>>,
    released: std::sync::mpsc::Receiver<()>,
}

impl Future for FailsAndClings {
    type Output = Result<(), &'static str>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err("no"))
    }
}

impl Drop for FailsAndClings {
    fn drop(&mut self) {
        let _told = self.dropping.take().map(|dropping| dropping.send(()));
        let _released = self.released.recv_timeout(PLENTY);
        panic!("boom");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_given_by_a_close_is_reported_once() {
    let (scheduler, mut failures) = closing_in_time();
    let (release, released) = std::sync::mpsc::channel();
    let (dropping, is_dropping) = oneshot::channel();
    let future = FailsAndClings { dropping: Some(dropping), released };
    let mut job = scheduler.try_spawn(future).unwrap();
    is_dropping.await.unwrap();
    // The failure is stored, and the job has not ended yet.
    assert!(job.close_within(Duration::ZERO).await.unwrap_err().is_failed());
    release.send(()).unwrap();
    scheduler.wait_idle().await;
    let again = job.wait().await.unwrap_err();
    assert!(again.to_string().contains("earlier wait"), "{again}");
    drop(job);
    assert_not_reported(How::Panic, &mut failures);
    assert_eq!(scheduler.stats().panicked, 1);
}

#[tokio::test(start_paused = true)]
async fn first_poll_of_a_job_counts_for_its_run_timeout() {
    let scheduler = Scheduler::new();
    let job = async {
        // Moves the clock in its first poll.
        advance(10 * SECOND).await;
        pending::<()>().await;
    };
    let began = Instant::now();
    let job = scheduler.job("slow").timeout(10 * SECOND).spawn(job).await.unwrap();
    assert!(job.await.unwrap_err().is_timeout());
    assert_eq!(began.elapsed(), 10 * SECOND);
}

/// A failure whose error panics.
#[derive(Debug)]
struct Unspeakable;

impl JobOutput for Unspeakable {
    type Value = ();

    fn into_result(self) -> Result<(), BoxError> {
        panic!("no words")
    }

    fn is_failure(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn panic_of_a_shielded_failure_is_reported_as_a_panic() {
    let (scheduler, mut failures) = closing_in_time();
    let mut caller = task::spawn(scheduler.shield(async { Unspeakable }));
    assert_pending!(caller.poll());
    scheduler.wait_idle().await;
    drop(caller);
    assert_reported(How::Panic, &mut failures);
}

#[tokio::test]
async fn cancelled_jobs_have_not_failed() {
    let (scheduler, mut failures) = closing_in_time();
    scheduler.spawn(pending::<()>()).await.unwrap().abort();
    scheduler.spawn(pending::<()>()).await.unwrap().close().await.unwrap();
    scheduler.spawn(pending::<()>()).await.unwrap();
    scheduler.close().await;
    assert_eq!(scheduler.stats().cancelled, 3);
    assert_not_reported(How::Err, &mut failures);
}

#[tokio::test]
async fn shield_reports_to_its_caller_or_else_to_the_hook() {
    let (scheduler, mut failures) = closing_in_time();
    assert_eq!(scheduler.shield(async { Err::<(), _>("no") }).await.unwrap(), Err("no"));
    // A panic comes out in the caller.
    let scheduler_2 = scheduler.clone();
    let caller = Scheduler::new()
        .spawn(async move { scheduler_2.shield(async { panic_any(7_u8) }).await.map(|(): ()| ()) });
    let payload = caller.await.unwrap().await.unwrap_err().into_panic().unwrap();
    assert_eq!(payload.downcast_ref::<u8>(), Some(&7));
    assert_not_reported(How::Err, &mut failures);

    // The caller is dropped before the failure, or after it.
    for after in [false, true] {
        for how in [How::Err, How::Panic] {
            let go = Arc::new(Notify::new());
            let goes = go.clone();
            let mut caller = task::spawn(scheduler.shield(async move {
                goes.notified().await;
                if how == How::Err { Err("no") } else { panic!("no") }
                    .map(|never: Infallible| match never {})
            }));
            assert_pending!(caller.poll());
            if !after {
                drop(caller);
                how.fail(&scheduler, &go).await;
            } else {
                how.fail(&scheduler, &go).await;
                assert_not_reported(how, &mut failures);
                drop(caller);
            }
            assert_reported(how, &mut failures);
        }
    }
    assert_eq!((scheduler.stats().failed, scheduler.stats().panicked), (3, 3));
}

#[tokio::test]
async fn hook_that_panics_harms_nothing_and_is_logged() {
    let (logs, _guard) = Logs::start();
    let (tell, mut heard) = mpsc::unbounded_channel();
    let hook = move |failure: JobFailure| {
        tell.send(failure.job.id).expect("heard");
        panic_any(Grenade)
    };
    let scheduler = Scheduler::builder().limit(1).on_failure(hook).build();
    let first =
        scheduler.job("for a bad hook").spawn(async { Err::<(), _>("no") }).await.unwrap().id();
    let held = scheduler.spawn(async { Err::<(), _>("no") }).await.unwrap();
    let good = scheduler.spawn(async { 7 }).await.unwrap();
    assert_eq!(good.await.unwrap(), 7);
    let second = held.id();
    drop(held);
    assert_eq!((heard.recv().await, heard.recv().await), (Some(first), Some(second)));
    let logged = logs.iter().find(|event| event.field("job").contains("for a bad hook"));
    assert_eq!(
        logged.expect("logged").field("message"),
        "on_failure, or the error it was called with, panicked"
    );
    assert!(scheduler.wait_and_close().await.is_clean(), "all failed before");
    assert_eq!((scheduler.stats().failed, scheduler.stats().completed), (2, 1));
}

/// The one event that reports the failure of the job `name`.
#[track_caller]
fn logged_failure(logs: &Logs, name: &str) -> Event {
    let mut events: Vec<_> = logs.iter().filter(|event| event.field("job.name") == name).collect();
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

#[derive(Debug)]
struct Undelivered(std::io::Error);

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("undelivered")
    }
}

impl Error for Undelivered {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

#[tokio::test]
async fn failure_without_a_hook_is_logged_with_its_job() {
    let (logs, _guard) = Logs::start();
    let scheduler = Scheduler::new();
    let spawned = Arc::new(OnceLock::new());
    let from_handler = spawned.clone();
    let handler = tower::service_fn(move |request: http::Request<()>| {
        let from_handler = from_handler.clone();
        async move {
            let jobs = request.extensions().get::<Jobs>().expect("the layer is there");
            let job = jobs.job("welcome e-mail").spawn(async {
                Err::<(), _>(Undelivered(std::io::Error::other("connection refused")))
            });
            from_handler.set((line!() - 3, job.await.expect("there is room").id())).expect("once");
            Ok::<_, Infallible>(http::Response::new(String::new()))
        }
    });
    let service = JobsLayer::new(scheduler.clone()).layer(handler);
    let request = http::Request::post("/signup").body(()).unwrap();
    service.oneshot(request).await.unwrap();
    scheduler.wait_idle().await;
    let (line, id) = *spawned.get().expect("the handler has run");

    let event = logged_failure(&logs, "welcome e-mail");
    assert_eq!((event.field("level"), event.field("target")), ("ERROR", "tower_jobs"));
    assert_eq!(event.field("job.id"), id.to_string());
    assert_eq!(event.field("job.request"), "POST");
    let place = event.field("job.location");
    assert!(place.starts_with(&format!("{}:{line}:", file!())), "{place} is not line {line}");
    assert_eq!(event.field("spans"), "job");
    assert_eq!(event.field("message"), "the job failed: undelivered: connection refused");
}

#[tokio::test]
async fn failure_text_leaves_out_only_causes_it_already_has() {
    #[derive(Debug)]
    struct Step(&'static str, Option<Box<Step>>);
    impl fmt::Display for Step {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }
    impl Error for Step {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }
    let (scheduler, mut failures) = closing_in_time();
    let refused = || Some(Box::new(Step("refused", None)));
    for (error, text) in [
        (Step("failed", None), "the job failed: failed"),
        (Step("connection refused", refused()), "the job failed: connection refused: refused"),
        (Step("no mail: refused", refused()), "the job failed: no mail: refused"),
        (Step("refused", refused()), "the job failed: refused"),
    ] {
        drop(scheduler.spawn(async { Err::<(), _>(error) }).await.expect("open"));
        let failure = failures.recv().await.expect("a failure").to_string();
        assert!(failure.ends_with(&format!(": {text}")), "{failure}");
    }
}

#[tokio::test]
async fn panic_without_a_hook_is_logged_with_its_text() {
    let (logs, _guard) = Logs::start();
    let scheduler = Scheduler::new();
    scheduler.job("panicking").spawn(async { panic!("out of ink") }).await.unwrap();
    scheduler.wait_idle().await;
    let event = logged_failure(&logs, "panicking");
    assert_eq!(event.field("message"), "the job panicked: out of ink");
    assert_eq!(event.field("job.request"), "");
}

#[tokio::test]
async fn failure_is_one_line_whatever_its_error_and_its_request() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let handler = tower::service_fn(async |request: http::Request<()>| {
        let jobs = request.extensions().get::<Jobs>().expect("the layer is there");
        let error = std::io::Error::other("refused\nERROR forged");
        drop(jobs.try_spawn(async { Err::<(), _>(Undelivered(error)) }).expect("there is room"));
        Ok::<_, Infallible>(http::Response::new(String::new()))
    });
    let layer = JobsLayer::new(scheduler).label(|_, _, _| Some("POST a\r\nb".to_owned()));
    layer.layer(handler).oneshot(http::Request::new(())).await.unwrap();
    let line = failures.recv().await.expect("a failure").to_string();
    assert!(line.contains(r" of POST a\r\nb ("), "{line}");
    let text = r": the job failed: undelivered: refused\nERROR forged";
    assert!(line.ends_with(text) && line.lines().count() == 1, "{line}");
}

#[tokio::test]
async fn failure_is_logged_in_one_line_whatever_its_job_name() {
    let (logs, _guard) = Logs::start();
    let scheduler = Scheduler::new();
    let job = scheduler.job("to a\nERROR forged").spawn(async { Err::<(), _>("no mail today") });
    drop(job.await.expect("open"));
    scheduler.wait_idle().await;
    logged_failure(&logs, r"to a\nERROR forged");
}

/// Asserts that after `panics` the next job runs in the same place and the scheduler stays open.
async fn assert_contained<F>(scheduler: Scheduler, panics: F, outcome: Outcome)
where
    F: Future<Output: JobOutput> + Send + 'static,
{
    drop(scheduler.spawn(panics).await.expect("there is a place"));
    let next = scheduler.spawn(async { 7 }).await.expect("there is a place");
    scheduler.wait_idle().await;
    assert!(!scheduler.is_closed());
    assert_eq!(next.await.expect("the next job runs"), 7);
    let stats = scheduler.stats();
    assert_eq!((stats.accepted, stats.completed + stats.panicked), (2, 2));
    let expected = if outcome == Outcome::Panicked { 1 } else { 0 };
    assert_eq!(stats.panicked, expected);
}

#[tokio::test]
async fn panic_whose_payload_panics_when_dropped_is_contained() {
    let logging = || Scheduler::builder().limit(1);
    for scheduler in [logging().build(), logging().on_failure(drop).build()] {
        assert_contained(scheduler, async { panic_any(Grenade) }, Outcome::Panicked).await;
    }
    // The handle is dropped unawaited after the failure.
    for scheduler in [logging().build(), logging().on_failure(drop).build()] {
        let job = scheduler.spawn(async { panic_any(Grenade) }).await.unwrap();
        scheduler.wait_idle().await;
        drop(job);
    }
}

#[tokio::test]
async fn value_that_panics_when_dropped_is_contained() {
    let scheduler = || Scheduler::builder().limit(1).on_failure(drop).build();
    // The handle is dropped first. The job drops the value, and that is its panic.
    assert_contained(scheduler(), async { Some(Grenade) }, Outcome::Panicked).await;

    // The handle is dropped with the value in it.
    let scheduler = scheduler();
    let job = scheduler.spawn(async { Some(Grenade) }).await.unwrap();
    scheduler.wait_idle().await;
    drop(job);
    let report = scheduler.close().await;
    assert_eq!((report.is_clean(), scheduler.stats().completed), (true, 1));
}

/// An error that panics, either when it is shown or when it is dropped.
#[derive(Debug)]
struct BadError {
    when_shown: bool,
}

impl fmt::Display for BadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(!self.when_shown, "boom");
        f.write_str("bad")
    }
}

impl Error for BadError {}

impl Drop for BadError {
    fn drop(&mut self) {
        assert!(self.when_shown, "boom");
    }
}

#[tokio::test]
async fn error_that_panics_when_dropped_or_shown_is_contained() {
    for when_shown in [true, false] {
        let show = |failure| drop(format!("{failure}"));
        for scheduler in [Scheduler::new(), Scheduler::builder().on_failure(show).build()] {
            drop(scheduler.spawn(async move { Err::<(), _>(BadError { when_shown }) }).await);
            scheduler.wait_idle().await;
            assert_eq!((scheduler.is_closed(), scheduler.stats().failed), (false, 1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn job_at_its_run_timeout_is_dropped_where_it_stands() {
    let (scheduler, mut failures) = closing_in_time();
    let job = scheduler.job("slow").timeout(SECOND).spawn(async {
        sleep(2 * SECOND).await;
        panic!("it ran on");
    });
    drop(job.await.unwrap());
    sleep(3 * SECOND).await;
    let failure = failures.try_recv().unwrap();
    assert_eq!(failure.error.to_string(), "the job ran longer than its timeout of 1s");
    assert_not_reported(How::RunTimeout, &mut failures);
}

// Run timeouts of code that blocks.

const RUN_TIMEOUT: Duration = Duration::from_millis(50);
const BLOCKS: Duration = Duration::from_millis(200);

/// A future that blocks its thread in its one poll, and a blocking closure.
#[tokio::test]
async fn run_timeout_is_the_same_for_a_future_and_a_closure() {
    type Returns = Result<(), &'static str>;
    for (returned, blocks, late) in [
        (Ok(()), BLOCKS, true),
        (Err("no"), BLOCKS, true),
        (Ok(()), Duration::ZERO, false),
        (Err("no"), Duration::ZERO, false),
    ] as [(Returns, Duration, bool); 4]
    {
        let (scheduler, mut failures) = closing_in_time();
        let code = move || {
            std::thread::sleep(blocks);
            returned
        };
        let timeout = if late { RUN_TIMEOUT } else { PLENTY };
        let job = |name| scheduler.job(name).timeout(timeout);
        let future = job("future").try_spawn(async move { code() }).unwrap();
        let closure = job("closure").spawn_blocking(code).await.unwrap();
        let shielded = job("shield").shield(async move { code() });
        for ended in [future.await, closure.await] {
            match ended {
                Ok(()) => assert!(!late && returned.is_ok()),
                Err(error) if late => {
                    assert!(error.is_timeout() && !error.is_close_timeout(), "{error}");
                }
                Err(error) => assert!(error.is_failed() && returned.is_err(), "{error}"),
            }
        }
        match shielded.await {
            Ok(output) => assert!(!late && output == returned),
            Err(error) => assert!(late && error.is_timeout(), "{error}"),
        }
        let stats = scheduler.stats();
        let ends = [stats.timed_out, stats.completed, stats.failed];
        let expected = match (late, returned) {
            (true, _) => [3, 0, 0],
            (false, Ok(())) => [0, 3, 0],
            (false, Err(_)) => [0, 0, 3],
        };
        assert_eq!(ends, expected);
        assert_not_reported(How::RunTimeout, &mut failures);
    }
}

#[tokio::test]
async fn late_result_of_a_detached_job_is_reported_once() {
    for blocking in [false, true] {
        let (scheduler, mut failures) = closing_in_time();
        let code = || {
            std::thread::sleep(BLOCKS);
            Err::<(), _>("no")
        };
        let job = scheduler.job("late").timeout(RUN_TIMEOUT);
        if blocking {
            drop(job.spawn_blocking(code).await.unwrap());
        } else {
            drop(job.try_spawn(async move { code() }).unwrap());
        }
        scheduler.wait_idle().await;
        assert_reported(How::RunTimeout, &mut failures);
        assert_counted(How::RunTimeout, &scheduler);
    }
}

#[tokio::test]
async fn panic_after_the_run_timeout_is_a_panic() {
    let scheduler = Scheduler::new();
    let code = || -> Result<(), &'static str> {
        std::thread::sleep(BLOCKS);
        panic!("too late")
    };
    let job = |name| scheduler.job(name).timeout(RUN_TIMEOUT);
    let future = job("future").try_spawn(async move { code() }).unwrap();
    let closure = job("closure").spawn_blocking(code).await.unwrap();
    let ends: [Result<(), JobError>; 2] = [future.await, closure.await];
    assert!(ends.into_iter().all(|ended| ended.unwrap_err().is_panic()));
}

/// With a paused clock.
#[tokio::test(start_paused = true)]
async fn job_that_ends_at_its_run_timeout_is_in_time() {
    let scheduler = Scheduler::new();
    let job = |name| scheduler.job(name).timeout(SECOND);
    let in_time = job("in time").try_spawn(async {
        sleep(SECOND).await;
        7
    });
    assert_eq!(in_time.unwrap().await.unwrap(), 7);
    // Moves the clock in its one poll.
    let late = job("late").try_spawn(async {
        let mut moves = pin!(advance(SECOND + Duration::from_millis(1)));
        let one_poll = std::future::poll_fn(|cx| {
            let _moved = moves.as_mut().poll(cx);
            Poll::Ready(())
        });
        one_poll.await;
        7
    });
    assert!(late.unwrap().await.unwrap_err().is_timeout());
}

/// The closure waits for a thread for longer than its run timeout.
#[test]
fn run_timeout_of_a_closure_begins_in_its_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let scheduler = Scheduler::new();
        let (begun, begins) = oneshot::channel();
        let holds_the_thread = move || {
            begun.send(()).expect("the test waits");
            std::thread::sleep(4 * BLOCKS);
        };
        let first = scheduler.spawn_blocking(holds_the_thread).await.unwrap();
        begins.await.unwrap();
        let job = scheduler.job("waits for a thread").timeout(3 * BLOCKS);
        let second = job.spawn_blocking(|| 7).await.unwrap();
        assert_eq!(second.await.unwrap(), 7);
        first.await.unwrap();
        assert_eq!(scheduler.stats().timed_out, 0);
    });
}

/// The job is always ready, and only its cooperative budget makes it give way.
#[tokio::test]
async fn job_that_uses_up_its_budget_is_timed_out() {
    let scheduler = Scheduler::new();
    let greedy = async {
        loop {
            tokio::task::coop::consume_budget().await;
        }
    };
    let job = scheduler.job("greedy").timeout(RUN_TIMEOUT).try_spawn(greedy).unwrap();
    assert!(within("the run timeout", job).await.unwrap_err().is_timeout());
}
