//! Kills, outages and deploys. Each test runs on both engines; the one on PostgreSQL needs its server's programs.
//!
//! `TOWER_JOBS_LONG=1` makes them as long as the table in RELIABILITY.md says.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests, outside their functions"
)]

use std::{
    collections::BTreeSet,
    env,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::time::sleep;
use tower_jobs_durable::{Admin, Depth, Durable, DurableContext, DurableJob, Outbox, PushOptions};
use tower_jobs_durable_reliability::{
    Abort, How, Newer, Work, log::Log, program::Settings, store::Store,
};

const MILLIS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Signs of life older than this are those of a dead process.
const DEAD_AFTER: u64 = 3_000;
/// Parts of a backlog, and the bytes by which a worker may grow after the first: 13 for each job of a short one.
const PARTS: u64 = 4;
const MAX_GROWTH: u64 = 100_000;

/// A store, a log of what ran, and a way to push.
struct Setup {
    store: Store,
    log: Log,
    durable: Durable,
    outbox: Outbox,
    pushed: BTreeSet<u64>,
    _folder: TempDir,
}

impl Setup {
    async fn new(store: Store) -> Self {
        let folder = TempDir::new().unwrap();
        let log = Log::new(folder.path().join("log"));
        let durable = Durable::builder_of(store.engine().await).start();
        let outbox = durable.outbox();
        Self { store, log, durable, outbox, pushed: BTreeSet::new(), _folder: folder }
    }

    fn worker(&self) -> Settings<'static> {
        Settings::new(env!("CARGO_BIN_EXE_worker"), &self.store, &self.log)
            .set("WORKER_DEAD_AFTER", DEAD_AFTER)
    }

    async fn push(&mut self, takes: Duration, how: How) -> u64 {
        let n = self.pushed.len() as u64;
        self.outbox.push(Work { n, takes, how }).await.unwrap();
        self.pushed.insert(n);
        n
    }

    async fn push_many(&mut self, count: usize, takes: Duration, how: How) {
        for _ in 0..count {
            self.push(takes, how).await;
        }
    }

    fn admin(&self) -> &dyn Admin {
        self.durable.admin().unwrap()
    }

    async fn depth(&self) -> Depth {
        self.admin().depth().await.unwrap()
    }

    /// Waits until each pushed job has ended at least once, and no row is left.
    async fn all_done(&self, most: Duration) {
        let began = Instant::now();
        loop {
            let depth = self.depth().await;
            if self.missing().is_empty() && depth.ready + depth.later + depth.running == 0 {
                assert_eq!(depth.dead, 0, "innocent jobs are dead letters");
                return;
            }
            let missing = self.missing().len();
            assert!(began.elapsed() < most, "{missing} jobs have not ended, {depth:?}");
            sleep(50 * MILLIS).await;
        }
    }

    fn missing(&self) -> BTreeSet<u64> {
        let ended = self.log.counts("end").into_keys().collect();
        self.pushed.difference(&ended).copied().collect()
    }

    async fn seen(&self, what: &str, count: usize, most: Duration) {
        let began = Instant::now();
        while self.log.counts(what).values().sum::<usize>() < count {
            assert!(began.elapsed() < most, "fewer than {count} lines \"{what}\"");
            sleep(10 * MILLIS).await;
        }
    }

    /// Jobs that started more than once.
    fn doubled(&self) -> Vec<u64> {
        self.log.counts("start").into_iter().filter(|(_, n)| *n > 1).map(|(n, _)| n).collect()
    }
}

fn is_long() -> bool {
    env::var_os("TOWER_JOBS_LONG").is_some()
}

fn rounds(short: usize, long: usize) -> usize {
    if is_long() { long } else { short }
}

/// Different in each run, and good enough for moments.
fn random(most: u64) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    Duration::from_millis(RandomState::new().hash_one(()) % most)
}

async fn killed_processes_lose_no_job(mut setup: Setup) {
    for _ in 0..rounds(5, 100) {
        let worker = setup.worker().set("WORKER_LIMIT", 8).start();
        let dies_at = Instant::now() + 200 * MILLIS + random(2_500);
        while Instant::now() < dies_at {
            let takes = random(150);
            setup.push(takes, How::Sleep).await;
            sleep(20 * MILLIS).await;
        }
        worker.kill();
    }
    let _worker = setup.worker().start();
    setup.all_done(120 * SECOND).await;
    println!("{} pushed, {} ran twice", setup.pushed.len(), setup.doubled().len());
}

async fn job_that_kills_processes_is_found(mut setup: Setup) {
    setup.push_many(6, 300 * MILLIS, How::Sleep).await;
    setup.outbox.push(Abort { n: 0 }).await.unwrap();
    let began = Instant::now();
    let mut worker = setup.worker().start();
    while setup.depth().await.dead == 0 {
        assert!(began.elapsed() < 120 * SECOND, "{:?}", setup.log.lines());
        if worker.has_ended() {
            worker = setup.worker().start();
        }
        sleep(50 * MILLIS).await;
    }
    assert_eq!(setup.log.counts("abort"), [(0, 3)].into());
    let dead = setup.admin().dead_letters(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].kind, "abort");
    assert!(dead[0].error.contains("3 processes have died"), "{}", dead[0].error);
    assert!(setup.admin().discard(&dead[0].id).await.unwrap());
    setup.all_done(30 * SECOND).await;
}

async fn long_jobs_of_two_processes_run_once(mut setup: Setup) {
    let _workers = [setup.worker().start(), setup.worker().start()];
    setup.push_many(20, 5 * SECOND, How::Sleep).await;
    setup.all_done(40 * SECOND).await;
    assert_eq!(setup.doubled(), Vec::<u64>::new());
}

async fn short_jobs_of_two_processes_run_once(mut setup: Setup) {
    let _workers = [setup.worker().start(), setup.worker().start()];
    setup.push_many(rounds(300, 1_000), Duration::ZERO, How::Sleep).await;
    setup.all_done(120 * SECOND).await;
    assert_eq!(setup.doubled(), Vec::<u64>::new());
}

async fn handlers_that_block_all_threads_run_once(mut setup: Setup) {
    let _first = setup.worker().start();
    setup.push_many(2, 8 * SECOND, How::Block).await;
    setup.seen("start", 2, 10 * SECOND).await;
    let _second = setup.worker().start();
    setup.all_done(30 * SECOND).await;
    assert_eq!(setup.doubled(), Vec::<u64>::new());
}

async fn full_process_leaves_rows_to_an_idle_one(mut setup: Setup) {
    let full = setup.worker().set("WORKER_LIMIT", 2).start();
    setup.push_many(2, 20 * SECOND, How::Sleep).await;
    setup.seen("start", 2, 10 * SECOND).await;
    let idle = setup.worker().start();
    setup.push_many(12, 100 * MILLIS, How::Sleep).await;
    setup.seen("end", 12, 10 * SECOND).await;
    let ran_by =
        |id| setup.log.lines().iter().filter(|line| line.0 == "end" && line.2 == id).count();
    assert_eq!((ran_by(full.id()), ran_by(idle.id())), (0, 12));
}

async fn deadline_releases_what_it_cuts_off(mut setup: Setup) {
    let worker = setup.worker().set("WORKER_GRACE", 4_000).set("WORKER_LIMIT", 10).start();
    setup.push_many(30, 20 * SECOND, How::Sleep).await;
    setup.seen("start", 10, 10 * SECOND).await;
    worker.terminate();
    let (code, report) = worker.ended(5_250 * MILLIS);
    assert!(report.contains("part \"durable\" ended: 10 released"), "{report}");
    assert_eq!(code, Some(0), "{report}");
    let depth = setup.depth().await;
    assert_eq!((depth.ready, depth.later, depth.running, depth.dead), (30, 0, 0, 0));
}

/// The grace is longer than the test waits.
async fn jobs_that_listen_end_a_shutdown_early(mut setup: Setup) {
    let worker = setup.worker().set("WORKER_GRACE", 120_000).set("WORKER_LIMIT", 10).start();
    setup.push_many(15, 60 * SECOND, How::Listen).await;
    setup.seen("start", 10, 10 * SECOND).await;
    worker.terminate();
    let (code, report) = worker.ended(20 * SECOND);
    assert!(report.contains("part \"durable\" ended: 10 released"), "{report}");
    assert_eq!(code, Some(0), "{report}");
    let depth = setup.depth().await;
    assert_eq!((depth.ready, depth.later, depth.running, depth.dead), (15, 0, 0, 0));
}

async fn second_signal_releases_at_once(mut setup: Setup) {
    let worker = setup.worker().set("WORKER_GRACE", 60_000).start();
    setup.push_many(3, 50 * SECOND, How::Sleep).await;
    setup.seen("start", 3, 10 * SECOND).await;
    worker.terminate();
    sleep(1_500 * MILLIS).await;
    worker.terminate();
    let (code, report) = worker.ended(5 * SECOND);
    assert!(report.contains("part \"durable\" ended: 3 released"), "{report}");
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(setup.depth().await.ready, 3);
}

async fn job_that_cannot_be_stopped_is_left_and_swept(mut setup: Setup) {
    let worker = setup.worker().set("WORKER_GRACE", 2_000).start();
    setup.push(4 * SECOND, How::Block).await;
    setup.seen("start", 1, 10 * SECOND).await;
    worker.terminate();
    let (code, report) = worker.ended(3_250 * MILLIS);
    assert!(report.contains("1 still running, left to the sweep"), "{report}");
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(setup.depth().await.running, 1);
    let _second = setup.worker().start();
    setup.all_done(40 * SECOND).await;
}

async fn deploys_lose_and_double_no_job(mut setup: Setup) {
    for _ in 0..rounds(3, 20) {
        let worker = setup.worker().set("WORKER_LIMIT", 8).start();
        let ends_at = Instant::now() + 200 * MILLIS + random(800);
        while Instant::now() < ends_at {
            let takes = random(100);
            setup.push(takes, How::Sleep).await;
        }
        worker.terminate();
        let (code, report) = worker.ended(5_250 * MILLIS);
        assert_eq!(code, Some(0), "{report}");
    }
    let _worker = setup.worker().start();
    setup.all_done(60 * SECOND).await;
    assert_eq!(setup.doubled(), Vec::<u64>::new());
}

async fn jobs_that_end_during_an_outage_run_once(mut setup: Setup) {
    let _workers = [setup.worker().start(), setup.worker().start()];
    setup.push_many(10, 2 * SECOND, How::Sleep).await;
    setup.seen("start", 10, 10 * SECOND).await;
    let outage = if is_long() { 50 * SECOND } else { 6 * SECOND };
    setup.store.away_for(outage).await;
    setup.all_done(40 * SECOND).await;
    assert_eq!(setup.doubled(), Vec::<u64>::new());
}

async fn kind_of_a_newer_version_is_left_to_it(mut setup: Setup) {
    let older = setup.worker().start();
    setup.outbox.push(Newer { n: 1_000 }).await.unwrap();
    setup.push(Duration::ZERO, How::Sleep).await;
    setup.seen("end", 1, 10 * SECOND).await;
    assert_eq!(setup.depth().await.ready, 1);
    let newer = setup.worker().set("WORKER_IS_NEWER", 1).start();
    setup.pushed.insert(1_000);
    setup.all_done(10 * SECOND).await;
    let ran = setup.log.lines().into_iter().find(|line| line.1 == 1_000).unwrap();
    assert_eq!(ran.2, newer.id());
    drop(older);
}

async fn delayed_job_waits_for_its_time(mut setup: Setup) {
    let _worker = setup.worker().start();
    let options = PushOptions::new().delay(2 * SECOND);
    setup
        .outbox
        .push_with(Work { n: 0, takes: Duration::ZERO, how: How::Sleep }, options)
        .await
        .unwrap();
    setup.pushed.insert(0);
    let pushed = Instant::now();
    setup.all_done(15 * SECOND).await;
    assert!(pushed.elapsed() >= 2 * SECOND);
}

/// The row of a user and its e-mail, in one transaction of a process that dies before the commit, or after it.
async fn transaction_cut_short_by_a_kill_stores_nothing(mut setup: Setup) {
    for (dies, stored) in [("before", 0), ("after", 1)] {
        let worker = setup.worker().mode(&format!("push-in-and-die-{dies}-commit")).start();
        assert_eq!(worker.ended(20 * SECOND).0, None, "it kills itself");
        assert_eq!(setup.store.users().await, stored);
        assert_eq!(setup.depth().await.ready, stored);
    }
    setup.pushed.insert(7);
    let _worker = setup.worker().start();
    setup.all_done(20 * SECOND).await;
}

/// The first part is there before the worker. After each part, a job weighs what the worker has allocated.
async fn backlog_runs_once_and_memory_is_flat(mut setup: Setup) {
    let jobs = env::var("TOWER_JOBS_BACKLOG").map_or_else(
        |_| rounds(10_000, 100_000) as u64,
        |jobs| jobs.parse().expect("a number of jobs"),
    );
    let part = jobs / PARTS;
    let mut worker = None;
    for (n, done) in (0..PARTS).zip(1..) {
        let began = Instant::now();
        setup.store.fill(n * part..(n + 1) * part).await;
        setup.pushed.extend(n * part..(n + 1) * part);
        let filled = Instant::now();
        let worker = worker.get_or_insert_with(|| setup.worker().start());
        assert!(!worker.has_ended());
        while setup.depth().await.ready > 0 {
            assert!(filled.elapsed() < 300 * SECOND, "{:?}", setup.depth().await);
            sleep(200 * MILLIS).await;
        }
        setup.all_done(30 * SECOND).await;
        println!("{part} jobs stored in {:?}, run in {:?}", filled - began, filled.elapsed());
        let weigh = Work { n: u64::MAX - n, takes: Duration::ZERO, how: How::Weigh };
        setup.outbox.push(weigh).await.unwrap();
        setup.seen("bytes", done, 10 * SECOND).await;
    }
    assert_eq!(setup.doubled(), Vec::<u64>::new());
    let lines = setup.log.lines();
    let bytes: Vec<u64> =
        lines.iter().filter(|line| line.0 == "bytes").map(|line| line.1).collect();
    println!("{bytes:?} bytes held");
    assert!(*bytes.iter().max().unwrap() < bytes[0] + MAX_GROWTH, "{bytes:?}");
}

macro_rules! on_both_engines {
    ($($test:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Setup::new(super::Store::sqlite()).await).await;
            })*
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let store = match stringify!($test) {
                    "jobs_that_end_during_an_outage_run_once" => super::Store::own_postgres().await,
                    _ => super::Store::postgres().await,
                };
                if let Some(store) = store {
                    super::$test(super::Setup::new(store).await).await;
                }
            })*
        }
    };
}

on_both_engines! {
    killed_processes_lose_no_job
    job_that_kills_processes_is_found
    long_jobs_of_two_processes_run_once
    short_jobs_of_two_processes_run_once
    handlers_that_block_all_threads_run_once
    full_process_leaves_rows_to_an_idle_one
    deadline_releases_what_it_cuts_off
    jobs_that_listen_end_a_shutdown_early
    second_signal_releases_at_once
    job_that_cannot_be_stopped_is_left_and_swept
    deploys_lose_and_double_no_job
    jobs_that_end_during_an_outage_run_once
    kind_of_a_newer_version_is_left_to_it
    delayed_job_waits_for_its_time
    transaction_cut_short_by_a_kill_stores_nothing
    backlog_runs_once_and_memory_is_flat
}

/// `npm ci` in target/producers has installed what the one in Node needs.
#[tokio::test(flavor = "multi_thread")]
async fn producers_in_sql_and_node_are_heard() {
    let Some(store) = Store::postgres().await else { return };
    let url = store.url();
    let setup = Setup::new(store).await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../producers");
    let sql = Command::new("psql")
        .args([&url, "-v", "to=ada", "-f"])
        .arg(folder.join("enqueue.sql"))
        .status();
    assert!(sql.unwrap().success());
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/producers");
    let mut expected = vec!["ada"];
    if installed.join("node_modules").is_dir() {
        let script = installed.join("enqueue.mjs");
        let node = Command::new("node").arg(script).arg("bob").env("DATABASE_URL", &url).status();
        assert!(node.unwrap().success());
        expected.push("bob");
    } else {
        eprintln!(
            "skipped: the producer in Node needs `just test-durable`, which installs graphile-worker"
        );
    }
    let (sent, mut sends) = tokio::sync::mpsc::unbounded_channel();
    let _running = Durable::builder_of(setup.store.engine().await)
        .register(move |mail: SendEmail, _: DurableContext| {
            sent.send(mail.to).unwrap();
            async {}
        })
        .start();
    for to in expected {
        let seen = tokio::time::timeout(20 * SECOND, sends.recv()).await;
        assert_eq!(seen.unwrap().as_deref(), Some(to));
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct SendEmail {
    to: String,
}

impl DurableJob for SendEmail {
    const KIND: &str = "send_email";
}
