//! The whole cluster in one thread: many replicas on simulated network, disks and clocks, from one seed.
//!
//! The replicas are the server's own ([`kv_server::replica`]), state machine and engine with them; network,
//! disks, clocks, threads and clients are simulated. A run has two phases. First faults, while clients
//! write and read:
//! * each link has its own delay and spread, loses, repeats, delays and reorders, is cut in one direction
//!   or both, or clogged;
//! * each disk is slow, stalls, fails a sync or a write, loses or tears any part of what was not synced at
//!   a crash; bits flip, a write goes to the wrong place, all of it is lost;
//! * each node crashes, is stopped, has a clock that runs oddly or jumps.
//!
//! Then quiet: everything is well again, and the cluster has to come back: one leader, fresh writes
//! and reads, all members equal, nothing acknowledged lost. Damage has a budget (`faults.rs`): a minority
//! of the nodes may lose what it had synced, since the protocol promises to survive no more.
//!
//! After every step the invariants of the protocol are checked over all nodes ([`checkers`]); every answer
//! is compared with a plain model of the store ([`crate::model`]); at the end the clients' history is checked
//! for linearizability ([`crate::linearizability`]) and their claims of effect against the log.
//!
//! ```text
//! plan ── drawn from the seed ──► world ── events ──► driver    nodes: kv_server::replica on MemVfs
//!                                   │                 clients   requests, retries, claims
//!                                   │                 faults    what goes wrong
//!                                   └── every step ─► checkers, model, trace, coverage
//! ```
//!
//! Same seed, same program, same run: the trace's hash is equal (tested). A seed that fails is made small
//! ([`reduce`]) by taking back what it decides ([`decisions`]), and the smaller run replays just as well.
//! [`Sabotage`] breaks the driver or the clients on purpose, `mutation` puts known bugs into the core;
//! each has to be caught. What happened at all is counted ([`coverage`]).

pub mod checkers;
mod clients;
pub mod coverage;
pub mod decisions;
mod disk;
mod driver;
mod faults;
#[cfg(feature = "mutants")]
pub mod mutation;
pub mod network;
pub mod node;
pub mod plan;
pub mod random;
pub mod reduce;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod world;

use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use raft_core::RoleKind;
use raft_rpc::{Condition, Consistency, GetRequest, Request, WriteOperation, WriteRequest};

use self::coverage::Counts;
use self::decisions::Withheld;
use self::plan::Plan;
use self::random::Random;
use self::world::World;
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
#[derive(Clone, Debug)]
pub struct Options {
    /// Which of the seed's decisions are taken back.
    pub withheld: Withheld,
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
        let (sabotage, withheld) = (Sabotage::None, Withheld::default());
        Self { withheld, sabotage, invariants: true, lines: false, print: false }
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
    /// Decisions of the seed that were taken back.
    pub withheld: Withheld,
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
        let Self { seed, withheld, what, tail, plan, .. } = self;
        writeln!(f, "seed {seed} fails: {what}")?;
        writeln!(f, "the plan: {plan}")?;
        writeln!(f, "the last {} lines of its trace:", tail.len())?;
        for line in tail {
            writeln!(f, "{line}")?;
        }
        let command = "cargo run --release -p tests --bin simulate -- --trace";
        write!(f, "to see it again: {command} --seed {seed}")?;
        if withheld.is_empty() { Ok(()) } else { write!(f, " --without {withheld}") }
    }
}

impl std::error::Error for Failure {}

/// Runs a seed. A failing one is run a second time, for the lines of its trace.
///
/// # Errors
/// What did not hold.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    match run_once(seed, options) {
        Err(_) if !options.lines => run_once(seed, &Options { lines: true, ..options.clone() }),
        result => result,
    }
}

fn run_once(seed: u64, options: &Options) -> Result<Report, Box<Failure>> {
    let mut random = Random::new(seed);
    let plan = Plan::draw(&mut random, &options.withheld);
    let described = format!("{plan:?}");
    let fault_time = plan.fault_time;
    let mut world = World::new(plan, random, options);
    // An assertion of the code that is simulated is a failure like any other.
    let driven = panic::catch_unwind(AssertUnwindSafe(|| {
        world.start_all();
        world.add_clients();
        world.start_faults();
        // What clients were kept from while there were faults, they do after the last one.
        world.run_until(2 * fault_time, World::clients_are_done);
        settle(&mut world);
    }));
    if let Err(payload) = driven {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
        world.fail(format!("panic: {text}"));
    }
    finish(world).map_err(|failure| {
        let Unfinished { what, tail, trace_hash } = *failure;
        let withheld = options.withheld.clone();
        Box::new(Failure { seed, withheld, what, tail, plan: described, trace_hash })
    })
}

/// The quiet phase: everything is well again, and the cluster has to come back (L1 to L7).
pub fn settle(world: &mut World) {
    world.heal();
    world.stop_clients();
    converge(world);
}

/// What has to hold once everything is well.
fn converge(world: &mut World) {
    let leads = |world: &World| {
        let mut leaders = 0;
        for node in world.core() {
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
    let core = world.core();
    for (place, &node) in core.iter().enumerate() {
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
        let read = world.execute(core[(place + 1) % core.len()], &get("fresh"), PATIENCE);
        // What it finds is for the checkers to judge.
        if read.is_none() {
            world.fail(format!("L2: no read is answered after the write at node {node}"));
            return;
        }
    }
    check_equal(world);
    check_steady(world);
    world.check_nobody_waits();
    world.check_contents();
    world.check_claims();
}

/// L3, L4: all members become equal.
fn check_equal(world: &mut World) {
    if !world.run_until(PATIENCE, members_agree) {
        world.fail("L3: everything is well again, but the members stay different".to_owned());
    }
}

/// L7: nothing changes by itself.
fn check_steady(world: &mut World) {
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
}

/// All members are up, have applied everything that is committed, and have the same state.
fn members_agree(world: &World) -> bool {
    let core = world.core();
    let statuses: Vec<_> = core.iter().filter_map(|&node| world.status(node)).collect();
    let Some(first) = statuses.first() else { return false };
    statuses.len() == core.len()
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
        counts: world.counts(),
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
