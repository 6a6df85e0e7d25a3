//! Pushing: from handlers, and in transactions.

use std::{
    any::{Any, type_name},
    fmt,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    extract::{FromRequestParts, MatchedPath},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Request, StatusCode, request::Parts};
use tower_jobs::Jobs;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    engine::{Engine, NewRow},
    envelope::{self, Note},
    error::PushError,
    job::{DurableId, DurableJob, PushOptions},
    rescue::{OrPush, Rescue},
};

/// Stores jobs; the extractor of a request's handler.
///
/// A job pushed through it carries the request's label, `traceparent` and `tracestate`.
/// [`Durable::outbox`](crate::Durable::outbox) gives one without a request.
#[derive(Clone)]
pub struct Outbox {
    engine: Arc<dyn Engine>,
    rescue: Arc<Rescue>,
    label: Option<Arc<str>>,
    traceparent: Option<Arc<str>>,
    tracestate: Option<Arc<str>>,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("label", &self.label).finish_non_exhaustive()
    }
}

impl Outbox {
    pub(crate) fn new(engine: Arc<dyn Engine>, rescue: Arc<Rescue>) -> Self {
        Self { engine, rescue, label: None, traceparent: None, tracestate: None }
    }

    /// Stores a job. Once it returns, the job survives the process.
    ///
    /// # Errors
    ///
    /// [`PushError::Unavailable`] if the store does not answer; the others are faults of the program.
    ///
    /// # Cancel safety
    ///
    /// Dropped while it waits, it leaves open whether the job is stored.
    pub async fn push<J: DurableJob>(&self, job: J) -> Result<DurableId, PushError> {
        self.push_with(job, PushOptions::new()).await
    }

    /// Stores a job with options.
    ///
    /// # Errors
    ///
    /// Like [`push`](Self::push), and [`PushError::Duplicate`] if an unfinished job has the same
    /// [unique key](PushOptions::unique_key).
    ///
    /// # Cancel safety
    ///
    /// Like [`push`](Self::push).
    pub async fn push_with<J: DurableJob>(
        &self,
        job: J,
        options: PushOptions,
    ) -> Result<DurableId, PushError> {
        let row = self.row(&job, options)?;
        self.engine.push(row).await
    }

    /// Stores a job in the caller's transaction: the job exists exactly if the transaction commits.
    ///
    /// `transaction` is an `sqlx::Transaction`, or a connection, of the engine's database.
    ///
    /// # Errors
    ///
    /// Like [`push`](Self::push), and [`PushError::WrongDatabase`] if the transaction is of another
    /// kind of database. An error may have broken the transaction: roll it back.
    ///
    /// # Cancel safety
    ///
    /// Like [`push`](Self::push), as far as the transaction is committed.
    pub async fn push_in<J: DurableJob>(
        &self,
        transaction: &mut impl InTransaction,
        job: J,
    ) -> Result<DurableId, PushError> {
        self.push_in_with(transaction, job, PushOptions::new()).await
    }

    /// Stores a job in the caller's transaction, with options.
    ///
    /// # Errors
    ///
    /// Like [`push_in`](Self::push_in), and [`PushError::Duplicate`].
    ///
    /// # Cancel safety
    ///
    /// Like [`push_in`](Self::push_in).
    pub async fn push_in_with<J: DurableJob>(
        &self,
        transaction: &mut impl InTransaction,
        job: J,
        options: PushOptions,
    ) -> Result<DurableId, PushError> {
        let row = self.row(&job, options)?;
        self.engine.push_in(transaction.connection(), row).await
    }

    /// Makes a job of this process that is stored if the shutdown ends it before it has started.
    ///
    /// `future` is spawned as usual, and does the work of `job` at once, without the store. If the shutdown's time
    /// is over before the future is polled for the first time, `job` is pushed instead, and another process runs
    /// it. The [part](crate::Durable::part) pushes such jobs after all others are over, until the deadline, and the
    /// report says how many it pushed. One that could not be pushed makes the report unclean.
    ///
    /// A job that has started, and one that was aborted or replaced before the shutdown, is not pushed. A process
    /// that is killed pushes nothing: a job that must survive that is [pushed](Self::push) in the handler.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tower_jobs::Jobs;
    /// # use tower_jobs_durable::{DurableJob, Outbox};
    /// # #[derive(Serialize, Deserialize)] struct Reindex { user: u64 }
    /// # impl DurableJob for Reindex { const KIND: &str = "reindex"; }
    /// # async fn reindex(_: u64) {}
    /// async fn update(jobs: Jobs, outbox: Outbox) -> Result<(), tower_jobs::Error> {
    ///     jobs.after_response(outbox.or_push(Reindex { user: 7 }, reindex(7)))?;
    ///     Ok(())
    /// }
    /// ```
    pub fn or_push<J: DurableJob, F: Future>(&self, job: J, future: F) -> OrPush<F> {
        let outbox = self.clone();
        OrPush::new(future, Box::new(move || outbox.row(&job, PushOptions::new())), &self.rescue)
    }

    fn row<J: DurableJob>(&self, job: &J, options: PushOptions) -> Result<NewRow, PushError> {
        let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        let note = Note {
            max_attempts: options.max_attempts,
            label: text(&self.label),
            traceparent: text(&self.traceparent),
            tracestate: text(&self.tracestate),
            ..Note::default()
        };
        let value = serde_json::to_value(job).map_err(PushError::NotJson)?;
        let payload = envelope::wrap(value, note).map_err(PushError::NotJson)?;
        let attempts = options.max_attempts.unwrap_or(J::MAX_ATTEMPTS).max(1);
        Ok(NewRow {
            kind: J::KIND,
            payload,
            run_at: options.run_at,
            unique_key: options.unique_key,
            max_starts: attempts.saturating_add(J::MAX_CRASHES.max(1)),
            priority: options.priority,
        })
    }

    fn of_request(mut self, parts: &Parts) -> Self {
        self.label = Some(label(parts));
        self.traceparent = header(&parts.headers, "traceparent");
        self.tracestate = header(&parts.headers, "tracestate");
        // The handler's own span is nearer than its client's.
        #[cfg(feature = "opentelemetry")]
        if let Some((parent, state)) = crate::trace::current() {
            self.traceparent = Some(parent.into());
            self.tracestate = (!state.is_empty()).then(|| state.into());
        }
        self
    }
}

/// The label that tower-jobs gives the request's jobs: the method, and the matched path.
fn label(parts: &Parts) -> Arc<str> {
    if let Some(jobs) = parts.extensions.get::<Jobs>() {
        return jobs.label().into();
    }
    match parts.extensions.get::<MatchedPath>() {
        Some(path) => format!("{} {}", parts.method, path.as_str()).into(),
        None => parts.method.as_str().into(),
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<Arc<str>> {
    headers.get(name)?.to_str().ok().map(Arc::from)
}

/// A transaction, or a connection, of a database.
pub trait InTransaction: Send {
    /// Returns the connection.
    fn connection(&mut self) -> &mut (dyn Any + Send);
}

macro_rules! in_transaction {
    ($feature:literal, $database:ty, $connection:ty) => {
        #[cfg(feature = $feature)]
        impl InTransaction for sqlx::Transaction<'_, $database> {
            fn connection(&mut self) -> &mut (dyn Any + Send) {
                &mut **self
            }
        }

        #[cfg(feature = $feature)]
        impl InTransaction for $connection {
            fn connection(&mut self) -> &mut (dyn Any + Send) {
                self
            }
        }
    };
}

in_transaction!("postgres", sqlx::Postgres, sqlx::PgConnection);
in_transaction!("sqlite", sqlx::Sqlite, sqlx::SqliteConnection);

/// Gives each request an [`Outbox`]. See [`Durable::layer`](crate::Durable::layer).
#[derive(Clone, Debug)]
pub struct OutboxLayer(pub(crate) Outbox);

impl<S> Layer<S> for OutboxLayer {
    type Service = OutboxService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OutboxService { inner, outbox: self.0.clone() }
    }
}

/// The service of an [`OutboxLayer`].
#[derive(Clone, Debug)]
pub struct OutboxService<S> {
    inner: S,
    outbox: Outbox,
}

impl<S, B> Service<Request<B>> for OutboxService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.outbox.clone());
        self.inner.call(request)
    }
}

/// Rejects a request whose route has no [`OutboxLayer`] around it, with status 500 and a text that names the cure.
#[derive(Debug)]
pub struct OutboxRejection(());

impl fmt::Display for OutboxRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not among the request's extensions: add `.layer(durable.layer())` to the router, \
             after this route",
            type_name::<Outbox>()
        )
    }
}

impl std::error::Error for OutboxRejection {}

impl IntoResponse for OutboxRejection {
    fn into_response(self) -> Response {
        let text = self.to_string();
        tracing::error!("{text}");
        (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Outbox {
    type Rejection = OutboxRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let outbox = parts.extensions.get::<Self>().cloned().ok_or(OutboxRejection(()))?;
        Ok(outbox.of_request(parts))
    }
}
