//! Hundreds of real threads spawn while another closes. No job is lost, and the accounting law holds
//! throughout.
//!
//! In a binary of its own because its threads take all processors: tests of real time beside it
//! would be late.
#![allow(clippy::disallowed_methods, reason = "real threads are the subject")]

mod support;

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    panic::resume_unwind,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    task::Poll,
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::yield_now,
    time::Instant,
};
use tower_jobs::{
    DrainReport, Job, JobEnd, JobSeen, Observer, Outcome, RefusalReason, Scheduler, Stats,
};

use support::{PLENTY, Random, assert_adds_up, block_on, number};

const ROUNDS: usize = 32;
const STEERED_ROUNDS: usize = 12;
const THREADS: usize = 200;
const JOBS_PER_THREAD: usize = 10;
const LIMIT: usize = 4;
const PENDING_LIMIT: usize = 8;

/// The events of one job.
#[derive(Default)]
struct Trace {
    made: AtomicBool,
    accepted: AtomicBool,
    begun: AtomicU32,
    finished: AtomicU32,
    dropped: AtomicU32,
    reported: AtomicU32,
}

struct Round {
    traces: Vec<Trace>,
    /// The close has given its report.
    over: AtomicBool,
    started_late: AtomicU32,
}

/// Ends the round when it is dropped, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

struct Traced(Arc<Round>, usize);

impl Traced {
    fn new(round: &Arc<Round>, number: usize) -> Self {
        round.traces[number].made.store(true, SeqCst);
        Self(round.clone(), number)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.0.traces[self.1].dropped.fetch_add(1, SeqCst);
    }
}

fn fails(number: usize) -> bool {
    number % 7 == 0 || number % 11 == 0
}

async fn work(guard: Traced) -> Result<(), &'static str> {
    let Traced(round, number) = &guard;
    round.traces[*number].begun.fetch_add(1, SeqCst);
    round.started_late.fetch_add(u32::from(round.over.load(SeqCst)), SeqCst);
    for _ in 0..number % 20 {
        yield_now().await;
    }
    round.traces[*number].finished.fetch_add(1, SeqCst);
    match number {
        number if number % 7 == 0 => Err("sevenfold"),
        number if number % 11 == 0 => resume_unwind(Box::new("a panic that is not printed")),
        _ => Ok(()),
    }
}

/// Spawns its jobs until the scheduler is closed. Every other thread keeps its handles.
fn spawner(scheduler: &Scheduler, round: &Arc<Round>, thread: usize, news: &mpsc::Sender<()>) {
    let mut handles: Vec<Job<()>> = Vec::new();
    for number in thread * JOBS_PER_THREAD..(thread + 1) * JOBS_PER_THREAD {
        let job = scheduler.job(number.to_string());
        let future = work(Traced::new(round, number));
        let handle = match thread % 3 {
            0 => match job.try_spawn(future) {
                Ok(handle) => handle,
                Err(error) if error.is_closed() => return,
                Err(_) => continue,
            },
            _ => match block_on(job.spawn(future)) {
                Ok(handle) => handle,
                Err(_) => return,
            },
        };
        round.traces[number].accepted.store(true, SeqCst);
        news.send(()).expect("the closer listens");
        if thread % 2 == 0 {
            handles.push(handle);
        }
    }
}

/// Checks the counts until the round is over.
fn watch(scheduler: &Scheduler, round: &Round) {
    while !round.over.load(SeqCst) {
        let stats = scheduler.stats();
        assert_adds_up(&stats);
        assert!(stats.active <= LIMIT as u64);
        assert!(stats.pending <= PENDING_LIMIT as u64);
        thread::yield_now();
    }
}

/// Joins the threads. A scope that ends with a handle dropped detaches that thread, and in glibc 2.36
/// `pthread_detach` may crash beside the thread's end.
fn join<'scope>(threads: impl IntoIterator<Item = ScopedJoinHandle<'scope, ()>>) {
    for thread in threads {
        thread.join().unwrap_or_else(|panic| resume_unwind(panic));
    }
}

fn play_round(runtime: &Runtime, round_number: usize, close: Close) {
    let traces = (0..THREADS * JOBS_PER_THREAD).map(|_| Trace::default()).collect();
    let (over, started_late) = (AtomicBool::new(false), AtomicU32::new(0));
    let round = Arc::new(Round { traces, over, started_late });
    let hooked = round.clone();
    let scheduler = Scheduler::builder()
        .limit(LIMIT)
        .pending_limit(PENDING_LIMIT)
        .close_timeout(PLENTY)
        .wait_timeout(PLENTY)
        .runtime(runtime.handle().clone())
        .on_failure(move |failure| {
            let number = number(&failure.job.name);
            hooked.traces[number].reported.fetch_add(1, SeqCst);
        })
        .build();
    let (news, arrivals) = mpsc::channel();
    let report = thread::scope(|scope| {
        let spawners = (0..THREADS).map(|thread| {
            let (scheduler, round, news) = (&scheduler, &round, news.clone());
            scope.spawn(move || spawner(scheduler, round, thread, &news))
        });
        let spawners: Vec<_> = spawners.collect();
        let watcher = scope.spawn(|| watch(&scheduler, &round));
        let over = Over(&round.over);
        // Closes after this number of accepted jobs.
        for _ in 0..round_number * THREADS * JOBS_PER_THREAD / (2 * ROUNDS) {
            arrivals.recv_timeout(PLENTY).expect("jobs are accepted");
        }
        let report = close(&scheduler);
        drop(over);
        join(spawners.into_iter().chain([watcher]));
        report
    });
    // The close does not wait for the drop of jobs that never started.
    let waits_since = Instant::now();
    let is_gone = |trace: &Trace| trace.dropped.load(SeqCst) > 0 || !trace.made.load(SeqCst);
    while !round.traces.iter().all(is_gone) {
        assert!(waits_since.elapsed() < PLENTY, "a future was not dropped");
        thread::yield_now();
    }
    add_up(&scheduler.stats(), &report, &round);
}

/// Asserts that every accepted job has run to its end or is named, that every future was dropped
/// once, and that every failure was reported once.
fn add_up(stats: &Stats, report: &DrainReport, round: &Round) {
    let accepted = round.traces.iter().filter(|trace| trace.accepted.load(SeqCst)).count();
    assert_eq!(stats.accepted, accepted as u64);
    assert_adds_up(stats);
    assert_eq!(stats.pending + stats.active + stats.waiting_spawners + stats.abandoned, 0);
    let named: HashMap<usize, Outcome> =
        report.jobs().map(|(outcome, job)| (number(&job.name), outcome)).collect();
    assert_eq!(named.len(), report.jobs().count(), "no job is named twice");
    for (number, trace) in round.traces.iter().enumerate() {
        let (begun, finished) = (trace.begun.load(SeqCst), trace.finished.load(SeqCst));
        let expected = match named.get(&number) {
            _ if !trace.accepted.load(SeqCst) => (0, 0),
            Some(Outcome::NeverStarted) => (0, 0),
            // Dropped where it stood, perhaps before its first poll.
            Some(Outcome::Cancelled) => (begun.min(1), 0),
            Some(Outcome::Failed) if number % 7 == 0 => (1, 1),
            Some(Outcome::Panicked) if number % 11 == 0 => (1, 1),
            None => (1, 1),
            Some(outcome) => panic!("job {number}: {outcome:?}"),
        };
        assert_eq!((begun, finished), expected, "job {number}, {:?}", named.get(&number));
        let made = u32::from(trace.made.load(SeqCst));
        assert_eq!(trace.dropped.load(SeqCst), made, "job {number}");
        let failed = fails(number) && finished == 1;
        // A close waits for hooks for a short time only, and a thread that has no processor takes longer.
        let waits_since = Instant::now();
        while failed && trace.reported.load(SeqCst) == 0 {
            assert!(waits_since.elapsed() < PLENTY, "the failure of job {number} was not reported");
            thread::yield_now();
        }
        assert_eq!(trace.reported.load(SeqCst), u32::from(failed), "job {number}");
    }
    assert_eq!(round.started_late.load(SeqCst), 0, "nothing starts once it is closed");
}

type Close = fn(&Scheduler) -> DrainReport;

fn play(runtime: Builder, close: Close) {
    play_rounds(runtime, ROUNDS, close, play_round);
}

/// Plays all rounds on a runtime that another thread drives. No round may hang.
fn play_rounds(
    mut runtime: Builder,
    rounds: usize,
    close: Close,
    play_round: fn(&Runtime, usize, Close),
) {
    let (done, ended) = mpsc::channel();
    let player = thread::spawn(move || {
        let runtime = runtime.enable_all().build().expect("a runtime");
        let (stop, stopped) = oneshot::channel::<()>();
        thread::scope(|scope| {
            let driver = scope.spawn(|| drop(runtime.block_on(stopped)));
            // Dropped also when a round fails.
            let stop = stop;
            for round in 0..rounds {
                play_round(&runtime, round, close);
            }
            drop(stop);
            join([driver]);
        });
        done.send(()).expect("the test waits");
    });
    if ended.recv_timeout(PLENTY) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("a round hangs");
    }
    player.join().expect("a round failed");
}

fn close(scheduler: &Scheduler) -> DrainReport {
    block_on(scheduler.close())
}

fn wait_and_close(scheduler: &Scheduler) -> DrainReport {
    block_on(scheduler.wait_and_close())
}

fn two_workers() -> Builder {
    let mut runtime = Builder::new_multi_thread();
    runtime.worker_threads(2);
    runtime
}

#[test]
fn nothing_is_lost_to_a_close_on_two_workers() {
    play(two_workers(), close);
}

#[test]
fn nothing_is_lost_to_a_close_on_a_current_thread_runtime() {
    play(Builder::new_current_thread(), close);
}

#[test]
fn nothing_is_lost_to_a_drain_on_two_workers() {
    play(two_workers(), wait_and_close);
}

#[test]
fn nothing_is_lost_to_a_drain_on_a_current_thread_runtime() {
    play(Builder::new_current_thread(), wait_and_close);
}

// Steering.

/// What an observer has seen.
#[derive(Default)]
struct Law {
    accepted: AtomicU64,
    ended: AtomicU64,
    refused: AtomicU64,
    /// `accepted` and `ended` at the time of `closed`.
    closed: Mutex<Vec<(u64, u64)>>,
}

impl Observer for Law {
    fn accepted(&self, _: &JobSeen<'_>) {
        self.accepted.fetch_add(1, SeqCst);
    }
    fn ended(&self, _: &JobSeen<'_>, _: &JobEnd<'_>) {
        self.ended.fetch_add(1, SeqCst);
    }
    fn refused(&self, _: RefusalReason, _: &str) {
        self.refused.fetch_add(1, SeqCst);
    }
    fn closed(&self, _: &DrainReport) {
        let seen = (self.accepted.load(SeqCst), self.ended.load(SeqCst));
        self.closed.lock().expect("nothing panics here").push(seen);
    }
}

/// Waits for a permit, then spawns with it, or gives it back.
fn reserver(scheduler: &Scheduler, round: &Arc<Round>, thread: usize, news: &mpsc::Sender<()>) {
    for number in thread * JOBS_PER_THREAD..(thread + 1) * JOBS_PER_THREAD {
        if number % 5 == 0 {
            // Polled once, and left.
            let reservation = &mut pin!(scheduler.reserve());
            let polled = block_on(poll_fn(|cx| Poll::Ready(reservation.as_mut().poll(cx))));
            drop(polled);
            continue;
        }
        let Ok(permit) = block_on(scheduler.reserve()) else { return };
        if number % 3 == 0 {
            continue;
        }
        let job = scheduler.job(number.to_string());
        let spawned = permit.spawn_as(job, work(Traced::new(round, number)));
        if spawned.is_ok() {
            round.traces[number].accepted.store(true, SeqCst);
            news.send(()).expect("the closer listens");
        }
    }
}

/// Changes the limits, pauses and resumes until the round is over. Ends with the queue resumed.
fn steerer(scheduler: &Scheduler, round: &Round, thread: usize) {
    let mut random = Random(thread as u64);
    while !round.over.load(SeqCst) {
        match random.below(5) {
            0 => scheduler.set_limit(random.pick(&[1, LIMIT, 50])).expect("a valid limit"),
            1 => scheduler.set_pending_limit(random.pick(&[1, 100])).expect("a valid limit"),
            2 => scheduler
                .set_limit_per_key(random.pick(&[None, Some(1), Some(3)]))
                .expect("a valid limit"),
            3 => scheduler.pause(),
            _ => scheduler.resume(),
        }
        scheduler.resume();
        thread::yield_now();
    }
}

fn play_steered(runtime: &Runtime, round_number: usize, close: Close) {
    const SPAWNERS: usize = THREADS / 2;
    const STEERERS: usize = 20;
    let traces = (0..THREADS * JOBS_PER_THREAD).map(|_| Trace::default()).collect();
    let (over, started_late) = (AtomicBool::new(false), AtomicU32::new(0));
    let round = Arc::new(Round { traces, over, started_late });
    let (hooked, law) = (round.clone(), Arc::new(Law::default()));
    let scheduler = Scheduler::builder()
        .limit(LIMIT)
        .pending_limit(PENDING_LIMIT)
        .close_timeout(PLENTY)
        .wait_timeout(PLENTY)
        .runtime(runtime.handle().clone())
        .observer(law.clone())
        .on_failure(move |failure| {
            let number = number(&failure.job.name);
            hooked.traces[number].reported.fetch_add(1, SeqCst);
        })
        .build();
    let (news, arrivals) = mpsc::channel();
    let report = thread::scope(|scope| {
        for thread in 0..SPAWNERS {
            let (scheduler, round, news) = (&scheduler, &round, news.clone());
            scope.spawn(move || spawner(scheduler, round, thread, &news));
        }
        for thread in SPAWNERS..THREADS - STEERERS {
            let (scheduler, round, news) = (&scheduler, &round, news.clone());
            scope.spawn(move || reserver(scheduler, round, thread, &news));
        }
        for thread in THREADS - STEERERS..THREADS {
            let (scheduler, round) = (&scheduler, &round);
            scope.spawn(move || steerer(scheduler, round, thread));
        }
        scope.spawn(|| {
            while !round.over.load(SeqCst) {
                assert_adds_up(&scheduler.stats());
                thread::yield_now();
            }
        });
        let _over = Over(&round.over);
        for _ in 0..round_number * SPAWNERS * JOBS_PER_THREAD / (3 * STEERED_ROUNDS) {
            arrivals.recv_timeout(PLENTY).expect("jobs are accepted");
        }
        close(&scheduler)
    });
    let waits_since = Instant::now();
    let is_gone = |trace: &Trace| trace.dropped.load(SeqCst) > 0 || !trace.made.load(SeqCst);
    let is_closed = || !law.closed.lock().expect("nothing panics here").is_empty();
    while !round.traces.iter().all(is_gone) || !is_closed() {
        assert!(waits_since.elapsed() < PLENTY, "a future was not dropped, or `closed` not called");
        thread::yield_now();
    }
    let stats = scheduler.stats();
    add_up(&stats, &report, &round);
    assert_eq!((stats.reserved, stats.granted, stats.outside_limit), (0, 0, 0), "{stats:?}");
    let closed = law.closed.lock().expect("nothing panics here");
    assert_eq!(*closed, [(stats.accepted, stats.accepted)]);
    assert_eq!(law.refused.load(SeqCst), stats.refused.total());
}

#[test]
fn nothing_is_lost_while_steered_on_two_workers() {
    play_rounds(two_workers(), STEERED_ROUNDS, close, play_steered);
    play_rounds(two_workers(), STEERED_ROUNDS, wait_and_close, play_steered);
}

#[test]
fn nothing_is_lost_while_steered_on_a_current_thread_runtime() {
    play_rounds(Builder::new_current_thread(), STEERED_ROUNDS, close, play_steered);
    play_rounds(Builder::new_current_thread(), STEERED_ROUNDS, wait_and_close, play_steered);
}

/// The abort comes during the first poll, before there is a waker.
#[test]
fn job_aborted_while_it_is_first_polled_is_dropped() {
    let runtime = two_workers().build().expect("a runtime");
    let scheduler = Scheduler::builder().runtime(runtime.handle().clone()).build();
    let (polled, is_polled) = mpsc::channel();
    let (aborted, is_aborted) = mpsc::channel();
    let (dropped, is_dropped) = mpsc::channel::<()>();
    let future = poll_fn(move |_| {
        let _dropped = &dropped;
        polled.send(()).expect("the test waits");
        is_aborted.recv_timeout(PLENTY).expect("the test aborts");
        Poll::<()>::Pending
    });
    let job = block_on(scheduler.spawn(future)).expect("there is a place");
    is_polled.recv_timeout(PLENTY).expect("the job runs");
    job.abort();
    aborted.send(()).expect("the job waits");
    assert_eq!(is_dropped.recv_timeout(PLENTY), Err(mpsc::RecvTimeoutError::Disconnected));
    assert!(block_on(job).is_err_and(|error| error.is_cancelled()));
}

/// The close ends while the hook runs.
#[test]
fn failure_reported_beyond_the_close_is_reported_once() {
    let runtime = two_workers().enable_all().build().expect("a runtime");
    let (telling, is_telling) = mpsc::channel();
    let (closed, is_closed) = mpsc::channel();
    let first = Mutex::new(Some(is_closed));
    let scheduler = Scheduler::builder()
        .close_timeout(Duration::ZERO)
        .runtime(runtime.handle().clone())
        .on_failure(move |failure| {
            telling.send(failure.error.is_failed()).expect("the test listens");
            let is_closed = first.lock().expect("nothing panics here").take();
            if let Some(is_closed) = is_closed {
                is_closed.recv_timeout(PLENTY).expect("the test closes");
            }
        })
        .build();
    let (detach, detached) = oneshot::channel::<()>();
    let job = block_on(scheduler.spawn(async {
        detached.await.expect("the test detaches");
        Err::<(), _>("no")
    }));
    drop(job);
    detach.send(()).expect("the job waits");
    assert_eq!(is_telling.recv_timeout(PLENTY), Ok(true));
    let report = block_on(scheduler.close());
    assert_eq!(report.abandoned.len(), 1);
    closed.send(()).expect("the hook still runs");
    drop((scheduler, runtime));
    assert_eq!(is_telling.recv_timeout(PLENTY), Err(mpsc::RecvTimeoutError::Disconnected));
}
