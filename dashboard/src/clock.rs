//! Moments as Unix time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use tokio::time::Instant;

/// Tells Unix time by tokio's clock, so that a paused clock controls all of the page.
///
/// The system's clock is read once, when the dashboard is made. Steps of that clock do not move the charts.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_unix: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the page shows times of day; read once")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), start_unix: now }
    }

    pub(crate) fn now(&self) -> Duration {
        self.start_unix + self.start.elapsed()
    }

    pub(crate) fn started_at(&self) -> Duration {
        self.start_unix
    }

    /// The Unix time of a moment of tokio's clock.
    pub(crate) fn of(&self, moment: Instant) -> Duration {
        match moment.checked_duration_since(self.start) {
            Some(after) => self.start_unix + after,
            None => self.start_unix.saturating_sub(self.start - moment),
        }
    }
}

/// Seconds as a JSON number, to the microsecond.
pub(crate) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}

/// A moment in Unix seconds as a JSON number, to the millisecond.
pub(crate) fn moment(unix: Duration) -> f64 {
    (unix.as_secs_f64() * 1e3).round() / 1e3
}

pub(crate) fn as_seconds<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(seconds(*value))
}

pub(crate) fn as_some_seconds<S: Serializer>(
    value: &Option<Duration>,
    to: S,
) -> Result<S::Ok, S::Error> {
    value.map(seconds).serialize(to)
}

pub(crate) fn as_moment<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(moment(*value))
}

pub(crate) fn as_some_moment<S: Serializer>(
    value: &Option<Duration>,
    to: S,
) -> Result<S::Ok, S::Error> {
    value.map(moment).serialize(to)
}
