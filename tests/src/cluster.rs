//! A cluster of real processes on loopback, each with a directory of its own, for the integration tests.
//!
//! Nothing here sleeps for a guess of how long something takes: every wait asks the nodes for a
//! condition, with a deadline far beyond what a healthy cluster needs. Clusters of one test program
//! run one after the other, so that they do not take each other's processor time away and elections
//! stay what they are. When a test fails, the end of each node's log is printed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use kv_client::Client;
use kv_server::cli::{
    probe::{Probe, wait_until},
    scenario::Nodes,
};
use raft_core::NodeId;
use raft_rpc::{NodeStatus, Role};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::process::{self, Process, Programs};

/// Any wait for a condition; reached only when something is broken.
pub const WAIT_LIMIT: Duration = Duration::from_secs(30);
/// Lines of each log that a failed test shows.
const LOG_TAIL_LINES: usize = 40;
/// What a peer port is above its client port, as in `kv-server dev`.
const PEER_PORT_OFFSET: u16 = 1000;

/// The most that a node of [`Cluster::started_calm`] waits before it asks for an election.
pub const CALM_ELECTION_MAX: Duration = Duration::from_millis(1_500);

static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);

/// One node: where it is, and its process if it runs.
#[derive(Debug)]
struct Node {
    client_port: u16,
    directory: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    probe: Probe,
}

/// Several nodes.
#[derive(Debug)]
pub struct Cluster {
    nodes: BTreeMap<NodeId, Node>,
    programs: Programs,
    extra_arguments: Vec<String>,
    directory: TempDir,
    _turn: SemaphorePermit<'static>,
}

/// A node that leads, and its term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lead {
    /// Which.
    pub node: NodeId,
    /// In which term.
    pub term: u64,
}

/// The node numbered `id`.
///
/// # Panics
/// For 0.
#[must_use]
pub fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

impl Cluster {
    /// A cluster of nodes 1 to `count`, none of them started, in a new directory on free ports.
    pub async fn new(programs: Programs, count: u16) -> Self {
        let turn = ONE_AT_A_TIME.acquire().await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let base = free_ports(count);
        let nodes = (0..count)
            .map(|at| {
                let id = node(u64::from(at) + 1);
                let client_port = base + at;
                let node = Node {
                    client_port,
                    directory: directory.path().join(format!("node-{id:02}", id = id.get())),
                    log: directory.path().join(format!("log-{id:02}", id = id.get())),
                    process: None,
                    probe: Probe::new(format!("127.0.0.1:{client_port}")),
                };
                (id, node)
            })
            .collect();
        Self { nodes, programs, extra_arguments: Vec::new(), directory, _turn: turn }
    }

    /// A cluster whose nodes have started and follow one leader.
    pub async fn started(programs: Programs, count: u16) -> Self {
        let mut cluster = Self::new(programs, count).await;
        cluster.start_all();
        cluster.wait_for_agreement().await;
        cluster
    }

    /// A cluster that has started and waits longer before it elects, for tests that say that nobody was
    /// disturbed: on a busy machine the default times would be too short for that.
    pub async fn started_calm(programs: Programs, count: u16) -> Self {
        let mut cluster = Self::new(programs, count).await;
        cluster.set_extra_arguments(&["--raft-election", "1s", "--raft-election-jitter", "500ms"]);
        cluster.start_all();
        cluster.wait_for_agreement().await;
        cluster
    }

    /// Arguments that every node started from now on gets besides its own.
    pub fn set_extra_arguments(&mut self, arguments: &[&str]) {
        self.extra_arguments = arguments.iter().map(ToString::to_string).collect();
    }

    /// All ids.
    #[must_use]
    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// All ids but one.
    #[must_use]
    pub fn others(&self, than: NodeId) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|id| *id != than).collect()
    }

    /// Where clients reach a node.
    #[must_use]
    pub fn endpoint(&self, id: NodeId) -> String {
        format!("127.0.0.1:{}", self.nodes[&id].client_port)
    }

    /// Where peers reach a node.
    #[must_use]
    pub fn peer_address(&self, id: NodeId) -> String {
        format!("127.0.0.1:{}", self.nodes[&id].client_port + PEER_PORT_OFFSET)
    }

    /// A node's data directory.
    #[must_use]
    pub fn directory(&self, id: NodeId) -> &Path {
        &self.nodes[&id].directory
    }

    /// The directory of all of it, for files of the test's own.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// The programs under test.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The list of members as the flag `--cluster` takes it.
    #[must_use]
    pub fn member_list(&self) -> String {
        let mut list = String::new();
        for id in self.nodes.keys() {
            let comma = if list.is_empty() { "" } else { "," };
            write!(list, "{comma}{id}={}/{}", self.peer_address(*id), self.endpoint(*id)).unwrap();
        }
        list
    }

    /// The arguments that run a node.
    #[must_use]
    pub fn arguments(&self, id: NodeId) -> Vec<String> {
        let node = &self.nodes[&id];
        let mut arguments: Vec<String> = [
            "run",
            "--exit-on-stdin-close",
            "--id",
            &id.to_string(),
            "--data-dir",
            node.directory.to_str().unwrap(),
            "--listen-client",
            &self.endpoint(id),
            "--listen-peer",
            &self.peer_address(id),
            "--cluster",
            &self.member_list(),
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(self.extra_arguments.iter().cloned());
        arguments
    }

    /// Starts a node, without waiting for it.
    ///
    /// # Panics
    /// If it runs already.
    pub fn start(&mut self, id: NodeId) {
        let arguments = self.arguments(id);
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(node.process.is_none(), "node {id} runs already");
        let process = Process::start(&self.programs.node, &arguments, &node.log, Stdio::null());
        node.process = Some(process);
    }

    /// Starts every node that does not run.
    pub fn start_all(&mut self) {
        for id in self.ids() {
            if self.nodes[&id].process.is_none() {
                self.start(id);
            }
        }
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self, id: NodeId) {
        self.take_process(id).kill();
    }

    /// SIGSTOP; returns when the process stands still.
    pub fn freeze(&self, id: NodeId) {
        self.process(id).freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self, id: NodeId) {
        self.process(id).thaw();
    }

    /// SIGTERM; returns the exit code.
    pub fn stop(&mut self, id: NodeId) -> Option<i32> {
        let process = self.take_process(id);
        process.terminate();
        process.wait().code()
    }

    /// Waits until a node that was started ends by itself, and gives back its exit code.
    pub fn wait_for_exit(&mut self, id: NodeId) -> Option<i32> {
        self.take_process(id).wait().code()
    }

    /// What a node has logged, over all its starts.
    #[must_use]
    pub fn log(&self, id: NodeId) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.nodes[&id].log).unwrap_or_default())
            .into_owned()
    }

    fn process(&self, id: NodeId) -> &Process {
        self.nodes[&id].process.as_ref().unwrap_or_else(|| panic!("node {id} does not run"))
    }

    fn take_process(&mut self, id: NodeId) -> Process {
        let process = self.nodes.get_mut(&id).unwrap().process.take();
        process.unwrap_or_else(|| panic!("node {id} does not run"))
    }

    /// What a node says of itself.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn status(&mut self, id: NodeId) -> Result<NodeStatus, String> {
        self.nodes.get_mut(&id).unwrap().probe.status().await
    }

    /// What a node that runs says of itself.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn status_of(&mut self, id: NodeId) -> NodeStatus {
        self.status(id).await.unwrap()
    }

    /// Waits until a node's status satisfies `condition`.
    ///
    /// # Panics
    /// If it does not within the limit.
    pub async fn wait_for_status(
        &mut self,
        id: NodeId,
        what: &str,
        condition: impl Fn(&NodeStatus) -> bool,
    ) -> NodeStatus {
        let found = wait_until(WAIT_LIMIT, async || {
            let status = self.status(id).await?;
            if condition(&status) { Ok(status) } else { Err(format!("{status:?}")) }
        });
        match found.await {
            Ok(status) => status,
            Err(last) => panic!("node {id}: {what}: {last}"),
        }
    }

    /// Waits until one of the nodes that run leads a term above `term`.
    ///
    /// # Panics
    /// If nobody does within the limit.
    pub async fn wait_for_leader_above(&mut self, term: u64, among: &[NodeId]) -> Lead {
        let found = wait_until(WAIT_LIMIT, async || {
            let mut seen = String::new();
            for id in among {
                match self.status(*id).await {
                    Ok(status) if status.role == Role::Leader && status.term > term => {
                        return Ok(Lead { node: *id, term: status.term });
                    }
                    Ok(status) => {
                        write!(seen, "{id}: {:?} {}; ", status.role, status.term).unwrap()
                    }
                    Err(error) => write!(seen, "{id}: {error}; ").unwrap(),
                }
            }
            Err(seen)
        });
        match found.await {
            Ok(lead) => lead,
            Err(last) => panic!("no leader above term {term} among {among:?}: {last}"),
        }
    }

    /// Waits until all nodes that run follow the same leader, and gives it back.
    ///
    /// # Panics
    /// If they do not within the limit.
    pub async fn wait_for_agreement(&mut self) -> Lead {
        let running: Vec<NodeId> = self.running();
        let found = wait_until(WAIT_LIMIT, async || {
            let mut statuses = Vec::new();
            for id in &running {
                statuses.push(self.status(*id).await?);
            }
            let leader = statuses.iter().find(|status| status.role == Role::Leader);
            let lead = leader.map(|status| (status.id, status.term));
            match lead {
                Some((id, term))
                    if statuses.iter().all(|s| s.term == term && s.leader == Some(id)) =>
                {
                    Ok(Lead { node: node(id), term })
                }
                _ => Err(statuses
                    .iter()
                    .map(|s| format!("{}: {:?} {} follows {:?}; ", s.id, s.role, s.term, s.leader))
                    .collect()),
            }
        });
        match found.await {
            Ok(lead) => lead,
            Err(last) => panic!("no agreement among {running:?}: {last}"),
        }
    }

    /// Waits until all nodes that run have applied the same entries to the same effect.
    ///
    /// # Panics
    /// If they do not within the limit.
    pub async fn wait_for_equal_states(&mut self) -> NodeStatus {
        let running: Vec<NodeId> = self.running();
        let found = wait_until(WAIT_LIMIT, async || {
            let mut statuses = Vec::new();
            for id in &running {
                statuses.push(self.status(*id).await?);
            }
            let state = |s: &NodeStatus| (s.applied_index, s.state_hash.clone(), s.revision);
            let first = state(&statuses[0]);
            if statuses.iter().all(|status| state(status) == first) {
                Ok(statuses.swap_remove(0))
            } else {
                Err(format!("{:?}", statuses.iter().map(state).collect::<Vec<_>>()))
            }
        });
        match found.await {
            Ok(status) => status,
            Err(last) => panic!("the states of {running:?} differ: {last}"),
        }
    }

    fn running(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.process.is_some()).map(|(id, _)| *id).collect()
    }

    /// A client of one node only.
    ///
    /// # Panics
    /// If the node does not answer.
    pub async fn client_of(&self, id: NodeId) -> Client {
        Client::connect([self.endpoint(id)]).await.unwrap()
    }

    /// A client of all nodes.
    ///
    /// # Panics
    /// If none answers.
    pub async fn client(&self) -> Client {
        Client::connect(self.ids().into_iter().map(|id| self.endpoint(id))).await.unwrap()
    }

    /// The endpoints of `ids` as `kvctl` takes them.
    #[must_use]
    pub fn endpoints(&self, ids: &[NodeId]) -> String {
        let endpoints: Vec<String> = ids.iter().map(|id| self.endpoint(*id)).collect();
        endpoints.join(",")
    }

    /// Runs `kvctl` against the nodes `ids` to its end. Never on a test's only thread while something
    /// else of the test has to go on.
    #[must_use]
    pub fn kvctl(&self, ids: &[NodeId], arguments: &[&str]) -> Output {
        let endpoints = self.endpoints(ids);
        let mut all = vec!["--endpoints", &endpoints];
        all.extend(arguments);
        process::run(&self.programs.kvctl, &all)
    }
}

impl Nodes for Cluster {
    fn endpoints(&self) -> BTreeMap<NodeId, String> {
        self.nodes.keys().map(|id| (*id, self.endpoint(*id))).collect()
    }

    fn start(&mut self, id: NodeId) -> Result<(), String> {
        Self::start(self, id);
        Ok(())
    }

    async fn kill(&mut self, id: NodeId) -> Result<(), String> {
        Self::kill(self, id);
        Ok(())
    }

    async fn freeze(&mut self, id: NodeId) -> Result<(), String> {
        Self::freeze(self, id);
        Ok(())
    }

    async fn thaw(&mut self, id: NodeId) -> Result<(), String> {
        Self::thaw(self, id);
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for id in self.nodes.keys() {
            let log = self.log(*id);
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the end of the log of node {id}");
            for line in lines.iter().skip(lines.len().saturating_sub(LOG_TAIL_LINES)) {
                eprintln!("{line}");
            }
        }
    }
}

/// A port from which on `count` ports are free, and as many a thousand higher.
///
/// Taken from below the range that the system gives to outgoing connections, so that a port stays free
/// while its node is down. Different test programs begin at different places.
///
/// # Panics
/// If there are none.
#[must_use]
pub fn free_ports(count: u16) -> u16 {
    const FIRST: u16 = 10_000;
    const STEP: u16 = 16;
    /// Places whose client ports end before the first one's peer ports begin; after those, the next ones.
    const TOGETHER: u16 = PEER_PORT_OFFSET / STEP;
    const PLACES: u16 = 9 * TOGETHER;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    assert!(count <= STEP, "{count} ports in a row");
    let begin = u16::try_from(std::process::id() % u32::from(PLACES)).unwrap();
    for _ in 0..PLACES {
        let place = (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % PLACES;
        let base = FIRST + place / TOGETHER * 2 * PEER_PORT_OFFSET + place % TOGETHER * STEP;
        // Asked by dialling, not by binding: a process that another test starts just then would inherit the
        // bound socket for a moment, and keep the port from whom it was meant for.
        let is_free = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err();
        let free = (base..base + count)
            .all(|port| [port, port + PEER_PORT_OFFSET].into_iter().all(is_free));
        if free {
            return base;
        }
    }
    panic!("no {count} free ports in a row");
}
