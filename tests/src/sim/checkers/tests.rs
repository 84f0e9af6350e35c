//! Each check, broken once by hand: a check that never fires checks nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use raft_core::{
    LogIndex, LogPos, Membership, Micros, NodeInfo, PersistSeq, ProbeId, ReadSeq, Term,
};

use super::*;
use crate::sim::node::node_id;
use crate::sim::put;

/// Bytes of entries that a leader takes on.
const UNAPPLIED_MAX: usize = 400;

/// Three nodes, and what a driver would tell the checkers of them.
struct Cluster {
    checkers: Checkers,
    issued: [u64; 3],
}

fn entry(index: u64, term: u64, value: &str) -> Entry {
    let raft_rpc::Request::Write(write) = put("key", value) else { panic!("a put is a write") };
    // The stamp of the leader's clock comes first.
    let body = [&[0; 8], command::encode(&write).as_ref()].concat();
    let pos = LogPos { term: Term(term), index: LogIndex(index) };
    Entry { pos, body: Body::Command(Bytes::from(body)) }
}

fn members(count: usize) -> Arc<Membership> {
    let nodes: BTreeMap<_, _> = (0..count).map(|at| (node_id(at), NodeInfo::default())).collect();
    Arc::new(Membership::of_voters(nodes).unwrap())
}

fn applied(index: u64, state_hash: u64) -> Applied {
    let (index, durable) = (LogIndex(index), LogIndex(0));
    // The first revision is 1, and every entry here is a put.
    let (revision, cluster_time_ms, sessions) = (index.0 + 1, 0, 0);
    Applied { index, durable, revision, state_hash, cluster_time_ms, sessions }
}

/// A follower that has nothing and knows nothing.
fn idle() -> ReplicaStatus {
    ReplicaStatus {
        node_id: node_id(0),
        cluster_id: 1,
        role: RoleKind::Follower,
        term: Term(1),
        leader: None,
        last_index: LogIndex(0),
        durable_index: LogIndex(0),
        commit_index: LogIndex(0),
        applied: applied(0, 0),
        membership: members(3),
        elections: 0,
        role_changes: 0,
        waiting_proposals: 0,
        waiting_reads: 0,
        failure: None,
    }
}

fn message(from: usize, to: usize, term: u64, msg: Message) -> Envelope {
    Envelope { from: node_id(from), to: node_id(to), term: Term(term), msg }
}

fn ok(matched: u64) -> Message {
    let (probe, echo, read) = (ProbeId(1), Micros(1), ReadSeq(0));
    Message::AppendOk { matched: LogIndex(matched), probe, echo, read }
}

fn granted(asked: u64) -> Message {
    Message::VoteReply { kind: VoteKind::Real, granted: true, asked: Term(asked) }
}

impl Cluster {
    fn new() -> Self {
        Self { checkers: Checkers::new(3, true, UNAPPLIED_MAX), issued: [0; 3] }
    }

    /// Node 0 leads term 1 and has one entry, which is on the disks of nodes 0 and 1.
    fn with_one_entry() -> Self {
        let mut cluster = Self::new();
        cluster.checkers.role(0, RoleKind::Leader, 1).unwrap();
        for node in [0, 1] {
            cluster.ballot(node, 1, 0);
            cluster.append(node, None, &[entry(1, 1, "a")]).unwrap();
            cluster.persist(node);
        }
        cluster
    }

    /// And it is committed.
    fn with_one_committed() -> Self {
        let mut cluster = Self::with_one_entry();
        cluster.status(0, 1, [0, 1, 1, 1]).unwrap();
        cluster
    }

    fn op(&mut self, node: usize) -> WriteOp {
        self.issued[node] += 1;
        WriteOp {
            seq: PersistSeq(self.issued[node]),
            ballot: None,
            truncate_from: None,
            append: Arc::new([]),
            commit_hint: LogIndex(0),
        }
    }

    fn ballot(&mut self, node: usize, term: u64, vote: usize) {
        let ballot = Some(Ballot { term: Term(term), voted_for: Some(node_id(vote)) });
        let op = WriteOp { ballot, ..self.op(node) };
        self.checkers.write(node, &op, 0).unwrap();
        self.persist(node);
    }

    fn append(&mut self, node: usize, from: Option<u64>, entries: &[Entry]) -> Checked {
        let truncate_from = from.map(LogIndex);
        let op = WriteOp { truncate_from, append: entries.into(), ..self.op(node) };
        self.checkers.write(node, &op, 0)
    }

    fn persist(&mut self, node: usize) {
        self.checkers.persisted(node, self.issued[node]);
    }

    /// A node says that it has applied, committed, made durable and holds so much.
    fn status(&mut self, node: usize, term: u64, indexes: [u64; 4]) -> Checked {
        let [done, commit, durable, last] = indexes;
        let status = ReplicaStatus {
            term: Term(term),
            last_index: LogIndex(last),
            durable_index: LogIndex(durable),
            commit_index: LogIndex(commit),
            applied: applied(done, 0),
            ..idle()
        };
        self.checkers.status(node, &status)
    }
}

#[track_caller]
fn assert_broken(checked: Checked, invariant: &str) {
    let what = checked.expect_err("the check does not fire");
    assert!(what.starts_with(&format!("{invariant}:")), "fires as {what}");
}

#[test]
fn i1_fires_when_two_nodes_lead_a_term() {
    let mut cluster = Cluster::new();
    cluster.checkers.role(0, RoleKind::Leader, 3).unwrap();
    cluster.checkers.role(0, RoleKind::Leader, 3).unwrap();
    assert_broken(cluster.checkers.role(1, RoleKind::Leader, 3), "I1");
}

#[test]
fn i2_fires_when_a_node_votes_twice_in_a_term() {
    let mut cluster = Cluster::new();
    cluster.ballot(2, 4, 0);
    cluster.checkers.send(2, &message(2, 0, 4, granted(4))).unwrap();
    assert_broken(cluster.checkers.send(2, &message(2, 1, 4, granted(4))), "I2");
}

#[test]
fn i3_fires_when_a_leader_cuts_its_own_log() {
    let mut cluster = Cluster::with_one_entry();
    assert_broken(cluster.append(0, Some(1), &[]), "I3");
}

#[test]
fn i4_fires_when_two_logs_differ_at_the_same_position() {
    let mut cluster = Cluster::with_one_entry();
    assert_broken(cluster.append(2, None, &[entry(1, 1, "another")]), "I4");
}

#[test]
fn i5_fires_when_a_leader_lacks_what_is_committed() {
    let mut cluster = Cluster::with_one_committed();
    cluster.checkers.role(1, RoleKind::Leader, 2).unwrap();
    assert_broken(cluster.checkers.role(2, RoleKind::Leader, 3), "I5");
}

#[test]
fn i6_fires_when_another_entry_is_applied_than_was_committed() {
    let mut cluster = Cluster::with_one_committed();
    assert_broken(cluster.checkers.apply(1, &[entry(1, 1, "another")]), "I6");
    let mut cluster = Cluster::with_one_committed();
    cluster.checkers.apply(1, &[entry(1, 1, "a")]).unwrap();
}

#[test]
fn i7_fires_when_a_commit_or_a_cut_denies_what_was_committed() {
    let mut cluster = Cluster::with_one_committed();
    cluster.append(2, None, &[entry(1, 2, "b")]).unwrap();
    cluster.persist(2);
    assert_broken(cluster.status(2, 2, [0, 1, 1, 1]), "I7");
    let mut cluster = Cluster::with_one_committed();
    cluster.status(1, 1, [0, 1, 1, 1]).unwrap();
    assert_broken(cluster.append(1, Some(1), &[]), "I7");
}

#[test]
fn i8_fires_when_a_commit_is_on_too_few_disks_or_a_disk_has_forgotten() {
    let mut cluster = Cluster::new();
    cluster.checkers.role(0, RoleKind::Leader, 1).unwrap();
    cluster.append(0, None, &[entry(1, 1, "a")]).unwrap();
    cluster.persist(0);
    assert_broken(cluster.status(0, 1, [0, 1, 1, 1]), "I8");
    let mut cluster = Cluster::with_one_entry();
    assert_broken(cluster.checkers.recovered(1, &[], &idle(), applied(0, 0)), "I8");
}

#[test]
fn i9_fires_when_an_entry_of_an_earlier_term_is_committed_by_counting() {
    let mut cluster = Cluster::with_one_entry();
    cluster.checkers.role(0, RoleKind::Follower, 1).unwrap();
    cluster.checkers.role(1, RoleKind::Leader, 2).unwrap();
    assert_broken(cluster.status(1, 2, [0, 1, 1, 1]), "I9");
}

#[test]
fn i10_fires_when_a_term_a_commit_index_or_a_state_goes_back() {
    let mut cluster = Cluster::with_one_committed();
    assert_broken(cluster.status(0, 1, [0, 0, 1, 1]), "I10");
    let mut cluster = Cluster::with_one_committed();
    assert_broken(cluster.status(0, 0, [0, 1, 1, 1]), "I10");
    let mut cluster = Cluster::with_one_committed();
    cluster.checkers.apply(0, &[entry(1, 1, "a")]).unwrap();
    cluster.checkers.applied(0, applied(1, 9)).unwrap();
    assert_broken(cluster.checkers.applied(0, applied(0, 8)), "I10");
}

#[test]
fn i11_fires_when_applied_committed_durable_and_last_are_out_of_order() {
    for indexes in [[1, 0, 1, 1], [0, 2, 1, 1], [0, 0, 2, 1], [0, 0, 1, 2]] {
        let mut cluster = Cluster::with_one_entry();
        assert_broken(cluster.status(0, 1, indexes), "I11");
    }
    let mut cluster = Cluster::with_one_committed();
    assert_broken(cluster.checkers.apply(2, &[entry(1, 1, "a")]), "I11");
}

#[test]
fn i12_fires_when_something_leaves_that_is_not_on_disk() {
    let mut cluster = Cluster::with_one_entry();
    assert_broken(cluster.checkers.send(1, &message(1, 0, 2, granted(2))), "I12");
    let last = LogPos::default();
    let vote = Message::Vote { kind: VoteKind::Real, last };
    assert_broken(cluster.checkers.send(1, &message(1, 0, 2, vote)), "I12");
    cluster.append(1, None, &[entry(2, 1, "b")]).unwrap();
    cluster.checkers.send(1, &message(1, 0, 1, ok(1))).unwrap();
    assert_broken(cluster.checkers.send(1, &message(1, 0, 1, ok(2))), "I12");
    assert_broken(cluster.status(1, 1, [0, 0, 2, 2]), "I12");
}

#[test]
fn i14_fires_when_a_node_believes_in_other_members() {
    let mut cluster = Cluster::new();
    let status = ReplicaStatus { membership: members(2), ..idle() };
    assert_broken(cluster.checkers.status(0, &status), "I14");
}

#[test]
fn i16_fires_when_a_read_may_miss_what_was_acknowledged_or_wait_for_ever() {
    let cluster = Cluster::with_one_committed();
    cluster.checkers.read_ready(0, 1, 1).unwrap();
    assert_broken(cluster.checkers.read_ready(0, 0, 1), "I16");
    assert_broken(cluster.checkers.read_ready(0, 2, 1), "I16");
}

#[test]
fn i18_fires_when_a_write_is_answered_otherwise_than_it_was_executed() {
    let mut cluster = Cluster::with_one_committed();
    cluster.checkers.apply(0, &[entry(1, 1, "a")]).unwrap();
    let written = |revision| Ok(Response::Written { revision, previous: None });
    cluster.checkers.answered(1, false, &written(2)).unwrap();
    assert_broken(cluster.checkers.answered(1, false, &written(3)), "I18");
    cluster.checkers.answered(2, false, &written(2)).expect_err("nothing was applied at 2");
}

#[test]
fn i20_fires_when_two_states_differ_at_the_same_index() {
    let mut cluster = Cluster::with_one_committed();
    for node in [0, 1] {
        cluster.checkers.apply(node, &[entry(1, 1, "a")]).unwrap();
    }
    cluster.checkers.applied(0, applied(1, 5)).unwrap();
    assert_broken(cluster.checkers.applied(1, applied(1, 6)), "I20");
}

#[test]
fn i21_fires_when_entries_are_not_consecutive_or_terms_fall() {
    let mut cluster = Cluster::with_one_entry();
    assert_broken(cluster.append(0, None, &[entry(3, 1, "gap")]), "I21");
    let mut cluster = Cluster::with_one_entry();
    assert_broken(cluster.append(0, None, &[entry(2, 0, "older")]), "I21");
    let mut cluster = Cluster::with_one_committed();
    assert_broken(cluster.checkers.apply(0, &[entry(2, 1, "gap")]), "I21");
    let prev = LogPos { term: Term(1), index: LogIndex(1) };
    let entries: Arc<[Entry]> = Arc::new([entry(2, 1, "not in its log")]);
    let (commit, probe, sent_at, read) = (LogIndex(0), ProbeId(1), Micros(1), ReadSeq(0));
    let append = Message::Append { prev, entries, commit, probe, sent_at, read };
    assert_broken(cluster.checkers.send(0, &message(0, 1, 1, append)), "I21");
}

#[test]
fn i22_fires_when_a_leader_takes_on_more_than_its_limit() {
    let mut cluster = Cluster::new();
    cluster.checkers.role(0, RoleKind::Leader, 1).unwrap();
    let long = "x".repeat(UNAPPLIED_MAX);
    cluster.append(0, None, &[entry(1, 1, &long)]).expect("alone, one of any size is taken on");
    assert_broken(cluster.append(0, None, &[entry(2, 1, "y")]), "I22");
}

#[test]
fn i23_fires_when_an_acknowledged_log_is_not_the_leaders() {
    let mut cluster = Cluster::with_one_committed();
    cluster.ballot(2, 1, 0);
    cluster.append(2, None, &[entry(1, 0, "another")]).unwrap();
    cluster.persist(2);
    assert_broken(cluster.checkers.send(2, &message(2, 0, 1, ok(1))), "I23");
}
