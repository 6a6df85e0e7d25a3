#![doc = "x"]

mod atomic;
mod builder;
mod clock;
mod config;
mod contain;
mod drain;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod job;
mod jobs;
mod layer;
mod lock;
mod queue;
mod report;
mod request;
mod response;
mod runner;
mod scheduler;
mod spawn;
mod state;

pub use atomic::{Atomic, AtomicFuture, AtomicLayer};
pub use builder::SchedulerBuilder;
pub use config::SchedulerConfig;
pub use error::{BoxError, ConfigError, JobError, SpawnError, TrySpawnError};
#[cfg(feature = "axum")]
pub use extract::MissingJobs;
pub use job::{Failure, Job, JobContext, JobInfo, JobOutput};
pub use jobs::Jobs;
pub use layer::{JobsLayer, JobsService};
pub use report::{DrainReport, Stats};
pub use request::ResponseOutcome;
pub use response::{ResponseBody, ResponseFuture};
pub use runner::SpanLink;
pub use scheduler::Scheduler;
pub use spawn::{JobBuilder, RequestScope, Spawn};
pub use state::{JobId, JobState, Outcome};

/// The README's code, compiled.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
pub struct ReadMe;
