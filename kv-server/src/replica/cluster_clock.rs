//! Cluster time: milliseconds that pass only while there is a leader (DESIGN 10.4).
//!
//! The leader stamps each command with the cluster time of its last log entry at election plus its own
//! monotonic time since; apply takes the maximum. No two machines' clocks are ever compared, and the time
//! without a leader does not count, so a lost leader never ends a session early.

use std::time::Duration;

use raft_core::Micros;

/// While sessions are open, a tick is logged this often, so that their time passes without writes.
pub(crate) const TICK_INTERVAL: Duration = Duration::from_secs(10);

/// The cluster's time as this node knows it.
#[derive(Debug)]
pub(crate) struct ClusterClock {
    /// The highest stamp seen in the log or given.
    latest_ms: u64,
    /// While this node leads: the cluster time and the local time of its election.
    leading: Option<(u64, Micros)>,
    /// While this node leads: when the next tick is due.
    tick_at: Micros,
}

impl ClusterClock {
    pub(crate) const fn new(latest_ms: u64) -> Self {
        Self { latest_ms, leading: None, tick_at: Micros(0) }
    }

    /// An entry with this stamp is in the log.
    pub(crate) fn observe(&mut self, stamp_ms: u64) {
        self.latest_ms = self.latest_ms.max(stamp_ms);
    }

    /// This node leads from now on.
    pub(crate) fn start_leading(&mut self, now: Micros) {
        self.leading = Some((self.latest_ms, now));
        self.tick_at = now.after(TICK_INTERVAL);
    }

    pub(crate) const fn stop_leading(&mut self) {
        self.leading = None;
    }

    /// The stamp of a command proposed now.
    pub(crate) fn stamp(&mut self, now: Micros) -> u64 {
        if let Some((at_election_ms, elected_at)) = self.leading {
            let passed_ms = now.since(elected_at).as_millis();
            let passed_ms = u64::try_from(passed_ms).unwrap_or(u64::MAX);
            self.observe(at_election_ms.saturating_add(passed_ms));
        }
        self.latest_ms
    }

    /// When a tick is due, if this node leads.
    pub(crate) fn tick_at(&self) -> Option<Micros> {
        self.leading.map(|_| self.tick_at)
    }

    /// A tick is being proposed.
    pub(crate) fn ticked(&mut self, now: Micros) {
        self.tick_at = now.after(TICK_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn cluster_time_goes_on_from_the_log_at_election_and_stands_still_without_a_leader() {
        let mut clock = ClusterClock::new(5_000);
        assert_eq!(clock.stamp(Micros(900 * SECOND)), 5_000, "no leader, no time");
        clock.start_leading(Micros(1_000 * SECOND));
        assert_eq!(clock.stamp(Micros(1_002 * SECOND)), 7_000, "two seconds of leading");
        clock.stop_leading();
        clock.observe(6_500);
        assert_eq!(clock.stamp(Micros(2_000 * SECOND)), 7_000, "never falls, stands still");
        clock.observe(9_000);
        clock.start_leading(Micros(3_000 * SECOND));
        assert_eq!(clock.stamp(Micros(3_001 * SECOND)), 10_000, "from the newest entry on");
    }
}
