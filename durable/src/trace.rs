//! The request's trace, as a link of the job's span.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::context::DurableContext;

/// Links the current span, which is the job's, to that of the request that pushed the job.
pub(crate) fn link(context: &DurableContext) {
    let state = context.tracestate.as_deref().unwrap_or_default();
    if let Some(request) = context.traceparent.as_deref().and_then(|parent| parse(parent, state)) {
        Span::current().add_link(request);
    }
}

/// Returns the `traceparent` and `tracestate` of the current span, if it is traced.
pub(crate) fn current() -> Option<(String, String)> {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    let parent = || {
        let flags = span.trace_flags().to_u8();
        format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id())
    };
    span.is_valid().then(|| (parent(), span.trace_state().header()))
}

/// Parses the W3C headers. The propagator for that is in the SDK, which only applications need.
fn parse(parent: &str, state: &str) -> Option<SpanContext> {
    let mut parts = parent.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let state = state.parse::<TraceState>().unwrap_or_default();
    let context = SpanContext::new(trace, span, flags, true, state);
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn traceparent_gives_the_span_to_link() {
        let span = parse(PARENT, "vendor=1").unwrap();
        assert_eq!(span.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(span.span_id().to_string(), "00f067aa0ba902b7");
        assert!(span.is_sampled() && span.is_remote());
        assert_eq!(span.trace_state().get("vendor"), Some("1"));
    }

    #[test]
    fn broken_traceparent_gives_no_link() {
        for parent in [
            "",
            "00-0-0-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-é",
        ] {
            assert!(parse(parent, "").is_none(), "{parent}");
        }
    }
}
