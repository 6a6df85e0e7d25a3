//! The parts of the program: an application whose requests leave jobs behind, its spans in
//! OpenTelemetry, and a sampler that follows links.

use axum::{
    Router, body::Body, extract::Request, http::StatusCode, response::Response, routing::post,
};
use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanKind, TraceContextExt, TraceId, TracerProvider},
};
use opentelemetry_sdk::trace::{
    InMemorySpanExporter, Sampler, SamplingResult, SdkTracerProvider, ShouldSample,
};
use tower::ServiceExt;
use tower_http::trace::TraceLayer;
use tower_jobs::{Jobs, JobsLayer, Scheduler, SpawnError};
use tracing::{Span, Subscriber, info_span, level_filters::LevelFilter};
use tracing_subscriber::layer::SubscriberExt;

/// Sends the spans to the exporter. A deployment has the exporter of `opentelemetry-otlp`, in batches.
pub fn provider(
    exporter: &InMemorySpanExporter,
    sampler: impl ShouldSample + 'static,
) -> SdkTracerProvider {
    SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .with_sampler(sampler)
        .build()
}

/// Makes spans of OpenTelemetry from those of tracing.
pub fn subscriber(provider: &SdkTracerProvider) -> impl Subscriber + Send + Sync + use<> {
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("signup"))
        // The place of a job's span is inside tower-jobs; its field `location` is the place of the spawn.
        .with_location(false);
    tracing_subscriber::registry().with(LevelFilter::INFO).with(layer)
}

async fn signup(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    jobs.job("welcome e-mail").try_spawn(async { tracing::info!("sent") })?;
    Ok(StatusCode::ACCEPTED)
}

async fn import(jobs: Jobs) -> Result<StatusCode, SpawnError> {
    jobs.job("import").try_spawn(async { Err::<(), _>("the file has no rows") })?;
    Ok(StatusCode::ACCEPTED)
}

/// The span of a request is named by method and path. There are no ids in the paths here.
fn request_span(request: &Request) -> Span {
    let name = format!("{} {}", request.method(), request.uri().path());
    info_span!("request", otel.name = name, otel.kind = "server")
}

/// Makes the application: `POST /signup` leaves a job behind, and `POST /import` one that fails.
pub fn app(scheduler: Scheduler) -> Router {
    Router::new()
        .route("/signup", post(signup))
        .route("/import", post(import))
        .layer(JobsLayer::new(scheduler))
        .layer(TraceLayer::new_for_http().make_span_with(request_span))
}

/// Sends one request, and reads its response to the end.
///
/// # Panics
///
/// If the response's body fails, which that of `app` does not.
pub async fn call(app: Router, path: &str) -> StatusCode {
    let request = Request::post(path).body(Body::empty()).expect("a path");
    let response: Response = app.oneshot(request).await.unwrap_or_else(|never| match never {});
    let status = response.status();
    axum::body::to_bytes(response.into_body(), 1024).await.expect("a short body");
    status
}

/// Samples a root span that has a link as the first linked span was. Other spans are left to `S`.
///
/// A job's span then is exported exactly if its request's was.
#[derive(Clone, Debug)]
pub struct LinkBased<S>(pub S);

impl<S: ShouldSample + Clone + 'static> ShouldSample for LinkBased<S> {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let has_parent = parent.is_some_and(|context| context.span().span_context().is_valid());
        let sampler: &dyn ShouldSample = match links.first() {
            Some(link) if !has_parent && link.span_context.is_sampled() => &Sampler::AlwaysOn,
            Some(_) if !has_parent => &Sampler::AlwaysOff,
            _ => &self.0,
        };
        sampler.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}
