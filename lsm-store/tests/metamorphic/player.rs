//! Plays a history against a store under given options.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lsm_store::vfs::{CrashPolicy, MemVfs, Vfs};
use lsm_store::{
    Durability, Error, Executor, Iter, KeyRange, Mode, Options, PartitionId, Position,
    SequenceNumber, Store, View, WriteBatch,
};

use crate::model::{Hit, Model, Outcome, Row, pick};
use crate::ops::{Batch, Bounds, Key, Move, Op};

/// The options of a whole history.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) executor: Executor,
    /// Each opening takes the other one: options may change between openings.
    pub(crate) options: [Options; 2],
}

/// The store, and what its caller keeps.
pub(crate) struct Player {
    setup: Setup,
    vfs: MemVfs,
    store: Option<Store>,
    openings: usize,
    /// All batches, with the numbers they were given: what a replicated log would hold.
    log: Vec<(Batch, [u64; 2])>,
    /// Batches up to here were acknowledged as durable.
    durable: u64,
    last: [u64; 2],
    views: Vec<View>,
    /// Each with the view it was made from.
    iters: Vec<(Iter, View)>,
    /// Directories made for copies.
    dirs: usize,
}

fn id(partition: usize) -> PartitionId {
    PartitionId(u8::try_from(partition).expect("two of them"))
}

/// What a refusal of a number says.
fn refused(error: &Error, number: u64) -> Outcome {
    if let Error::Compacted { asked, floor } = error
        && *asked == number
    {
        return Outcome::Compacted(*floor);
    }
    if let Error::FutureSequence { asked, visible } = error
        && *asked == number
    {
        return Outcome::Future(*visible);
    }
    unreachable!("{error}")
}

fn refs(bounds: &Bounds) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (bounds.0.as_ref().map(Vec::as_slice), bounds.1.as_ref().map(Vec::as_slice))
}

fn stop(iter: &Iter) -> Option<Row> {
    assert_eq!(iter.value(), &iter.value_bytes()[..], "both forms of a value");
    iter.valid().then(|| (iter.key().to_vec(), iter.value().to_vec(), iter.sequence().0))
}

fn go(iter: &mut Iter, view: &View, movement: &Move) -> Option<Row> {
    let moved = match movement {
        Move::Next => iter.next(),
        Move::Prev => iter.prev(),
        Move::First => iter.seek_to_first(),
        Move::Last => iter.seek_to_last(),
        Move::Seek(key) => iter.seek(key),
        Move::SeekForPrev(key) => iter.seek_for_prev(key),
        Move::SetBounds(bounds) => {
            let (lower, upper) = refs(bounds);
            iter.set_bounds(lower, upper);
            Ok(false)
        }
        Move::Refresh => iter.refresh(view),
    };
    let stop = stop(iter);
    assert_eq!(moved.expect("moves"), stop.is_some(), "a move says where it leads");
    stop
}

fn range(partition: usize, start: &Key, end: Option<&Key>) -> KeyRange {
    KeyRange { partition: id(partition), start: start.clone(), end: end.cloned() }
}

fn position(index: u64) -> Position {
    Position { index, term: index / 7, extra: index.to_le_bytes().to_vec() }
}

impl Player {
    pub(crate) fn new(setup: Setup) -> Self {
        let mut player = Self {
            setup,
            vfs: MemVfs::new(3),
            store: None,
            openings: 0,
            log: Vec::new(),
            durable: 0,
            last: [0; 2],
            views: Vec::new(),
            iters: Vec::new(),
            dirs: 0,
        };
        player.open();
        player
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("open")
    }

    fn mode(&self) -> Mode {
        self.setup.options[0].mode
    }

    fn written(&self) -> u64 {
        self.log.len() as u64
    }

    /// Opens the store and gives it what it has lost, which must be nothing that was durable.
    fn open(&mut self) {
        let options = self.setup.options[self.openings % 2].clone();
        self.openings += 1;
        let vfs: Arc<dyn Vfs> = Arc::new(self.vfs.clone());
        let store = Store::open(vfs, Path::new("/db"), options, self.setup.executor);
        self.store = Some(store.expect("opens"));
        let found = self.store().visible_position();
        assert!(found.index >= self.durable, "{} where {} were durable", found.index, self.durable);
        assert!(found.index <= self.written(), "{} of {}", found.index, self.written());
        if self.mode() == Mode::External {
            assert_eq!(found, self.store().durable_position(), "what is not in tables is gone");
            if found.index > 0 {
                assert_eq!(found, position(found.index), "term and extra come back");
            }
        }
        let missing = usize::try_from(found.index).expect("small");
        let log = std::mem::take(&mut self.log);
        for (i, (batch, numbers)) in log.iter().enumerate().skip(missing) {
            self.write(i as u64 + 1, std::slice::from_ref(&(batch.clone(), *numbers)), &[]);
        }
        self.log = log;
    }

    fn end(&mut self) {
        self.views.clear();
        self.iters.clear();
        self.store = None;
    }

    fn newest(&self, keys: &[Key]) -> Vec<Hit> {
        let both = keys.iter().flat_map(|key| [(0, key), (1, key)]);
        both.map(|(partition, key)| self.get(partition, key)).collect()
    }

    fn get(&self, partition: usize, key: &[u8]) -> Hit {
        let found = self.store().get(id(partition), key).expect("reads");
        found.map(|found| (found.value.to_vec(), found.sequence.0))
    }

    /// Writes batches, the last of which has the number `index`, and acknowledges what is durable.
    fn write(&mut self, index: u64, batches: &[(Batch, [u64; 2])], read: &[Key]) {
        if self.mode() == Mode::Wal {
            let mut number = index - batches.len() as u64;
            for (batch, _) in batches {
                number += 1;
                self.write_logged(batch);
                if batch.sync {
                    self.durable = self.durable.max(number);
                }
            }
            return;
        }
        let before = self.newest(read);
        let mut run = self.store().begin_run(position(index)).expect("begins");
        for (batch, numbers) in batches {
            for (partition, number) in numbers.iter().enumerate() {
                let ops: Vec<lsm_store::Op<'_>> = batch
                    .ops
                    .iter()
                    .filter(|(p, ..)| *p == partition)
                    .map(|(_, key, value)| match value {
                        Some(value) => lsm_store::Op::Put { key, value },
                        None => lsm_store::Op::Delete { key },
                    })
                    .collect();
                if !ops.is_empty() {
                    run.apply(id(partition), SequenceNumber(*number), &ops).expect("applies");
                }
            }
        }
        assert_eq!(self.newest(read), before, "nothing of a run is visible before it is published");
        let inside: Vec<Hit> = read
            .iter()
            .flat_map(|key| [(0, key), (1, key)])
            .map(|(partition, key)| run.get(id(partition), key).expect("reads"))
            .map(|found| found.map(|found| (found.value.to_vec(), found.sequence.0)))
            .collect();
        run.publish().expect("publishes");
        assert_eq!(self.newest(read), inside, "a run reads itself");
    }

    fn write_logged(&self, batch: &Batch) {
        let mut write = WriteBatch::new();
        for (partition, key, value) in &batch.ops {
            match value {
                Some(value) => write.put(id(*partition), key, value).expect("fits"),
                None => write.delete(id(*partition), key).expect("fits"),
            }
        }
        let durability = if batch.sync { Durability::Sync } else { Durability::Buffered };
        self.store().write(write, durability).expect("writes");
    }

    fn stands(&self) -> Outcome {
        let last = [0, 1].map(|p| self.store().last_sequence(id(p)).0);
        assert_eq!(
            self.store().visible_position().index,
            self.written(),
            "all batches are visible"
        );
        Outcome::Stands { floor: self.store().floor(id(0)).0, last }
    }

    fn view(&self, number: usize) -> View {
        match (number % (self.views.len() + 1)).checked_sub(1) {
            Some(i) => self.views[i].clone(),
            None => self.store().view(),
        }
    }

    fn read(&self, view: usize, partition: usize, keys: &[Key]) -> Outcome {
        let view = self.view(view);
        let slices: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let many = view.multi_get(id(partition), &slices).expect("reads");
        let single = keys.iter().map(|key| view.get(id(partition), key).expect("reads"));
        assert_eq!(many, single.collect::<Vec<_>>(), "many reads are as many single ones");
        let hit = |found: lsm_store::Found| (found.value.to_vec(), found.sequence.0);
        Outcome::Hits(many.into_iter().map(|found| found.map(hit)).collect())
    }

    fn scan(&self, view: usize, partition: usize, backward: bool) -> Outcome {
        let view = self.view(view);
        let iter = view.iter(id(partition), Bound::Unbounded, Bound::Unbounded);
        let mut iter = iter.expect("opens");
        let step = if backward { Move::Prev } else { Move::Next };
        Outcome::Rows(std::iter::from_fn(|| go(&mut iter, &view, &step)).collect())
    }

    fn view_at(&mut self, partition: usize, at: u64) -> Outcome {
        let at = Model::sequence(at, self.last[partition]);
        match self.store().view_at(id(partition), SequenceNumber(at)) {
            Ok(view) => {
                self.views.push(view);
                Outcome::Granted(at)
            }
            Err(error) => refused(&error, at),
        }
    }

    fn history(&self, partition: usize, at: u64, from: u64, bounds: &Bounds) -> Outcome {
        let last = self.last[partition];
        let (at, from) = (Model::sequence(at, last), Model::sequence(from, last));
        let view = match self.store().view_at(id(partition), SequenceNumber(at)) {
            Ok(view) => view,
            Err(error) => return refused(&error, at),
        };
        let (lower, upper) = refs(bounds);
        let mut changes = match view.changes(id(partition), SequenceNumber(from), lower, upper) {
            Ok(changes) => changes,
            Err(error) => return refused(&error, from),
        };
        let mut versions = Vec::new();
        while changes.next().expect("moves") {
            let value = changes.value().map(<[u8]>::to_vec);
            let other = changes.value_bytes().map(|v| v.to_vec());
            assert_eq!(other, value, "both forms of a value");
            versions.push((changes.key().to_vec(), changes.sequence().0, value));
        }
        // The same key by key, and what is left of all that was ever written.
        let mut keys: Vec<&Key> = versions.iter().map(|v| &v.0).collect();
        keys.dedup();
        changes.seek_to_first().expect("moves");
        for key in keys {
            assert_eq!(changes.key(), key, "key by key");
            changes.next_key().expect("moves");
        }
        assert!(!changes.valid(), "no more keys");
        let mut all = view.versions(id(partition), lower, upper).expect("opens");
        let mut since = versions.iter();
        while all.next().expect("moves") {
            if all.sequence().0 >= from {
                let next = since.next().map(|v| (&v.0[..], v.1));
                assert_eq!(next, Some((all.key(), all.sequence().0)), "versions hold all changes");
            }
        }
        assert_eq!(since.next(), None, "versions hold all changes");
        Outcome::Versions(versions)
    }

    /// A directory that was not there yet.
    fn fresh_dir(&mut self) -> PathBuf {
        self.dirs += 1;
        PathBuf::from(format!("/copy-{}", self.dirs))
    }

    fn copy(&mut self) -> Outcome {
        self.store().flush().expect("flushes");
        self.durable = self.written();
        let dir = self.fresh_dir();
        let copy = self.store().checkpoint(&dir).expect("copies");
        copy.verify().expect("sound");
        let vfs: Arc<dyn Vfs> = Arc::new(self.vfs.clone());
        let options = self.setup.options[self.openings % 2].clone();
        let copy = Store::open(vfs, &dir, options, Executor::Inline).expect("opens");
        assert_eq!(copy.floor(id(0)), self.store().floor(id(0)), "the floor is copied");
        let rows = [0, 1].map(|partition| {
            let view = copy.view();
            let iter = view.iter(id(partition), Bound::Unbounded, Bound::Unbounded);
            let mut iter = iter.expect("opens");
            std::iter::from_fn(|| go(&mut iter, &view, &Move::Next)).collect()
        });
        copy.verify().expect("sound");
        copy.close().expect("closes");
        Outcome::Copied(rows)
    }

    fn repair(&mut self, range: &KeyRange) {
        let dir = self.fresh_dir();
        let store = self.store();
        let last = store.last_sequence(range.partition);
        let export = store.export_range(range, last, &dir).expect("exports");
        let mut incoming = store.receive(export.description()).expect("begins");
        for wanted in incoming.wanted() {
            let mut bytes = vec![0; usize::try_from(wanted.len).expect("small")];
            let len = export.read(wanted.uid, 0, &mut bytes).expect("reads");
            incoming.write(wanted.uid, 0, &bytes[..len]).expect("writes");
        }
        let staged = incoming.finish().expect("whole");
        match store.excise_and_ingest(&staged) {
            Ok(_) => {}
            // A view below the floor is in use, and the export has no history for it.
            Err(Error::InvalidArgument(_)) => staged.remove().expect("removes"),
            Err(error) => unreachable!("{error}"),
        }
        export.remove().expect("removes");
    }

    fn run(&mut self, batches: &[Batch], read: &[Key]) -> Outcome {
        let mut hits = self.newest(read);
        let numbered: Vec<(Batch, [u64; 2])> = batches
            .iter()
            .map(|batch| {
                for partition in 0..2 {
                    let touched = batch.ops.iter().any(|(p, ..)| *p == partition);
                    self.last[partition] += u64::from(touched);
                }
                (batch.clone(), self.last)
            })
            .collect();
        self.write(self.written() + numbered.len() as u64, &numbered, read);
        self.log.extend(numbered);
        hits.extend(self.newest(read));
        Outcome::Hits(hits)
    }

    pub(crate) fn play(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Run { batches, read } => self.run(batches, read),
            Op::Get { partition, keys } => {
                Outcome::Hits(keys.iter().map(|key| self.get(*partition, key)).collect())
            }
            Op::Read { view, partition, keys } => self.read(*view, *partition, keys),
            Op::Scan { view, partition, backward } => self.scan(*view, *partition, *backward),
            Op::History { partition, at, from, bounds } => {
                self.history(*partition, *at, *from, bounds)
            }
            Op::TakeView => {
                self.views.push(self.store().view());
                Outcome::Nothing
            }
            Op::TakeViewAt { partition, at } => self.view_at(*partition, *at),
            Op::DropView(number) => {
                if let Some(i) = pick(*number, &self.views) {
                    self.views.swap_remove(i);
                }
                Outcome::Nothing
            }
            Op::OpenIter { view, partition, bounds } => {
                let (lower, upper) = refs(bounds);
                let view = self.view(*view);
                let iter = view.iter(id(*partition), lower, upper).expect("opens");
                self.iters.push((iter, view));
                Outcome::Nothing
            }
            Op::Walk { iter, moves } => match pick(*iter, &self.iters) {
                Some(i) => {
                    let (iter, view) = &mut self.iters[i];
                    Outcome::Stops(moves.iter().map(|movement| go(iter, view, movement)).collect())
                }
                None => Outcome::Nothing,
            },
            Op::DropIter(number) => {
                if let Some(i) = pick(*number, &self.iters) {
                    self.iters.swap_remove(i);
                }
                Outcome::Nothing
            }
            Op::Digest { partition, at, start, end } => {
                let at = Model::sequence(*at, self.last[*partition]);
                let range = range(*partition, start, end.as_ref());
                match self.store().digest(&range, SequenceNumber(at)) {
                    Ok(digest) => Outcome::Digest(digest.digest, digest.rows),
                    Err(error) => refused(&error, at),
                }
            }
            Op::Copy => self.copy(),
            Op::Repair { partition, start, end } => {
                self.repair(&range(*partition, start, end.as_ref()));
                self.stands()
            }
            Op::SetFloor(at) => {
                let floor = SequenceNumber(at % (self.last[0] + 1));
                self.store().set_floor(id(0), floor).expect("raises");
                self.stands()
            }
            Op::Flush => {
                let reached = self.store().flush().expect("flushes");
                assert_eq!(reached.index, self.written(), "a flush reaches everything");
                self.durable = self.written();
                self.stands()
            }
            Op::StartFlush => {
                self.store().start_flush().expect("starts");
                self.stands()
            }
            Op::Compact { partition, start, end } => {
                let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let lower = Bound::Included(start.as_slice());
                self.store().compact(id(*partition), lower, upper).expect("compacts");
                // It begins with a flush.
                self.durable = self.written();
                self.stands()
            }
            Op::Scrub(budget) => {
                self.store().scrub_step(*budget).expect("reads");
                assert_eq!(self.store().damage().expect("tells"), [], "nothing is damaged");
                self.stands()
            }
            Op::Verify => {
                self.store().verify().expect("sound");
                self.stands()
            }
            Op::Close => {
                self.store.take().expect("open").close().expect("closes");
                self.open();
                self.stands()
            }
            Op::Kill => {
                self.vfs.kill();
                self.end();
                if self.mode() == Mode::Wal {
                    self.durable = self.written();
                }
                self.open();
                self.stands()
            }
            Op::Crash { policy, seed } => {
                self.vfs.crash(CrashPolicy::ALL[policy % CrashPolicy::ALL.len()], *seed);
                self.end();
                self.open();
                self.stands()
            }
        }
    }

    /// The end of every history: everything is still there, and no pin is left behind.
    pub(crate) fn finish(&mut self) {
        self.views.clear();
        self.iters.clear();
        self.store().flush().expect("flushes");
        self.store().verify().expect("sound");
        assert_eq!(self.store().metrics().views, 0, "no pin is left behind");
        assert_eq!(self.store().metrics().job_failures, 0, "no job failed");
    }
}
