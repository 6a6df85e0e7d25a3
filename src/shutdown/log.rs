//! Log lines of a shutdown. A plain thread writes them: standard output may be a full pipe.

use std::{sync::mpsc, thread, time::Duration};

use tokio::sync::oneshot;

use crate::{
    run::deadlines::real_timeout,
    shutdown::{
        report::{PhaseTimings, ShutdownReport},
        server::ServerOutput,
    },
    util::{log_context::LogContext, panics::ignore_panic},
};

type Line = Box<dyn FnOnce() + Send>;

/// The thread, which ends when this is dropped and all lines are written.
pub(super) struct Log(mpsc::Sender<Line>);

impl Log {
    /// Lines go to the caller's subscriber, in the caller's span.
    pub(super) fn start() -> Self {
        let (sender, lines) = mpsc::channel::<Line>();
        let context = LogContext::current();
        let write = move || {
            for line in lines {
                ignore_panic(|| context.run(line));
            }
        };
        // The thread is not joined: it may be held up. Without one there are no lines.
        drop(thread::Builder::new().name("tower-jobs log".into()).spawn(write));
        Self(sender)
    }

    pub(super) fn line(&self, line: impl FnOnce() + Send + 'static) {
        drop(self.0.send(Box::new(line)));
    }

    pub(super) fn report<T: ServerOutput>(&self, report: &ShutdownReport<T>) {
        let (line, server, is_clean) =
            (report.to_string(), report.server.as_str(), report.is_clean());
        let PhaseTimings { readiness, connections, jobs } = report.phases;
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    target: "tower_jobs", server, ?readiness, ?connections, ?jobs, "{line}"
                )
            };
        }
        self.line(move || if is_clean { event!(info) } else { event!(warn) });
    }

    /// Waits until all lines are written, for up to `timeout`.
    pub(super) async fn flush(&self, timeout: Duration) {
        let (written, is_written) = oneshot::channel();
        self.line(move || written.send(()).unwrap_or_default());
        drop(real_timeout(timeout, is_written).await);
    }
}
