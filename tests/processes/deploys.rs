//! Deploys under load: `examples/graceful_shutdown.rs` as a process gets SIGTERM at a random moment.
//! Its log is compared with its report. The long version:
//!
//! ```sh
//! DEPLOY_ROUNDS=200 cargo test --all-features --test processes deploys -- --nocapture
//! ```
//!
//! A round that fails prints its seed. `DEPLOY_SEED=seed DEPLOY_ROUNDS=1` sends the same load again,
//! though with other timing.
#![allow(clippy::print_stdout, reason = "a failure is to be repeated")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes};
use serde_json::{Value, json};
use tokio::{process::Command, task::JoinSet, time::sleep};
use tower_jobs::BoxError;

use crate::support::{
    Random,
    http::{Connection, send},
    process::{Ended, Process, empty_folder, example},
    within,
};

const TOLERANCE: Duration = Duration::from_millis(250);
/// Jobs that end well if they have the time.
const HEALTHY: &[&str] = &["work", "blocking", "spawning", "after_response"];
const ALL: &[&str] = &["work", "blocking", "spawning", "after_response", "failing", "panicking"];

/// The settings and the load of a round.
#[derive(Debug)]
struct Shape {
    runtime: &'static str,
    limit: u64,
    grace: u64,
    connection_grace: u64,
    readiness_delay: u64,
    clients: u64,
    /// Clients that read an endless stream, or a long answer slowly.
    readers: u64,
    /// The kinds of jobs that the clients order.
    kinds: &'static [&'static str],
    /// The longest time of a job in ms. One in eight takes ten times as long.
    longest: u64,
    signal_after: Duration,
    second_after: Option<Duration>,
}

impl Shape {
    fn random(random: &mut Random) -> Self {
        let healthy = random.one_in(3);
        let grace = 100 + random.below(700);
        if healthy {
            // With time for all jobs, the program must exit with 0.
            let limit = 20 + random.below(20);
            return Self {
                limit,
                grace: 30_000,
                connection_grace: 15_000,
                readers: 0,
                kinds: HEALTHY,
                second_after: None,
                ..Self::random_within(grace, random)
            };
        }
        Self::random_within(grace, random)
    }

    fn random_within(grace: u64, random: &mut Random) -> Self {
        Self {
            runtime: random.pick(&["current_thread", "multi_thread"]),
            limit: 1 + random.below(40),
            grace,
            connection_grace: random.below(grace + 50),
            readiness_delay: if random.one_in(2) { random.below(100) } else { 0 },
            clients: 1 + random.below(12),
            readers: random.below(5),
            kinds: ALL,
            longest: 1 + random.below(80),
            signal_after: random.ms(400),
            second_after: random.one_in(6).then(|| random.ms(grace)),
        }
    }
}

/// The jobs that the clients ordered.
#[derive(Default)]
struct Orders {
    kinds: BTreeMap<String, &'static str>,
    acknowledged: BTreeSet<String>,
}

struct Client {
    name: u64,
    random: Random,
    address: SocketAddr,
    orders: Arc<Mutex<Orders>>,
    over: Arc<AtomicBool>,
}

impl Client {
    /// Orders jobs until the server is gone.
    async fn order(mut self, kinds: &[&'static str], longest: u64) {
        let keep_alive = !self.random.one_in(3);
        let mut connection = None;
        for n in 0.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("{}.{n}", self.name);
            let kind = self.random.pick(kinds);
            let factor = if self.random.one_in(8) { 10 } else { 1 };
            let ms = self.random.below(longest) * factor;
            self.orders.lock().unwrap().kinds.insert(id.clone(), kind);
            let order = json!({ "id": id, "kind": kind, "ms": ms }).to_string();
            let request = Request::post("/jobs")
                .header("content-type", "application/json")
                .body(Full::<Bytes>::from(order))
                .unwrap();
            let mut open = match connection.take() {
                Some(open) => open,
                None => match Connection::open(self.address).await {
                    Ok(open) => open,
                    Err(_) => return,
                },
            };
            match open.send(request).await {
                Ok(answer) if answer.status == StatusCode::ACCEPTED => {
                    self.orders.lock().unwrap().acknowledged.insert(id);
                }
                Ok(answer) => {
                    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
                }
                // Without an answer, the job may or may not have been accepted.
                Err(_) => continue,
            }
            if keep_alive {
                connection = Some(open);
            }
            if self.random.one_in(2) {
                sleep(self.random.ms(20)).await;
            }
        }
    }

    /// Reads an endless stream, or a long answer, perhaps slowly.
    async fn read(mut self) -> Result<(), BoxError> {
        let path = match self.random.below(3) {
            0 => "/events".to_owned(),
            _ => format!("/slow?ms={}", self.random.below(1_500)),
        };
        let slowly = self.random.one_in(2);
        while !self.over.load(Ordering::Relaxed) {
            let mut connection = Connection::open(self.address).await?;
            let request = Request::get(&path).body(Full::<Bytes>::default())?;
            let mut body = connection.begin(request).await?.into_body();
            while let Some(frame) = body.frame().await {
                frame?;
                if slowly {
                    sleep(self.random.ms(100)).await;
                }
            }
        }
        Ok(())
    }
}

/// The log of the program, by job id.
#[derive(Debug, Default)]
struct Log {
    started: BTreeSet<String>,
    ended: BTreeSet<String>,
    unstarted: BTreeSet<String>,
}

impl Log {
    fn read(path: &Path) -> Self {
        let mut log = Self::default();
        for line in fs::read_to_string(path).unwrap().lines() {
            let (what, id) = line.split_once(' ').unwrap();
            let ids = match what {
                "start" => &mut log.started,
                "end" => &mut log.ended,
                "unstarted" => &mut log.unstarted,
                _ => panic!("{line:?} in the log"),
            };
            assert!(ids.insert(id.to_owned()), "twice: {line:?}");
        }
        log
    }
}

/// The last line of the output.
fn printed(ended: &Ended) -> Value {
    let line = ended.stdout.lines().last().expect("it prints a report");
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {ended:#?}"))
}

fn has_failed(report: &Value) -> bool {
    let jobs = report["jobs"].as_object().unwrap();
    jobs.values().any(|value| value.as_array().is_some_and(|jobs| !jobs.is_empty()))
        || report["server"] != "finished"
}

/// Compares report, log and exit code with the orders of the clients.
fn check(ended: &Ended, log: &Log, orders: &Orders) {
    let printed = printed(ended);
    let (report, stats) = (&printed["report"], &printed["stats"]);
    let named = |outcome: &str| -> BTreeSet<String> {
        let jobs = report["jobs"][outcome].as_array().unwrap();
        let names: BTreeSet<_> =
            jobs.iter().map(|job| job["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names.len(), jobs.len(), "named twice as {outcome}: {report}");
        names
    };
    let outcomes = ["failed", "panicked", "timed_out", "cancelled", "never_started", "abandoned"];
    let [failed, panicked, timed_out, cancelled, never_started, abandoned] = outcomes.map(named);
    let all = [&failed, &panicked, &timed_out, &cancelled, &never_started, &abandoned];
    let bad: BTreeSet<_> = all.into_iter().flatten().cloned().collect();
    assert_eq!(bad.len(), all.iter().map(|ids| ids.len()).sum::<usize>(), "two outcomes: {report}");
    let count = |name: &str| usize::try_from(stats[name].as_u64().unwrap()).unwrap();
    let kind = |id: &String| {
        orders.kinds.get(id).copied().unwrap_or_else(|| {
            assert!(id.ends_with("/child"), "{id} was not ordered");
            "work"
        })
    };

    // Not one acknowledged job is lost.
    for id in &orders.acknowledged {
        let ran = log.started.contains(id) && log.ended.contains(id);
        assert!(ran || bad.contains(id), "{id} is lost");
    }
    // No job is left, and every accepted one is in the log or in the report.
    for gauge in ["deferred", "pending", "active", "skipped"] {
        assert_eq!(count(gauge), 0, "{gauge}");
    }
    let known = log.started.union(&bad).count();
    assert_eq!(count("accepted"), known, "as many as the log and the report name");
    let total = |outcome| count(outcome);
    assert_eq!(outcomes.map(total).iter().sum::<usize>() + count("completed"), known);

    // The report agrees with the log, name by name.
    assert_eq!(never_started, log.unstarted, "on_unstarted is given what the report names");
    for id in &log.started {
        assert!(!never_started.contains(id), "{id} never started, says the report");
        let cut_short = cancelled.contains(id) || timed_out.contains(id);
        if abandoned.contains(id) {
            // It may have ended later.
        } else if cut_short {
            assert!(!log.ended.contains(id), "{id} was cut short, says the report");
        } else if !(failed.contains(id) && kind(id) == "spawning") {
            assert!(log.ended.contains(id), "{id} has ended, says the report");
        }
    }
    let ended_as = |wanted: &str| {
        let left = |id: &&String| kind(id) == wanted && !abandoned.contains(*id);
        log.ended.iter().filter(left).count()
    };
    for id in &failed {
        assert!(matches!(kind(id), "failing" | "spawning"), "{id} is {}", kind(id));
    }
    let refused = failed.iter().filter(|id| kind(id) == "spawning").count();
    assert_eq!(count("failed"), ended_as("failing") + refused);
    assert!(panicked.iter().all(|id| kind(id) == "panicking"), "{panicked:?}");
    assert_eq!(count("panicked"), ended_as("panicking"));

    assert_eq!(ended.code, Some(i32::from(has_failed(report))), "{report}");
}

fn program(log: &Path, folder: &Path, settings: &[(&str, String)]) -> Process {
    let mut command: Command = example("graceful_shutdown", folder);
    command.env("LOG", log).env("RUST_BACKTRACE", "0").envs(settings.iter().cloned());
    Process::start(&mut command)
}

/// The result of a round.
struct Round {
    /// How much later than its grace the program ended, or zero.
    late: Duration,
    ended_well: bool,
    acknowledged: usize,
}

async fn round(seed: u64) -> Round {
    let mut random = Random(seed);
    let shape = Shape::random(&mut random);
    println!("seed {seed}: {shape:?}");
    let folder = empty_folder("deploys");
    let path = folder.join("jobs.log");
    let program = program(
        &path,
        &folder,
        &[
            ("RUNTIME", shape.runtime.to_owned()),
            ("LIMIT", shape.limit.to_string()),
            ("GRACE_MS", shape.grace.to_string()),
            ("CONNECTION_GRACE_MS", shape.connection_grace.to_string()),
            ("READINESS_DELAY_MS", shape.readiness_delay.to_string()),
        ],
    );
    let address = program.address().await;
    let orders = Arc::new(Mutex::new(Orders::default()));
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for name in 0..shape.clients + shape.readers {
        let (orders, over) = (orders.clone(), over.clone());
        let client = Client { name, random: Random(random.next()), address, orders, over };
        if name < shape.clients {
            clients.spawn(client.order(shape.kinds, shape.longest));
        } else {
            // The server may end before its answer does.
            clients.spawn(async { drop(client.read().await) });
        }
    }
    sleep(shape.signal_after).await;
    let signalled = Instant::now();
    program.terminate().await;
    if let Some(pause) = shape.second_after {
        sleep(pause).await;
        program.try_terminate().await;
    }
    let ended = program.ended().await;
    let late = signalled.elapsed().saturating_sub(Duration::from_millis(shape.grace));
    over.store(true, Ordering::Relaxed);
    while let Some(client) = within("the clients", clients.join_next()).await {
        client.expect("a client does not panic");
    }
    let orders = orders.lock().unwrap();
    check(&ended, &Log::read(&path), &orders);
    assert!(late <= TOLERANCE, "{late:?} late");
    if shape.kinds == HEALTHY {
        assert_eq!(ended.code, Some(0), "nothing was in its way: {ended:#?}");
    }
    let printed = printed(&ended);
    println!(
        "    {} acknowledged of {}; exit {:?}, {late:?} late; {}",
        orders.acknowledged.len(),
        orders.kinds.len(),
        ended.code,
        summary(&printed),
    );
    let ended_well = ended.code == Some(0);
    Round { late, ended_well, acknowledged: orders.acknowledged.len() }
}

fn summary(printed: &Value) -> String {
    let mut words = vec![format!("server {}", printed["report"]["server"])];
    for (name, value) in printed["report"]["jobs"].as_object().unwrap() {
        match value {
            Value::Array(jobs) if !jobs.is_empty() => words.push(format!("{name} {}", jobs.len())),
            Value::Number(number) => words.push(format!("{name} {number}")),
            _ => {}
        }
    }
    words.join(", ")
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_loses_no_acknowledged_job_and_repeats_none() {
    let rounds = number("DEPLOY_ROUNDS").unwrap_or(12);
    let seed = number("DEPLOY_SEED").unwrap_or_else(|| {
        u64::from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos())
    });
    let (mut latest, mut ended_well, mut acknowledged) = (Duration::ZERO, 0, 0);
    for n in 0..rounds {
        let round = round(seed + n).await;
        latest = latest.max(round.late);
        ended_well += usize::from(round.ended_well);
        acknowledged += round.acknowledged;
    }
    println!(
        "{rounds} rounds, {ended_well} of them with exit code 0; {acknowledged} jobs acknowledged; \
         the latest end was {latest:?} after its grace"
    );
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
        let elapsed = &report["jobs"]["elapsed"]["secs"];
        assert!(elapsed.as_u64() < Some(10), "far from the grace of 25 s: {report}");
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
