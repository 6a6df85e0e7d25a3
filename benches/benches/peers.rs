//! Time per job, against schedulers of other languages on the same load: each in a process of its
//! own, which is asked for a round when its turn comes, and waits meanwhile. They have one thread
//! each, so the goals are our current-thread runtime's.
//!
//! What they need is installed into `target/peers` at the first run. Who cannot be had is left
//! out, and that is said.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use tower_jobs_benches::{
    Chart, Detached, Entrant, Flavour, Load, Report, Times, is_brief, noop, per_job, scheduler,
};

/// The load's own limit; the scripts have it as well.
const LIMIT: Option<usize> = Some(100);

const SINGLE: &str = "**tower-jobs**, detached, current-thread";
const MULTI: &str = "**tower-jobs**, detached, multi-thread";

/// How long one step of an installation may take.
const INSTALLATION: Duration = Duration::from_secs(120);
/// How long a round may take.
const ROUND: Duration = Duration::from_secs(60);

/// What runs the scripts of a language.
struct Host {
    program: &'static str,
    least: (u32, u32),
    /// Copied to where it runs. The first one says which packages are wanted.
    files: &'static [(&'static str, &'static str)],
    /// Commands that install them there; one with a slash is itself there.
    install: &'static [&'static [&'static str]],
    /// What then runs a script.
    runs: &'static str,
    peers: &'static [Entry],
}

struct Entry {
    name: &'static str,
    script: &'static str,
    /// What our time should be of theirs.
    goal: f64,
}

const HOSTS: [Host; 2] = [
    Host {
        program: "python3",
        // `asyncio.Runner`; below it, aiojobs needs a package more.
        least: (3, 11),
        files: &[
            ("requirements.txt", include_str!("../peers/requirements.txt")),
            ("run_aiojobs.py", include_str!("../peers/run_aiojobs.py")),
        ],
        install: &[
            &["python3", "-m", "venv", "--clear", "venv"],
            &[
                "venv/bin/python",
                "-m",
                "pip",
                "install",
                "--no-input",
                "--retries=0",
                "--timeout=20",
                "--requirement=requirements.txt",
            ],
        ],
        runs: "venv/bin/python",
        peers: &[Entry { name: "`aiojobs`", script: "run_aiojobs.py", goal: 0.05 }],
    },
    Host {
        program: "node",
        // p-queue says so.
        least: (20, 0),
        files: &[
            ("package-lock.json", include_str!("../peers/package-lock.json")),
            ("package.json", include_str!("../peers/package.json")),
            ("rounds.mjs", include_str!("../peers/rounds.mjs")),
            ("run-p-queue.mjs", include_str!("../peers/run-p-queue.mjs")),
            ("run-fastq.mjs", include_str!("../peers/run-fastq.mjs")),
        ],
        install: &[&[
            "npm",
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--fetch-retries=0",
            "--fetch-timeout=20000",
        ]],
        runs: "node",
        peers: &[
            Entry { name: "`p-queue`", script: "run-p-queue.mjs", goal: 0.1 },
            Entry { name: "`fastq`", script: "run-fastq.mjs", goal: 0.25 },
        ],
    },
];

impl Host {
    /// Where its packages are, once they are installed there.
    fn ready(&self) -> Result<PathBuf, String> {
        let Self { program, least, .. } = self;
        let version = version(program).ok_or_else(|| format!("there is no {program} here"))?;
        if version < *least {
            let ((major, minor), (least, least_minor)) = (version, least);
            return Err(format!(
                "{program} is {major}.{minor}, not {least}.{least_minor} or later"
            ));
        }
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
        let directory = directory.join(program);
        fs::create_dir_all(&directory).expect("a directory in target");
        for (name, text) in self.files {
            fs::write(directory.join(name), text).expect("a file in target");
        }
        let (installed, wanted) = (directory.join("installed"), self.files[0].1);
        if fs::read_to_string(&installed).is_ok_and(|installed| installed == wanted) {
            return Ok(directory);
        }
        for command in self.install {
            run(command, &directory)?;
        }
        fs::write(installed, wanted).expect("a file in target");
        Ok(directory)
    }
}

fn command(program: &str, directory: &Path) -> Command {
    let mut command = if program.contains('/') {
        Command::new(directory.join(program))
    } else {
        Command::new(program)
    };
    command.current_dir(directory);
    command
}

/// The first two numbers that a program says of itself.
fn version(program: &str) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let told = String::from_utf8_lossy(&output.stdout);
    let mut numbers = told.trim_start_matches(|c: char| !c.is_ascii_digit()).split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Runs a step of an installation, whose output is left in a file.
fn run(words: &[&str], directory: &Path) -> Result<(), String> {
    let told = directory.join("installation.log");
    let log = File::create(&told).expect("a file in target");
    let mut child = command(words[0], directory)
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle to a file"))
        .stderr(log)
        .spawn()
        .map_err(|error| format!("{} does not run: {error}", words[0]))?;
    let end = Instant::now() + INSTALLATION;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the state of a child") {
            break status;
        }
        if Instant::now() >= end {
            child.kill().expect("a child that can be killed");
            break child.wait().expect("a child that has ended");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let words = words.join(" ");
    let said = told.display();
    status.success().then_some(()).ok_or_else(|| format!("`{words}` failed ({status}): see {said}"))
}

/// A script that runs, and awaits being asked.
struct Peer {
    entry: &'static Entry,
    child: Child,
    asks: Option<ChildStdin>,
    lines: Receiver<String>,
    version: String,
}

impl Peer {
    fn start(entry: &'static Entry, host: &Host, directory: &Path) -> Self {
        let mut child = command(host.runs, directory)
            .arg(entry.script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                let at = directory.display();
                panic!("{} does not run: {error}; remove {at} to install it anew", host.runs)
            });
        let asks = child.stdin.take();
        let told = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        thread::spawn(move || told.lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
        let mut peer = Self { entry, child, asks, lines, version: String::new() };
        peer.version = peer.line();
        peer
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(ROUND).unwrap_or_else(|error| {
            panic!("{}: no answer within {ROUND:?}: {error}", self.entry.script)
        })
    }

    /// Nanoseconds per job of one round.
    fn round(&self, jobs: usize) -> f64 {
        let mut asks = self.asks.as_ref().expect("it is open until the end");
        writeln!(asks, "{jobs}").expect("a peer that reads");
        self.line().parse().expect("a number")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its input ends it, unless it hangs; then so would waiting.
        drop(self.asks.take());
        if thread::panicking() {
            return;
        }
        let status = self.child.wait().expect("a child that has ended");
        assert!(status.success(), "{} ended with {status}", self.entry.script);
    }
}

fn peers(report: &mut Report) -> Vec<Peer> {
    let mut peers = Vec::new();
    for host in &HOSTS {
        match host.ready() {
            Ok(directory) => {
                peers.extend(host.peers.iter().map(|entry| Peer::start(entry, host, &directory)));
            }
            Err(why) => {
                let names: Vec<_> = host.peers.iter().map(|entry| entry.name).collect();
                report.leave_out(&names.join(" and "), &why);
            }
        }
    }
    peers
}

/// One of ours, and the runtime it has to itself.
type Ours = (Entrant, tokio::runtime::Runtime);

/// Everybody's turns on a backlog of one size.
fn compare(
    report: &mut Report,
    ours: &[Ours],
    peers: &[Peer],
    (size, jobs): (&str, usize),
    rounds: usize,
) {
    let load = Load::backlog(jobs);
    let names = ours.iter().map(|(entrant, _)| entrant.name);
    let names: Vec<_> = names.chain(peers.iter().map(|peer| peer.entry.name)).collect();
    let times = Times::take(&names, rounds, |contender| match ours.get(contender) {
        Some((entrant, runtime)) => per_job(entrant.time(runtime, load), load.total()),
        None => peers[contender - ours.len()].round(jobs),
    });
    let title = format!("No-op, backlog of {size} behind limit 100, other languages");
    report.heading(&title);
    report.text(&format!("Medians of {rounds} rounds."));
    report.table(&times.table("ns per job", &names[ours.len()..]));
    let key = format!("backlog-{}", size.replace(' ', ""));
    let chart = Chart::bars(title, "ns per job, median; less is better", times.medians());
    report.chart(&key, &chart);
    for Entry { name, goal, .. } in HOSTS.iter().flat_map(|host| host.peers) {
        let title = format!("backlog of {size}, {SINGLE}, of {name}");
        report.goals.at_most(title, times.ratio(SINGLE, name), *goal, *goal);
    }
}

fn main() {
    // Other runtimes compile while they run: they have some rounds for that, which do not count.
    let (small, large, warm_up) =
        if is_brief() { ((1000, 1), (2000, 1), 0) } else { ((10_000, 21), (1_000_000, 5), 20) };
    let mut report = Report::new("peers");
    let peers = peers(&mut report);
    let versions: Vec<_> = peers.iter().map(|peer| format!("- {}", peer.version)).collect();
    report.text(&versions.join("\n"));
    for _ in 0..warm_up {
        for peer in &peers {
            peer.round(small.0);
        }
    }
    let ours = [(SINGLE, Flavour::CurrentThread), (MULTI, Flavour::MultiThread)];
    let ours = ours.map(|(name, flavour)| {
        (Entrant::new(name, Detached(scheduler(LIMIT), noop)), flavour.runtime())
    });
    compare(&mut report, &ours, &peers, ("10 000", small.0), small.1);
    compare(&mut report, &ours, &peers, ("1 M", large.0), large.1);
    report.finish();
}
