//! The store: opening, writing runs, reading, flushing, closing. Start here.
//!
//! * A write: [`begin_run`](Store::begin_run) → [`Run::apply`] into the active memtable → [`Run::publish`].
//!   Full memtables are frozen when the next run begins and flushed into level 0 beside it.
//! * A read: a [`View`] pins sequence numbers; each lookup takes the present superversion and asks active
//!   memtable, frozen ones, level 0, lower levels. It shares no lock with flushes and compactions.
//! * `inner` has the shared state and its locks, `jobs` the background work, `recovery` the opening.
//! * Trouble: `space` says no before the disk is full, `damage` and `scrub` find and record what cannot be read,
//!   `export` and `ingest` bring a range back from another copy, `salvage` saves what is readable.
//! * Copies: `checkpoint` makes one, `snapshot` describes it, `adopt` receives it and puts it in force.

mod adopt;
mod background;
#[cfg(test)]
mod balance;
mod beats;
mod catalog;
mod checkpoint;
mod compact;
mod damage;
mod export;
mod ingest;
mod inner;
mod iter;
mod janitor;
mod jobs;
mod metrics;
mod pacing;
mod parts;
mod pressure;
mod rebuild;
pub(crate) mod recovery;
mod report;
mod retention;
mod run;
mod salvage;
mod scrub;
mod snapshot;
mod space;
mod superversion;
mod throttle;
mod verify;
mod versions;
mod view;
mod visible;
#[cfg(test)]
mod visible_tests;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::events::{Event, StallCause};
use crate::manifest::edit::Item;
use crate::options::{Executor, Keep, Mode, Options};
use crate::perf::{self, Count};
use crate::store::inner::{Inner, State};
use crate::store::run::{check_extra, unknown};
use crate::types::{Found, PartitionId, Position, SequenceNumber};
use crate::vfs::Vfs;
use crate::wal::{self, Wal};

pub use adopt::{IncomingSnapshot, StagedSnapshot, Wanted};
pub use checkpoint::Checkpoint;
pub use damage::Damage;
pub use export::RangeDigest;
pub use ingest::Replaced;
pub use iter::{Iter, IterOptions};
pub use metrics::{LevelMetrics, Metrics, PartitionMetrics, WaitMetrics};
pub use pressure::Pressure;
pub(crate) use run::Freeze;
pub use run::Run;
pub use salvage::Salvaged;
pub use scrub::ScrubProgress;
pub use snapshot::SnapshotTable;
pub use verify::VerifyReport;
pub use versions::Versions;
pub use view::View;

/// A storage engine in a directory. A handle: clones share one store, which ends with the last of them
/// or with [`close`](Store::close).
#[derive(Clone, Debug)]
pub struct Store(Arc<Handle>);

/// Ends the background work when the last handle goes.
#[derive(Debug)]
struct Handle {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The store's own log, in [`Mode::Wal`], once it is replayed.
    wal: OnceLock<Wal>,
}

impl Handle {
    /// Returns whether no background thread had panicked.
    fn stop(&self) -> bool {
        let threads = std::mem::take(&mut *self.threads.lock());
        let sound = background::stop(&self.inner, threads);
        self.inner.drop_paused();
        self.inner.bury_all();
        let lock = self.inner.dir_lock.lock().take();
        drop(lock);
        sound
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _sound = self.stop();
    }
}

impl Store {
    /// Opens the store in `dir`, or creates it. What was above the
    /// [`durable_position`](Store::durable_position) is gone and has to be applied again from the
    /// caller's log; with [`Mode::Wal`] the store does that itself.
    ///
    /// # Errors
    /// `InvalidArgument` for options that make no sense or differ from those the store was created
    /// with; `Locked`; `WrongStore`; `UnknownVersion`; `Corruption` naming file and offset if the
    /// manifest or a table is not what it should be; `Io`.
    pub fn open(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: Options,
        executor: Executor,
    ) -> Result<Self> {
        let (bells, ears) = match executor {
            Executor::Inline => (None, None),
            Executor::Threads => {
                let (bells, ears) = background::bells();
                (Some(bells), Some(ears))
            }
        };
        let mode = options.mode;
        if mode == Mode::External && wal::is_there(&*vfs, dir)? {
            let detail =
                format!("the store in {} has its own log: open it with Mode::Wal", dir.display());
            return Err(Error::InvalidArgument(detail));
        }
        let inner = Arc::new(recovery::open(vfs, dir, options, executor, bells)?);
        let threads = match ears {
            None => Vec::new(),
            Some(ears) => background::start(&inner, ears)?,
        };
        // A level may have been due when the store was closed.
        inner.ring_compaction();
        let store =
            Self(Arc::new(Handle { inner, threads: Mutex::new(threads), wal: OnceLock::new() }));
        if mode == Mode::Wal {
            let wal = Wal::open(&store)?;
            store.inner().settle_copy()?;
            store.0.wal.get_or_init(|| wal);
        }
        Ok(store)
    }

    fn inner_arc(&self) -> &Arc<Inner> {
        &self.0.inner
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0.inner
    }

    pub(crate) fn wal(&self) -> Option<&Wal> {
        self.0.wal.get()
    }

    fn check_takes_runs(&self) -> Result<()> {
        if self.inner().options.mode == Mode::Wal {
            let detail = "a store with its own log takes batches with `write`, not runs";
            return Err(Error::InvalidArgument(detail.to_owned()));
        }
        Ok(())
    }

    /// Begins a run that moves the store to `position`, whose index must be above the last run's. If the
    /// active memtables are full they are frozen first; if too much background work is pending then, the
    /// call waits, up to [`Options::stall_max`](crate::Options::stall_max). Long before, runs are delayed in
    /// proportion to what they write, each by 50 ms at most, see [`pressure`](Store::pressure).
    ///
    /// # Errors
    /// `AlreadyApplied` if the index is not above the last; `NoSpace`; `Stalled`; `InvalidArgument` if a run is
    /// open, or with [`Mode::Wal`]; `TooLarge` for `extra`; `Poisoned`, `Closed`. Nothing was changed.
    pub fn begin_run(&self, position: Position) -> Result<Run> {
        self.check_takes_runs()?;
        self.inner().check_space()?;
        self.begin(position)
    }

    /// Begins a run at the position the store is at already, for what has to be in tables together with
    /// it: a cache of the caller that is written only when a flush would cut its past off. The numbers
    /// it applies must be above their partition's last, as in any run.
    ///
    /// # Errors
    /// `InvalidArgument` if a run is open, or with [`Mode::Wal`]; `Poisoned`, `Closed`.
    pub fn begin_addendum(&self) -> Result<Run> {
        self.check_takes_runs()?;
        let inner = self.inner();
        let mut state = inner.state.lock();
        check_no_run(&state)?;
        state.check_writable()?;
        let position = inner.visible.load().position;
        Ok(Run::begin(&self.0.inner, &mut state, position))
    }

    pub(crate) fn begin(&self, position: Position) -> Result<Run> {
        check_extra(&position.extra)?;
        let inner = self.inner();
        let mut state = inner.state.lock();
        inner.check_next(&state, position.index)?;
        if inner.freeze_is_due(&state.active) {
            state = self.wait_for_room(state)?;
            // The lock was given up meanwhile.
            inner.check_next(&state, position.index)?;
            inner.freeze(&mut state);
            if inner.executor == Executor::Inline {
                drop(state);
                // A failed job is recorded, and tried again at the next freeze.
                let _recorded = inner.flush_inline().is_err();
                state = inner.state.lock();
                inner.check_next(&state, position.index)?;
            } else {
                inner.ring_flush();
            }
        }
        if inner.executor == Executor::Inline {
            drop(state);
            inner.beat();
            state = inner.state.lock();
            inner.check_next(&state, position.index)?;
        } else if let Some(delay) = inner.delay_due() {
            drop(state);
            inner.wait_out(delay)?;
            state = inner.state.lock();
            inner.check_next(&state, position.index)?;
        }
        Ok(Run::begin(&self.0.inner, &mut state, position))
    }

    /// Waits until another set of memtables may be frozen.
    pub(crate) fn wait_for_room<'s>(
        &'s self,
        state: MutexGuard<'s, State>,
    ) -> Result<MutexGuard<'s, State>> {
        let inner = self.inner();
        let Some(cause) = inner.is_full(&state) else { return Ok(state) };
        let since = inner.stopwatch();
        let mut room = perf::time(Count::WaitNanos, || self.wait_while_full(state));
        let tell = || {
            let waited = since.map(|since| since.elapsed());
            inner.counters.stall_micros.of(cause).record_time(waited);
            inner.options.events.emit(|| Event::Stalled { cause, waited });
        };
        match &mut room {
            Ok(state) => MutexGuard::unlocked(state, tell),
            Err(_) => tell(),
        }
        room
    }

    fn wait_while_full<'s>(
        &'s self,
        mut state: MutexGuard<'s, State>,
    ) -> Result<MutexGuard<'s, State>> {
        let inner = self.inner();
        let full = |state: &State| inner.is_full(state).is_some();
        inner.counters.stalls.add(1);
        if inner.executor == Executor::Inline {
            drop(state);
            let _recorded = inner.work_inline().is_err();
            state = inner.state.lock();
            state.check_writable()?;
            return if full(&state) {
                Err(inner.want_of_space().unwrap_or_else(|| state.stalled(None)))
            } else {
                Ok(state)
            };
        }
        let since = Instant::now();
        let deadline = since + inner.options.stall_max;
        // Once: a bell stays rung, and after a failure the threads wait before they try again.
        inner.ring_flush();
        inner.ring_compaction();
        while full(&state) {
            if inner.changed.wait_until(&mut state, deadline).timed_out() && full(&state) {
                return Err(inner.want_of_space().unwrap_or_else(|| state.stalled(Some(since))));
            }
            state.check_writable()?;
        }
        Ok(state)
    }

    /// Freezes what was published and waits until it is in tables. Returns the position reached, which
    /// moves even if nothing was written.
    ///
    /// # Errors
    /// `InvalidArgument` while a run is open, since a flush cuts only between runs; `Stalled` if the
    /// flush failed (it is tried again by itself) or takes longer than
    /// [`Options::stall_max`](crate::Options::stall_max); with [`Executor::Inline`] the error of the job
    /// itself; `Poisoned`, `Closed`.
    pub fn flush(&self) -> Result<Position> {
        let inner = self.inner();
        let (target, failures) = self.freeze_for_flush()?;
        if inner.executor == Executor::Inline {
            inner.work_inline()?;
            return Ok(self.durable_position());
        }
        inner.ring_flush();
        let since = Instant::now();
        let deadline = since + inner.options.stall_max;
        let mut state = inner.state.lock();
        while state.durable.index < target {
            state.check_writable()?;
            if state.flush_failures > failures || Instant::now() >= deadline {
                return Err(state.stalled(Some(since)));
            }
            let _timed_out = inner.changed.wait_until(&mut state, deadline).timed_out();
        }
        Ok(state.durable.clone())
    }

    /// Freezes what was published and lets it be flushed, without waiting; with [`Executor::Inline`]
    /// it is flushed when this returns.
    ///
    /// # Errors
    /// As [`flush`](Store::flush), except for the wait.
    pub fn start_flush(&self) -> Result<()> {
        self.freeze_for_flush()?;
        if self.inner().executor == Executor::Inline {
            return self.inner().work_inline();
        }
        self.inner().ring_flush();
        Ok(())
    }

    /// Returns the index to be reached, and how many flushes had failed before.
    fn freeze_for_flush(&self) -> Result<(u64, u64)> {
        let inner = self.inner();
        let mut state = inner.state.lock();
        if inner.options.mode == Mode::Wal {
            // Runs are the store's own: they end by themselves, and soon.
            inner.wait_for_run(&mut state);
        }
        check_no_run(&state)?;
        state.check_writable()?;
        inner.freeze(&mut state);
        let target = inner.visible.index();
        Ok((target, state.flush_failures))
    }

    /// How near the store is to making writers stand still, and why. It slows them down by itself, in proportion
    /// and long before (with [`Executor::Threads`]); whoever produces the writes, the leader of a replicated log for
    /// one, does better to ask for fewer when the [`level`](Pressure::level) nears 0.5. Costs some loads.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.inner().pressure()
    }

    /// The position up to which everything is in tables and survives a crash: replay begins after it, and
    /// the caller's log may be cut below it.
    #[must_use]
    pub fn durable_position(&self) -> Position {
        self.inner().state.lock().durable.clone()
    }

    /// The position of the last published run.
    #[must_use]
    pub fn visible_position(&self) -> Position {
        self.inner().visible.load().position
    }

    /// The newest published sequence number of a partition; 0 for none.
    #[must_use]
    pub fn last_sequence(&self, partition: PartitionId) -> SequenceNumber {
        SequenceNumber(self.inner().visible.sequence(partition.slot()))
    }

    /// The newest published version of a key.
    ///
    /// # Errors
    /// `Io` or `Corruption` of a table; `InvalidArgument` for an unknown partition.
    pub fn get(&self, partition: PartitionId, key: &[u8]) -> Result<Option<Found>> {
        let inner = self.inner();
        self.check_partition(partition)?;
        // The superversion first: a job may drop what was visible before it was loaded. And again after,
        // because only then is it certain to hold all that was visible.
        let mut superversion = inner.superversion.load();
        loop {
            let sequence = inner.visible.sequence(partition.slot());
            let now = inner.superversion.load();
            if Arc::ptr_eq(&superversion, &now) {
                return superversion.get(partition.slot(), key, sequence);
            }
            superversion = now;
        }
    }

    /// A view of what is visible now. Works on a closed store, too: its files stay open with the view.
    #[must_use]
    pub fn view(&self) -> View {
        View::now(Arc::clone(&self.0.inner))
    }

    /// A view whose number of `partition` is `sequence`; the other partitions as of now.
    ///
    /// # Errors
    /// `Compacted` below the retention floor (reading at it is allowed), `FutureSequence` above the
    /// newest published number; `InvalidArgument` for an unknown partition.
    pub fn view_at(&self, partition: PartitionId, sequence: SequenceNumber) -> Result<View> {
        View::at(Arc::clone(&self.0.inner), partition, sequence)
    }

    /// Raises the retention floor of a partition: history below it may be dropped. Durable before it has
    /// any effect; a number that is not above the present floor changes nothing.
    ///
    /// # Errors
    /// `FutureSequence` above the newest published number; `InvalidArgument` for an unknown partition or
    /// one that keeps only the newest versions; `NoSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn set_floor(&self, partition: PartitionId, sequence: SequenceNumber) -> Result<()> {
        let inner = self.inner();
        self.check_partition(partition)?;
        inner.state.lock().check_writable()?;
        if inner
            .options
            .partitions
            .get(partition.slot())
            .is_some_and(|p| p.keep == Keep::NewestOnly)
        {
            return Err(Error::InvalidArgument(format!(
                "{partition} keeps only the newest versions: it has no floor"
            )));
        }
        let visible = inner.visible.sequence(partition.slot());
        if sequence.0 > visible {
            return Err(Error::FutureSequence { asked: sequence.0, visible });
        }
        let mut catalog = inner.catalog.lock();
        if catalog.state().floors.get(partition.slot()).is_some_and(|floor| sequence.0 <= *floor) {
            return Ok(());
        }
        let committed =
            catalog.commit(&[Item::Floor { partition: partition.0, sequence: sequence.0 }]);
        drop(catalog);
        if let Err(e) = committed {
            inner.edit_failed(&e);
            return Err(e);
        }
        inner.retention.lock().raise(partition.slot(), sequence.0);
        inner.tell_of_manifest();
        inner.ring_compaction();
        Ok(())
    }

    /// The oldest sequence number of a partition that a new view may have.
    #[must_use]
    pub fn floor(&self, partition: PartitionId) -> SequenceNumber {
        let retention = self.inner().retention.lock();
        let visible = self.inner().visible.sequence(partition.slot());
        SequenceNumber(retention.floor(partition.slot(), visible))
    }

    /// Whether the memtables will be frozen when the next run begins.
    #[must_use]
    pub fn freeze_is_due(&self) -> bool {
        let active = Arc::clone(&self.inner().superversion.load().active);
        self.inner().freeze_is_due(&active)
    }

    /// Sizes now, and counts since the store was opened.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics { log: self.wal().map(Wal::metrics), ..self.inner().metrics() }
    }

    /// The ranges of keys that cannot be read, as far as is known: what reads, compactions, scrubbing and
    /// verification met, now or before the store was opened. See also [`Event::Damaged`](crate::events::Event::Damaged).
    ///
    /// # Errors
    /// If what was found just now cannot be recorded: `Io`; the store is then poisoned.
    pub fn damage(&self) -> Result<Vec<Damage>> {
        self.inner().damage()
    }

    /// Makes a copy of the store in `dir`, which must not be there or be empty: of everything in tables, that
    /// is, up to [`durable_position`](Store::durable_position), which with [`Mode::Wal`] is flushed to first.
    /// Tables get a second name where the file system allows it, so it costs little. The copy opens as a
    /// store with this one's options, and can be sent to another store, see [`Checkpoint`].
    ///
    /// # Errors
    /// `Corruption` if a table is known to be damaged; `InvalidArgument` if `dir` is not empty; those of
    /// [`flush`](Store::flush); `Io`, `Poisoned`, `Closed`. What was made of the copy is removed.
    pub fn checkpoint(&self, dir: &Path) -> Result<Checkpoint> {
        if self.inner().options.mode == Mode::Wal {
            self.flush()?;
        }
        self.inner().checkpoint(dir)
    }

    /// Reads about `budget` bytes of tables further, from the medium, in search of damage, which is then
    /// among [`damage`](Store::damage). For callers that pace it themselves; with
    /// [`Executor::Threads`] it is done in the background, at
    /// [`Options::scrub_bytes_per_second`](crate::Options::scrub_bytes_per_second).
    ///
    /// # Errors
    /// `Io`; the next call goes on with the next table.
    pub fn scrub_step(&self, budget: u64) -> Result<ScrubProgress> {
        self.inner().scrub_step(budget)
    }

    /// Checks that manifest and files agree: that every table is there, has its length, and its footer says
    /// that it is the one. Reads little; see [`verify`](Store::verify).
    ///
    /// # Errors
    /// `Corruption` naming the first thing that is wrong; `Io`.
    pub fn verify_quick(&self) -> Result<()> {
        self.inner().verify_quick()
    }

    /// Reads everything on disk and checks it: manifest against files, every block, order, bounds,
    /// counts, sums, that filters contain every key, that levels do not overlap. Takes the time it takes;
    /// reads and writes go on beside it.
    ///
    /// # Errors
    /// `Corruption` naming the first thing that is wrong; `Io`.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.inner().verify()
    }

    /// Ends the log of the store, if it has one, and background work, and releases the directory, for all
    /// handles. A flush under way is finished, a compaction is given up and done anew after the next
    /// opening. What is not flushed is for the caller's log to replay; call [`flush`](Store::flush) before to spare that.
    /// Views stay readable.
    ///
    /// # Errors
    /// `Io` if the manifest's last note cannot be synced; `Poisoned` if the store was.
    pub fn close(self) -> Result<()> {
        let inner = self.inner();
        let already_closed = inner.state.lock().closing;
        if already_closed {
            return Ok(());
        }
        // The log first: the directory may belong to somebody else as soon as the lock is released.
        let logged = self.wal().map_or(Ok(()), |wal| wal.close(&self));
        // What was found and not recorded yet; a failure poisons the store.
        let _poisoned = inner.settle_damage().is_err();
        let sound = self.0.stop();
        let poison = inner.state.lock().poison.clone();
        match poison {
            Some(reason) => Err(Error::Poisoned { reason }),
            None if logged.is_err() => logged,
            None if sound => inner.catalog.lock().sync(),
            None => Err(Error::Poisoned { reason: "a background thread panicked".to_owned() }),
        }
    }

    pub(crate) fn check_partition(&self, partition: PartitionId) -> Result<()> {
        let known = partition.slot() < self.inner().options.partitions.len();
        if known { Ok(()) } else { Err(unknown(partition)) }
    }
}

impl Inner {
    /// Why no more memtables may be frozen now, if so.
    fn is_full(&self, state: &State) -> Option<StallCause> {
        if state.frozen.len() >= self.options.frozen_max {
            return Some(StallCause::Memtables);
        }
        (state.l0_depth() >= self.options.l0_stop).then_some(StallCause::Level0)
    }

    /// Whether a run may begin that moves the store to `index`.
    fn check_next(&self, state: &State, index: u64) -> Result<()> {
        check_no_run(state)?;
        state.check_writable()?;
        let last = self.visible.index();
        if index <= last {
            return Err(Error::AlreadyApplied { what: "position", asked: index, last });
        }
        Ok(())
    }
}

fn check_no_run(state: &State) -> Result<()> {
    if state.run_open {
        return Err(Error::InvalidArgument("a run is open: publish it first".to_owned()));
    }
    Ok(())
}
