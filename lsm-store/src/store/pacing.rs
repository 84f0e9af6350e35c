//! Speeds: bytes per second measured, and bytes spaced out to keep to one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A new measurement counts for one part in so many.
const SMOOTHING: u64 = 4;

/// A smoothed measurement: no single one moves it far. Zero before the first.
#[derive(Debug, Default)]
pub(crate) struct Smoothed(AtomicU64);

impl Smoothed {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets what was measured before.
    pub(crate) fn set(&self, measured: u64) {
        self.0.store(measured, Ordering::Relaxed);
    }

    /// Takes a measurement in. Of two at once one may be lost.
    pub(crate) fn update(&self, measured: u64) {
        let before = self.get();
        let kept = before / SMOOTHING * (SMOOTHING - 1) + before % SMOOTHING;
        let next = if before == 0 { measured } else { kept.saturating_add(measured / SMOOTHING) };
        self.0.store(next, Ordering::Relaxed);
    }
}

/// Bytes per second; at least one, so that it can be divided by.
pub(crate) fn rate(bytes: u64, took: Duration) -> u64 {
    let nanos = took.as_nanos().max(1);
    let per_second = u128::from(bytes) * 1_000_000_000 / nanos;
    u64::try_from(per_second).unwrap_or(u64::MAX).max(1)
}

/// Spaces out bytes: a bucket of tokens, of which none can be saved up for later.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// When what was charged so far is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Pacer {
    /// Charges for `bytes` at `rate` bytes per second. Returns until when to wait, which is no longer than
    /// `longest` from now; what that does not pay for is remitted.
    pub(crate) fn charge(&self, now: Instant, bytes: u64, rate: u64, longest: Duration) -> Instant {
        let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.max(1));
        let cost = u64::try_from(micros).map_or(longest, Duration::from_micros);
        let mut paid = self.paid.lock();
        let from = paid.map_or(now, |paid| paid.max(now));
        let until = (from + cost.min(longest)).min(now + longest);
        *paid = Some(until);
        until
    }

    /// Nothing is left to be paid for.
    pub(crate) fn forgive(&self) {
        *self.paid.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_moves_the_smoothed_value_by_a_quarter_of_the_difference() {
        let smoothed = Smoothed::default();
        smoothed.update(100);
        assert_eq!(smoothed.get(), 100, "the first is taken as it is");
        smoothed.update(200);
        assert_eq!(smoothed.get(), 125, "a quarter of the way");
        smoothed.update(0);
        assert_eq!(smoothed.get(), 94, "and back");
        smoothed.update(u64::MAX);
        assert!(smoothed.get() >= u64::MAX / 4, "no overflow");
    }

    #[test]
    fn bytes_are_spaced_out_at_the_rate_and_idle_time_is_not_saved_up() {
        let pacer = Pacer::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let after = |from: u64, bytes: u64| {
            let now = start + Duration::from_millis(from);
            pacer.charge(now, bytes, 1000, second).duration_since(start).as_millis()
        };
        assert_eq!(after(0, 100), 100, "100 bytes at 1000 a second");
        assert_eq!(after(0, 100), 200, "one after the other");
        assert_eq!(after(50, 100), 300, "waiting is paid for");
        assert_eq!(after(900, 100), 1000, "the pause before does not count");
        assert_eq!(after(900, 1_000_000), 1900, "no wait is longer than the longest");
        pacer.forgive();
        assert_eq!(after(900, 100), 1000, "nothing was left");
    }

    #[test]
    fn a_rate_is_bytes_per_second() {
        assert_eq!(rate(500, Duration::from_millis(500)), 1000, "half a second");
        assert_eq!(rate(0, Duration::ZERO), 1, "never zero");
    }
}
