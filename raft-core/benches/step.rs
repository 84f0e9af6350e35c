//! How long does the core take for one proposal, from `step` to the batch handed to the state
//! machine, without any I/O? Four nodes; the time is that of the leader alone, answers of the
//! followers included. Run with `cargo bench -p raft-core`.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use raft_core::{
    Config, Effect, Effects, Envelope, Input, LogIndex, Membership, Message, Micros, NodeId,
    NodeInfo, Raft, Recovered, RoleKind, Ticket, VoteKind,
};

fn main() {
    divan::main();
}

fn id(number: u64) -> NodeId {
    NodeId::new(number).expect("numbered from 1")
}

/// A leader of four, and what stands in for the other three: they have everything at once.
struct Leader {
    raft: Raft,
    effects: Effects,
    inputs: Vec<Input>,
    now: Micros,
}

impl Leader {
    fn elected() -> Self {
        let nodes: BTreeMap<_, _> = (1..=4).map(|it| (id(it), NodeInfo::default())).collect();
        let membership = Membership::of_voters(nodes).expect("four voters");
        let recovered = Recovered::bootstrap(Arc::new(membership));
        let raft = Raft::new(id(1), Config::default(), recovered, 1, Micros(0)).expect("valid");
        let now = raft.deadline();
        let mut leader = Self { raft, effects: Effects::new(), inputs: Vec::new(), now };
        leader.raft.step(now, Input::Timer);
        while leader.turn() {}
        assert_eq!(leader.raft.status().role, RoleKind::Leader, "elected");
        leader
    }

    /// One flush, and the answers to it. Whether there was anything to do.
    fn turn(&mut self) -> bool {
        self.raft.flush(self.now, &mut self.effects);
        for effect in self.effects.drain() {
            match effect {
                Effect::Persist(op) => self.inputs.push(Input::Persisted { upto: op.seq }),
                Effect::Apply(entries) => {
                    let upto = entries.last().map_or(LogIndex(0), |entry| entry.pos.index);
                    self.inputs.push(Input::Applied { upto });
                }
                Effect::Send(Envelope { from, to, term, msg }) => {
                    let answer = match msg {
                        Message::Append { prev, entries, probe, sent_at, read, .. } => {
                            let matched = LogIndex(prev.index.0 + entries.len() as u64);
                            Message::AppendOk { matched, probe, echo: sent_at, read }
                        }
                        Message::Vote { kind, .. } => {
                            Message::VoteReply { kind, granted: true, asked: term }
                        }
                        Message::AppendOk { .. }
                        | Message::AppendReject { .. }
                        | Message::VoteReply { .. }
                        | Message::ReadIndex { .. }
                        | Message::ReadIndexReply { .. }
                        | Message::TimeoutNow { .. }
                        | Message::Removed { .. }
                        | Message::Regressed { .. }
                        | Message::SnapshotOffer { .. }
                        | Message::SnapshotUnderWay { .. } => continue,
                    };
                    let mut term = term;
                    if matches!(answer, Message::VoteReply { kind: VoteKind::Pre, .. }) {
                        term.0 -= 1;
                    }
                    let envelope = Envelope { from: to, to: from, term, msg: answer };
                    self.inputs.push(Input::Message(envelope));
                }
                Effect::FetchLog { .. }
                | Effect::ReadReady { .. }
                | Effect::Reply { .. }
                | Effect::Role(_)
                | Effect::MembershipEffective(_)
                | Effect::Removed { .. }
                | Effect::CompactLog { .. }
                | Effect::Quarantine { .. }
                | Effect::FetchSnapshot { .. }
                | Effect::DiscardSnapshot { .. }
                | Effect::InstallSnapshot { .. }
                | Effect::AdoptSnapshot { .. }
                | Effect::Fatal(_) => {}
            }
        }
        let any = !self.inputs.is_empty();
        for input in self.inputs.drain(..) {
            self.raft.step(self.now, input);
        }
        any
    }
}

/// `batch` proposals of one command each, one flush, everything until they are applied.
#[divan::bench(args = [1, 16, 256, 1024])]
fn propose_replicate_commit_apply(bencher: Bencher<'_, '_>, batch: u64) {
    let command = Bytes::from_static(&[7; 256]);
    let mut leader = Leader::elected();
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        for ticket in 0..batch {
            let commands = vec![command.clone()];
            leader.raft.step(leader.now, Input::Propose { ticket: Ticket(ticket), commands });
        }
        while leader.turn() {}
    });
}

/// `batch` reads, one round of confirmation.
#[divan::bench(args = [1, 256])]
fn confirm_reads(bencher: Bencher<'_, '_>, batch: u64) {
    let mut leader = Leader::elected();
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        for ticket in 0..batch {
            leader.raft.step(leader.now, Input::Read { ticket: Ticket(ticket) });
        }
        while leader.turn() {}
    });
}
