//! Background jobs for axum and any other tower HTTP service: limited, reported, and drained at
//! shutdown.
//!
//! A handler responds, and leaves work to do after it: a welcome e-mail, an audit row, a webhook.
//! With a bare `tokio::spawn` that work is lost at the next deploy, has no limit under load, and fails
//! silently. Here it is a *job* of a [`Scheduler`]:
//!
//! - A limited number of jobs run at once. Others wait in order, and a full queue makes callers wait.
//! - Every failure is reported exactly once: to the code that awaits the job, else to one hook.
//! - [`wait_and_close`](Scheduler::wait_and_close) lets jobs finish, returns by its deadline whatever
//!   they do, and names every job that failed, was cancelled or did not end.
//! - A job belongs to a request: it can start when the response is over, outlives a client that
//!   disconnects, and in a test the jobs of one request can be awaited alone.
//!
//! **It is not a durable queue.** A job lives in memory. If the process is killed or crashes, its
//! jobs are lost. The sibling crate `tower-jobs-durable` stores work that must survive, in PostgreSQL or in an
//! SQLite file, and runs it under the same shutdown. Other engines: `underway` (Postgres), `apalis` (also
//! MySQL and Redis), `rusty-sidekiq` (Redis).
//!
//! # Getting started
//!
//! ```no_run
//! # #[cfg(all(feature = "axum", feature = "shutdown"))] mod example {
//! use axum::{Router, http::StatusCode, routing::post};
//! use tower_jobs::{Jobs, JobsLayer, Scheduler, Shutdown, SpawnError};
//!
//! # async fn send_welcome() -> std::io::Result<()> { Ok(()) }
//! async fn signup(jobs: Jobs) -> Result<StatusCode, SpawnError> {
//!     jobs.try_spawn(send_welcome())?; // answers 503 while the queue is full
//!     Ok(StatusCode::ACCEPTED)
//! }
//!
//! # async fn serve() -> std::io::Result<()> {
//! let scheduler = Scheduler::builder().limit(20).build();
//! let app = Router::new().route("/signup", post(signup)).layer(JobsLayer::new(scheduler.clone()));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! let report = Shutdown::new(&scheduler)
//!     .serve(|stop| axum::serve(listener, app).with_graceful_shutdown(stop).into_future())
//!     .await;
//! report.print(); // the outcome of the jobs, in one line
//! # Ok(()) }
//! # }
//! ```
//!
//! | read | for |
//! |---|---|
//! | [`Scheduler`] | spawning, closing and inspecting jobs; guarantees and their limits |
//! | [`SchedulerBuilder`], [`SchedulerConfig`] | settings, from code and from files |
//! | [`Job`], [`JobContext`], [`JobOutput`] | a job's handle, its view of itself, and its result |
//! | [`JobBuilder`] | jobs with a name, a run timeout or a key |
//! | [`JobsLayer`], [`Jobs`] | one request's view of the scheduler; jobs after the response |
//! | [`AtomicLayer`] | handlers that run to their end although the client disconnects |
//! | [`Shutdown`] | signal, server and jobs under one deadline |
//! | [`DrainReport`], [`JobList`], [`Stats`] | how jobs ended, and how many are in each state |
//! | [`docs::verbs`], [`docs::migration`] | all verbs in tables; the names of aiojobs, tokio, FastAPI, Express, Laravel, Next.js and Spring, and those here |
//! | [`docs::recipes`] | retry, delay, periodic work and more, each a program |
//! | [`docs::middleware_order`] | the effect of other layers, inside or outside, on jobs |
//! | [`docs::response_end`] | when a response is over, and when it is complete |
//! | [`docs::context`] | the request's span, request id, Sentry hub and baggage in its jobs |
//! | [`docs::shutdown`] | several servers, probes, periodic and start-up work under one end |
//! | [`docs::testing`] | testing your handlers |
//! | [`docs::observability`] | spans, log lines and OpenTelemetry; which view answers which question |
//! | [`docs::metrics`] | metrics, with queries and alerts |
//! | [`docs::design`], [`docs::performance`] | how the crate works inside, and the cost of a job |
//!
//! # Features
//!
//! | feature | default | it adds |
//! |---|---|---|
//! | `axum` | yes | the [`Jobs`] extractor, errors that are responses, labels with axum's matched path, and the handlers [`readiness`] and [`liveness`]; needs `axum` without its default features |
//! | `shutdown` | yes | [`Shutdown`]; needs `signal-hook`, and on Windows tokio's `signal` |
//! | `serde` | no | [`SchedulerConfig`] from configuration files; snapshots that serialize |
//! | `metrics` | no | [`JobMetrics`]: counts, gauges and histograms for Prometheus and the like; needs `metrics` |
//! | `testing` | no | the module `testing`: schedulers and checks for the tests of applications |
#![cfg_attr(docsrs, feature(doc_cfg))]
// Links to the items of a feature are broken without it.
#![cfg_attr(
    not(all(feature = "axum", feature = "metrics", feature = "shutdown", feature = "testing")),
    allow(rustdoc::broken_intra_doc_links)
)]

#[macro_use]
mod util;

#[cfg(any(doc, doctest))]
pub mod docs;
mod http;
mod job;
mod report;
mod rules;
mod run;
mod scheduler;
#[cfg(feature = "shutdown")]
mod shutdown;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "axum")]
pub use crate::http::axum::{JobsRejection, liveness, readiness};
pub use crate::http::{
    after_response::RequestScope,
    atomic::{Atomic, AtomicFuture, AtomicLayer},
    body::{ResponseBody, ResponseFuture},
    jobs::Jobs,
    layer::{JobsLayer, JobsService},
    outcome::ResponseOutcome,
};
pub use job::{
    any_error::Error,
    error::{BoxError, JobError, SpawnError, TrySpawnError},
    info::JobInfo,
    options::JobKind,
    output::{JobOutput, PlainValue, ValueFuture, display_error, value},
    span::SpanLink,
};
pub use report::{
    drain_report::DrainReport,
    failure::JobFailure,
    job_list::JobList,
    memory::{EndedJob, Lookup},
    observer::{JobEnd, JobSeen, Observer, RefusalReason},
    stats::{Refusals, Stats},
};
pub use rules::{
    config::{ConfigError, SchedulerConfig},
    state::{JobId, JobState, Outcome, ParseJobIdError, Phase},
};
#[cfg(feature = "metrics")]
pub use scheduler::metrics::JobMetrics;
pub use scheduler::{
    Scheduler,
    builder::SchedulerBuilder,
    handle::{Job, JobContext},
    permit::Permit,
    spawn::JobBuilder,
    spawn_future::SpawnFuture,
    weak::WeakScheduler,
};
#[cfg(feature = "shutdown")]
pub use shutdown::{
    PartContext, PartOutcome, PartReport, PhaseTimings, ServerOutcome, ServerOutput, Shutdown,
    ShutdownReport, StopSignal, UnfinishedHooks,
};

/// The README's code, compiled.
#[cfg(all(doctest, feature = "axum", feature = "shutdown"))]
#[doc = include_str!("../README.md")]
pub struct ReadMe;
