//! Distributions: how long something took, or how much it was, each time it happened.
//!
//! A [`Recorder`] takes values from any thread, a [`Distribution`] is what it tells of them. Recorders are
//! for what happens some thousand times a second at most: a flush, a sync, a wait. What every read does is
//! counted in lanes, see `cache`.
//!
//! 1. Count, sum and maximum are exact; percentiles are at most 1 % too high, and never above the maximum.
//! 2. A recorder that was never used costs no memory for buckets.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Percentiles end here: 71 minutes in microseconds. With two digits the buckets take some 26 KiB.
const LARGEST: u64 = 1 << 32;
const SIGNIFICANT_DIGITS: u8 = 2;

/// Values recorded since the store was opened. The unit is that of the field that has the distribution.
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// Half of them are at or below this; percentiles are exact to two digits.
    pub p50: u64,
    /// 99 % are at or below this.
    pub p99: u64,
    /// 99.9 % are at or below this.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

impl Distribution {
    /// The mean, rounded down; 0 without values.
    #[must_use]
    pub const fn mean(&self) -> u64 {
        match self.sum.checked_div(self.count) {
            Some(mean) => mean,
            None => 0,
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Recorded>);

#[derive(Default)]
struct Recorded {
    /// Made by the first value.
    buckets: Option<Histogram<u64>>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Recorder {
    pub(crate) fn record(&self, value: u64) {
        let mut recorded = self.0.lock();
        recorded.count += 1;
        recorded.sum = recorded.sum.saturating_add(value);
        recorded.max = recorded.max.max(value);
        if recorded.buckets.is_none() {
            // The library accepts these constants: a test would see that nothing is recorded.
            recorded.buckets = Histogram::new_with_bounds(1, LARGEST, SIGNIFICANT_DIGITS).ok();
        }
        if let Some(buckets) = &mut recorded.buckets {
            buckets.saturating_record(value);
        }
    }

    /// Records a duration in microseconds, if there was a clock to measure it.
    pub(crate) fn record_time(&self, time: Option<Duration>) {
        if let Some(time) = time {
            self.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
    }

    pub(crate) fn distribution(&self) -> Distribution {
        let recorded = self.0.lock();
        let at = |quantile| {
            let buckets = recorded.buckets.as_ref();
            buckets.map_or(0, |b| b.value_at_quantile(quantile).min(recorded.max))
        };
        Distribution {
            count: recorded.count,
            sum: recorded.sum,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: recorded.max,
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.distribution().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_tells_the_middle_from_the_tail() {
        let recorder = Recorder::default();
        assert_eq!(recorder.distribution(), Distribution::default(), "nothing yet");
        assert_eq!(recorder.distribution().mean(), 0, "nothing yet");
        (0..990).for_each(|_| recorder.record(100));
        (0..9).for_each(|_| recorder.record_time(Some(Duration::from_millis(5))));
        recorder.record_time(Some(Duration::from_millis(7)));
        let d = recorder.distribution();
        assert_eq!((d.count, d.sum, d.max), (1000, 990 * 100 + 9 * 5000 + 7000, 7000), "{d:?}");
        assert_eq!((d.mean(), d.p50, d.p99), (151, 100, 100), "{d:?}");
        assert!((5000..=5050).contains(&d.p999), "nine of the last ten: {d:?}");
    }

    #[test]
    fn a_value_beyond_the_buckets_is_counted_and_only_its_percentile_is_cut() {
        let recorder = Recorder::default();
        recorder.record(0);
        recorder.record_time(Some(Duration::MAX));
        recorder.record_time(Some(Duration::MAX));
        recorder.record_time(None);
        let d = recorder.distribution();
        assert_eq!((d.count, d.sum, d.max), (3, u64::MAX, u64::MAX), "{d:?}");
        assert!(d.p50 >= LARGEST && d.p50 < 2 * LARGEST, "the last bucket: {d:?}");
    }
}
