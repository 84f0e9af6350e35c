//! The workloads on an open engine.
//!
//! Which keys an operation takes is decided before the clock starts; the value is made, the key formatted and the
//! clock read within it, the same for every engine. A wrong or missing value fails the row.

use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::bench::data::{Values, key, shuffled, skewed, uniform};
use crate::bench::engine::{Durability, Engine, Reader};
use crate::bench::meter::{Meter, Row, Samples, pause, rest};
use crate::bench::{Config, KEY_BYTES, Key, Outcome, Workload};
use crate::rng::SplitMix64;

/// Keys in a batch of [`Workload::FillBatch`].
const BATCH_KEYS: usize = 1000;
/// Entries of a scan for which the clock is read once.
const SCAN_ENTRIES: u64 = 1000;
/// A scan is repeated until it took this long, at most so often.
const SCAN_TIME_MIN: Duration = Duration::from_secs(1);
const SCANS_MAX: u64 = 10;
/// Entries after the one that [`Workload::SeekRandom`] goes to.
const NEXT_ENTRIES: u64 = 10;
/// Writes a second beside the reads of [`Workload::ReadWhileWriting`].
const PACED_WRITES: f64 = 20_000.0;
/// One of so many operations of [`Workload::Mixed`] writes.
const MIXED_WRITES: u64 = 20;
/// Synced writes of a thread.
const SYNCS_MAX: u64 = 20_000;
/// What is written before a crash fits into a memtable.
const UNSYNCED_BYTES_MAX: u64 = 30 << 20;
/// A reopening takes a millisecond: the median of so many counts.
const REOPENINGS: usize = 5;

/// An engine, a directory, and what is known to be in it.
#[derive(Debug)]
pub struct Bench<E> {
    config: Config,
    values: Values,
    rng: SplitMix64,
    engine: Option<E>,
    content: Content,
    /// Every block was read since the engine was opened.
    warm: bool,
}

/// What the store holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    /// Nothing that is known.
    Unknown,
    /// Some keys.
    Some,
    /// All keys.
    All,
}

impl<E: Engine> Bench<E> {
    /// For a directory of which nothing is known. It is emptied by the first workload.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let values = Values::new(config.value_bytes, config.seed);
        let rng = SplitMix64::new(config.seed);
        Self { config, values, rng, engine: None, content: Content::Unknown, warm: false }
    }

    /// For a directory that [`Workload::FillBatch`] of the same configuration filled, in another process maybe.
    #[must_use]
    pub fn on_loaded(config: Config) -> Self {
        Self { content: Content::All, ..Self::new(config) }
    }

    /// Runs a workload. What it needs and is not there is made before the clock starts.
    ///
    /// # Errors
    /// The engine's; a value that is not what was written.
    pub fn run(&mut self, workload: Workload) -> Outcome<Row> {
        match workload {
            Workload::FillSeq => {
                let ascending = (0..u32::try_from(self.config.keys)?).collect();
                self.fill(workload, ascending)
            }
            Workload::FillRandom => {
                let order = shuffled(self.config.keys, &mut self.rng);
                self.fill(workload, order)
            }
            Workload::Overwrite => self.overwrite(),
            Workload::DeleteRandom => self.delete_random(),
            Workload::FillSync => self.fill_sync(workload, 1),
            Workload::FillSync8 => self.fill_sync(workload, 8),
            Workload::FillBatch => self.fill_batch(),
            Workload::Compact => self.compact(),
            Workload::Reopen => self.reopen(),
            Workload::ReadRandom => self.read(workload, 1, uniform, true),
            Workload::ReadRandom2 => self.read(workload, 2, uniform, true),
            Workload::ReadMissing => self.read(workload, 1, uniform, false),
            Workload::ReadHot => self.read(workload, 1, skewed, true),
            Workload::SeekRandom => self.seek_random(),
            Workload::ReadSeq => self.scan(workload, false),
            Workload::ReadReverse => self.scan(workload, true),
            Workload::ReadWhileWriting => self.read_while_writing(),
            Workload::Mixed => self.mixed(),
        }
    }

    /// Writes as many keys as fit a memtable, buffered, and returns how many. The caller then ends the process
    /// the hard way, and another one calls [`recover`](Self::recover).
    ///
    /// # Errors
    /// The engine's.
    pub fn write_unsynced(&mut self) -> Outcome<u64> {
        self.start_empty()?;
        let entry = (KEY_BYTES + self.values.value_bytes()) as u64;
        let count = self.config.keys.min(UNSYNCED_BYTES_MAX / entry);
        let order = shuffled(count, &mut self.rng);
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let mut writer = Writer::new(engine, values, self.rng.clone());
        for number in order {
            writer.put(u64::from(number) * 2, Durability::Buffered)?;
        }
        Ok(count)
    }

    /// Opens what [`write_unsynced`](Self::write_unsynced) left, up to the first read. [`Row::lost`] says how many
    /// of its writes are not there.
    ///
    /// # Errors
    /// The engine's; a value that is not what was written.
    pub fn recover(&mut self, written: u64) -> Outcome<Row> {
        let mut meter = Meter::start("recover", 0);
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let mut reader = engine.reader(true)?;
        let mut checked = Checked::new(values);
        checked.get(&mut reader, 0)?;
        meter.stop();
        for number in 1..written {
            checked.get(&mut reader, number * 2)?;
        }
        checked.nothing_wrong("recover")?;
        let mut row = meter.row(1, 0, &[], &self.config.dir)?;
        row.lost = written - checked.found;
        Ok(row)
    }

    /// The engine, after a workload.
    pub const fn engine(&self) -> Option<&E> {
        self.engine.as_ref()
    }

    /// Closes the engine. The directory stays.
    ///
    /// # Errors
    /// The engine's.
    pub fn close(mut self) -> Outcome<()> {
        self.close_engine()
    }

    fn close_engine(&mut self) -> Outcome<()> {
        self.engine.take().map_or(Ok(()), E::close)
    }

    /// The next workload finds an empty store.
    fn start_empty(&mut self) -> Outcome<()> {
        self.close_engine()?;
        if self.config.dir.exists() {
            fs::remove_dir_all(&self.config.dir)?;
        }
        fs::create_dir_all(&self.config.dir)?;
        self.content = Content::Some;
        self.warm = false;
        Ok(())
    }

    fn fill(&mut self, workload: Workload, order: Vec<u32>) -> Outcome<Row> {
        self.start_empty()?;
        self.write(workload, order, Durability::Buffered)
    }

    fn overwrite(&mut self) -> Outcome<Row> {
        self.need_some()?;
        let order = uniform(self.config.keys, self.config.keys, &mut self.rng);
        self.write(Workload::Overwrite, order, Durability::Buffered)
    }

    /// One thread.
    fn write(&mut self, workload: Workload, order: Vec<u32>, how: Durability) -> Outcome<Row> {
        let mut samples = Samples::with_room(order.len() as u64);
        let own = buffers(&[&order], &[&samples]);
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let mut writer = Writer::new(engine, values, self.rng.clone());
        let mut meter = Meter::start(workload.name(), own);
        let done = clocked(&order, self.config.row_time_max, &mut samples, |number| {
            writer.put(u64::from(number) * 2, how)
        })?;
        meter.stop();
        self.settle()?;
        let entry = KEY_BYTES + self.values.value_bytes();
        meter.row(done, done * entry as u64, &[samples], &self.config.dir)
    }

    fn delete_random(&mut self) -> Outcome<Row> {
        self.need_some()?;
        self.content = Content::Some;
        let order = uniform(self.config.keys, self.config.keys, &mut self.rng);
        let mut samples = Samples::with_room(order.len() as u64);
        let own = buffers(&[&order], &[&samples]);
        let (engine, _) = opened(&mut self.engine, &self.config, &self.values)?;
        let mut meter = Meter::start(Workload::DeleteRandom.name(), own);
        let done = clocked(&order, self.config.row_time_max, &mut samples, |number| {
            engine.delete(&key(u64::from(number) * 2))
        })?;
        meter.stop();
        self.settle()?;
        meter.row(done, done * KEY_BYTES as u64, &[samples], &self.config.dir)
    }

    fn fill_sync(&mut self, workload: Workload, threads: u64) -> Outcome<Row> {
        self.start_empty()?;
        let each = SYNCS_MAX.min(self.config.keys / 20) / if threads == 1 { 1 } else { 4 };
        let orders: Vec<Vec<u32>> =
            (0..threads).map(|_| uniform(self.config.keys, each, &mut self.rng)).collect();
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let limit = self.config.row_time_max;
        let rng = &self.rng;
        let (done, samples, meter) = in_threads(workload, &orders, |thread, order, samples| {
            let mut rng = rng.clone();
            let rng = SplitMix64::new(rng.next_u64() ^ thread);
            let mut writer = Writer::new(engine, values, rng);
            clocked(order, limit, samples, |number| {
                writer.put(u64::from(number) * 2, Durability::Sync)
            })
        })?;
        self.settle()?;
        let entry = KEY_BYTES + self.values.value_bytes();
        meter.row(done, done * entry as u64, &samples, &self.config.dir)
    }

    fn fill_batch(&mut self) -> Outcome<Row> {
        self.start_empty()?;
        let order = shuffled(self.config.keys, &mut self.rng);
        let mut samples = Samples::with_room(order.len().div_ceil(BATCH_KEYS) as u64);
        let own = buffers(&[&order], &[&samples]);
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let (mut keys, mut bodies): (Vec<Key>, Vec<u8>) = (Vec::new(), Vec::new());
        let mut meter = Meter::start(Workload::FillBatch.name(), own);
        let mut last = Instant::now();
        for batch in order.chunks(BATCH_KEYS) {
            keys.clear();
            bodies.clear();
            for number in batch {
                let number = u64::from(*number) * 2;
                keys.push(key(number));
                values.append(number, &mut self.rng, &mut bodies);
            }
            engine.put_batch(&keys, &bodies)?;
            lap(&mut last, &mut samples);
        }
        meter.stop();
        self.settle()?;
        self.content = Content::All;
        let entry = KEY_BYTES + self.values.value_bytes();
        let done = order.len() as u64;
        meter.row(done, done * entry as u64, &[samples], &self.config.dir)
    }

    fn compact(&mut self) -> Outcome<Row> {
        self.need_some()?;
        opened(&mut self.engine, &self.config, &self.values)?;
        let mut meter = Meter::start(Workload::Compact.name(), 0);
        if let Some(engine) = &mut self.engine {
            engine.compact()?;
        }
        meter.stop();
        rest();
        meter.row(1, 0, &[], &self.config.dir)
    }

    fn reopen(&mut self) -> Outcome<Row> {
        self.need_some()?;
        let mut rows = Vec::new();
        for _ in 0..REOPENINGS {
            if self.engine.is_some() {
                self.settle()?;
            }
            self.close_engine()?;
            let mut meter = Meter::start(Workload::Reopen.name(), 0);
            let (engine, _) = opened(&mut self.engine, &self.config, &self.values)?;
            engine.reader(false)?.get(&key(0), |_| ())?;
            meter.stop();
            rows.push(meter.row(1, 0, &[], &self.config.dir)?);
        }
        self.warm = false;
        rows.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        Ok(rows.swap_remove(REOPENINGS / 2))
    }

    fn read(
        &mut self,
        workload: Workload,
        threads: u64,
        choose: impl Fn(u64, u64, &mut SplitMix64) -> Vec<u32>,
        there: bool,
    ) -> Outcome<Row> {
        self.need_all_warm()?;
        let orders: Vec<Vec<u32>> = (0..threads)
            .map(|_| choose(self.config.keys, self.config.keys, &mut self.rng))
            .collect();
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let limit = self.config.row_time_max;
        let (done, samples, meter) = in_threads(workload, &orders, |_, order, samples| {
            let mut reader = engine.reader(false)?;
            let mut checked = Checked::new(values);
            let odd = u64::from(!there);
            let done = clocked(order, limit, samples, |number| {
                checked.get(&mut reader, u64::from(number) * 2 + odd)
            })?;
            checked.found_exactly(workload.name(), if there { done } else { 0 })?;
            Ok(done)
        })?;
        meter.row(done, 0, &samples, &self.config.dir)
    }

    fn seek_random(&mut self) -> Outcome<Row> {
        self.need_all_warm()?;
        let order = uniform(self.config.keys, self.config.keys / 2, &mut self.rng);
        let mut samples = Samples::with_room(order.len() as u64);
        let own = buffers(&[&order], &[&samples]);
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let end = self.config.keys * 2;
        let mut reader = engine.reader(false)?;
        let mut wrong = 0_u64;
        let mut meter = Meter::start(Workload::SeekRandom.name(), own);
        let done = clocked(&order, self.config.row_time_max, &mut samples, |number| {
            let from = u64::from(number) * 2;
            let last = (from + 2 * NEXT_ENTRIES).min(end - 2);
            let mut next = from;
            reader.seek(&key(from), |_, value| {
                wrong += u64::from(values.verified(value) != Some(next));
                next += 2;
                next <= last
            })?;
            wrong += u64::from(next != last + 2);
            Ok(())
        })?;
        meter.stop();
        if wrong > 0 {
            return Err(format!("seekrandom: {wrong} entries are not what was written").into());
        }
        meter.row(done, 0, &[samples], &self.config.dir)
    }

    fn scan(&mut self, workload: Workload, backward: bool) -> Outcome<Row> {
        self.need_all_warm()?;
        let keys = self.config.keys;
        let mut samples = Samples::with_room(SCANS_MAX * keys / SCAN_ENTRIES);
        let own = buffers(&[], &[&samples]);
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let mut reader = engine.reader(false)?;
        let mut wrong = 0_u64;
        let mut passes = 0;
        let mut meter = Meter::start(workload.name(), own);
        let started = Instant::now();
        let mut last = started;
        while passes == 0 || (started.elapsed() < SCAN_TIME_MIN && passes < SCANS_MAX) {
            let mut seen = 0;
            reader.scan(backward, |_, value| {
                let number = if backward { keys.saturating_sub(seen + 1) } else { seen } * 2;
                wrong += u64::from(values.verified(value) != Some(number));
                seen += 1;
                if seen % SCAN_ENTRIES == 0 {
                    lap(&mut last, &mut samples);
                }
            })?;
            wrong += seen.abs_diff(keys);
            passes += 1;
        }
        meter.stop();
        if wrong > 0 {
            let name = workload.name();
            return Err(format!("{name}: {wrong} entries are not what was written").into());
        }
        meter.row(passes * keys, 0, &[samples], &self.config.dir)
    }

    fn read_while_writing(&mut self) -> Outcome<Row> {
        self.need_all_warm()?;
        let keys = self.config.keys;
        let order = uniform(keys, keys, &mut self.rng);
        let mut samples = Samples::with_room(order.len() as u64);
        let own = buffers(&[&order], &[&samples]);
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let limit = self.config.row_time_max;
        let (mut rng, ended) = (self.rng.clone(), AtomicBool::new(false));
        let mut meter = Meter::start(Workload::ReadWhileWriting.name(), own);
        let (done, writes) = std::thread::scope(|scope| {
            let paced = scope.spawn(|| -> Outcome<f64> {
                let mut choice = SplitMix64::new(rng.next_u64());
                let mut writer = Writer::new(engine, values, choice.clone());
                let started = Instant::now();
                let mut written = 0.0;
                while !ended.load(Ordering::Relaxed) {
                    let due = started.elapsed().as_secs_f64() * PACED_WRITES;
                    while written < due && !ended.load(Ordering::Relaxed) {
                        writer.put(choice.below(keys) * 2, Durability::Buffered)?;
                        written += 1.0;
                    }
                    pause(Duration::from_millis(1));
                }
                Ok(written / started.elapsed().as_secs_f64())
            });
            let mut read = || -> Outcome<u64> {
                let mut reader = engine.reader(true)?;
                let mut checked = Checked::new(values);
                let done = clocked(&order, limit, &mut samples, |number| {
                    checked.get(&mut reader, u64::from(number) * 2)
                })?;
                checked.found_exactly(Workload::ReadWhileWriting.name(), done)?;
                Ok(done)
            };
            let done = read();
            meter.stop();
            ended.store(true, Ordering::Relaxed);
            let writes = paced.join().unwrap_or_else(|_| Err("the writer panicked".into()));
            done.and_then(|done| Ok((done, writes?)))
        })?;
        self.settle()?;
        let mut row = meter.row(done, 0, &[samples], &self.config.dir)?;
        row.writes_per_second = writes;
        Ok(row)
    }

    fn mixed(&mut self) -> Outcome<Row> {
        self.need_all_warm()?;
        let order = skewed(self.config.keys, self.config.keys, &mut self.rng);
        let mut samples = Samples::with_room(order.len() as u64);
        let own = buffers(&[&order], &[&samples]);
        let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
        let mut reader = engine.reader(true)?;
        let mut writer = Writer::new(engine, values, self.rng.clone());
        let mut checked = Checked::new(values);
        let mut rng = self.rng.clone();
        let mut writes = 0;
        let mut meter = Meter::start(Workload::Mixed.name(), own);
        let done = clocked(&order, self.config.row_time_max, &mut samples, |number| {
            let number = u64::from(number) * 2;
            if rng.chance(1, MIXED_WRITES) {
                writes += 1;
                writer.put(number, Durability::Buffered)
            } else {
                checked.get(&mut reader, number)
            }
        })?;
        meter.stop();
        checked.found_exactly(Workload::Mixed.name(), done - writes)?;
        drop(reader);
        self.settle()?;
        meter.row(done, 0, &[samples], &self.config.dir)
    }

    /// Flushes, and waits until the engine has nothing more to do.
    fn settle(&mut self) -> Outcome<()> {
        let (engine, _) = opened(&mut self.engine, &self.config, &self.values)?;
        engine.flush()?;
        rest();
        Ok(())
    }

    fn need_some(&mut self) -> Outcome<()> {
        if self.content == Content::Unknown {
            self.fill_batch()?;
        }
        Ok(())
    }

    /// All keys are there, and what the cache can hold is in it.
    fn need_all_warm(&mut self) -> Outcome<()> {
        if self.content != Content::All {
            self.fill_batch()?;
        }
        if !self.warm {
            let (engine, values) = opened(&mut self.engine, &self.config, &self.values)?;
            let mut reader = engine.reader(false)?;
            let mut checked = Checked::new(values);
            for number in 0..self.config.keys {
                checked.get(&mut reader, number * 2)?;
            }
            checked.found_exactly("reading all keys", self.config.keys)?;
            self.warm = true;
            rest();
        }
        Ok(())
    }
}

/// The engine, opened if it was not, and the values; apart, so that the rest of a [`Bench`] stays usable.
fn opened<'a, E: Engine>(
    engine: &'a mut Option<E>,
    config: &Config,
    values: &'a Values,
) -> Outcome<(&'a E, &'a Values)> {
    let engine = match engine {
        Some(engine) => engine,
        None => engine.insert(E::open(&config.dir, &config.settings)?),
    };
    Ok((engine, values))
}

/// What the benchmark itself holds in memory.
fn buffers(orders: &[&Vec<u32>], samples: &[&Samples]) -> u64 {
    let numbers: usize = orders.iter().map(|order| order.capacity()).sum();
    let latencies: usize = samples.iter().map(|samples| samples.room()).sum();
    ((numbers + latencies) * size_of::<u32>()) as u64
}

/// Time since the last lap.
#[inline]
fn lap(last: &mut Instant, samples: &mut Samples) {
    let now = Instant::now();
    samples.add(now - *last);
    *last = now;
}

/// Does an operation for each number, with one reading of the clock, until the time is up. Returns how many it did.
fn clocked(
    order: &[u32],
    limit: Duration,
    samples: &mut Samples,
    mut operation: impl FnMut(u32) -> Outcome<()>,
) -> Outcome<u64> {
    let mut last = Instant::now();
    let deadline = last + limit;
    let mut done = 0;
    for number in order {
        operation(*number)?;
        lap(&mut last, samples);
        done += 1;
        if last >= deadline {
            break;
        }
    }
    Ok(done)
}

/// Runs `work` in a thread for each order; the clock starts when all are ready and stops when all are done.
fn in_threads(
    workload: Workload,
    orders: &[Vec<u32>],
    work: impl Fn(u64, &[u32], &mut Samples) -> Outcome<u64> + Sync,
) -> Outcome<(u64, Vec<Samples>, Meter)> {
    let mut samples: Vec<Samples> =
        orders.iter().map(|order| Samples::with_room(order.len() as u64)).collect();
    let own = buffers(&orders.iter().collect::<Vec<_>>(), &samples.iter().collect::<Vec<_>>());
    let ready = Barrier::new(orders.len() + 1);
    let (mut done, mut meter) = (0, None);
    std::thread::scope(|scope| -> Outcome<()> {
        let threads: Vec<_> = orders
            .iter()
            .zip(&mut samples)
            .enumerate()
            .map(|(thread, (order, samples))| {
                let (ready, work) = (&ready, &work);
                scope.spawn(move || {
                    ready.wait();
                    work(thread as u64, order, samples)
                })
            })
            .collect();
        let started = meter.insert(Meter::start(workload.name(), own));
        ready.wait();
        for thread in threads {
            done += thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))?;
        }
        started.stop();
        Ok(())
    })?;
    let meter = meter.ok_or("no thread ran")?;
    Ok((done, samples, meter))
}

/// Writes with values of its own.
struct Writer<'a, E> {
    engine: &'a E,
    values: &'a Values,
    rng: SplitMix64,
    value: Vec<u8>,
}

impl<'a, E: Engine> Writer<'a, E> {
    fn new(engine: &'a E, values: &'a Values, rng: SplitMix64) -> Self {
        Self { engine, values, rng, value: Vec::with_capacity(values.value_bytes()) }
    }

    #[inline]
    fn put(&mut self, number: u64, durability: Durability) -> Outcome<()> {
        self.value.clear();
        self.values.append(number, &mut self.rng, &mut self.value);
        self.engine.put(&key(number), &self.value, durability)
    }
}

/// Reads, verifies and counts.
struct Checked<'a> {
    values: &'a Values,
    found: u64,
    wrong: u64,
}

impl<'a> Checked<'a> {
    fn new(values: &'a Values) -> Self {
        Self { values, found: 0, wrong: 0 }
    }

    #[inline]
    fn get<R: Reader>(&mut self, reader: &mut R, number: u64) -> Outcome<()> {
        let mut right = false;
        let there = reader
            .get(&key(number), |value| right = self.values.verified(value) == Some(number))?;
        self.found += u64::from(there);
        self.wrong += u64::from(there && !right);
        Ok(())
    }

    fn nothing_wrong(&self, what: &str) -> Outcome<()> {
        if self.wrong == 0 {
            return Ok(());
        }
        Err(format!("{what}: {} values are not what was written", self.wrong).into())
    }

    fn found_exactly(&self, what: &str, expected: u64) -> Outcome<()> {
        self.nothing_wrong(what)?;
        if self.found == expected {
            return Ok(());
        }
        Err(format!("{what}: {} keys found, {expected} expected", self.found).into())
    }
}
