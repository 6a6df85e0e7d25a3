//! Waiting with a deadline, wherever the caller happens to run.

use std::{future::Future, pin::pin, task::Poll};

use tokio::{
    runtime::Handle,
    time::{self, Instant},
};

/// The deadline passed first.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Awaits `future` until `deadline`; `None` is never.
///
/// A caller outside any runtime borrows the timer of `runtime`, through a task of its own: a timer
/// polled after its runtime ended would panic, a task's handle then merely resolves.
pub(crate) async fn timeout_at<F: Future>(
    runtime: Option<&Handle>,
    deadline: Option<Instant>,
    future: F,
) -> Result<F::Output, Elapsed> {
    let Some(deadline) = deadline else {
        return Ok(future.await);
    };
    match runtime {
        _ if Handle::try_current().is_ok() => {
            time::timeout_at(deadline, future).await.map_err(|_| Elapsed)
        }
        Some(runtime) => {
            // Made inside the task: a timer cannot be made outside a runtime either.
            let timer = async move { time::sleep_until(deadline).await };
            let mut timer = AbortOnDrop(runtime.spawn(timer));
            first(future, pin!(async move { (&mut timer.0).await.is_ok() })).await
        }
        None => Ok(future.await),
    }
}

async fn first<F: Future>(future: F, mut timer: impl Future + Unpin) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        std::pin::Pin::new(&mut timer).poll(cx).map(|_| Err(Elapsed))
    })
    .await
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
