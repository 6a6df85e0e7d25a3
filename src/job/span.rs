//! The span of a job. A `tracing` subscriber is user code, so this module catches its panics once a
//! job is accepted.

use std::mem;

use tracing::{Level, Span, level_filters::LevelFilter, span};

use crate::{
    job::record::Record,
    util::{one_line::OneLine, panics::ignore_panic},
};

/// Relates the span of a job to the span of its spawner.
///
/// Every job runs in its own span. The span has the name `job`, the level `INFO`, the target
/// `tower_jobs`, and the fields `id`, `name` and `request`. A filter below that level, such as
/// `RUST_LOG=warn`, removes it, and log lines inside the job then name neither job nor request: use
/// `RUST_LOG=warn,tower_jobs=info`. The event of a failure has all fields itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpanLink {
    /// The job's span follows from the spawner's span. The default.
    ///
    /// The spawner's span may close before the job ends. A log line of the job does not show the fields of the
    /// request's span, such as a request id, and OpenTelemetry puts the job into a trace of its own, linked
    /// to the request's.
    #[default]
    FollowsFrom,
    /// The job's span is a child of the spawner's span.
    ///
    /// The spawner's span stays open until the job has ended. A log line of the job shows the fields of the
    /// request's span, and OpenTelemetry puts the job into the request's trace.
    Child,
    /// The job's span is a root, without a relation.
    None,
}

/// A job's span.
#[derive(Clone)]
pub(super) struct JobSpan(Span);

impl JobSpan {
    /// Makes the job's span, unless no subscriber is interested in it.
    #[inline]
    pub(super) fn new(link: SpanLink, job: &Record) -> Option<Self> {
        // Without this check, and with tracing's `log` feature, the macro would format all fields of a
        // disabled span, and log a line for each job.
        if LevelFilter::current() < Level::INFO {
            return None;
        }
        macro_rules! job_span {
            ($($parent:tt)*) => {
                tracing::info_span!(
                    target: "tower_jobs", $($parent)* "job", id = %job.id(), name = %OneLine(job.name()),
                    request = job.group_label().map(|label| &**label)
                )
            };
        }
        let span = match link {
            SpanLink::Child => job_span!(),
            SpanLink::None | SpanLink::FollowsFrom => job_span!(parent: None,),
        };
        if span.is_disabled() {
            return None;
        }
        if link == SpanLink::FollowsFrom {
            span.follows_from(Span::current().id());
        }
        Some(Self(span))
    }

    // Not inlined, here and below, to keep the code for jobs without a span short.
    #[inline(never)]
    fn enter(&self) -> Option<span::Entered<'_>> {
        let mut entered = None;
        ignore_panic(|| entered = Some(self.0.enter()));
        entered
    }
}

impl Drop for JobSpan {
    #[inline(never)]
    fn drop(&mut self) {
        let span = mem::replace(&mut self.0, Span::none());
        ignore_panic(|| drop(span));
    }
}

/// Keeps a span entered, if there is one, until this is dropped.
pub(super) struct Entered<'a>(Option<span::Entered<'a>>);

impl<'a> Entered<'a> {
    #[inline(always)]
    pub(super) fn new(span: Option<&'a JobSpan>) -> Self {
        Self(span.and_then(JobSpan::enter))
    }
}

impl Drop for Entered<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(entered) = self.0.take() {
            exit(entered);
        }
    }
}

#[inline(never)]
fn exit(entered: span::Entered<'_>) {
    ignore_panic(|| drop(entered));
}
