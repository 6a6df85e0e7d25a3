//! The span and the contexts in which a job's code runs and is dropped.

use std::sync::Arc;

use crate::job::{
    context::{AnyHook, Contexts},
    record::Record,
    span::{Entered, JobSpan, SpanLink},
};
use crate::rules::state::Outcome;

/// How a job is tied to its spawner.
#[derive(Default)]
pub(crate) struct Ties {
    pub(crate) span: SpanLink,
    /// The outermost first.
    pub(crate) contexts: Vec<Arc<dyn AnyHook>>,
}

/// A job's span and contexts. Boxed, because most jobs have none: without a subscriber no span is enabled.
#[derive(Clone)]
pub(crate) struct Surroundings(Box<Parts>);

#[derive(Clone)]
struct Parts {
    contexts: Option<Contexts>,
    span: Option<JobSpan>,
}

impl Surroundings {
    /// Makes the job's span, and captures the caller's contexts. The job has been made, and not accepted.
    #[inline]
    pub(crate) fn new(ties: &Ties, job: &Record) -> Option<Self> {
        let span = JobSpan::new(ties.span, job);
        if ties.contexts.is_empty() {
            return Some(Self(Box::new(Parts { contexts: None, span: Some(span?) })));
        }
        Some(Self(Box::new(Parts { contexts: Some(Contexts::capture(&ties.contexts)), span })))
    }

    pub(crate) fn contexts(&self) -> Option<&Contexts> {
        self.0.contexts.as_ref()
    }

    pub(crate) fn span_mut(&mut self) -> Option<&mut JobSpan> {
        self.0.span.as_mut()
    }

    /// These are the surroundings of a job that has started.
    pub(crate) fn of_started(mut self) -> Self {
        if let Some(span) = self.span_mut() {
            span.is_started();
        }
        self
    }

    /// Records the end of the job in its span.
    pub(crate) fn end(&mut self, outcome: Outcome) {
        if let Some(span) = self.span_mut() {
            span.end(outcome);
        }
    }

    #[inline(never)]
    fn start(&mut self, job: &Record) -> &Self {
        if let Some(span) = self.span_mut() {
            span.start(job);
        }
        self
    }
}

/// Runs a poll of the job as [`within`]. The first poll starts the job.
#[inline(always)]
pub(crate) fn poll_within<T>(
    surroundings: Option<&mut Surroundings>,
    job: &Record,
    poll: impl FnOnce() -> T,
) -> T {
    within(surroundings.map(|around| around.start(job)), poll)
}

/// Runs `code` inside the surroundings, if there are any: the span, unless the job has not started, and
/// inside it the contexts. A context that depends on the span, such as OpenTelemetry's, can then add to it.
#[inline(always)]
pub(crate) fn within<T>(surroundings: Option<&Surroundings>, code: impl FnOnce() -> T) -> T {
    let _entered = Entered::new(surroundings.and_then(|around| around.0.span.as_ref()));
    match surroundings.and_then(Surroundings::contexts) {
        None => code(),
        Some(contexts) => contexts.run(code),
    }
}
