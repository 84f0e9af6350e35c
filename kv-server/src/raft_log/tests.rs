//! The log on a simulated disk: what is reported durable comes back, what does not fit is refused.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use lsm_store::{
    Error,
    journal::{Journal, JournalOptions},
    rng::SplitMix64,
    vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs},
};
use raft_core::{
    Ballot, Body, Entry, FetchFor, FetchId, LogIndex, LogPos, Membership, NodeId, NodeInfo,
    PersistSeq, Term, WriteOp,
};

use super::{KIND_WRITES, LogOptions, LogReader, LogState, LogWriter, OpenedLog, open, record};
use crate::replica::{FetchError, FetchJob, LogDone, LogJob};

const STORE: u128 = 77;
const DIR: &str = "/node/log";

fn membership() -> Membership {
    let nodes = (1..=3).filter_map(NodeId::new).map(|id| (id, NodeInfo::default()));
    Membership::of_voters(nodes.collect::<BTreeMap<_, _>>()).unwrap()
}

fn try_open(vfs: &MemVfs, bootstrap: bool) -> Result<Option<OpenedLog>, Error> {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    vfs.create_dir_all(Path::new("/node")).unwrap();
    let lock = vfs.lock(Path::new("/node/LOCK"), b"").unwrap();
    let options = LogOptions {
        store_id: STORE,
        segment_bytes: 4096,
        epoch_seed: 5,
        bootstrap: bootstrap.then(membership),
    };
    open(vfs, Path::new(DIR), options, lock.into())
}

fn reopen(vfs: &MemVfs) -> OpenedLog {
    try_open(vfs, true).unwrap().unwrap()
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    let pos = LogPos { term: Term(term), index: LogIndex(index) };
    let mut body = vec![u8::try_from(index % 251).unwrap(); len.max(8)];
    body[..8].copy_from_slice(&(index * 10).to_le_bytes());
    Entry { pos, body: Body::Command(Bytes::from(body)) }
}

/// A log kept in the simplest way, and the units that make it.
#[derive(Clone, PartialEq, Debug)]
struct Model {
    ballot: Ballot,
    entries: Vec<Entry>,
    hint: u64,
}

impl Model {
    fn new() -> Self {
        Self { ballot: Ballot::default(), entries: Vec::new(), hint: 0 }
    }

    fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    /// A random unit that could come from the core, applied to the model.
    fn unit(&mut self, seq: u64, rng: &mut SplitMix64) -> WriteOp {
        let mut ballot = None;
        let mut truncate_from = None;
        if rng.chance(1, 4) {
            self.ballot.term.0 += 1;
            self.ballot.voted_for = NodeId::new(rng.next_u64() % 4);
            ballot = Some(self.ballot);
            if rng.chance(1, 2) && self.last() > self.hint {
                let from = self.hint + 1 + rng.next_u64() % (self.last() - self.hint);
                truncate_from = Some(LogIndex(from));
                self.entries.truncate(usize::try_from(from - 1).unwrap());
            }
        }
        let mut append = Vec::new();
        if self.ballot.term > Term(0) {
            for _ in 0..rng.next_u64() % 5 {
                let len = usize::try_from(rng.next_u64() % 900).unwrap();
                let entry = match rng.next_u64() % 8 {
                    0 => {
                        Entry { body: Body::Noop, ..entry(self.ballot.term.0, self.last() + 1, 8) }
                    }
                    _ => entry(self.ballot.term.0, self.last() + 1, len),
                };
                append.push(entry.clone());
                self.entries.push(entry);
            }
        }
        if rng.chance(1, 3) {
            self.hint += rng.next_u64() % (self.last() - self.hint + 1);
        }
        let commit_hint = LogIndex(self.hint);
        WriteOp { seq: PersistSeq(seq), ballot, truncate_from, append: append.into(), commit_hint }
    }

    fn check(&self, state: &LogState, reader: &LogReader, rng: &mut SplitMix64, context: &str) {
        assert_eq!(state.ballot, self.ballot, "ballot, {context}");
        assert_eq!(state.commit_hint.0, self.hint, "hint, {context}");
        let last = self.entries.last().map_or(LogPos::default(), |entry| entry.pos);
        assert_eq!(state.last, last, "last position, {context}");
        let mut runs: Vec<LogPos> = Vec::new();
        for entry in &self.entries {
            if runs.last().is_none_or(|run| run.term < entry.pos.term) {
                runs.push(entry.pos);
            }
        }
        assert_eq!(state.terms, runs, "term runs, {context}");
        for _ in 0..4 {
            let lo = rng.next_u64() % (self.last() + 2);
            let hi = lo + rng.next_u64() % 12;
            let max_bytes = usize::try_from(rng.next_u64() % 3000).unwrap();
            self.check_fetch(reader, lo, hi, max_bytes, context);
        }
        self.check_fetch(reader, 1, u64::MAX, usize::MAX, context);
    }

    fn check_fetch(&self, reader: &LogReader, lo: u64, hi: u64, max_bytes: usize, context: &str) {
        let context = format!("entries {lo}..={hi} of {}, {context}", self.last());
        let job = FetchJob {
            id: FetchId(1),
            purpose: FetchFor::Apply,
            lo: LogIndex(lo),
            hi: LogIndex(hi),
            max_bytes,
        };
        match reader.handle(job).result {
            Err(FetchError::Unavailable) => {
                assert!(lo == 0 || lo > self.last(), "unavailable: {context}");
            }
            Err(error) => panic!("{error}: {context}"),
            Ok(found) => {
                let from = usize::try_from(lo - 1).unwrap();
                let expected = &self.entries[from..];
                assert!(!found.is_empty() && found.len() <= expected.len(), "count: {context}");
                assert_eq!(found[..], expected[..found.len()], "content: {context}");
                let bytes: usize = found.iter().map(body_len).sum();
                assert!(found.len() == 1 || bytes <= max_bytes, "{bytes} bytes: {context}");
                let more = self.entries.get(from + found.len());
                let ended = more
                    .is_none_or(|next| next.pos.index.0 > hi || bytes + body_len(next) > max_bytes);
                assert!(ended, "stopped early after {}: {context}", found.len());
            }
        }
    }
}

fn body_len(entry: &Entry) -> usize {
    match &entry.body {
        Body::Command(body) => body.len(),
        Body::Noop | Body::Config(_) => 0,
    }
}

/// Writes a few random units in one job.
fn write_some(
    writer: &mut LogWriter,
    model: &mut Model,
    seq: &mut u64,
    rng: &mut SplitMix64,
) -> (LogDone, Vec<Model>) {
    let mut steps = vec![model.clone()];
    let jobs = (0..1 + rng.next_u64() % 3).map(|_| {
        *seq += 1;
        let unit = model.unit(*seq, rng);
        steps.push(model.clone());
        LogJob(unit)
    });
    let jobs = jobs.collect();
    (writer.handle(jobs), steps)
}

#[test]
fn what_is_reported_durable_comes_back_after_any_crash() {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let vfs = MemVfs::new(seed);
        let mut model = Model::new();
        for boot in 0..5 {
            let context = format!("seed {seed}, boot {boot}");
            let OpenedLog { mut writer, reader, state, cluster_time_ms, .. } = reopen(&vfs);
            model.check(&state, &reader, &mut rng, &context);
            let newest = model.entries.iter().filter(|entry| entry.body != Body::Noop);
            let newest = newest.map(|entry| entry.pos.index.0 * 10).max().unwrap_or(0);
            assert!(cluster_time_ms >= newest, "{cluster_time_ms} < {newest}, {context}");
            let mut seq = 0;
            for _ in 0..rng.next_u64() % 12 {
                let (done, _) = write_some(&mut writer, &mut model, &mut seq, &mut rng);
                assert_eq!(done, LogDone::Persisted { upto: PersistSeq(seq) }, "{context}");
                model.check_fetch(&reader, 1, u64::MAX, usize::MAX, &context);
            }
            let policy = CrashPolicy::ALL[usize::try_from(rng.next_u64() % 8).unwrap()];
            vfs.crash(policy, rng.next_u64());
        }
    }
}

#[test]
fn a_crash_inside_a_write_leaves_a_prefix_of_its_units() {
    for seed in 0..60 {
        let mut rng = SplitMix64::new(seed);
        let vfs = MemVfs::new(seed);
        let mut model = Model::new();
        let mut seq = 0;
        let OpenedLog { mut writer, .. } = reopen(&vfs);
        for _ in 0..rng.next_u64() % 6 {
            drop(write_some(&mut writer, &mut model, &mut seq, &mut rng));
        }
        vfs.crash_at(vfs.mutating_calls() + rng.next_u64() % 3);
        let (done, steps) = write_some(&mut writer, &mut model, &mut seq, &mut rng);
        let policy = CrashPolicy::ALL[usize::try_from(rng.next_u64() % 8).unwrap()];
        vfs.crash(policy, rng.next_u64());
        let OpenedLog { state, reader, .. } = reopen(&vfs);
        let possible = match done {
            LogDone::Persisted { .. } => &steps[steps.len() - 1..],
            LogDone::Failed { .. } => &steps[..],
        };
        let found = possible.iter().find(|step| {
            let last = step.entries.last().map_or(LogPos::default(), |entry| entry.pos);
            (step.ballot, step.hint, last) == (state.ballot, state.commit_hint.0, state.last)
        });
        let found =
            found.unwrap_or_else(|| panic!("seed {seed}: {state:?} is no prefix: {done:?}"));
        found.check(&state, &reader, &mut rng, &format!("seed {seed}, {policy:?}"));
    }
}

#[test]
fn a_failed_sync_is_final_and_a_restart_finds_only_what_was_reported() {
    let vfs = MemVfs::new(1);
    let OpenedLog { mut writer, .. } = reopen(&vfs);
    let mut model = Model::new();
    let mut rng = SplitMix64::new(3);
    let mut seq = 0;
    for _ in 0..5 {
        drop(write_some(&mut writer, &mut model, &mut seq, &mut rng));
    }
    let before = model.clone();
    let fault = Fault {
        ops: OpSet::SYNCS,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: String::new(),
    };
    vfs.add_fault(fault);
    let (done, _) = write_some(&mut writer, &mut model, &mut seq, &mut rng);
    let LogDone::Failed { reason } = done else { panic!("the failed sync was not reported") };
    assert!(reason.contains("cannot sync /node/log"), "says what and where: {reason}");
    vfs.clear_faults();
    let LogDone::Failed { .. } = writer.handle(Vec::new()) else {
        panic!("the log went on after a failed sync")
    };
    // Units that were already on their way fail as well, by an answer and not by a panic.
    let (done, _) = write_some(&mut writer, &mut model, &mut seq, &mut rng);
    assert!(matches!(done, LogDone::Failed { .. }), "written after a failed sync: {done:?}");
    drop(writer);
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    let OpenedLog { state, reader, .. } = reopen(&vfs);
    before.check(&state, &reader, &mut rng, "after the restart");
}

#[test]
fn damage_in_the_middle_is_refused_by_file_and_offset_and_a_torn_tail_is_cut() {
    let vfs = MemVfs::new(1);
    let OpenedLog { mut writer, .. } = reopen(&vfs);
    for seq in 1..=3 {
        let ballot = (seq == 1).then_some(Ballot { term: Term(1), voted_for: None });
        let append = Arc::from([entry(1, seq, 100)]);
        let hint = LogIndex(seq);
        let unit = WriteOp {
            seq: PersistSeq(seq),
            ballot,
            truncate_from: None,
            append,
            commit_hint: hint,
        };
        let done = writer.handle(vec![LogJob(unit)]);
        assert_eq!(done, LogDone::Persisted { upto: PersistSeq(seq) }, "unit {seq}");
    }
    drop(writer);
    let segment = Path::new("/node/log/0000000000000001.wal");
    let size = vfs.content(segment).unwrap();
    let first_entry = size.windows(8).position(|w| w == 10_u64.to_le_bytes()).unwrap() as u64;
    let last_entry = size.windows(8).rposition(|w| w == 30_u64.to_le_bytes()).unwrap() as u64;

    let damaged = vfs.fork();
    damaged.flip(segment, first_entry, 1).unwrap();
    let error = try_open(&damaged, true).unwrap_err();
    let Error::Corruption { file, offset, .. } = error else { panic!("{error}") };
    assert_eq!(file, segment, "names the file");
    assert!(offset < first_entry && first_entry - offset < 200, "names the place: {offset}");

    // The last record was synced, but nothing after it says so: it cannot be told from a torn one.
    let torn = vfs.fork();
    torn.flip(segment, last_entry, 1).unwrap();
    let opened = reopen(&torn);
    assert_eq!(opened.state.last.index, LogIndex(2), "cut");
    let report = opened.torn_tail.unwrap();
    assert!(report.contains("0000000000000001.wal cut at byte"), "reported: {report}");
}

#[test]
fn a_note_of_durability_makes_damage_to_the_last_record_a_refusal() {
    let vfs = MemVfs::new(1);
    let OpenedLog { mut writer, .. } = reopen(&vfs);
    let unit = WriteOp {
        seq: PersistSeq(1),
        ballot: Some(Ballot { term: Term(1), voted_for: None }),
        truncate_from: None,
        append: Arc::from([entry(1, 1, 100)]),
        commit_hint: LogIndex(0),
    };
    let done = writer.handle(vec![LogJob(unit)]);
    assert_eq!(done, LogDone::Persisted { upto: PersistSeq(1) }, "written");
    writer.note_durable().unwrap();
    drop(writer);
    vfs.kill();
    let segment = Path::new("/node/log/0000000000000001.wal");
    let bytes = vfs.content(segment).unwrap();
    let at = bytes.windows(8).rposition(|w| w == 10_u64.to_le_bytes()).unwrap() as u64;
    vfs.flip(segment, at, 1).unwrap();
    assert!(
        matches!(try_open(&vfs, true), Err(Error::Corruption { .. })),
        "damage below the note was taken for a torn tail"
    );
}

#[test]
fn records_that_do_not_continue_the_log_are_refused_and_so_is_a_newer_format() {
    let write = |payload: Vec<u8>, head: Option<Vec<u8>>| {
        let vfs = MemVfs::new(1);
        drop(reopen(&vfs));
        vfs.kill();
        let as_dyn: Arc<dyn Vfs> = Arc::new(vfs.clone());
        let options = JournalOptions::new(STORE, 9);
        let (mut journal, recovery) = Journal::open(as_dyn, Path::new(DIR), options).unwrap();
        assert!(recovery.count() > 0, "the head is there");
        let mut good = Vec::new();
        record::encode_head_into(&LogState::bootstrap(membership()), &mut good);
        let head = head.unwrap_or(good);
        journal
            .append(KIND_WRITES, 0, &[&payload], &mut |out| out.extend_from_slice(&head))
            .unwrap();
        journal.sync().unwrap();
        drop(journal);
        vfs.kill();
        try_open(&vfs, true)
    };
    let ballot = Some(Ballot { term: Term(1), voted_for: None });
    let mut gap = Vec::new();
    record::encode_write_into(ballot, None, LogIndex(0), &[entry(1, 5, 8)], &mut gap);
    let mut good = Vec::new();
    record::encode_write_into(ballot, None, LogIndex(0), &[entry(1, 1, 8)], &mut good);
    let mut newer = good.clone();
    newer[0] = record::RECORD_FORMAT + 1;
    let mut other_head = Vec::new();
    let mut state = LogState::bootstrap(membership());
    state.ballot.term = Term(9);
    record::encode_head_into(&state, &mut other_head);

    assert!(write(good.clone(), None).is_ok(), "the good record is taken");
    let error = write(gap, None).unwrap_err();
    assert!(error.to_string().contains("entry 5 of term 1 follows 0"), "{error}");
    let error = write(good, Some(other_head)).unwrap_err();
    assert!(error.to_string().contains("the head says"), "{error}");
    let error = write(newer, None).unwrap_err();
    assert!(
        matches!(error, Error::UnknownVersion { found: 2, supported: 1, .. }),
        "the next version is refused by name: {error}"
    );
}

#[test]
fn a_log_that_should_be_there_is_not_made_anew() {
    let vfs = MemVfs::new(1);
    assert!(try_open(&vfs, false).unwrap().is_none(), "no log, and none was made");
    vfs.kill();
    assert!(try_open(&vfs, true).unwrap().is_some(), "made when asked for");
    vfs.kill();
    assert!(try_open(&vfs, false).unwrap().is_some(), "found");
}

#[test]
fn a_unit_too_large_for_one_record_is_split_and_reads_back_whole() {
    let vfs = MemVfs::new(1);
    let OpenedLog { mut writer, reader, .. } = reopen(&vfs);
    let entries: Vec<Entry> = (1..=5).map(|index| entry(1, index, 3 << 20)).collect();
    let unit = WriteOp {
        seq: PersistSeq(1),
        ballot: Some(Ballot { term: Term(1), voted_for: None }),
        truncate_from: None,
        append: entries.clone().into(),
        commit_hint: LogIndex(4),
    };
    let done = writer.handle(vec![LogJob(unit)]);
    assert_eq!(done, LogDone::Persisted { upto: PersistSeq(1) }, "written");
    let read = reader.fetch(LogIndex(1), LogIndex(5), usize::MAX).unwrap();
    assert_eq!(read, entries, "read back");
    drop(writer);
    vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
    let state = reopen(&vfs).state;
    assert_eq!((state.last.index.0, state.commit_hint.0), (5, 4), "recovered");
}
