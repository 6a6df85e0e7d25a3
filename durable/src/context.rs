//! A durable job's view of itself.

use std::time::SystemTime;

use crate::{engine::Claimed, envelope::Note, job::DurableId};

/// A try of a job.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DurableContext {
    /// The job's id, the same in each try: the key by which a handler makes its work idempotent.
    pub id: DurableId,
    /// Which try this is, from 1. A crash and a release do not count.
    pub attempt: u32,
    /// How many processes have died while the job ran.
    pub crashes: u32,
    /// The label of the request that pushed the job, such as `POST /users`.
    pub label: Option<String>,
    /// The W3C `traceparent` of the request that pushed the job.
    pub traceparent: Option<String>,
    /// The W3C `tracestate` beside it.
    pub tracestate: Option<String>,
    /// When the job could first have started, if the store knows.
    pub ready_since: Option<SystemTime>,
}

impl DurableContext {
    pub(crate) fn new(row: &Claimed, note: &Note) -> Self {
        Self {
            id: row.id.clone(),
            attempt: note.failures.saturating_add(1),
            crashes: row.starts.saturating_sub(1).saturating_sub(note.failures),
            label: note.label.clone(),
            traceparent: note.traceparent.clone(),
            tracestate: note.tracestate.clone(),
            ready_since: row.ready_since,
        }
    }
}
