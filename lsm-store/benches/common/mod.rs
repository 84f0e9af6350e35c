//! What benchmarks of one thread share: their clock and their keys.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of this thread: unlike wall time, it means something on a machine that does other things too.
pub(crate) fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// 16 digits.
pub(crate) fn key(n: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    let mut rest = n;
    for digit in key.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    key
}
