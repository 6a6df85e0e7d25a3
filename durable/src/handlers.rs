//! The kinds of an application, and the verdict on a job that ended.

use std::{
    any::type_name, collections::HashMap, error::Error as StdError, fmt::Write, future::Future,
    panic::Location, sync::Arc, time::Duration,
};

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::watch;
use tower_jobs::{BoxError, JobError, JobOutput};

use crate::{
    context::{DurableContext, Interrupted},
    engine::{Claimed, Verdict},
    envelope::{self, Note},
    job::DurableJob,
    stage::Stage,
};

/// A job is a suspect when it has used up this part of its crashes. Of the many that were running when a process
/// died by chance, few get that far.
const SUSPECT_SHARE: u32 = 4;
/// Bytes of an error text that is stored.
const MAX_ERROR: usize = 2_000;

/// How a handler ended without an error.
pub(crate) enum End {
    Completed,
    /// It stopped because of the shutdown.
    Interrupted,
}

type Try = BoxFuture<'static, Result<End, BoxError>>;

type Run = Arc<dyn Fn(Value, DurableContext) -> Try + Send + Sync>;

/// A kind that this process has a handler for.
#[derive(Clone)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) limit: Option<usize>,
    max_attempts: u32,
    max_crashes: u32,
    timeout: Option<Duration>,
    run: Run,
    registered_at: &'static Location<'static>,
}

/// The kinds, by name.
#[derive(Default)]
pub(crate) struct Handlers(HashMap<&'static str, Kind>);

/// A row that is about to run.
pub(crate) struct Prepared {
    pub(crate) kind: &'static str,
    pub(crate) is_limited: bool,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) timeout: Option<Duration>,
    /// So many processes have died while it ran that it runs with no other such job beside it.
    pub(crate) is_suspect: bool,
    pub(crate) future: Try,
    pub(crate) judge: Judge,
}

impl Handlers {
    #[track_caller]
    pub(crate) fn register<J, F, Fut>(&mut self, handler: F, limit: Option<usize>)
    where
        J: DurableJob,
        F: Fn(J, DurableContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: JobOutput> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let run = move |job: Value, context: DurableContext| -> Try {
            let handler = handler.clone();
            Box::pin(async move {
                let job = serde_json::from_value(job).map_err(|error| {
                    format!(
                        "the stored job is not a `{}`{}",
                        type_name::<J>(),
                        without_value(&error)
                    )
                })?;
                #[cfg(feature = "opentelemetry")]
                crate::trace::link(&context);
                let heard = context.clone();
                match handler(job, context).await.into_result() {
                    Ok(_) => Ok(End::Completed),
                    Err(error) if heard.is_shutting_down() && Interrupted::is_cause_of(&error) => {
                        Ok(End::Interrupted)
                    }
                    Err(error) => Err(error),
                }
            })
        };
        let kind = Kind {
            name: J::KIND,
            limit,
            max_attempts: J::MAX_ATTEMPTS.max(1),
            max_crashes: J::MAX_CRASHES.max(1),
            timeout: J::TIMEOUT,
            run: Arc::new(run),
            registered_at: Location::caller(),
        };
        if let Some(first) = self.0.insert(J::KIND, kind) {
            panic!(
                "the kind \"{}\" is registered at {} and again at {}: give one of the two types another KIND",
                J::KIND,
                first.registered_at,
                Location::caller()
            );
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.0.values()
    }

    /// Makes a row's job, or says why it is dead without being run.
    pub(crate) fn prepare(
        &self,
        row: &Claimed,
        stage: &watch::Receiver<Stage>,
    ) -> Result<Prepared, Verdict> {
        let dead = |error: String| {
            tracing::error!(id = %row.id, kind = row.kind, error, "a durable job is dead");
            Verdict::Dead { error }
        };
        let Some(kind) = self.0.get(row.kind.as_str()) else {
            // The store gave a kind that was not asked for: another process knows it.
            return Err(Verdict::Release { after: Duration::from_secs(1) });
        };
        let (job, note) = envelope::unwrap(&row.payload)
            .map_err(|error| dead(format!("the stored payload is not JSON: {error}")))?;
        let crashes = row.starts.saturating_sub(1).saturating_sub(note.failures);
        if crashes >= kind.max_crashes {
            return Err(dead(format!("{crashes} processes have died while it ran")));
        }
        let context = DurableContext::new(row, &note, stage.clone());
        let label = note.label.as_deref().map(Arc::from);
        Ok(Prepared {
            kind: kind.name,
            is_limited: kind.limit.is_some(),
            label,
            timeout: kind.timeout,
            is_suspect: crashes.saturating_mul(SUSPECT_SHARE) >= kind.max_crashes,
            future: (kind.run)(job, context),
            judge: Judge {
                row: row.clone(),
                max_attempts: note.max_attempts.unwrap_or(kind.max_attempts).max(1),
            },
        })
    }
}

/// Decides the verdict on a row, once its job has ended.
pub(crate) struct Judge {
    row: Claimed,
    max_attempts: u32,
}

impl Judge {
    pub(crate) fn judge(self, ended: Result<End, JobError>, is_stopping: bool) -> Verdict {
        match ended {
            Ok(End::Completed) => Verdict::Done,
            Ok(End::Interrupted) => Verdict::Release { after: Duration::ZERO },
            Err(error) if error.is_abandoned() => Verdict::Leave,
            Err(error) if is_stopping && (error.is_cancelled() || error.is_close_timeout()) => {
                Verdict::Release { after: Duration::ZERO }
            }
            // A cancelled job counts as failed while nothing is stopping: released, it would start again at once.
            Err(error) => self.failed(one_line(&error)),
        }
    }

    fn failed(self, error: String) -> Verdict {
        let Claimed { id, kind, payload, .. } = self.row;
        // It could be unwrapped when the job began.
        let (job, note) = envelope::unwrap(&payload).unwrap_or_default();
        let failures = note.failures.saturating_add(1);
        if failures >= self.max_attempts {
            tracing::error!(%id, kind, failures, error, "a durable job is dead");
            return Verdict::Dead { error };
        }
        let after = backoff(failures);
        tracing::warn!(%id, kind, failures, ?after, error, "a durable job failed, and is tried again");
        match envelope::wrap(job, Note { failures, ..note }) {
            Ok(payload) => Verdict::Retry { payload, error, after },
            Err(unwritable) => Verdict::Dead { error: format!("{error}; {unwritable}") },
        }
    }
}

/// The pause after so many failures: e^n seconds, at most 6 hours. It is Graphile Worker's rule.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs_f64(f64::from(failures.min(10)).exp())
}

/// The part of serde's text that holds nothing of the payload: `invalid type: string "secret", expected u32` is
/// of the stored value up to the comma.
fn without_value(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.starts_with("missing field `") {
        return format!(": {text}");
    }
    // Any other text may be the application's own.
    let is_serdes = ["invalid type: ", "invalid value: ", "invalid length "];
    match text.rsplit_once(", expected ") {
        Some((_, expected)) if is_serdes.iter().any(|start| text.starts_with(start)) => {
            format!(": expected {expected}")
        }
        _ => String::new(),
    }
}

/// An error and its causes in one line.
pub(crate) fn one_line(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, ": {error}").unwrap_or_default();
        cause = error.source();
    }
    let mut line: String =
        text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    if line.len() > MAX_ERROR {
        let end = (0..=MAX_ERROR).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}
