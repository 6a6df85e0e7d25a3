//! The module `testing`: recording, running inline, and finding leaks.

use std::{
    convert::Infallible,
    future::{pending, ready},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Bytes;
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, task::spawn as poll_by_hand};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_jobs::{
    JobState, Jobs, JobsLayer, ResponseBody, Scheduler, TrySpawnError,
    testing::{LeakCheck, Recorder, assert_no_jobs, inline},
};

use crate::support::{HOUR, PLENTY, SECOND, panic_text, turn, within};

/// Events in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    fn add(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Sends one request through a `JobsLayer` to `handler`.
async fn oneshot<F>(
    scheduler: &Scheduler,
    handler: impl FnOnce(Jobs) -> F,
) -> Response<ResponseBody<Empty<Bytes>>>
where
    F: Future<Output = ()>,
{
    let handler = Mutex::new(Some(handler));
    let inner = service_fn(|request: Request<()>| {
        let handler = handler.lock().unwrap().take().expect("one request");
        let jobs = request.extensions().get::<Jobs>().expect("the layer is there").clone();
        async move {
            handler(jobs).await;
            Ok::<_, Infallible>(Response::new(Empty::new()))
        }
    });
    let service = ServiceBuilder::new()
        .layer(JobsLayer::new(scheduler.clone()).label_by_path())
        .service(inner);
    service.oneshot(Request::post("/signup").body(()).unwrap()).await.unwrap()
}

// Recording.

#[tokio::test]
async fn recorder_runs_nothing_before_run_all() {
    let (recorder, log) = (Recorder::new(), Log::default());
    let scheduler = recorder.scheduler();
    let job = |what| {
        let log = log.clone();
        async move { log.add(what) }
    };
    let response = oneshot(&scheduler, async |jobs: Jobs| {
        jobs.job("spawned").spawn(job("spawned")).await.unwrap();
        jobs.job("tried").try_spawn(job("tried")).unwrap();
        jobs.job("blocking").spawn_blocking(|| ()).await.unwrap();
        jobs.job("deferred").after_response(job("deferred")).unwrap();
    })
    .await;
    drop(response);
    let with = job("with");
    scheduler.job("with").spawn_with(|_| with).await.unwrap();
    turn().await;
    assert_eq!(log.take(), [""; 0]);
    assert!(recorder.spawned().iter().all(|job| job.state == JobState::Pending));
    assert_eq!(recorder.names(), ["spawned", "tried", "blocking", "deferred", "with"]);

    assert!(recorder.run_all().await.is_empty());
    assert_eq!(log.take(), ["spawned", "tried", "deferred", "with"]);
    assert_no_jobs(&scheduler);
}

#[tokio::test]
async fn failed_assertion_lists_the_spawned_jobs() {
    let recorder = Recorder::default();
    assert_eq!(
        panic_text(|| drop(recorder.assert_spawned("invoice"))),
        "no job named \"invoice\" was spawned; the recorder has no jobs"
    );
    recorder.assert_not_spawned("invoice");

    let scheduler = recorder.scheduler();
    let welcome = scheduler.job("welcome").spawn(async {}).await.unwrap();
    oneshot(&scheduler, async |jobs: Jobs| drop(jobs.job("audit").spawn(async {}).await)).await;
    let listed = recorder.spawned();
    let list = format!("2 jobs:\n  {}\n  {}", listed[0], listed[1]);
    let file = file!();
    assert!(list.contains(&format!("\"welcome\" ({file}:")), "{list}");
    assert!(list.contains(&format!("\"audit\" of POST /signup ({file}:")), "{list}");

    assert_eq!(recorder.assert_spawned("welcome").id, welcome.id());
    assert_eq!(recorder.assert_spawned("audit").request.as_deref(), Some("POST /signup"));
    recorder.assert_not_spawned("invoice");
    assert_eq!(
        panic_text(|| drop(recorder.assert_spawned("invoice"))),
        format!("no job named \"invoice\" was spawned; the recorder has {list}")
    );
    assert_eq!(
        panic_text(|| recorder.assert_not_spawned("audit")),
        format!("{} was spawned; the recorder has {list}", listed[1])
    );
}

#[tokio::test]
async fn recorder_counts_and_lists_names_and_labels() {
    let recorder = Recorder::new();
    assert!(recorder.is_empty());
    let scheduler = recorder.scheduler();
    scheduler.job("welcome").spawn(async {}).await.unwrap();
    let response = oneshot(&scheduler, async |jobs: Jobs| {
        jobs.job("audit").after_success(async {}).unwrap();
        jobs.job("audit").spawn(async {}).await.unwrap();
    });
    drop(response.await);
    let assert_all = |when| {
        assert_eq!((recorder.len(), recorder.is_empty()), (3, false), "{when}");
        assert_eq!(recorder.names(), ["welcome", "audit", "audit"], "{when}");
        assert_eq!(recorder.labels(), ["POST /signup", "POST /signup"], "{when}");
        let counts = ["welcome", "audit", "invoice"].map(|name| recorder.count(name));
        assert_eq!(counts, [1, 2, 0], "{when}");
    };
    assert_all("recorded");
    recorder.run_all().await;
    assert_all("run");
}

/// The panic of a test that waits. Only a future that hangs takes the time.
async fn panic_of<F: Future>(waits: F) -> String {
    let waits = AssertUnwindSafe(tokio::time::timeout(PLENTY, waits)).catch_unwind();
    let Err(payload) = waits.await else { panic!("no panic") };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn handler_that_awaits_its_recorded_job_panics() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    let handler = oneshot(&scheduler, async |jobs: Jobs| {
        let job = jobs.job("invoice").spawn(async {}).await.unwrap();
        job.await.unwrap();
    });
    let text = panic_of(handler).await;
    let invoice = recorder.assert_spawned("invoice");
    assert_eq!(
        text,
        format!(
            "this waits for {invoice}, which a testing::Recorder does not run before run_all: test \
             code that waits for its jobs with testing::inline()"
        )
    );

    let handler = oneshot(&scheduler, async |jobs: Jobs| {
        let mut job = jobs.job("deferred").after_response(async {}).unwrap();
        job.wait().await.unwrap();
    });
    assert!(panic_of(handler).await.contains("\"deferred\" of POST /signup"));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_an_idle_recorder_with_jobs_panics() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    scheduler.wait_idle().await;
    scheduler.job("first").spawn(async {}).await.unwrap();
    scheduler.job("second").spawn(async {}).await.unwrap();
    assert!(panic_of(scheduler.wait_idle()).await.starts_with("this waits for job "));
    assert!(panic_of(scheduler.wait_idle()).await.contains("\"first\""));
    recorder.run_all().await;
    scheduler.wait_idle().await;
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_jobs_of_a_request_under_a_recorder_panics() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    scheduler.job("of no request").spawn(async {}).await.unwrap();
    let response = oneshot(&scheduler, async |jobs: Jobs| {
        jobs.wait_idle().await;
        jobs.job("recorded").spawn(async {}).await.unwrap();
    })
    .await;
    let jobs = response.extensions().get::<Jobs>().unwrap().clone();
    assert!(panic_of(jobs.wait_idle()).await.contains("\"recorded\" of POST /signup"));
    recorder.run_all().await;
    jobs.wait_idle().await;
}

#[tokio::test(start_paused = true)]
async fn waiting_for_idle_panics_once_shielded_work_has_ended() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    let inside = scheduler.clone();
    let shielded = scheduler.shield(async move {
        sleep(SECOND).await;
        inside.job("recorded").spawn(async {}).await.unwrap();
    });
    let waits = async { tokio::join!(shielded, scheduler.wait_idle()) };
    let text = panic_of(waits).await;
    assert!(text.contains("\"recorded\""), "{text}");
}

#[tokio::test(start_paused = true)]
async fn permit_of_a_recorder_is_refused_with_a_panic() {
    let scheduler = Recorder::new().scheduler();
    let text = "a testing::Recorder grants no permits";
    let panic = panic_of(scheduler.reserve()).await;
    assert!(panic.starts_with(text), "{panic}");
    assert_eq!((scheduler.stats().reserved, scheduler.stats().granted), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn recorded_job_that_awaits_another_panics() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    let inside = scheduler.clone();
    let outer = scheduler
        .job("outer")
        .spawn(async move { inside.job("inner").spawn(async { 7 }).await.unwrap().await.unwrap() });
    let outer = outer.await.unwrap();
    within("the jobs", recorder.run_all()).await;
    let text = outer.await.unwrap_err().to_string();
    assert!(text.contains("\"inner\""), "{text}");
}

#[tokio::test(start_paused = true)]
async fn bounded_wait_for_a_recorded_job_takes_its_time() {
    let recorder = Recorder::new();
    let mut job = recorder.scheduler().spawn(async {}).await.unwrap();
    let began = Instant::now();
    assert!(job.wait_or_close(HOUR).await.unwrap_err().is_timeout());
    assert_eq!(began.elapsed(), HOUR);
}

#[tokio::test]
async fn aborted_job_was_not_spawned_and_does_not_run() {
    let recorder = Recorder::new();
    let job = recorder.scheduler().job("a").spawn(async { assert_eq!(1, 2) }).await.unwrap();
    recorder.assert_spawned("a");
    job.abort();
    recorder.assert_not_spawned("a");
    assert!(recorder.run_all().await.is_empty());
    assert!(job.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn jobs_run_one_after_the_other_with_those_they_spawn_last() {
    let (recorder, log) = (Recorder::new(), Log::default());
    let scheduler = recorder.scheduler();
    for (name, end) in [("a", "a ended"), ("b", "b ended")] {
        let (log, scheduler) = (log.clone(), scheduler.clone());
        let nested = log.clone();
        let job = async move {
            log.add(name);
            yield_now().await;
            let job = scheduler.job("nested").spawn(async move { nested.add("nested") });
            job.await.unwrap();
            yield_now().await;
            log.add(end);
        };
        recorder.scheduler().job(name).spawn(job).await.unwrap();
    }
    recorder.run_all().await;
    assert_eq!(log.take(), ["a", "a ended", "b", "b ended", "nested", "nested"]);
    assert_eq!(recorder.names(), ["a", "b", "nested", "nested"]);
}

#[tokio::test]
async fn jobs_that_ran_are_listed_as_finished() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    scheduler.job("first").spawn(async {}).await.unwrap();
    recorder.run_all().await;
    scheduler.job("second").spawn(async {}).await.unwrap();
    assert_eq!(recorder.names(), ["first", "second"]);
    let state = |name| recorder.assert_spawned(name).state;
    assert_eq!([state("first"), state("second")], [JobState::Finished, JobState::Pending]);
}

#[tokio::test]
async fn job_that_runs_is_listed_once() {
    let recorder = Arc::new(Recorder::new());
    let inside = recorder.clone();
    let job = async move { inside.spawned().len() };
    let job = recorder.scheduler().spawn(job).await.unwrap();
    recorder.run_all().await;
    assert_eq!(job.await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn unawaited_failures_are_given_once() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    let held = scheduler.job("held").spawn(async { Err::<(), _>("heard") }).await.unwrap();
    let value = scheduler.job("value").spawn(async { 7 }).await.unwrap();
    scheduler.job("failed").spawn(async { Err::<(), _>("unheard") }).await.unwrap();
    scheduler.job("slow").timeout(HOUR).spawn(pending::<()>()).await.unwrap();
    let failures = recorder.run_all().await;
    let names_of_failed: Vec<_> = failures.iter().map(|failure| &*failure.job.name).collect();
    assert_eq!(names_of_failed, ["failed", "slow"]);
    assert!(failures[0].to_string().ends_with("the job failed: unheard"));
    assert!(failures[1].error.is_timeout());
    assert!(recorder.run_all().await.is_empty());
    assert!(held.await.unwrap_err().is_failed());
    assert_eq!(value.await.unwrap(), 7);
}

#[tokio::test]
async fn panic_is_passed_on_at_once() {
    let (recorder, log) = (Recorder::new(), Log::default());
    let scheduler = recorder.scheduler();
    scheduler.job("failed").spawn(async { Err::<(), _>("unheard") }).await.unwrap();
    scheduler.job("panics").spawn(async { assert!(false_but_unknown(), "boom") }).await.unwrap();
    let later = log.clone();
    scheduler.job("later").spawn(async move { later.add("later") }).await.unwrap();

    let payload = AssertUnwindSafe(recorder.run_all()).catch_unwind().await.unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"boom"));
    assert_eq!(log.take(), [""; 0]);
    assert_eq!(recorder.names(), ["failed", "panics", "later"]);
    let failures = recorder.run_all().await;
    assert_eq!((failures.len(), log.take()), (1, vec!["later"]), "the rest, and no second panic");
}

fn false_but_unknown() -> bool {
    std::hint::black_box(false)
}

#[tokio::test]
async fn panic_whose_handle_is_held_is_its_holders() {
    let recorder = Recorder::new();
    let job = async { assert!(false_but_unknown(), "boom") };
    let held = recorder.scheduler().spawn(job).await.unwrap();
    assert!(recorder.run_all().await.is_empty());
    assert!(held.await.unwrap_err().is_panic());
}

#[tokio::test]
async fn deferred_jobs_are_left_until_their_response_is_over() {
    let (recorder, log) = (Recorder::new(), Log::default());
    let scheduler = recorder.scheduler();
    let (deferred, plain) = (log.clone(), log.clone());
    let response = oneshot(&scheduler, async |jobs: Jobs| {
        jobs.job("deferred").after_response(async move { deferred.add("deferred") }).unwrap();
        jobs.job("plain").spawn(async move { plain.add("plain") }).await.unwrap();
    })
    .await;
    recorder.run_all().await;
    assert_eq!(log.take(), ["plain"]);
    assert_eq!(recorder.assert_spawned("deferred").state, JobState::Deferred);
    drop(response);
    assert_eq!(recorder.assert_spawned("deferred").state, JobState::Pending);
    assert_eq!(log.take(), [""; 0]);
    recorder.run_all().await;
    assert_eq!(log.take(), ["deferred"]);
}

#[tokio::test(start_paused = true)]
async fn job_may_sleep_under_a_paused_clock() {
    let recorder = Recorder::new();
    let began = Instant::now();
    for _ in 0..2 {
        recorder.scheduler().spawn(async { sleep(HOUR).await }).await.unwrap();
    }
    recorder.run_all().await;
    assert_eq!(began.elapsed().as_secs(), 7200, "one after the other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn job_may_sleep_in_real_time_on_other_threads() {
    let (recorder, log) = (Recorder::new(), Log::default());
    for name in ["first", "second", "third"] {
        let log = log.clone();
        let job = async move {
            sleep(Duration::from_millis(1)).await;
            log.add(name);
        };
        recorder.scheduler().spawn(job).await.unwrap();
    }
    tokio::time::timeout(PLENTY, recorder.run_all()).await.unwrap();
    assert_eq!(log.take(), ["first", "second", "third"]);
}

#[tokio::test]
async fn shielded_work_is_not_recorded_but_runs() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    scheduler.job("recorded").spawn(async {}).await.unwrap();
    assert_eq!(scheduler.shield(async { 7 }).await.unwrap(), 7);
    assert_eq!(scheduler.stats().completed, 1);
    assert_eq!(recorder.names(), ["recorded"]);
}

#[tokio::test]
async fn unique_job_is_refused_while_the_first_is_recorded() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    let job = || scheduler.job("a").unique_key("u");
    let first = job().spawn(async {}).await.unwrap().id();
    let refused = job().try_spawn(ready(())).unwrap_err();
    assert!(matches!(refused, TrySpawnError::Duplicate(_, id) if id == first));
    recorder.run_all().await;
    job().spawn(async {}).await.unwrap();
}

#[tokio::test]
async fn closed_recorder_runs_nothing() {
    let (recorder, log) = (Recorder::new(), Log::default());
    let ran = log.clone();
    recorder.scheduler().spawn(async move { ran.add("ran") }).await.unwrap();
    let report = recorder.scheduler().close().await;
    assert_eq!(report.never_started.len(), 1);
    assert!(recorder.run_all().await.is_empty());
    assert_eq!(log.take(), [""; 0]);
}

// Inline.

#[tokio::test(start_paused = true)]
async fn inline_spawn_gives_its_handle_when_the_job_has_ended() {
    let (scheduler, log) = (inline(), Log::default());
    let job = |what| {
        let log = log.clone();
        async move {
            sleep(HOUR).await;
            log.add(what);
        }
    };
    let with = job("spawn_with");
    let jobs = [
        scheduler.spawn(job("spawn")).await.unwrap(),
        scheduler.spawn_with(|_| with).await.unwrap(),
        scheduler.spawn_within(Duration::from_millis(1), job("spawn_within")).await.unwrap(),
        scheduler.job("named").spawn(job("named")).await.unwrap(),
    ];
    assert!(jobs.iter().all(tower_jobs::Job::is_finished));
    assert_eq!(log.take(), ["spawn", "spawn_with", "spawn_within", "named"]);
    let blocking = scheduler.spawn_blocking(|| 7).await.unwrap();
    assert!(blocking.is_finished());
    assert_eq!(blocking.await.unwrap(), 7);
    assert_no_jobs(&scheduler);
}

#[tokio::test]
async fn inline_job_that_fails_or_panics_has_been_spawned() {
    let scheduler = inline();
    let failed = scheduler.spawn(async { Err::<(), _>("on purpose") }).await.unwrap();
    assert!(failed.await.unwrap_err().is_failed());
    let job = async { assert!(false_but_unknown(), "on purpose") };
    let panicked = scheduler.spawn(job).await.unwrap();
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!((scheduler.stats().failed, scheduler.stats().panicked), (1, 1));
}

#[tokio::test]
async fn inline_jobs_that_jobs_spawn_end_before_them() {
    let (scheduler, log) = (inline(), Log::default());
    let (outer, inner, spawner) = (log.clone(), log.clone(), scheduler.clone());
    let job = async move {
        spawner.spawn(async move { inner.add("inner") }).await.unwrap();
        outer.add("outer");
    };
    scheduler.spawn(job).await.unwrap();
    assert_eq!(log.take(), ["inner", "outer"]);
}

#[tokio::test]
async fn inline_try_spawn_and_after_response_run_as_ever() {
    let (scheduler, log) = (inline(), Log::default());
    let job = |what| {
        let log = log.clone();
        async move { log.add(what) }
    };
    let response = oneshot(&scheduler, async |jobs: Jobs| {
        jobs.spawn(job("inline")).await.unwrap();
        jobs.after_response(job("deferred")).unwrap();
        assert!(jobs.try_spawn(job("tried")).unwrap().is_active());
        assert_eq!(log.take(), ["inline"]);
    })
    .await;
    let jobs = response.extensions().get::<Jobs>().unwrap().clone();
    drop(response);
    jobs.wait_idle().await;
    let mut rest = log.take();
    rest.sort_unstable();
    assert_eq!(rest, ["deferred", "tried"]);
}

#[tokio::test]
async fn inline_spawn_that_is_given_up_leaves_its_job_running() {
    let scheduler = inline();
    let mut spawn = poll_by_hand(scheduler.spawn(pending::<()>()));
    assert_pending!(spawn.poll());
    drop(spawn);
    assert_eq!(scheduler.active_count(), 1);
    scheduler.close().await;
}

// Leaks.

#[tokio::test]
async fn leak_check_panics_with_a_list_of_what_was_left_behind() {
    let scheduler = Scheduler::new();
    drop(LeakCheck::new(&scheduler));
    assert_no_jobs(&scheduler);

    let job = scheduler.job("left").try_spawn(pending::<()>()).unwrap();
    let expected = format!("jobs were left behind: 1 job:\n  {}", job.info());
    assert_eq!(panic_text(|| assert_no_jobs(&scheduler)), expected);
    assert_eq!(panic_text(|| drop(LeakCheck::new(&scheduler))), expected);

    job.abort();
    assert!(job.await.unwrap_err().is_cancelled());
    drop(LeakCheck::new(&scheduler));
}

#[tokio::test]
async fn leak_check_says_nothing_in_a_test_that_panics_already() {
    let scheduler = Scheduler::new();
    let _job = scheduler.try_spawn(pending::<()>()).unwrap();
    // A second panic would end the process.
    let text = panic_text(|| {
        let _check = LeakCheck::new(&scheduler);
        panic!("the test's own");
    });
    assert_eq!(text, "the test's own");
}

#[tokio::test]
async fn leak_check_finds_what_a_handler_left_pending_or_deferred() {
    let recorder = Recorder::new();
    let scheduler = recorder.scheduler();
    let response = oneshot(&scheduler, async |jobs: Jobs| {
        jobs.job("pending").spawn(async {}).await.unwrap();
        jobs.job("deferred").after_response(async {}).unwrap();
    })
    .await;
    let text = panic_text(|| assert_no_jobs(&scheduler));
    assert!(text.contains("2 jobs:") && text.contains("\"pending\" of POST /signup"), "{text}");
    assert!(text.contains("\"deferred\" of POST /signup"), "{text}");
    drop(response);
    recorder.run_all().await;
    assert_no_jobs(&scheduler);
}
