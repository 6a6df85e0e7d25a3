//! Subscribers of tracing, each for one thread.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Debug,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use tracing::{
    Dispatch, Metadata, Subscriber, dispatcher,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::{DefaultGuard, Interest},
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

/// Makes `layer` the subscriber of this thread until the guard is dropped.
pub(crate) fn subscribe(layer: impl Layer<Registry> + Send + Sync) -> DefaultGuard {
    dispatcher::set_default(&dispatch(layer))
}

pub(crate) fn dispatch(layer: impl Layer<Registry> + Send + Sync) -> Dispatch {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| dispatcher::set_global_default(Undecided.into()).expect("no other"));
    Registry::default().with(layer).into()
}

/// The subscriber of all other threads: it wants nothing, and has tracing ask again each time.
///
/// tracing keeps the interest in a place in the source for all threads. Without this subscriber, a
/// test that has none could decide that no thread is interested.
struct Undecided;

impl Subscriber for Undecided {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        unreachable!("nothing is enabled")
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &tracing::Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The fields of one event by name, its `level`, its `target`, the names of the `spans` it is in,
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

    /// An error with all its causes.
    fn record_error(&mut self, field: &Field, mut error: &(dyn Error + 'static)) {
        let mut text = error.to_string();
        while let Some(cause) = error.source() {
            text += &format!(" <- {cause}");
            error = cause;
        }
        self.0.insert(field.name().to_owned(), text);
    }
}

/// The events of one thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs(Arc<Mutex<Vec<Event>>>);

impl Logs {
    /// Keeps the events of this thread until the guard is dropped.
    pub(crate) fn start() -> (Self, DefaultGuard) {
        let logs = Self::default();
        let guard = subscribe(logs.clone());
        (logs, guard)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Event> {
        self.0.lock().expect("no panic").clone().into_iter()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Logs {
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

/// The names of the spans that the caller is in, innermost first.
pub(crate) fn span_names() -> Vec<&'static str> {
    dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>();
        let current = dispatch.current_span();
        let span = current.id().zip(registry).and_then(|(id, registry)| registry.span(id));
        span.into_iter().flat_map(|span| span.scope()).map(|span| span.name()).collect()
    })
}

/// A subscriber that panics in one of its callbacks while it is on.
#[derive(Clone)]
pub(crate) struct Broken {
    callback: &'static str,
    is_on: Arc<AtomicBool>,
    panics: Arc<AtomicUsize>,
}

impl Broken {
    /// Starts switched off, for this thread until the guard is dropped.
    pub(crate) fn start(callback: &'static str) -> (Self, DefaultGuard) {
        let broken = Self { callback, is_on: Arc::default(), panics: Arc::default() };
        let guard = subscribe(broken.clone());
        (broken, guard)
    }

    pub(crate) fn switch(&self, on: bool) {
        self.is_on.store(on, Relaxed);
    }

    pub(crate) fn panics(&self) -> usize {
        self.panics.load(Relaxed)
    }

    fn called(&self, callback: &str) {
        if self.callback == callback && self.is_on.load(Relaxed) {
            self.panics.fetch_add(1, Relaxed);
            panic!("a broken subscriber");
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Broken {
    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        self.called("enter");
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        self.called("exit");
    }

    fn on_record(&self, _: &Id, _: &Record<'_>, _: Context<'_, S>) {
        self.called("record");
    }

    fn on_close(&self, _: Id, _: Context<'_, S>) {
        self.called("close");
    }

    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        self.called("event");
    }
}
