//! Moments, and waiting with a deadline, wherever the caller happens to run.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::OnceLock,
    task::Poll,
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    time::{self, Instant},
};

/// A moment of tokio's clock, in half the space of an `Instant`: nanoseconds since the first that
/// the process asked for. A runtime whose clock is paused may be behind that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(i64);

impl Moment {
    /// Before all others.
    pub(crate) const NEVER: Self = Self(i64::MIN);

    pub(crate) fn now() -> Self {
        Self::of(Instant::now())
    }

    pub(crate) fn of(instant: Instant) -> Self {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let first = *FIRST.get_or_init(|| instant);
        Self(match instant.checked_duration_since(first) {
            Some(after) => nanos(after),
            None => -nanos(first - instant),
        })
    }

    pub(crate) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    pub(crate) fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub(crate) fn as_nanos(self) -> i64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Up to 292 years.
fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The deadline passed first.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Awaits `future` until `deadline`; `None` is never.
///
/// A caller outside any runtime has no timer. It does not borrow that of the jobs' runtime, which
/// may go away before the deadline, or may not be driven by anybody.
pub(crate) async fn timeout_at<F: Future>(
    deadline: Option<Instant>,
    future: F,
) -> Result<F::Output, Elapsed> {
    let Some(deadline) = deadline else {
        return Ok(future.await);
    };
    if Handle::try_current().is_ok() {
        return time::timeout_at(deadline, future).await.map_err(|_| Elapsed);
    }
    let mut future = pin!(future);
    let mut alarm = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let alarm = alarm.get_or_insert_with(|| alarm_at(deadline));
        Pin::new(alarm).poll(cx).map(|_| Err(Elapsed))
    })
    .await
}

/// Resolves at `deadline`, by a thread that ends then, or when this is dropped. Should there be
/// no thread to be had, it resolves at once: too early is better than never.
fn alarm_at(deadline: Instant) -> oneshot::Receiver<()> {
    let (mut alarm, rings) = oneshot::channel();
    let wait = move || {
        if let Ok(timer) = Builder::new_current_thread().enable_time().build() {
            let given_up = alarm.closed();
            drop(timer.block_on(async { time::timeout_at(deadline, given_up).await }));
        }
    };
    // The thread is not joined, and drops `alarm` at its end.
    drop(thread::Builder::new().name("tower-jobs timer".into()).spawn(wait));
    rings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_as_far_apart_as_the_instants_they_are_of() {
        let first = Instant::now();
        let [before, after] = [first - Duration::from_secs(3), first + Duration::from_secs(4)];
        let of = |instant| Moment::of(instant);
        assert_eq!(of(after).since(of(first)), Duration::from_secs(4));
        assert_eq!(of(after).since(of(before)), Duration::from_secs(7));
        assert_eq!(of(before).since(of(after)), Duration::ZERO);
        assert!(Moment::NEVER < of(before) && of(before) < of(after));
    }
}
