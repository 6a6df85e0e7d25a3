//! What is logged while tests run, to be looked through.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Debug,
    sync::{LazyLock, Mutex},
};

use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{Layer, Registry, layer::Context, prelude::*, registry::LookupSpan};

/// The fields of one event by name; its `level`, its `target`, the names of the `spans` it is in,
/// innermost first, and the fields of the innermost one, as `span.field`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Event(BTreeMap<String, String>);

impl Event {
    /// Empty if there is no such field.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl Visit for Event {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    /// An error with all that caused it.
    fn record_error(&mut self, field: &Field, mut error: &(dyn Error + 'static)) {
        let mut text = error.to_string();
        while let Some(cause) = error.source() {
            text += &format!(" <- {cause}");
            error = cause;
        }
        self.0.insert(field.name().to_owned(), text);
    }
}

/// All events of this process. Tests run side by side: tell yours by its fields.
#[derive(Debug, Default)]
pub(crate) struct Logs(Mutex<Vec<Event>>);

impl Logs {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Event> {
        self.0.lock().expect("no panic").clone().into_iter()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for &'static Logs {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Event::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Event::default();
        event.record(&mut fields);
        let spans = context.event_scope(event).into_iter().flatten().map(|span| span.name());
        let metadata = event.metadata();
        fields.0.extend([
            ("level".to_owned(), metadata.level().to_string()),
            ("target".to_owned(), metadata.target().to_owned()),
            ("spans".to_owned(), spans.collect::<Vec<_>>().join(" ")),
        ]);
        if let Some(span) = context.event_span(event) {
            let of_span = span.extensions().get::<Event>().cloned().unwrap_or_default();
            fields
                .0
                .extend(of_span.0.into_iter().map(|(name, text)| (format!("span.{name}"), text)));
        }
        self.0.lock().expect("no panic").push(fields);
    }
}

/// Captures from the first call on, in all threads.
pub(crate) fn capture() -> &'static Logs {
    static LOGS: LazyLock<&'static Logs> = LazyLock::new(|| {
        let logs: &'static Logs = Box::leak(Box::default());
        Registry::default().with(logs).init();
        logs
    });
    *LOGS
}

/// The spans that the caller is in, innermost first.
#[allow(dead_code, reason = "not every test asks")]
pub(crate) fn span_names() -> Vec<&'static str> {
    tracing::dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>();
        let current = dispatch.current_span();
        let span = current.id().zip(registry).and_then(|(id, registry)| registry.span(id));
        span.into_iter().flat_map(|span| span.scope()).map(|span| span.name()).collect()
    })
}
