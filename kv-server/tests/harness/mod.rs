//! Replicas on simulated disks, in one thread, their messages carried by hand.
//!
//! Time moves a millisecond at a time; a message sent in one is delivered in the next. Waiters are
//! numbers; their answers are kept by number.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use kv_server::{
    identity,
    limits::Limits,
    replica::{
        self, Answer, ConsensusInput, Executor, OpenError, Outputs, Parts, Proposal, ReplicaConfig,
        ReplicaFailure, ReplicaStatus, StorageConfig,
    },
    state_machine::command,
};
use lsm_store::vfs::{CrashPolicy, MemVfs, Vfs};
use raft_core::{Envelope, LogIndex, Membership, Message, Micros, NodeId, NodeInfo, RoleKind};
use raft_rpc::{
    Condition, Consistency, GetRequest, KeyRange, KeyValue, Projection, RangeRequest, Response,
    SessionTag, WireError, WriteOperation, WriteRequest,
};

pub(crate) const DIR: &str = "/data";

pub(crate) fn node_id(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

pub(crate) fn membership(nodes: u64) -> Membership {
    let nodes = (1..=nodes).map(|id| {
        let info = NodeInfo {
            peer_addr: format!("127.0.0.1:{}", 4330 + id),
            client_addr: format!("127.0.0.1:{}", 3330 + id),
            storage_id: None,
        };
        (node_id(id), info)
    });
    Membership::of_voters(nodes.collect::<BTreeMap<_, _>>()).unwrap()
}

pub(crate) fn config(id: u64, nodes: u64) -> ReplicaConfig {
    let initial_membership = membership(nodes);
    ReplicaConfig {
        node_id: node_id(id),
        cluster_id: identity::cluster_id(&initial_membership),
        initial_membership,
        raft: raft_core::Config::default(),
        limits: Limits::default(),
        storage: StorageConfig {
            log_segment_bytes: 64 << 10,
            memtable_bytes: 8 << 10,
            block_cache_bytes: 1 << 20,
            replay_chunk_bytes: 2 << 10,
            ..StorageConfig::default()
        },
    }
}

pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) vfs: MemVfs,
    pub(crate) config: ReplicaConfig,
    pub(crate) parts: Option<Parts<u64>>,
    pub(crate) boots: u64,
    pub(crate) failure: Option<ReplicaFailure>,
    /// Reads whose index is known but perhaps not applied here.
    ready: Vec<(LogIndex, u64)>,
}

pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) now_ms: u64,
    pub(crate) answers: BTreeMap<u64, Answer>,
    /// Reads that may be served, by the node that serves them.
    pub(crate) served: BTreeMap<u64, u64>,
    /// Links that carry nothing, as (from, to).
    pub(crate) cut: BTreeSet<(u64, u64)>,
    /// While set, answers to questions for a read index are kept here instead of delivered.
    pub(crate) held_read_replies: Option<Vec<Envelope>>,
    wire: VecDeque<Envelope>,
    next_token: u64,
    seed: u64,
}

impl Cluster {
    pub(crate) fn new(nodes: u64, seed: u64) -> Self {
        Self::with(nodes, seed, |_config| {})
    }

    pub(crate) fn with(nodes: u64, seed: u64, tune: impl Fn(&mut ReplicaConfig)) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            now_ms: 1,
            answers: BTreeMap::new(),
            served: BTreeMap::new(),
            cut: BTreeSet::new(),
            held_read_replies: None,
            wire: VecDeque::new(),
            next_token: 0,
            seed,
        };
        for id in 1..=nodes {
            let mut config = config(id, nodes);
            tune(&mut config);
            let node = Node {
                id,
                vfs: MemVfs::new(seed ^ id),
                config,
                parts: None,
                boots: 0,
                failure: None,
                ready: Vec::new(),
            };
            cluster.nodes.insert(id, node);
            cluster.start(id).unwrap();
        }
        cluster
    }

    pub(crate) fn now(&self) -> Micros {
        Micros(self.now_ms * 1000)
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub(crate) fn parts(&mut self, id: u64) -> &mut Parts<u64> {
        self.node(id).parts.as_mut().unwrap()
    }

    pub(crate) fn start(&mut self, id: u64) -> Result<(), OpenError> {
        let now = self.now();
        let seed = self.seed;
        let node = self.node(id);
        node.boots += 1;
        let vfs: Arc<dyn Vfs> = Arc::new(node.vfs.clone());
        let seed = seed * 1000 + node.boots;
        let parts = replica::open(vfs, Path::new(DIR), &node.config, Executor::Inline, seed, now)?;
        node.parts = Some(parts);
        node.failure = None;
        node.ready.clear();
        Ok(())
    }

    pub(crate) fn crash(&mut self, id: u64, policy: CrashPolicy) {
        let seed = self.now_ms;
        let node = self.node(id);
        node.parts = None;
        node.vfs.crash(policy, seed);
        self.wire.retain(|envelope| envelope.to.get() != id);
    }

    pub(crate) fn status(&self, id: u64) -> ReplicaStatus {
        self.nodes[&id].parts.as_ref().unwrap().consensus.status()
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        let running = self.nodes.values().filter(|node| node.parts.is_some());
        let leaders = running
            .map(|node| self.status(node.id))
            .filter(|status| status.role == RoleKind::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.node_id.get())
    }

    pub(crate) fn await_leader(&mut self) -> u64 {
        assert!(self.run_until(5_000, |cluster| cluster.leader().is_some()), "no leader in 5 s");
        self.leader().unwrap()
    }

    pub(crate) fn run(&mut self, ms: u64) {
        self.run_until(ms, |_cluster| false);
    }

    /// Lets time pass until `done`, at most so long.
    pub(crate) fn run_until(&mut self, ms: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        for _ in 0..ms {
            if done(self) {
                return true;
            }
            self.now_ms += 1;
            for envelope in std::mem::take(&mut self.wire) {
                let link = (envelope.from.get(), envelope.to.get());
                if let (Some(held), Message::ReadIndexReply { .. }) =
                    (&mut self.held_read_replies, &envelope.msg)
                {
                    held.push(envelope);
                    continue;
                }
                if !self.cut.contains(&link) && self.nodes[&link.1].parts.is_some() {
                    self.input(link.1, ConsensusInput::Message(envelope));
                }
            }
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            for id in ids {
                self.pump(id);
            }
        }
        done(self)
    }

    /// Lets a long time pass for nodes that are idle: jumps from deadline to deadline.
    pub(crate) fn idle(&mut self, seconds: u64) {
        let end = self.now_ms + seconds * 1000;
        while self.now_ms < end {
            self.run(1);
            if self.wire.is_empty() {
                let next = self.nodes.values().filter_map(|node| {
                    node.parts.as_ref().map(|parts| parts.consensus.deadline().0.div_ceil(1000))
                });
                let next = next.min().unwrap_or(end).min(end);
                self.now_ms = self.now_ms.max(next.saturating_sub(1));
            }
        }
    }

    pub(crate) fn input(&mut self, id: u64, input: ConsensusInput<u64>) {
        let now = self.now();
        self.parts(id).consensus.handle(now, input);
    }

    /// Does everything a node wants done.
    fn pump(&mut self, id: u64) {
        let now = self.now();
        if self.node(id).parts.is_none() {
            return;
        }
        if self.parts(id).consensus.deadline() <= now {
            self.input(id, ConsensusInput::Timer);
        }
        loop {
            let mut out = Outputs::new();
            let node = self.nodes.get_mut(&id).unwrap();
            let parts = node.parts.as_mut().unwrap();
            parts.consensus.flush(now, &mut out);
            parts.consensus.check_invariants();
            if out.is_empty() {
                break;
            }
            if !out.log.is_empty() {
                let done = parts.log_writer.handle(std::mem::take(&mut out.log));
                parts.consensus.handle(now, ConsensusInput::LogDone(done));
            }
            for job in out.apply.drain(..) {
                let (done, answers) = parts.applier.handle(job);
                self.answers.extend(answers);
                parts.consensus.handle(now, ConsensusInput::ApplyDone(done));
            }
            for job in out.fetch.drain(..) {
                let done = parts.log_reader.handle(job);
                parts.consensus.handle(now, ConsensusInput::Fetched(done));
            }
            self.wire.extend(out.send);
            self.answers.extend(out.answers);
            for ready in out.reads_ready {
                node.ready.extend(ready.waiters.into_iter().map(|w| (ready.index, w)));
            }
            if out.fatal.is_some() {
                node.failure = out.fatal;
            }
        }
        let applied = self.parts(id).applier.applied().index;
        let node = self.node(id);
        let (now_served, waiting): (Vec<_>, Vec<_>) =
            node.ready.drain(..).partition(|(index, _)| *index <= applied);
        node.ready = waiting;
        self.served.extend(now_served.into_iter().map(|(_, token)| (token, id)));
    }

    pub(crate) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Proposes at a node, without waiting.
    pub(crate) fn propose(&mut self, id: u64, request: &WriteRequest) -> u64 {
        let waiter = self.token();
        let proposal = Proposal {
            command: command::encode(request),
            return_previous: command::returns_previous(request),
            waiter,
        };
        self.input(id, ConsensusInput::Propose(vec![proposal]));
        waiter
    }

    /// Asks for a read index at a node, without waiting.
    pub(crate) fn ask(&mut self, id: u64) -> u64 {
        let token = self.token();
        self.input(id, ConsensusInput::Read(vec![token]));
        token
    }

    pub(crate) fn write(&mut self, id: u64, request: &WriteRequest) -> Answer {
        let token = self.propose(id, request);
        let answered = self.run_until(3_000, |cluster| cluster.answers.contains_key(&token));
        assert!(answered, "no answer in 3 s");
        self.answers.remove(&token).unwrap()
    }

    /// A linearizable read of one key, at any node.
    pub(crate) fn read(&mut self, id: u64, key: &str) -> Result<Option<KeyValue>, WireError> {
        let token = self.ask(id);
        let done = self.run_until(3_000, |cluster| {
            cluster.served.contains_key(&token) || cluster.answers.contains_key(&token)
        });
        assert!(done, "no answer in 3 s");
        if let Some(answer) = self.answers.remove(&token) {
            return Err(answer.unwrap_err());
        }
        match self.parts(id).state_reader.get(&get(key))? {
            Response::Value { found, .. } => Ok(found),
            other => unexpected(&other),
        }
    }

    /// Everything a node has applied, by key.
    pub(crate) fn content(&mut self, id: u64) -> BTreeMap<Bytes, Bytes> {
        let request = RangeRequest {
            range: KeyRange { start: Bytes::new(), end: None },
            limit: None,
            reverse: false,
            projection: Projection::KeyValues,
            revision: None,
            consistency: Consistency::Stale { max_age_ms: None },
        };
        match self.parts(id).state_reader.range(&request).unwrap() {
            Response::Page { items, more: false, .. } => {
                items.into_iter().map(|item| (item.key, item.value)).collect()
            }
            other => unexpected(&other),
        }
    }
}

fn unexpected<T>(response: &Response) -> T {
    panic!("{response:?}")
}

pub(crate) fn get(key: &str) -> GetRequest {
    GetRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        revision: None,
        consistency: Consistency::Linearizable,
    }
}

pub(crate) fn put(key: &str, value: &str) -> WriteRequest {
    let operation = WriteOperation::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        condition: Condition::Always,
        return_previous: true,
    };
    WriteRequest { tag: None, operation }
}

pub(crate) fn tagged(mut request: WriteRequest, session: u64, sequence: u64) -> WriteRequest {
    request.tag = Some(SessionTag { session, sequence, lowest_unacknowledged: 1 });
    request
}

pub(crate) fn register() -> WriteRequest {
    WriteRequest { tag: None, operation: WriteOperation::RegisterSession }
}
