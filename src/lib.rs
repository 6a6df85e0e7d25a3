//! Background jobs for axum and any other tower HTTP service: limited, reported, and drained at
//! shutdown.
//!
//! A handler answers its client and leaves work behind: the welcome e-mail, the audit row, the
//! webhook. With a bare `tokio::spawn` that work is lost at the next deploy, unlimited under load,
//! and silent when it fails. Here it is a *job* of a [`Scheduler`]:
//!
//! - at most so many run at once, the others wait in order, and a full queue pushes back;
//! - every failure is reported exactly once, to whoever awaits the job or else to one hook;
//! - [`wait_and_close`](Scheduler::wait_and_close) lets jobs finish, comes back in time whatever
//!   they do, and names every job that did not end well;
//! - jobs know their request: they can start when its response is over, outlive a client that
//!   leaves, and are drained one request at a time in tests.
//!
//! **It is not a durable queue.** A job lives in memory. When the process is killed or crashes, its
//! jobs are lost; work that must survive belongs in an engine that stores it: `graphile_worker` or
//! `underway` (Postgres), `apalis` (Postgres, MySQL, SQLite, Redis), `rusty-sidekiq` (Redis).
//!
//! # Where to begin
//!
//! ```no_run
//! # #[cfg(all(feature = "axum", feature = "shutdown"))] mod example {
//! use axum::{Router, http::StatusCode, routing::post};
//! use tower_jobs::{Jobs, JobsLayer, Scheduler, Shutdown, SpawnError};
//!
//! # async fn send_welcome() -> std::io::Result<()> { Ok(()) }
//! async fn signup(jobs: Jobs) -> Result<StatusCode, SpawnError> {
//!     jobs.spawn(send_welcome()).await?;
//!     Ok(StatusCode::ACCEPTED)
//! }
//!
//! # async fn serve() -> std::io::Result<()> {
//! let scheduler = Scheduler::builder().limit(20).build();
//! let app = Router::new().route("/signup", post(signup)).layer(JobsLayer::new(scheduler.clone()));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! let report = Shutdown::new(&scheduler) // with the feature `shutdown`
//!     .serve(|stop| axum::serve(listener, app).with_graceful_shutdown(stop).into_future())
//!     .await;
//! report.print(); // the outcome of the jobs, in one line
//! # Ok(()) }
//! # }
//! ```
//!
//! | read | for |
//! |---|---|
//! | [`Scheduler`] | spawning, closing, looking; what it guarantees and what it does not |
//! | [`SchedulerBuilder`], [`SchedulerConfig`] | settings, from code and from files |
//! | [`Job`], [`JobContext`], [`JobOutput`] | the handle, the inside, and the result of a job |
//! | [`JobBuilder`] | a job with a name, a run timeout, a key |
//! | [`JobsLayer`], [`Jobs`] | one request's view of the scheduler; jobs after the response |
//! | [`AtomicLayer`] | handlers that a leaving client cannot cut in half |
//! | [`Shutdown`] | signal, server and jobs under one deadline |
//! | [`DrainReport`], [`JobList`], [`Stats`] | what became of jobs, and how many are where |
//! | [`docs::middleware_order`] | what other layers, inside or outside, mean for jobs |
//! | [`docs::testing`] | testing your handlers |
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `axum` | yes | the [`Jobs`] extractor, spawn errors that are responses, and the handlers [`readiness`] and [`liveness`]; needs `axum-core` only |
//! | `matched-path` | no | jobs are labelled with axum's matched path (`/users/{id}`) instead of the request's path; needs `axum` |
//! | `shutdown` | no | [`Shutdown`]; needs `signal-hook`, and on Windows tokio's `signal` |
//! | `serde` | no | [`SchedulerConfig`] from configuration files; snapshots that serialize |
//! | `testing` | no | the module `testing`: schedulers and checks for the tests of applications |
//!
//! # How a response ends
//!
//! "After the response" is the moment when the server drops the response's body, since that always
//! comes and nothing else does. By then it is *complete* if the body gave its end or trailers, said
//! that it had reached its end, or, over HTTP/1, gave as many bytes as it had declared; or if such a
//! response has no body (`HEAD`, 101, 204, 304, a `CONNECT` that succeeds). Else, if it failed, or if it
//! ended short of what it had declared, it was aborted. (So is a status 1xx other than 101: that is no
//! response, and over HTTP/1 hyper sends a 500 instead.) hyper 1.12 was seen to do this with bodies:
//!
//! | response | frames polled: HTTP/1.1, HTTP/2 | polled to `None` | at its end when dropped |
//! |---|---|---|---|
//! | 204, or empty | 0, 0 | no | yes |
//! | `"hello"` | 1, 1 | no | yes |
//! | a stream of unknown length | 3, 3 | yes | no |
//! | a stream of two frames with `content-length` | 2, 3 | no, yes | no |
//! | a stream of one frame and trailers | 2, 2 | no | no |
//! | a body of `"hello"` for `HEAD` | 0, 1 | no | no, yes |
//!
//! The body is dropped once its last part is in the server's buffer, which can be before the client
//! has read its first byte: a job after the response can therefore start before that. Over HTTP/2
//! it is dropped in another task than the one that writes to the socket; such a job lets that task
//! go first.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Links to what a feature adds lead nowhere without it.
#![cfg_attr(
    not(all(feature = "axum", feature = "shutdown", feature = "testing")),
    allow(rustdoc::broken_intra_doc_links)
)]

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
mod util;

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
    error::{BoxError, JobError, SpawnError, TrySpawnError},
    info::JobInfo,
    output::JobOutput,
    span::SpanLink,
};
pub use report::{
    drain_report::{DrainReport, Stats},
    failure::JobFailure,
    job_list::JobList,
};
pub use rules::{
    config::{ConfigError, SchedulerConfig},
    state::{JobId, JobState, Outcome},
};
pub use scheduler::{
    Scheduler,
    builder::SchedulerBuilder,
    handle::{Job, JobContext},
    spawn::{JobBuilder, SpawnFuture},
};
#[cfg(feature = "shutdown")]
pub use shutdown::{
    PhaseTimings, ServerOutcome, ServerOutput, Shutdown, ShutdownReport, StopSignal,
    UnfinishedHooks,
};

/// The README's code, compiled.
#[cfg(all(doctest, feature = "axum", feature = "shutdown"))]
#[doc = include_str!("../README.md")]
pub struct ReadMe;
