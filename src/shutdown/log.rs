//! Log lines of a shutdown. A plain thread writes them: standard output may be a full pipe.

use std::{sync::mpsc, thread, time::Duration};

use tokio::sync::oneshot;
use tracing::{Span, dispatcher};

use crate::{run::deadlines::real_timeout, util::panics::ignore_panic};

type Line = Box<dyn FnOnce() + Send>;

/// The thread, which ends when this is dropped and all lines are written.
pub(super) struct Log(mpsc::Sender<Line>);

impl Log {
    /// Lines go to the caller's subscriber, in the caller's span.
    pub(super) fn start() -> Self {
        let (sender, lines) = mpsc::channel::<Line>();
        let (span, dispatch) = (Span::current(), dispatcher::get_default(Clone::clone));
        let write = move || {
            for line in lines {
                ignore_panic(|| dispatcher::with_default(&dispatch, || span.in_scope(line)));
            }
        };
        // The thread is not joined: it may be held up. Without one there are no lines.
        drop(thread::Builder::new().name("tower-jobs log".into()).spawn(write));
        Self(sender)
    }

    pub(super) fn line(&self, line: impl FnOnce() + Send + 'static) {
        drop(self.0.send(Box::new(line)));
    }

    /// Waits until all lines are written, for up to `timeout`.
    pub(super) async fn flush(&self, timeout: Duration) {
        let (written, is_written) = oneshot::channel();
        self.line(move || written.send(()).unwrap_or_default());
        drop(real_timeout(timeout, is_written).await);
    }
}
