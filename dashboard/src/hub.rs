//! The ticks, and the event streams that show them.
//!
//! Invariants:
//! 1. One task makes a frame a second for all viewers, and none without viewers.
//! 2. A viewer keeps no frames. One that has missed a frame gets all figures anew, as `hello`.
//! 3. A stream holds up no shutdown: without `live_drain` it ends when it has shown that a drain began, or at once
//!    if one has begun before. With `live_drain` it ends when all schedulers are closed.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time,
};

use tower_jobs::Phase;

use crate::{
    clock::Clock,
    json::{Event, FailuresView, Overview, Part, Process, VERSION},
    text::Search,
    view::{Reader, Stuck},
    watched::Watched,
};

/// A comment keeps proxies awake after this time without an event.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Seconds between two `names` events.
const NAMES_EVERY: u64 = 10;
/// Number of failure groups in one event.
const CHANGED_GROUPS: usize = 20;

#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) clock: Arc<Clock>,
    pub(crate) process: Process,
    pub(crate) watched: Vec<Arc<Watched>>,
    pub(crate) stuck: Stuck,
    pub(crate) live_drain: bool,
    changed: Arc<Notify>,
    streams: Arc<Semaphore>,
    frames: watch::Sender<Arc<Frame>>,
    sent: Mutex<Sent>,
    is_ticking: AtomicBool,
}

/// The events of one tick, as they are sent.
#[derive(Debug, Default)]
struct Frame {
    number: u64,
    text: String,
    is_last: bool,
}

/// How far the frames have come.
#[derive(Debug)]
struct Sent {
    second: u64,
    names: u64,
    each: Vec<SentOf>,
}

#[derive(Clone, Debug, Default)]
struct SentOf {
    failures: u64,
    drain: Option<Option<Duration>>,
    is_closed: bool,
}

/// What a hub is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) clock: Arc<Clock>,
    pub(crate) process: Process,
    pub(crate) watched: Vec<Arc<Watched>>,
    pub(crate) changed: Arc<Notify>,
    pub(crate) stuck: Stuck,
    pub(crate) live_drain: bool,
    pub(crate) max_streams: usize,
}

impl Hub {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { clock, process, watched, changed, stuck, live_drain, max_streams } = parts;
        let each = vec![SentOf::default(); watched.len()];
        Arc::new(Self {
            sent: Mutex::new(Sent { second: clock.now().as_secs(), names: 0, each }),
            clock,
            process,
            watched,
            stuck,
            live_drain,
            changed,
            streams: Arc::new(Semaphore::new(max_streams)),
            frames: watch::Sender::default(),
            is_ticking: AtomicBool::new(false),
        })
    }

    pub(crate) fn reader<'a>(&self, watched: &'a Watched) -> Reader<'a> {
        Reader { last: watched.refresh(), watched, now: self.clock.now(), stuck: self.stuck }
    }

    fn readers(&self) -> Vec<Reader<'_>> {
        self.watched.iter().map(|watched| self.reader(watched)).collect()
    }

    pub(crate) fn overview(&self) -> Overview<'_> {
        let readers = self.readers();
        let views = readers.iter().map(|reader| reader.overview(&reader.running()));
        self.overview_of(views.collect())
    }

    fn overview_of(&self, schedulers: Vec<crate::json::SchedulerView>) -> Overview<'_> {
        Overview { v: VERSION, now_at: self.clock.now(), process: &self.process, schedulers }
    }

    /// Whether streams end now.
    fn is_over(&self) -> bool {
        let mut phases = self.watched.iter().map(|watched| watched.last().phase);
        let is_draining = |phase| matches!(phase, Phase::Announced | Phase::Draining);
        let drains = !self.live_drain && phases.clone().any(is_draining);
        drains || phases.all(|phase| phase == Phase::Closed)
    }

    /// All figures: one event that fills the page.
    fn hello(&self) -> String {
        let readers = self.readers();
        let mut views = Vec::new();
        let mut parts = Vec::new();
        for reader in &readers {
            let jobs = reader.running();
            views.push(reader.overview(&jobs));
            parts.push(Part {
                name: &reader.watched.name,
                series: Some(reader.series(5)),
                names: Some(reader.names()),
                failures: Some(reader.failures(usize::MAX, &Search::default())),
                jobs: Some(jobs),
                ..Part::default()
            });
        }
        let overview = Some(self.overview_of(views));
        let mut text = "retry: 3000\n".to_owned();
        let hello = Event { v: VERSION, now_at: self.clock.now(), overview, schedulers: parts };
        write_event(&mut text, "hello", &hello);
        text
    }

    fn event(&self, text: &mut String, name: &str, schedulers: Vec<Part<'_>>) {
        if !schedulers.is_empty() {
            let now_at = self.clock.now();
            write_event(text, name, &Event { v: VERSION, now_at, overview: None, schedulers });
        }
    }

    /// Samples all schedulers, and makes a frame if there are viewers. Returns whether more ticks are needed.
    fn tick(&self) -> bool {
        // A tick at the beginning of a second shows the end of the second before.
        let sampled = self.clock.now().saturating_sub(Duration::from_millis(500)).as_secs();
        self.watched.iter().for_each(|watched| watched.tick(sampled));
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if self.frames.receiver_count() > 0 {
            let text = self.frame(&mut sent);
            let number = self.frames.borrow().number + 1;
            self.frames.send_replace(Arc::new(Frame { number, text, is_last: self.is_over() }));
        } else {
            self.skip(&mut sent);
        }
        let is_live = |watched: &Arc<Watched>| {
            watched.last().phase != Phase::Closed && watched.scheduler().is_some()
        };
        self.watched.iter().any(is_live)
    }

    /// Nobody sees this tick: a viewer that comes begins with all figures.
    fn skip(&self, sent: &mut Sent) {
        sent.second = self.clock.now().as_secs();
        for (watched, sent) in self.watched.iter().zip(&mut sent.each) {
            sent.failures = watched.state().failures.changes();
            let last = watched.last();
            sent.is_closed = last.report.is_some();
            sent.drain = match last.phase {
                Phase::Announced | Phase::Draining => Some(last.deadline),
                _ => None,
            };
        }
    }

    fn frame(&self, sent: &mut Sent) -> String {
        let readers = self.readers();
        let second = self.clock.now().as_secs();
        let mut text = String::new();
        let (mut views, mut ticks, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        let (mut drains, mut closed) = (Vec::new(), Vec::new());
        for (reader, sent_of) in readers.iter().zip(&mut sent.each) {
            let name = &*reader.watched.name;
            let jobs = reader.running();
            views.push(reader.overview(&jobs));
            if let Some(drain) = reader.drain() {
                if sent_of.drain != Some(reader.last.deadline) {
                    sent_of.drain = Some(reader.last.deadline);
                    let jobs = Some(reader.running());
                    drains.push(Part { name, drain: Some(drain), jobs, ..Part::default() });
                }
            }
            let points = reader.watched.state().series.points(sent.second, second);
            ticks.push(Part { name, jobs: Some(jobs), points, ..Part::default() });
            if let Some(changed) = changed_failures(reader, &mut sent_of.failures) {
                failures.push(Part { name, failures: Some(changed), ..Part::default() });
            }
            if let Some(report) = reader.last.report.clone().filter(|_| !sent_of.is_closed) {
                sent_of.is_closed = true;
                closed.push(Part { name, report: Some(report), ..Part::default() });
            }
        }
        sent.second = second;
        let overview = Some(self.overview_of(views));
        let tick = Event { v: VERSION, now_at: self.clock.now(), overview, schedulers: ticks };
        write_event(&mut text, "tick", &tick);
        self.event(&mut text, "failures", failures);
        if second >= sent.names + NAMES_EVERY {
            sent.names = second;
            let names = readers.iter().map(|reader| Part {
                name: &reader.watched.name,
                names: Some(reader.names()),
                ..Part::default()
            });
            self.event(&mut text, "names", names.collect());
        }
        self.event(&mut text, "drain", drains);
        self.event(&mut text, "closed", closed);
        text
    }

    /// Starts the task of the ticks, if it does not run and this is a runtime.
    pub(crate) fn ensure_ticks(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.is_ticking.swap(true, Ordering::AcqRel) {
            let ticks = Ticks(Arc::downgrade(self));
            runtime.spawn(ticks.run(self.changed.clone()));
        }
    }

    /// Begins an event stream, unless there are too many.
    pub(crate) fn viewer(self: &Arc<Self>) -> Option<Viewer> {
        let permit = self.streams.clone().try_acquire_owned().ok()?;
        let frames = self.frames.subscribe();
        Some(Viewer { hub: self.clone(), frames, last: None, is_over: false, _permit: permit })
    }
}

/// The groups that changed since, the longest unsent first.
fn changed_failures(reader: &Reader<'_>, sent: &mut u64) -> Option<FailuresView> {
    let state = reader.watched.state();
    let mut groups = state.failures.latest_first();
    let kept = groups.len();
    groups.retain(|group| group.changed > *sent);
    groups.reverse();
    groups.truncate(CHANGED_GROUPS);
    *sent = groups.last()?.changed;
    let dropped_groups = state.failures.dropped_groups();
    Some(FailuresView { kept, dropped_groups, groups: groups.into_iter().cloned().collect() })
}

/// JSON has no line breaks, so an event's data is one line.
fn write_event(text: &mut String, name: &str, data: &impl Serialize) {
    let data = serde_json::to_string(data).unwrap_or_else(|error| {
        // No map has keys other than text, and no writer fails: this cannot happen.
        format!("{{\"v\":{VERSION},\"error\":{:?}}}", error.to_string())
    });
    text.push_str("event: ");
    text.push_str(name);
    text.push_str("\ndata: ");
    text.push_str(&data);
    text.push_str("\n\n");
}

/// The task of the ticks. Once it ends, the next request may start another.
struct Ticks(Weak<Hub>);

impl Drop for Ticks {
    fn drop(&mut self) {
        if let Some(hub) = self.0.upgrade() {
            hub.is_ticking.store(false, Ordering::Release);
        }
    }
}

impl Ticks {
    async fn run(self, changed: Arc<Notify>) {
        while let Some(hub) = self.0.upgrade() {
            if !hub.tick() {
                break;
            }
            let into_second = Duration::from_nanos(hub.clock.now().subsec_nanos().into());
            drop(hub);
            tokio::select! {
                () = time::sleep(Duration::from_secs(1) - into_second) => {}
                () = changed.notified() => {}
            }
        }
    }
}

/// One event stream.
#[derive(Debug)]
pub(crate) struct Viewer {
    hub: Arc<Hub>,
    frames: watch::Receiver<Arc<Frame>>,
    last: Option<u64>,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

impl Viewer {
    /// The next events, as text; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<String> {
        if self.is_over {
            return None;
        }
        let Some(last) = self.last else { return Some(self.hello()) };
        match time::timeout(KEEP_ALIVE, self.frames.changed()).await {
            Err(_) => return Some(":\n\n".to_owned()),
            Ok(changed) => changed.ok()?,
        }
        let frame = self.frames.borrow_and_update().clone();
        if frame.number != last + 1 {
            return Some(self.hello());
        }
        self.last = Some(frame.number);
        self.is_over = frame.is_last;
        Some(frame.text.clone())
    }

    fn hello(&mut self) -> String {
        self.last = Some(self.frames.borrow_and_update().number);
        let text = self.hub.hello();
        self.is_over = self.hub.is_over();
        text
    }
}
