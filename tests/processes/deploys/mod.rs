//! Deploys under load: a program as a process gets SIGTERM at a random moment, under one load shape
//! after the other. Its log is compared with its report. The short version sends each shape once. The long
//! one, which also holds every end to its grace and 250 ms:
//!
//! ```sh
//! cargo build --all-features --examples
//! DEPLOY_ROUNDS=300 cargo test --all-features --test processes deploys -- --nocapture
//! ```
//!
//! Round n takes shape n of the table, and starts over at its end; every other round of a shape runs beside
//! as many spinning threads as there are cores. A round counts if a job ran at the signal: it had started
//! before, and had not ended when the signal was sent. So the signal waits for a running job, up to [`PATIENCE`],
//! and another round takes the place of one that does not count, up to [`TRIES`] times. The long version fails
//! if a shape has no round that counts; the short one prints it, since a busy machine may be the reason.
//!
//! A signal during the start counts by the same rule: the program has then spawned jobs, as one that
//! takes up work left by its last run. A second signal that comes after the shutdown's end leaves no report,
//! so such a round does not count either. No server may start after the signal, and its absence is no failure.
//!
//! | variable         | meaning                                                                  |
//! |------------------|--------------------------------------------------------------------------|
//! | `DEPLOY_ROUNDS`  | number of rounds; the bound on the end is strict                         |
//! | `DEPLOY_SEED`    | a seed that a round printed: sends the same load, though with other timing |
//! | `DEPLOY_SHAPE`   | runs the shapes with this text in their names                            |
//! | `DEPLOY_AT_ONCE` | number of rounds at once; defaults to 1                                  |
#![allow(clippy::print_stdout, reason = "a failure is to be repeated")]

mod account;
mod clients;
mod program;
mod shapes;

use std::{
    env, fs,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::{Request, StatusCode, body::Bytes};
use serde_json::json;
use tokio::{
    process::Command,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use self::{
    account::{Findings, Log, check, printed, summary},
    clients::{Client, Orders},
    shapes::{Load, Program, Shape, Signals, TABLE},
};
use crate::support::{
    Random,
    http::{Connection, send},
    process::{Process, empty_folder, example},
};

/// Time from the grace to the end of the program.
const TOLERANCE: Duration = Duration::from_millis(250);
/// The same in the short version, which may share its cores with other tests.
const GENEROUS: Duration = Duration::from_secs(5);
/// Maximum number of rounds for one that counts.
const TRIES: u64 = 5;
/// Maximum delay of the signal until a job runs. On a busy machine a client may have sent none yet.
const PATIENCE: Duration = Duration::from_secs(5);

fn program(log: &Path, folder: &Path, settings: &[(&str, String)]) -> Process {
    Process::start(with_settings(&mut example("graceful_shutdown", folder), log, settings))
}

fn with_settings<'a>(
    command: &'a mut Command,
    log: &Path,
    settings: &[(&str, String)],
) -> &'a mut Command {
    command.env("LOG", log).env("RUST_BACKTRACE", "0").envs(settings.iter().cloned())
}

/// A pipe that is full, and its reader.
fn full_pipe() -> (UnixStream, UnixStream) {
    use std::io::Write;

    let (reader, mut pipe) = UnixStream::pair().unwrap();
    pipe.set_nonblocking(true).unwrap();
    while pipe.write(&[b'.'; 4096]).is_ok() {}
    while pipe.write(b".").is_ok() {}
    pipe.set_nonblocking(false).unwrap();
    (reader, pipe)
}

/// Threads that spin until this is dropped, one for each core.
struct BusyLoops(Arc<AtomicBool>);

impl BusyLoops {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..thread::available_parallelism().unwrap().get() {
            let over = over.clone();
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(over)
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The log as soon as a job runs, or after [`PATIENCE`].
async fn log_with_a_running_job(path: &Path) -> Log {
    let began = Instant::now();
    loop {
        let log = Log::read(path);
        if log.runs_until(&log) || began.elapsed() > PATIENCE {
            return log;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// The result of a round.
struct Round {
    /// A job ran at the signal.
    counts: bool,
    /// How much later than its grace the program ended, in ms. Negative: earlier.
    late: i64,
    findings: Findings,
    acknowledged: usize,
}

async fn round(shape: &'static Shape, seed: u64, is_beside_loops: bool) -> Round {
    let mut random = Random(seed);
    let load = Load::random(shape, &mut random);
    let folder = empty_folder(&format!("deploys-{seed}"));
    let path = folder.join("jobs.log");
    let mut command = match shape.program {
        Program::Example => example("graceful_shutdown", &folder),
        Program::Own => program::command(&folder),
    };
    with_settings(&mut command, &path, &load.settings(shape));
    let unread = shape.is_unread.then(|| {
        let (reader, pipe) = full_pipe();
        command.stderr(Stdio::from(OwnedFd::from(pipe)));
        reader
    });
    let loops = is_beside_loops.then(BusyLoops::start);
    let program = Process::start(&mut command);
    // It holds the writer's end of the full pipe.
    drop(command);
    let orders = Arc::new(Mutex::new(Orders::default()));
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    if shape.signals == Signals::StartUp {
        program.stdout.line_with("constructed").await;
        let ids = (0..load.boot_jobs).map(|n| (format!("boot.{n}"), "work"));
        orders.lock().unwrap().kinds.extend(ids);
    } else {
        let address = program.address().await;
        let mut client = |name| {
            let (orders, over) = (orders.clone(), over.clone());
            Client { name, random: Random(random.next()), address, orders, over }
        };
        for name in 0..load.clients {
            clients.spawn(client(name).order(shape.kinds, load.longest));
        }
        for (name, other) in (load.clients..).zip(shape.others) {
            clients.spawn(client(name).repeat(*other));
        }
    }
    sleep(Duration::from_millis(load.signal_after)).await;
    let before = log_with_a_running_job(&path).await;
    let signalled = Instant::now();
    program.terminate().await;
    let counts = before.runs_until(&Log::read(&path));
    if let Some(pause) = load.second_after {
        sleep(Duration::from_millis(pause)).await;
        program.try_terminate().await;
    }
    let ended = program.ended().await;
    let took = signalled.elapsed();
    let late = i64::try_from(took.as_millis()).unwrap() - i64::try_from(load.grace).unwrap();
    drop((loops, unread));
    over.store(true, Ordering::Relaxed);
    let all_over = async {
        while let Some(client) = clients.join_next().await {
            client.expect("a client does not panic");
        }
    };
    if timeout(PATIENCE, all_over).await.is_err() {
        // The program is gone. They have reached another one, which has the port by now, and does not answer.
        println!("{}, seed {seed}: {} clients were given up", shape.name, clients.len());
        clients.shutdown().await;
    }
    let orders = orders.lock().unwrap();
    let acknowledged = orders.acknowledged.len();
    // `serve` had returned before the second signal, which then has its default effect.
    let has_returned = ended.stderr.contains("; since the signal: drained in");
    if shape.signals == Signals::Later && ended.code.is_none() && has_returned {
        println!("{}, seed {seed}: ended before the second signal, NOT COUNTED", shape.name);
        return Round { counts: false, late, findings: Findings::default(), acknowledged };
    }
    let mut findings = check(&ended, Log::read(&path), &orders);
    if shape.has_time && ended.code != Some(0) {
        findings.misnamed.push(format!("exit code {:?} in spite of enough time", ended.code));
    }
    println!(
        "{}, seed {seed}{}{}: {} acknowledged of {}; exit {:?}, {late} ms after the grace of {}; {}",
        shape.name,
        if is_beside_loops { ", beside busy loops" } else { "" },
        if counts { "" } else { ", NOT COUNTED" },
        acknowledged,
        orders.kinds.len(),
        ended.code,
        load.grace,
        summary(&printed(&ended)),
    );
    if findings.is_empty() {
        drop(fs::remove_dir_all(&folder));
    } else {
        println!("    {findings:#?}\n    {load:?}\n    {ended:#?}");
    }
    Round { counts, late, findings, acknowledged }
}

/// The rounds of a shape.
#[derive(Clone, Default)]
struct Tally {
    rounds: usize,
    not_counted: usize,
    acknowledged: usize,
    latest: Option<i64>,
    /// Rounds that ended after the bound, where there is one.
    late: usize,
    lost: usize,
    twice: usize,
    misnamed: usize,
}

impl Tally {
    fn add(&mut self, round: &Round, bound: Option<i64>) {
        // A contradiction is one in a round that does not count, too.
        self.lost += round.findings.lost.len();
        self.twice += round.findings.twice.len();
        self.misnamed += round.findings.misnamed.len();
        self.late += usize::from(bound.is_some_and(|bound| round.late > bound));
        if round.counts {
            self.rounds += 1;
            self.acknowledged += round.acknowledged;
            self.latest = self.latest.max(Some(round.late));
        } else {
            self.not_counted += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.not_counted += other.not_counted;
        self.acknowledged += other.acknowledged;
        self.latest = self.latest.max(other.latest);
        self.late += other.late;
        self.lost += other.lost;
        self.twice += other.twice;
        self.misnamed += other.misnamed;
    }

    fn line(&self, name: &str) -> String {
        let latest = self.latest.map_or("-".to_owned(), |latest| latest.to_string());
        format!(
            "{name:<48} {:>6} {:>11} {:>12} {:>9} {:>5} {:>5} {:>5} {:>8}",
            self.rounds,
            self.not_counted,
            self.acknowledged,
            latest,
            self.late,
            self.lost,
            self.twice,
            self.misnamed
        )
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_loses_no_acknowledged_job_and_repeats_none() {
    let wanted = env::var("DEPLOY_SHAPE").unwrap_or_default();
    let shapes: Vec<_> = TABLE.iter().filter(|shape| shape.name.contains(&wanted)).collect();
    assert!(!shapes.is_empty(), "no shape has {wanted:?} in its name");
    let is_long = number("DEPLOY_ROUNDS").is_some();
    let rounds = number("DEPLOY_ROUNDS").unwrap_or(shapes.len() as u64);
    let seed = number("DEPLOY_SEED").unwrap_or_else(|| {
        u64::from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos())
    });
    let places = usize::try_from(number("DEPLOY_AT_ONCE").unwrap_or(1)).unwrap();
    let places = Arc::new(Semaphore::new(places));
    let tallies = Arc::new(Mutex::new(vec![Tally::default(); shapes.len()]));
    let bound = if is_long { TOLERANCE } else { GENEROUS };
    let bound = i64::try_from(bound.as_millis()).unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..rounds {
        let len = shapes.len() as u64;
        let index = usize::try_from(n % len).unwrap();
        let (shape, is_beside_loops) = (shapes[index], (n % len + n / len) % 2 == 1);
        let (place, tallies) = (places.clone().acquire_owned().await.unwrap(), tallies.clone());
        tasks.spawn(async move {
            for again in 0..TRIES {
                let round = round(shape, seed + n + again * 1_000_000, is_beside_loops).await;
                tallies.lock().unwrap()[index]
                    .add(&round, Some(bound).filter(|_| shape.has_free_worker));
                if round.counts {
                    break;
                }
            }
            drop(place);
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("a round does not panic");
    }
    let tallies = tallies.lock().unwrap();
    let mut total = Tally::default();
    println!(
        "{:<48} rounds not counted acknowledged latest ms late  lost twice misnamed",
        "load shape"
    );
    for (shape, tally) in shapes.iter().zip(tallies.iter()) {
        let mark = if shape.has_free_worker { "" } else { " (no free worker)" };
        println!("{}", tally.line(&format!("{}{mark}", shape.name)));
        total.merge(tally);
    }
    println!("{}", total.line("total"));
    assert_eq!((total.lost, total.twice, total.misnamed), (0, 0, 0), "lost, twice, misnamed");
    assert_eq!(total.late, 0, "rounds that ended more than {bound} ms after their grace");
    assert!(total.rounds > 0, "no round counts");
    let all_count = tallies.iter().all(|tally| tally.rounds > 0);
    assert!(all_count || !is_long, "a shape has no round that counts");
}

/// A program that listens, in a folder of its own.
async fn listening(name: &str, settings: &[(&str, String)]) -> (Process, SocketAddr) {
    let folder = empty_folder(name);
    let program = program(&folder.join("jobs.log"), &folder, settings);
    let address = program.address().await;
    (program, address)
}

async fn order(address: SocketAddr, id: &str, kind: &str, ms: u64) {
    let order = json!({ "id": id, "kind": kind, "ms": ms }).to_string();
    let request = Request::post("/jobs").header("content-type", "application/json");
    let answer = send(address, request.body(Full::<Bytes>::from(order)).unwrap()).await.unwrap();
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
}

#[tokio::test]
async fn sigterm_with_nothing_to_do_ends_the_program_at_once() {
    for runtime in ["current_thread", "multi_thread"] {
        let name = format!("deploys-idle-{runtime}");
        let (program, _) = listening(&name, &[("RUNTIME", runtime.into())]).await;
        let signalled = Instant::now();
        program.terminate().await;
        let ended = program.ended().await;
        let took = signalled.elapsed();
        println!("{runtime}: ended {took:?} after SIGTERM");
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        // It takes about 10 ms. The bound is for busy machines.
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test]
async fn later_sigterm_closes_now_and_its_repeat_changes_nothing() {
    for runtime in ["current_thread", "multi_thread"] {
        let name = format!("deploys-second-{runtime}");
        let (program, address) = listening(&name, &[("RUNTIME", runtime.into())]).await;
        order(address, "long", "work", 3_600_000).await;
        order(address, "stuck", "blocking", 3_600_000).await;
        let mut stream = Connection::open(address).await.unwrap();
        let request = Request::get("/slow?ms=3600000").body(Full::<Bytes>::default()).unwrap();
        let response = stream.begin(request).await.unwrap();
        program.terminate().await;
        program.stderr.line_with("shutting down").await;
        // Within a second it would be a repeat.
        sleep(Duration::from_millis(1_100)).await;
        program.terminate().await;
        program.stderr.line_with("closing now").await;
        // This one is within a second of the last.
        program.try_terminate().await;
        let ended = program.ended().await;
        drop(response);
        let report = &printed(&ended)["report"];
        assert_eq!(report["jobs"]["cancelled"][0]["name"], "long", "{report}");
        assert_eq!(report["jobs"]["abandoned"][0]["name"], "stuck", "{report}");
        assert_eq!(report["server"], "unfinished", "{report}");
        assert_eq!(ended.code, Some(1));
        let elapsed = &report["jobs"]["elapsed"];
        assert!(elapsed.as_f64() < Some(10.0), "far from the grace of 25 s: {report}");
    }
}

#[tokio::test]
async fn signal_as_soon_as_the_server_is_up_ends_it_in_order() {
    // The line is printed before the server is polled for the first time.
    let (program, _) = listening("deploys-early", &[]).await;
    program.terminate().await;
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert_eq!(printed(&ended)["report"]["server"], "finished");
}
