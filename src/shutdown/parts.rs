//! Parts of an application that are no jobs, and end with it.

use std::{
    borrow::Cow,
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
    time::Instant,
};

use crate::{
    job::{
        error::{BoxError, JobError},
        output::JobOutput,
    },
    run::deadlines::timeout_at,
    util::{
        one_line::{OneLine, chain},
        panics::forget_panic,
        sync::lock_std,
    },
};

type PartFuture = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// A part that has not begun.
pub(super) struct Part {
    name: Cow<'static, str>,
    run: Box<dyn FnOnce(PartContext) -> PartFuture + Send>,
}

impl Part {
    pub(super) fn new<F>(
        name: Cow<'static, str>,
        run: impl FnOnce(PartContext) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let run = |context| -> PartFuture {
            let part = run(context);
            Box::pin(async move { part.await.into_result().map(drop) })
        };
        Self { name, run: Box::new(run) }
    }
}

/// How far the shutdown is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Serving,
    Begun { deadline: Instant },
    JobsOver { deadline: Instant },
}

/// A part's view of the shutdown. See [`Shutdown::part`](crate::Shutdown::part).
#[derive(Clone, Debug)]
pub struct PartContext {
    stage: watch::Receiver<Stage>,
    note: Note,
}

/// A part's own text in the report.
type Note = Arc<Mutex<Option<String>>>;

impl PartContext {
    /// Resolves when the shutdown begins: at the signal, or when the server has ended by itself.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn begun(&self) {
        self.reached(|stage| !matches!(stage, Stage::Serving)).await;
    }

    /// Resolves when the jobs of all schedulers are over, and so are the hooks, or their time.
    ///
    /// From then on nothing of the shutdown uses the application's pools and clients. An abandoned job may.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn jobs_over(&self) {
        self.reached(|stage| matches!(stage, Stage::JobsOver { .. })).await;
    }

    /// Resolves when no more than `left` is left until the [`deadline`](Self::deadline).
    ///
    /// It is for a part whose own work has an end that takes time. A later signal moves the deadline, and this
    /// follows it.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any point.
    pub async fn left(&self, left: Duration) {
        let mut stage = self.stage.clone();
        loop {
            let end =
                self.deadline().map(|deadline| deadline.checked_sub(left).unwrap_or(deadline));
            match timeout_at(end, stage.changed()).await {
                Ok(Ok(())) => {}
                // The shutdown was dropped, and the part will be.
                Ok(Err(_)) => pending().await,
                Err(_) => return,
            }
        }
    }

    /// Sets a text for the [report](PartReport::note): the outcome of the part's own work, in one line.
    pub fn note(&self, text: impl Into<String>) {
        *lock_std(&self.note) = Some(text.into());
    }

    /// Returns the end of the grace, once the shutdown has begun. A later signal moves it to an earlier time.
    pub fn deadline(&self) -> Option<Instant> {
        let stage = *self.stage.borrow();
        match stage {
            Stage::Serving => None,
            Stage::Begun { deadline } | Stage::JobsOver { deadline } => Some(deadline),
        }
    }

    async fn reached(&self, is_reached: fn(&Stage) -> bool) {
        let mut stage = self.stage.clone();
        if stage.wait_for(is_reached).await.is_err() {
            // The shutdown was dropped, and the part will be.
            pending::<()>().await;
        }
    }
}

/// How a part of the application ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum PartOutcome {
    /// It returned.
    Ended,
    /// It returned this error, in one line with its causes.
    Failed(String),
    /// It panicked with this text.
    Panicked(String),
    /// It had not ended by the end of its time, and was dropped.
    Unfinished,
}

/// A part of the application, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PartReport {
    /// The name that was given to [`Shutdown::part`](crate::Shutdown::part).
    pub name: String,
    /// How it ended.
    pub outcome: PartOutcome,
    /// Its own text, given with [`PartContext::note`].
    pub note: Option<String>,
}

impl fmt::Display for PartReport {
    /// Formats as `part "pool" unfinished`, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part \"{}\" ", OneLine(&self.name))?;
        match &self.outcome {
            PartOutcome::Ended => f.write_str("ended"),
            PartOutcome::Failed(error) => write!(f, "failed ({})", OneLine(error)),
            PartOutcome::Panicked(text) => write!(f, "panicked ({})", OneLine(text)),
            PartOutcome::Unfinished => f.write_str("unfinished"),
        }?;
        match &self.note {
            Some(note) => write!(f, ": {}", OneLine(note)),
            None => Ok(()),
        }
    }
}

/// The parts at work, each as a task. Dropped, it drops them.
pub(super) struct Parts {
    tasks: Vec<(Cow<'static, str>, Note, JoinHandle<PartOutcome>)>,
    /// Of the parts that have ended, in the order of `tasks`.
    outcomes: Vec<PartOutcome>,
    stage: watch::Sender<Stage>,
}

impl Parts {
    pub(super) fn start(parts: Vec<Part>) -> Self {
        let (stage, seen) = watch::channel(Stage::Serving);
        let start = |Part { name, run }: Part| {
            let note = Note::default();
            let part = run(PartContext { stage: seen.clone(), note: note.clone() });
            let task = async {
                match part.await {
                    Ok(()) => PartOutcome::Ended,
                    Err(error) => PartOutcome::Failed(chain(&*error)),
                }
            };
            #[expect(
                clippy::disallowed_methods,
                reason = "`serve` is polled in a runtime, and ends them"
            )]
            let task = tokio::spawn(task);
            (name, note, task)
        };
        Self { tasks: parts.into_iter().map(start).collect(), outcomes: Vec::new(), stage }
    }

    pub(super) fn begin(&self, deadline: Instant) {
        self.stage.send_replace(Stage::Begun { deadline });
    }

    pub(super) fn tell_jobs_over(&self, deadline: Instant) {
        self.stage.send_replace(Stage::JobsOver { deadline });
    }

    /// Resolves when all have ended. Can be dropped, and called again.
    pub(super) async fn all_ended(&mut self) {
        while let Some((_, _, task)) = self.tasks.get_mut(self.outcomes.len()) {
            let outcome = match task.await {
                Ok(outcome) => outcome,
                Err(error) => panicked(error),
            };
            self.outcomes.push(outcome);
        }
    }

    /// Drops the parts that have not ended, and reports all.
    pub(super) async fn into_reports(mut self) -> Vec<PartReport> {
        // A part that has ended is not unfinished because an earlier one is.
        let mut reports = Vec::new();
        for (index, (name, note, task)) in self.tasks.iter_mut().enumerate() {
            let outcome = match self.outcomes.get(index) {
                Some(outcome) => outcome.clone(),
                None if task.is_finished() => match task.await {
                    Ok(outcome) => outcome,
                    Err(error) => panicked(error),
                },
                None => PartOutcome::Unfinished,
            };
            let note = lock_std(note).take();
            reports.push(PartReport { name: name.to_string(), outcome, note });
        }
        reports
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(_, _, task)| task.abort());
    }
}

fn panicked(error: JoinError) -> PartOutcome {
    // Otherwise the runtime has gone away.
    let Ok(payload) = error.try_into_panic() else { return PartOutcome::Unfinished };
    let error = JobError::panicked(payload);
    let text = error.panic_text().unwrap_or_default().to_owned();
    if let Ok(payload) = error.into_panic() {
        forget_panic(payload);
    }
    PartOutcome::Panicked(text)
}
