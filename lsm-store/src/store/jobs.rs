//! Flushes, and what they share with compactions: making outputs, and making them part of the store.
//! Called by threads or inline, the same code.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::compaction::cut::Cutter;
use crate::compaction::merge::{Merge, MergeSpec, Merged, Older, OutputFile, Tally};
use crate::error::{Error, IoContext, Result};
use crate::events::Event;
use crate::iter::mem::MemIter;
use crate::iter::merge::{MergeIter, Source};
use crate::manifest::current::table_path;
use crate::manifest::edit::{Item, PlacedTable};
use crate::manifest::state::ManifestState;
use crate::manifest::version::Levels;
use crate::memtable::MemSet;
use crate::options::{Compression, Options};
use crate::sstable::TableMeta;
use crate::sstable::builder::TableLayout;
use crate::sstable::format::Codec;
use crate::sstable::reader::Table;
use crate::store::compact::base;
use crate::store::inner::Inner;
use crate::store::metrics::LevelWork;

/// First level whose tables are compressed, if any are: those above are rewritten soon.
pub(crate) const COMPRESSED_FROM: usize = 2;

/// Bytes of entries that a job reads before it looks up.
pub(crate) const STEP_BYTES: u64 = 64 * 1024;

impl Inner {
    /// Flushes all frozen memtables, if there are any. Returns whether there were.
    ///
    /// # Errors
    /// The job failed and left no trace; it is due again, with fresh files.
    pub(crate) fn flush_once(&self) -> Result<bool> {
        let mut state = self.state.lock();
        if state.flushing || state.frozen.is_empty() || state.check_writable().is_err() {
            return Ok(false);
        }
        state.flushing = true;
        let sets = state.frozen.clone();
        drop(state);
        let mut created = Vec::new();
        let since = self.stopwatch();
        self.backlog.flush_begins(sets.iter().map(|set| set.bytes() as u64).sum());
        let result = self.flush_sets(&sets, &mut created, since);
        let took = since.filter(|_| result.is_ok()).map(|since| since.elapsed());
        self.backlog.flush_ends(took);
        self.state.lock().flushing = false;
        self.changed.notify_all();
        match &result {
            Ok(()) => self.ring_compaction(),
            Err(e) => {
                self.abandon(&created);
                self.record_failure(e, true);
            }
        }
        self.bury();
        self.tell_end_of_delays();
        result?;
        self.cut_log()?;
        Ok(true)
    }

    /// Writes the entries of `sets` into one run per partition and records, in the same edit, what tables
    /// then hold everything up to.
    fn flush_sets(
        &self,
        sets: &[Arc<MemSet>],
        created: &mut Vec<PathBuf>,
        since: Option<Instant>,
    ) -> Result<()> {
        let Some(point) = sets.last().and_then(|s| s.freeze_point()).cloned() else {
            return Ok(());
        };
        let version = Arc::clone(&self.state.lock().version);
        let mut metas = Vec::new();
        for id in (0_u8..).take(self.options.partitions.len()) {
            let partition = usize::from(id);
            let mut sources = Vec::new();
            let mut expected = Tally::default();
            for table in sets.iter().filter_map(|set| set.table(partition).map(|t| (set, t))) {
                expected.add(table.1.len() as u64, table.1.digest());
                sources.push(Source::Mem(MemIter::new(Arc::clone(table.0), partition)));
            }
            let Some(levels) = version.partitions.get(partition) else { continue };
            let cutter = Cutter::pieces(self.options.table_bytes, base(levels));
            let spec = self.merge_spec(id, 0, cutter, older_than_memtables(levels));
            let merged = self.write_tables(MergeIter::new(sources), spec, created, since)?;
            metas.extend(merged.outputs);
            if merged.read != expected {
                let reason = format!(
                    "flush of partition {id} read {:?} where {expected:?} was written to its \
                     memtables: memory was damaged",
                    merged.read
                );
                let imbalance = Error::Poisoned { reason };
                self.poison(&imbalance);
                return Err(imbalance);
            }
        }
        let opened = self.publish_files(&metas)?;
        let sizes: Vec<(u8, u64)> = metas.iter().map(|m| (m.partition, m.len)).collect();
        let (tables, bytes) = (sizes.len(), sizes.iter().map(|(_, bytes)| bytes).sum());
        let edit = |manifest: &ManifestState| {
            let l0_epoch = manifest.next_l0_epoch();
            let place = |meta| Item::AddTable(Box::new(PlacedTable { level: 0, l0_epoch, meta }));
            let mut items: Vec<_> = metas.into_iter().map(place).collect();
            items.push(Item::Flushed {
                position: point.position.clone(),
                sequences: (0_u8..).zip(point.sequences.iter().copied()).collect(),
            });
            items
        };
        self.install(edit, &opened, |state| {
            state.frozen.retain(|set| !sets.iter().any(|s| Arc::ptr_eq(s, set)));
            state.durable = point.position.clone();
        })?;
        self.measure_space();
        self.counters.flushes.add(1);
        self.counters.flush_bytes.add(bytes);
        for (partition, written) in sizes {
            self.counters.worked(partition, 0, LevelWork { written, ..LevelWork::default() });
        }
        let took = since.map(|since| since.elapsed());
        self.counters.flush_micros.record_time(took);
        self.options.events.emit(|| Event::Flushed {
            position: point.position.index,
            entries: sets.iter().map(|set| set.entries() as u64).sum(),
            tables,
            bytes,
            took,
        });
        Ok(())
    }

    /// What a job starting now may drop below.
    pub(crate) fn bound(&self, partition: usize) -> u64 {
        let mut retention = self.retention.lock();
        retention.look(self.stopwatch());
        retention.bound(partition, self.visible.sequence(partition))
    }

    /// How to merge into a level. The bound is that of now.
    pub(crate) fn merge_spec(
        &self,
        partition: u8,
        level: usize,
        cutter: Cutter,
        older: Older,
    ) -> MergeSpec {
        let bound = self.bound(usize::from(partition));
        MergeSpec { partition, bound, layout: self.layout(level), cutter, older }
    }

    /// How tables of a level are laid out.
    pub(crate) fn layout(&self, level: usize) -> TableLayout {
        layout(&self.options, level)
    }

    /// Merges memtables into new tables.
    fn write_tables(
        &self,
        input: MergeIter,
        spec: MergeSpec,
        created: &mut Vec<PathBuf>,
        since: Option<Instant>,
    ) -> Result<Merged> {
        let mut merge = Merge::new(input, spec);
        loop {
            let merged = merge.step(STEP_BYTES, &mut || self.create_output(created))?;
            self.backlog.flush_goes_on(since);
            if let Some(merged) = merged {
                self.counters.shadowed_dropped.add(merged.shadowed);
                self.counters.deletes_dropped.add(merged.spent_deletes);
                return Ok(merged);
            }
        }
    }

    /// Creates the file of an output and enters it into `created`.
    pub(crate) fn create_output(&self, created: &mut Vec<PathBuf>) -> Result<OutputFile> {
        let (number, uid) = self.catalog.lock().allocate().inspect_err(|e| self.edit_failed(e))?;
        let path = table_path(&self.dir, number);
        let file = self.vfs.create_new(&path).context("create", &path)?;
        created.push(path.clone());
        Ok(OutputFile { number, uid, path, file })
    }

    /// Makes complete tables durable under their names and reads their ends back, so that an edit may
    /// refer to them.
    pub(crate) fn publish_files(&self, metas: &[TableMeta]) -> Result<Vec<Arc<Table>>> {
        if metas.is_empty() {
            return Ok(Vec::new());
        }
        self.sync_table_dir()?;
        metas.iter().map(|meta| self.open_table(meta.clone())).collect()
    }

    /// Removes the outputs of a job that failed, unless an edit that names them may have become durable:
    /// then the next open decides.
    pub(crate) fn abandon(&self, created: &[PathBuf]) {
        if self.state.lock().poison.is_none() {
            self.remove_outputs(created);
        }
    }
}

/// How tables of a level are laid out.
pub(crate) fn layout(options: &Options, level: usize) -> TableLayout {
    let compressed = level >= COMPRESSED_FROM && options.compression == Compression::Lz4;
    TableLayout {
        block_bytes: options.block_bytes,
        restart_interval: options.restart_interval,
        index_partition_bytes: options.index_partition_bytes,
        filter_bits_per_key: options.filter_bits_per_key,
        codec: if compressed { Codec::Lz4 } else { Codec::None },
    }
}

/// Where something older may be than what is in memtables.
fn older_than_memtables(levels: &Levels) -> Older {
    let runs = levels.runs.iter().map(|run| &run.tables);
    Older(runs.chain(&levels.levels).filter(|t| !t.is_empty()).cloned().collect())
}
