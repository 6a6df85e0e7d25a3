//! Moments of tokio's clock.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// A moment of tokio's clock in half the space of an `Instant`: nanoseconds since the first moment that
/// the process asked for. A runtime with a paused clock may be before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(i64);

/// The moment 0.
static FIRST: OnceLock<Instant> = OnceLock::new();

impl Moment {
    /// Before all others.
    pub(crate) const NEVER: Self = Self(i64::MIN);
    /// After all others.
    pub(crate) const END: Self = Self(i64::MAX);

    pub(crate) fn now() -> Self {
        Self::of(Instant::now())
    }

    pub(crate) fn of(instant: Instant) -> Self {
        let first = *FIRST.get_or_init(|| instant);
        Self(match instant.checked_duration_since(first) {
            Some(after) => nanos(after),
            None => -nanos(first - instant),
        })
    }

    /// The next moment.
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    pub(crate) fn instant(self) -> Instant {
        let first = *FIRST.get_or_init(Instant::now);
        let distance = Duration::from_nanos(self.0.unsigned_abs());
        if self.0 < 0 { first - distance } else { first + distance }
    }

    pub(crate) const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub(crate) fn as_nanos(self) -> i64 {
        self.0
    }

    /// The time since `earlier`; zero if that is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Up to 292 years.
fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_as_far_apart_as_their_instants() {
        let first = Instant::now();
        let [before, after] = [first - Duration::from_secs(3), first + Duration::from_secs(4)];
        let of = |instant| Moment::of(instant);
        assert_eq!(of(after).since(of(first)), Duration::from_secs(4));
        assert_eq!(of(after).since(of(before)), Duration::from_secs(7));
        assert_eq!(of(before).since(of(after)), Duration::ZERO);
        assert!(Moment::NEVER < of(before) && of(before) < of(after));
    }
}
