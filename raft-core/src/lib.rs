//! The Raft consensus state machine: pure, deterministic, without any I/O.
//!
//! [`Raft`] is one node. It learns through [`Raft::step`] (messages, proposals, reads, the passing of
//! time, what the disk and the state machine have finished), and says what to do through
//! [`Raft::flush`]. Between the two it only marks work, so a thousand proposals cost one write and one
//! message for each follower. It has no clock, no thread and no randomness but its seed: the same
//! inputs at the same times give the same effects, bit for bit, so what happened can be replayed.
//!
//! ```text
//!              Input                                   Effect
//!  messages ────────►┌──────────────────────────┐────────► Persist ──► log, fsync ──► Persisted
//!  Propose, Read,    │  Raft                     │
//!  ChangeMembership, │                           │────────► Send    ──► network
//!  TransferLeader ──►│                           │
//!  Timer ───────────►│   step · step · … · flush │────────► Apply   ──► state machine ──► Applied
//!  Persisted,        │   deadline                │────────► FetchLog ──► log reader ──► Fetched
//!  Applied, Fetched ►└──────────────────────────┘────────► ReadReady, Reply, Role, Removed, Fatal
//! ```
//!
//! With [`Config::compaction`] also `StateDurable` in and `CompactLog` out, and what a snapshot needs:
//! `FetchSnapshot`, `InstallSnapshot`, `AdoptSnapshot`, `DiscardSnapshot`.
//!
//! # The contract of whoever drives it
//!
//! 1. Perform [`Effect::Persist`] in the order emitted. Many may share one write and one sync. Report
//!    [`Input::Persisted`] only after the sync has returned. If a write or a sync fails, report
//!    [`Input::PersistFailed`], never try again, and end the process: what is on disk is unknown.
//! 2. Perform [`Effect::Apply`] in the order emitted, on one state machine, and report
//!    [`Input::Applied`]. What it holds must survive a crash as a prefix of the log: it is given at
//!    the next start as [`Recovered::applied`].
//! 3. [`Effect::Send`] is legal to perform at once: whatever depends on the disk has been held back.
//!    Messages may be lost, repeated and reordered; they must not be altered, and must come from who
//!    they say. Never wait for a slow peer: drop, and report [`Input::PeerUnreachable`]. If the
//!    connection breaks over which a peer's messages come, report [`Input::PeerDisconnected`].
//! 4. Give inputs one at a time, with a clock that does not go back. Read everything that has arrived
//!    before [`Input::Timer`], which is due at [`Raft::deadline`]. Call [`Raft::flush`] at least after
//!    each batch of inputs.
//! 5. Never call it from two threads, and do no I/O between `step` and the end of `flush`.
//! 6. Start it with another seed at every boot of every node, from a disk that no other node uses.
//!    An id that was removed, or whose disk was lost, is never used again.
//!
//! # What it promises
//!
//! Elections are held in trial first, a leader that no quorum answers steps down, and votes are
//! refused while a leader is heard: always, not by option. A leader whose process ends is replaced
//! within about a heartbeat where its connections' end is reported, one that falls silent within two
//! election timeouts. An entry is applied only when it is
//! committed and durable on this node. Every ticket ends exactly once ([`Outcome`]). Everything is
//! bounded by [`Config`]. No message of a peer makes it panic; a message that proves lost or forked
//! data halts it ([`Effect::Fatal`]).
//!
//! # The life of a member
//!
//! A new node starts with [`Recovered::joining`]: it follows whoever leads it and never stands for
//! election. It is added as a learner under an id above every one ever given, and promoted once it
//! keeps up; [`ChangeError`] says what is missing. Any set of nodes changes at once
//! ([`MembershipChange`]), in force from its append on; if the voters change, the way leads through
//! a joint membership that the core leaves by itself. [`Outcome::Done`] comes when the last step is
//! committed. A leader that loses its vote so hands over to another voter and steps down. Who is
//! removed is told ([`Effect::Removed`]) by the leader, or when it next asks for a vote, and may be
//! stopped; its id is never given again.
//!
//! With two voters one can leave only while both answer: until the change is committed, the old
//! majority needs both. If the one that leaves dies in between, nobody leads until it is back.
//!
//! # The log's beginning, and snapshots
//!
//! Without [`Config::compaction`] the log only grows. With it the driver says what its state machine
//! keeps over a crash without the log ([`Input::StateDurable`]), and is told up to where the log may go
//! ([`Effect::CompactLog`]); a window stays, and what a peer lacks as long as it is not too much. A
//! follower that needs what is gone is offered a snapshot, and its driver told to fetch it
//! ([`Effect::FetchSnapshot`]) from the leader's, by means of its own. Both drivers then have to
//! * give out a checkpoint of the state machine as of some applied index, with what
//!   [`Raft::snapshot_meta`] says of that index;
//! * stage what is fetched beside the live state, go on where a broken transfer ended, give up one that
//!   stands still ([`Input::SnapshotFailed`]; the next offer begins another), verify, sync, and only then
//!   report [`Input::SnapshotStaged`];
//! * perform [`Effect::InstallSnapshot`] in order with [`Effect::Persist`], and [`Effect::AdoptSnapshot`]
//!   in order with [`Effect::Apply`]; at a start at which the log begins after what the state machine
//!   holds, adopt what is staged before anything else.
//!
//! A crash anywhere leaves the old log and state or the new ones.
//!
//! # Loss
//!
//! A node whose log has lost entries that it had acknowledged may be started in quarantine
//! ([`Recovered::quarantine`]): it takes the log and acknowledges what it has, but neither votes nor
//! stands for election until it has all of it again, so that the loss elects nobody who lacks what is
//! committed. With [`Config::quarantine`] a leader that sees such a loss, which the node itself has not,
//! tells it. A node that has lost its *ballot* may have promised anything to anybody: it must not be
//! started, and comes back under a new id.
//!
//! # Left out
//!
//! There are no reads by lease.
//!
//! # Example
//!
//! A single node, with a disk that is always fast:
//!
//! ```
//! use std::{collections::BTreeMap, sync::Arc};
//! use raft_core::{Config, Effect, Effects, Input, Membership, Micros, NodeId, NodeInfo, Raft,
//!     Recovered, RoleKind, Ticket};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let id = NodeId::new(1).ok_or("a node's id is not 0")?;
//! let membership = Membership::of_voters(BTreeMap::from([(id, NodeInfo::default())]))?;
//! let recovered = Recovered::bootstrap(Arc::new(membership));
//! let mut raft = Raft::new(id, Config::default(), recovered, 42, Micros(0))?;
//! let mut effects = Effects::new();
//! let mut applied = Vec::new();
//!
//! // Does everything that is to be done, until nothing is.
//! let mut drive = |raft: &mut Raft, now| loop {
//!     raft.flush(now, &mut effects);
//!     if effects.is_empty() {
//!         break;
//!     }
//!     for effect in effects.drain() {
//!         match effect {
//!             Effect::Persist(op) => raft.step(now, Input::Persisted { upto: op.seq }),
//!             Effect::Apply(entries) => {
//!                 applied.extend(entries.iter().map(|entry| entry.pos.index));
//!                 let upto = entries[entries.len() - 1].pos.index;
//!                 raft.step(now, Input::Applied { upto });
//!             }
//!             other => println!("{other:?}"),
//!         }
//!     }
//! };
//!
//! let now = raft.deadline(); // Nobody leads: an election is due.
//! raft.step(now, Input::Timer);
//! drive(&mut raft, now);
//! assert_eq!(raft.status().role, RoleKind::Leader);
//!
//! raft.step(now, Input::Propose { ticket: Ticket(1), commands: vec!["put k v".into()] });
//! drive(&mut raft, now);
//! assert_eq!(applied.len(), 2); // The leader's own first entry, and the command.
//! # Ok(())
//! # }
//! ```
//!
//! Start reading at [`Raft`] (`raft.rs`), then `role/`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod apply;
mod change;
pub mod codec;
mod common;
mod config;
mod io;
mod log;
mod membership;
mod message;
pub mod mutants;
mod outbox;
mod progress;
mod quarantine;
mod raft;
mod read_index;
mod recovered;
mod role;
mod sizes;
mod snapshot;
mod status;
mod types;
mod unapplied;
mod writer;

pub use change::{ChangeError, MembershipChange, NodeChange};
pub use config::{Config, ConfigError};
pub use io::{
    Effect, Effects, FatalError, FetchFailed, FetchFor, Input, Outcome, Reject, RoleChange,
    RoleKind, TransferError, WriteOp,
};
pub use membership::{Membership, MembershipError, NodeInfo, Voters};
pub use message::{Envelope, Message, VoteKind};
pub use quarantine::Quarantine;
pub use raft::Raft;
pub use recovered::{Recovered, StartError};
pub use snapshot::{Compaction, SnapshotMeta};
pub use status::{Counters, FlowKind, PeerStatus, Status};
pub use types::{
    Ballot, Body, Entry, FetchId, LogIndex, LogPos, Micros, NodeId, PersistSeq, ProbeId, ReadSeq,
    Term, Ticket,
};
