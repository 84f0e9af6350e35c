//! Growing, randomised delays between attempts.
//!
//! Each delay is drawn between half of the current step and all of it, so that callers who failed
//! together don't come back together. The first delays are short: most failures are elections and
//! restarts of a few hundred milliseconds.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// A sequence of delays.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    step: Duration,
}

impl Backoff {
    /// Between attempts of one call. The longest step stays below an election, so that a new
    /// leader is found within a fraction of the time its election took.
    pub(crate) fn for_attempts() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_millis(100))
    }

    /// Between dials of one address.
    pub(crate) fn for_connections() -> Self {
        Self::new(Duration::from_millis(20), Duration::from_millis(500))
    }

    fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, step: first }
    }

    pub(crate) fn next_delay(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(self.longest);
        jittered(step)
    }

    pub(crate) fn reset(&mut self) {
        self.step = self.first;
    }
}

/// A random duration between half of `duration` and all of it.
pub(crate) fn jittered(duration: Duration) -> Duration {
    // The hasher's keys are random and differ at every call; nothing here needs more than that.
    let random = RandomState::new().build_hasher().finish();
    let half = duration / 2;
    let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).saturating_add(1);
    half + Duration::from_nanos(random % span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_start_anew_after_success() {
        let mut backoff = Backoff::for_attempts();
        let delays: Vec<Duration> = (0..10).map(|_| backoff.next_delay()).collect();
        for (number, delay) in delays.iter().enumerate() {
            let step =
                Duration::from_millis(10 * (1 << number.min(8))).min(Duration::from_millis(100));
            assert!(
                *delay >= step / 2 && *delay <= step,
                "delay {number} is {delay:?} of {step:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(10), "reset begins again");
    }
}
