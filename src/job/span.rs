//! The span of a job. A `tracing` subscriber is user code, so this module catches its panics once a
//! job is accepted.

use std::mem;

use tracing::{
    Level, Span,
    field::{self, Empty},
    level_filters::LevelFilter,
    span,
};

use crate::{
    job::record::Record,
    rules::state::Outcome,
    util::{clock::Moment, one_line::OneLine, panics::ignore_panic},
};

/// Relates the span of a job to the span of its spawner.
///
/// Every job runs in its own span. The span has the name `job`, the level `INFO`, and the target
/// `tower_jobs`. Its fields are listed in the chapter [`observability`](crate::docs::observability). A filter below
/// that level, such as `RUST_LOG=warn`, removes the span, and log lines inside the job then name neither job nor
/// request: use `RUST_LOG=warn,tower_jobs=info`. The event of a failure has all fields itself.
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
pub(crate) struct JobSpan {
    span: Span,
    /// Until then it is not entered: a job that never starts has no code in it.
    has_started: bool,
    /// The text of the job's failure.
    failure: Option<Box<str>>,
}

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
                    target: "tower_jobs", $($parent)* "job", id = %job.id(), name = %OneLine(job.name_str()),
                    request = job.label().map(|label| &**label), location = %job.location(),
                    otel.name = job.given_name().map(|name| field::display(OneLine(name))),
                    queued = Empty, outcome = Empty,
                    otel.status_code = Empty, otel.status_description = Empty
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
        job.mark_traced();
        Some(Self { span, has_started: false, failure: None })
    }

    /// The job starts, or goes on. Records the time that it was queued, in seconds.
    pub(super) fn start(&mut self, job: &Record) {
        if !mem::replace(&mut self.has_started, true) {
            let queued = Moment::now().since(job.queued_at());
            ignore_panic(|| {
                self.span.record("queued", queued.as_secs_f64());
            });
        }
    }

    /// A clone of the span of a job that has started.
    pub(super) fn is_started(&mut self) {
        self.has_started = true;
    }

    pub(crate) fn has_failure(&self) -> bool {
        self.failure.is_some()
    }

    /// Keeps the text of the job's failure for the end of the span. Not recorded at once: a log line of the
    /// failure would have the text twice.
    pub(crate) fn keep_failure(&mut self, text: String) {
        self.failure = Some(text.into());
    }

    /// Records the end of the job.
    pub(crate) fn end(&mut self, outcome: Outcome) {
        let standard = match outcome {
            Outcome::Failed => Some("the job failed"),
            Outcome::Panicked => Some("the job panicked"),
            Outcome::TimedOut => Some("the job exceeded a timeout"),
            Outcome::Abandoned => Some("the job was abandoned"),
            Outcome::Completed | Outcome::Cancelled | Outcome::Skipped | Outcome::NeverStarted => {
                None
            }
        };
        ignore_panic(|| {
            self.span.record("outcome", outcome.as_str());
            if let Some(standard) = standard {
                // In this order: for tracing-opentelemetry each of them sets the whole status.
                self.span.record("otel.status_code", "ERROR");
                let text = self.failure.as_deref().unwrap_or(standard);
                self.span.record("otel.status_description", text);
            }
        });
    }

    // Not inlined, here and below, to keep the code for jobs without a span short.
    #[inline(never)]
    fn enter(&self) -> Option<span::Entered<'_>> {
        let mut entered = None;
        if self.has_started {
            ignore_panic(|| entered = Some(self.span.enter()));
        }
        entered
    }
}

impl Drop for JobSpan {
    #[inline(never)]
    fn drop(&mut self) {
        let span = mem::replace(&mut self.span, Span::none());
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
