//! What a run will be like: everything a seed decides beforehand.
//!
//! Each run is drawn with some kinds of faults and not others, with its own sizes, speeds and workload
//! (swarm testing, Groce and others 2012): a run with everything at once hides what needs quiet to show.

use std::time::Duration;

use super::network::LinkQuality;
use super::random::Random;

/// Kinds of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// A node loses power: what was not synced may be lost, torn or reordered.
    Crash,
    /// A node loses power in the middle of a write to its disk.
    CrashInWrite,
    /// All nodes lose power at once.
    CrashAll,
    /// The leader loses power.
    CrashLeader,
    /// A node is stopped for a while; its queues are kept, its clock goes on.
    Pause,
    /// The leader is stopped for a while.
    PauseLeader,
    /// Two groups that do not hear each other.
    Partition,
    /// The leader is alone.
    IsolateLeader,
    /// One link, in one direction.
    CutOneWay,
    /// Nobody hears one node, or it hears nobody.
    Deaf,
    /// Messages are lost and late for a while.
    BadNetwork,
    /// A sync fails; the node stops and comes back.
    SyncFails,
    /// A disk is slow for a while.
    SlowDisk,
    /// A clock runs faster or slower.
    ClockRate,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Crash,
        Self::CrashInWrite,
        Self::CrashAll,
        Self::CrashLeader,
        Self::Pause,
        Self::PauseLeader,
        Self::Partition,
        Self::IsolateLeader,
        Self::CutOneWay,
        Self::Deaf,
        Self::BadNetwork,
        Self::SyncFails,
        Self::SlowDisk,
        Self::ClockRate,
    ];
}

/// A span of durations in microseconds, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The shortest.
    pub min: u64,
    /// The longest.
    pub max: u64,
}

impl Span {
    /// A duration from the span.
    pub fn draw(self, random: &mut Random) -> u64 {
        random.between(self.min, self.max)
    }
}

/// How often clients ask for what; weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mix {
    /// Plain puts.
    pub put: u64,
    /// Puts with a condition.
    pub put_if: u64,
    /// Deletes, some with a condition.
    pub delete: u64,
    /// Deletes of a range.
    pub delete_range: u64,
    /// Linearizable reads of a key.
    pub get: u64,
    /// Stale reads of a key.
    pub get_stale: u64,
    /// Reads of a key at an older revision.
    pub get_old: u64,
    /// Linearizable reads of a range.
    pub range: u64,
}

/// Everything a seed decides beforehand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// Clients.
    pub clients: usize,
    /// Operations a client has under way at most.
    pub lanes: usize,
    /// Operations of each client.
    pub operations: u64,
    /// Keys; few, so that clients meet.
    pub keys: u64,
    /// What clients ask for.
    pub mix: Mix,
    /// Clients without a session, of a thousand.
    pub without_session: u64,
    /// Bytes of a value at most.
    pub value_bytes_max: u64,
    /// Between the end of an operation and the next one of its lane.
    pub think: Span,
    /// How long a client waits for one answer.
    pub attempt_timeout: Span,
    /// How long a client tries.
    pub operation_timeout: Span,
    /// The network on an ordinary day.
    pub network: LinkQuality,
    /// The network on a bad day.
    pub bad_network: LinkQuality,
    /// One append and sync of the log.
    pub log_latency: Span,
    /// One run of the applier.
    pub apply_latency: Span,
    /// One fetch of old entries.
    pub fetch_latency: Span,
    /// From a job's end until consensus hears of it.
    pub report_latency: Span,
    /// Consensus is called this long after something is in its inbox.
    pub consensus_latency: Span,
    /// Consensus handles only a part of its inbox, per thousand.
    pub partial_inbox: u64,
    /// `flush` is called between two inputs, per thousand.
    pub flush_between: u64,
    /// The log writer takes only a part of its queue, per thousand.
    pub partial_log_batch: u64,
    /// How long faults go on, in microseconds.
    pub fault_time: u64,
    /// Between two faults.
    pub fault_interval: Span,
    /// How long a fault lasts.
    pub fault_length: Span,
    /// Which faults.
    pub faults: Vec<FaultKind>,
    /// Limits of consensus.
    pub raft: raft_core::Config,
    /// Size of a segment of the log in bytes.
    pub log_segment_bytes: u64,
    /// Size of a memtable in bytes.
    pub memtable_bytes: usize,
    /// The engine is flushed when the log above it has so many bytes.
    pub flush_log_bytes: u64,
}

impl Plan {
    /// A run without faults, on a good network and ordinary disks.
    #[must_use]
    pub fn calm(nodes: usize) -> Self {
        Self {
            nodes,
            clients: 2,
            lanes: 1,
            operations: 30,
            keys: 3,
            mix: Mix {
                put: 4,
                put_if: 2,
                delete: 1,
                delete_range: 0,
                get: 4,
                get_stale: 1,
                get_old: 0,
                range: 1,
            },
            without_session: 0,
            value_bytes_max: 64,
            think: Span { min: 100, max: 20_000 },
            attempt_timeout: Span { min: 400_000, max: 400_000 },
            operation_timeout: Span { min: 5_000_000, max: 5_000_000 },
            network: LinkQuality::CALM,
            bad_network: LinkQuality::CALM,
            log_latency: Span { min: 200, max: 2_000 },
            apply_latency: Span { min: 10, max: 200 },
            fetch_latency: Span { min: 50, max: 500 },
            report_latency: Span { min: 1, max: 20 },
            consensus_latency: Span { min: 1, max: 20 },
            partial_inbox: 0,
            flush_between: 0,
            partial_log_batch: 0,
            fault_time: 2_000_000,
            fault_interval: Span { min: 500_000, max: 500_000 },
            fault_length: Span { min: 500_000, max: 500_000 },
            faults: Vec::new(),
            raft: raft_core::Config::default(),
            log_segment_bytes: 1 << 20,
            memtable_bytes: 1 << 20,
            flush_log_bytes: 256 << 20,
        }
    }

    /// The run of a seed.
    #[must_use]
    pub fn draw(random: &mut Random) -> Self {
        let nodes = *random.pick(&[3, 3, 3, 4, 4, 5]);
        let slow_network = random.chance(200);
        let delay_max = if slow_network { 20_000 } else { random.between(200, 3_000) };
        let network = LinkQuality {
            delay_min: 50,
            delay_max,
            lost: *random.pick(&[0, 0, 5, 30]),
            doubled: *random.pick(&[0, 5, 30]),
            late: *random.pick(&[0, 2, 10]),
            late_max: *random.pick(&[100_000, 2_000_000]),
        };
        let bad_network = LinkQuality { lost: 300, doubled: 100, late: 50, ..network };
        let slow_disk = random.chance(200);
        let mut faults = random.subset(&FaultKind::ALL);
        if random.chance(50) {
            faults.clear();
        }
        Self {
            nodes,
            clients: usize::try_from(random.between(2, 5)).unwrap_or(2),
            lanes: *random.pick(&[1, 1, 2, 4]),
            operations: random.between(20, 80),
            keys: random.between(1, 5),
            mix: Mix {
                put: random.between(1, 6),
                put_if: random.between(0, 4),
                delete: random.between(0, 2),
                delete_range: random.between(0, 1),
                get: random.between(1, 6),
                get_stale: random.between(0, 2),
                get_old: random.between(0, 1),
                range: random.between(0, 2),
            },
            without_session: *random.pick(&[0, 0, 300]),
            value_bytes_max: *random.pick(&[16, 64, 600]),
            think: Span { min: 100, max: *random.pick(&[5_000, 100_000, 400_000]) },
            attempt_timeout: Span { min: 150_000, max: 700_000 },
            operation_timeout: Span { min: 500_000, max: *random.pick(&[2_000_000, 8_000_000]) },
            network,
            bad_network,
            log_latency: Span { min: 100, max: if slow_disk { 60_000 } else { 4_000 } },
            apply_latency: Span { min: 10, max: *random.pick(&[300, 20_000]) },
            fetch_latency: Span { min: 50, max: *random.pick(&[1_000, 100_000]) },
            report_latency: Span { min: 1, max: *random.pick(&[50, 5_000]) },
            consensus_latency: Span { min: 1, max: *random.pick(&[30, 3_000]) },
            partial_inbox: *random.pick(&[0, 100, 500]),
            flush_between: *random.pick(&[0, 100, 500]),
            partial_log_batch: *random.pick(&[0, 100, 500]),
            fault_time: random.between(4_000_000, 12_000_000),
            fault_interval: Span { min: 50_000, max: *random.pick(&[500_000, 1_500_000]) },
            fault_length: Span { min: 20_000, max: *random.pick(&[400_000, 1_500_000]) },
            faults,
            raft: Self::draw_raft(random),
            log_segment_bytes: *random.pick(&[16 << 10, 64 << 10, 1 << 20]),
            memtable_bytes: *random.pick(&[4 << 10, 64 << 10, 1 << 20]),
            flush_log_bytes: *random.pick(&[4 << 10, 32 << 10, 256 << 20]),
        }
    }

    /// Timing as in the server; limits sometimes so small that they are reached.
    fn draw_raft(random: &mut Random) -> raft_core::Config {
        let defaults = raft_core::Config::default();
        if random.chance(400) {
            return defaults;
        }
        raft_core::Config {
            max_append_bytes: *random.pick(&[256, 4 << 10, 1 << 20]),
            max_inflight_messages: *random.pick(&[1, 4, 64]),
            max_inflight_bytes: *random.pick(&[1 << 10, 64 << 10, 8 << 20]),
            max_unapplied_bytes: *random.pick(&[4 << 10, 64 << 20]),
            max_apply_bytes: *random.pick(&[256, 4 << 10, 4 << 20]),
            max_tail_bytes: *random.pick(&[512, 16 << 10, 32 << 20]),
            max_waiting_reads: *random.pick(&[4, 16 << 10]),
            persist_stall: *random.pick(&[defaults.persist_stall, Duration::from_millis(300)]),
            commit_delay: *random.pick(&[Duration::ZERO, Duration::from_millis(2)]),
            ..defaults
        }
    }
}
