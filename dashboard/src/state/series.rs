//! Fifteen minutes of counts, a second each.

use serde::Serialize;

/// Number of seconds that are kept.
pub(crate) const SECONDS: u64 = 900;

/// A ring of seconds. A second is in the slot of its number modulo [`SECONDS`].
#[derive(Debug)]
pub(crate) struct Series {
    slots: Vec<Second>,
    /// The first second of the scheduler's dashboard.
    first: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    at: u64,
    counts: Counts,
    gauges: Gauges,
}

/// Events in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) started: u32,
    pub(crate) ended: u32,
    pub(crate) failed: u32,
    pub(crate) refused: u32,
}

/// Gauges at the end of a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Gauges {
    pub(crate) running: u32,
    pub(crate) pending: u32,
    pub(crate) deferred: u32,
    pub(crate) waiting_callers: u32,
    pub(crate) oldest_pending_ms: u32,
}

/// Columns of the series, oldest first. Steps before the start are `null`.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Columns {
    pub(crate) from_at: u64,
    pub(crate) step_s: u64,
    /// The end of the last second that is counted.
    pub(crate) until_at: u64,
    pub(crate) started: Vec<Option<u32>>,
    pub(crate) ended: Vec<Option<u32>>,
    pub(crate) failed: Vec<Option<u32>>,
    pub(crate) refused: Vec<Option<u32>>,
    pub(crate) running: Vec<Option<u32>>,
    pub(crate) pending: Vec<Option<u32>>,
    pub(crate) deferred: Vec<Option<u32>>,
    pub(crate) waiting_callers: Vec<Option<u32>>,
    pub(crate) oldest_pending_s: Vec<Option<f64>>,
}

/// One second of the series.
#[derive(Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) from_at: u64,
    started: u32,
    ended: u32,
    failed: u32,
    refused: u32,
    running: u32,
    pending: u32,
    deferred: u32,
    waiting_callers: u32,
    oldest_pending_s: f64,
}

fn seconds(millis: u32) -> f64 {
    f64::from(millis) / 1e3
}

impl Gauges {
    fn max(self, other: Self) -> Self {
        Self {
            running: self.running.max(other.running),
            pending: self.pending.max(other.pending),
            deferred: self.deferred.max(other.deferred),
            waiting_callers: self.waiting_callers.max(other.waiting_callers),
            oldest_pending_ms: self.oldest_pending_ms.max(other.oldest_pending_ms),
        }
    }
}

impl Series {
    pub(crate) fn new(first: u64) -> Self {
        let slots = (0..SECONDS).map(|_| Second { at: u64::MAX, ..Second::default() }).collect();
        Self { slots, first }
    }

    fn slot(second: u64) -> usize {
        usize::try_from(second % SECONDS).unwrap_or(0)
    }

    fn second(&mut self, second: u64) -> &mut Second {
        let slot = &mut self.slots[Self::slot(second)];
        if slot.at != second {
            *slot = Second { at: second, ..Second::default() };
        }
        slot
    }

    /// The counts of a second, to add to.
    pub(crate) fn counts(&mut self, second: u64) -> &mut Counts {
        &mut self.second(second).counts
    }

    /// Keeps the largest gauges of a second.
    pub(crate) fn sample(&mut self, second: u64, gauges: Gauges) {
        let second = self.second(second);
        second.gauges = second.gauges.max(gauges);
    }

    fn get(&self, second: u64) -> Option<Second> {
        let slot = self.slots[Self::slot(second)];
        if slot.at == second {
            return Some(slot);
        }
        // Nothing has happened in it, and no tick either.
        (second >= self.first).then(Second::default)
    }

    /// Failures and refusals in the last fifteen minutes.
    pub(crate) fn failed_and_refused(&self, now: u64) -> (u64, u64) {
        let live = self.slots.iter().filter(|slot| slot.at <= now && slot.at + SECONDS > now);
        live.fold((0, 0), |(failed, refused), slot| {
            (failed + u64::from(slot.counts.failed), refused + u64::from(slot.counts.refused))
        })
    }

    /// The complete seconds from `from` to the one before `now`.
    pub(crate) fn points(&self, from: u64, now: u64) -> Vec<Point> {
        let from = from.max(now.saturating_sub(SECONDS - 1));
        let complete = (from..now).filter_map(|second| Some((second, self.get(second)?)));
        complete.map(|(at, second)| Point::new(at, second)).collect()
    }

    /// All complete seconds, in steps that are aligned to the clock.
    pub(crate) fn columns(&self, now: u64, step: u64) -> Columns {
        let end = now.next_multiple_of(step);
        let from_at = end - SECONDS;
        let mut columns = Columns { from_at, step_s: step, until_at: now, ..Columns::default() };
        for from in (from_at..end).step_by(usize::try_from(step).unwrap_or(1)) {
            let oldest_kept = now.saturating_sub(SECONDS - 1);
            let known = (from.max(oldest_kept)..(from + step).min(now))
                .filter_map(|second| self.get(second));
            let step = known.reduce(|a, b| Second {
                at: a.at,
                counts: Counts {
                    started: a.counts.started + b.counts.started,
                    ended: a.counts.ended + b.counts.ended,
                    failed: a.counts.failed + b.counts.failed,
                    refused: a.counts.refused + b.counts.refused,
                },
                gauges: a.gauges.max(b.gauges),
            });
            columns.push(step);
        }
        columns
    }
}

impl Columns {
    fn push(&mut self, step: Option<Second>) {
        let (counts, gauges) = (step.map(|step| step.counts), step.map(|step| step.gauges));
        self.started.push(counts.map(|counts| counts.started));
        self.ended.push(counts.map(|counts| counts.ended));
        self.failed.push(counts.map(|counts| counts.failed));
        self.refused.push(counts.map(|counts| counts.refused));
        self.running.push(gauges.map(|gauges| gauges.running));
        self.pending.push(gauges.map(|gauges| gauges.pending));
        self.deferred.push(gauges.map(|gauges| gauges.deferred));
        self.waiting_callers.push(gauges.map(|gauges| gauges.waiting_callers));
        self.oldest_pending_s.push(gauges.map(|gauges| seconds(gauges.oldest_pending_ms)));
    }
}

impl Point {
    fn new(from_at: u64, Second { counts, gauges, .. }: Second) -> Self {
        Self {
            from_at,
            started: counts.started,
            ended: counts.ended,
            failed: counts.failed,
            refused: counts.refused,
            running: gauges.running,
            pending: gauges.pending,
            deferred: gauges.deferred,
            waiting_callers: gauges.waiting_callers,
            oldest_pending_s: seconds(gauges.oldest_pending_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_003;

    #[test]
    fn counts_add_up_and_gauges_are_the_largest() {
        let mut series = Series::new(START);
        for second in START..START + 10 {
            series.counts(second).ended += 2;
            series.sample(
                second,
                Gauges { pending: u32::try_from(second - START).unwrap(), ..Gauges::default() },
            );
        }
        // Steps begin at multiples of five: START + 2 is one.
        let columns = series.columns(START + 10, 5);
        assert_eq!((columns.from_at % 5, columns.ended.len()), (0, 180));
        assert_eq!(columns.ended[176..], [None, Some(4), Some(10), Some(6)]);
        assert_eq!(columns.pending[177..], [Some(1), Some(6), Some(9)]);
        assert_eq!(columns.until_at, START + 10);
    }

    #[test]
    fn seconds_leave_after_fifteen_minutes() {
        let mut series = Series::new(START);
        series.counts(START).failed += 3;
        series.counts(START).refused += 1;
        assert_eq!(series.failed_and_refused(START + SECONDS - 1), (3, 1));
        assert_eq!(series.failed_and_refused(START + SECONDS), (0, 0));
        let columns = series.columns(START + SECONDS + 60, 1);
        assert!(columns.failed.iter().all(|failed| *failed == Some(0) || failed.is_none()));
        assert_eq!(columns.failed.len(), 900);
    }

    #[test]
    fn point_is_of_a_complete_second() {
        let mut series = Series::new(START);
        series.counts(START + 1).started = 7;
        series.counts(START + 2).started = 9;
        let points = series.points(START, START + 2);
        let started: Vec<_> =
            points.iter().map(|point| (point.from_at - START, point.started)).collect();
        assert_eq!(started, [(0, 0), (1, 7)]);
        assert!(series.points(START - 5, START).is_empty());
        assert_eq!(series.points(0, START + 5_000).len(), 899);
    }
}
