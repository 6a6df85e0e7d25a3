//! The load shapes.

use crate::support::Random;

/// The program that is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// `examples/graceful_shutdown.rs`.
    Example,
    /// `program.rs`, which has the jobs that the example does not have.
    Own,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signals {
    One,
    /// A second one within 50 ms, which is a repeat.
    Doubled,
    /// A second one after more than a second, which closes at once.
    Later,
    /// While the program starts. Its jobs are those that it spawned before it listens.
    StartUp,
}

/// A client that orders no jobs of `kinds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Other {
    /// Reads a long answer slowly, or events that end at the signal. Of the example.
    Reader,
    /// Reads a stream without an end. A job waits for the end of its response.
    Stream,
    /// Sends a body without an end.
    Upload,
    /// Talks with a job over an upgraded connection.
    WebSocket,
}

#[derive(Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) program: Program,
    pub(super) runtime: &'static str,
    /// The kinds of jobs that the clients order.
    pub(super) kinds: &'static [&'static str],
    pub(super) others: &'static [Other],
    pub(super) signals: Signals,
    /// The grace is long enough for all jobs, so the program must exit with 0.
    pub(super) has_time: bool,
    /// One worker is free at all times, so the program must end with the grace.
    pub(super) has_free_worker: bool,
    /// Jobs of one key at once, of the kinds that have a key. 0 = any number.
    pub(super) keyed: u64,
    /// Standard error is a full pipe that the test does not read.
    pub(super) is_unread: bool,
    /// Longest time in ms that the hooks block their threads.
    pub(super) failure_hook: u64,
    pub(super) unstarted_hook: u64,
}

/// Jobs that end well if they have the time.
const HEALTHY: &[&str] = &["work", "blocking", "spawning", "after_response"];
const ALL: &[&str] = &["work", "blocking", "spawning", "after_response", "failing", "panicking"];
/// Jobs that write no log line while the scheduler is open.
const SILENT: &[&str] = &["work", "blocking", "after_response", "cooperative", "late_failing"];

const CURRENT: &str = "current_thread";
const MULTI: &str = "multi_thread";

const fn example(name: &'static str, runtime: &'static str) -> Shape {
    Shape {
        name,
        program: Program::Example,
        runtime,
        kinds: ALL,
        others: &[],
        signals: Signals::One,
        has_time: false,
        has_free_worker: true,
        keyed: 2,
        is_unread: false,
        failure_hook: 0,
        unstarted_hook: 0,
    }
}

const fn own(name: &'static str, runtime: &'static str, kinds: &'static [&'static str]) -> Shape {
    Shape { program: Program::Own, kinds, ..example(name, runtime) }
}

const fn beside(name: &'static str, runtime: &'static str, others: &'static [Other]) -> Shape {
    Shape { others, ..own(name, runtime, &["work", "cooperative"]) }
}

/// Two of the four workers at most are held up by busy jobs, or by the failing jobs' hooks and log lines.
pub(super) const TABLE: &[Shape] = &[
    example("mixed jobs, current-thread", CURRENT),
    example("mixed jobs, multi-thread", MULTI),
    Shape { has_time: true, kinds: HEALTHY, ..example("enough time, current-thread", CURRENT) },
    Shape { has_time: true, kinds: HEALTHY, ..example("enough time, multi-thread", MULTI) },
    Shape { signals: Signals::Doubled, ..example("doubled signal, current-thread", CURRENT) },
    Shape { signals: Signals::Doubled, ..example("doubled signal, multi-thread", MULTI) },
    Shape { signals: Signals::Later, ..example("later signal, current-thread", CURRENT) },
    Shape { signals: Signals::Later, ..example("later signal, multi-thread", MULTI) },
    Shape {
        others: &[Other::Reader, Other::Reader, Other::Reader],
        ..example("slow readers, current-thread", CURRENT)
    },
    Shape {
        others: &[Other::Reader, Other::Reader, Other::Reader],
        ..example("slow readers, multi-thread", MULTI)
    },
    Shape { kinds: &["blocking"], ..example("blocking jobs, multi-thread", MULTI) },
    Shape {
        has_free_worker: false,
        ..own("busy thread, current-thread", CURRENT, &["busy", "work", "work"])
    },
    own("busy threads, multi-thread", MULTI, &["busy", "work", "cooperative"]),
    Shape {
        has_free_worker: false,
        keyed: 0,
        ..own("all threads busy, multi-thread", MULTI, &["busy", "busy", "work"])
    },
    Shape { is_unread: true, ..own("unread logs, current-thread", CURRENT, SILENT) },
    Shape { is_unread: true, ..own("unread logs, multi-thread", MULTI, SILENT) },
    Shape {
        is_unread: true,
        ..own("unread logs of failures, multi-thread", MULTI, &["failing", "work", "late_failing"])
    },
    Shape {
        failure_hook: 5_000,
        ..own("slow on_failure, current-thread", CURRENT, &["late_failing", "work"])
    },
    Shape {
        failure_hook: 2_000,
        ..own("slow on_failure, multi-thread", MULTI, &["failing", "late_failing", "work"])
    },
    Shape { unstarted_hook: 200, ..own("slow on_unstarted, current-thread", CURRENT, &["work"]) },
    Shape { unstarted_hook: 200, ..own("slow on_unstarted, multi-thread", MULTI, &["work"]) },
    beside("streams, current-thread", CURRENT, &[Other::Stream, Other::Stream]),
    beside("streams, multi-thread", MULTI, &[Other::Stream, Other::Stream]),
    beside("websockets, current-thread", CURRENT, &[Other::WebSocket, Other::WebSocket]),
    beside("websockets, multi-thread", MULTI, &[Other::WebSocket, Other::WebSocket]),
    beside("uploads, current-thread", CURRENT, &[Other::Upload, Other::Upload]),
    beside("uploads, multi-thread", MULTI, &[Other::Upload, Other::Upload]),
    own("keys and run timeouts, multi-thread", MULTI, &["keyed", "overdue", "work"]),
    Shape { signals: Signals::StartUp, ..own("start-up signal, current-thread", CURRENT, &[]) },
    Shape { signals: Signals::StartUp, ..own("start-up signal, multi-thread", MULTI, &[]) },
];

/// The settings and the load of a round.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) limit: u64,
    pub(super) grace: u64,
    connection_grace: u64,
    readiness_delay: u64,
    pub(super) clients: u64,
    /// The longest time of a job in ms. One in eight takes ten times as long.
    pub(super) longest: u64,
    pub(super) signal_after: u64,
    pub(super) second_after: Option<u64>,
    pub(super) boot_jobs: u64,
    start: u64,
    failure_hook: u64,
    unstarted_hook: u64,
    unstarted_grace: u64,
    heeds: bool,
}

impl Load {
    pub(super) fn random(shape: &Shape, random: &mut Random) -> Self {
        let is_later = shape.signals == Signals::Later;
        let is_start_up = shape.signals == Signals::StartUp;
        let few = shape.unstarted_hook > 0;
        let grace = 100 + random.below(700) + if is_later { 3_000 } else { 0 };
        let start = if is_start_up { 50 + random.below(250) } else { 0 };
        let mut load = Self {
            limit: 1 + random.below(if few { 3 } else { 40 }),
            grace,
            connection_grace: random.below(grace + 50),
            readiness_delay: if random.one_in(2) { random.below(100) } else { 0 },
            clients: if is_start_up { 0 } else { 1 + random.below(12) },
            longest: (1 + random.below(80)) * if is_later { 20 } else { 1 },
            signal_after: 50 + random.below(350),
            second_after: match shape.signals {
                Signals::Doubled => Some(random.below(50)),
                Signals::Later => Some(1_050 + random.below(500)),
                Signals::One | Signals::StartUp => None,
            },
            boot_jobs: if is_start_up { 1 + random.below(12) } else { 0 },
            start,
            failure_hook: random.below(shape.failure_hook + 1),
            unstarted_hook: random.below(shape.unstarted_hook + 1),
            unstarted_grace: random.below(grace / 2),
            heeds: random.one_in(2),
        };
        if shape.has_time {
            load = Self {
                limit: 20 + load.limit / 2,
                grace: 30_000,
                connection_grace: 15_000,
                ..load
            };
        }
        if is_start_up {
            // Also shortly after the server is up.
            load.signal_after = random.below(start + 50);
        }
        load
    }

    pub(super) fn settings(&self, shape: &Shape) -> Vec<(&'static str, String)> {
        [
            ("LIMIT", self.limit),
            ("GRACE_MS", self.grace),
            ("CONNECTION_GRACE_MS", self.connection_grace),
            ("READINESS_DELAY_MS", self.readiness_delay),
            ("KEYED", shape.keyed),
            ("FAILURE_HOOK_MS", self.failure_hook),
            ("UNSTARTED_HOOK_MS", self.unstarted_hook),
            ("UNSTARTED_GRACE_MS", self.unstarted_grace),
            ("BOOT_JOBS", self.boot_jobs),
            ("BOOT_MS", 600),
            ("START_MS", self.start),
            ("HEEDS", u64::from(self.heeds)),
        ]
        .into_iter()
        .map(|(name, value)| (name, value.to_string()))
        .chain([("RUNTIME", shape.runtime.to_owned())])
        .collect()
    }
}
