//! A compaction's merge in parts, each of some of its keys, so that several threads can do it. The parts of a job
//! share its claim and its inputs and are installed together; what a job does is not decided here.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::Duration;

use crate::compaction::merge::{Merge, Merged};
use crate::error::Result;
use crate::sstable::TableMeta;
use crate::sstable::reader::Table;
use crate::store::inner::Inner;
use crate::store::jobs::STEP_BYTES;

/// The merge of some of a job's keys.
#[derive(Debug)]
pub(super) struct Part {
    merge: Merge,
    /// Files of outputs so far.
    pub(super) created: Vec<PathBuf>,
    /// Bytes read and written that were charged for.
    pub(super) charged: u64,
    /// What it did, once it is done.
    pub(super) merged: Option<Merged>,
}

impl Part {
    pub(super) const fn new(merge: Merge) -> Self {
        Self { merge, created: Vec::new(), charged: 0, merged: None }
    }

    /// Bytes of files read and written so far and not charged for yet, of a job with these inputs; from now on they
    /// are.
    pub(super) fn charge(&mut self, inputs: &[Arc<Table>]) -> u64 {
        let sum = |of: fn(&TableMeta) -> u64| inputs.iter().map(|t| of(t.meta())).sum::<u64>();
        let (bytes, entries) = (sum(|m| m.len), sum(|m| m.entries));
        let (entries_read, written) = self.merge.progress();
        let read = u128::from(bytes) * u128::from(entries_read) / u128::from(entries.max(1));
        let sofar = u64::try_from(read).unwrap_or(u64::MAX).saturating_add(written);
        // The size of an output is an estimate, which may fall.
        let due = sofar.saturating_sub(self.charged);
        self.charged += due;
        due
    }
}

impl Inner {
    /// Goes on with a part for at least `budget` bytes of entries. Returns whether it is done.
    pub(super) fn step_part(&self, part: &mut Part, budget: u64) -> Result<bool> {
        let created = &mut part.created;
        part.merged = part.merge.step(budget, &mut || self.create_output(created))?;
        Ok(part.merged.is_some())
    }

    /// Merges the parts of a job that has several, each in a thread of its own, to their ends. A part whose thread
    /// cannot be had is left as it is. Returns how long they waited to be paid for, together.
    ///
    /// # Errors
    /// That of a part; the others give up.
    pub(super) fn merge_side_by_side(
        &self,
        parts: &mut [Part],
        inputs: &[Arc<Table>],
    ) -> Result<Duration> {
        let Some((first, others)) =
            parts.split_first_mut().filter(|(_, others)| !others.is_empty())
        else {
            return Ok(Duration::ZERO);
        };
        let failed = AtomicBool::new(false);
        let failed = &failed;
        let merge = move |part: &mut Part| -> Result<Duration> {
            let mut throttled = Duration::ZERO;
            let mut go_on = || {
                self.state.lock().check_writable()?;
                if failed.load(Ordering::Relaxed) || self.step_part(part, STEP_BYTES)? {
                    return Ok(false);
                }
                throttled += self.throttle_compaction(part.charge(inputs));
                Ok(true)
            };
            let merged = loop {
                match go_on() {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(e) => break Err(e),
                }
            };
            failed.fetch_or(merged.is_err(), Ordering::Relaxed);
            merged.map(|()| throttled)
        };
        let results: Vec<Result<Duration>> = std::thread::scope(|scope| {
            let named = || Builder::new().name("lsm-part".to_owned());
            let spawned: Vec<_> = others
                .iter_mut()
                .filter_map(|part| named().spawn_scoped(scope, move || merge(part)).ok())
                .collect();
            let own = merge(first);
            let others = spawned.into_iter().map(|part| {
                // A panic goes on in the thread that waits for it.
                part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            std::iter::once(own).chain(others).collect()
        });
        results.into_iter().sum()
    }
}

/// The user keys that all parts of a job but the last end with: each part has about the same number of entries, as
/// far as the ends of index partitions tell.
pub(super) fn part_ends(inputs: &[Arc<Table>], parts: usize) -> Vec<Vec<u8>> {
    let mut pieces: Vec<(&[u8], u64)> = inputs
        .iter()
        .flat_map(|table| table.top().iter().map(|top| (top.last_key.as_slice(), top.entries)))
        .collect();
    pieces.sort_unstable();
    let all: u64 = pieces.iter().map(|(_, entries)| entries).sum();
    let share = (all / parts.max(1) as u64).max(1);
    let largest = pieces.last().map(|(key, _)| *key);
    let (mut ends, mut passed) = (Vec::<Vec<u8>>::new(), 0);
    for (key, entries) in pieces {
        passed += entries;
        // What is left after the last key is nothing.
        let is_end = passed >= share * (ends.len() as u64 + 1) && Some(key) != largest;
        if is_end && ends.len() + 1 < parts && ends.last().is_none_or(|last| last.as_slice() < key)
        {
            ends.push(key.to_vec());
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;
    use std::path::Path;

    use super::*;
    use crate::compaction::manual::KeyRange;
    use crate::sstable::reader::tests::sample;
    use crate::types::FileNumber;
    use crate::vfs::{Fault, FaultKind, FaultWhen, MemVfs, OpSet};
    use crate::{
        Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, SequenceNumber, Store,
    };

    const DATA: PartitionId = PartitionId(0);
    const KEYS: u64 = 2000;
    const ALL: KeyRange<'_> = KeyRange { smallest: None, largest: None };

    #[test]
    fn parts_end_at_rising_keys_with_about_as_many_entries_each() {
        let keys: Vec<Vec<u8>> = (0..30_000_u32).map(|n| format!("{n:06}").into_bytes()).collect();
        // One table with every second key, one with the others.
        let of = |rest: usize| -> Vec<&[u8]> {
            keys.iter().skip(rest).step_by(2).map(Vec::as_slice).collect()
        };
        let inputs = [sample(FileNumber(1), 0, &of(0)), sample(FileNumber(2), 0, &of(1))];
        assert_eq!(part_ends(&inputs, 1), Vec::<Vec<u8>>::new(), "one part has no inner end");
        for parts in 2..=5 {
            let ends = part_ends(&inputs, parts);
            assert_eq!(ends.len(), parts - 1);
            let mut from = 0;
            for end in ends.iter().chain(keys.last()) {
                let to = keys.iter().position(|key| key == end).expect("a key") + 1;
                let share = keys.len() / parts;
                assert!(from < to, "ends rise: {ends:?}");
                assert!((to - from).abs_diff(share) < share / 4, "{from}..{to} of {parts}");
                from = to;
            }
        }
        let single = [sample(FileNumber(1), 0, &[b"a"]), sample(FileNumber(2), 0, &[b"a"])];
        assert_eq!(part_ends(&single, 4), Vec::<Vec<u8>>::new(), "nothing to divide");
    }

    fn options() -> Options {
        let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
        Options {
            table_bytes: 16 << 10,
            block_bytes: 512,
            index_partition_bytes: 256,
            memtable_bytes: 16 << 20,
            compaction_threads: 2,
            l0_trigger: 20,
            ..Options::new(5, partitions)
        }
    }

    fn key(n: u64) -> [u8; 8] {
        n.to_be_bytes()
    }

    /// Two runs of level 0, each with a version of every key.
    fn filled(vfs: &MemVfs) -> Store {
        let store =
            Store::open(Arc::new(vfs.clone()), Path::new("/db"), options(), Executor::Threads)
                .expect("opens");
        for index in 1..=2_u64 {
            let keys: Vec<_> = (0..KEYS).map(key).collect();
            let value = index.to_le_bytes().repeat(4);
            let puts: Vec<_> = keys.iter().map(|key| Op::Put { key, value: &value }).collect();
            let mut run =
                store.begin_run(Position { index, ..Position::default() }).expect("begins");
            run.apply(DATA, SequenceNumber(index), &puts).expect("applies");
            run.publish().expect("publishes");
            store.flush().expect("flushes");
        }
        store
    }

    fn check(store: &Store) {
        let now = store.view();
        let before = store.view_at(DATA, SequenceNumber(1)).expect("nothing is forgotten");
        for n in 0..KEYS {
            for (view, version) in [(&before, 1_u64), (&now, 2)] {
                let found = view.get(DATA, &key(n)).expect("reads").expect("there");
                assert_eq!(found.value, version.to_le_bytes().repeat(4), "key {n} at {version}");
            }
        }
        let (lower, upper) = (Bound::Unbounded, Bound::Unbounded);
        let mut walk = now.iter(DATA, lower, upper).expect("opens");
        walk.seek_to_first().expect("reads");
        for n in 0..KEYS {
            assert_eq!(walk.key(), key(n), "in order");
            walk.next().expect("reads");
        }
        assert!(!walk.valid(), "no key twice");
    }

    #[test]
    fn a_job_in_parts_leaves_what_it_would_in_one() {
        let vfs = MemVfs::new(1);
        let store = filled(&vfs);
        let inner = store.inner();
        let job = inner.begin_manual(0, ALL).expect("begins").expect("there is something to do");
        assert_eq!(job.parts(), 3, "the caller and two threads");
        inner.drive(job).expect("compacts");
        check(&store);
        store.compact_all().expect("has little left to do");
        store.verify().expect("every table is whole");
        check(&store);
    }

    #[test]
    fn a_part_that_fails_ends_the_job_without_a_trace() {
        let vfs = MemVfs::new(1);
        let store = filled(&vfs);
        let before = vfs.files();
        let number = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?.strip_suffix(".sst")?;
            u64::from_str_radix(name, 16).ok()
        };
        let last = before.iter().filter_map(number).max().expect("there are tables");
        // Not the first output, so that there is something to remove.
        let path_contains = format!("{:016x}.sst", last + 2);
        vfs.add_fault(Fault {
            ops: OpSet::WRITES,
            when: FaultWhen::Always,
            kind: FaultKind::Io,
            path_contains,
        });
        store.compact_all().expect_err("one table cannot be written");
        assert!(vfs.faults_fired() > 0, "it was tried");
        vfs.clear_faults();
        assert_eq!(vfs.files(), before, "outputs are gone, inputs are there");
        check(&store);
        store.compact_all().expect("nothing fails");
        check(&store);
    }
}
