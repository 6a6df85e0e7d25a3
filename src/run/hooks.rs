//! Hooks that run beside the closing of a scheduler, on plain threads: the blocking pool may be full, and
//! the runtime's end would wait for its threads.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex},
    thread,
};

use tokio::{runtime::Handle, sync::Notify};

use crate::util::{
    log_context::LogContext,
    panics::{ignore_panic, notify},
    sync::lock_std,
};

/// Hooks that run at the same time.
const MAX_THREADS: usize = 64;

type Hook = Box<dyn FnOnce() + Send>;

/// The hooks of one scheduler. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Hooks(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when no hook is left.
    ended: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Hook>,
    threads: usize,
    /// Hooks that have not returned.
    unfinished: usize,
}

impl Hooks {
    /// Runs `hook` on a thread, in the caller's span and in `runtime`. Without a thread it runs here.
    pub(crate) fn run(&self, runtime: Option<Handle>, hook: impl FnOnce() + Send + 'static) {
        let context = LogContext::current();
        let hook = move || {
            let _runtime = runtime.as_ref().map(Handle::enter);
            ignore_panic(|| context.run(hook));
        };
        let mut state = lock_std(&self.0.state);
        state.unfinished += 1;
        state.waiting.push_back(Box::new(hook));
        if state.threads == MAX_THREADS {
            return;
        }
        state.threads += 1;
        drop(state);
        let (shared, here) = (self.0.clone(), self.0.clone());
        let thread = thread::Builder::new().name("tower-jobs hook".into());
        // The thread is not joined: `all_ended` waits for the hooks.
        if thread.spawn(move || shared.run_waiting()).is_err() {
            here.run_waiting();
        }
    }

    /// Hooks that have not returned.
    pub(crate) fn unfinished(&self) -> usize {
        lock_std(&self.0.state).unfinished
    }

    /// Resolves when all hooks have returned.
    pub(crate) async fn all_ended(&self) {
        loop {
            let mut ended = pin!(self.0.ended.notified());
            ended.as_mut().enable();
            if self.unfinished() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Shared {
    fn run_waiting(&self) {
        loop {
            let mut state = lock_std(&self.state);
            let Some(hook) = state.waiting.pop_front() else {
                state.threads -= 1;
                return;
            };
            drop(state);
            hook();
            let mut state = lock_std(&self.state);
            state.unfinished -= 1;
            let is_last = state.unfinished == 0;
            drop(state);
            if is_last {
                notify(&self.ended);
            }
        }
    }
}
