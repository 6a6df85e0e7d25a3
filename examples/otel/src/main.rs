//! Spans of requests and jobs in OpenTelemetry: a link, and a child.
//!
//! ```sh
//! cargo run --package tower-jobs-otel-example
//! ```
//!
//! Sends a request that leaves a job behind and one whose job fails, with either tie, and prints the spans
//! that were exported.
#![expect(clippy::print_stdout, reason = "the spans are the program's output")]

use std::{collections::HashMap, error::Error};

use opentelemetry::trace::{SpanId, Status, TraceId};
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SpanData};
use tower_jobs::{Scheduler, SpanLink};
use tower_jobs_otel_example::{app, call, provider, subscriber};

/// The spans of both requests and their jobs, as exported.
async fn spans(tie: SpanLink) -> Result<Vec<SpanData>, Box<dyn Error>> {
    let exporter = InMemorySpanExporter::default();
    let provider = provider(&exporter, Sampler::ParentBased(Box::new(Sampler::AlwaysOn)));
    let subscribed = tracing::subscriber::set_default(subscriber(&provider));
    // A failure is shown by its span alone.
    let scheduler = Scheduler::builder().span(tie).on_failure(drop).build();
    for path in ["/signup", "/import"] {
        call(app(scheduler.clone()), path).await;
    }
    scheduler.wait_and_close().await;
    drop(subscribed);
    let mut spans = exporter.get_finished_spans()?;
    spans.sort_by_key(|span| span.start_time);
    Ok(spans)
}

fn print(spans: &[SpanData]) {
    let mut traces: Vec<TraceId> = Vec::new();
    let names: HashMap<SpanId, &str> =
        spans.iter().map(|span| (span.span_context.span_id(), &*span.name)).collect();
    for span in spans {
        let trace = span.span_context.trace_id();
        if !traces.contains(&trace) {
            traces.push(trace);
        }
        let number = traces.iter().position(|other| *other == trace).map_or(0, |at| at + 1);
        print!("  trace {number}: {}", span.name);
        if let Some(parent) = names.get(&span.parent_span_id) {
            print!(", child of {parent}");
        }
        for link in span.links.iter() {
            print!(", linked to {}", names.get(&link.span_context.span_id()).unwrap_or(&"?"));
        }
        if let Status::Error { description } = &span.status {
            print!(", error: {description}");
        }
        println!();
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    for tie in [SpanLink::FollowsFrom, SpanLink::Child] {
        println!("{tie:?}");
        print(&spans(tie).await?);
    }
    Ok(())
}
