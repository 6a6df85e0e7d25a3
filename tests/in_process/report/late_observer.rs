//! Observers that are added while the scheduler runs.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant as RealInstant},
};

use tokio_test::{assert_pending, assert_ready_ok, task::spawn as poll_by_hand};
use tower_jobs::{
    DrainReport, JobEnd, JobId, JobSeen, Observer, RefusalReason, Scheduler, SpawnError,
};

use crate::support::{PLENTY, limited, turn, within};

/// The calls for each job: accepted, started and ended.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    jobs: HashMap<JobId, [u32; 3]>,
    refused: u32,
    draining: u32,
    closed: u32,
    late: u32,
}

impl Calls {
    fn add(&self, job: &JobSeen<'_>, call: usize) {
        let mut seen = self.0.lock().unwrap();
        seen.late += seen.closed;
        seen.jobs.entry(job.id()).or_default()[call] += 1;
    }

    fn of(&self, id: JobId) -> [u32; 3] {
        self.0.lock().unwrap().jobs.get(&id).copied().unwrap_or_default()
    }

    /// Blocks until `closed` has come: it is called on a plain thread.
    fn wait_closed(&self) {
        let since = RealInstant::now();
        while self.0.lock().unwrap().closed == 0 {
            assert!(since.elapsed() < PLENTY, "`closed` has not come");
            thread::yield_now();
        }
    }
}

impl Observer for Calls {
    fn accepted(&self, job: &JobSeen<'_>) {
        self.add(job, 0);
    }

    fn started(&self, job: &JobSeen<'_>, _: Duration) {
        self.add(job, 1);
    }

    fn ended(&self, job: &JobSeen<'_>, end: &JobEnd<'_>) {
        self.add(job, 2);
        assert!(!end.has_started || end.queued <= PLENTY);
    }

    fn refused(&self, _: RefusalReason, _: &str) {
        self.0.lock().unwrap().refused += 1;
    }

    fn draining(&self, _: Option<tokio::time::Instant>) {
        self.0.lock().unwrap().draining += 1;
    }

    fn closed(&self, _: &DrainReport) {
        self.0.lock().unwrap().closed += 1;
    }
}

#[tokio::test]
async fn late_observer_sees_only_jobs_made_after_it() {
    let scheduler = limited(1, 1);
    let running = scheduler.try_spawn(pending::<()>()).unwrap();
    let waiting = scheduler.try_spawn(pending::<()>()).unwrap();
    let mut spawner = poll_by_hand(scheduler.spawn(pending::<()>()));
    assert_pending!(spawner.poll());
    turn().await;
    let [early, late] = [Calls::default(), Calls::default()];
    scheduler.observe(early.clone());
    assert!(scheduler.try_spawn(async {}).is_err());
    running.abort();
    turn().await;
    // It was made before, and is accepted now.
    let accepted = assert_ready_ok!(spawner.poll());
    waiting.abort();
    turn().await;
    assert!(accepted.is_active());
    let seen = scheduler.try_spawn(async {}).unwrap();
    scheduler.observe(late.clone());
    accepted.abort();
    turn().await;
    assert!(seen.is_finished());
    let last = scheduler.spawn(async {}).await.unwrap();
    within("the last", scheduler.wait_idle()).await;
    for job in [&running, &waiting, &accepted] {
        assert_eq!((early.of(job.id()), late.of(job.id())), ([0; 3], [0; 3]));
    }
    assert_eq!((early.of(seen.id()), late.of(seen.id())), ([1; 3], [0; 3]));
    assert_eq!((early.of(last.id()), late.of(last.id())), ([1; 3], [1; 3]));
    assert_eq!((early.0.lock().unwrap().refused, late.0.lock().unwrap().refused), (1, 0));
    scheduler.wait_and_close().await;
    for calls in [&early, &late] {
        calls.wait_closed();
        let seen = calls.0.lock().unwrap();
        assert_eq!((seen.draining, seen.closed, seen.late), (1, 1, 0));
    }
}

#[tokio::test]
async fn failure_of_a_job_made_before_is_reported_as_ever() {
    let (scheduler, mut failures) = crate::support::watched(Scheduler::builder());
    let gate = Arc::new(tokio::sync::Notify::new());
    let opened = gate.clone();
    let failing = async move {
        opened.notified().await;
        Err::<(), _>("no mail today")
    };
    drop(scheduler.try_spawn(failing).unwrap());
    turn().await;
    scheduler.observe(Calls::default());
    gate.notify_one();
    within("the job", scheduler.wait_idle()).await;
    assert_eq!(crate::support::all(&mut failures).len(), 1);
}

#[tokio::test]
async fn observer_added_while_draining_sees_the_rest() {
    let scheduler = limited(1, 1);
    let job = scheduler.try_spawn(pending::<()>()).unwrap();
    scheduler.start_draining();
    let calls = Calls::default();
    scheduler.observe(calls.clone());
    let other = scheduler.try_spawn(async {}).unwrap();
    job.abort();
    scheduler.wait_and_close().await;
    calls.wait_closed();
    assert_eq!((calls.of(job.id()), calls.of(other.id())), ([0; 3], [1; 3]));
    assert_eq!(calls.0.lock().unwrap().draining, 0);
}

const SPAWNERS: usize = 4;

/// Whole lives only, whichever thread adds an observer while others spawn.
#[test]
fn observers_added_under_load_see_whole_lives() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(4).enable_all().build().unwrap();
    let scheduler = Scheduler::builder().limit(3).pending_limit(5).build();
    let stop = Arc::new(AtomicBool::new(false));
    let spawners: Vec<_> = (0..SPAWNERS)
        .map(|_| {
            let (scheduler, stop) = (scheduler.clone(), stop.clone());
            runtime.spawn(async move {
                while !stop.load(SeqCst) {
                    match scheduler.spawn(async {}).await {
                        Ok(job) => drop(job),
                        Err(SpawnError::Closed) => return,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    let all: Vec<_> = thread::scope(|scope| {
        let adding = [(); 2].map(|()| {
            scope.spawn(|| {
                let add = |_| {
                    let calls = Calls::default();
                    scheduler.observe(calls.clone());
                    let before = scheduler.stats().accepted;
                    while scheduler.stats().accepted < before + 50 {
                        thread::yield_now();
                    }
                    calls
                };
                (0..20).map(add).collect::<Vec<_>>()
            })
        });
        adding.into_iter().flat_map(|adds| adds.join().unwrap()).collect()
    });
    let report = runtime.block_on(scheduler.wait_and_close_within(Duration::from_millis(5)));
    stop.store(true, SeqCst);
    runtime.block_on(async {
        for spawner in spawners {
            within("a spawner", spawner).await.unwrap();
        }
    });
    assert!(report.abandoned.is_empty());
    for calls in &all {
        calls.wait_closed();
        let seen = calls.0.lock().unwrap();
        assert_eq!((seen.closed, seen.late), (1, 0));
        // Of 50 that were accepted since, each spawner may have made one before.
        assert!(seen.jobs.len() >= 50 - SPAWNERS, "{}", seen.jobs.len());
        let is_whole =
            |[accepted, started, ended]: [u32; 3]| accepted == 1 && ended == 1 && started <= 1;
        let part = seen.jobs.iter().find(|(_, calls)| !is_whole(**calls));
        assert_eq!(part, None);
    }
}
