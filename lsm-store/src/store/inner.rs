//! The store behind its handles: shared state, freezing, installing, poisoning.
//!
//! ```text
//! writer ─► active memtable ─freeze─► frozen memtables ─flush─► level 0 ─compaction─► lower levels
//!              │ publish                                │ install
//!              ▼                                        ▼
//!           visible                               superversion          ◄── readers load both, lock nothing
//! ```
//!
//! Locks, always taken in this order and released in reverse:
//! 1. `paused`, by the caller who goes on with it. `claims`: while a compaction is chosen, not while it runs.
//! 2. `catalog`: serialises changes of the manifest; held across their I/O. Taken by jobs and by
//!    [`Store::set_floor`](super::Store::set_floor), never by readers, runs or freezing.
//! 3. `state`: memtables, version, flags. Held for a few instructions, never across I/O; `changed` goes with it.
//! 4. `retention`, then the table graveyard and the reports of damage: leaves.
//!
//! The `scrub` cursor is taken by scrubbing alone, before any of these.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use crossbeam_channel::{Sender, TrySendError};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::cache::BlockCache;
use crate::compaction::claims::Claims;
use crate::error::{Error, IoContext, Result};
use crate::events::Event;
use crate::manifest::current::{table_dir, table_path};
use crate::manifest::edit::Item;
use crate::manifest::state::ManifestState;
use crate::manifest::version::Version;
use crate::memtable::{FreezePoint, MemSet};
use crate::options::{Executor, Options};
use crate::perf::{self, Count};
use crate::sstable::TableMeta;
use crate::sstable::damage::DamageReports;
use crate::sstable::reader::{Graveyard, Table};
use crate::store::beats::Beats;
use crate::store::catalog::Catalog;
use crate::store::compact::{l0_depth, total_debt};
use crate::store::metrics::Counters;
use crate::store::pressure::Backlog;
use crate::store::retention::Retention;
use crate::store::scrub::Cursor;
use crate::store::space::Space;
use crate::store::superversion::SuperVersion;
use crate::store::throttle::Throttle;
use crate::store::visible::VisibleCell;
use crate::types::Position;
use crate::vfs::{FilePool, Vfs, VfsLock};
use crate::wal::Cutter;

/// What changes under the `state` lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) active: Arc<MemSet>,
    /// Oldest first.
    pub(crate) frozen: Vec<Arc<MemSet>>,
    pub(crate) version: Arc<Version>,
    /// Tables hold everything up to here.
    pub(crate) durable: Position,
    /// A run was begun and neither published nor dropped.
    pub(crate) run_open: bool,
    /// Threads that wait for the end of the run.
    pub(crate) run_waiters: usize,
    /// Per partition the last number applied and published; the open run has it.
    pub(crate) sequences: Vec<u64>,
    pub(crate) flushing: bool,
    /// Compactions under way, or being chosen.
    pub(crate) compactions: usize,
    /// None may begin: something else replaces tables.
    pub(crate) jobs_stopped: bool,
    pub(crate) closing: bool,
    /// Why the store accepts no more writes.
    pub(crate) poison: Option<String>,
    /// Failed background jobs so far, and what the last one failed of.
    pub(crate) failures: u64,
    pub(crate) flush_failures: u64,
    pub(crate) last_failure: String,
}

impl State {
    /// What follows `before`, under the lock that all superversions are made under.
    pub(crate) fn superversion(&self, before: &SuperVersion) -> SuperVersion {
        SuperVersion {
            generation: before.generation + 1,
            active: Arc::clone(&self.active),
            frozen: self.frozen.clone(),
            version: Arc::clone(&self.version),
            cache: Arc::clone(&before.cache),
        }
    }

    /// Refuses writes to a store that is closed or poisoned.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.closing {
            return Err(Error::Closed);
        }
        match &self.poison {
            Some(reason) => Err(Error::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// How deep level 0 of any partition is.
    pub(crate) fn l0_depth(&self) -> usize {
        l0_depth(&self.version)
    }

    /// The error of a wait that gave up.
    pub(crate) fn stalled(&self, since: Option<Instant>) -> Error {
        let waited =
            since.map_or(0, |s| u64::try_from(s.elapsed().as_millis()).unwrap_or(u64::MAX));
        let last = if self.last_failure.is_empty() {
            String::new()
        } else {
            format!("; last failure: {}", self.last_failure)
        };
        Error::Stalled {
            waited_ms: waited,
            frozen: self.frozen.len(),
            l0_runs: self.l0_depth(),
            last,
        }
    }
}

/// Rings the background threads.
#[derive(Debug)]
pub(crate) struct Bells {
    pub(crate) flush: Sender<()>,
    pub(crate) compaction: Sender<()>,
    /// Of the thread that unlinks files.
    pub(crate) janitor: Sender<()>,
    /// Of the thread that records damage and scrubs.
    pub(crate) care: Sender<()>,
}

/// See the module.
pub(crate) struct Inner {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    pub(crate) executor: Executor,
    /// Of the tables.
    pub(crate) files: Arc<FilePool>,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) graveyard: Graveyard,
    pub(crate) superversion: ArcSwap<SuperVersion>,
    /// Position and all sequence numbers change together. Published with `state` locked.
    pub(crate) visible: VisibleCell,
    pub(crate) retention: Mutex<Retention>,
    /// What compactions under way hold.
    pub(crate) claims: Mutex<Claims>,
    /// Notified when one of them ends, and when the store closes; goes with `claims`.
    pub(crate) job_ended: Condvar,
    /// A compaction that goes on when the caller has paid for more: [`Executor::Inline`] only.
    pub(crate) paused: Mutex<Beats>,
    pub(crate) catalog: Mutex<Catalog>,
    pub(crate) state: Mutex<State>,
    /// Notified when memtables, version or flags of `state` change.
    pub(crate) changed: Condvar,
    /// `None` with [`Executor::Inline`].
    pub(crate) bells: Option<Bells>,
    pub(crate) counters: Counters,
    pub(crate) space: Space,
    pub(crate) backlog: Backlog,
    pub(crate) throttle: Throttle,
    pub(crate) reports: Arc<DamageReports>,
    pub(crate) scrub: Mutex<Cursor>,
    /// Removes segments of the store's own log, once that is open.
    pub(crate) log_cutter: OnceLock<Cutter>,
    pub(crate) dir_lock: Mutex<Option<Box<dyn VfsLock>>>,
    /// Writes are refused: `state` says why. Set with `state` locked; a hint for those who do not lock it.
    pub(crate) refusing: AtomicBool,
}

/// Shows no memtables: they hold what users wrote.
impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("dir", &self.dir)
            .field("options", &self.options)
            .field("executor", &self.executor)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// [`State::check_writable`] at the price of a load, as long as the answer is yes.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.refusing.load(Ordering::Acquire) {
            return self.state.lock().check_writable();
        }
        Ok(())
    }

    /// Stops all writes because the store ends.
    pub(crate) fn begin_closing(&self) {
        self.state.lock().closing = true;
        self.refusing.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Stops all writes for good. The first reason stays.
    pub(crate) fn poison(&self, reason: &Error) {
        let mut state = self.state.lock();
        let first = state.poison.is_none().then(|| {
            let inherited =
                if let Error::Poisoned { reason } = reason { Some(reason.clone()) } else { None };
            inherited.unwrap_or_else(|| reason.to_string())
        });
        if first.is_some() {
            state.poison.clone_from(&first);
            self.refusing.store(true, Ordering::Release);
        }
        drop(state);
        self.changed.notify_all();
        if let Some(reason) = first {
            self.options.events.emit(|| Event::Poisoned { reason });
        }
    }

    /// Stops all writes after an edit that failed, unless the error says that nothing happened.
    pub(crate) fn edit_failed(&self, error: &Error) {
        if !matches!(error, Error::NoSpace { .. }) {
            self.poison(error);
        }
    }

    /// Whether a freeze at the next run boundary is due.
    pub(crate) fn freeze_is_due(&self, active: &MemSet) -> bool {
        active.bytes() >= self.options.memtable_bytes
    }

    /// Freezes the active memtables at what is visible, if that moves anything. No run may be open.
    pub(crate) fn freeze(&self, state: &mut MutexGuard<'_, State>) {
        assert!(!state.run_open, "freeze inside a run");
        let visible = self.visible.load();
        let index = visible.position.index;
        let frozen_to =
            state.frozen.last().and_then(|s| s.freeze_point()).map(|p| p.position.index);
        let newest = frozen_to.unwrap_or(state.durable.index);
        if state.active.entries() == 0 && index <= newest {
            return;
        }
        state
            .active
            .freeze(FreezePoint { position: visible.position, sequences: visible.sequences });
        let fresh = Arc::new(MemSet::new(self.options.partitions.len()));
        let full = std::mem::replace(&mut state.active, fresh);
        state.frozen.push(full);
        let next = state.superversion(&self.superversion.load());
        self.superversion.store(Arc::new(next));
    }

    /// Waits until no run is open.
    pub(crate) fn wait_for_run(&self, state: &mut MutexGuard<'_, State>) {
        state.run_waiters += 1;
        while state.run_open {
            self.changed.wait(state);
        }
        state.run_waiters -= 1;
    }

    /// Whoever waits for a change looks again.
    pub(crate) fn wake_waiters(&self) {
        self.changed.notify_all();
        self.job_ended.notify_all();
    }

    /// Wakes the thread that flushes.
    pub(crate) fn ring_flush(&self) {
        if let Some(bells) = &self.bells {
            ring(&bells.flush);
        }
    }

    /// Wakes the thread that compacts.
    pub(crate) fn ring_compaction(&self) {
        if let Some(bells) = &self.bells {
            ring(&bells.compaction);
        }
    }

    /// Wakes the thread that records damage.
    pub(crate) fn ring_care(&self) {
        if let Some(bells) = &self.bells {
            ring(&bells.care);
        }
    }

    /// Opens an output for reading: footer and properties come back from the medium before anything
    /// refers to the table.
    pub(crate) fn open_table(&self, meta: TableMeta) -> Result<Arc<Table>> {
        let path = table_path(&self.dir, meta.number);
        let (cache, graveyard) = (Arc::clone(&self.cache), Arc::clone(&self.graveyard));
        let file = self.files.open_read(&path).context("open", &path)?;
        let table = Table::open(file, &path, meta, cache, graveyard)?;
        Ok(Arc::new(table.reporting_to(Arc::clone(&self.reports))))
    }

    /// Makes the names of new tables durable.
    ///
    /// # Errors
    /// `Io`; the store is then poisoned, because a second sync of the directory would prove nothing.
    pub(crate) fn sync_table_dir(&self) -> Result<()> {
        let dir = table_dir(&self.dir);
        let synced = perf::time(Count::SyncNanos, || self.vfs.sync_dir(&dir)).context("sync", &dir);
        if let Err(e) = &synced {
            self.poison(e);
        }
        synced
    }

    /// Makes an edit durable and the version it leads to current, in this order. `opened` are the tables it
    /// adds that are not in the version yet; those that leave it go with their last reader.
    ///
    /// # Errors
    /// `NoSpace`: nothing happened. Any other if the edit cannot be made durable or contradicts the version; the
    /// store is then poisoned.
    pub(crate) fn install(
        &self,
        edit: impl FnOnce(&ManifestState) -> Vec<Item>,
        opened: &[Arc<Table>],
        update: impl FnOnce(&mut State),
    ) -> Result<()> {
        let mut catalog = self.catalog.lock();
        let state = self.state.lock();
        state.check_writable()?;
        // Replaced only here, under the lock of the catalog.
        let present = Arc::clone(&state.version);
        drop(state);
        let items = edit(catalog.state());
        let installed = present
            .edited(&items, opened, catalog.state(), catalog.path())
            .and_then(|edited| catalog.commit(&items).map(|()| edited));
        let (version, gone) = match installed {
            Ok(edited) => edited,
            Err(e) => {
                drop(catalog);
                self.edit_failed(&e);
                return Err(e);
            }
        };
        self.measure_tables(&version);
        let mut state = self.state.lock();
        state.version = Arc::new(version);
        update(&mut state);
        let next = state.superversion(&self.superversion.load());
        let before = self.superversion.swap(Arc::new(next));
        drop(state);
        drop(catalog);
        gone.iter().for_each(|table| table.retire());
        drop((gone, present, before));
        self.changed.notify_all();
        self.tell_of_manifest();
        Ok(())
    }

    /// Tells the listener if there is a new manifest. No lock of the store may be held.
    pub(crate) fn tell_of_manifest(&self) {
        let news = self.catalog.lock().take_news();
        if let Some(file) = news {
            self.options.events.emit(|| Event::ManifestRolled { file: file.0 });
        }
    }

    /// Looks how far compactions are behind.
    pub(crate) fn measure_tables(&self, version: &Version) {
        let debt = total_debt(version, &self.pick_options());
        self.backlog.set_tables(l0_depth(version), debt);
    }

    /// Removes what the store's own log needs no more, if it has one.
    ///
    /// # Errors
    /// `Io`; the store is then poisoned.
    pub(crate) fn cut_log(&self) -> Result<()> {
        let Some(cutter) = self.log_cutter.get() else { return Ok(()) };
        let durable = self.state.lock().durable.index;
        cutter.cut(durable).inspect_err(|error| self.poison(error))
    }

    /// Has the files of tables unlinked that nobody uses any more: by the thread that does it at a pace, if there is.
    pub(crate) fn bury(&self) {
        match &self.bells {
            Some(bells) => ring(&bells.janitor),
            None => self.bury_all(),
        }
    }

    /// Unlinks all of them.
    pub(crate) fn bury_all(&self) {
        while self.bury_one().is_some() {}
    }

    /// Unlinks one of them and returns its size. What cannot be unlinked is counted and removed by the next open.
    pub(crate) fn bury_one(&self) -> Option<u64> {
        let (path, bytes) = self.graveyard.lock().pop()?;
        match self.vfs.unlink(&path) {
            Ok(()) => self.counters.tables_removed.add(1),
            // A table that was damaged by losing its file.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(_left) => self.counters.files_left.add(1),
        }
        Some(bytes)
    }

    /// Removes outputs of a job that failed, as far as that works.
    pub(crate) fn remove_outputs(&self, paths: &[PathBuf]) {
        for path in paths {
            if self.vfs.unlink(path).is_err() {
                self.counters.files_left.add(1);
            }
        }
    }

    /// What durations of events are measured from; nothing with [`Executor::Inline`], which has no clock.
    pub(crate) fn stopwatch(&self) -> Option<Instant> {
        (self.executor == Executor::Threads).then(Instant::now)
    }

    /// Remembers the failure of a background job. That the store closes is none.
    pub(crate) fn record_failure(&self, failure: &Error, of_flush: bool) {
        if matches!(failure, Error::Closed) {
            return self.wake_waiters();
        }
        let mut state = self.state.lock();
        state.failures += 1;
        state.flush_failures += u64::from(of_flush);
        state.last_failure = failure.to_string();
        drop(state);
        self.wake_waiters();
        let job = if of_flush { "flush" } else { "compaction" };
        self.options.events.emit(|| Event::JobFailed { job, error: failure.to_string() });
    }
}

/// A bell that rings already is enough.
fn ring(bell: &Sender<()>) {
    match bell.try_send(()) {
        Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
    }
}
