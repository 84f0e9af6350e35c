//! What happened in a run, in numbers, and over many runs: whether anything was tried at all.
//!
//! A simulation that never loses an unsynced write proves nothing about losing one. So every kind of
//! event is counted, and [`Coverage`] says for each how often it happened and in how many of the seeds.

use std::fmt;

use super::Report;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident: $label:literal,)*) => {
        /// What happened in a run, in numbers.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// All of them, with what they count.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$(($label, self.$name)),*]
            }
        }
    };
}

counts! {
    /// Operations of clients that ended, however they did.
    operations: "client operations",
    /// Operations of clients that were answered.
    answered: "… answered",
    /// Operations that had no effect, promised.
    no_effect: "… without effect",
    /// Operations with an unknown outcome.
    unknown: "… of unknown outcome",
    /// Attempts that were repetitions.
    retries: "attempts repeated",
    /// Requests handed on by followers.
    forwarded: "requests forwarded",
    /// Requests refused for overload.
    overloaded: "requests refused for overload",
    /// Sessions that a client found expired.
    sessions_expired: "sessions found expired",
    /// Real elections begun.
    elections: "elections",
    /// Terms that had a leader.
    terms_led: "terms led",
    /// Entries committed.
    committed: "entries committed",
    /// How often a node cut entries off its log for a leader's.
    truncations: "logs cut for a leader's",
    /// Jobs of the log reader.
    fetches: "old entries fetched",
    /// Losses of power, of one node each.
    crashes: "crashes",
    /// Losses of power in the middle of a write.
    crashes_in_write: "crashes in a write",
    /// Losses of power that took something unsynced.
    crashes_losing: "crashes with lost unsynced data",
    /// Losses of power that left something unsynced in part.
    torn_writes: "crashes with torn writes",
    /// Processes that ended without a loss of power.
    kills: "processes killed",
    /// Starts after the first.
    restarts: "restarts",
    /// Nodes stopped for a while.
    pauses: "pauses",
    /// Groups separated.
    partitions: "partitions",
    /// Cuts in one direction.
    one_way_cuts: "one-way cuts",
    /// Times in which the network was bad.
    bad_networks: "bad networks",
    /// Links clogged.
    clogs: "clogged links",
    /// Messages lost.
    messages_lost: "messages lost",
    /// Messages delivered twice.
    messages_doubled: "messages doubled",
    /// Messages that overtook another.
    overtakings: "messages overtaking others",
    /// Syncs and writes made to fail.
    failed_syncs: "failed syncs and writes",
    /// Disks slow for a while.
    slow_disks: "slow disks",
    /// Disks that finish nothing for a while.
    stalls: "stalled disks",
    /// Clocks that run at another rate, or jump.
    clock_faults: "odd clocks",
    /// Bits flipped.
    bit_flips: "damaged files: bits flipped",
    /// Sectors written to the wrong place.
    misdirected_writes: "damaged files: misdirected writes",
    /// Disks lost.
    wipes: "disks wiped",
    /// Nodes that stopped or did not start, and named damage.
    damage_found: "nodes out of service for damage",
}

/// What happened over many seeds.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Seeds that passed.
    pub passed: u64,
    /// Events.
    pub events: u64,
    /// Simulated time in microseconds.
    pub simulated: u64,
    /// By kind: how often in all, and in how many seeds.
    rows: Vec<(&'static str, u64, u64)>,
    /// Client operations of each seed.
    operations: Vec<u64>,
}

impl Coverage {
    /// Adds a run.
    pub fn add(&mut self, report: &Report) {
        self.passed += 1;
        self.events += report.events;
        self.simulated += report.simulated;
        self.operations.push(report.counts.operations);
        let named = report.counts.named();
        if self.rows.is_empty() {
            self.rows = named.iter().map(|(label, _)| (*label, 0, 0)).collect();
        }
        for ((_, sum, seeds), (_, count)) in self.rows.iter_mut().zip(named) {
            *sum += count;
            *seeds += u64::from(count > 0);
        }
    }

    /// The median of client operations in a seed.
    #[must_use]
    pub fn median_operations(&self) -> u64 {
        let mut sorted = self.operations.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }

    /// How often something happened in all, and in how many seeds.
    #[must_use]
    pub fn row(&self, label: &str) -> Option<(u64, u64)> {
        self.rows.iter().find(|row| row.0 == label).map(|row| (row.1, row.2))
    }

    /// The kinds of events that never happened.
    #[must_use]
    pub fn never(&self) -> Vec<&'static str> {
        self.rows.iter().filter(|row| row.1 == 0).map(|row| row.0).collect()
    }
}

/// A table, one line for each kind.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, events, simulated, .. } = self;
        writeln!(
            f,
            "{passed} seeds passed: {} s simulated, {events} events, {} client operations a seed in \
             the median",
            simulated / 1_000_000,
            self.median_operations()
        )?;
        writeln!(f, "  {:<38}{:>12}{:>10}{:>8}", "what", "in all", "in seeds", "of all")?;
        for (label, sum, seeds) in &self.rows {
            let percent = seeds * 100 / (*passed).max(1);
            writeln!(f, "  {label:<38}{sum:>12}{seeds:>10}{percent:>7}%")?;
        }
        Ok(())
    }
}
