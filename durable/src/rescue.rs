//! Jobs of the process that never started, stored instead.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::{Notify, watch};

use crate::{engine::NewRow, error::PushError, stage::Stage};

/// Serializes a job, once it is known that it is needed.
type MakeRow = Box<dyn FnOnce() -> Result<NewRow, PushError> + Send>;

/// The jobs that were dropped unstarted since the shutdown began.
pub(crate) struct Rescue {
    stage: watch::Receiver<Stage>,
    /// Futures that have not been polled, nor dropped.
    unstarted: AtomicUsize,
    dropped: Mutex<Vec<MakeRow>>,
    changed: Notify,
}

impl Rescue {
    pub(crate) fn new(stage: watch::Receiver<Stage>) -> Self {
        Self {
            stage,
            unstarted: AtomicUsize::new(0),
            dropped: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Waits for the next row. `None` once every future has been polled or dropped.
    pub(crate) async fn next(&self) -> Option<MakeRow> {
        loop {
            let changed = self.changed.notified();
            // The count is read first: a future is counted until its row is here.
            let unstarted = self.unstarted.load(Ordering::Acquire);
            let row = self.dropped.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if row.is_some() || unstarted == 0 {
                return row;
            }
            changed.await;
        }
    }
}

/// A job of this process that is stored if it never starts. See [`Outbox::or_push`](crate::Outbox::or_push).
#[must_use = "spawn it"]
pub struct OrPush<F> {
    future: Pin<Box<F>>,
    /// Until the first poll.
    unstarted: Option<Unstarted>,
}

struct Unstarted {
    make_row: Option<MakeRow>,
    rescue: Arc<Rescue>,
}

impl<F> OrPush<F> {
    pub(crate) fn new(future: F, make_row: MakeRow, rescue: &Arc<Rescue>) -> Self {
        rescue.unstarted.fetch_add(1, Ordering::Relaxed);
        let unstarted = Unstarted { make_row: Some(make_row), rescue: rescue.clone() };
        Self { future: Box::pin(future), unstarted: Some(unstarted) }
    }
}

impl<F: Future> Future for OrPush<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if let Some(mut unstarted) = self.unstarted.take() {
            unstarted.make_row = None;
        }
        self.future.as_mut().poll(cx)
    }
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        let Self { make_row, rescue } = self;
        if let Some(make_row) =
            make_row.take().filter(|_| *rescue.stage.borrow() >= Stage::Stopping)
        {
            rescue.dropped.lock().unwrap_or_else(PoisonError::into_inner).push(make_row);
        }
        rescue.unstarted.fetch_sub(1, Ordering::Release);
        rescue.changed.notify_one();
    }
}

impl<F> fmt::Debug for OrPush<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrPush")
            .field("has_started", &self.unstarted.is_none())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use futures_util::FutureExt;

    use super::*;

    fn row() -> MakeRow {
        Box::new(|| Err(PushError::WrongDatabase(String::new())))
    }

    #[test]
    fn dropped_job_is_stored_only_if_the_end_has_begun() {
        let (stage, seen) = watch::channel(Stage::Open);
        let rescue = Arc::new(Rescue::new(seen));
        drop(OrPush::new(ready(()), row(), &rescue));
        assert!(rescue.next().now_or_never().unwrap().is_none());
        let waiting = OrPush::new(ready(()), row(), &rescue);
        stage.send_replace(Stage::Stopping);
        assert!(rescue.next().now_or_never().is_none(), "it may yet be dropped");
        drop(waiting);
        assert!(rescue.next().now_or_never().unwrap().is_some());
        assert!(rescue.next().now_or_never().unwrap().is_none());
    }

    #[test]
    fn started_job_is_not_stored() {
        let (_stage, seen) = watch::channel(Stage::Stopping);
        let rescue = Arc::new(Rescue::new(seen));
        let mut job = OrPush::new(std::future::pending::<()>(), row(), &rescue);
        assert!((&mut job).now_or_never().is_none());
        drop(job);
        assert!(rescue.next().now_or_never().unwrap().is_none());
    }
}
