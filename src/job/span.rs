//! The span of a job. A `tracing` subscriber is user code: once a job is accepted, its panics are
//! contained here.

use std::mem;

use tracing::{Level, Span, level_filters::LevelFilter, span};

use crate::{
    job::record::Record,
    util::{one_line::OneLine, panics::ignore_panic},
};

/// How the span of a job is tied to the span in which it was spawned.
///
/// Every job runs in a span of its own, `job`, of level `INFO` and the target `tower_jobs`, with the
/// fields `id`, `name` and `request`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpanLink {
    /// It follows from that span, which may close before the job ends. The default.
    #[default]
    FollowsFrom,
    /// It is a child of that span, which then stays open until the job has ended.
    Child,
    /// It is a root, with no tie.
    None,
}

/// On the heap, since most jobs have none: nobody would see it.
#[derive(Clone)]
pub(crate) struct JobSpan(Box<Span>);

impl JobSpan {
    /// The span that the job runs in, unless nobody would see it.
    #[inline]
    pub(crate) fn new(link: SpanLink, job: &Record) -> Option<Self> {
        // For applications that have tracing write to `log`, the macro would make all fields of a
        // span that there will not be, and a line of them for each job.
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
        Some(Self(Box::new(span)))
    }

    // Not inlined, here and below: it is not to be in the way of the jobs that have no span.
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
        let span = mem::replace(&mut *self.0, Span::none());
        ignore_panic(|| drop(span));
    }
}

/// A span that is entered until this is dropped, if there is one.
pub(crate) struct Entered<'a>(Option<span::Entered<'a>>);

impl<'a> Entered<'a> {
    #[inline(always)]
    pub(crate) fn new(span: Option<&'a JobSpan>) -> Self {
        Self(span.and_then(JobSpan::enter))
    }
}

impl Drop for Entered<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(entered) = self.0.take() {
            leave(entered);
        }
    }
}

#[inline(never)]
fn leave(entered: span::Entered<'_>) {
    ignore_panic(|| drop(entered));
}

pub(crate) fn in_span<T>(span: Option<&JobSpan>, code: impl FnOnce() -> T) -> T {
    let _entered = Entered::new(span);
    code()
}
