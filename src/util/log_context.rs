//! The subscriber and the span of one thread, for work that another thread does for it.

use tracing::{Dispatch, Span, dispatcher};

/// Where the code that captures it would log.
#[derive(Clone)]
pub(crate) struct LogContext {
    /// `None` if there has been no subscriber: setting a default would count as one.
    dispatch: Option<Dispatch>,
    span: Span,
}

impl LogContext {
    pub(crate) fn current() -> Self {
        let dispatch = dispatcher::has_been_set().then(|| dispatcher::get_default(Clone::clone));
        Self { dispatch, span: Span::current() }
    }

    /// Runs the code as if it ran where this was captured.
    pub(crate) fn run<T>(&self, code: impl FnOnce() -> T) -> T {
        match &self.dispatch {
            Some(dispatch) => dispatcher::with_default(dispatch, || self.span.in_scope(code)),
            None => code(),
        }
    }
}
