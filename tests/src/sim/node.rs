//! A simulated node: a disk, a clock, and the machines of a replica while it is up.
//!
//! The machines are the server's own; what stands in for threads are queues and "busy until": the log
//! writer and the applier each do one job at a time, consensus handles its inbox when it is woken.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use kv_server::identity;
use kv_server::limits::Limits;
use kv_server::replica::{
    self, Applier, ApplyJob, Consensus, ConsensusInput, FetchJob, LogJob, LogReader, LogWriter,
    OpenError, Outputs, Parts, ReplicaConfig, StateReader, StorageConfig,
};
use lsm_store::Executor;
use lsm_store::vfs::MemVfs;
use raft_core::{Entry, FetchFor, FetchId, LogIndex, Membership, Micros, NodeId, NodeInfo};

use super::plan::Plan;
use super::world::Event;

/// Where every node keeps its data, each on its own disk.
const DATA_DIR: &str = "/data";

/// Names a caller who waits for a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Token(pub u64);

/// A clock that runs at its own rate.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    rate_permille: u64,
    global: u64,
    local: u64,
}

impl Clock {
    /// A clock that shows `local` now and runs at `rate_permille` thousandths of true time.
    #[must_use]
    pub const fn new(now: u64, local: u64, rate_permille: u64) -> Self {
        Self { rate_permille, global: now, local }
    }

    /// What it shows.
    #[must_use]
    pub const fn read(&self, now: u64) -> Micros {
        Micros(self.local + (now - self.global) * self.rate_permille / 1000)
    }

    /// The first true time at which it shows at least `local`.
    #[must_use]
    pub fn when(&self, local: Micros) -> u64 {
        let ahead = local.0.saturating_sub(self.local);
        self.global.saturating_add(ahead.saturating_mul(1000).div_ceil(self.rate_permille))
    }

    /// Its rate, in thousandths of true time.
    #[must_use]
    pub const fn rate_permille(&self) -> u64 {
        self.rate_permille
    }

    /// Shows so much more from now on.
    pub const fn jump(&mut self, now: u64, by: u64) {
        *self = Self::new(now, self.read(now).0 + by, self.rate_permille);
    }

    /// Runs at another rate from now on.
    pub const fn set_rate(&mut self, now: u64, rate_permille: u64) {
        *self = Self::new(now, self.read(now).0, rate_permille);
    }
}

/// The machines of a node that is up.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) consensus: Consensus<Token>,
    pub(super) log_writer: LogWriter,
    pub(super) applier: Applier,
    pub(super) log_reader: LogReader,
    pub(super) state_reader: StateReader,
    pub(super) outputs: Outputs<Token>,
    pub(super) inbox: VecDeque<ConsensusInput<Token>>,
    /// When consensus is to be woken next, if it is.
    pub(super) wake_at: Option<u64>,
    /// When the last report of its log writer, of its applier and of its log reader arrives.
    pub(super) reported_at: [u64; 3],
    pub(super) log_queue: VecDeque<LogJob>,
    pub(super) log_busy: Vec<LogJob>,
    /// Jobs reported as durable that are not: only with a sabotaged driver.
    pub(super) log_owed: Vec<LogJob>,
    pub(super) apply_queue: VecDeque<ApplyJob<Token>>,
    pub(super) apply_busy: Option<ApplyJob<Token>>,
    /// Reads that wait for an index to be applied.
    pub(super) reads: Vec<(LogIndex, Token)>,
    /// The newest revision it served.
    pub(super) served: u64,
}

/// What became of what a node had synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It is all there.
    Intact,
    /// Something was changed on its disk; perhaps nothing has met it yet.
    Damaged,
    /// The node is out of service for good.
    Gone,
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) disk: MemVfs,
    pub(super) clock: Clock,
    /// Rises with every start: what was meant for an earlier one is dropped.
    pub(super) boot: u64,
    pub(super) machine: Option<Machine>,
    /// While it is stopped: what came in meanwhile.
    pub(super) paused: Option<Vec<Event>>,
    /// Times the ordinary latency of the disk.
    pub(super) disk_slowness: u64,
    /// Nothing its disk is asked to do is finished before.
    pub(super) disk_stalled_until: u64,
    pub(super) fate: Fate,
    /// Why it did not start, when that was for damage.
    pub(super) refusal: Option<String>,
    /// Calls of its disk that were made to fail before it was started.
    pub(super) faults_at_start: u64,
}

impl Node {
    /// A node with an empty disk that was never started.
    #[must_use]
    pub(super) fn new(position: usize, seed: u64) -> Self {
        Self {
            id: node_id(position),
            disk: MemVfs::new(seed),
            clock: Clock::new(0, 0, 1000),
            boot: 0,
            machine: None,
            paused: None,
            disk_slowness: 1,
            disk_stalled_until: 0,
            fate: Fate::Intact,
            refusal: None,
            faults_at_start: 0,
        }
    }

    /// Whether a call of its disk was made to fail since it was started, or its disk was damaged at any
    /// time: it may stop then, and say that it cannot read or write.
    pub(super) fn disk_has_failed(&self) -> bool {
        self.disk.faults_fired() > self.faults_at_start || self.fate != Fate::Intact
    }

    /// Opens the replica on the node's disk.
    ///
    /// # Errors
    /// Why it does not start.
    pub(super) fn open(
        &self,
        plan: &Plan,
        seed: u64,
        now: u64,
    ) -> Result<(Machine, Vec<Entry>), OpenError> {
        let vfs = Arc::new(self.disk.clone());
        let config = config(self.id, plan);
        let Parts { consensus, log_writer, applier, log_reader, state_reader, .. } = replica::open(
            vfs,
            Path::new(DATA_DIR),
            &config,
            Executor::Inline,
            seed,
            self.clock.read(now),
        )?;
        let last = consensus.status().last_index;
        let entries = read_log(&log_reader, last);
        let machine = Machine {
            consensus,
            log_writer,
            applier,
            log_reader,
            state_reader,
            outputs: Outputs::new(),
            inbox: VecDeque::new(),
            wake_at: None,
            reported_at: [0; 3],
            log_queue: VecDeque::new(),
            log_busy: Vec::new(),
            log_owed: Vec::new(),
            apply_queue: VecDeque::new(),
            apply_busy: None,
            reads: Vec::new(),
            served: 0,
        };
        Ok((machine, entries))
    }
}

/// The id of the node at a position.
///
/// # Panics
/// Never: positions are counted from 0, ids from 1.
#[must_use]
pub fn node_id(position: usize) -> NodeId {
    NodeId::new(position as u64 + 1).expect("a position plus one is not 0")
}

/// The position of a node.
#[must_use]
pub fn position(id: NodeId) -> usize {
    usize::try_from(id.get() - 1).unwrap_or(usize::MAX)
}

fn config(node_id: NodeId, plan: &Plan) -> ReplicaConfig {
    let initial_membership = membership(plan.nodes);
    ReplicaConfig {
        node_id,
        cluster_id: identity::cluster_id(&initial_membership),
        initial_membership,
        raft: plan.raft.clone(),
        limits: Limits::default(),
        storage: StorageConfig {
            log_segment_bytes: plan.log_segment_bytes,
            memtable_bytes: plan.memtable_bytes,
            block_cache_bytes: 1 << 20,
            replay_chunk_bytes: 4 << 10,
            flush_log_bytes: plan.flush_log_bytes,
            ..StorageConfig::default()
        },
    }
}

fn membership(nodes: usize) -> Membership {
    let info = |position: usize| NodeInfo {
        peer_addr: format!("node-{}:4331", position + 1),
        client_addr: format!("node-{}:3331", position + 1),
        storage_id: None,
    };
    Membership::of_voters((0..nodes).map(|position| (node_id(position), info(position))).collect())
        .expect("a plan has at least one node")
}

/// The whole log as it is on disk, for the checkers.
fn read_log(reader: &LogReader, last: LogIndex) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    while (entries.len() as u64) < last.0 {
        let job = FetchJob {
            id: FetchId(0),
            purpose: FetchFor::Apply,
            lo: LogIndex(entries.len() as u64 + 1),
            hi: last,
            max_bytes: usize::MAX,
        };
        match reader.handle(job).result {
            Ok(fetched) if !fetched.is_empty() => entries.extend(fetched.iter().cloned()),
            Ok(_) | Err(_) => break,
        }
    }
    entries
}
