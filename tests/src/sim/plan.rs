//! What a run will be like: everything a seed decides beforehand.
//!
//! Each run is drawn with some kinds of faults and not others, with its own sizes, speeds and workload
//! (swarm testing, Groce and others 2012): a run with everything at once hides what needs quiet to show.

use std::time::Duration;

use super::decisions::{Feature, Withheld, fault_number};
use super::network::{LinkQuality, Spread};
use super::random::Random;

/// Kinds of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// A node loses power: what was not synced may be lost, torn or reordered.
    Crash,
    /// A node loses power in the middle of a later write to its disk, whichever that is.
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
    /// Messages are lost and late for a while, on all links or on those of one node.
    BadNetwork,
    /// Links hold what they are given for a while, then deliver all of it.
    Clog,
    /// A sync or a write fails; the node stops and comes back.
    SyncFails,
    /// A disk is slow for a while.
    SlowDisk,
    /// A disk finishes nothing for a while.
    DiskStalls,
    /// The leader's disk finishes nothing for a while.
    LeaderDiskStalls,
    /// A clock runs faster or slower.
    ClockRate,
    /// A clock jumps ahead, as after a suspension.
    ClockJump,
    /// All clocks jump ahead.
    AllClocksJump,
    /// Bits flip in what a disk holds.
    BitsFlip,
    /// A sector of one file is written over a sector of another.
    MisdirectedWrite,
    /// A disk is lost with everything on it.
    Wipe,
}

impl FaultKind {
    /// Those after which every node comes back with everything that it had synced.
    pub const RECOVERABLE: [Self; 19] = [
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
        Self::Clog,
        Self::SyncFails,
        Self::SlowDisk,
        Self::DiskStalls,
        Self::LeaderDiskStalls,
        Self::ClockRate,
        Self::ClockJump,
        Self::AllClocksJump,
    ];

    /// Those that destroy what was synced: a run has a budget for them.
    pub const DESTRUCTIVE: [Self; 3] = [Self::BitsFlip, Self::MisdirectedWrite, Self::Wipe];
}

/// A fault that will happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlannedFault {
    /// When, in microseconds after faults begin.
    pub at: u64,
    /// Of which kind.
    pub kind: FaultKind,
    /// Where, how long and how exactly: the seed of its own generator.
    pub seed: u64,
}

/// Operations of all clients together, at least and at most.
const OPERATIONS_MIN: u64 = 650;
const OPERATIONS_MAX: u64 = 1_100;

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
    /// Links that are unlike the others: from, to, how.
    pub odd_links: Vec<(usize, usize, LinkQuality)>,
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
    /// How long a fault lasts.
    pub fault_length: Span,
    /// Which faults, in the order of time.
    pub faults: Vec<PlannedFault>,
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
            odd_links: Vec::new(),
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
            fault_length: Span { min: 500_000, max: 500_000 },
            faults: Vec::new(),
            raft: raft_core::Config::default(),
            log_segment_bytes: 1 << 20,
            memtable_bytes: 1 << 20,
            flush_log_bytes: 256 << 20,
        }
    }

    /// The run of a seed, less what is withheld.
    #[must_use]
    pub fn draw(random: &mut Random, withheld: &Withheld) -> Self {
        let nodes = *random.pick(&[3, 3, 3, 4, 4, 5]);
        let network = Self::draw_link(random);
        let odd_links = Self::draw_odd_links(random, nodes);
        let bad_network = LinkQuality { lost: 300, doubled: 100, late: 50, ..network };
        let slow_disk = random.chance(200);
        let fault_time = random.between(5_000_000, 12_000_000);
        let faults = Self::draw_faults(random, fault_time);
        let clients = random.between(2, 5);
        let lanes = *random.pick(&[1, 2, 4, 8]);
        let total = random.between(OPERATIONS_MIN, OPERATIONS_MAX);
        // So that the work fills a part of the time, not a moment at its beginning.
        let busy = fault_time * *random.pick(&[2, 5, 8]) / 10;
        let think_max = 2 * busy * clients * lanes / total;
        let mut plan = Self {
            nodes,
            clients: usize::try_from(clients).unwrap_or(2),
            lanes: usize::try_from(lanes).unwrap_or(1),
            operations: total.div_ceil(clients),
            keys: random.between(1, 12),
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
            think: Span { min: 100, max: think_max.max(1_000) },
            attempt_timeout: Span { min: 150_000, max: 700_000 },
            operation_timeout: Span { min: 500_000, max: *random.pick(&[2_000_000, 8_000_000]) },
            network,
            odd_links,
            bad_network,
            log_latency: Span { min: 100, max: if slow_disk { 60_000 } else { 4_000 } },
            apply_latency: Span { min: 10, max: *random.pick(&[300, 300, 20_000]) },
            fetch_latency: Span { min: 50, max: *random.pick(&[1_000, 100_000]) },
            report_latency: Span { min: 1, max: *random.pick(&[50, 5_000]) },
            consensus_latency: Span { min: 1, max: *random.pick(&[30, 3_000]) },
            partial_inbox: *random.pick(&[0, 100, 500]),
            flush_between: *random.pick(&[0, 100, 500]),
            partial_log_batch: *random.pick(&[0, 100, 500]),
            fault_time,
            fault_length: Span { min: 20_000, max: *random.pick(&[400_000, 1_500_000]) },
            faults,
            raft: Self::draw_raft(random),
            log_segment_bytes: *random.pick(&[16 << 10, 64 << 10, 1 << 20]),
            memtable_bytes: *random.pick(&[4 << 10, 64 << 10, 1 << 20]),
            flush_log_bytes: *random.pick(&[4 << 10, 32 << 10, 256 << 20]),
        };
        plan.withhold(withheld);
        plan
    }

    /// The numbers of all decisions of this plan but the clients' operations.
    #[must_use]
    pub fn fault_numbers(&self) -> Vec<u32> {
        (0..).zip(&self.faults).map(|(number, _)| fault_number(number)).collect()
    }

    fn withhold(&mut self, withheld: &Withheld) {
        let calm = Self::calm(self.nodes);
        for feature in Feature::ALL.into_iter().filter(|&feature| withheld.feature(feature)) {
            let network = &mut self.network;
            match feature {
                Feature::Lost => network.lost = 0,
                Feature::Doubled => network.doubled = 0,
                Feature::Late => network.late = 0,
                Feature::Delay => {
                    network.delay_max = calm.network.delay_max;
                    network.spread = Spread::Even;
                }
                Feature::OddLinks => self.odd_links.clear(),
                Feature::SlowWork => {
                    self.log_latency = calm.log_latency;
                    self.apply_latency = calm.apply_latency;
                    self.fetch_latency = calm.fetch_latency;
                }
                Feature::SlowReports => {
                    self.report_latency = calm.report_latency;
                    self.consensus_latency = calm.consensus_latency;
                }
                Feature::PartialInbox => self.partial_inbox = 0,
                Feature::FlushBetween => self.flush_between = 0,
                Feature::PartialLogBatch => self.partial_log_batch = 0,
                Feature::SmallLimits => self.raft = calm.raft.clone(),
                Feature::SmallFiles => {
                    self.log_segment_bytes = calm.log_segment_bytes;
                    self.memtable_bytes = calm.memtable_bytes;
                    self.flush_log_bytes = calm.flush_log_bytes;
                }
                Feature::Lanes => self.lanes = 1,
            }
        }
    }

    fn draw_link(random: &mut Random) -> LinkQuality {
        let slow = random.chance(200);
        LinkQuality {
            delay_min: 50,
            delay_max: if slow { 20_000 } else { random.between(200, 3_000) },
            spread: *random.pick(&[Spread::Even, Spread::Steady, Spread::LongTail]),
            ordered: random.chance(300),
            lost: *random.pick(&[0, 0, 5, 30]),
            doubled: *random.pick(&[0, 5, 30]),
            late: *random.pick(&[0, 2, 10]),
            late_max: *random.pick(&[100_000, 2_000_000]),
        }
    }

    /// In half of the runs some links have a quality of their own.
    fn draw_odd_links(random: &mut Random, nodes: usize) -> Vec<(usize, usize, LinkQuality)> {
        let odd = *random.pick(&[0, 0, 200, 700]);
        let mut links = Vec::new();
        for from in 0..nodes {
            for to in (0..nodes).filter(|&to| to != from) {
                if random.chance(odd) {
                    links.push((from, to, Self::draw_link(random)));
                }
            }
        }
        links
    }

    fn draw_faults(random: &mut Random, fault_time: u64) -> Vec<PlannedFault> {
        let mut random = random.branch();
        let mut kinds = random.subset(&FaultKind::RECOVERABLE);
        if random.chance(400) {
            kinds.push(*random.pick(&FaultKind::DESTRUCTIVE));
        }
        if random.chance(30) {
            kinds.clear();
        }
        let mut faults = Vec::new();
        let interval = Span { min: 50_000, max: *random.pick(&[500_000, 1_500_000]) };
        let mut at = interval.draw(&mut random);
        while at < fault_time && !kinds.is_empty() {
            let (kind, seed) = (*random.pick(&kinds), random.any());
            faults.push(PlannedFault { at, kind, seed });
            at += interval.draw(&mut random);
        }
        faults
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
