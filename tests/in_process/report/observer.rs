//! Observers: one end for each job, sums that equal the counts, and no effect on the jobs.

use std::{
    collections::{HashMap, HashSet},
    future::{pending, ready},
    panic::resume_unwind,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant as RealInstant},
};

use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, assert_ready, task::spawn as poll_by_hand};
use tower_jobs::{
    DrainReport, Job, JobEnd, JobId, JobKind, JobSeen, Observer, Outcome, RefusalReason, Scheduler,
    SchedulerBuilder, Shutdown, SpawnError, Stats, WeakScheduler,
};

use crate::support::{
    HOUR, PLENTY, Random, SECOND, all, assert_adds_up, limited,
    oneshot::{Open, respond},
    turn, watched, within,
};

// An observer that counts.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sums {
    accepted: u64,
    ended: HashMap<Outcome, u64>,
}

#[derive(Debug, Default)]
struct Seen {
    sums: Sums,
    started: HashMap<JobId, Duration>,
    ends: HashMap<JobId, End>,
    /// Jobs that were accepted or ended more than once.
    twice: Vec<JobId>,
    accepted: HashSet<JobId>,
    refused: HashMap<RefusalReason, u64>,
    draining: Vec<Option<Instant>>,
    closed: Vec<Sums>,
    /// Calls but `refused` after `closed`.
    late: Vec<String>,
}

#[derive(Clone, Debug)]
struct End {
    outcome: Outcome,
    kind: JobKind,
    has_started: bool,
    queued: Duration,
    ran: Duration,
    error: Option<String>,
}

#[derive(Clone, Default)]
struct Counting(Arc<Mutex<Seen>>);

impl Counting {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    fn add(&self, call: &str, add: impl FnOnce(&mut Seen)) {
        let mut seen = self.seen();
        if !seen.closed.is_empty() {
            seen.late.push(call.into());
        }
        add(&mut seen);
    }

    /// Blocks until `closed` has come: it is called on a plain thread.
    fn wait_closed(&self) {
        let since = RealInstant::now();
        while self.seen().closed.is_empty() {
            assert!(since.elapsed() < PLENTY, "`closed` has not come: {:?}", self.seen());
            thread::yield_now();
        }
    }

    #[track_caller]
    fn end_of<T>(&self, job: &Job<T>) -> End {
        self.seen().ends.get(&job.id()).expect("it has ended").clone()
    }
}

impl Observer for Counting {
    fn accepted(&self, job: &JobSeen<'_>) {
        self.add("accepted", |seen| {
            seen.sums.accepted += 1;
            if !seen.accepted.insert(job.id()) {
                seen.twice.push(job.id());
            }
        });
    }

    fn started(&self, job: &JobSeen<'_>, queued: Duration) {
        self.add("started", |seen| {
            if seen.started.insert(job.id(), queued).is_some() {
                seen.twice.push(job.id());
            }
        });
    }

    fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
        let JobEnd { outcome, has_started, queued, ran, .. } = *end;
        let error = end.error.map(ToString::to_string);
        let end = End { outcome, kind: job.kind(), has_started, queued, ran, error };
        self.add("ended", |seen| {
            *seen.sums.ended.entry(outcome).or_default() += 1;
            if seen.ends.insert(job.id(), end).is_some() {
                seen.twice.push(job.id());
            }
        });
    }

    fn refused(&self, reason: RefusalReason, _: &str) {
        *self.seen().refused.entry(reason).or_default() += 1;
    }

    fn draining(&self, deadline: Option<Instant>) {
        self.add("draining", |seen| seen.draining.push(deadline));
    }

    fn closed(&self, _: &DrainReport) {
        self.add("closed", |seen| seen.closed.push(seen.sums.clone()));
    }
}

fn sums(stats: &Stats) -> Sums {
    let ended = [
        (Outcome::Completed, stats.completed),
        (Outcome::Failed, stats.failed),
        (Outcome::Panicked, stats.panicked),
        (Outcome::TimedOut, stats.timed_out),
        (Outcome::Cancelled, stats.cancelled),
        (Outcome::Skipped, stats.skipped),
        (Outcome::NeverStarted, stats.never_started),
        (Outcome::Abandoned, stats.abandoned),
    ];
    let ended = ended.into_iter().filter(|(_, count)| *count > 0).collect();
    Sums { accepted: stats.accepted, ended }
}

fn is_failure(outcome: Outcome) -> bool {
    use Outcome::{Abandoned, Failed, Panicked, TimedOut};
    matches!(outcome, Failed | Panicked | TimedOut | Abandoned)
}

fn observed(builder: SchedulerBuilder) -> (Scheduler, Counting) {
    let counting = Counting::default();
    (builder.observer(counting.clone()).build(), counting)
}

// The law, under random schedules.

/// How a schedule ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    Close,
    Drain,
    Shutdown,
    LoseRuntime,
}

/// One scheduler, and all that is done to it.
struct Schedule {
    scheduler: Scheduler,
    counting: Counting,
    /// Failures by job: those of `on_failure`, and those that a handle was awaited for.
    reports: Arc<Mutex<HashMap<JobId, u64>>>,
    random: Random,
    handles: Vec<Job<()>>,
    responses: Vec<Open<http_body_util::Empty<hyper::body::Bytes>>>,
    permits: Vec<tower_jobs::Permit>,
    /// Lets the blocked closures return.
    blocked: Vec<mpsc::Sender<()>>,
    may_block: bool,
}

impl Schedule {
    fn new(seed: u64, may_block: bool) -> Self {
        let mut random = Random(seed);
        let reports = Arc::<Mutex<HashMap<JobId, u64>>>::default();
        let hooked = reports.clone();
        let builder = Scheduler::builder()
            .limit(random.pick(&[1, 2, 5]))
            .pending_limit(random.pick(&[0, 1, 8]))
            .deferred_limit(random.pick(&[1, 4]))
            .limit_per_key(random.pick(&[None, Some(1), Some(2)]))
            .close_timeout(random.pick(&[Duration::ZERO, Duration::from_millis(5)]))
            .remember(random.pick(&[0, 3]))
            .on_failure(move |failure| {
                *hooked.lock().unwrap().entry(failure.job.id).or_default() += 1;
            });
        let (scheduler, counting) = observed(builder);
        Self {
            scheduler,
            counting,
            reports,
            random,
            handles: Vec::new(),
            responses: Vec::new(),
            permits: Vec::new(),
            blocked: Vec::new(),
            may_block,
        }
    }

    fn keep(&mut self, job: Option<Job<()>>) {
        if let Some(job) = job.filter(|_| self.random.one_in(2)) {
            self.handles.push(job);
        }
    }

    /// A job's future, with any end.
    fn work(&mut self) -> impl Future<Output = Result<(), &'static str>> + Send + use<> {
        let (time, end) = (self.random.pick(&[None, None, Some(1), Some(7)]), self.random.below(6));
        async move {
            if let Some(ms) = time {
                sleep(Duration::from_millis(ms)).await;
            }
            match end {
                0 => Err("no mail today"),
                1 => resume_unwind(Box::new("a panic that is not printed")),
                2 => pending().await,
                _ => Ok(()),
            }
        }
    }

    fn builder<'a>(&mut self, scheduler: &'a Scheduler) -> tower_jobs::JobBuilder<'a> {
        let mut job = scheduler.job("job");
        if self.random.one_in(3) {
            job = job.concurrency_key(self.random.pick(&["a", "b"]));
        }
        if self.random.one_in(4) {
            job = job.unique_key(self.random.pick(&["x", "y"]));
        } else if self.random.one_in(4) {
            job = job.unique_key_or_replace(self.random.pick(&["x", "y"]));
        }
        if self.random.one_in(4) {
            job = job.timeout(Duration::from_millis(3));
        }
        job
    }

    /// One random operation.
    async fn step(&mut self) {
        let scheduler = self.scheduler.clone();
        let job = self.builder(&scheduler);
        let work = self.work();
        match self.random.below(20) {
            0..4 => {
                let job = job.try_spawn(work).ok();
                self.keep(job);
            }
            4 => {
                let timeout = self.random.ms(5);
                drop(tokio::spawn(job.spawn_within(timeout, work)));
            }
            5 => drop(tokio::spawn(job.spawn(work))),
            6 => {
                let mut spawner = poll_by_hand(job.spawn(work));
                if let std::task::Poll::Ready(job) = spawner.poll() {
                    self.keep(job.ok());
                }
            }
            7 => {
                let job = job.spawn_with(|context| async move {
                    tokio::select! {
                        () = context.cancelled() => Err("cancelled"),
                        result = work => result,
                    }
                });
                drop(tokio::spawn(job));
            }
            8 => {
                let fails = self.random.one_in(3);
                let blocking = move || if fails { Err("no disk today") } else { Ok(()) };
                drop(tokio::spawn(job.spawn_blocking(blocking)));
            }
            9 if self.may_block && self.random.one_in(4) => {
                let (sender, receiver) = mpsc::channel::<()>();
                self.blocked.push(sender);
                drop(tokio::spawn(job.spawn_blocking(move || receiver.recv().unwrap_or(()))));
            }
            9 => drop(tokio::spawn(job.shield(work))),
            10 => {
                if let Ok(permit) = scheduler.try_reserve() {
                    self.permits.push(permit);
                }
                if self.permits.len() > 1 || self.random.one_in(2) {
                    let job = self.permits.pop().map(|permit| permit.spawn_as(job, work).ok());
                    self.keep(job.flatten());
                }
            }
            11 => {
                let reserve = scheduler.clone();
                drop(tokio::spawn(async move {
                    let permit = reserve.reserve().await?;
                    drop(permit.spawn(work));
                    Ok::<_, SpawnError>(())
                }));
            }
            12 | 13 => {
                if self.responses.is_empty() || self.random.one_in(4) {
                    self.responses.push(respond(&scheduler).await);
                }
                let open = self.responses.last().unwrap();
                let job = if self.random.one_in(2) {
                    open.jobs.after_response(work).ok()
                } else {
                    open.jobs.after_success(work).ok()
                };
                self.keep(job);
            }
            14 => drop(self.responses.pop()),
            15 => {
                if let Some(job) = scheduler.jobs().into_iter().next() {
                    let by_id =
                        if self.random.one_in(2) { Scheduler::abort } else { Scheduler::close_job };
                    by_id(&scheduler, job.id);
                }
            }
            16 => match self.random.below(4) {
                0 => scheduler.set_limit(self.random.pick(&[1, 2, 9])).unwrap(),
                1 => scheduler.set_pending_limit(self.random.pick(&[0, 1, 9])).unwrap(),
                2 => scheduler
                    .set_limit_per_key(self.random.pick(&[None, Some(1), Some(3)]))
                    .unwrap(),
                _ => drop(scheduler.clear()),
            },
            17 if self.random.one_in(3) => scheduler.pause(),
            17 => scheduler.resume(),
            18 => turn().await,
            _ => sleep(self.random.ms(4)).await,
        }
    }

    async fn finish(&mut self, finish: Finish) {
        let scheduler = self.scheduler.clone();
        match finish {
            Finish::Close => drop(scheduler.close().await),
            Finish::Drain => {
                let timeout = self.random.ms(10);
                drop(scheduler.wait_and_close_within(timeout).await);
            }
            Finish::Shutdown => {
                let grace = Duration::from_millis(20) + self.random.ms(10);
                let shutdown = Shutdown::with_trigger(&scheduler, ready(())).grace(grace);
                drop(shutdown.serve(|stop| stop).await);
            }
            // The runtime goes next.
            Finish::LoseRuntime => {}
        }
    }

    /// Awaits the handles that were kept, and counts their failures.
    async fn await_handles(&mut self) {
        for job in self.handles.drain(..) {
            let id = job.id();
            let Err(error) = within("a job of a closed scheduler", job).await else { continue };
            if !error.is_cancelled() && !error.is_skipped() {
                *self.reports.lock().unwrap().entry(id).or_default() += 1;
            }
        }
    }

    fn check(self, finish: Finish, what: &str) {
        self.counting.wait_closed();
        let stats = self.scheduler.stats();
        assert_adds_up(&stats);
        assert_eq!(stats.deferred + stats.pending + stats.active, 0, "{what}: {stats:?}");
        drop(self.permits);
        let at_rest = self.scheduler.stats();
        assert_eq!((at_rest.reserved, at_rest.granted), (0, 0), "{what}: {at_rest:?}");
        let failures: Vec<_> = {
            let seen = self.counting.seen();
            assert_eq!(seen.closed, [sums(&stats)], "{what}: the sums once `closed` has come");
            assert_eq!(seen.late, Vec::<String>::new(), "{what}");
            assert_eq!(seen.twice, [], "{what}");
            assert_eq!(seen.ends.len() as u64, stats.accepted, "{what}");
            assert!(seen.ends.keys().all(|id| seen.accepted.contains(id)), "{what}");
            assert_eq!(seen.draining.len(), 1, "{what}");
            assert!(seen.draining[0].is_some(), "{what}: {finish:?} has a deadline");
            for reason in RefusalReason::ALL {
                let refused = seen.refused.get(&reason).copied().unwrap_or(0);
                assert_eq!(refused, stats.refused.of(reason), "{what}: {reason:?}");
            }
            for (id, end) in &seen.ends {
                let wanted = is_failure(end.outcome) && end.kind != JobKind::Shielded;
                assert_eq!(end.error.is_some(), wanted, "{what}: {id} {end:?}");
                let started = seen.started.contains_key(id);
                assert_eq!(end.has_started, started, "{what}: {id} {end:?}");
                if matches!(end.outcome, Outcome::NeverStarted | Outcome::Skipped) {
                    assert!(!seen.started.contains_key(id), "{what}: {id} {end:?}");
                    assert_eq!(end.ran, Duration::ZERO, "{what}: {id} {end:?}");
                }
            }
            let failed = seen.ends.iter().filter(|(_, end)| is_failure(end.outcome));
            let of_jobs = failed.filter(|(_, end)| end.kind != JobKind::Shielded);
            of_jobs.map(|(id, end)| (*id, end.clone())).collect()
        };
        let since = RealInstant::now();
        let reported = |id| self.reports.lock().unwrap().get(id).copied().unwrap_or(0);
        for (id, end) in &failures {
            while reported(id) == 0 {
                assert!(since.elapsed() < PLENTY, "{what}: {id} {end:?} is not reported");
                thread::yield_now();
            }
            assert_eq!(reported(id), 1, "{what}: {id} {end:?}");
        }
    }
}

const FINISHES: [Finish; 4] = [Finish::Close, Finish::Drain, Finish::Shutdown, Finish::LoseRuntime];

fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn two_workers() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn play(seed: u64, finish: Finish, steps: u64, may_block: bool, runtime: Runtime) {
    let what = format!("seed {seed}, {finish:?}, may_block {may_block}");
    let mut schedule = Schedule::new(seed, may_block);
    // A job, so that the runtime is bound when it is lost.
    runtime.block_on(async {
        drop(schedule.scheduler.try_spawn(async {}));
        for _ in 0..steps {
            schedule.step().await;
        }
        schedule.finish(finish).await;
    });
    let mut after = if finish == Finish::LoseRuntime {
        schedule.blocked.clear();
        drop(runtime);
        let after = Builder::new_current_thread().enable_all().build().unwrap();
        drop(after.block_on(schedule.scheduler.close()));
        after
    } else {
        runtime
    };
    let handles = &mut after;
    handles.block_on(schedule.await_handles());
    schedule.blocked.clear();
    // Waiting spawners and shielded work are tasks: they go with the runtime.
    drop(after);
    schedule.check(finish, &what);
}

#[test]
fn sums_equal_the_counts_under_random_schedules() {
    for seed in 0..400 {
        for finish in FINISHES {
            play(seed, finish, 40, false, paused());
        }
    }
}

#[test]
fn sums_equal_the_counts_on_several_threads() {
    for seed in 0..40 {
        for finish in FINISHES {
            play(1_000_000 + seed, finish, 60, true, two_workers());
        }
    }
}

// Each call.

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl Observer for Log {
    fn accepted(&self, job: &JobSeen<'_>) {
        let (request, key) = (job.request(), job.key());
        self.push(format!("accepted {} {request:?} {key:?} {:?}", job.name(), job.kind()));
    }

    fn started(&self, job: &JobSeen<'_>, queued: Duration) {
        self.push(format!("started {} {queued:?}", job.name()));
    }

    fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
        let error = end.error.map(ToString::to_string);
        let (outcome, queued, ran) = (end.outcome, end.queued, end.ran);
        self.push(format!("ended {} {outcome:?} {queued:?} {ran:?} {error:?}", job.name()));
    }

    fn refused(&self, reason: RefusalReason, name: &str) {
        self.push(format!("refused {name} {reason:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn calls_follow_a_job_from_its_acceptance_to_its_end() {
    let log = Arc::new(Log::default());
    let scheduler = Scheduler::builder().limit(1).pending_limit(1).observer(log.clone()).build();
    let _first = scheduler.job("first").spawn(sleep(SECOND)).await.unwrap();
    let failing = async {
        sleep(2 * SECOND).await;
        Err::<(), _>("no mail today")
    };
    let second = scheduler.job("second").concurrency_key("key").spawn(failing).await.unwrap();
    scheduler.job("third").try_spawn(async {}).unwrap_err();
    second.await.unwrap_err();
    assert_eq!(
        *log.0.lock().unwrap(),
        [
            "accepted first None None Plain",
            "accepted second None Some(\"key\") Plain",
            "refused third PendingFull",
            "started first 0ns",
            "ended first Completed 0ns 1s None",
            "started second 1s",
            "ended second Failed 1s 2s Some(\"the job failed\")",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn deferred_job_is_queued_from_the_end_of_its_response() {
    let (scheduler, counting) = observed(Scheduler::builder().limit(1));
    let open = respond(&scheduler).await;
    let mut job = open.jobs.after_response(async { sleep(SECOND).await }).unwrap();
    let mut never = open.jobs.after_response(async {}).unwrap();
    let skipped = respond(&scheduler).await;
    let gone = skipped.jobs.after_response(async {}).unwrap();
    sleep(3 * SECOND).await;
    gone.abort();
    let mut blocker = scheduler.try_spawn(sleep(2 * SECOND)).unwrap();
    drop(open.response);
    job.wait().await.unwrap();
    blocker.wait().await.unwrap();
    let end = counting.end_of(&job);
    assert_eq!((end.queued, end.ran), (2 * SECOND, SECOND));
    assert_eq!(counting.seen().started[&job.id()], 2 * SECOND);
    never.wait().await.unwrap();
    let end = counting.end_of(&gone);
    assert_eq!(
        (end.outcome, end.queued, end.ran),
        (Outcome::Cancelled, 3 * SECOND, Duration::ZERO)
    );
    assert_eq!(counting.end_of(&never).queued, 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn job_that_never_started_was_queued_until_its_end() {
    let (scheduler, counting) = observed(Scheduler::builder().limit(1));
    let running = scheduler.try_spawn(pending::<()>()).unwrap();
    let jobs = [(); 3].map(|()| scheduler.try_spawn(pending::<()>()).unwrap());
    sleep(SECOND).await;
    jobs[0].abort();
    sleep(SECOND).await;
    scheduler.clear();
    let never = scheduler.try_spawn(async {}).unwrap();
    sleep(SECOND).await;
    scheduler.close().await;
    counting.wait_closed();
    let shown = |job: &Job<()>| {
        let end = counting.end_of(job);
        (end.outcome, end.queued, end.ran)
    };
    assert_eq!(shown(&jobs[0]), (Outcome::Cancelled, SECOND, Duration::ZERO));
    assert_eq!(shown(&jobs[1]), (Outcome::Cancelled, 2 * SECOND, Duration::ZERO));
    assert_eq!(shown(&never), (Outcome::NeverStarted, SECOND, Duration::ZERO));
    assert_eq!(shown(&running), (Outcome::Cancelled, Duration::ZERO, 3 * SECOND));
}

#[tokio::test]
async fn job_is_seen_with_all_that_is_known_of_it() {
    struct Checks(AtomicUsize);
    impl Observer for Checks {
        fn accepted(&self, job: &JobSeen<'_>) {
            assert_eq!((job.name(), job.key(), job.scheduler()), ("mail", Some("a"), Some("web")));
            assert!(job.request().unwrap().starts_with("POST"));
            assert!(job.location().file().ends_with("observer.rs"));
            assert!(job.id().get() > 0);
            self.0.fetch_add(1, SeqCst);
        }
    }
    let checks = Arc::new(Checks(AtomicUsize::new(0)));
    let scheduler = Scheduler::builder().name("web").observer(checks.clone()).build();
    let open = respond(&scheduler).await;
    open.jobs.job("mail").concurrency_key("a").spawn(async {}).await.unwrap().await.unwrap();
    assert_eq!(checks.0.load(SeqCst), 1, "no assertion failed");
}

#[tokio::test]
async fn awaited_failure_is_seen_and_not_taken() {
    let (scheduler, counting) = observed(Scheduler::builder());
    let failing = || async { Err::<(), _>("no mail today") };
    let job = scheduler.spawn(failing()).await.unwrap();
    let id = job.id();
    let error = job.await.unwrap_err();
    assert!(error.is_failed());
    assert_eq!(error.into_source().unwrap().to_string(), "no mail today");
    let panicking = async {
        resume_unwind(Box::new("boom"));
    };
    let panicked = scheduler.spawn(panicking).await.unwrap();
    let panicked_id = panicked.id();
    let payload = panicked.await.unwrap_err().into_panic().unwrap();
    assert_eq!(*payload.downcast::<&str>().unwrap(), "boom", "the payload is whole");
    let seen = counting.seen();
    assert_eq!(seen.ends[&id].error.as_deref(), Some("the job failed"));
    assert!(seen.ends[&panicked_id].error.as_deref().unwrap().contains("panicked"));
}

#[tokio::test]
async fn shielded_work_shows_its_outcome_and_keeps_its_error() {
    let (scheduler, counting) = observed(Scheduler::builder());
    let result = scheduler.shield(async { Err::<(), _>("no mail today") }).await.unwrap();
    assert_eq!(result, Err("no mail today"));
    let seen = counting.seen();
    let end = seen.ends.values().next().unwrap();
    assert_eq!((end.kind, end.outcome), (JobKind::Shielded, Outcome::Failed));
    assert_eq!(end.error, None);
}

#[tokio::test]
async fn unawaited_failure_is_seen_and_then_reported_once() {
    let counting = Counting::default();
    let (scheduler, mut failures) = watched(Scheduler::builder().observer(counting.clone()));
    let first = scheduler.spawn(async { Err::<(), _>("first") }).await.unwrap();
    let id = first.id();
    drop(first);
    let second = scheduler.spawn(async { Err::<(), _>("second") }).await.unwrap();
    scheduler.wait_idle().await;
    assert_eq!(all(&mut failures).len(), 1);
    assert_eq!(counting.seen().ends[&id].outcome, Outcome::Failed);
    drop(second);
    let shown = all(&mut failures);
    assert!(shown.len() == 1 && shown[0].contains("second"), "{shown:?}");
    scheduler.close().await;
    assert_eq!(all(&mut failures), [""; 0]);
}

#[tokio::test]
async fn observers_are_called_in_the_order_they_were_added() {
    struct Named(&'static str, Arc<Mutex<Vec<&'static str>>>);
    impl Observer for Named {
        fn accepted(&self, _: &JobSeen<'_>) {
            self.1.lock().unwrap().push(self.0);
        }
    }
    let calls = Arc::default();
    let scheduler = Scheduler::builder()
        .observer(Named("first", Arc::clone(&calls)))
        .observer(Arc::new(Named("second", Arc::clone(&calls))) as Arc<dyn Observer>)
        .build();
    scheduler.spawn(async {}).await.unwrap().await.unwrap();
    assert_eq!(*calls.lock().unwrap(), ["first", "second"]);
}

/// Panics without a text, so that no hook prints one.
struct Panicking;

impl Observer for Panicking {
    fn accepted(&self, _: &JobSeen<'_>) {
        resume_unwind(Box::new("accepted"));
    }
    fn started(&self, _: &JobSeen<'_>, _: Duration) {
        resume_unwind(Box::new("started"));
    }
    fn ended(&self, _: &JobSeen<'_>, _: &JobEnd<'_>) {
        resume_unwind(Box::new("ended"));
    }
    fn refused(&self, _: RefusalReason, _: &str) {
        resume_unwind(Box::new("refused"));
    }
    fn draining(&self, _: Option<Instant>) {
        resume_unwind(Box::new("draining"));
    }
    fn closed(&self, _: &DrainReport) {
        resume_unwind(Box::new("closed"));
    }
}

#[tokio::test]
async fn panicking_observer_changes_nothing() {
    let counting = Counting::default();
    let builder = Scheduler::builder().limit(1).pending_limit(1);
    let (scheduler, mut failures) = watched(builder.observer(Panicking).observer(counting.clone()));
    let job = scheduler.spawn(async { 7 }).await.unwrap();
    assert_eq!(job.await.unwrap(), 7);
    let failing = scheduler.spawn(async { Err::<(), _>("no mail today") }).await.unwrap();
    assert!(failing.await.unwrap_err().is_failed());
    drop(scheduler.spawn(async { Err::<(), _>("detached") }).await.unwrap());
    scheduler.wait_idle().await;
    assert_eq!(all(&mut failures).len(), 1);
    let _running = scheduler.try_spawn(pending::<()>()).unwrap();
    let _pending = scheduler.try_spawn(pending::<()>()).unwrap();
    scheduler.try_spawn(async {}).unwrap_err();
    let report = within("the close", scheduler.close()).await;
    assert_eq!((report.cancelled.len(), report.never_started.len()), (1, 1));
    counting.wait_closed();
    let seen = counting.seen();
    assert_eq!(seen.closed, [sums(&scheduler.stats())], "the other observer sees all");
    assert_eq!(seen.draining.len(), 1);
}

/// Blocks all calls that closing makes.
struct Blocking(Mutex<mpsc::Receiver<()>>);

impl Observer for Blocking {
    fn ended(&self, _: &JobSeen<'_>, end: &JobEnd<'_>) {
        if matches!(end.outcome, Outcome::NeverStarted | Outcome::Abandoned) {
            self.0.lock().unwrap().recv().unwrap_or(());
        }
    }
    fn draining(&self, _: Option<Instant>) {
        self.0.lock().unwrap().recv().unwrap_or(());
    }
    fn closed(&self, _: &DrainReport) {
        self.0.lock().unwrap().recv().unwrap_or(());
    }
}

#[test]
fn blocking_observer_holds_up_no_close() {
    let (release, blocks) = mpsc::channel::<()>();
    let runtime = two_workers();
    let counting = Counting::default();
    let builder = Scheduler::builder()
        .limit(1)
        .close_timeout(Duration::from_millis(5))
        .observer(Blocking(Mutex::new(blocks)))
        .observer(counting.clone());
    let scheduler = builder.runtime(runtime.handle().clone()).build();
    let (begun, begins) = mpsc::channel();
    let (end, ends) = mpsc::channel::<()>();
    let (abandoned, never) = runtime.block_on(async {
        let blocking = move || {
            begun.send(()).unwrap();
            ends.recv().unwrap_or(());
        };
        let abandoned = scheduler.spawn_blocking(blocking).await.unwrap();
        (abandoned, scheduler.spawn(async {}).await.unwrap())
    });
    begins.recv_timeout(PLENTY).unwrap();
    let report = runtime.block_on(within("the close", scheduler.close()));
    assert_eq!((report.abandoned.len(), report.never_started.len()), (1, 1));
    assert!(counting.seen().closed.is_empty(), "all calls are blocked");
    // The awaiters get their results meanwhile.
    let error = runtime.block_on(within("the abandoned job", abandoned)).unwrap_err();
    assert!(error.is_abandoned());
    assert!(runtime.block_on(within("the other", never)).unwrap_err().is_cancelled());
    drop((release, end));
    counting.wait_closed();
    assert_eq!(counting.seen().closed, [sums(&scheduler.stats())]);
}

#[tokio::test(start_paused = true)]
async fn draining_shows_the_deadline_once() {
    let (scheduler, counting) = observed(Scheduler::builder());
    let deadline = Instant::now() + HOUR;
    scheduler.try_spawn(sleep(SECOND)).unwrap();
    scheduler.wait_and_close_within(HOUR).await;
    scheduler.close().await;
    counting.wait_closed();
    assert_eq!(counting.seen().draining, [Some(deadline)]);

    let (scheduler, counting) = observed(Scheduler::builder());
    scheduler.start_draining();
    scheduler.wait_and_close().await;
    counting.wait_closed();
    assert_eq!(counting.seen().draining, [None], "it had none at the announcement");
    assert_eq!(counting.seen().closed.len(), 1);
}

/// Closing an idle scheduler begins both calls at the same moment.
#[test]
fn draining_comes_before_closed() {
    let runtime = two_workers();
    for round in 0..500 {
        let (scheduler, counting) = observed(Scheduler::builder());
        drop(runtime.block_on(scheduler.close()));
        counting.wait_closed();
        assert_eq!(counting.seen().draining.len(), 1, "round {round}");
    }
}

#[test]
fn closed_comes_after_the_calls_of_spawners() {
    /// Lets the job end, and the scheduler close, before the first call returns.
    struct Slow;
    impl Observer for Slow {
        fn accepted(&self, _: &JobSeen<'_>) {
            thread::sleep(Duration::from_millis(50));
        }
    }
    let runtime = two_workers();
    let counting = Counting::default();
    let builder = Scheduler::builder().observer(Slow).observer(counting.clone());
    let scheduler = builder.runtime(runtime.handle().clone()).build();
    let spawner = scheduler.clone();
    let (ended, ends) = mpsc::channel();
    let thread = thread::spawn(move || {
        drop(spawner.try_spawn(async move { ended.send(()).unwrap() }).unwrap());
    });
    ends.recv_timeout(PLENTY).unwrap();
    runtime.block_on(scheduler.wait_and_close());
    thread.join().unwrap();
    counting.wait_closed();
    let seen = counting.seen();
    assert_eq!(seen.late, [""; 0]);
    assert_eq!(seen.closed, [sums(&scheduler.stats())]);
}

// Failures whose handle goes meanwhile.

/// Failures reported to the hook, and to awaiters, of jobs whose handle goes or is awaited while the
/// observer holds the error.
#[test]
fn failure_is_reported_once_while_an_observer_has_it() {
    const ROUNDS: u64 = 3000;
    struct Yielding;
    impl Observer for Yielding {
        fn ended(&self, _: &JobSeen<'_>, _: &JobEnd<'_>) {
            thread::yield_now();
        }
    }
    let runtime = two_workers();
    let hooked = Arc::new(AtomicU64::new(0));
    let hook = hooked.clone();
    let counting = Counting::default();
    let scheduler = Scheduler::builder()
        .runtime(runtime.handle().clone())
        .observer(Yielding)
        .observer(counting.clone())
        .on_failure(move |_| {
            hook.fetch_add(1, SeqCst);
        })
        .build();
    let mut awaited = 0;
    for round in 0..ROUNDS {
        let begun = Arc::new(AtomicBool::new(false));
        let begins = begun.clone();
        let job = scheduler.try_spawn(async move {
            begins.store(true, SeqCst);
            Err::<(), _>("no mail today")
        });
        let job = job.unwrap();
        while !begun.load(SeqCst) {
            std::hint::spin_loop();
        }
        (0..round % 50).for_each(|_| std::hint::spin_loop());
        match round % 3 {
            0 => drop(job),
            1 => {
                thread::yield_now();
                drop(job);
            }
            _ => {
                assert!(runtime.block_on(job).unwrap_err().is_failed());
                awaited += 1;
            }
        }
    }
    drop(runtime.block_on(scheduler.wait_and_close()));
    counting.wait_closed();
    let since = RealInstant::now();
    while hooked.load(SeqCst) + awaited < ROUNDS {
        assert!(since.elapsed() < PLENTY, "{} and {awaited}", hooked.load(SeqCst));
        thread::yield_now();
    }
    assert_eq!(hooked.load(SeqCst) + awaited, ROUNDS);
    assert_eq!(counting.seen().sums.ended[&Outcome::Failed], ROUNDS);
    assert!(counting.seen().ends.values().all(|end| end.error.is_some()));
}

// Refusals.

/// Asserts that the one change since the last call is this.
#[track_caller]
fn one_more(scheduler: &Scheduler, counting: &Counting, before: &mut u64, reason: RefusalReason) {
    let refused = scheduler.stats().refused;
    *before += 1;
    assert_eq!(refused.total(), *before, "{refused:?}");
    let seen = counting.seen().refused.get(&reason).copied().unwrap_or(0);
    assert_eq!(seen, refused.of(reason), "{refused:?}");
    assert!(seen > 0, "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn each_refused_spawn_counts_once_by_its_reason() {
    let (scheduler, counting) =
        observed(Scheduler::builder().limit(1).pending_limit(1).deferred_limit(1));
    let mut total = 0;
    let mut check = |reason| one_more(&scheduler, &counting, &mut total, reason);
    let open = respond(&scheduler).await;
    let deferred = open.jobs.after_response(async {}).unwrap();
    assert!(open.jobs.after_response(async {}).is_err());
    check(RefusalReason::DeferredFull);
    let unique = scheduler.job("unique").unique_key("x").try_spawn(pending::<()>()).unwrap();
    assert!(scheduler.job("unique").unique_key("x").spawn(async {}).await.is_err());
    check(RefusalReason::Duplicate);
    assert!(scheduler.job("unique").unique_key("x").shield(async {}).await.is_err());
    check(RefusalReason::Duplicate);
    let _pending = scheduler.try_spawn(pending::<()>()).unwrap();
    assert!(scheduler.try_spawn(async {}).is_err());
    check(RefusalReason::PendingFull);
    assert!(open.jobs.after_response(async {}).is_err());
    check(RefusalReason::PendingFull);
    let late = scheduler.spawn_within(SECOND, async {}).await;
    assert!(matches!(late, Err(SpawnError::TimedOut)));
    check(RefusalReason::TimedOut);
    let late = scheduler.spawn_within(Duration::ZERO, async {}).await;
    assert!(matches!(late, Err(SpawnError::TimedOut)));
    check(RefusalReason::TimedOut);
    let mut waiting = poll_by_hand(scheduler.spawn(async {}));
    assert_pending!(waiting.poll());
    drop(waiting);
    check(RefusalReason::Dropped);
    let mut waiting = poll_by_hand(scheduler.spawn_within(HOUR, async {}));
    assert_pending!(waiting.poll());
    drop(waiting);
    check(RefusalReason::Dropped);
    // Granted, and never polled again.
    let mut waiting = poll_by_hand(scheduler.spawn(async {}));
    assert_pending!(waiting.poll());
    scheduler.set_pending_limit(2).unwrap();
    assert!(waiting.is_woken() && scheduler.stats().granted == 1);
    drop(waiting);
    check(RefusalReason::Dropped);
    scheduler.set_pending_limit(1).unwrap();
    drop((scheduler.spawn(async {}), scheduler.spawn_within(HOUR, async {})));
    drop(scheduler.shield(async {}));
    drop(scheduler.reserve());

    let mut waiting = poll_by_hand(scheduler.spawn(async {}));
    assert_pending!(waiting.poll());
    scheduler.close().await;
    assert!(matches!(assert_ready!(waiting.poll()), Err(SpawnError::Closed)));
    check(RefusalReason::Closed);
    drop(waiting);
    assert!(scheduler.spawn(async {}).await.is_err());
    check(RefusalReason::Closed);
    assert!(scheduler.try_spawn(async {}).is_err());
    check(RefusalReason::Closed);
    assert!(scheduler.spawn_within(SECOND, async {}).await.is_err());
    check(RefusalReason::Closed);
    assert!(scheduler.spawn_blocking(|| ()).await.is_err());
    check(RefusalReason::Closed);
    assert!(scheduler.spawn_with(|_| async {}).await.is_err());
    check(RefusalReason::Closed);
    assert!(scheduler.shield(async {}).await.is_err());
    check(RefusalReason::Closed);
    assert!(open.jobs.after_response(async {}).is_err());
    check(RefusalReason::Closed);
    assert!(deferred.is_finished() && unique.is_finished());
    let of_all: u64 = counting.seen().refused.values().sum();
    assert_eq!(of_all, scheduler.stats().refused.total());
}

#[tokio::test]
async fn refusal_without_a_queue_counts_once() {
    let (scheduler, counting) = observed(Scheduler::builder().limit(1).pending_limit(0));
    let _running = scheduler.try_spawn(pending::<()>()).unwrap();
    let mut total = 0;
    assert!(matches!(scheduler.spawn(async {}).await, Err(SpawnError::Full)));
    one_more(&scheduler, &counting, &mut total, RefusalReason::PendingFull);
    assert!(scheduler.spawn_within(HOUR, async {}).await.is_err());
    one_more(&scheduler, &counting, &mut total, RefusalReason::PendingFull);
}

#[test]
fn refusal_without_a_runtime_counts_once() {
    let (scheduler, counting) = observed(Scheduler::builder());
    let mut total = 0;
    let mut check = || one_more(&scheduler, &counting, &mut total, RefusalReason::NoRuntime);
    assert!(scheduler.try_spawn(async {}).is_err());
    check();
    assert!(assert_ready!(poll_by_hand(scheduler.spawn(async {})).poll()).is_err());
    check();
    assert!(assert_ready!(poll_by_hand(scheduler.shield(async {})).poll()).is_err());
    check();
}

#[test]
fn reasons_have_distinct_names_and_counts() {
    let names: HashSet<_> = RefusalReason::ALL.map(RefusalReason::as_str).into();
    assert_eq!(names.len(), RefusalReason::ALL.len());
    let refused = Stats::default().refused;
    assert!(RefusalReason::ALL.iter().all(|reason| refused.of(*reason) == 0));
    #[cfg(feature = "serde")]
    {
        let fields = serde_json::to_value(refused).unwrap();
        let fields: HashSet<_> = fields.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, names);
        for reason in RefusalReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}

/// An observer that uses the scheduler it observes: no lock is held during its calls.
#[tokio::test]
async fn observer_may_call_its_scheduler() {
    struct Asking(OnceLock<WeakScheduler>, AtomicBool, AtomicU64);
    impl Asking {
        fn ask(&self) {
            let Some(scheduler) = self.0.get().and_then(WeakScheduler::upgrade) else {
                return;
            };
            assert_adds_up(&scheduler.stats());
            drop(scheduler.jobs());
            self.2.fetch_add(1, SeqCst);
            // Once, since that job is seen too.
            if !self.1.swap(true, SeqCst) {
                drop(scheduler.try_spawn(async {}));
            }
        }
    }
    impl Observer for Asking {
        fn accepted(&self, _: &JobSeen<'_>) {
            self.ask();
        }
        fn started(&self, _: &JobSeen<'_>, _: Duration) {
            self.ask();
        }
        fn ended(&self, _: &JobSeen<'_>, _: &JobEnd<'_>) {
            self.ask();
        }
        fn refused(&self, _: RefusalReason, _: &str) {
            self.ask();
        }
    }
    let asking = Arc::new(Asking(OnceLock::new(), AtomicBool::new(false), AtomicU64::new(0)));
    let scheduler = Scheduler::builder().limit(1).pending_limit(1).observer(asking.clone()).build();
    asking.0.set(scheduler.downgrade()).unwrap();
    scheduler.spawn(async {}).await.unwrap().await.unwrap();
    within("the other job", scheduler.wait_idle()).await;
    assert_eq!(scheduler.stats().completed, 2);
    assert_eq!(asking.2.load(SeqCst), 6);
}

#[tokio::test]
async fn no_observer_is_no_branch_of_the_law() {
    let scheduler = limited(1, 1);
    drop(scheduler.spawn(async {}).await.unwrap());
    scheduler.wait_idle().await;
    assert_adds_up(&scheduler.stats());
}
