//! Contexts of the application: captured where a job is spawned, and entered wherever its code runs.
//!
//! A hook is user code. It is never called under a lock, and its panics are contained: the job then runs
//! without that context.

use std::{mem, panic::resume_unwind, sync::Arc};

use crate::util::panics::{catch_panic, drop_contained, forget_panic, ignore_panic};

/// The two functions of one kind of context.
pub(crate) struct ContextHook<F, E> {
    pub(crate) capture: F,
    pub(crate) enter: E,
}

/// A hook whose context is of any type.
pub(crate) trait AnyHook: Send + Sync {
    fn capture(self: Arc<Self>) -> Box<dyn Captured>;
}

impl<C, F, E> AnyHook for ContextHook<F, E>
where
    C: Send + Sync + 'static,
    F: Fn() -> C + Send + Sync + 'static,
    E: Fn(&C, &mut dyn FnMut()) + Send + Sync + 'static,
{
    fn capture(self: Arc<Self>) -> Box<dyn Captured> {
        let context = Some((self.capture)());
        Box::new(OneContext { hook: self, context })
    }
}

/// A context that code can run in.
pub(crate) trait Captured: Send + Sync {
    fn enter(&self, code: &mut dyn FnMut());
}

struct OneContext<C, F, E> {
    hook: Arc<ContextHook<F, E>>,
    /// Present until this is dropped.
    context: Option<C>,
}

impl<C, F, E> Captured for OneContext<C, F, E>
where
    C: Send + Sync,
    F: Send + Sync,
    E: Fn(&C, &mut dyn FnMut()) + Send + Sync,
{
    fn enter(&self, code: &mut dyn FnMut()) {
        if let Some(context) = &self.context {
            (self.hook.enter)(context, code);
        }
    }
}

impl<C, F, E> Drop for OneContext<C, F, E> {
    fn drop(&mut self) {
        drop_contained(self.context.take());
    }
}

/// The contexts of one job, the outermost first.
#[derive(Clone)]
pub(crate) struct Contexts(Arc<[Box<dyn Captured>]>);

impl Contexts {
    /// Captures the contexts of the caller.
    #[cold]
    pub(super) fn capture(hooks: &[Arc<dyn AnyHook>]) -> Self {
        let capture = |hook: &Arc<dyn AnyHook>| contained(|| hook.clone().capture());
        Self(hooks.iter().filter_map(capture).collect())
    }

    /// Runs the code inside all contexts, once, whatever their hooks do.
    #[cold]
    pub(crate) fn run<T>(&self, code: impl FnOnce() -> T) -> T {
        let (mut code, mut output) = (Some(code), None);
        // A panic of the code is none of the hooks.
        enter(&self.0, &mut || output = code.take().map(catch_panic));
        match output.expect("the code has run") {
            Ok(output) => output,
            Err(payload) => resume_unwind(payload),
        }
    }
}

/// Enters the contexts, and calls `code` once.
fn enter(contexts: &[Box<dyn Captured>], code: &mut dyn FnMut()) {
    let Some((outermost, others)) = contexts.split_first() else { return code() };
    let mut has_run = false;
    let mut run_once = || {
        if !mem::replace(&mut has_run, true) {
            enter(others, code);
        }
    };
    contained(|| outermost.enter(&mut run_once));
    if !has_run {
        enter(others, code);
    }
}

/// Calls a hook. A panic is logged.
fn contained<T>(hook: impl FnOnce() -> T) -> Option<T> {
    catch_panic(hook)
        .map_err(|payload| {
            ignore_panic(|| {
                tracing::error!(target: "tower_jobs", "a context hook panicked; the job runs without its context");
            });
            forget_panic(payload);
        })
        .ok()
}
