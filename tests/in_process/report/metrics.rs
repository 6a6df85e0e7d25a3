//! The feature `metrics`: exact counts through a recorder of the facade.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    panic::resume_unwind,
    sync::mpsc,
    time::Duration,
};

use http::{Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use metrics::{LocalRecorderGuard, Unit};
use metrics_util::{
    MetricKind,
    debugging::{DebugValue, DebuggingRecorder},
};
use tokio::{
    runtime::Builder,
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};
use tower_jobs::{
    DrainReport, JobMetrics, Observer, Outcome, RefusalReason, Scheduler, SchedulerBuilder,
    SpawnError,
};

use crate::support::{
    HOUR, PLENTY, Random, SECOND,
    logs::Logs,
    oneshot::{respond, respond_with},
    turn, within,
};

// What the recorder has.

/// The recorder of this thread. The metrics keep its handles, so they also count on others.
struct Recorder {
    recorder: &'static DebuggingRecorder,
    _guard: LocalRecorderGuard<'static>,
}

impl Recorder {
    fn start() -> Self {
        let recorder: &'static DebuggingRecorder = Box::leak(Box::default());
        Self { recorder, _guard: metrics::set_default_local_recorder(recorder) }
    }

    /// All values so far. The recorder counts from 0 again.
    fn take(&self) -> Recorded {
        let mut recorded = Recorded::default();
        for (key, unit, description, value) in self.recorder.snapshotter().snapshot().into_vec() {
            let (kind, key) = key.into_parts();
            recorded.described.insert(key.name().to_owned(), (kind, unit, description.is_some()));
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let series = format!("{}{{{}}}", key.name(), labels.join(","));
            match value {
                DebugValue::Counter(count) => recorded.counters.extend([(series, count)]),
                DebugValue::Gauge(value) => recorded.gauges.extend([(series, value.into_inner())]),
                DebugValue::Histogram(values) => {
                    let mut values: Vec<_> = values.into_iter().map(f64::from).collect();
                    values.sort_by(f64::total_cmp);
                    recorded.histograms.extend([(series, values)]);
                }
            }
        }
        recorded
    }
}

#[derive(Debug, Default)]
struct Recorded {
    counters: BTreeMap<String, u64>,
    gauges: BTreeMap<String, f64>,
    histograms: BTreeMap<String, Vec<f64>>,
    described: BTreeMap<String, (MetricKind, Option<Unit>, bool)>,
}

impl Recorded {
    /// The counters above zero whose series begin so, without that.
    fn counts(&self, begin: &str) -> Vec<(&str, u64)> {
        let counts = self.counters.iter().filter(|(_, count)| **count > 0);
        counts
            .filter_map(|(series, count)| {
                let rest = series.strip_prefix(begin)?.strip_suffix('}')?;
                Some((rest.trim_start_matches(','), *count))
            })
            .collect()
    }

    fn ended(&self) -> u64 {
        self.counts("tower_jobs_ended_total{").iter().map(|(_, count)| count).sum()
    }

    #[track_caller]
    fn gauge(&self, name: &str) -> f64 {
        self.gauges[&format!("tower_jobs_{name}{{scheduler=mail}}")]
    }

    fn live(&self) -> f64 {
        ["active", "pending", "deferred"].map(|name| self.gauge(name)).iter().sum()
    }
}

/// Says when the scheduler has closed, and all its ends have been seen.
struct Closed(mpsc::SyncSender<()>);

impl Observer for Closed {
    fn closed(&self, _: &DrainReport) {
        self.0.send(()).expect("it is waited for");
    }
}

struct Measured {
    scheduler: Scheduler,
    metrics: JobMetrics,
    closed: mpsc::Receiver<()>,
}

impl Measured {
    fn new(builder: SchedulerBuilder) -> Self {
        let metrics = JobMetrics::new();
        let (sender, closed) = mpsc::sync_channel(1);
        let scheduler = builder.metrics(&metrics).name("mail").observer(Closed(sender)).build();
        Self { scheduler, metrics, closed }
    }

    async fn close(&self) {
        self.scheduler.close().await;
        self.closed.recv_timeout(PLENTY).expect("`closed` is called once");
    }
}

// Counters.

#[test]
fn each_outcome_counts_once_under_its_name() {
    let recorder = Recorder::start();
    let builder = Scheduler::builder().limit(10).close_timeout(SHORT).on_failure(drop);
    let measured = Measured::new(builder);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (release, released) = mpsc::channel::<()>();
    runtime.block_on(end_in_each_way(&measured, released));

    let recorded = recorder.take();
    assert_eq!(
        recorded.counts("tower_jobs_ended_total{scheduler=mail"),
        [
            ("name=aborted,outcome=cancelled", 1),
            ("name=error,outcome=failed", 1),
            ("name=late,outcome=never_started", 1),
            ("name=panic,outcome=panicked", 1),
            ("name=skipped,outcome=skipped", 1),
            ("name=slow,outcome=timed_out", 1),
            ("name=stuck,outcome=abandoned", 1),
            ("name=value,outcome=completed", 2),
        ]
    );
    assert_eq!(recorded.counts("tower_jobs_accepted_total{"), [("scheduler=mail", 9)]);
    assert_eq!(recorded.histograms["tower_jobs_queue_seconds{scheduler=mail}"].len(), 7);
    let ran = |name: &str| {
        recorded.histograms[&format!("tower_jobs_run_seconds{{scheduler=mail,name={name}}}")].len()
    };
    let all = ["aborted", "error", "late", "panic", "skipped", "slow", "stuck", "value"];
    assert_eq!(all.map(ran), [1, 1, 0, 1, 0, 1, 1, 2]);
    // The return of a closure that was given up is no second end. The runtime waits for its thread.
    drop(release);
    drop(runtime);
    assert_eq!(recorder.take().ended(), 0);
}

const SHORT: Duration = Duration::from_millis(20);

/// Jobs with all outcomes, named by them. The blocking one ends when `released` does.
async fn end_in_each_way(measured: &Measured, released: mpsc::Receiver<()>) {
    let scheduler = &measured.scheduler;
    let named = |name: &'static str| scheduler.job(name);
    for _ in 0..2 {
        named("value").spawn(async {}).await.unwrap().await.unwrap();
    }
    let failing = async { Err::<(), _>("no mail today") };
    named("error").spawn(failing).await.unwrap().await.unwrap_err();
    let panics = async { resume_unwind(Box::new("a panic that is not printed")) };
    named("panic").spawn(panics).await.unwrap().await.unwrap_err();
    let slow = named("slow").timeout(SHORT).spawn(pending::<()>()).await.unwrap();
    slow.await.unwrap_err();
    let mut broken = Response::new(Empty::<Bytes>::new());
    *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let open = respond_with(scheduler, broken).await;
    let skipped = open.jobs.job("skipped").after_success(async {}).unwrap();
    drop(open);
    assert!(skipped.await.unwrap_err().is_skipped());
    let aborted = named("aborted").spawn(pending::<()>()).await.unwrap();
    turn().await;
    aborted.abort();
    aborted.await.unwrap_err();
    let (begun, begins) = mpsc::channel();
    let blocking = move || {
        begun.send(()).expect("it is waited for");
        released.recv().expect_err("its sender is dropped");
    };
    let _stuck = named("stuck").spawn_blocking(blocking).await.unwrap();
    turn().await;
    begins.recv_timeout(PLENTY).expect("it begins");
    scheduler.set_limit(1).unwrap();
    let _late = named("late").try_spawn(async {}).unwrap();
    measured.close().await;
}

#[tokio::test(start_paused = true)]
async fn queue_and_run_times_are_exact_in_seconds() {
    let recorder = Recorder::start();
    let Measured { scheduler, .. } = Measured::new(Scheduler::builder().limit(1));
    let first = scheduler.job("first").spawn(sleep(2 * SECOND)).await.unwrap();
    let second = scheduler.job("second").spawn(async { sleep(SECOND / 4).await }).await.unwrap();
    first.await.unwrap();
    second.await.unwrap();
    let recorded = recorder.take();
    let expected = [
        ("tower_jobs_queue_seconds{scheduler=mail}", vec![0.0, 2.0]),
        ("tower_jobs_run_seconds{scheduler=mail,name=first}", vec![2.0]),
        ("tower_jobs_run_seconds{scheduler=mail,name=second}", vec![0.25]),
    ];
    assert_eq!(recorded.histograms, expected.map(|(name, v)| (name.to_owned(), v)).into());
}

#[tokio::test(start_paused = true)]
async fn each_refusal_counts_once_by_its_reason() {
    let recorder = Recorder::start();
    let builder = Scheduler::builder().limit(1).pending_limit(1).deferred_limit(1);
    let Measured { scheduler, .. } = Measured::new(builder);
    let check = |reason: RefusalReason| {
        let recorded = recorder.take();
        let label = format!("reason={}", reason.as_str());
        let refused = recorded.counts("tower_jobs_refused_total{scheduler=mail");
        assert_eq!(refused, [(label.as_str(), 1)]);
    };
    let open = respond(&scheduler).await;
    let _deferred = open.jobs.after_response(async {}).unwrap();
    open.jobs.after_response(async {}).unwrap_err();
    check(RefusalReason::DeferredFull);
    let _active = scheduler.job("a").unique_key("a").try_spawn(pending::<()>()).unwrap();
    scheduler.job("a").unique_key("a").try_spawn(async {}).unwrap_err();
    check(RefusalReason::Duplicate);
    let _pending = scheduler.try_spawn(pending::<()>()).unwrap();
    scheduler.try_spawn(async {}).unwrap_err();
    check(RefusalReason::PendingFull);
    scheduler.spawn_within(SECOND, async {}).await.unwrap_err();
    check(RefusalReason::TimedOut);
    let mut waiting = tokio_test::task::spawn(scheduler.spawn(async {}));
    tokio_test::assert_pending!(waiting.poll());
    drop(waiting);
    check(RefusalReason::Dropped);
    scheduler.close().await;
    recorder.take();
    assert_eq!(scheduler.spawn(async {}).await.unwrap_err(), SpawnError::Closed);
    check(RefusalReason::Closed);
}

#[test]
fn refusal_without_a_runtime_counts_once() {
    let recorder = Recorder::start();
    let Measured { scheduler, .. } = Measured::new(Scheduler::builder());
    scheduler.try_spawn(async {}).unwrap_err();
    let counts = recorder.take();
    let counts = counts.counts("tower_jobs_refused_total{scheduler=mail");
    assert_eq!(counts, [("reason=no_runtime", 1)]);
}

#[tokio::test]
async fn counters_of_a_name_begin_at_zero_with_its_first_job() {
    let recorder = Recorder::start();
    let Measured { scheduler, .. } = Measured::new(Scheduler::builder());
    let _job = scheduler.job("export").try_spawn(pending::<()>()).unwrap();
    let recorded = recorder.take();
    for outcome in Outcome::ALL {
        let outcome = outcome.as_str();
        let series =
            format!("tower_jobs_ended_total{{scheduler=mail,name=export,outcome={outcome}}}");
        assert_eq!(recorded.counters.get(&series), Some(&0), "{series}");
    }
    for reason in RefusalReason::ALL {
        let series =
            format!("tower_jobs_refused_total{{scheduler=mail,reason={}}}", reason.as_str());
        assert_eq!(recorded.counters.get(&series), Some(&0), "{series}");
    }
}

#[tokio::test]
async fn names_beyond_a_hundred_count_as_other_with_one_warning() {
    let recorder = Recorder::start();
    let (logs, _subscriber) = Logs::start();
    let Measured { scheduler, .. } = Measured::new(Scheduler::builder());
    for round in 0..2 {
        for n in 0..130 {
            let job = scheduler.job(format!("name {n}")).spawn(async {}).await.unwrap();
            job.await.unwrap();
        }
        let recorded = recorder.take();
        let counts = recorded.counts("tower_jobs_ended_total{scheduler=mail");
        assert_eq!(counts.len(), 101, "round {round}: {counts:?}");
        assert!(counts.contains(&("name=name 99,outcome=completed", 1)));
        assert!(counts.contains(&("name=other,outcome=completed", 30)));
    }
    let warnings: Vec<_> = logs.iter().filter(|event| event.field("level") == "WARN").collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(
        (warnings[0].field("scheduler"), warnings[0].field("job.name")),
        ("mail", "name 100")
    );
}

#[test]
fn workers_count_into_the_recorder_that_saw_the_name_first() {
    let recorder = Recorder::start();
    let measured = Measured::new(Scheduler::builder().limit(3));
    let scheduler = &measured.scheduler;
    let names = ["a", "b", "c"];
    let runtime = Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    runtime.block_on(async {
        // Otherwise a worker could be the first to count a name.
        scheduler.pause();
        for name in names {
            scheduler.job(name).try_spawn(async {}).unwrap();
        }
        scheduler.resume();
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let scheduler = scheduler.clone();
            tasks.spawn(async move {
                for n in 0..300 {
                    let job = scheduler.job(names[n % 3]).spawn(async {}).await.unwrap();
                    job.await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        scheduler.wait_idle().await;
        measured.close().await;
    });
    let recorded = recorder.take();
    assert_eq!(
        recorded.counts("tower_jobs_ended_total{scheduler=mail"),
        names
            .map(|name| (format!("name={name},outcome=completed"), 401))
            .iter()
            .map(|(name, count)| (name.as_str(), *count))
            .collect::<Vec<_>>()
    );
    assert_eq!(recorded.counts("tower_jobs_accepted_total{"), [("scheduler=mail", 1203)]);
    assert_eq!(recorded.histograms["tower_jobs_queue_seconds{scheduler=mail}"].len(), 1203);
}

// Gauges.

#[tokio::test(start_paused = true)]
async fn gauges_are_the_stats_of_the_last_refresh() {
    let recorder = Recorder::start();
    let builder =
        Scheduler::builder().limit(2).pending_limit(1).deferred_limit(7).limit_per_key(None);
    let Measured { scheduler, metrics, .. } = Measured::new(builder);
    let shielded = tokio::spawn(scheduler.shield(pending::<()>()));
    let _permit = scheduler.try_reserve().unwrap();
    let _active = scheduler.try_spawn(pending::<()>()).unwrap();
    sleep(SECOND).await;
    let open = respond(&scheduler).await;
    let _deferred = open.jobs.after_response(async {}).unwrap();
    sleep(SECOND).await;
    let _pending = scheduler.try_spawn(pending::<()>()).unwrap();
    let mut waiting = tokio_test::task::spawn(scheduler.spawn(async {}));
    tokio_test::assert_pending!(waiting.poll());
    sleep(SECOND / 2).await;
    metrics.refresh();
    let recorded = recorder.take();
    let gauges = [
        ("active", 2.0),
        ("deferred", 1.0),
        ("deferred_limit", 7.0),
        ("draining", 0.0),
        ("limit", 2.0),
        ("limit_per_key", f64::INFINITY),
        ("oldest_active_seconds", 2.5),
        ("oldest_deferred_seconds", 1.5),
        ("oldest_pending_seconds", 0.5),
        ("outside_limit", 1.0),
        ("pending", 1.0),
        ("pending_limit", 1.0),
        ("reserved", 1.0),
        ("waiting", 1.0),
    ];
    let series = |name: &str| format!("tower_jobs_{name}{{scheduler=mail}}");
    assert_eq!(recorded.gauges, gauges.map(|(name, value)| (series(name), value)).into());

    scheduler.set_limit(9).unwrap();
    scheduler.set_pending_limit(None).unwrap();
    scheduler.set_limit_per_key(4).unwrap();
    metrics.refresh();
    let recorded = recorder.take();
    let limits = ["limit", "pending_limit", "limit_per_key"].map(|name| recorded.gauge(name));
    assert_eq!(limits, [9.0, f64::INFINITY, 4.0]);
    shielded.abort();
}

#[tokio::test]
async fn draining_turns_one_without_a_refresh() {
    let recorder = Recorder::start();
    let Measured { scheduler, metrics, .. } = Measured::new(Scheduler::builder());
    metrics.refresh();
    assert_eq!(recorder.take().gauge("draining"), 0.0);
    scheduler.start_draining();
    // Observers hear of it on a plain thread.
    within("the gauge", async {
        while recorder.take().gauge("draining") < 1.0 {
            yield_now().await;
        }
    })
    .await;
    metrics.refresh();
    assert_eq!(recorder.take().gauge("draining"), 1.0);
}

#[tokio::test]
async fn schedulers_of_one_set_have_labels_of_their_own() {
    let recorder = Recorder::start();
    let metrics = JobMetrics::new();
    let unnamed = Scheduler::builder().metrics(&metrics).limit(1).build();
    let mail = Scheduler::builder().limit(2).name("mail").metrics(&metrics.clone()).build();
    let _job = mail.try_spawn(pending::<()>()).unwrap();
    metrics.refresh();
    let recorded = recorder.take();
    let of = |scheduler: &str| {
        ["limit", "active"]
            .map(|name| recorded.gauges[&format!("tower_jobs_{name}{{scheduler={scheduler}}}")])
    };
    assert_eq!((of("default"), of("mail")), ([1.0, 0.0], [2.0, 1.0]));
    drop(unnamed);
}

#[tokio::test]
async fn gauges_of_a_dropped_scheduler_turn_zero() {
    let recorder = Recorder::start();
    let Measured { scheduler, metrics, closed } = Measured::new(Scheduler::builder());
    metrics.refresh();
    drop((scheduler, closed));
    metrics.refresh();
    let recorded = recorder.take();
    assert!(recorded.gauges.values().all(|value| *value == 0.0), "{recorded:?}");
    assert_eq!(format!("{metrics:?}"), "JobMetrics { schedulers: 0 }");
}

#[tokio::test(start_paused = true)]
async fn periodic_refresh_ends_after_its_schedulers() {
    let recorder = Recorder::start();
    let Measured { scheduler, metrics, .. } = Measured::new(Scheduler::builder());
    let begin = Instant::now();
    let mut refreshing = tokio_test::task::spawn(metrics.refresh_every(5 * SECOND));
    tokio_test::assert_pending!(refreshing.poll());
    assert_eq!(recorder.take().gauge("active"), 0.0);
    let job = scheduler.try_spawn(sleep(HOUR)).unwrap();
    sleep(5 * SECOND).await;
    tokio_test::assert_pending!(refreshing.poll());
    assert_eq!(recorder.take().gauge("active"), 1.0);
    job.abort();
    scheduler.close().await;
    within("the end of the refreshes", refreshing).await;
    assert!(begin.elapsed() <= 10 * SECOND, "{:?}", begin.elapsed());
    let recorded = recorder.take();
    assert_eq!((recorded.gauge("active"), recorded.gauge("draining")), (0.0, 1.0));
}

#[test]
#[should_panic(expected = "use 5 s")]
fn period_of_zero_is_refused() {
    drop(JobMetrics::new().refresh_every(Duration::ZERO));
}

// The law.

#[test]
fn accepted_is_ended_and_live_at_every_refresh() {
    for seed in 0..30 {
        let runtime =
            Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(random_schedule(seed));
    }
}

async fn random_schedule(seed: u64) {
    let recorder = Recorder::start();
    let mut random = Random(seed);
    let builder = Scheduler::builder()
        .limit(random.pick(&[1, 3]))
        .pending_limit(random.pick(&[0, 4]))
        .deferred_limit(2)
        .on_failure(drop);
    let measured = Measured::new(builder);
    let scheduler = &measured.scheduler;
    let (mut responses, mut accepted, mut ended) = (Vec::new(), 0, 0);
    for _ in 0..40 {
        let (ms, end) = (random.ms(9), random.below(5));
        let work = async move {
            sleep(ms).await;
            match end {
                0 => Err("no mail today"),
                1 => resume_unwind(Box::new("a panic that is not printed")),
                2 => pending().await,
                _ => Ok(()),
            }
        };
        let job = scheduler.job(random.pick(&["a", "b", "c"]));
        match random.below(10) {
            0..4 => drop(job.try_spawn(work)),
            4 => drop(job.timeout(Duration::from_millis(3)).try_spawn(work)),
            5 => {
                let open = respond(scheduler).await;
                drop(open.jobs.after_success(work));
                responses.push(open);
            }
            6 => drop(responses.pop()),
            7 => {
                if let Some(job) = scheduler.jobs().first() {
                    scheduler.abort(job.id);
                }
            }
            8 => drop(scheduler.clear()),
            _ => sleep(random.ms(9)).await,
        }
        turn().await;
        measured.metrics.refresh();
        let recorded = recorder.take();
        let counts = recorded.counts("tower_jobs_accepted_total{");
        accepted += counts.iter().map(|(_, count)| count).sum::<u64>();
        ended += recorded.ended();
        assert_eq!(accepted as f64, ended as f64 + recorded.live(), "seed {seed}");
        assert_eq!(accepted, scheduler.stats().accepted, "seed {seed}");
    }
    measured.close().await;
    assert_eq!(ended + recorder.take().ended(), accepted, "seed {seed}");
}

// The list of metrics.

#[tokio::test]
async fn all_metrics_have_a_unit_and_a_description() {
    let recorder = Recorder::start();
    let Measured { scheduler, .. } = Measured::new(Scheduler::builder());
    scheduler.spawn(async {}).await.unwrap().await.unwrap();
    let recorded = recorder.take();
    assert_eq!(recorded.described.len(), 19);
    for (name, (kind, unit, is_described)) in &recorded.described {
        assert!(is_described, "{name}");
        let seconds = name.ends_with("_seconds");
        assert_eq!(*unit, Some(if seconds { Unit::Seconds } else { Unit::Count }), "{name}");
        assert_eq!(*kind == MetricKind::Counter, name.ends_with("_total"), "{name}");
    }
}

#[tokio::test]
async fn chapter_lists_all_metrics_and_no_others() {
    let recorder = Recorder::start();
    let Measured { scheduler, .. } = Measured::new(Scheduler::builder());
    scheduler.spawn(async {}).await.unwrap().await.unwrap();
    let recorded = recorder.take();
    let chapter = include_str!("../../../src/docs/metrics.md");
    let rows = chapter.lines().filter_map(|line| line.strip_prefix("| `tower_jobs_"));
    let listed: BTreeSet<_> =
        rows.map(|row| format!("tower_jobs_{}", row.split('`').next().unwrap())).collect();
    assert_eq!(listed, recorded.described.into_keys().collect());
}
