//! Quantiles of durations in a fixed space.

use std::time::Duration;

/// Number of buckets: 37 octaves from 1 µs to 39 h.
const BUCKETS: usize = 4 * OCTAVES as usize;
const OCTAVES: u32 = 37;
/// The first octave begins at 2^10 ns.
const FIRST: u32 = 10;

/// Counts durations in buckets, four an octave.
///
/// A quantile is the middle of its bucket, so it is at most 9 % off.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: [u32; BUCKETS],
    max_nanos: u64,
}

/// Quantiles of durations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quantiles {
    pub(crate) p50: Duration,
    pub(crate) p95: Duration,
    pub(crate) max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], max_nanos: 0 }
    }
}

fn bucket_of(nanos: u64) -> usize {
    let Some(octave) = nanos.max(1).ilog2().checked_sub(FIRST) else { return 0 };
    // The bits after the first, as a fraction of 2^32, against 2^(1/4), 2^(1/2) and 2^(3/4).
    let fraction = ((nanos << nanos.leading_zeros() << 1) >> 32) as u32;
    let quarters = [812_553_664, 1_779_033_704, 2_928_340_032];
    let quarter = quarters.iter().filter(|quarter| fraction >= **quarter).count();
    (4 * octave as usize + quarter).min(BUCKETS - 1)
}

/// The geometric middle of a bucket.
fn middle_of(bucket: usize) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a bucket's number is small")]
    let octaves = (bucket as f64 + 0.5) / 4.0;
    Duration::from_secs_f64(octaves.exp2() * f64::from(1_u32 << FIRST) / 1e9)
}

impl Histogram {
    pub(crate) fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let count = &mut self.counts[bucket_of(nanos)];
        *count = count.saturating_add(1);
        self.max_nanos = self.max_nanos.max(nanos);
    }

    /// Adds the counts of another histogram.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*other);
        }
        self.max_nanos = self.max_nanos.max(other.max_nanos);
    }

    /// Returns the quantiles, unless it is empty.
    pub(crate) fn quantiles(&self) -> Option<Quantiles> {
        let total: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let max = Duration::from_nanos(self.max_nanos);
        let at = |percent: u64| {
            let wanted = (total * percent).div_ceil(100);
            let mut seen = 0;
            let reached = |count: &u32| {
                seen += u64::from(*count);
                seen >= wanted
            };
            self.counts.iter().position(reached).map_or(max, middle_of).min(max)
        };
        (total > 0).then(|| Quantiles { p50: at(50), p95: at(95), max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_is_at_most_nine_percent_off() {
        let mut nanos = 2048_u64;
        while nanos < 1 << 46 {
            let mut histogram = Histogram::default();
            histogram.add(Duration::from_nanos(nanos));
            histogram.add(Duration::from_secs(200_000));
            let p50 = histogram.quantiles().expect("not empty").p50.as_nanos() as f64;
            let off = (p50 / nanos as f64 - 1.0).abs();
            assert!(off < 0.0906, "{nanos} ns: {p50}");
            nanos = nanos * 17 / 16 + 1;
        }
    }

    #[test]
    fn quantiles_are_of_all_that_was_added() {
        assert_eq!(Histogram::default().quantiles(), None);
        let mut histogram = Histogram::default();
        for millis in 1..=100 {
            histogram.add(Duration::from_millis(millis));
        }
        let mut slow = Histogram::default();
        (0..900).for_each(|_| slow.add(Duration::from_secs(10)));
        let near = |found: Duration, wanted: f64| (found.as_secs_f64() / wanted - 1.0).abs() < 0.1;
        let found = histogram.quantiles().expect("not empty");
        assert!(near(found.p50, 0.050) && near(found.p95, 0.095), "{found:?}");
        assert_eq!(found.max, Duration::from_millis(100));
        histogram.merge(&slow);
        let found = histogram.quantiles().expect("not empty");
        assert!(near(found.p50, 10.0) && found.max == Duration::from_secs(10), "{found:?}");
    }

    #[test]
    fn extremes_have_a_bucket() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::ZERO);
        assert_eq!(histogram.quantiles().map(|found| found.p95), Some(Duration::ZERO));
        histogram.add(Duration::MAX);
        assert!(histogram.quantiles().is_some());
    }
}
