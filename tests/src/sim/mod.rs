//! The whole cluster in one thread: many replicas on simulated network, disks and clocks, from one seed.
//!
//! The replicas are the server's own ([`kv_server::replica`]); network, disks, clocks, threads and clients
//! are simulated. A run has two phases. First faults: crashes that lose what was not synced, failed syncs,
//! pauses, partitions, lost, repeated and late messages, slow disks and odd clocks, while clients write and
//! read. Then quiet: everything is well again, and the cluster has to come back: one leader, fresh writes
//! and reads, all members equal, nothing acknowledged lost.
//!
//! After every step the invariants of the protocol are checked over all nodes ([`checkers`]); every answer
//! is compared with a plain model of the store ([`crate::model`]); at the end the clients' history is checked
//! for linearizability ([`crate::linearizability`]) and their claims of effect against the log.
//!
//! ```text
//! plan ── drawn from the seed ──► world ── events ──► driver    nodes: kv_server::replica on MemVfs
//!                                   │                 clients   requests, retries, claims
//!                                   │                 faults    what goes wrong
//!                                   └── every step ─► checkers, model, trace
//! ```
//!
//! Same seed, same program, same run: the trace's hash is equal (tested). [`Sabotage`] breaks the driver or
//! the clients on purpose; tests show that each is caught.

pub mod checkers;
mod clients;
mod driver;
mod faults;
pub mod network;
pub mod node;
pub mod plan;
pub mod random;
pub mod trace;
pub mod world;

use std::fmt;

use raft_core::RoleKind;
use raft_rpc::{Condition, Consistency, GetRequest, Request, WriteOperation, WriteRequest};

use self::plan::Plan;
use self::random::Random;
use self::world::{Counts, World};
use crate::linearizability;

/// After everything is well again, this long until something has to hold, in microseconds: many
/// election timeouts.
const PATIENCE: u64 = 15_000_000;

/// This long nothing may change in a quiet cluster, in microseconds.
const QUIET: u64 = 3_000_000;

/// What is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sabotage {
    /// Nothing.
    #[default]
    None,
    /// The log writer reports a batch as durable and syncs it only with the next one.
    AcknowledgeWithoutSync,
    /// Linearizable reads are served at once, from whatever the node has applied.
    UnconfirmedReads,
    /// Clients give a repeated write a new number.
    RetryWithNewTag,
    /// Clients take a time-out for a promise that nothing happened.
    DenyUnknown,
    /// One node's applier leaves commands out.
    SkipOneApply,
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What is broken on purpose.
    pub sabotage: Sabotage,
    /// Whether invariants are checked at every step; without, only clients' histories are.
    pub invariants: bool,
    /// Whether the last lines of the trace are kept.
    pub lines: bool,
    /// Whether every line of the trace is printed.
    pub print: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { sabotage: Sabotage::None, invariants: true, lines: false, print: false }
    }
}

/// What a run was like.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The hash of its trace.
    pub trace_hash: u64,
    /// Events.
    pub events: u64,
    /// Simulated time in microseconds.
    pub simulated: u64,
    /// Messages between nodes, and how many were lost.
    pub messages: (u64, u64),
    /// Entries committed.
    pub committed: u64,
    /// Terms that had a leader.
    pub terms_led: u64,
    /// How often a node cut entries off its log for a leader's.
    pub truncations: u64,
    /// What happened.
    pub counts: Counts,
    /// What the checker of histories visited.
    pub checked: linearizability::Checked,
}

/// A run in which something did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What did not hold.
    pub what: String,
    /// The last lines of its trace.
    pub tail: Vec<String>,
    /// What kind of run it was.
    pub plan: String,
    /// The hash of its trace.
    pub trace_hash: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, what, tail, plan, .. } = self;
        writeln!(f, "seed {seed} fails: {what}")?;
        writeln!(f, "the plan: {plan}")?;
        writeln!(f, "the last {} lines of its trace:", tail.len())?;
        for line in tail {
            writeln!(f, "{line}")?;
        }
        write!(
            f,
            "to see it again: cargo run --release -p tests --bin simulate -- --seed {seed} --trace"
        )
    }
}

impl std::error::Error for Failure {}

/// Runs a seed. A failing one is run a second time, for the lines of its trace.
///
/// # Errors
/// What did not hold.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    match run_once(seed, options) {
        Err(_) if !options.lines => run_once(seed, &Options { lines: true, ..*options }),
        result => result,
    }
}

fn run_once(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    let mut random = Random::new(seed);
    let plan = Plan::draw(&mut random);
    let described = format!("{plan:?}");
    let fault_time = plan.fault_time;
    let mut world = World::new(plan, random, options);
    world.start_all();
    world.add_clients();
    world.start_faults();
    world.run_until(fault_time, World::clients_are_done);
    settle(&mut world);
    finish(world).map_err(|failure| {
        let Unfinished { what, tail, trace_hash } = *failure;
        Box::new(Failure { seed, what, tail, plan: described, trace_hash })
    })
}

/// The quiet phase: everything is well again, and the cluster has to come back (L1 to L7).
pub fn settle(world: &mut World) {
    world.heal();
    world.stop_clients();
    let leads = |world: &World| {
        let mut leaders = 0;
        for node in 0..world.node_count() {
            let Some(status) = world.status(node) else { return false };
            leaders += usize::from(status.role == RoleKind::Leader);
        }
        leaders == 1
    };
    if !world.run_until(PATIENCE, leads) {
        world.fail("L1: everything is well again, but there is no leader".to_owned());
    }
    if !world.run_until(PATIENCE, World::clients_are_idle) {
        world.fail("L2: everything is well again, but clients get no answer".to_owned());
    }
    for node in 0..world.node_count() {
        // A sync may have failed just before everything was well again: the node notices now, and starts
        // once more.
        let deadline = world.now() + PATIENCE;
        let mut written = None;
        for attempt in 0.. {
            if written.is_some() || world.now() >= deadline || world.failure.is_some() {
                break;
            }
            let request = put("fresh", &format!("fresh-{node}-{attempt}"));
            written = world.execute(node, &request, PATIENCE);
        }
        if written.is_none() {
            world.fail(format!("L2: everything is well again, but node {node} takes no write"));
            return;
        }
        let read = world.execute((node + 1) % world.node_count(), &get("fresh"), PATIENCE);
        // What it finds is for the checkers to judge.
        if read.is_none() {
            world.fail(format!("L2: no read is answered after the write at node {node}"));
            return;
        }
    }
    if !world.run_until(PATIENCE, members_agree) {
        world.fail("L3: everything is well again, but the members stay different".to_owned());
    }
    let before = elections(world);
    world.run_for(QUIET);
    if elections(world) != before {
        world.fail(format!(
            "L7: elections in a quiet cluster: {before:?} at first, then {:?}",
            elections(world)
        ));
    }
    if !members_agree(world) {
        world.fail("L3: the members of a quiet cluster became different".to_owned());
    }
    world.check_nobody_waits();
    world.check_contents();
    world.check_claims();
}

/// All members are up, have applied everything that is committed, and have the same state.
fn members_agree(world: &World) -> bool {
    let statuses: Vec<_> = (0..world.node_count()).filter_map(|node| world.status(node)).collect();
    let Some(first) = statuses.first() else { return false };
    statuses.len() == world.node_count()
        && statuses.iter().all(|status| {
            status.last_index == first.last_index
                && status.durable_index == first.last_index
                && status.commit_index == first.last_index
                && status.applied.index == first.last_index
                && status.applied.state_hash == first.applied.state_hash
                && status.term == first.term
                && status.leader == first.leader
        })
}

fn elections(world: &World) -> Vec<u64> {
    (0..world.node_count())
        .map(|node| world.status(node).map_or(0, |status| status.elections))
        .collect()
}

/// What is left of a run that failed.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// What did not hold.
    pub what: String,
    /// The last lines of its trace.
    pub tail: Vec<String>,
    /// The hash of its trace.
    pub trace_hash: u64,
}

/// Checks the history of a run and sums it up.
///
/// # Errors
/// What did not hold, at any time.
pub fn finish(world: World) -> Result<Report, Box<Unfinished>> {
    let unfinished = |what| {
        let (tail, trace_hash) = (world.trace.tail(), world.trace.hash());
        Box::new(Unfinished { what, tail, trace_hash })
    };
    if let Some(what) = &world.failure {
        return Err(unfinished(what.clone()));
    }
    let checked = linearizability::check(&world.history)
        .map_err(|violation| unfinished(format!("not linearizable: {violation}")))?;
    Ok(Report {
        trace_hash: world.trace.hash(),
        events: world.trace.events(),
        simulated: world.now(),
        messages: world.messages(),
        committed: world.checkers.committed(),
        terms_led: world.checkers.terms_led(),
        truncations: world.checkers.truncations,
        counts: world.counts,
        checked,
    })
}

/// A plain put without a session.
#[must_use]
pub fn put(key: &str, value: &str) -> Request {
    let operation = WriteOperation::Put {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        condition: Condition::Always,
        return_previous: false,
    };
    Request::Write(WriteRequest { tag: None, operation })
}

/// A linearizable read of the newest value.
#[must_use]
pub fn get(key: &str) -> Request {
    Request::Get(GetRequest {
        key: key.to_owned().into(),
        revision: None,
        consistency: Consistency::Linearizable,
    })
}
