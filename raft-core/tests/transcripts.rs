//! Whole scenarios as text: one file each in `transcripts/`, commands and what the nodes did.
//!
//! Lines with `>` are commands, lines with `#` comments, everything else is what followed and must
//! be equal to what follows now. `UPDATE_TRANSCRIPTS=1` writes the files anew; read the difference
//! before keeping it. What a scenario is about stands in it as `> expect …`, which no update changes.
//!
//! ```text
//! nodes N [limit=bytes …]     disk n1 [log=1,1,2] [term=2] [vote=n1] [hint=1] [applied=1]     start
//! timeout n1                  fire the node's next timer, when it is due
//! wake n1                     fire the node's timer now, however late it is
//! deliver [n1->n2] [kind]     messages in flight, all or some; `deliver n2 last` the newest first
//! drop / hold / repeat [n1->n2] [kind]    lose them, keep them back until `release`, copy them back there
//! persist n1 [count]   apply n1   fetch n1   settle      finish what is under way
//! propose n1 [count] [bytes]  read n1   unreachable n1 n2   fail-disk n1
//! change n1 add n4 | promote n4 | demote n1 | remove n1 | replace n1 n4 …    all at once
//! transfer n1 [n2]            join (starts the next node, without a membership)
//! damage n1 9                 the commit hint on its disk is changed to 9
//! cut n1-n2   cut n1->n2   mend   crash n1 [reached]   restart n1   snapshot n1 (its state survives)
//! advance 100ms               time passes, timers fire, everything arrives; shows only roles
//! skip 100ms                  time passes, nobody notices
//! status   quiet COMMAND      quiet shows only roles
//! ```

use std::{
    env,
    fmt::Write as _,
    fs,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    time::Duration,
};

use bytes::Bytes;
use raft_core::{
    Ballot, Config, Effect, Entry, Envelope, Input, LogIndex, Membership, MembershipChange,
    Message, NodeChange, NodeId, NodeInfo, Outcome, RoleKind, Term, Ticket, VoteKind, Voters,
};

use crate::cluster::{Cluster, Disk, End, log_of, node_id, slot, voters};

struct Script {
    config: Config,
    disks: Vec<Disk>,
    applied: Vec<usize>,
    cluster: Option<Cluster>,
    held: Vec<Envelope>,
    out: String,
    /// Where we are, for messages.
    place: String,
}

macro_rules! transcripts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $($(#[$doc])* #[test] fn $name() { run(stringify!($name)); })*

        #[test]
        fn every_transcript_is_run() {
            let mut files: Vec<String> = fs::read_dir(folder())
                .unwrap()
                .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            let mut listed = vec![$(stringify!($name).to_owned()),*];
            files.sort();
            listed.sort();
            assert_eq!(files, listed);
        }
    };
}

transcripts! {
    elect_basic_3,
    elect_basic_5,
    elect_basic_even4,
    split_vote_storm,
    vote_crash_before_persist,
    self_vote_crash,
    prevote_isolated_rejoin,
    partial_5_nodes_howard,
    bridge_old_leader,
    one_way_out,
    one_way_in,
    long_low_short_high,
    leader_known_prevote,
    pause_resume_leader,
    vm_pause_all,
    fig7_logs,
    fig8_old_term_commit,
    delayed_append_no_truncate,
    commit_min_prev,
    all_inflight_lost,
    unreachable_caught_up,
    stale_reject,
    reorder_reject_not_regression,
    aba_overlapping_writes,
    fetch_race_truncate,
    huge_divergent_tail,
    uncommitted_cap_across_terms,
    single_node_power_loss,
    fsync_error,
    apply_crash_replay,
    commit_hint_ahead,
    leader_disk_stall,
    read_before_noop,
    read_duplicate_id_late_acks,
    read_single_node_restart,
    follower_read_leader_change,
    overload,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

fn run(name: &str) {
    let path = folder().join(name).with_extension("txt");
    let text = fs::read_to_string(&path).expect("the transcript can be read");
    let mut script = Script {
        config: Config::default(),
        disks: Vec::new(),
        applied: Vec::new(),
        cluster: None,
        held: Vec::new(),
        out: String::new(),
        place: String::new(),
    };
    let played = panic::catch_unwind(AssertUnwindSafe(|| script.play(name, &text)));
    assert!(played.is_ok(), "what happened until then:\n{}", script.out);
    if env::var_os("UPDATE_TRANSCRIPTS").is_some() {
        fs::write(&path, &script.out).expect("the transcript can be written");
        return;
    }
    for (number, (now, then)) in (1..).zip(script.out.lines().zip(text.lines())) {
        assert!(
            now == then,
            "{name}.txt:{number} differs (UPDATE_TRANSCRIPTS=1 writes it anew)\n was: {then}\n now: {now}"
        );
    }
    assert!(
        script.out.lines().count() == text.lines().count(),
        "{name}.txt has another number of lines now (UPDATE_TRANSCRIPTS=1 writes it anew)"
    );
}

impl Script {
    fn play(&mut self, name: &str, text: &str) {
        for (number, line) in (1..).zip(text.lines()) {
            if line.starts_with('#') || line.is_empty() {
                self.line(line);
            } else if let Some(command) = line.strip_prefix("> ") {
                self.place = format!("{name}.txt:{number}: {command}");
                self.line(line);
                self.command(command);
            }
        }
    }

    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().unwrap_or_else(|| unreachable_start(&self.place))
    }

    fn command(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let number =
            |at: usize, default: usize| words.get(at).map_or(default, |word| self.number(word));
        match words[0] {
            "quiet" => {
                self.act(&words[1..]);
                self.show(true);
            }
            "expect" => self.expect(&words[1..]),
            "nodes" => {
                self.disks = vec![Disk::default(); number(1, 3)];
                self.applied = vec![0; self.disks.len()];
                for option in &words[2..] {
                    let (key, value) = option.split_once('=').expect("limit=bytes");
                    let value = self.number(value);
                    let config = &mut self.config;
                    *match key {
                        "append" => &mut config.max_append_bytes,
                        "messages" => &mut config.max_inflight_messages,
                        "inflight" => &mut config.max_inflight_bytes,
                        "unapplied" => &mut config.max_unapplied_bytes,
                        "apply" => &mut config.max_apply_bytes,
                        "tail" => &mut config.max_tail_bytes,
                        "reads" => &mut config.max_waiting_reads,
                        other => unknown(&self.place, other),
                    } = value;
                }
            }
            "disk" => self.disk(&words[1..]),
            "start" => {
                let membership = voters(self.disks.len() as u64);
                let disks = core::mem::take(&mut self.disks);
                let mut cluster =
                    Cluster::with_states(membership, &self.config, 42, disks, &self.applied);
                cluster.keep_journal = true;
                self.cluster = Some(cluster);
            }
            "status" => self.status(),
            "advance" => {
                self.act(&words);
                self.show(true);
            }
            _ => {
                self.act(&words);
                self.show(false);
            }
        }
    }

    fn disk(&mut self, words: &[&str]) {
        let at = slot(id_of(words[0]));
        for option in &words[1..] {
            let (key, value) = option.split_once('=').expect("key=value");
            let number = |text: &str| text.parse::<u64>().expect("a number");
            let disk = &mut self.disks[at];
            match key {
                "log" => {
                    // Terms, or TERMxCOUNT.
                    let terms: Vec<u64> = value
                        .split(',')
                        .flat_map(|run| {
                            let (term, count) = run.split_once('x').unwrap_or((run, "1"));
                            let count = usize::try_from(number(count)).expect("small");
                            std::iter::repeat_n(number(term), count)
                        })
                        .collect();
                    disk.log = log_of(&terms);
                    disk.ballot.term = Term(terms.last().copied().unwrap_or(0));
                }
                "term" => disk.ballot = Ballot { term: Term(number(value)), voted_for: None },
                "vote" => disk.ballot.voted_for = Some(id_of(value)),
                "hint" => disk.commit_hint = LogIndex(number(value)),
                "applied" => self.applied[at] = usize::try_from(number(value)).expect("small"),
                other => unknown(&self.place, other),
            }
        }
    }

    fn number(&self, word: &str) -> usize {
        let parsed = word.parse();
        assert!(parsed.is_ok(), "{}: {word} is no number", self.place);
        parsed.unwrap_or(0)
    }

    fn act(&mut self, words: &[&str]) {
        let count =
            |at: usize, default: usize| words.get(at).map_or(default, |word| self.number(word));
        let node = |at: usize| id_of(words.get(at).copied().unwrap_or_default());
        match words[0] {
            "timeout" => self.cluster().timeout(node(1)),
            "wake" => self.cluster().input(node(1), Input::Timer),
            "persist" => {
                let count = count(2, usize::MAX);
                self.cluster().persist(node(1), count);
            }
            "apply" => self.cluster().apply(node(1)),
            "fetch" => self.cluster().fetch(node(1)),
            "settle" => self.cluster().settle(),
            "propose" => {
                let (count, bytes) = (count(2, 1), count(3, 1));
                let commands = (0..count).map(|_| Bytes::from(vec![b'x'; bytes])).collect();
                self.cluster().propose(node(1), commands);
            }
            "read" => {
                self.cluster().read(node(1));
            }
            "join" => {
                self.cluster().join();
            }
            "change" => {
                let change = self.change(&words[2..]);
                self.cluster().change(node(1), change);
            }
            "transfer" => {
                let to = words.get(2).map(|word| id_of(word));
                self.cluster().transfer(node(1), to);
            }
            "unreachable" => self.cluster().input(node(1), Input::PeerUnreachable(node(2))),
            "fail-disk" => self.cluster().input(node(1), Input::PersistFailed),
            "crash" => {
                let reached = count(2, 0);
                self.cluster().crash(node(1), reached);
            }
            "restart" => self.cluster().restart(node(1)),
            "snapshot" => {
                let node = &mut self.cluster().nodes[slot(node(1))];
                node.state_durable = node.state.len();
            }
            "damage" => {
                let hint = LogIndex(count(2, 0) as u64);
                self.cluster().nodes[slot(node(1))].disk.commit_hint = hint;
            }
            "mend" => self.cluster().cut.clear(),
            "cut" => {
                let one_way = words[1].split_once("->");
                let (from, to) = one_way.or_else(|| words[1].split_once('-')).expect("n1-n2");
                let (from, to) = (id_of(from), id_of(to));
                self.cluster().cut.insert((from, to));
                if one_way.is_none() {
                    self.cluster().cut.insert((to, from));
                }
            }
            "deliver" => {
                let mut taken = self.take(&words[1..]);
                if words.contains(&"newest-first") {
                    taken.reverse();
                }
                for envelope in taken {
                    self.cluster().deliver(envelope);
                }
            }
            "drop" => drop(self.take(&words[1..])),
            "hold" => {
                let taken = self.take(&words[1..]);
                self.held.extend(taken);
            }
            "repeat" => {
                let taken = self.take(&words[1..]);
                self.held.extend(taken.iter().cloned());
                self.cluster().network.extend(taken);
            }
            "release" => {
                let held = core::mem::take(&mut self.held);
                self.cluster().network.extend(held);
            }
            "skip" => {
                let now = self.cluster().now;
                self.cluster().now = now.after(duration(words[1]));
            }
            "advance" => {
                let until = self.cluster().now.after(duration(words[1]));
                self.cluster().run_until(until);
            }
            other => unknown(&self.place, other),
        }
    }

    fn change(&self, words: &[&str]) -> MembershipChange {
        let mut words = words.iter();
        let mut changes = Vec::new();
        while let Some(word) = words.next() {
            let mut node = || id_of(words.next().copied().unwrap_or_default());
            changes.push(match *word {
                "add" => NodeChange::AddLearner { id: node(), info: NodeInfo::default() },
                "promote" => NodeChange::Promote(node()),
                "demote" => NodeChange::Demote(node()),
                "remove" => NodeChange::Remove(node()),
                "replace" => NodeChange::Replace { remove: node(), promote: node() },
                other => unknown(&self.place, other),
            });
        }
        MembershipChange(changes)
    }

    /// Takes messages out of the network, by link and by kind.
    fn take(&mut self, filter: &[&str]) -> Vec<Envelope> {
        let place = self.place.clone();
        let cluster = self.cluster();
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        for envelope in cluster.network.drain(..) {
            let link = format!("n{}->n{}", envelope.from, envelope.to);
            let fits = filter.iter().all(|word| {
                *word == "newest-first"
                    || link == *word
                    || link.starts_with(&format!("{word}->"))
                    || kind(&envelope.msg) == *word
            });
            if fits { taken.push(envelope) } else { left.push(envelope) }
        }
        cluster.network.extend(left);
        assert!(!taken.is_empty(), "{place}: no such message is in flight");
        taken
    }

    /// Writes down what the nodes did since the last command.
    fn show(&mut self, quiet: bool) {
        let journal = core::mem::take(&mut self.cluster().journal);
        for (id, effect) in journal {
            let important = matches!(
                effect,
                Effect::Role(_)
                    | Effect::Fatal(_)
                    | Effect::MembershipEffective(_)
                    | Effect::Removed { .. }
            );
            if !quiet || important {
                let text = tell(id, &effect);
                self.line(&text);
            }
        }
    }

    fn status(&mut self) {
        let cluster = self.cluster();
        let mut lines = Vec::new();
        for id in cluster.ids() {
            if !cluster.is_up(id) {
                lines.push(format!("n{id} is down"));
                continue;
            }
            let it = cluster.status(id);
            let mut text = format!(
                "n{id} {:?} term {} last {}/{} durable {} commit {} applied {}",
                it.role,
                it.ballot.term,
                it.last.term,
                it.last.index,
                it.durable,
                it.commit,
                it.applied
            );
            for peer in &it.peers {
                write!(
                    text,
                    "; n{} {:?} matched {} next {} in flight {}",
                    peer.id, peer.flow, peer.matched, peer.next, peer.inflight_messages
                )
                .expect("a string takes everything");
            }
            lines.push(text);
        }
        for text in lines {
            self.line(&text);
        }
    }

    fn expect(&mut self, words: &[&str]) {
        let place = self.place.clone();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let held: Vec<Envelope> = self.held.clone();
        let cluster = self.cluster();
        let all = |word: &str| if word == "all" { cluster.ids() } else { vec![id_of(word)] };
        match words[0] {
            "leader" => assert_eq!(cluster.leaders(), [id_of(words[1])], "{place}"),
            "one-leader" => {
                let leaders = cluster.leaders();
                let among =
                    words[1..].iter().map(|word| id_of(word)).any(|id| leaders.contains(&id));
                assert!(leaders.len() == 1 && (words.len() == 1 || among), "{place}: {leaders:?}");
            }
            "no-leader" => assert_eq!(cluster.leaders(), [], "{place}"),
            "role" => {
                let role = format!("{:?}", cluster.status(id_of(words[1])).role);
                assert_eq!(role, words[2], "{place}");
            }
            "term" => all(words[1]).into_iter().for_each(|id| {
                assert_eq!(cluster.status(id).ballot.term, Term(number(2)), "{place}: n{id}");
            }),
            "commit" => all(words[1]).into_iter().for_each(|id| {
                assert_eq!(cluster.status(id).commit, LogIndex(number(2)), "{place}: n{id}");
            }),
            "applied" => all(words[1]).into_iter().for_each(|id| {
                assert_eq!(cluster.status(id).applied, LogIndex(number(2)), "{place}: n{id}");
            }),
            "last" => all(words[1]).into_iter().for_each(|id| {
                let last = cluster.status(id).last;
                assert_eq!(format!("{}/{}", last.term, last.index), words[2], "{place}: n{id}");
            }),
            // The voters, two sets if it is joint, and the learners: `1,2/2,3+4`.
            "members" => all(words[1]).into_iter().for_each(|id| {
                assert_eq!(members(cluster.status(id).membership), words[2], "{place}: n{id}");
            }),
            "removed" => assert!(cluster.status(id_of(words[1])).removed_at.is_some(), "{place}"),
            "same-logs" => {
                for node in &cluster.nodes {
                    assert!(node.written == cluster.nodes[0].written, "{place}: {}", node.id);
                }
            }
            "in-flight" => {
                let count = cluster.network.iter().filter(|it| kind(&it.msg) == words[1]).count();
                assert_eq!(count as u64, number(2), "{place}: {:?}", cluster.network);
            }
            "held" => assert_eq!(held.len() as u64, number(1), "{place}: {held:?}"),
            "flow" => {
                let status = cluster.status(id_of(words[1]));
                let peer = status.peers.iter().find(|peer| peer.id == id_of(words[2]));
                let flow = peer.map(|peer| format!("{:?}", peer.flow));
                assert_eq!(flow.as_deref(), Some(words[3]), "{place}");
            }
            "matched" => {
                let status = cluster.status(id_of(words[1]));
                let peer = status.peers.iter().find(|peer| peer.id == id_of(words[2]));
                assert_eq!(peer.map(|peer| peer.matched.0), Some(number(3)), "{place}");
            }
            "probes-at-most" => {
                let probes = cluster.status(id_of(words[1])).counters.probes;
                assert!(probes <= number(2), "{place}: {probes} probes");
            }
            "elections-at-most" => {
                let won: u64 =
                    cluster.ids().iter().map(|id| cluster.status(*id).counters.elections).sum();
                assert!(won <= number(1), "{place}: {won} elections");
            }
            "ticket" => {
                let end = cluster.checks.outcomes.get(&Ticket(number(1)));
                let name = match end {
                    None => "pending".to_owned(),
                    Some(End::Applied) => "applied".to_owned(),
                    Some(End::Ready(index)) => format!("ready@{index}"),
                    Some(End::Crashed) => "crashed".to_owned(),
                    Some(End::Reply(Outcome::Unknown)) => "unknown".to_owned(),
                    Some(End::Reply(Outcome::Rejected(why))) => {
                        let name =
                            format!("{why:?}").replace("Change(", "").replace("Transfer(", "");
                        name.split([' ', '(', ')']).next().unwrap_or_default().to_owned()
                    }
                    Some(End::Reply(Outcome::Done)) => "done".to_owned(),
                    Some(End::Reply(Outcome::Appended { .. })) => "appended".to_owned(),
                };
                assert_eq!(name, words[2], "{place}");
            }
            "unapplied-at-most" => {
                let bytes = cluster.status(id_of(words[1])).unapplied_bytes;
                assert!(bytes as u64 <= number(2), "{place}: {bytes} bytes");
            }
            "fails-to-start" => {
                let recovered = cluster.recovered(id_of(words[1]));
                let error = raft_core::Raft::new(
                    id_of(words[1]),
                    Config::default(),
                    recovered,
                    1,
                    cluster.now,
                );
                let text = error.err().map(|error| error.to_string()).unwrap_or_default();
                self.line(&text);
                assert!(text.contains(words[2]), "{place}: {text}");
            }
            other => unknown(&place, other),
        }
    }
}

#[expect(clippy::panic, reason = "a transcript that cannot be read fails its test")]
fn unknown(place: &str, word: &str) -> ! {
    panic!("{place}: {word} means nothing here")
}

fn unreachable_start<T>(place: &str) -> T {
    unknown(place, "a command before `start`")
}

fn id_of(word: &str) -> NodeId {
    node_id(word.trim_start_matches('n').parse().expect("nodes are n1, n2, …"))
}

fn duration(word: &str) -> Duration {
    Duration::from_millis(word.trim_end_matches("ms").parse().expect("100ms"))
}

fn kind(msg: &Message) -> &'static str {
    match msg {
        Message::Append { entries, .. } if entries.is_empty() => "heartbeat",
        Message::Append { .. } => "append",
        Message::AppendOk { .. } => "ok",
        Message::AppendReject { .. } => "reject",
        Message::Vote { kind: VoteKind::Pre, .. } => "pre-vote",
        Message::Vote { kind: VoteKind::Real, .. } => "vote",
        Message::Vote { kind: VoteKind::Transfer, .. } => "transfer-vote",
        Message::VoteReply { kind: VoteKind::Pre, .. } => "pre-vote-reply",
        Message::VoteReply { kind: VoteKind::Real, .. } => "vote-reply",
        Message::VoteReply { kind: VoteKind::Transfer, .. } => "transfer-vote-reply",
        Message::ReadIndex { .. } => "read-index",
        Message::ReadIndexReply { .. } => "read-index-reply",
        Message::TimeoutNow { .. } => "timeout-now",
        Message::Removed { .. } => "removed",
        Message::SnapshotOffer { .. } => "snapshot-offer",
        Message::Regressed { .. } => "regressed",
        Message::SnapshotUnderWay { .. } => "snapshot-under-way",
    }
}

/// The voters, two sets if it is joint, and the learners: `1,2/2,3+4`.
fn members(membership: &Membership) -> String {
    let list = |ids: &std::collections::BTreeSet<NodeId>| {
        ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let voters = match membership.voters() {
        Voters::Uniform(voters) => list(voters),
        Voters::Joint { old, new } => list(old) + "/" + &list(new),
    };
    let learners = list(membership.learners());
    if learners.is_empty() { voters } else { voters + "+" + &learners }
}

fn span(entries: &[Entry]) -> String {
    let pos = |entry: &Entry| format!("{}/{}", entry.pos.term, entry.pos.index);
    match entries {
        [] => "nothing".to_owned(),
        [one] => pos(one),
        [first, .., last] => format!("{}..{}", pos(first), pos(last)),
    }
}

/// One effect as one line. Positions are term/index.
fn tell(id: NodeId, effect: &Effect) -> String {
    match effect {
        Effect::Persist(op) => {
            let mut text = format!("n{id} writes #{}:", op.seq);
            if let Some(ballot) = op.ballot {
                let vote = ballot.voted_for.map_or("nobody".to_owned(), |id| format!("n{id}"));
                text += &format!(" term {} vote {vote};", ballot.term);
            }
            if let Some(from) = op.truncate_from {
                text += &format!(" cut from {from};");
            }
            text + &format!(" {}, commit {}", span(&op.append), op.commit_hint)
        }
        Effect::Send(envelope) => {
            let Envelope { from, to, term, msg } = envelope;
            let body = match msg {
                Message::Append { prev, entries, commit, read, .. } => {
                    format!(
                        "after {}/{} {} commit {commit} read {read}",
                        prev.term,
                        prev.index,
                        span(entries)
                    )
                }
                Message::AppendOk { matched, read, .. } => format!("matched {matched} read {read}"),
                Message::AppendReject { hint, .. } => format!("hint {}/{}", hint.term, hint.index),
                Message::Vote { last, .. } => format!("last {}/{}", last.term, last.index),
                Message::VoteReply { granted, asked, .. } => {
                    format!("{} for term {asked}", if *granted { "granted" } else { "refused" })
                }
                Message::ReadIndex { .. } => "asked".to_owned(),
                Message::ReadIndexReply { index, .. } => format!("from {index}"),
                Message::TimeoutNow { at } => format!("at {}/{}", at.term, at.index),
                Message::Removed { at } | Message::SnapshotUnderWay { at } => format!("at {at}"),
                Message::Regressed { had } => format!("had {had}"),
                Message::SnapshotOffer { at } => format!("at {}/{}", at.term, at.index),
            };
            format!("n{from} -> n{to} (term {term}): {} {body}", kind(msg))
        }
        Effect::Apply(entries) => format!("n{id} applies {}", span(entries)),
        Effect::FetchLog { lo, hi, .. } => format!("n{id} loads {lo} to {hi}"),
        Effect::ReadReady { ticket, index } => {
            format!("n{id} may serve read {ticket} from {index}")
        }
        Effect::Reply { ticket, outcome } => match outcome {
            Outcome::Appended { first, count } => {
                format!("n{id} appended {ticket}: {count} from {}/{}", first.term, first.index)
            }
            Outcome::Rejected(why) => format!("n{id} rejected {ticket}: {why:?}"),
            Outcome::Unknown => format!("n{id} cannot tell about {ticket}"),
            Outcome::Done => format!("n{id} has done {ticket}"),
        },
        Effect::Role(change) => {
            let role = match change.role {
                RoleKind::Follower => "follows",
                RoleKind::PreCandidate => "asks in trial",
                RoleKind::Candidate => "stands for election",
                RoleKind::Leader => "leads",
                RoleKind::Halted => "has halted",
            };
            let leader = match change.leader {
                Some(leader) if leader != id => format!(" n{leader}"),
                Some(_) | None => String::new(),
            };
            format!("n{id} {role}{leader} in term {}", change.term)
        }
        Effect::MembershipEffective(membership) => {
            format!("n{id} uses another membership: {}", members(membership))
        }
        Effect::Removed { at } => format!("n{id} is removed, says the membership at {at}"),
        Effect::Quarantine { seq, quarantine } => format!("n{id} writes #{seq}: {quarantine:?}"),
        Effect::CompactLog { upto } => format!("n{id} lets its log go up to {}", upto.index),
        Effect::FetchSnapshot { from, at_least, .. } => {
            format!("n{id} fetches a snapshot of at least {at_least} from n{from}")
        }
        Effect::DiscardSnapshot { .. } => format!("n{id} discards a snapshot"),
        Effect::InstallSnapshot { seq, meta, .. } => {
            format!(
                "n{id} writes #{seq}: nothing but a snapshot at {}/{}",
                meta.pos.term, meta.pos.index
            )
        }
        Effect::AdoptSnapshot { at } => format!("n{id} adopts the snapshot at {}", at.index),
        Effect::Fatal(error) => format!("n{id} stops: {error}"),
    }
}
