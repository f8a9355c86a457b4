//! Latencies in a fixed amount of memory: buckets that grow with the value, so that each percentile is right within 1.6 %.

use std::time::Duration;

use tropis_tests::testkit::Latency;

/// Each power of two is cut into so many buckets.
const PARTS: u64 = 64;
const PART_BITS: u32 = PARTS.trailing_zeros();
/// Buckets up to 2^40 ns, 18 minutes; what is slower counts as that.
const BUCKETS: usize = ((40 - PART_BITS as usize) + 1) * PARTS as usize;

/// Counts of durations by size.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum_nanoseconds: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, sum_nanoseconds: 0, min: u64::MAX, max: 0 }
    }
}

impl Histogram {
    pub(super) fn record(&mut self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.sum_nanoseconds += u128::from(nanoseconds);
        self.min = self.min.min(nanoseconds);
        self.max = self.max.max(nanoseconds);
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum_nanoseconds += other.sum_nanoseconds;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// None when nothing was recorded.
    pub(super) fn latency(&self) -> Option<Latency> {
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        (self.count > 0).then(|| Latency {
            min: microseconds(self.min),
            mean: (self.sum_nanoseconds / u128::from(self.count)) as f64 / 1000.0,
            p50: microseconds(self.percentile(0.50)),
            p90: microseconds(self.percentile(0.90)),
            p99: microseconds(self.percentile(0.99)),
            p999: microseconds(self.percentile(0.999)),
            max: microseconds(self.max),
        })
    }

    /// The smallest value that at least this share of the records does not exceed.
    fn percentile(&self, share: f64) -> u64 {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest(index).clamp(self.min, self.max);
            }
        }
        self.max
    }
}

/// Values below [`PARTS`] have a bucket each; above, each power of two has [`PARTS`].
fn bucket(value: u64) -> usize {
    let power = (value | 1).ilog2();
    let shift = power.saturating_sub(PART_BITS);
    // At shift 0 this is the value; from then on the top bit of the kept part is set, so the parts of a power follow each other.
    let index = u64::from(shift) * PARTS + (value >> shift);
    (index as usize).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn highest(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * PARTS {
        return index;
    }
    let shift = index / PARTS - 1;
    let part = index - shift * PARTS;
    ((part + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_value_within_its_precision() {
        for value in (0..200).chain((8..40).flat_map(|power| [(1u64 << power) - 1, 1 << power, (1 << power) + (1 << (power - 1)) + 3])) {
            let top = highest(bucket(value));
            assert!(top >= value, "{value} in a bucket that ends at {top}");
            assert!(top - value <= value / PARTS, "{value} in a bucket that ends at {top}");
        }
    }

    #[test]
    fn buckets_rise_with_the_value() {
        let mut last = 0;
        for value in 0..100_000 {
            let index = bucket(value);
            assert!(index == last || index == last + 1, "{value}");
            last = index;
        }
    }

    #[test]
    fn percentiles_of_a_known_set() {
        let mut even = Histogram::default();
        let mut odd = Histogram::default();
        for microseconds in 1..=1000 {
            let half = if microseconds % 2 == 0 { &mut even } else { &mut odd };
            half.record(Duration::from_micros(microseconds));
        }
        even.add(&odd);
        let latency = even.latency().unwrap();
        assert_eq!((latency.min, latency.max, latency.mean), (1.0, 1000.0, 500.5));
        for (found, expected) in [(latency.p50, 500.0), (latency.p90, 900.0), (latency.p99, 990.0), (latency.p999, 999.0)] {
            assert!((found - expected).abs() <= expected / 60.0, "{found} for {expected}");
        }
        assert!(Histogram::default().latency().is_none());
    }
}
