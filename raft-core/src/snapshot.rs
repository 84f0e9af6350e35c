//! Snapshots, as far as consensus is concerned: when one is needed, where it stands, what it replaces.
//!
//! The bytes never come near the core. A leader that has cut what a follower needs next offers a
//! snapshot with every heartbeat until the follower's answers show that the log will do again. The
//! follower's driver fetches it from the leader's driver, however that is done, and says when it has all
//! of it, verified and synced beside the live state.
//!
//! ```text
//!  leader                               follower's core           its driver
//!    │ SnapshotOffer (every heartbeat) ──►│ FetchSnapshot ──────────► fetches, resumes, verifies, syncs
//!    │◄────────────── SnapshotUnderWay    │◄───────── SnapshotProgress│
//!    │                                    │◄─────────── SnapshotStaged│
//!    │                                    │ InstallSnapshot ────────► resets the log on disk, syncs
//!    │                                    │◄──────────────── Persisted│
//!    │                                    │ AdoptSnapshot ──────────► the state machine takes it over
//!    │◄────────────── AppendOk            │◄────────────────── Applied│
//! ```
//!
//! Invariants
//! 1. What is staged replaces nothing until the log on disk begins after it: a crash before that leaves
//!    the old log and the old state, a crash after it the new log, whose base tells that the staged
//!    state has to be adopted.
//! 2. A snapshot holds committed entries only, so it is as good from an old leader as from a new one, and
//!    the term it was sent in does not matter. One that is not above the commit index is discarded.
//! 3. If the log has the snapshot's last entry, it has everything before it too, and stays. Otherwise the
//!    *whole* log goes: what stands above parted from the committed log before.
//! 4. One at a time, and each has a number: what is reported late of an earlier one means nothing.

use alloc::sync::Arc;

use crate::{
    Effect, Effects, FatalError, FetchId, LogIndex, LogPos, Membership, Message, Micros, NodeId,
    Term,
    common::Common,
    raft::Raft,
    role::{Patience, Role},
};

/// What consensus has to know of a snapshot. [`codec`](crate::codec) has bytes for the membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotMeta {
    /// The last entry it covers; committed.
    pub pos: LogPos,
    /// The membership in force there.
    pub membership: Arc<Membership>,
    /// The index of the entry that brought it; never above `pos`, whose successors may be taken back.
    pub membership_at: LogIndex,
}

impl SnapshotMeta {
    fn is_well_formed(&self) -> bool {
        self.pos.index > LogIndex(0)
            && self.pos.term > Term(0)
            && self.membership_at <= self.pos.index
            && !self.membership.nodes().is_empty()
    }
}

/// The snapshot that is being fetched, or none.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    current: Option<Reception>,
    /// After a failure none is begun before this.
    not_before: Micros,
}

#[derive(Debug)]
struct Reception {
    id: FetchId,
    at_least: LogIndex,
    /// Where it stands, as soon as the driver has said.
    at: LogIndex,
}

impl Receiver {
    fn take(&mut self, id: FetchId) -> Option<Reception> {
        self.current.take_if(|reception| reception.id == id)
    }
}

impl Common {
    /// The leader `from` no longer has the entries up to `at`.
    fn on_offer(&mut self, from: NodeId, at: LogPos) -> Result<(), FatalError> {
        let here = self.log.position(at.index);
        if at.index <= self.commit {
            // Late, or the leader does not know yet what is here: its heartbeats will tell it.
            return match here.filter(|here| *here != at) {
                Some(_) => Err(FatalError::CommittedConflict {
                    leader: from,
                    term: self.term(),
                    index: at.index,
                    commit: self.commit,
                }),
                None => Ok(()),
            };
        }
        if here == Some(at) {
            // A leader cuts what is committed only, and here it is.
            self.commit_to(at.index);
            return Ok(());
        }
        if self.config.compaction.is_none() {
            // This node's driver knows no snapshots.
            return Ok(());
        }
        let under_way = if let Some(reception) = &self.receiver.current {
            reception.at
        } else if self.is_adopting() {
            self.log.base().index
        } else if self.now >= self.receiver.not_before {
            self.next_fetch = FetchId(self.next_fetch.0 + 1);
            let (id, at_least) = (self.next_fetch, at.index);
            self.receiver.current = Some(Reception { id, at_least, at: LogIndex(0) });
            self.tell(Effect::FetchSnapshot { id, from, at_least });
            LogIndex(0)
        } else {
            return Ok(());
        };
        self.outbox.send(from, self.term(), Message::SnapshotUnderWay { at: under_way });
        Ok(())
    }

    /// Of the snapshot that is being fetched it is known where it stands.
    pub(crate) fn on_snapshot_progress(&mut self, id: FetchId, at: LogIndex) {
        if let Some(reception) = self.receiver.current.as_mut().filter(|it| it.id == id) {
            reception.at = at;
        }
    }

    /// It could not be fetched: the next offer but for a pause begins another try.
    pub(crate) fn on_snapshot_failed(&mut self, id: FetchId) {
        if self.receiver.take(id).is_some() {
            self.receiver.not_before = self.now.after(self.config.election_min);
        }
    }

    /// The state machine has yet to take over the snapshot that the log begins after.
    pub(crate) fn is_adopting(&self) -> bool {
        self.apply.applied < self.log.base().index
    }

    /// The log has brought what the snapshot was for, from another leader perhaps.
    pub(crate) fn end_needless_reception(&mut self) {
        let commit = self.commit;
        if let Some(reception) = self.receiver.current.take_if(|it| it.at_least <= commit) {
            self.tell(Effect::DiscardSnapshot { id: reception.id });
        }
    }

    /// Replaces the log by a snapshot, in memory now and on disk with the next write.
    fn install(&mut self, id: FetchId, meta: SnapshotMeta) {
        let pos = meta.pos;
        assert!(
            pos.index > self.commit && pos.term <= self.term(),
            "a snapshot at {pos:?} cannot be installed: {} is committed, the term is {}",
            self.commit,
            self.term()
        );
        // What these brought is in the snapshot, perhaps; nobody here will see it applied.
        self.forget_all_tickets();
        self.writer.overwrite(self.commit.next());
        self.log.reset(&meta);
        self.sizes.clear();
        self.unapplied.clear();
        self.apply.forget_fetch();
        self.commit = pos.index;
        self.begin_install(id, meta);
    }

    /// Cuts off what the log no longer needs to keep. `needed` is what peers still have to be sent from
    /// memory or disk: the least index that they have.
    pub(crate) fn flush_compaction(&mut self, needed: Option<LogIndex>, out: &mut Effects) {
        let Some(limits) = self.config.compaction else { return };
        let (base, last) = (self.log.base().index, self.log.last().index);
        let by_entries = LogIndex(last.0.saturating_sub(limits.trailing_entries));
        let window = by_entries.max(self.sizes.index_below(limits.trailing_bytes));
        let upto = self.state_durable.min(window).min(needed.unwrap_or(last));
        // Who joined does not know who was a member before the log said so; a log may not begin there.
        if upto <= base || self.log.membership_at(upto).is_none() {
            return;
        }
        // Not one by one: the driver cuts whole files, and writes down each time where the log begins.
        let bytes = self.sizes.above(base) - self.sizes.above(upto);
        let entries = upto.0 - base.0;
        if entries < (limits.trailing_entries / 8).max(1) && bytes < limits.trailing_bytes / 8 {
            return;
        }
        let Some(upto) = self.log.position(upto) else { return };
        self.log.cut(upto);
        self.sizes.cut(upto.index);
        out.push(Effect::CompactLog { upto });
    }
}

impl Raft {
    /// What a snapshot of the state machine as of index `at` has to say to consensus: the driver asks when
    /// it makes one, at any time while it holds the state of just that index. `None` if the log does not
    /// reach so far back, if `at` is not applied, or if this node does not know the membership there yet.
    #[must_use]
    pub fn snapshot_meta(&self, at: LogIndex) -> Option<SnapshotMeta> {
        let common = &self.common;
        let pos = common.log.position(at).filter(|_| at <= common.apply.applied)?;
        let (membership_at, membership) = common.log.membership_at(at)?;
        let meta = SnapshotMeta { pos, membership: Arc::clone(membership), membership_at };
        meta.is_well_formed().then_some(meta)
    }

    /// Takes a leader's offer.
    pub(crate) fn on_snapshot_offer(&mut self, from: NodeId, term: Term, at: LogPos) {
        let well_formed = at.index > LogIndex(0) && at.term > Term(0) && at.term <= term;
        if !well_formed {
            self.common.counters.invalid_messages += 1;
            return;
        }
        // An old leader learns of its end by the answer to its heartbeat.
        if term < self.common.term() || !self.recognise_leader(from, term) {
            return;
        }
        if let Err(error) = self.common.on_offer(from, at) {
            self.halt(error);
        }
    }

    /// A snapshot is here, verified and synced beside the live state.
    pub(crate) fn on_snapshot_staged(&mut self, id: FetchId, meta: SnapshotMeta) {
        let common = &mut self.common;
        let awaited = common.receiver.take(id).is_some();
        if awaited && !meta.is_well_formed() {
            common.counters.invalid_messages += 1;
        }
        // A leader has everything that is committed.
        let wanted = awaited
            && meta.is_well_formed()
            && meta.pos.index > common.commit
            && !common.is_adopting()
            && !matches!(self.role, Role::Leader(_) | Role::Halted);
        if wanted && common.log.position(meta.pos.index) == Some(meta.pos) {
            common.commit_to(meta.pos.index);
        } else if wanted {
            if meta.pos.term > common.term() {
                self.become_follower(meta.pos.term, None, Patience::Unchanged);
            } else if !matches!(self.role, Role::Follower(_)) {
                // It asked for votes with a log that it gives up.
                self.become_follower(self.common.term(), None, Patience::Full);
            }
            self.common.install(id, meta);
            return;
        }
        self.common.tell(Effect::DiscardSnapshot { id });
    }
}

/// A leader's offer to a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    /// Where the snapshot stands that the peer says it is fetching; 0 while it has not said.
    pub(crate) under_way: LogIndex,
    /// The offer is to be made with the next flush.
    pub(crate) due: bool,
}

impl Offer {
    pub(crate) const fn new() -> Self {
        Self { under_way: LogIndex(0), due: true }
    }
}

/// How the log is cut. See [`Config::compaction`](crate::Config::compaction).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compaction {
    /// So many entries at the end of the log stay, whatever else could go. 10,000.
    pub trailing_entries: u64,
    /// So many bytes at the end of the log are enough, even if they are fewer entries. 64 MiB.
    pub trailing_bytes: u64,
    /// A leader keeps what a peer lacks, alive or not, as long as that is at most so many bytes of log;
    /// a peer that lacks more gets a snapshot. While one fetches a snapshot, it lacks what stands above
    /// that. 256 MiB.
    pub lag_bytes_max: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { trailing_entries: 10_000, trailing_bytes: 64 << 20, lag_bytes_max: 256 << 20 }
    }
}

/// The bytes between two notes of the log's size.
pub(crate) fn granule(compaction: Option<Compaction>) -> u64 {
    compaction.map_or(u64::MAX, |it| it.trailing_bytes.min(it.lag_bytes_max) / 64)
}
