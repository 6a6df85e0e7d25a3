//! The end of a job in its span.

use crate::{
    job::{
        error::JobError,
        options::JobKind,
        record::Record,
        surroundings::{Surroundings, within},
    },
    rules::state::Outcome,
    run::core::Core,
    util::{
        one_line::chain,
        panics::{catch_panic, forget_panic},
    },
};

impl Core {
    /// Records the end of a job in its span, and closes the span. The job was abandoned before if the queue
    /// has counted no outcome now.
    #[inline(never)]
    pub(super) fn end_span(
        &self,
        mut surroundings: Surroundings,
        record: &Record,
        counted: Option<Outcome>,
    ) {
        let Some(span) = surroundings.span_mut() else { return };
        let mut unobserved = None;
        if counted.is_some() && !span.has_failure() && record.kind() != JobKind::Shielded {
            // Its handle has the failure, if there is one.
            if let Some(error) = record.result().lend_failure() {
                span.keep_failure(text_of(&error));
                record.result().put_back(error);
                // The handle may have gone while the failure was lent.
                unobserved = record.result().take_unobserved();
            }
        }
        if let Some(error) = unobserved {
            within(Some(&surroundings), || {
                self.report_within(surroundings.contexts(), record, error);
            });
        }
        surroundings.end(counted.unwrap_or(Outcome::Abandoned));
    }
}

/// The error and its causes, in one line. They are user code, and may panic.
pub(super) fn text_of(error: &JobError) -> String {
    catch_panic(|| chain(error)).unwrap_or_else(|payload| {
        forget_panic(payload);
        "the error cannot be shown".to_owned()
    })
}
