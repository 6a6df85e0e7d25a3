//! Signals: one thread of the process hears them, and each `Shutdown` has a listener.
//!
//! The thread waits for nothing but signals. It writes no log line and takes no lock that is held while
//! user code runs.

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tokio::sync::watch;

use crate::{shutdown::BoxFuture, util::sync::lock_std};

#[expect(clippy::disallowed_types, reason = "signals come in real time")]
type RealInstant = std::time::Instant;

/// Two signals within this time are one: `timeout` signals its child and then its group, a terminal sends
/// SIGINT beside a supervisor's SIGTERM.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// Hears signals for one `Shutdown`, from its construction on.
pub(super) struct Listener {
    shared: Arc<Shared>,
    heard: watch::Receiver<u8>,
    /// Signals that `next` has returned.
    returned: u8,
}

struct Shared {
    state: Mutex<State>,
    heard: watch::Sender<u8>,
}

struct State {
    signals: Vec<i32>,
    grace: Duration,
    ends_process: bool,
    stage: Stage,
    /// Signals that counted, and the moments of the first and the last.
    count: u8,
    first: Option<RealInstant>,
    last: Option<RealInstant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// `serve` has not been polled.
    Constructed,
    Serving,
    /// `serve` has returned, or the `Shutdown` was dropped.
    Over,
}

/// The meaning of a signal for one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// It is a repeat, or it begins or hurries a shutdown.
    Used,
    /// The listener has no use for it, and does not let it end the process.
    Ignored,
    /// The listener has no use for it.
    Unused,
}

impl State {
    fn hear(&mut self, now: RealInstant) -> Meaning {
        let is_repeat = self.last.is_some_and(|last| now.duration_since(last) < SAME_SIGNAL);
        if is_repeat {
            return Meaning::Used;
        }
        let is_late = self.first.is_some_and(|first| now.duration_since(first) >= self.grace);
        let is_over = match self.stage {
            Stage::Constructed => self.count == 2 || is_late,
            Stage::Serving => self.count == 2,
            Stage::Over => true,
        };
        if is_over {
            return if self.ends_process { Meaning::Unused } else { Meaning::Ignored };
        }
        self.count += 1;
        self.first.get_or_insert(now);
        self.last = Some(now);
        Meaning::Used
    }
}

impl Listener {
    pub(super) fn new(grace: Duration) -> io::Result<Self> {
        let (sender, heard) = watch::channel(0);
        let state = State {
            signals: DEFAULT_SIGNALS.to_vec(),
            grace,
            ends_process: true,
            stage: Stage::Constructed,
            count: 0,
            first: None,
            last: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), heard: sender });
        // Made first, so that it is over if a handler is refused.
        let listener = Self { shared, heard, returned: 0 };
        add(&listener.shared)?;
        Ok(listener)
    }

    #[cfg(unix)]
    pub(super) fn add_signal(&self, signal: i32) -> io::Result<()> {
        lock_std(&self.shared.state).signals.push(signal);
        hear(signal)
    }

    pub(super) fn set_grace(&self, grace: Duration) {
        lock_std(&self.shared.state).grace = grace;
    }

    pub(super) fn set_ends_process(&self, ends_process: bool) {
        lock_std(&self.shared.state).ends_process = ends_process;
    }

    pub(super) fn start_serving(&self) {
        lock_std(&self.shared.state).stage = Stage::Serving;
    }

    pub(super) fn has_heard(&self) -> bool {
        *self.heard.borrow() > self.returned
    }

    /// Resolves at the next signal that counts.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub(super) async fn next(&mut self) {
        let returned = self.returned;
        // The sender lives as long as this.
        drop(self.heard.wait_for(|heard| *heard > returned).await);
        self.returned += 1;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock_std(&self.shared.state).stage = Stage::Over;
        forget_older();
    }
}

/// The beginning of a shutdown.
pub(super) enum Trigger {
    /// `None` once it has resolved.
    Once(Option<BoxFuture>),
    Signals(Listener),
}

impl Trigger {
    /// Resolves at the first event, and then at each further one.
    pub(super) async fn next(&mut self) {
        match self {
            Self::Signals(listener) => listener.next().await,
            Self::Once(trigger) => {
                match trigger {
                    Some(future) => future.await,
                    None => return pending().await,
                }
                *trigger = None;
            }
        }
    }

    /// As `next`, but for one event that changes nothing, if `is_first`.
    pub(super) async fn next_that_hurries(&mut self, is_first: &mut bool) {
        if *is_first {
            self.next().await;
            *is_first = false;
        }
        self.next().await;
    }

    pub(super) fn listener(&self) -> Option<&Listener> {
        match self {
            Self::Signals(listener) => Some(listener),
            Self::Once(_) => None,
        }
    }
}

/// The listeners of the process, oldest first.
static LISTENERS: Mutex<Vec<Arc<Shared>>> = Mutex::new(Vec::new());

fn add(listener: &Arc<Shared>) -> io::Result<()> {
    // Before the handlers, so that none hears a signal for which there is no listener.
    lock_std(&LISTENERS).push(listener.clone());
    DEFAULT_SIGNALS.iter().try_for_each(|signal| hear(*signal))
}

/// Forgets all listeners that are over but the youngest, which says what later signals mean.
fn forget_older() {
    let mut listeners = lock_std(&LISTENERS);
    let is_over = |listener: &Arc<Shared>| lock_std(&listener.state).stage == Stage::Over;
    let youngest = listeners.iter().rposition(is_over);
    let mut index = 0;
    listeners.retain(|listener| {
        index += 1;
        !is_over(listener) || Some(index - 1) == youngest
    });
}

/// Passes a signal to the listeners. Ends the process if none has a use for it.
fn deliver(signal: i32) {
    let now = RealInstant::now();
    let listeners = lock_std(&LISTENERS).clone();
    let (mut is_unused, mut woken) = (false, Vec::new());
    let mut ends = true;
    for listener in listeners {
        let mut state = lock_std(&listener.state);
        if !state.signals.contains(&signal) {
            continue;
        }
        let before = state.count;
        match state.hear(now) {
            Meaning::Unused => is_unused = true,
            Meaning::Used | Meaning::Ignored => ends = false,
        }
        let count = state.count;
        drop(state);
        if count > before {
            woken.push((listener, count));
        }
    }
    for (listener, count) in woken {
        listener.heard.send_replace(count);
    }
    if is_unused && ends {
        end_process(signal);
    }
}

/// A thread that ends with the process.
fn start_thread(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // The thread is not joined.
    thread::Builder::new().name("tower-jobs signals".into()).spawn(run).map(drop)
}

#[cfg(unix)]
use unix::{DEFAULT_SIGNALS, end_process, hear};

#[cfg(unix)]
mod unix {
    use std::{io, process, sync::Mutex};

    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        iterator::{Handle, Signals},
        low_level,
    };

    use super::{deliver, start_thread};
    use crate::util::sync::lock_std;

    pub(super) const DEFAULT_SIGNALS: &[i32] = &[SIGTERM, SIGINT];

    /// Hears this signal from now on, in the one thread.
    pub(super) fn hear(signal: i32) -> io::Result<()> {
        static THREAD: Mutex<Option<Handle>> = Mutex::new(None);
        let mut thread = lock_std(&THREAD);
        if let Some(handle) = &*thread {
            return handle.add_signal(signal);
        }
        let mut signals = Signals::new([signal])?;
        let handle = signals.handle();
        start_thread(move || signals.forever().for_each(deliver))?;
        *thread = Some(handle);
        Ok(())
    }

    /// Ends the process as the signal would without a handler. For the first process of a container there
    /// is no such action.
    pub(super) fn end_process(signal: i32) {
        if process::id() == 1 {
            low_level::exit(128 + signal);
        }
        // Fails for a signal without a default action, which then changes nothing.
        drop(low_level::emulate_default_handler(signal));
    }
}

#[cfg(windows)]
use windows::{DEFAULT_SIGNALS, end_process, hear};

#[cfg(windows)]
mod windows {
    use std::{future::poll_fn, io, process, sync::Mutex, task::Poll};

    use tokio::{
        runtime,
        signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown},
    };

    use super::{deliver, start_thread};
    use crate::util::sync::lock_std;

    /// Stands for the four events.
    const ANY_EVENT: i32 = 0;
    pub(super) const DEFAULT_SIGNALS: &[i32] = &[ANY_EVENT];
    /// The exit code of a process that Ctrl-C ended: `STATUS_CONTROL_C_EXIT`.
    const CONTROL_C_EXIT: i32 = 0xC000_013A_u32 as i32;

    pub(super) fn hear(_: i32) -> io::Result<()> {
        static IS_HEARD: Mutex<bool> = Mutex::new(false);
        let mut is_heard = lock_std(&IS_HEARD);
        if *is_heard {
            return Ok(());
        }
        let runtime = runtime::Builder::new_current_thread().build()?;
        let (mut c, mut r#break) = (ctrl_c()?, ctrl_break()?);
        let (mut close, mut shutdown) = (ctrl_close()?, ctrl_shutdown()?);
        start_thread(move || {
            loop {
                runtime.block_on(poll_fn(|cx| {
                    let is_event = c.poll_recv(cx).is_ready()
                        || r#break.poll_recv(cx).is_ready()
                        || close.poll_recv(cx).is_ready()
                        || shutdown.poll_recv(cx).is_ready();
                    if is_event { Poll::Ready(()) } else { Poll::Pending }
                }));
                deliver(ANY_EVENT);
            }
        })?;
        *is_heard = true;
        Ok(())
    }

    pub(super) fn end_process(_: i32) {
        process::exit(CONTROL_C_EXIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    /// The meanings of signals at these milliseconds. `served` and `over`: when `serve` is first polled, and
    /// returns.
    fn meanings(at: &[u64], served: Option<u64>, over: Option<u64>) -> (Vec<Meaning>, u8) {
        let mut state = State {
            signals: Vec::new(),
            grace: GRACE,
            ends_process: true,
            stage: Stage::Constructed,
            count: 0,
            first: None,
            last: None,
        };
        let began = RealInstant::now();
        let mut meanings = Vec::new();
        for ms in at {
            state.stage = match (served, over) {
                (_, Some(over)) if *ms >= over => Stage::Over,
                (Some(served), _) if *ms >= served => Stage::Serving,
                _ => Stage::Constructed,
            };
            meanings.push(state.hear(began + Duration::from_millis(*ms)));
        }
        (meanings, state.count)
    }

    #[test]
    fn signal_counts_once_a_second_and_the_third_is_unused() {
        use Meaning::{Unused, Used};
        for (at, served, over, meaning, count) in [
            // Doubled signals are one.
            (&[0, 2, 999][..], Some(0), None, &[Used, Used, Used][..], 1),
            (&[0, 1000, 1002, 2000], Some(0), None, &[Used, Used, Used, Unused], 2),
            // `serve` is polled late, or never.
            (&[0, 5000], Some(3000), None, &[Used, Used], 2),
            (&[0, 5000, 6000], None, None, &[Used, Used, Unused], 2),
            (&[0, 10_000], None, None, &[Used, Unused], 1),
            // `serve` has returned.
            (&[0, 2, 1000], Some(0), Some(1), &[Used, Used, Unused], 1),
            (&[7], Some(0), Some(1), &[Unused], 0),
        ] {
            assert_eq!(meanings(at, served, over), (meaning.to_vec(), count), "{at:?}");
        }
    }
}
