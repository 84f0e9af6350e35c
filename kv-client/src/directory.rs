//! The endpoints, who of them leads, and where the next attempt of a call goes.
//!
//! Called by `retry` to choose a node and to tell what became of an attempt, and by the
//! connections' tasks with every status they see.
//!
//! Invariants
//! 1. Only addresses that the caller gave are dialled, and members of the cluster if the caller
//!    asked for their discovery. A leader elsewhere is reached through an endpoint, which hands
//!    requests on.
//! 2. With one endpoint every request goes there.
//! 3. What is remembered of the leader is a guess: it saves a hop when right and costs one when
//!    wrong. It is checked again while in use, with one status question a second at most.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use raft_rpc::{ClusterId, Connector, NodeStatus};
use tokio::time::Instant;

use crate::connection::Link;
use crate::job::{Lane, StatusJob};

/// How long a known leader is trusted before it is checked again.
const LEADER_CHECK: Duration = Duration::from_secs(1);
/// How often a node is asked for the leader while none is known.
const LEADER_SEARCH: Duration = Duration::from_millis(50);
/// The number that stands for "no endpoint".
const NONE: usize = usize::MAX;

/// A node's client port and the connections to it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: String,
    links: Vec<Link>,
    next_link: AtomicUsize,
}

impl Endpoint {
    /// The connection for the next request: in turns, if there are several.
    pub(crate) fn link(&self) -> &Link {
        match self.links.as_slice() {
            [only] => only,
            several => {
                let turn = self.next_link.fetch_add(1, Ordering::Relaxed);
                &several[turn % several.len()]
            }
        }
    }

    pub(crate) fn node(&self) -> Option<u64> {
        self.links.iter().find_map(Link::node)
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.links.iter().any(Link::is_connected)
    }

    fn is_broken(&self) -> bool {
        self.links.iter().all(Link::is_broken)
    }

    /// The node for messages: by id once it is known.
    pub(crate) fn name(&self) -> String {
        match self.node() {
            Some(node) => format!("node {node} ({})", self.address),
            None => self.address.clone(),
        }
    }
}

/// Where requests can go.
#[derive(Debug)]
pub(crate) struct Directory {
    this: Weak<Self>,
    connector: Arc<dyn Connector>,
    cluster: Arc<OnceLock<ClusterId>>,
    connections_per_endpoint: usize,
    discover: bool,
    spread_reads: bool,
    /// Grows only, so that a position stays valid.
    endpoints: RwLock<Vec<Arc<Endpoint>>>,
    /// Position of the endpoint that is believed to lead, or [`NONE`].
    leader: AtomicUsize,
    /// Position of the endpoint that is asked while no leader is known.
    preferred: AtomicUsize,
    /// Turn of the next read, if reads are spread.
    turn: AtomicUsize,
    /// Voters of the cluster, 0 until a status told.
    voters: AtomicUsize,
    started: Instant,
    /// When the leader was last asked for, in milliseconds after `started`, plus one.
    asked_ms: AtomicU64,
    /// Held while endpoints are added, so that none is added twice.
    adding: Mutex<()>,
}

/// What a caller configures of a [`Directory`].
pub(crate) struct DirectoryOptions {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) connections_per_endpoint: usize,
    pub(crate) discover: bool,
    pub(crate) spread_reads: bool,
}

impl Directory {
    pub(crate) fn new(addresses: Vec<String>, options: DirectoryOptions) -> Arc<Self> {
        let directory = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            connector: options.connector,
            cluster: Arc::new(OnceLock::new()),
            connections_per_endpoint: options.connections_per_endpoint,
            discover: options.discover,
            spread_reads: options.spread_reads,
            endpoints: RwLock::new(Vec::new()),
            leader: AtomicUsize::new(NONE),
            preferred: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            voters: AtomicUsize::new(0),
            started: Instant::now(),
            asked_ms: AtomicU64::new(0),
            adding: Mutex::new(()),
        });
        for address in addresses {
            directory.add(address);
        }
        directory
    }

    fn add(&self, address: String) {
        let guard = self.adding.lock();
        if self.endpoints.read().iter().all(|endpoint| endpoint.address != address) {
            let links = (0..self.connections_per_endpoint)
                .map(|_| {
                    Link::spawn(
                        address.clone(),
                        Arc::clone(&self.connector),
                        Arc::clone(&self.cluster),
                        self.this.clone(),
                    )
                })
                .collect();
            let endpoint = Endpoint { address, links, next_link: AtomicUsize::new(0) };
            self.endpoints.write().push(Arc::new(endpoint));
        }
        drop(guard);
    }

    pub(crate) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.read().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.endpoints.read().len()
    }

    /// The endpoint for an attempt, and its position. `avoid` is one that has just failed.
    pub(crate) fn route(&self, lane: Lane, avoid: Option<usize>) -> (usize, Arc<Endpoint>) {
        let endpoints = self.endpoints.read();
        let count = endpoints.len();
        if count == 1 {
            return (0, Arc::clone(&endpoints[0]));
        }
        let usable = |position: usize| avoid != Some(position) && !endpoints[position].is_broken();
        let leader = self.leader.load(Ordering::Acquire);
        let first = match lane {
            Lane::Read | Lane::Stale if self.spread_reads => {
                self.turn.fetch_add(1, Ordering::Relaxed) % count
            }
            Lane::Write | Lane::Read if leader != NONE => leader,
            Lane::Write | Lane::Read | Lane::Stale => {
                self.preferred.load(Ordering::Relaxed) % count
            }
        };
        let chosen = (0..count)
            .map(|step| (first + step) % count)
            .find(|position| usable(*position))
            // All have failed lately: go on in turns, the next dial of one may succeed.
            .unwrap_or(match avoid {
                Some(avoid) => (avoid + 1) % count,
                None => first,
            });
        (chosen, Arc::clone(&endpoints[chosen]))
    }

    /// Asks `endpoint` who leads, if that has not been asked lately. Costs two loads otherwise.
    pub(crate) fn check_leader(&self, endpoint: &Endpoint) {
        let pause = match self.leader.load(Ordering::Relaxed) {
            NONE => LEADER_SEARCH,
            _known => LEADER_CHECK,
        };
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX) + 1;
        let asked_ms = self.asked_ms.load(Ordering::Relaxed);
        let due = asked_ms == 0
            || now_ms.saturating_sub(asked_ms) >= u64::try_from(pause.as_millis()).unwrap_or(0);
        if due
            && self
                .asked_ms
                .compare_exchange(asked_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            endpoint.link().ask_status(StatusJob { reply: None });
        }
    }

    /// The endpoint at `position` failed: the next attempts of all calls begin elsewhere.
    pub(crate) fn failed(&self, position: usize) {
        // Somebody else may have noticed first and found another; then nothing is to be done.
        self.no_leader(position);
        if self.preferred.load(Ordering::Relaxed) == position {
            self.preferred.store((position + 1) % self.len(), Ordering::Relaxed);
        }
    }

    /// The node at `position` does not lead, and perhaps another does. Returns whether the leader
    /// is now believed to be a different endpoint.
    pub(crate) fn redirected(
        &self,
        position: usize,
        node: Option<u64>,
        address: Option<&str>,
    ) -> bool {
        let found = node.and_then(|node| self.find(node, address));
        match found {
            Some(found) if found != position => {
                self.leader.store(found, Ordering::Release);
                true
            }
            Some(_) | None => {
                self.no_leader(position);
                false
            }
        }
    }

    /// The node at `position` does not lead and knows of no leader.
    pub(crate) fn no_leader(&self, position: usize) {
        if self.leader.load(Ordering::Acquire) == position {
            self.leader.store(NONE, Ordering::Release);
        }
    }

    /// Takes over what a node's status tells: the leader, the members.
    pub(crate) fn learn(&self, status: &NodeStatus) {
        let voters = status.members.iter().filter(|member| member.voter).count();
        if voters > 0 {
            self.voters.store(voters, Ordering::Relaxed);
        }
        if self.discover {
            for member in &status.members {
                self.add(member.client_addr.clone());
            }
        }
        let Some(leader) = status.leader else { return };
        let address = status
            .members
            .iter()
            .find(|member| member.id == leader)
            .map(|member| member.client_addr.as_str());
        match self.find(leader, address) {
            Some(position) => self.leader.store(position, Ordering::Release),
            None => {
                // It may be one of the endpoints under another name: those not yet met are asked.
                for endpoint in self.endpoints() {
                    if endpoint.node().is_none() && !endpoint.is_broken() {
                        endpoint.link().ask_status(StatusJob { reply: None });
                    }
                }
            }
        }
    }

    fn find(&self, node: u64, address: Option<&str>) -> Option<usize> {
        let endpoints = self.endpoints.read();
        endpoints.iter().position(|endpoint| endpoint.node() == Some(node)).or_else(|| {
            let address = address?;
            endpoints.iter().position(|endpoint| {
                endpoint.address == address && endpoint.node().is_none_or(|known| known == node)
            })
        })
    }

    /// The endpoints for messages: `127.0.0.1:3331 (+3)`.
    pub(crate) fn summary(&self) -> String {
        let endpoints = self.endpoints.read();
        match endpoints.as_slice() {
            [] => "no endpoints".to_owned(),
            [only] => only.address.clone(),
            [first, rest @ ..] => format!("{} (+{})", first.address, rest.len()),
        }
    }

    /// How many endpoints are connected, how many there are, and how many voters the cluster has
    /// if that is known.
    pub(crate) fn reach(&self) -> Reach {
        let endpoints = self.endpoints.read();
        let voters = match self.voters.load(Ordering::Relaxed) {
            0 => None,
            voters => Some(voters),
        };
        Reach {
            connected: endpoints.iter().filter(|endpoint| endpoint.is_connected()).count(),
            endpoints: endpoints.len(),
            voters,
        }
    }
}

/// How much of the cluster this client reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reach {
    pub(crate) connected: usize,
    pub(crate) endpoints: usize,
    pub(crate) voters: Option<usize>,
}
