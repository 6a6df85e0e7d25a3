use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use tower_jobs_durable::{Claimed, Durable, DurableContext, DurableId};
use tracing::subscriber::set_global_default;
use tracing_subscriber::{Registry, layer::SubscriberExt};

use super::{Mail, memory::Memory};

#[tokio::test]
async fn span_of_a_job_links_to_the_request_that_pushed_it() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    set_global_default(Registry::default().with(layer)).unwrap();
    let memory = Memory::default();
    let _durable =
        Durable::builder(memory.clone()).register(|_: Mail, _: DurableContext| async {}).start();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let payload = serde_json::json!({ "to": "ada", "_tower_jobs": { "traceparent": parent, "label": "POST /x" } });
    memory.with(Claimed {
        id: DurableId::new("1"),
        kind: "mail".into(),
        payload: payload.to_string().into(),
        starts: 1,
        ready_since: None,
    });
    memory.verdicts(1).await;
    provider.force_flush().unwrap();
    let spans = exporter.get_finished_spans().unwrap();
    let job = spans.iter().find(|span| !span.links.links.is_empty()).expect("a span with a link");
    let link = &job.links.links[0].span_context;
    assert_eq!(link.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(link.span_id().to_string(), "00f067aa0ba902b7");
    assert!(
        job.attributes.iter().any(|tag| tag.value.as_str() == "POST /x"),
        "{:?}",
        job.attributes
    );
}
