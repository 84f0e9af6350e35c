//! Four nodes in one thread: a leader is elected, takes commands, dies; another is elected and nothing
//! is lost. Shows all a driver has to do, with a network and disks that are vectors.
//!
//! `cargo run -p raft-core --example four_nodes_in_memory`

use std::{
    collections::{BTreeMap, VecDeque},
    error::Error,
    io::{Write as _, stdout},
    sync::Arc,
    time::Duration,
};

use raft_core::{
    Body, Config, Effect, Effects, Envelope, Input, LogIndex, Membership, Micros, NodeId, NodeInfo,
    Raft, Recovered, RoleKind, Ticket,
};

/// One node with its driver.
struct Node {
    raft: Raft,
    applied: Vec<String>,
    alive: bool,
}

struct Cluster {
    nodes: Vec<Node>,
    network: VecDeque<Envelope>,
    effects: Effects,
    now: Micros,
}

impl Cluster {
    fn new(count: u64) -> Result<Self, Box<dyn Error>> {
        let ids: Vec<NodeId> = (1..=count).filter_map(NodeId::new).collect();
        let listed: BTreeMap<_, _> = ids.iter().map(|id| (*id, NodeInfo::default())).collect();
        let membership = Arc::new(Membership::of_voters(listed)?);
        let mut nodes = Vec::new();
        for id in ids {
            let recovered = Recovered::bootstrap(Arc::clone(&membership));
            // The seed differs from node to node, else elections tie.
            let raft = Raft::new(id, Config::default(), recovered, id.get(), Micros(0))?;
            nodes.push(Node { raft, applied: Vec::new(), alive: true });
        }
        Ok(Self { nodes, network: VecDeque::new(), effects: Effects::new(), now: Micros(0) })
    }

    /// Gives one input to a node and does what follows.
    fn input(&mut self, at: usize, input: Input) {
        let Self { nodes, network, effects, now } = self;
        let node = &mut nodes[at];
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            node.raft.step(*now, input);
            node.raft.flush(*now, effects);
            for effect in effects.drain() {
                match effect {
                    // A real driver writes and syncs before it says so.
                    Effect::Persist(op) => inputs.push_back(Input::Persisted { upto: op.seq }),
                    Effect::Send(envelope) => network.push_back(envelope),
                    Effect::Apply(entries) => {
                        for entry in entries.iter() {
                            if let Body::Command(command) = &entry.body {
                                node.applied.push(String::from_utf8_lossy(command).into_owned());
                            }
                        }
                        let upto = entries.last().map_or(LogIndex(0), |entry| entry.pos.index);
                        inputs.push_back(Input::Applied { upto });
                    }
                    Effect::FetchLog { .. }
                    | Effect::ReadReady { .. }
                    | Effect::Reply { .. }
                    | Effect::Role(_)
                    | Effect::MembershipEffective(_)
                    | Effect::Removed { .. }
                    // The log keeps all, so nobody needs a snapshot.
                    | Effect::CompactLog { .. }
                    | Effect::Quarantine { .. }
                    | Effect::FetchSnapshot { .. }
                    | Effect::DiscardSnapshot { .. }
                    | Effect::InstallSnapshot { .. }
                    | Effect::AdoptSnapshot { .. }
                    | Effect::Fatal(_) => {}
                }
            }
        }
    }

    /// Delivers messages and fires timers until `until`.
    fn run(&mut self, until: Micros) {
        loop {
            while let Some(envelope) = self.network.pop_front() {
                let at = self.nodes.iter().position(|it| it.raft.status().id == envelope.to);
                if let Some(at) = at.filter(|at| self.nodes[*at].alive) {
                    self.input(at, Input::Message(envelope));
                }
            }
            let alive = self.nodes.iter().enumerate().filter(|(_, node)| node.alive);
            let next = alive.map(|(at, node)| (node.raft.deadline(), at)).min();
            match next {
                Some((due, at)) if due <= until => {
                    self.now = self.now.max(due);
                    self.input(at, Input::Timer);
                }
                Some(_) | None => break,
            }
        }
        self.now = until;
    }

    fn leader(&self) -> Option<usize> {
        let leads = |node: &Node| node.alive && node.raft.status().role == RoleKind::Leader;
        self.nodes.iter().position(leads)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = stdout();
    let mut cluster = Cluster::new(4)?;
    cluster.run(Micros(0).after(Duration::from_secs(1)));
    let first = cluster.leader().ok_or("nobody leads after a second")?;
    writeln!(out, "node {} leads", first + 1)?;

    let commands = vec!["key-01 = content 01".into(), "key-02 = content 02".into()];
    cluster.input(first, Input::Propose { ticket: Ticket(1), commands });
    cluster.run(cluster.now.after(Duration::from_millis(100)));

    cluster.nodes[first].alive = false;
    writeln!(out, "node {} dies", first + 1)?;
    let died = cluster.now;
    while cluster.leader().is_none() {
        cluster.run(cluster.now.after(Duration::from_millis(1)));
    }
    let second = cluster.leader().ok_or("someone leads")?;
    writeln!(out, "node {} leads, {:?} later", second + 1, cluster.now.since(died))?;

    let commands = vec!["key-03 = content 03".into()];
    cluster.input(second, Input::Propose { ticket: Ticket(2), commands });
    cluster.run(cluster.now.after(Duration::from_millis(100)));
    for (at, node) in cluster.nodes.iter().enumerate() {
        let state = if node.alive { "has" } else { "is dead and had" };
        writeln!(out, "node {} {state} {:?}", at + 1, node.applied)?;
    }
    Ok(())
}
