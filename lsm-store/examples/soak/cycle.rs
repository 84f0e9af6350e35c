//! One cycle of the soak: a process with a store under load, its end by `SIGKILL`, and the examination of
//! what it left. Shared by the example and by the test that runs a few cycles.
//!
//! Each writer has keys of its own, and its batch number `n` is a pure function of the writer and `n`; so what must be there follows from how many batches are. Beside the store lies a file of
//! claims, per writer: `issued`, written before a batch is handed to the store, and `acknowledged`,
//! written after. Both are plain writes: the end of a process takes none of them, nor any batch that
//! was acknowledged, synced or buffered. After the kill there must be, of each writer, all batches up
//! to some number between the two, and nothing else.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lsm_store::checksum::hash;
use lsm_store::rng::SplitMix64;
use lsm_store::vfs::RealVfs;
use lsm_store::{
    Durability, Executor, Keep, Mode, Options, PartitionId, PartitionOptions, SequenceNumber,
    Store, WriteBatch,
};

const DATA: PartitionId = PartitionId(0);
/// How many batches of each writer there are.
const COUNTS: PartitionId = PartitionId(1);
const WRITERS: u64 = 2;
const READERS: u64 = 2;
/// Keys of each writer.
const KEYS: u64 = 600;
/// Sequence numbers that stay readable.
const HISTORY: u64 = 2000;

// Bounds of what the process may take: generous, but a leak of one thing per batch passes them in minutes.
const RSS_KIB_MAX: u64 = 256 << 10;
const FILES_MAX: u64 = 400;
const THREADS_MAX: u64 = 32;
/// Log segments, memtables and outputs of jobs, whatever the data.
const DISK_BYTES_FIXED: u64 = 16 << 20;
/// What is live and what history keeps may be on disk so many times.
const SPACE_AMPLIFICATION_MAX: u64 = 4;
/// A batch has fewer operations, and a value fewer bytes, in all.
const BATCH_BYTES_MAX: u64 = 6 * 400;

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

fn options() -> Options {
    let partition = |name: &str, keep| PartitionOptions { name: name.to_owned(), keep };
    let partitions = vec![partition("data", Keep::All), partition("counts", Keep::NewestOnly)];
    Options {
        mode: Mode::Wal,
        wal_segment_bytes: 256 << 10,
        memtable_bytes: 128 << 10,
        block_bytes: 1 << 10,
        table_bytes: 64 << 10,
        base_level_bytes: 256 << 10,
        level_ratio: 4,
        cache_bytes: 1 << 20,
        space_reserve_bytes: Some(0),
        ..Options::new(0x50AC, partitions)
    }
}

fn open(dir: &Path) -> Store {
    let opened = Store::open(Arc::new(RealVfs), &dir.join("db"), options(), Executor::Threads);
    opened.unwrap_or_else(|error| unreachable!("the store does not open: {error}"))
}

fn must<T>(what: &str, result: Result<T, impl std::fmt::Display>) -> T {
    result.unwrap_or_else(|error| unreachable!("cannot {what}: {error}"))
}

// ---------------------------------------------------------------- what is written

/// Says what it belongs to, so that a reader can check it alone.
fn value(key: &[u8], writer: u64, n: u64, len: u64) -> Vec<u8> {
    let mut value = n.to_le_bytes().to_vec();
    value.extend_from_slice(&hash(&[key, &writer.to_le_bytes(), &value].concat()).to_le_bytes());
    value.extend((0..len).map(|i| (n + i).to_le_bytes()[0]));
    value
}

/// The batch number of a value; everything else in it must fit.
fn check_value(key: &[u8], found: &[u8]) -> u64 {
    let (writer, n) = (key.first().copied().unwrap_or(0), found.first_chunk::<8>());
    let n =
        u64::from_le_bytes(*n.unwrap_or_else(|| unreachable!("a value of {} bytes", found.len())));
    let whole = value(key, u64::from(writer), n, (found.len() as u64).saturating_sub(16));
    assert_eq!(found, whole, "the value of {key:?} is not what batch {n} wrote");
    n
}

/// Batch `n` of a writer: keys, and values or none for a delete.
fn batch(writer: u64, n: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut rng = SplitMix64::new((writer << 56) ^ n.wrapping_mul(0x9E37));
    (0..=rng.below(5))
        .map(|_| {
            let k = rng.below(KEYS);
            let key = [&writer.to_le_bytes()[..1], &k.to_be_bytes()].concat();
            let len = rng.below(300);
            let value = (!rng.chance(1, 6)).then(|| value(&key, writer, n, len));
            (key, value)
        })
        .collect()
}

fn count_key(writer: u64) -> [u8; 8] {
    writer.to_le_bytes()
}

/// How many batches of a writer are in the store.
fn count(store: &Store, writer: u64) -> u64 {
    let found = must("read a count", store.get(COUNTS, &count_key(writer)));
    found.map_or(0, |found| {
        found.value.first_chunk::<8>().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
    })
}

// ---------------------------------------------------------------- claims

/// See the module.
struct Claims(File);

#[derive(Clone, Copy)]
enum Claim {
    Issued,
    Acknowledged,
}

impl Claims {
    fn open(dir: &Path) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        Self(must("open the claims", options.open(dir.join("claims"))))
    }

    fn offset(writer: u64, claim: Claim) -> u64 {
        writer * 16 + claim as u64 * 8
    }

    fn set(&self, writer: u64, claim: Claim, n: u64) {
        let at = Self::offset(writer, claim);
        must("write a claim", self.0.write_all_at(&n.to_le_bytes(), at));
    }

    fn get(&self, writer: u64, claim: Claim) -> u64 {
        let mut bytes = [0; 8];
        // A process that was killed before its first batch has claimed nothing.
        match self.0.read_exact_at(&mut bytes, Self::offset(writer, claim)) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_) => 0,
        }
    }
}

// ---------------------------------------------------------------- the process that is killed

/// Loads the store in `dir` until it is killed. Returns only after something went wrong.
pub(crate) fn child(dir: &Path, seed: u64) {
    let (store, claims) = (open(dir), Claims::open(dir));
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (store, claims) = (&store, &claims);
            scope.spawn(move || guarded(|| write(store, claims, writer, seed)));
        }
        for reader in 0..READERS {
            let store = &store;
            scope.spawn(move || guarded(|| read(store, seed ^ reader)));
        }
        scope.spawn(|| guarded(|| maintain(&store, dir, seed)));
    });
}

/// A thread that fails ends the process: the others would go on for ever.
#[expect(clippy::exit, reason = "the process that watches this one is to see it")]
fn guarded(work: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
        std::process::exit(1);
    }
}

fn write(store: &Store, claims: &Claims, writer: u64, seed: u64) {
    let mut rng = SplitMix64::new(seed ^ writer);
    for n in count(store, writer) + 1.. {
        claims.set(writer, Claim::Issued, n);
        let mut write = WriteBatch::new();
        for (key, value) in batch(writer, n) {
            match value {
                Some(value) => must("put", write.put(DATA, &key, &value)),
                None => must("delete", write.delete(DATA, &key)),
            }
        }
        must("count", write.put(COUNTS, &count_key(writer), &n.to_le_bytes()));
        let durability = if rng.chance(1, 8) { Durability::Sync } else { Durability::Buffered };
        must("write", store.write(write, durability));
        claims.set(writer, Claim::Acknowledged, n);
    }
}

fn read(store: &Store, seed: u64) {
    let mut rng = SplitMix64::new(seed);
    let mut seen: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    loop {
        for _ in 0..200 {
            let (writer, k) = (rng.below(WRITERS), rng.below(KEYS));
            let key = [&writer.to_le_bytes()[..1], &k.to_be_bytes()].concat();
            if let Some(found) = must("read", store.get(DATA, &key)) {
                let n = check_value(&key, &found.value);
                let last = seen.insert(key, n).unwrap_or(0);
                assert!(n >= last, "a newest read went back from batch {last} to {n}");
            }
        }
        let view = store.view();
        let mut iter = must("iterate", view.iter(DATA, Unbounded, Unbounded));
        let backward = rng.chance(1, 2);
        while must("move", if backward { iter.prev() } else { iter.next() }) {
            check_value(iter.key(), iter.value());
        }
    }
}

fn maintain(store: &Store, dir: &Path, seed: u64) {
    let mut rng = SplitMix64::new(seed ^ 0xF1);
    loop {
        let _woken = crossbeam_channel::after(Duration::from_millis(rng.below(30))).recv().is_ok();
        let last = store.last_sequence(DATA).0;
        match rng.below(11) {
            0..=3 => {
                let floor = SequenceNumber(last.saturating_sub(HISTORY));
                must("raise the floor", store.set_floor(DATA, floor));
            }
            4 | 5 => must("begin a flush", store.start_flush()),
            6 => {
                let floor = store.floor(DATA).0;
                let at = SequenceNumber(floor + rng.below(last - floor + 1));
                // The floor may rise in between.
                if let Ok(view) = store.view_at(DATA, at) {
                    let mut iter = must("iterate", view.iter(DATA, Unbounded, Unbounded));
                    while must("move", iter.next()) {
                        check_value(iter.key(), iter.value());
                        assert!(iter.sequence() <= at, "a view at {at} shows {}", iter.sequence());
                    }
                }
            }
            7 => drop(must("verify", store.verify())),
            8 => {
                let mut bound =
                    || [&[u8::from(rng.chance(1, 2))][..], &rng.below(KEYS).to_be_bytes()].concat();
                let (lower, upper) = (bound(), bound());
                let (lower, upper) = (Included(&lower[..]), Excluded(&upper[..]));
                must("compact", store.compact(DATA, lower, upper));
            }
            9 => drop(must("scrub", store.scrub_step(64 << 10))),
            _ => copy(store, &dir.join("copy")),
        }
    }
}

/// A checkpoint opens as a store of its own, while the first one goes on: their files have two names.
fn copy(store: &Store, dir: &Path) {
    if dir.exists() {
        must("remove a copy", std::fs::remove_dir_all(dir));
    }
    drop(must("copy", store.checkpoint(dir)));
    let copy = Store::open(Arc::new(RealVfs), dir, options(), Executor::Inline);
    let copy = must("open a copy", copy);
    let mut iter = must("iterate", copy.view().iter(DATA, Unbounded, Unbounded));
    while must("move", iter.next()) {
        check_value(iter.key(), iter.value());
    }
    drop(iter);
    must("verify a copy", copy.verify());
    must("close a copy", copy.close());
}

// ---------------------------------------------------------------- the process that watches

/// What was seen of a process while it ran, at most.
#[derive(Clone, Copy, Default)]
struct Usage {
    rss_kib: u64,
    files: u64,
    threads: u64,
}

impl Usage {
    /// Reads what the kernel says of a process; nothing on systems without `/proc`.
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Self { rss_kib: field("VmRSS:"), files: files as u64, threads: field("Threads:") }
    }

    fn and(self, other: Self) -> Self {
        Self {
            rss_kib: self.rss_kib.max(other.rss_kib),
            files: self.files.max(other.files),
            threads: self.threads.max(other.threads),
        }
    }

    fn check(self) {
        let Self { rss_kib, files, threads } = self;
        assert!(rss_kib <= RSS_KIB_MAX, "{rss_kib} KiB of memory, more than {RSS_KIB_MAX}");
        assert!(files <= FILES_MAX, "{files} open files, more than {FILES_MAX}");
        assert!(threads <= THREADS_MAX, "{threads} threads, more than {THREADS_MAX}");
    }
}

/// Starts the process that runs [`child`] with a directory and a seed.
pub(crate) type Start<'a> = &'a dyn Fn(&Path, u64) -> Command;

/// A directory that goes through cycles.
pub(crate) struct Soak {
    dir: PathBuf,
    rng: SplitMix64,
    cycles: u64,
    began: Instant,
    /// What each writer has left, after so many batches.
    models: Vec<(u64, Content)>,
    most: Usage,
}

impl Soak {
    pub(crate) fn new(dir: PathBuf, seed: u64) -> Self {
        Self {
            dir,
            rng: SplitMix64::new(seed),
            cycles: 0,
            began: Instant::now(),
            models: (0..WRITERS).map(|_| (0, Content::new())).collect(),
            most: Usage::default(),
        }
    }

    /// Load, kill, examination. Returns a line about it.
    ///
    /// # Panics
    /// If anything is wrong.
    pub(crate) fn cycle(&mut self, start: Start<'_>) -> String {
        self.cycles += 1;
        let child = must("start a process", start(&self.dir, self.rng.next_u64()).spawn());
        let life = Duration::from_millis(20 + self.rng.below(900));
        let usage = watch(child, life);
        usage.check();
        self.most = self.most.and(usage);
        let (batches, disk) = self.examine();
        format!(
            "cycle {:4}: killed after {:3} ms, {batches} batches, {} KiB on disk, {} KiB of memory, {} files",
            self.cycles,
            life.as_millis(),
            disk >> 10,
            usage.rss_kib,
            usage.files
        )
    }

    pub(crate) fn summary(&self) -> String {
        let batches: u64 = self.models.iter().map(|(n, _)| n).sum();
        format!(
            "{} kills in {} s, {batches} batches, nothing lost; at most {} KiB of memory, {} files, {} threads",
            self.cycles,
            self.began.elapsed().as_secs(),
            self.most.rss_kib,
            self.most.files,
            self.most.threads
        )
    }

    /// How many batches there are by now.
    pub(crate) fn batches(&self) -> u64 {
        self.models.iter().map(|(n, _)| n).sum()
    }

    /// Opens what was left, and compares it with the claims. Returns batches and bytes on disk.
    fn examine(&mut self) -> (u64, u64) {
        let (store, claims) = (open(&self.dir), Claims::open(&self.dir));
        let mut expected = Content::new();
        for (writer, (done, content)) in (0..).zip(&mut self.models) {
            let found = count(&store, writer);
            let acknowledged = claims.get(writer, Claim::Acknowledged);
            let issued = claims.get(writer, Claim::Issued).max(acknowledged);
            assert!(
                (acknowledged..=issued).contains(&found),
                "writer {writer}: {found} batches are there, {acknowledged} were acknowledged, {issued} issued"
            );
            for n in *done + 1..=found {
                for (key, value) in batch(writer, n) {
                    match value {
                        Some(value) => drop(content.insert(key, value)),
                        None => drop(content.remove(&key)),
                    }
                }
            }
            *done = found;
            expected.extend(content.clone());
        }
        let view = store.view();
        let mut iter = must("iterate", view.iter(DATA, Unbounded, Unbounded));
        let mut rows = Content::new();
        while must("move", iter.next()) {
            rows.insert(iter.key().to_vec(), iter.value().to_vec());
        }
        for (key, value) in &expected {
            assert_eq!(rows.get(key), Some(value), "key {key:?}");
        }
        assert_eq!(rows.len(), expected.len(), "nothing else is there");
        drop(iter);
        drop(view);
        must("verify", store.verify());
        must("close", store.close());
        let disk = bytes_below(&self.dir.join("db"));
        let live: usize = expected.iter().map(|(key, value)| key.len() + value.len()).sum();
        let kept = live as u64 + 2 * HISTORY * BATCH_BYTES_MAX / 2;
        let most = DISK_BYTES_FIXED + SPACE_AMPLIFICATION_MAX * kept;
        assert!(disk <= most, "{disk} bytes on disk for {live} live ones, more than {most}");
        (self.batches(), disk)
    }
}

/// Lets a process live for so long, and kills it.
fn watch(mut child: Child, life: Duration) -> Usage {
    let tick = crossbeam_channel::tick(Duration::from_millis(20));
    let end = Instant::now() + life;
    let mut usage = Usage::default();
    while Instant::now() < end {
        let early = must("watch a process", child.try_wait());
        assert!(early.is_none(), "the process ended by itself: {early:?}; see above");
        usage = usage.and(Usage::of(child.id()));
        let _ticked = tick.recv().is_ok();
    }
    must("kill a process", child.kill());
    let _status = must("wait for a process", child.wait());
    usage
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = must("list a directory", std::fs::read_dir(dir));
    entries
        .map(|entry| must("list a directory", entry))
        .map(|entry| {
            let meta = must("measure a file", entry.metadata());
            if meta.is_dir() { bytes_below(&entry.path()) } else { meta.len() }
        })
        .sum()
}
