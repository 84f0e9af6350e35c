//! Damaged tables: whatever is damaged and whoever finds it, reads of what it holds are errors, everything
//! else is right, compactions leave it alone, and it is known after the next opening.

use std::ops::Bound::{Excluded, Included, Unbounded};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lsm_store::events::{Event, EventSink, Listener};
use lsm_store::vfs::{CrashPolicy, MemVfs, Vfs};
use lsm_store::{
    Damage, Error, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, Result,
    SequenceNumber, Store,
};

const DATA: PartitionId = PartitionId(0);
const KEYS: u64 = 240;

fn options() -> Options {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    Options {
        block_bytes: 200,
        index_partition_bytes: 64,
        restart_interval: 3,
        table_bytes: 3000,
        l0_trigger: 3,
        cache_bytes: 0,
        ..Options::new(3, partitions)
    }
}

fn open_with(vfs: &MemVfs, options: Options, executor: Executor) -> Result<Store> {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    Store::open(vfs, Path::new("/db"), options, executor)
}

fn open(vfs: &MemVfs) -> Store {
    open_with(vfs, options(), Executor::Inline).expect("opens")
}

fn key(n: u64) -> Vec<u8> {
    format!("key/{:04}", n % KEYS).into_bytes()
}

fn write(store: &Store, n: u64) {
    let mut run = store.begin_run(Position { index: n, term: 1, extra: vec![] }).expect("begins");
    let (key, value) = (key(n), [n.to_le_bytes(); 4].concat());
    run.apply(DATA, SequenceNumber(n), &[Op::Put { key: &key, value: &value }]).expect("applies");
    run.publish().expect("publishes");
}

/// All keys in several tables of the last level, every fifth key once more in level 0.
fn sample() -> (MemVfs, u64) {
    sample_of(options())
}

fn sample_of(options: Options) -> (MemVfs, u64) {
    let vfs = MemVfs::new(1);
    let store = open_with(&vfs, options, Executor::Inline).expect("opens");
    for n in 0..KEYS {
        write(&store, n + 1);
    }
    store.compact_all().expect("compacts");
    let mut last = KEYS;
    for n in (0..KEYS).step_by(5) {
        last = 2 * KEYS + n;
        write(&store, last);
    }
    store.flush().expect("flushes");
    let levels = &store.metrics().partitions[0].levels;
    assert!(levels[6].tables >= 3 && levels[0].tables > 0, "{levels:?}");
    store.verify().expect("sound");
    store.close().expect("closes");
    (vfs, last)
}

/// The number of the newest write of a key.
fn newest(k: u64, last: u64) -> u64 {
    match k {
        _ if k.is_multiple_of(5) && 2 * KEYS + k <= last => 2 * KEYS + k,
        0 => KEYS,
        _ => k,
    }
}

/// All tables.
fn tables(vfs: &MemVfs) -> Vec<PathBuf> {
    vfs.files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "sst")).collect()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Harm {
    Data,
    Filter,
    Index,
    Top,
    Properties,
    Footer,
    Shortened,
    Missing,
    Swapped,
}

impl Harm {
    const ALL: [Self; 9] = [
        Self::Data,
        Self::Filter,
        Self::Index,
        Self::Top,
        Self::Properties,
        Self::Footer,
        Self::Shortened,
        Self::Missing,
        Self::Swapped,
    ];

    /// Whether opening the table meets it.
    fn is_met_by_open(self) -> bool {
        !matches!(self, Self::Data | Self::Filter | Self::Index)
    }

    fn apply(self, vfs: &MemVfs, table: &Path, other: &Path) {
        let content = vfs.content(table).expect("there");
        let len = content.len() as u64;
        let footer = &content[content.len() - 96..];
        let at = |from: usize| u64::from_le_bytes(footer[from..from + 8].try_into().expect("8"));
        let (top, properties, data_end) = (at(24), at(40), at(72));
        let flip = |offset| vfs.flip(table, offset, 0x10).expect("flips");
        match self {
            Self::Data => flip(data_end / 2),
            Self::Filter => flip(data_end + 20),
            Self::Index => flip(top - 40),
            Self::Top => flip(top + 1),
            Self::Properties => flip(properties + 2),
            Self::Footer => flip(len - 30),
            Self::Shortened => {
                vfs.replace(table, &content[..content.len() - 10]).expect("replaces");
            }
            Self::Missing => vfs.unlink(table).expect("unlinks"),
            Self::Swapped => {
                vfs.replace(table, &vfs.content(other).expect("there")).expect("replaces");
            }
        }
    }
}

fn covered(damage: &[Damage], key: &[u8]) -> bool {
    damage.iter().any(|d| d.smallest.as_slice() <= key && key <= d.largest.as_slice())
}

/// Reads everything by key; returns the keys whose read is an error, which must name `table`.
fn read_all(store: &Store, last: u64, table: &Path, context: &str) -> Vec<Vec<u8>> {
    let mut failed = Vec::new();
    for k in 0..KEYS {
        match store.get(DATA, &key(k)) {
            Ok(found) => {
                let sequence = found.map(|f| f.sequence.0);
                assert_eq!(sequence, Some(newest(k, last)), "{context}: key {k}");
            }
            Err(Error::Corruption { file, .. }) => {
                assert_eq!(file, table, "{context}: the error names the table");
                failed.push(key(k));
            }
            Err(e) => unreachable!("{context}: key {k}: {e}"),
        }
    }
    failed
}

/// Scans a range; an error must name the table.
fn scan(store: &Store, bounds: (std::ops::Bound<&[u8]>, std::ops::Bound<&[u8]>)) -> Result<usize> {
    let view = store.view();
    let mut iter = view.iter(DATA, bounds.0, bounds.1)?;
    let mut rows = 0;
    while iter.next()? {
        rows += 1;
    }
    let mut iter = view.iter(DATA, bounds.0, bounds.1)?;
    let mut backward = 0;
    while iter.prev()? {
        backward += 1;
    }
    assert_eq!(rows, backward, "both ways");
    Ok(rows)
}

/// Every kind of harm to every table, each on a disk of its own, with the table and a name for messages.
fn harmed(good: &MemVfs) -> impl Iterator<Item = (Harm, MemVfs, PathBuf, String)> {
    let all = tables(good);
    Harm::ALL.into_iter().flat_map(move |harm| {
        let tables = all.clone().into_iter().zip(all.clone().into_iter().cycle().skip(1));
        tables.map(move |(table, other)| {
            let vfs = good.fork();
            harm.apply(&vfs, &table, &other);
            let context = format!("{harm:?} of {}", table.display());
            (harm, vfs, table, context)
        })
    })
}

#[test]
fn every_kind_of_damage_costs_its_range_and_nothing_else() {
    let (good, last) = sample();
    for (harm, vfs, table, context) in harmed(&good) {
        if harm.is_met_by_open() {
            let strict = Options { refuse_damaged: true, ..options() };
            let refused = open_with(&vfs, strict, Executor::Inline).expect_err(&context);
            assert!(
                refused.to_string().contains(&*table.to_string_lossy()),
                "{context}: {refused}"
            );
        }
        let store = open(&vfs);
        if harm.is_met_by_open() {
            let damage = store.damage().expect("known");
            assert_eq!(damage.len(), 1, "{context}: met by opening");
            let read = store.view().iter(DATA, Included(&damage[0].smallest), Unbounded);
            let error = read.expect("opens").next().expect_err(&context).to_string();
            assert!(error.contains(&damage[0].detail), "{context}: why, not just that: {error}");
        }
        // By keys.
        let failed = read_all(&store, last, &table, &context);
        let mut damage = store.damage().expect("recorded");
        if !failed.is_empty() {
            assert!(!damage.is_empty(), "{context}: what reads met is known");
        }
        for key in &failed {
            assert!(covered(&damage, key), "{context}: {key:?} is in a damaged range");
        }
        // By scan.
        let scanned = scan(&store, (Unbounded, Unbounded));
        if harm == Harm::Filter {
            assert_eq!(scanned.expect(&context), 240, "{context}: a scan needs no filter");
        } else {
            let named = matches!(&scanned, Err(Error::Corruption { file, .. }) if *file == table);
            assert!(named, "{context}: {scanned:?}");
        }
        damage = store.damage().expect("recorded");
        assert!(damage.iter().all(|d| d.file == table), "{context}: {damage:?}");
        if harm == Harm::Data {
            let keys = (0..KEYS).filter(|k| covered(&damage, &key(*k))).count();
            assert!((1..30).contains(&keys), "{context}: a block and not a table: {keys} keys");
        }
        // Around it. A scan looks at the next key of every table, beyond its bounds; in level 0 that
        // is up to five keys on.
        let below = (0..KEYS).filter(|k| key(*k) < damage[0].smallest).count().saturating_sub(6);
        let above = (0..KEYS).filter(|k| key(*k) <= damage[0].largest).count() + 6;
        let bound = |k: usize| key(k.min(239) as u64);
        if below > 0 {
            let rows = scan(&store, (Unbounded, Excluded(&bound(below)))).expect(&context);
            assert_eq!(rows, below, "{context}: all rows below");
        }
        if above < 240 {
            let rows = scan(&store, (Included(&bound(above)), Unbounded)).expect(&context);
            assert_eq!(rows, 240 - above, "{context}: all rows above");
        }
        assert!(store.verify().is_err(), "{context}: verification sees it");
        assert_eq!(store.metrics().damaged_tables, 1, "{context}: counted");
        // Compactions leave it alone, and the store goes on.
        let failures = store.metrics().job_failures;
        for round in 4..8 {
            for n in (0..KEYS).step_by(5) {
                write(&store, round * KEYS + n);
            }
            store.flush().expect(&context);
        }
        let metrics = store.metrics();
        assert_eq!(metrics.job_failures, failures, "{context}: no job tries in vain");
        assert_eq!(metrics.poisoned, None, "{context}: goes on");
        let known = store.damage().expect("known");
        assert_eq!(known, damage, "{context}: still there");
        // Known after the next opening, without being met again.
        store.close().expect("closes");
        let store = open(&vfs);
        let ranges = |damage: &[Damage]| -> Vec<_> {
            let range = |d: &Damage| (d.smallest.clone(), d.largest.clone(), d.file.clone());
            damage.iter().map(range).collect()
        };
        let again = store.damage().expect("known");
        assert_eq!(ranges(&again), ranges(&damage), "{context}: after opening again");
        assert_eq!(store.metrics().damaged_tables, 1, "{context}: counted");
        store.flush().expect("flushes");
        assert_eq!(store.metrics().job_failures, 0, "{context}: left alone from the start");
    }
}

#[test]
fn a_missing_table_beside_an_unlisted_one_means_that_the_manifest_is_wrong() {
    let (good, _) = sample();
    let table = tables(&good).remove(0);
    let vfs = good.fork();
    let content = vfs.content(&table).expect("there");
    vfs.unlink(&table).expect("unlinks");
    let stranger = Path::new("/db/sst/0000000000000030.sst");
    vfs.create_new(stranger).expect("creates").write_all_at(&content, 0).expect("writes");
    let error = open_with(&vfs, options(), Executor::Inline).expect_err("refused");
    assert!(
        matches!(&error, Error::Corruption { file, detail, .. }
            if file.to_string_lossy().contains("MANIFEST") && detail.contains("old copy")),
        "{error}"
    );
    assert!(vfs.files().contains(&stranger.to_path_buf()), "nothing was removed");
}

#[test]
fn damage_that_is_gone_when_it_is_looked_at_again_is_forgotten() {
    let (vfs, last) = sample();
    let table = tables(&vfs).remove(1);
    let store = open(&vfs);
    vfs.flip(&table, 40, 1).expect("flips");
    assert!(!read_all(&store, last, &table, "flipped").is_empty(), "met");
    assert_eq!(store.metrics().damaged_tables, 1, "left alone at once");
    vfs.flip(&table, 40, 1).expect("flips back");
    assert_eq!(store.damage().expect("looked at"), [], "whole again");
    assert_eq!(store.metrics().damaged_tables, 0, "as before");
    assert!(read_all(&store, last, &table, "whole").is_empty(), "all is read");
    store.verify().expect("sound");
}

#[test]
fn a_crash_while_damage_is_recorded_leaves_it_recorded_or_to_be_met_again() {
    let (good, last) = sample();
    let table = tables(&good).remove(1);
    good.flip(&table, 40, 1).expect("flips");
    let store = open(&good);
    assert!(!read_all(&store, last, &table, "flipped").is_empty(), "met");
    good.record();
    assert_eq!(store.damage().expect("recorded").len(), 1, "one block");
    let worlds = good.take_recorded();
    assert!(worlds.len() >= 3, "the edit, its sync, the note: {}", worlds.len());
    for (at, world) in worlds.iter().enumerate() {
        for (seed, policy) in (0..).zip(CrashPolicy::ALL) {
            let world = world.fork();
            world.crash(policy, seed);
            let context = format!("crash before call {at}, {policy:?}");
            let store = open(&world);
            let known = store.damage().expect("known").len();
            assert!(known <= 1, "{context}: {known}");
            assert!(!read_all(&store, last, &table, &context).is_empty(), "{context}: met");
            assert_eq!(store.damage().expect("known").len(), 1, "{context}: recorded");
        }
    }
}

#[test]
fn scrubbing_finds_a_flipped_byte_anywhere_and_nothing_in_a_sound_store() {
    let (good, last) = sample();
    let store = open(&good);
    let bytes: u64 = store.metrics().partitions[0].levels.iter().map(|l| l.bytes).sum();
    let mut read = 0;
    loop {
        let step = store.scrub_step(1000).expect("reads");
        read += step.bytes;
        if step.pass_ended {
            break;
        }
    }
    assert_eq!(read, bytes, "everything once");
    assert_eq!(store.damage().expect("none"), [], "nothing found");
    let metrics = store.metrics();
    assert_eq!((metrics.scrub_passes, metrics.scrub_bytes), (1, bytes), "counted");
    for table in tables(&good) {
        let len = good.content(&table).expect("there").len() as u64;
        for offset in (0..len).step_by(97) {
            let vfs = good.fork();
            let store = open(&vfs);
            vfs.flip(&table, offset, 1 << (offset % 8)).expect("flips");
            let context = format!("{} byte {offset}", table.display());
            assert!(store.scrub_step(u64::MAX).expect("reads").pass_ended, "{context}");
            let damage = store.damage().expect("recorded");
            assert_eq!(damage.len(), 1, "{context}: {damage:?}");
            assert_eq!(damage[0].file, table, "{context}");
            let failed = read_all(&store, last, &table, &context);
            assert!(failed.iter().all(|key| covered(&damage, key)), "{context}");
            drop(store);
            assert_eq!(open(&vfs).damage().expect("known").len(), 1, "{context}: kept");
        }
    }
}

#[derive(Debug)]
struct Tell(std::sync::mpsc::Sender<Event>);

impl Listener for Tell {
    fn on_event(&self, event: &Event) {
        let _gone = self.0.send(event.clone()).is_err();
    }
}

#[test]
fn the_background_finds_damage_by_itself_and_tells() {
    let (vfs, _) = sample();
    let table = tables(&vfs).remove(1);
    vfs.flip(&table, 40, 1).expect("flips");
    let (tell, told) = std::sync::mpsc::channel();
    let options = Options {
        events: EventSink::new(Arc::new(Tell(tell))),
        scrub_bytes_per_second: 1 << 30,
        ..options()
    };
    let store = open_with(&vfs, options, Executor::Threads).expect("opens");
    let found = loop {
        let event = told.recv_timeout(Duration::from_secs(60)).expect("found in time");
        if let Event::Damaged { file, .. } = event {
            break file;
        }
    };
    assert_eq!(found, table, "the damaged one");
    assert_eq!(store.damage().expect("recorded").len(), 1, "recorded");
    store.close().expect("closes");
}

#[test]
fn the_quick_check_sees_what_is_missing_shortened_or_swapped_while_the_store_is_open() {
    let (good, _) = sample();
    let all = tables(&good);
    for harm in [Harm::Missing, Harm::Shortened, Harm::Swapped, Harm::Footer] {
        let vfs = good.fork();
        let store = open(&vfs);
        store.verify_quick().expect("sound");
        harm.apply(&vfs, &all[1], &all[2]);
        let error = store.verify_quick().expect_err("harmed");
        assert!(error.to_string().contains(&*all[1].to_string_lossy()), "{harm:?}: {error}");
    }
    // The same entries in a table of another store: only the uid differs.
    let (twin, _) = sample_of(Options { uid_seed: 99, ..options() });
    let vfs = good.fork();
    let store = open(&vfs);
    let (own, other) = [&vfs, &twin].map(|vfs| vfs.content(&all[1]).expect("there")).into();
    assert!(own.len() == other.len() && own != other, "as long as the other");
    vfs.replace(&all[1], &other).expect("replaces");
    let error = store.verify_quick().expect_err("another table");
    assert!(error.to_string().contains(&*all[1].to_string_lossy()), "{error}");
}

#[test]
fn what_can_be_read_is_salvaged_and_what_is_lost_is_told_exactly() {
    let (good, last) = sample();
    for (harm, vfs, _table, context) in harmed(&good) {
        let known = {
            let world = vfs.fork();
            let store = open(&world);
            store.scrub_step(u64::MAX).expect("reads");
            store.damage().expect("known")
        };
        let shared: Arc<dyn Vfs> = Arc::new(vfs.clone());
        let before = vfs.files();
        let to = Path::new("/saved");
        let salvaged =
            Store::salvage(Arc::clone(&shared), Path::new("/db"), &options(), to).expect(&context);
        let kept: Vec<_> = vfs.files().into_iter().filter(|p| !p.starts_with(to)).collect();
        assert_eq!(kept, before, "{context}: the damaged store is not touched");
        let store = Store::open(shared, to, options(), Executor::Inline).expect(&context);
        store.verify().expect(&context);
        if harm == Harm::Filter {
            // A filter is made anew from the keys.
            assert_eq!(salvaged.lost, [], "{context}: no entry is lost");
            assert_eq!(salvaged.tables_in_part, 1, "{context}");
        } else {
            assert!(!salvaged.lost.is_empty(), "{context}: something is lost");
            let ranges = |damage: &[Damage]| -> Vec<_> {
                damage.iter().map(|d| (d.smallest.clone(), d.largest.clone())).collect()
            };
            assert_eq!(ranges(&salvaged.lost), ranges(&known), "{context}: exactly this");
        }
        for k in 0..KEYS {
            let found = store.get(DATA, &key(k)).expect(&context).map(|f| f.sequence.0);
            let right = found == Some(newest(k, last));
            assert!(right || covered(&salvaged.lost, &key(k)), "{context}: key {k}: {found:?}");
        }
    }
}
