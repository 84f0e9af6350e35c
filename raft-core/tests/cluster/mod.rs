//! A cluster in memory: what a driver does, done by hand and in any order, with every step checked.
//!
//! Disks, the network and the state machines are plain vectors. Nothing happens by itself: a test
//! says which message arrives, which write becomes durable, which node crashes. After every flush
//! the [`Checks`] look at all nodes and all disks.

mod checks;
mod storage;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
pub(crate) use checks::{Checks, End, Tally};
use raft_core::{
    Body, Config, Effect, Effects, Entry, Envelope, FatalError, FetchFailed, FetchId, Input,
    LogIndex, LogPos, Membership, MembershipChange, Micros, NodeId, NodeInfo, PersistSeq,
    Quarantine, Raft, Recovered, RoleChange, RoleKind, Status, Term, Ticket, codec,
};
pub(crate) use storage::{Disk, Fetching, Job, Write};

/// One node: the core and everything its driver owns.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// The membership it was formatted with; a node that joins has none.
    pub(crate) first_membership: Option<Arc<Membership>>,
    pub(crate) raft: Option<Raft>,
    pub(crate) config: Config,
    pub(crate) disk: Disk,
    /// Given out, not durable.
    pub(crate) writes: VecDeque<Write>,
    /// The log with all writes given out.
    pub(crate) written: Vec<Entry>,
    pub(crate) to_apply: VecDeque<Job>,
    /// Every entry applied, from index 1.
    pub(crate) state: Vec<Entry>,
    /// The state machine keeps this many of them over a crash.
    pub(crate) state_durable: usize,
    pub(crate) fetches: VecDeque<(FetchId, LogIndex, LogIndex, usize)>,
    /// The snapshot it fetches.
    pub(crate) fetching: Option<Fetching>,
    /// A whole snapshot beside the live state; it survives a crash.
    pub(crate) staged: Option<Vec<Entry>>,
    pub(crate) boot: u64,
    pub(crate) fatal: Option<FatalError>,
    pub(crate) roles: Vec<RoleChange>,
    /// It was told that it is removed, by the membership at this index.
    pub(crate) removed: Option<LogIndex>,
    /// Its disk has lost something synced.
    pub(crate) has_lost: bool,
}

impl Node {
    fn new(
        id: NodeId,
        config: Config,
        first_membership: Option<Arc<Membership>>,
        disk: Disk,
        applied: usize,
    ) -> Self {
        Self {
            id,
            first_membership,
            raft: None,
            config,
            written: disk.log.clone(),
            state: disk.log[..applied].to_vec(),
            state_durable: applied,
            disk,
            writes: VecDeque::new(),
            to_apply: VecDeque::new(),
            fetches: VecDeque::new(),
            fetching: None,
            staged: None,
            boot: 0,
            fatal: None,
            roles: Vec::new(),
            removed: None,
            has_lost: false,
        }
    }

    /// The staged snapshot becomes the state.
    fn adopt(&mut self) {
        self.state = self.staged.take().expect("what the log begins after is staged");
        self.state_durable = self.state.len();
    }

    /// Up to here entries were handed to the state machine.
    fn handed_over(&self) -> LogIndex {
        self.to_apply.iter().fold(LogIndex(self.state.len() as u64), |at, job| match job {
            Job::Batch(entries) => LogIndex(at.0 + entries.len() as u64),
            Job::Adopt(snapshot) => snapshot.index,
        })
    }

    /// What it uses as membership while its log brought none.
    fn membership_before_log(&self) -> Option<&Arc<Membership>> {
        let installing = self.writes.iter().rev().find_map(|write| match write {
            Write::Install { meta, .. } => Some(&meta.membership),
            Write::Unit(_) | Write::Cut(_) | Write::Quarantine { .. } => None,
        });
        installing.or(self.first_membership.as_ref())
    }
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: VecDeque<Envelope>,
    /// Links that lose everything, by direction.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    pub(crate) now: Micros,
    config: Config,
    pub(crate) checks: Checks,
    /// What was emitted, for whoever wants to read it.
    pub(crate) journal: Vec<(NodeId, Effect)>,
    pub(crate) keep_journal: bool,
    seed: u64,
    next_ticket: u64,
}

/// The position of `index` in a vector's terms, counted from 1.
pub(crate) fn at(index: LogIndex) -> usize {
    usize::try_from(index.0).expect("test logs are short")
}

/// The node numbered `id`.
pub(crate) fn node_id(id: u64) -> NodeId {
    NodeId::new(id).expect("test nodes are numbered from 1")
}

/// `count` voters.
pub(crate) fn voters(count: u64) -> Arc<Membership> {
    let nodes = (1..=count).map(|id| (node_id(id), NodeInfo::default())).collect();
    Arc::new(Membership::of_voters(nodes).expect("at least one node"))
}

/// Entries with the given terms, from index 1. Commands say where they were made.
pub(crate) fn log_of(terms: &[u64]) -> Vec<Entry> {
    (1..)
        .zip(terms)
        .map(|(index, term)| Entry {
            pos: LogPos { term: Term(*term), index: LogIndex(index) },
            body: Body::Command(Bytes::from(format!("entry {index} of term {term}"))),
        })
        .collect()
}

impl Cluster {
    /// `membership`'s nodes with empty disks, started.
    pub(crate) fn new(membership: Arc<Membership>, config: &Config, seed: u64) -> Self {
        let disks: Vec<Disk> = membership.nodes().keys().map(|_| Disk::default()).collect();
        let applied = vec![0; disks.len()];
        Self::with_states(membership, config, seed, disks, &applied)
    }

    /// Puts in the bug that the environment names, if it does: see `raft_core::mutants`.
    #[cfg(feature = "mutants")]
    fn choose_mutant() {
        let Ok(name) = std::env::var("MUTANT") else { return };
        let mutant = raft_core::mutants::Mutant::ALL
            .into_iter()
            .find(|mutant| format!("{mutant:?}") == name)
            .unwrap_or_else(|| panic!("there is no mutant {name}"));
        raft_core::mutants::activate(Some(mutant));
    }

    /// `membership`'s nodes with what is on `disks`, so many entries of it already applied, started.
    pub(crate) fn with_states(
        membership: Arc<Membership>,
        config: &Config,
        seed: u64,
        disks: Vec<Disk>,
        applied: &[usize],
    ) -> Self {
        #[cfg(feature = "mutants")]
        Self::choose_mutant();
        let nodes = membership
            .nodes()
            .keys()
            .zip(disks.into_iter().zip(applied))
            .map(|(id, (disk, applied))| {
                Node::new(*id, config.clone(), Some(Arc::clone(&membership)), disk, *applied)
            })
            .collect();
        let mut cluster = Self {
            nodes,
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            now: Micros(1_000_000),
            config: config.clone(),
            checks: Checks::default(),
            journal: Vec::new(),
            keep_journal: false,
            seed,
            next_ticket: 0,
        };
        for id in cluster.ids() {
            cluster.checks.adopt_disk(&cluster.nodes[slot(id)].disk.log);
            cluster.restart(id);
        }
        cluster
    }

    /// Starts another node, which knows of no membership, and returns its id.
    pub(crate) fn join(&mut self) -> NodeId {
        let id = node_id(self.nodes.len() as u64 + 1);
        self.nodes.push(Node::new(id, self.config.clone(), None, Disk::default(), 0));
        self.restart(id);
        id
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[slot(id)]
    }

    pub(crate) fn is_up(&self, id: NodeId) -> bool {
        self.node(id).raft.is_some()
    }

    pub(crate) fn status(&self, id: NodeId) -> Status<'_> {
        self.node(id).raft.as_ref().expect("the node is up").status()
    }

    /// Nodes that lead, whatever the term.
    pub(crate) fn leaders(&self) -> Vec<NodeId> {
        let leads = |id: &NodeId| self.is_up(*id) && self.status(*id).role == RoleKind::Leader;
        self.ids().into_iter().filter(leads).collect()
    }

    /// Gives `input` to a node without a flush.
    pub(crate) fn step(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        if let Some(raft) = &mut self.nodes[slot(id)].raft {
            raft.step(now, input);
        }
    }

    /// Flushes a node, performs what it emits as far as nothing has to be waited for, and checks.
    pub(crate) fn flush(&mut self, id: NodeId) {
        let mut out = Effects::new();
        let now = self.now;
        let Some(raft) = &mut self.nodes[slot(id)].raft else { return };
        raft.flush(now, &mut out);
        for effect in out {
            self.perform(id, effect);
        }
        self.checks.after_flush(&self.nodes, id);
    }

    /// Both.
    pub(crate) fn input(&mut self, id: NodeId, input: Input) {
        self.step(id, input);
        self.flush(id);
    }

    fn perform(&mut self, id: NodeId, effect: Effect) {
        if self.keep_journal {
            self.journal.push((id, effect.clone()));
        }
        self.checks.on_effect(&self.nodes, id, &effect);
        let node = &mut self.nodes[slot(id)];
        match effect {
            Effect::Persist(op) => {
                if let Some(from) = op.truncate_from {
                    node.written.truncate(at(from) - 1);
                }
                node.written.extend(op.append.iter().cloned());
                node.writes.push_back(Write::Unit(op));
            }
            Effect::Send(envelope) => {
                if !self.cut.contains(&(envelope.from, envelope.to)) {
                    self.network.push_back(envelope);
                }
            }
            Effect::Apply(entries) => node.to_apply.push_back(Job::Batch(entries)),
            Effect::FetchLog { id, lo, hi, max_bytes, .. } => {
                node.fetches.push_back((id, lo, hi, max_bytes));
            }
            Effect::Role(change) => node.roles.push(change),
            Effect::Fatal(error) => node.fatal = Some(error),
            Effect::Removed { at } => node.removed = Some(at),
            Effect::CompactLog { upto } => node.writes.push_back(Write::Cut(upto)),
            Effect::FetchSnapshot { id: fetch, from, at_least } => {
                node.fetching = Some(Fetching { id: fetch, from, at_least, meta: None });
                node.staged = None;
            }
            Effect::DiscardSnapshot { id: fetch } => {
                if node.fetching.as_ref().is_none_or(|it| it.id == fetch) {
                    node.fetching = None;
                    node.staged = None;
                }
            }
            Effect::InstallSnapshot { seq, ballot, meta, .. } => {
                node.fetching = None;
                node.written = node.staged.clone().expect("a snapshot is installed that is here");
                node.writes.push_back(Write::Install { seq, ballot, meta });
            }
            Effect::Quarantine { seq, quarantine } => {
                node.writes.push_back(Write::Quarantine { seq, quarantine });
            }
            Effect::AdoptSnapshot { at } => node.to_apply.push_back(Job::Adopt(at)),
            Effect::ReadReady { .. } | Effect::Reply { .. } | Effect::MembershipEffective(_) => {}
        }
    }

    /// Makes the oldest `count` writes of a node durable and says so.
    pub(crate) fn persist(&mut self, id: NodeId, count: usize) {
        if let Some(upto) = self.write_disk(id, count) {
            self.input(id, Input::Persisted { upto });
        }
    }

    fn write_disk(&mut self, id: NodeId, count: usize) -> Option<PersistSeq> {
        let node = &mut self.nodes[slot(id)];
        let mut upto = None;
        for write in node.writes.drain(..count.min(node.writes.len())) {
            match &write {
                Write::Unit(op) => node.disk.write(op),
                Write::Cut(upto) => node.disk.base = *upto,
                Write::Quarantine { quarantine, .. } => node.disk.quarantine = *quarantine,
                Write::Install { ballot, meta, .. } => {
                    let staged = node.staged.clone().expect("it stays until it is adopted");
                    node.disk.install(*ballot, meta, staged);
                    node.first_membership.get_or_insert_with(|| Arc::clone(&meta.membership));
                }
            }
            upto = write.seq().or(upto);
        }
        upto
    }

    /// Applies the oldest batch of a node and says so.
    pub(crate) fn apply(&mut self, id: NodeId) {
        let node = &mut self.nodes[slot(id)];
        if let Some(job) = node.to_apply.pop_front() {
            match job {
                Job::Batch(entries) => node.state.extend(entries.iter().cloned()),
                Job::Adopt(_) => node.adopt(),
            }
            let upto = LogIndex(node.state.len() as u64);
            self.input(id, Input::Applied { upto });
        }
    }

    /// Answers the oldest fetch of a node from its disk.
    pub(crate) fn fetch(&mut self, id: NodeId) {
        let node = &mut self.nodes[slot(id)];
        if let Some((fetch, lo, hi, max_bytes)) = node.fetches.pop_front() {
            let mut bytes = 0;
            // A leader that asked may have stepped down since, and its log been cut.
            let is_there = lo > node.disk.base.index;
            let wanted = node.disk.log.get(at(lo) - 1..).filter(|_| is_there).unwrap_or_default();
            let fits = |entry: &&Entry| {
                bytes += codec::encoded_len(entry);
                entry.pos.index == lo || (entry.pos.index <= hi && bytes <= max_bytes)
            };
            let entries: Arc<[Entry]> = wanted.iter().take_while(fits).cloned().collect();
            let result =
                if entries.is_empty() { Err(FetchFailed::Unavailable) } else { Ok(entries) };
            self.input(id, Input::Fetched { id: fetch, result });
        }
    }

    /// Says that the state machine of a node keeps everything up to so many entries over a crash.
    pub(crate) fn keep(&mut self, id: NodeId, entries: usize) {
        self.nodes[slot(id)].state_durable = entries;
        self.input(id, Input::StateDurable { upto: LogIndex(entries as u64) });
    }

    /// Goes on with the snapshot that a node fetches: finds out what there is, then has it all. Whether
    /// anything was done.
    pub(crate) fn fetch_snapshot(&mut self, id: NodeId) -> bool {
        let Some(fetching) = self.node(id).fetching.clone() else { return false };
        if self.node(id).staged.is_some() {
            return false;
        }
        let fetch = fetching.id;
        let source = self.node(fetching.from);
        let links = [(id, fetching.from), (fetching.from, id)];
        let raft = source.raft.as_ref().filter(|_| links.iter().all(|it| !self.cut.contains(it)));
        let found = raft.and_then(|raft| raft.snapshot_meta(LogIndex(source.state.len() as u64)));
        match found.filter(|meta| meta.pos.index >= fetching.at_least) {
            Some(found) if fetching.meta.is_none() => {
                let content = source.state.clone();
                self.checks.on_snapshot(&found, &content);
                let at = found.pos.index;
                let meta = Some((found, content));
                self.nodes[slot(id)].fetching = Some(Fetching { meta, ..fetching });
                self.input(id, Input::SnapshotProgress { id: fetch, at });
            }
            // Nobody is there to give the rest, or has another by now; this one is as good.
            Some(_) | None => match fetching.meta {
                Some((meta, content)) if raft.is_some() => {
                    self.nodes[slot(id)].staged = Some(content);
                    self.input(id, Input::SnapshotStaged { id: fetch, meta });
                }
                Some(_) | None => {
                    self.nodes[slot(id)].fetching = None;
                    self.input(id, Input::SnapshotFailed { id: fetch });
                }
            },
        }
        true
    }

    /// Delivers a message. It is lost if the receiver is down or the link is cut by now.
    pub(crate) fn deliver(&mut self, envelope: Envelope) {
        let to = envelope.to;
        if self.is_up(to) && !self.cut.contains(&(envelope.from, to)) {
            self.input(to, Input::Message(envelope));
        }
    }

    /// Ends a node at once. Of its unfinished writes the oldest `reached` are on disk.
    pub(crate) fn crash(&mut self, id: NodeId, reached: usize) {
        let _seq = self.write_disk(id, reached);
        self.checks.on_crash(id);
        let node = &mut self.nodes[slot(id)];
        node.raft = None;
        node.writes.clear();
        node.to_apply.clear();
        node.fetches.clear();
        node.fetching = None;
        node.state.truncate(node.state_durable);
        if node.disk.base.index.0 > node.state_durable as u64 {
            // The log begins after a snapshot that was not adopted: that comes first.
            node.adopt();
        }
        node.staged = None;
        node.written = node.disk.log.clone();
    }

    /// The disk of a node that is down loses everything after the first `left` entries of its log. The node
    /// finds out, as `quarantine` says, or it does not.
    pub(crate) fn lose(&mut self, id: NodeId, left: usize, quarantine: Option<Quarantine>) {
        let node = &mut self.nodes[slot(id)];
        assert!(
            node.raft.is_none() && left >= node.state_durable.max(at(node.disk.base.index)),
            "lost"
        );
        node.has_lost = true;
        node.disk.log.truncate(left);
        node.disk.commit_hint = node.disk.commit_hint.min(LogIndex(left as u64));
        node.disk.quarantine = quarantine.or(node.disk.quarantine);
        node.written = node.disk.log.clone();
    }

    /// What a node would find on its disk.
    pub(crate) fn recovered(&self, id: NodeId) -> Recovered {
        let node = self.node(id);
        let log = &node.disk.log;
        let base = node.disk.base;
        let mut terms: Vec<LogPos> = Vec::new();
        let first = node.first_membership.iter();
        let mut memberships: Vec<_> = first.map(|it| (LogIndex(0), Arc::clone(it))).collect();
        for entry in log {
            if let Body::Config(membership) = &entry.body {
                if entry.pos.index <= base.index {
                    memberships.clear();
                }
                memberships.push((entry.pos.index, Arc::clone(membership)));
            }
            if entry.pos.index <= base.index {
                continue;
            }
            if terms.last().is_none_or(|run| run.term != entry.pos.term) {
                terms.push(entry.pos);
            }
        }
        Recovered {
            ballot: node.disk.ballot,
            base,
            terms,
            last: log.last().map_or(LogPos::default(), |entry| entry.pos),
            commit_hint: node.disk.commit_hint,
            applied: LogIndex(node.state.len() as u64),
            unapplied_bytes: log[node.state.len()..].iter().map(codec::encoded_len).sum(),
            log_bytes: log[at(base.index)..].iter().map(|it| codec::encoded_len(it) as u64).sum(),
            quarantine: node.disk.quarantine,
            memberships,
        }
    }

    /// Starts a node from its disk.
    pub(crate) fn restart(&mut self, id: NodeId) {
        let recovered = self.recovered(id);
        let (now, seed) = (self.now, self.seed);
        let node = &mut self.nodes[slot(id)];
        node.boot += 1;
        node.removed = None;
        // Another seed for every node and boot, else elections tie.
        let seed = seed ^ (id.get() << 32) ^ node.boot;
        let raft = Raft::new(id, node.config.clone(), recovered, seed, now);
        node.raft = Some(raft.expect("what was written by the core can be started from"));
        self.checks.on_start(id);
    }

    /// Proposes commands at a node.
    pub(crate) fn propose(&mut self, id: NodeId, commands: Vec<Bytes>) -> Ticket {
        let ticket = self.ticket(id, true);
        self.input(id, Input::Propose { ticket, commands });
        ticket
    }

    /// Asks a node to change the membership.
    pub(crate) fn change(&mut self, id: NodeId, change: impl Into<MembershipChange>) -> Ticket {
        let ticket = self.ticket(id, true);
        self.input(id, Input::ChangeMembership { ticket, change: change.into() });
        ticket
    }

    /// Asks a node to hand over its leadership.
    pub(crate) fn transfer(&mut self, id: NodeId, to: Option<NodeId>) -> Ticket {
        let ticket = self.ticket(id, true);
        self.input(id, Input::TransferLeader { ticket, to });
        ticket
    }

    /// Asks a node for a read index.
    pub(crate) fn read(&mut self, id: NodeId) -> Ticket {
        let ticket = self.ticket(id, false);
        self.input(id, Input::Read { ticket });
        ticket
    }

    /// A ticket of the running boot of a node.
    pub(crate) fn ticket(&mut self, id: NodeId, is_proposal: bool) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.checks.on_ticket(ticket, id, is_proposal);
        ticket
    }

    /// Lets everything that is under way finish: disks, applies, fetches, messages in order.
    pub(crate) fn settle(&mut self) {
        while self.settle_once() {}
    }

    /// One round of it; whether anything was under way.
    pub(crate) fn settle_once(&mut self) -> bool {
        let mut any = false;
        for id in self.ids() {
            if !self.is_up(id) {
                continue;
            }
            any |= !self.node(id).writes.is_empty();
            self.persist(id, usize::MAX);
            while !self.node(id).fetches.is_empty() {
                any = true;
                self.fetch(id);
            }
            while !self.node(id).to_apply.is_empty() {
                any = true;
                self.apply(id);
            }
            any |= self.fetch_snapshot(id);
        }
        for envelope in core::mem::take(&mut self.network) {
            any = true;
            self.deliver(envelope);
        }
        any
    }

    /// Moves time to `until`, firing timers when they are due, in order, and settling after each.
    pub(crate) fn run_until(&mut self, until: Micros) {
        loop {
            self.settle();
            let due = self.nodes.iter().filter_map(|node| {
                let raft = node.raft.as_ref()?;
                Some((raft.deadline(), node.id))
            });
            match due.min() {
                Some((deadline, id)) if deadline <= until => {
                    self.now = self.now.max(deadline);
                    self.input(id, Input::Timer);
                }
                Some(_) | None => break,
            }
        }
        self.now = self.now.max(until);
    }

    /// Fires the next timer of one node when it is due. Its clock has not run while others' timers
    /// were fired: a timer that looks late is fired again when it is due anew.
    pub(crate) fn timeout(&mut self, id: NodeId) {
        for _ in 0..2 {
            let deadline = self.node(id).raft.as_ref().map_or(self.now, Raft::deadline);
            let late = deadline < self.now;
            self.now = self.now.max(deadline);
            self.input(id, Input::Timer);
            if !late {
                break;
            }
        }
    }
}

/// Where a node stands in the list.
pub(crate) fn slot(id: NodeId) -> usize {
    usize::try_from(id.get()).expect("small") - 1
}
