//! When the engine is asked to flush: too much log above what is in tables, or nothing to do (DESIGN 10.7).
//!
//! A flush is not needed for safety; it shortens the replay at the next start. The engine also flushes by
//! itself whenever a memtable is full.

use std::{collections::VecDeque, time::Duration};

use raft_core::{LogIndex, Micros};

/// Applied chunks are remembered together until they have this many bytes.
const STEP_BYTES: u64 = 1 << 20;

/// Decides when to flush. Pure: time and progress come in.
#[derive(Debug)]
pub(crate) struct FlushPolicy {
    log_bytes_max: u64,
    idle: Duration,
    /// Applied and perhaps not in tables: up to this index, this many bytes; rising.
    above_durable: VecDeque<(LogIndex, u64)>,
    bytes_above_durable: u64,
    durable: LogIndex,
    /// The last write was applied then, if one was since the last flush.
    last_write_at: Option<Micros>,
    /// A flush was asked for because of the size of the log, at this durable index.
    asked_at: Option<LogIndex>,
}

impl FlushPolicy {
    pub(crate) const fn new(log_bytes_max: u64, idle: Duration, durable: LogIndex) -> Self {
        Self {
            log_bytes_max,
            idle,
            above_durable: VecDeque::new(),
            bytes_above_durable: 0,
            durable,
            last_write_at: None,
            asked_at: None,
        }
    }

    /// Entries up to `upto` are being applied; `has_writes` says whether any is more than a tick.
    pub(crate) fn on_apply(&mut self, now: Micros, upto: LogIndex, bytes: u64, has_writes: bool) {
        if has_writes {
            self.last_write_at = Some(now);
        }
        self.bytes_above_durable += bytes;
        match self.above_durable.back_mut() {
            Some((index, total)) if *total < STEP_BYTES => {
                *index = upto;
                *total += bytes;
            }
            Some(_) | None => self.above_durable.push_back((upto, bytes)),
        }
    }

    /// Everything up to `durable` is in tables.
    pub(crate) fn on_durable(&mut self, durable: LogIndex) {
        self.durable = self.durable.max(durable);
        while let Some((upto, bytes)) = self.above_durable.front().copied()
            && upto <= durable
        {
            self.bytes_above_durable -= bytes;
            self.above_durable.pop_front();
        }
    }

    /// When the idle flush is due.
    pub(crate) fn deadline(&self) -> Option<Micros> {
        self.last_write_at.map(|at| at.after(self.idle))
    }

    /// Whether to flush now; true once for each occasion.
    pub(crate) fn is_due(&mut self, now: Micros) -> bool {
        let too_much =
            self.bytes_above_durable > self.log_bytes_max && self.asked_at != Some(self.durable);
        let idle = self.deadline().is_some_and(|at| at <= now);
        if too_much {
            self.asked_at = Some(self.durable);
        }
        if idle {
            self.last_write_at = None;
        }
        too_much || idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn policy() -> FlushPolicy {
        FlushPolicy::new(10 * MIB, Duration::from_secs(30), LogIndex(0))
    }

    #[test]
    fn a_long_log_asks_for_one_flush_until_the_durable_index_moves() {
        let mut policy = policy();
        for index in 1..=10 {
            policy.on_apply(Micros(0), LogIndex(index), MIB, true);
            assert!(!policy.is_due(Micros(0)), "{index} MiB are not too much");
        }
        policy.on_apply(Micros(0), LogIndex(11), MIB, true);
        assert!(policy.is_due(Micros(0)), "11 MiB are");
        assert!(!policy.is_due(Micros(0)), "asked once");
        policy.on_durable(LogIndex(5));
        assert!(!policy.is_due(Micros(0)), "6 MiB are left");
        policy.on_apply(Micros(0), LogIndex(12), 5 * MIB, true);
        assert!(policy.is_due(Micros(0)), "11 MiB again");
    }

    #[test]
    fn thirty_idle_seconds_after_a_write_ask_for_one_flush_and_ticks_do_not_count() {
        let mut policy = policy();
        assert_eq!(policy.deadline(), None, "nothing was written");
        policy.on_apply(Micros(1_000_000), LogIndex(1), 100, true);
        policy.on_apply(Micros(11_000_000), LogIndex(2), 35, false);
        assert_eq!(policy.deadline(), Some(Micros(31_000_000)), "the tick did not move it");
        assert!(!policy.is_due(Micros(30_999_999)), "not yet");
        assert!(policy.is_due(Micros(31_000_000)), "now");
        assert!(!policy.is_due(Micros(99_000_000)), "once");
    }
}
