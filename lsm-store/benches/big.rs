//! A store ten times larger than the memory it may use: does it load, compact and stay within its limits, how near
//! do random reads come to the disk, and how long does the longest write take?
//!
//! `cargo bench -p lsm-store --bench big [-- --rows N --value-bytes N --cache-mib N --limit-mib N --dir DIR]`
//!
//! * The work is done by a process of its own whose address space is limited (`RLIMIT_AS`, what `ulimit -v` sets): an
//!   allocation above it fails and ends the process. Stacks and reserved but unused memory count as well, so the limit
//!   is stricter than one on resident memory; the peak of that is printed too.
//! * Loading: every key once, in random order, buffered. Beside it, a thread appends 4 KiB to a file in the same
//!   directory and syncs it, fifty times a second at most: its slowest sync is what the disk itself does to whoever
//!   waits for it meanwhile. The longest write may be 100 ms longer than that.
//! * Reading: random keys that are there, verified, against plain reads of 4 KiB at random aligned offsets of the same
//!   tables, the least that a read of a block can cost. They take turns, and before each turn the tables are dropped
//!   from the page cache, so both wait for the disk; the store has its own cache of the size given, and no more.

#![expect(clippy::print_stdout, reason = "prints its results")]

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lsm_store::bench::{
    Durability, Engine as _, LsmStore, Outcome, Reader as _, Settings, Values, key, pause,
    peak_memory, rest,
};
use lsm_store::rng::SplitMix64;
use rustix::fs::{Advice, fadvise};
use rustix::process::{Resource, Rlimit, setrlimit};

const MIB: u64 = 1 << 20;
/// What is read at once by the plain reads; also the size of a block.
const READ_BYTES: usize = 4096;
/// Reads of a turn, and turns.
const TURN_READS: u64 = 1000;
const TURNS: u64 = 12;
/// The disk is asked to sync this often beside the writes.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// Goals: reads against plain reads, and how much longer than a sync a write may take.
const READ_SHARE_MIN: f64 = 0.7;
const PUT_OVER_SYNC_MAX: Duration = Duration::from_millis(100);

fn main() -> Outcome<()> {
    let asked = Asked::from_arguments(std::env::args().skip(1))?;
    if asked.child {
        return work(&asked);
    }
    let parent = asked.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("big-").tempdir_in(parent)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--child").args(asked.to_arguments()).arg("--dir").arg(dir.path());
    // One heap for all threads: glibc reserves 64 MiB of address space for each further one.
    command.env("MALLOC_ARENA_MAX", "1");
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("the limited process: {status}").into()) }
}

/// Everything, in the limited process.
fn work(asked: &Asked) -> Outcome<()> {
    let limit = asked.limit_mib * MIB;
    setrlimit(Resource::As, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    let dir = asked.dir.clone().ok_or("a child is told its directory")?;
    let values = Values::new(asked.value_bytes, 1);
    let settings = Settings {
        cache_bytes: usize::try_from(asked.cache_mib * MIB)?,
        memtable_bytes: usize::try_from(asked.memtable_mib * MIB)?,
        ..Settings::default()
    };
    let store_dir = dir.join("store");
    fs::create_dir_all(&store_dir)?;
    let mut store = LsmStore::open(&store_dir, &settings)?;

    let (longest_put, worst_sync, took) = load(&store, &values, asked.rows, &dir)?;
    println!(
        "loaded     {} rows of {} bytes in {:.1} s, {:.0} rows/s",
        asked.rows,
        asked.value_bytes,
        took.as_secs_f64(),
        asked.rows as f64 / took.as_secs_f64()
    );
    let spare = longest_put.saturating_sub(worst_sync);
    println!(
        "writes     longest put {:.1} ms, the disk's worst sync {:.1} ms: {}",
        longest_put.as_secs_f64() * 1e3,
        worst_sync.as_secs_f64() * 1e3,
        verdict(spare <= PUT_OVER_SYNC_MAX)
    );
    let started = Instant::now();
    store.compact()?;
    rest();
    let took = started.elapsed();
    // With its end, files of replaced tables are gone.
    store.close()?;
    let store = LsmStore::open(&store_dir, &settings)?;
    let tables = tables(&store_dir)?;
    let bytes: u64 = tables.iter().map(|(_, len)| len).sum();
    println!(
        "compacted  in {:.1} s: {} tables, {} MiB, {:.1} times the limit of {} MiB and {:.1} times the cache",
        took.as_secs_f64(),
        tables.len(),
        bytes / MIB,
        bytes as f64 / limit as f64,
        asked.limit_mib,
        bytes as f64 / (asked.cache_mib * MIB) as f64
    );
    let (gets, preads) = read_in_turns(&store, &values, asked.rows, &tables)?;
    println!(
        "reads      {gets:.0} gets/s, {preads:.0} plain reads/s: {:.0} % of the disk: {}",
        gets / preads * 100.0,
        verdict(gets / preads >= READ_SHARE_MIN)
    );
    let cache = store.store().metrics().cache;
    println!(
        "           {} blocks, {} indexes and {} filters read for {} gets; tables hold {} KiB of indexes and filters",
        cache.data.misses,
        cache.index.misses,
        cache.filter.misses,
        (TURNS + 1) * TURN_READS,
        cache.held_bytes / 1024
    );
    store.close()?;
    println!(
        "memory     peak resident {} MiB of {} MiB allowed: {}",
        peak_memory() / MIB,
        asked.limit_mib,
        verdict(peak_memory() <= limit)
    );
    Ok(())
}

fn verdict(good: bool) -> &'static str {
    if good { "reached" } else { "NOT reached" }
}

/// Writes every key once. Returns the longest write, the disk's worst sync beside it, and the time of all.
fn load(
    store: &LsmStore,
    values: &Values,
    rows: u64,
    dir: &Path,
) -> Outcome<(Duration, Duration, Duration)> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let probe = scope.spawn(|| worst_sync(dir, &ended));
        let mut rng = SplitMix64::new(1);
        let mut value = Vec::with_capacity(values.value_bytes());
        let mut longest = Duration::ZERO;
        let started = Instant::now();
        let mut write = || -> Outcome<()> {
            for place in 0..rows {
                let number = scattered(place, rows);
                value.clear();
                values.append(number, &mut rng, &mut value);
                let before = Instant::now();
                store.put(&key(number), &value, Durability::Buffered)?;
                longest = longest.max(before.elapsed());
            }
            Ok(())
        };
        let written = write();
        let took = started.elapsed();
        ended.store(true, Ordering::Relaxed);
        let worst = probe.join().unwrap_or_else(|_| Err("the probe panicked".into()))?;
        written.map(|()| (longest, worst, took))
    })
}

/// The `place`-th number below `rows` in an order that visits each once and looks random to the store, without the
/// memory that a shuffled list takes: a Feistel network on the next power of four, walked until it falls below `rows`.
fn scattered(place: u64, rows: u64) -> u64 {
    let half_bits = (64 - rows.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1_u64 << half_bits) - 1;
    let mut number = place;
    loop {
        let (mut left, mut right) = (number >> half_bits, number & mask);
        for round in 0..4 {
            let mixed = SplitMix64::new(right ^ (round << 40)).next_u64() & mask;
            (left, right) = (right, left ^ mixed);
        }
        number = left << half_bits | right;
        if number < rows {
            return number;
        }
    }
}

/// Appends and syncs until told to end; the slowest sync.
fn worst_sync(dir: &Path, ended: &AtomicBool) -> Outcome<Duration> {
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join("probe"))?;
    let mut worst = Duration::ZERO;
    while !ended.load(Ordering::Relaxed) {
        file.write_all(&[7; READ_BYTES])?;
        let before = Instant::now();
        file.sync_data()?;
        worst = worst.max(before.elapsed());
        pause(PROBE_EVERY);
    }
    Ok(worst)
}

/// Every table with its size.
fn tables(dir: &Path) -> Outcome<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            found.extend(tables(&entry.path())?);
        } else if entry.path().extension().is_some_and(|ending| ending == "sst") {
            found.push((entry.path(), meta.len()));
        }
    }
    Ok(found)
}

/// Reads a second: of keys from the store, and of plain blocks from its tables.
fn read_in_turns(
    store: &LsmStore,
    values: &Values,
    rows: u64,
    tables: &[(PathBuf, u64)],
) -> Outcome<(f64, f64)> {
    let files: Vec<(File, u64)> =
        tables.iter().map(|(path, len)| Ok((File::open(path)?, *len))).collect::<Outcome<_>>()?;
    let forget = || -> Outcome<()> {
        for (file, _) in &files {
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    };
    for (file, _) in &files {
        // As the store's own: no reading ahead of what is asked for.
        fadvise(file, 0, None, Advice::Random)?;
    }
    let blocks: u64 = files.iter().map(|(_, len)| len / READ_BYTES as u64).sum();
    let mut rng = SplitMix64::new(2);
    let mut block = [0; READ_BYTES];
    let (mut getting, mut plain) = (Duration::ZERO, Duration::ZERO);
    // The first turn is not counted: it fills the store's cache with indexes and filters.
    for turn in 0..=TURNS {
        forget()?;
        let mut reader = store.reader(false)?;
        let started = Instant::now();
        for _ in 0..TURN_READS {
            let number = rng.below(rows);
            let mut read = None;
            reader.get(&key(number), |value| read = values.verified(value))?;
            if read != Some(number) {
                return Err(format!("row {number} is not what was written").into());
            }
        }
        if turn > 0 {
            getting += started.elapsed();
        }
        forget()?;
        let started = Instant::now();
        for _ in 0..TURN_READS {
            let mut place = rng.below(blocks);
            for (file, len) in &files {
                let here = len / READ_BYTES as u64;
                if place < here {
                    file.read_exact_at(&mut block, place * READ_BYTES as u64)?;
                    break;
                }
                place -= here;
            }
        }
        if turn > 0 {
            plain += started.elapsed();
        }
    }
    let all = (TURNS * TURN_READS) as f64;
    Ok((all / getting.as_secs_f64(), all / plain.as_secs_f64()))
}

/// The command line.
struct Asked {
    rows: u64,
    value_bytes: usize,
    cache_mib: u64,
    memtable_mib: u64,
    limit_mib: u64,
    dir: Option<PathBuf>,
    child: bool,
}

impl Asked {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut asked = Self {
            rows: 3_000_000,
            value_bytes: 1000,
            cache_mib: 48,
            memtable_mib: 16,
            limit_mib: 256,
            dir: None,
            child: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| format!("{argument} needs a value after it"));
            match argument.as_str() {
                "--rows" => asked.rows = value()?.parse()?,
                "--value-bytes" => asked.value_bytes = value()?.parse()?,
                "--cache-mib" => asked.cache_mib = value()?.parse()?,
                "--memtable-mib" => asked.memtable_mib = value()?.parse()?,
                "--limit-mib" => asked.limit_mib = value()?.parse()?,
                "--dir" => asked.dir = Some(value()?.into()),
                "--child" => asked.child = true,
                // Cargo adds it.
                "--bench" => {}
                other => return Err(format!("{other:?} is no option of this bench").into()),
            }
        }
        Ok(asked)
    }

    fn to_arguments(&self) -> Vec<String> {
        let numbers = [
            ("--rows", self.rows),
            ("--value-bytes", self.value_bytes as u64),
            ("--cache-mib", self.cache_mib),
            ("--memtable-mib", self.memtable_mib),
            ("--limit-mib", self.limit_mib),
        ];
        numbers.iter().flat_map(|(name, number)| [(*name).to_owned(), number.to_string()]).collect()
    }
}
