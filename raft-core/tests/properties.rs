//! Properties of the parts that can be seen from outside: the quorum function against brute force,
//! the codec against damage, messages through a serde format. The term runs, the writer and the
//! count of unapplied bytes have theirs beside them in `src`; that nothing leaves before its write is
//! durable is I12 of the checks, on every random schedule.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use proptest::prelude::*;
use raft_core::{
    Body, ChangeError, Entry, Envelope, LogIndex, LogPos, Membership, MembershipChange,
    MembershipError, Message, Micros, NodeChange, NodeId, NodeInfo, ProbeId, ReadSeq, Term, Ticket,
    VoteKind, Voters,
    codec::{self, DecodeError},
};

use crate::cluster::{node_id, voters};

fn listed(ids: impl IntoIterator<Item = NodeId>) -> BTreeMap<NodeId, NodeInfo> {
    ids.into_iter().map(|id| (id, NodeInfo::default())).collect()
}

fn joint(old: &BTreeSet<NodeId>, new: &BTreeSet<NodeId>) -> Membership {
    let all: BTreeSet<NodeId> = old.union(new).copied().collect();
    let highest = *all.last().expect("not empty");
    let voters = Voters::Joint { old: old.clone(), new: new.clone() };
    Membership::from_parts(voters, BTreeSet::new(), BTreeSet::new(), listed(all), highest)
        .expect("a valid membership")
}

/// The largest value that a majority of `set` has reached, by trying them all.
fn brute_force(set: &BTreeSet<NodeId>, values: &BTreeMap<NodeId, u8>) -> u8 {
    let reached = |value: u8| {
        set.iter().filter(|id| values.get(id).copied().unwrap_or(0) >= value).count() * 2
            > set.len()
    };
    (0..=u8::MAX).rev().find(|value| reached(*value)).unwrap_or(0)
}

/// All assignments of 0, 1, 2 to `count` nodes.
fn assignments(count: u32) -> impl Iterator<Item = BTreeMap<NodeId, u8>> {
    (0..3_u32.pow(count)).map(move |mut code| {
        (1..=u64::from(count))
            .map(|id| {
                let value = u8::try_from(code % 3).expect("below 3");
                code /= 3;
                (node_id(id), value)
            })
            .collect()
    })
}

#[test]
fn quorum_value_is_what_a_majority_reached_for_one_to_eight_voters() {
    for count in 1..=8_u32 {
        let membership = voters(u64::from(count));
        let Voters::Uniform(set) = membership.voters() else { unreachable!("uniform") };
        for values in assignments(count.min(7)) {
            assert_eq!(
                membership.quorum_value(|id| values.get(&id).copied()),
                brute_force(set, &values),
                "{count} voters, {values:?}"
            );
        }
    }
}

#[test]
fn quorum_value_of_a_joint_membership_needs_both_halves_for_all_pairs_up_to_four_by_four() {
    let sets = |from: u64| {
        (1..16_u32).map(move |bits| {
            (0..4).filter(|bit| bits >> bit & 1 == 1).map(|bit| node_id(from + bit)).collect()
        })
    };
    // Overlapping in full, by half, and not at all.
    for (old_from, new_from) in [(1, 1), (1, 3), (1, 5)] {
        for old in sets(old_from) {
            for new in sets(new_from) {
                let membership = joint(&old, &new);
                for values in assignments(8).step_by(61) {
                    let both = brute_force(&old, &values).min(brute_force(&new, &values));
                    let value = membership.quorum_value(|id| values.get(&id).copied());
                    assert_eq!(value, both, "{old:?} and {new:?}, {values:?}");
                }
            }
        }
    }
}

#[test]
fn two_quorums_of_one_membership_always_share_a_voter() {
    for count in 1..=6_u64 {
        let membership = voters(count);
        for bits in 0..1_u64 << count {
            let in_favour = |id: NodeId| Some(bits >> (id.get() - 1) & 1 == 1);
            let against = |id: NodeId| Some(bits >> (id.get() - 1) & 1 == 0);
            let both = membership.quorum_value(in_favour) && membership.quorum_value(against);
            assert!(!both, "{bits:b} and its complement are both quorums of {count}");
        }
    }
}

#[test]
fn membership_that_breaks_a_rule_is_refused_by_name() {
    let set = |ids: &[u64]| ids.iter().copied().map(node_id).collect::<BTreeSet<_>>();
    let uniform = |ids: &[u64]| Voters::Uniform(set(ids));
    let build = |voters, learners: &[u64], demoted: &[u64], nodes: &[u64], highest| {
        Membership::from_parts(
            voters,
            set(learners),
            set(demoted),
            listed(set(nodes)),
            node_id(highest),
        )
    };
    let (one, three) = (node_id(1), node_id(3));
    assert_eq!(build(uniform(&[]), &[1], &[], &[1], 1), Err(MembershipError::NoVoters));
    let half = Voters::Joint { old: set(&[1]), new: set(&[]) };
    assert_eq!(build(half, &[], &[], &[1], 1), Err(MembershipError::NoVoters));
    assert_eq!(
        build(uniform(&[1]), &[1], &[], &[1], 1),
        Err(MembershipError::VoterAndLearner(one))
    );
    assert_eq!(build(uniform(&[1, 3]), &[], &[], &[1], 3), Err(MembershipError::Unlisted(three)));
    assert_eq!(build(uniform(&[1]), &[], &[], &[1, 3], 3), Err(MembershipError::Unlisted(three)));
    assert_eq!(
        build(uniform(&[1, 3]), &[], &[], &[1, 3], 2),
        Err(MembershipError::AboveHighest(three))
    );
    assert_eq!(build(uniform(&[1]), &[], &[1], &[1], 1), Err(MembershipError::NotDemotable(one)));
    let both = || Voters::Joint { old: set(&[1, 3]), new: set(&[1]) };
    assert_eq!(build(both(), &[], &[1], &[1, 3], 3), Err(MembershipError::NotDemotable(one)));
    assert!(build(both(), &[], &[3], &[1, 3], 3).is_ok());
}

fn any_membership() -> impl Strategy<Value = Membership> {
    let ids = || proptest::collection::btree_set(1..9_u64, 1..5);
    (ids(), proptest::option::of(ids()), ids(), any::<Option<u128>>(), "[a-zäß:0-9]{0,12}")
        .prop_map(|(first, second, others, storage_id, address)| {
            let set = |ids: &BTreeSet<u64>| -> BTreeSet<NodeId> {
                ids.iter().copied().map(node_id).collect()
            };
            let (first, second) = (set(&first), second.map(|ids| set(&ids)));
            let votes = |id: &NodeId| {
                first.contains(id) || second.as_ref().is_some_and(|second| second.contains(id))
            };
            let learners: BTreeSet<NodeId> =
                set(&others).into_iter().filter(|id| !votes(id)).collect();
            let demoted = second.iter().flat_map(|new| first.difference(new)).copied().collect();
            let all = first.iter().chain(second.iter().flatten()).chain(&learners).copied();
            let node = NodeInfo {
                peer_addr: address.clone(),
                client_addr: address.clone() + "x",
                storage_id,
            };
            let nodes = all.map(|id| (id, node.clone())).collect();
            let voters = match second {
                Some(new) => Voters::Joint { old: first, new },
                None => Voters::Uniform(first),
            };
            Membership::from_parts(voters, learners, demoted, nodes, node_id(9)).expect("valid")
        })
}

fn any_body() -> impl Strategy<Value = Body> {
    prop_oneof![
        Just(Body::Noop),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|it| Body::Command(it.into())),
        any_membership().prop_map(|it| Body::Config(Arc::new(it))),
    ]
}

fn any_pos() -> impl Strategy<Value = LogPos> {
    (any::<u64>(), any::<u64>())
        .prop_map(|(term, index)| LogPos { term: Term(term), index: LogIndex(index) })
}

fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
    proptest::collection::vec(
        (any_pos(), any_body()).prop_map(|(pos, body)| Entry { pos, body }),
        0..6,
    )
}

fn any_message() -> impl Strategy<Value = Message> {
    let numbers = || (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let kind = || prop_oneof![Just(VoteKind::Pre), Just(VoteKind::Real), Just(VoteKind::Transfer)];
    prop_oneof![
        (any_pos(), any_entries(), numbers()).prop_map(|(prev, entries, (a, b, c, d))| {
            Message::Append {
                prev,
                entries: entries.into(),
                commit: LogIndex(a),
                probe: ProbeId(b),
                sent_at: Micros(c),
                read: ReadSeq(d),
            }
        }),
        numbers().prop_map(|(a, b, c, d)| Message::AppendOk {
            matched: LogIndex(a),
            probe: ProbeId(b),
            echo: Micros(c),
            read: ReadSeq(d),
        }),
        (any_pos(), numbers()).prop_map(|(hint, (_, b, c, d))| Message::AppendReject {
            probe: ProbeId(b),
            hint,
            echo: Micros(c),
            read: ReadSeq(d),
        }),
        (kind(), any_pos()).prop_map(|(kind, last)| Message::Vote { kind, last }),
        (kind(), any::<bool>(), any::<u64>()).prop_map(|(kind, granted, asked)| {
            Message::VoteReply { kind, granted, asked: Term(asked) }
        }),
        any::<u64>().prop_map(|id| Message::ReadIndex { id: Ticket(id) }),
        (any::<u64>(), any::<u64>()).prop_map(|(id, index)| Message::ReadIndexReply {
            id: Ticket(id),
            index: LogIndex(index),
        }),
        any_pos().prop_map(|at| Message::TimeoutNow { at }),
        any::<u64>().prop_map(|at| Message::Removed { at: LogIndex(at) }),
        any_pos().prop_map(|at| Message::SnapshotOffer { at }),
        any::<u64>().prop_map(|had| Message::Regressed { had: LogIndex(had) }),
        any::<u64>().prop_map(|at| Message::SnapshotUnderWay { at: LogIndex(at) }),
    ]
}

/// Every set of voters that can decide, by trying them all: the members of each half that are in
/// favour are more than half of it.
fn deciding_sets(membership: &Membership) -> Vec<u32> {
    let halves: Vec<&BTreeSet<NodeId>> = match membership.voters() {
        Voters::Uniform(voters) => vec![voters],
        Voters::Joint { old, new } => vec![old, new],
    };
    let decides = |bits: u32| {
        halves
            .iter()
            .all(|half| half.iter().filter(|id| bits >> id.get() & 1 == 1).count() * 2 > half.len())
    };
    (0..1 << 10_u32).filter(|bits| decides(*bits)).collect()
}

/// A uniform membership of 1 to 7 voters and up to 2 learners among the nodes 1 to 9.
fn any_uniform() -> impl Strategy<Value = Membership> {
    (proptest::sample::subsequence((1..=7_u64).collect::<Vec<_>>(), 1..=7), 0..=2_u64).prop_map(
        |(voting, learning)| {
            let voters: BTreeSet<NodeId> = voting.into_iter().map(node_id).collect();
            let learners: BTreeSet<NodeId> = (8..8 + learning).map(node_id).collect();
            let nodes = listed(voters.union(&learners).copied());
            Membership::from_parts(
                Voters::Uniform(voters),
                learners,
                BTreeSet::new(),
                nodes,
                node_id(9),
            )
            .expect("valid")
        },
    )
}

fn any_changes() -> impl Strategy<Value = MembershipChange> {
    let id = || (1..=10_u64).prop_map(node_id);
    let one = prop_oneof![
        id().prop_map(NodeChange::Promote),
        id().prop_map(NodeChange::Demote),
        id().prop_map(NodeChange::Remove),
        id().prop_map(|id| NodeChange::AddLearner { id, info: NodeInfo::default() }),
        id().prop_map(|id| NodeChange::SetInfo { id, info: NodeInfo::default() }),
        (id(), id()).prop_map(|(remove, promote)| NodeChange::Replace { remove, promote }),
    ];
    proptest::collection::vec(one, 0..5).prop_map(MembershipChange)
}

/// What a change says about its nodes, one after the other on plain sets.
fn by_hand(
    membership: &Membership,
    change: &MembershipChange,
) -> Option<(BTreeSet<NodeId>, BTreeSet<NodeId>)> {
    let Voters::Uniform(voters) = membership.voters() else { return None };
    let (mut voters, mut learners) = (voters.clone(), membership.learners().clone());
    let mut named = BTreeSet::new();
    let flat = change.0.iter().flat_map(|change| match change {
        NodeChange::Replace { remove, promote } => {
            vec![NodeChange::Remove(*remove), NodeChange::Promote(*promote)]
        }
        one @ (NodeChange::AddLearner { .. }
        | NodeChange::SetInfo { .. }
        | NodeChange::Promote(_)
        | NodeChange::Demote(_)
        | NodeChange::Remove(_)) => vec![one.clone()],
    });
    for change in flat {
        let (id, possible) = match change {
            NodeChange::AddLearner { id, .. } => {
                (id, id > membership.highest_id() && learners.insert(id))
            }
            NodeChange::SetInfo { id, .. } => (id, voters.contains(&id) || learners.contains(&id)),
            NodeChange::Promote(id) => (id, learners.remove(&id) && voters.insert(id)),
            NodeChange::Demote(id) => (id, voters.remove(&id) && learners.insert(id)),
            NodeChange::Remove(id) => (id, voters.remove(&id) || learners.remove(&id)),
            NodeChange::Replace { .. } => unreachable!("taken apart above"),
        };
        if !possible || !named.insert(id) {
            return None;
        }
    }
    (!voters.is_empty() && !change.0.is_empty()).then_some((voters, learners))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn change_is_what_it_says_and_neighbouring_memberships_decide_alike(
        before in any_uniform(),
        change in any_changes(),
    ) {
        let expected = by_hand(&before, &change);
        let first = before.changed_by(&change);
        prop_assert_eq!(first.is_ok(), expected.is_some(), "{:?}", first);
        let (Ok(first), Some((voters, learners))) = (first, expected) else { return Ok(()) };
        let last = match first.leave_joint() {
            Ok(last) => {
                prop_assert!(first.is_joint());
                prop_assert_eq!(
                    first.changed_by(&change), Err(ChangeError::Pending { at: LogIndex(0) })
                );
                // Who only votes in the old set learns afterwards or is gone.
                prop_assert!(first.demote_on_leave().is_disjoint(first.learners()));
                last
            }
            Err(error) => {
                prop_assert_eq!(error, ChangeError::NotJoint);
                prop_assert_eq!(before.voters(), first.voters(), "no other set of voters");
                first.clone()
            }
        };
        prop_assert_eq!(last.voters(), &Voters::Uniform(voters.clone()));
        prop_assert_eq!(last.learners(), &learners);
        let members: BTreeSet<NodeId> = voters.union(&learners).copied().collect();
        prop_assert_eq!(last.nodes().keys().copied().collect::<BTreeSet<_>>(), members);
        prop_assert!(last.highest_id() >= before.highest_id());
        for id in before.nodes().keys() {
            prop_assert_eq!(last.is_removed(*id), !last.contains(*id));
        }
        // Two that may be in force at the same time never decide apart.
        for (one, other) in [(&before, &first), (&first, &first), (&first, &last)] {
            let others = deciding_sets(other);
            for bits in deciding_sets(one) {
                prop_assert!(others.iter().all(|other| other & bits != 0), "{:b}", bits);
            }
        }
    }

    #[test]
    fn change_that_breaks_a_rule_is_refused_by_name(before in any_uniform()) {
        let Voters::Uniform(voters) = before.voters() else { unreachable!("uniform") };
        let refused = |changes: &[NodeChange]| before.changed_by(&MembershipChange(changes.into()));
        let one = *voters.first().expect("a voter");
        let add = |id| NodeChange::AddLearner { id, info: NodeInfo::default() };
        let ten = node_id(10);
        prop_assert_eq!(refused(&[]), Err(ChangeError::Empty));
        prop_assert_eq!(refused(&[add(one)]), Err(ChangeError::AlreadyMember(one)));
        prop_assert_eq!(refused(&[NodeChange::Promote(one)]), Err(ChangeError::AlreadyVoter(one)));
        prop_assert_eq!(refused(&[NodeChange::Demote(ten)]), Err(ChangeError::NotMember(ten)));
        prop_assert_eq!(
            refused(&[NodeChange::Demote(one), NodeChange::Remove(one)]),
            Err(ChangeError::Repeated(one))
        );
        let all: Vec<NodeChange> = voters.iter().map(|id| NodeChange::Remove(*id)).collect();
        prop_assert_eq!(refused(&all), Err(ChangeError::NoVoters));
        if let Some(free) = (1..=7).map(node_id).find(|id| !before.contains(*id)) {
            let used = ChangeError::IdUsed { id: free, highest: before.highest_id() };
            prop_assert_eq!(refused(&[add(free)]), Err(used));
        }
        if let Some(learner) = before.learners().first() {
            let error = ChangeError::AlreadyLearner(*learner);
            prop_assert_eq!(refused(&[NodeChange::Demote(*learner)]), Err(error));
        }
        let stored = |storage_id| NodeChange::SetInfo {
            id: one,
            info: NodeInfo { storage_id, ..NodeInfo::default() },
        };
        let known = refused(&[stored(Some(7))]).expect("it was not known before");
        let other = known.changed_by(&stored(Some(8)).into());
        prop_assert_eq!(other, Err(ChangeError::OtherStorage(one)));
    }
}

proptest! {
    #[test]
    fn entries_come_back_as_they_were_encoded(entries in any_entries()) {
        let bytes = Bytes::from(codec::encode_entries(&entries));
        prop_assert_eq!(codec::decode_entries(bytes), Ok(entries));
    }

    #[test]
    fn memberships_come_back_as_they_were_encoded(membership in any_membership()) {
        let mut bytes = Vec::new();
        codec::encode_membership_into(&membership, &mut bytes);
        prop_assert_eq!(codec::decode_membership(bytes.into()), Ok(membership));
    }

    /// A cut anywhere but between two entries is an error; never a panic.
    #[test]
    fn cut_entries_are_an_error_or_a_prefix(entries in any_entries(), at in any::<prop::sample::Index>()) {
        let bytes = codec::encode_entries(&entries);
        let cut = at.index(bytes.len() + 1);
        match codec::decode_entries(Bytes::from(bytes).slice(..cut)) {
            Ok(decoded) => prop_assert_eq!(&decoded[..], &entries[..decoded.len()]),
            Err(error) => {
                let truncated = matches!(error, DecodeError::Truncated { .. });
                prop_assert!(truncated, "{:?}", error);
            }
        }
    }

    /// A flipped byte gives other entries or an error; never a panic, never more bytes than came in.
    #[test]
    fn damaged_entries_never_panic(
        entries in any_entries(),
        at in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let mut bytes = codec::encode_entries(&entries);
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        let decoded = codec::decode_entries(bytes.into());
        if let Ok(decoded) = decoded {
            prop_assert!(decoded != entries || entries.is_empty());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        if let Ok(entries) = codec::decode_entries(bytes.clone()) {
            prop_assert_eq!(Bytes::from(codec::encode_entries(&entries)), bytes.clone());
        }
        if let Ok(membership) = codec::decode_membership(bytes) {
            prop_assert!(membership.quorum_value(|_| Some(true)));
        }
    }

    #[test]
    fn messages_come_back_through_a_serde_format(
        msg in any_message(),
        (from, to, term) in (1..u64::MAX, 1..u64::MAX, any::<u64>()),
    ) {
        let envelope = Envelope { from: node_id(from), to: node_id(to), term: Term(term), msg };
        let bytes = postcard::to_stdvec(&envelope).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Envelope>(&bytes).unwrap(), envelope);
    }

    /// Whatever a peer says, the node survives it and keeps its invariants.
    #[test]
    fn no_message_makes_a_node_panic(
        messages in proptest::collection::vec((any_message(), 0..4_u64, 2..4_u64), 1..30),
        lead in any::<bool>(),
    ) {
        let compaction = Some(raft_core::Compaction::default());
        let config =
            raft_core::Config { compaction, quarantine: true, ..raft_core::Config::default() };
        let mut cluster = crate::cluster::Cluster::new(voters(3), &config, 1);
        if lead {
            cluster.timeout(node_id(1));
            cluster.settle();
        }
        let raft = cluster.nodes[0].raft.as_mut().unwrap();
        for (msg, term, from) in messages {
            let envelope = Envelope { from: node_id(from), to: node_id(1), term: Term(term), msg };
            raft.step(cluster.now, raft_core::Input::Message(envelope));
            let mut out = raft_core::Effects::new();
            raft.flush(cluster.now, &mut out);
            raft.check_invariants();
        }
    }
}
