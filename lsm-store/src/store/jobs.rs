//! The background work: one flush, one compaction. Called by threads or inline, the same code.

use std::path::PathBuf;
use std::sync::Arc;

use crate::compaction::cut::Cutter;
use crate::compaction::merge::{Merge, MergeSpec, Merged, Older, OutputFile, Tally};
use crate::compaction::picker::{Pick, PickOptions, Shape, TableInfo, pick};
use crate::error::{Error, IoContext, Result};
use crate::iter::level::{LevelIter, Tables};
use crate::iter::mem::MemIter;
use crate::iter::merge::{MergeIter, Source};
use crate::iter::reading::Reading;
use crate::manifest::current::table_path;
use crate::manifest::edit::{Item, PlacedTable};
use crate::manifest::version::{Levels, Version};
use crate::memtable::MemSet;
use crate::options::{Compression, LEVELS, Options};
use crate::sstable::TableMeta;
use crate::sstable::builder::TableLayout;
use crate::sstable::format::Codec;
use crate::sstable::reader::Table;
use crate::store::inner::Inner;
use crate::store::space::bytes_read;
use crate::types::FileNumber;

/// First level whose tables are compressed, if any are: those above are rewritten soon.
const COMPRESSED_FROM: usize = 2;

/// Bytes of entries that a job reads before it looks up.
const STEP_BYTES: u64 = 64 * 1024;

impl Inner {
    /// Does everything that is due, on this thread. A failed compaction is recorded and done by a later call.
    ///
    /// # Errors
    /// That of a flush that fails; what it was to do is done by a later call.
    pub(crate) fn work_inline(&self) -> Result<()> {
        while self.flush_once()? {}
        while self.compact_once().is_ok_and(|done| done) {}
        self.settle_damage()
    }

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
        let result = self.flush_sets(&sets);
        self.state.lock().flushing = false;
        self.changed.notify_all();
        self.bury();
        match result {
            Ok(()) => {
                self.ring_compaction();
                Ok(true)
            }
            Err(e) => {
                self.record_failure(&e, true);
                Err(e)
            }
        }
    }

    /// Writes the entries of `sets` into one run per partition and records, in the same edit, what tables
    /// then hold everything up to.
    fn flush_sets(&self, sets: &[Arc<MemSet>]) -> Result<()> {
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
            let base = levels.levels.iter().find(|l| !l.is_empty()).cloned().unwrap_or_default();
            let cutter = Cutter::pieces(self.options.table_bytes, base);
            let merged = self.write_tables(
                MergeIter::new(sources),
                self.merge_spec(id, 0, cutter, older_than_level(levels, None)),
            );
            let merged = match merged {
                Ok(merged) => merged,
                Err(e) => {
                    self.discard(&metas);
                    return Err(e);
                }
            };
            metas.extend(merged.outputs);
            if merged.read != expected {
                self.discard(&metas);
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
        let bytes = metas.iter().map(|m| m.len).sum();
        let edit = |manifest: &crate::manifest::state::ManifestState| {
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
        Ok(())
    }

    /// Does one compaction, if one is due. Returns whether one was.
    ///
    /// # Errors
    /// The job failed and left no trace; it is due again, with fresh files.
    pub(crate) fn compact_once(&self) -> Result<bool> {
        let mut state = self.state.lock();
        if state.compacting || state.check_writable().is_err() {
            return Ok(false);
        }
        state.compacting = true;
        let version = Arc::clone(&state.version);
        drop(state);
        let result = self
            .pick(&version)
            .filter(|(_, _, pick)| {
                !pick.inputs.iter().chain(&pick.overlapped).any(|n| self.is_quarantined(*n))
            })
            .filter(|(_, levels, pick)| pick.trivial || self.has_room_for(bytes_read(levels, pick)))
            .map(|(id, levels, pick)| self.compact(id, levels, &pick))
            .transpose();
        self.state.lock().compacting = false;
        self.changed.notify_all();
        self.bury();
        match result {
            Ok(done) => Ok(done.is_some()),
            Err(e) => {
                self.record_failure(&e, false);
                Err(e)
            }
        }
    }

    fn pick<'v>(&self, version: &'v Version) -> Option<(u8, &'v Levels, Pick)> {
        let options = PickOptions {
            l0_trigger: self.options.l0_trigger,
            level_ratio: self.options.level_ratio,
            base_level_bytes: self.options.base_level_bytes,
            compressed_from: match self.options.compression {
                Compression::None => LEVELS,
                Compression::Lz4 => COMPRESSED_FROM,
            },
        };
        (0_u8..).zip(&version.partitions).find_map(|(id, levels)| {
            let bound = self.bound(usize::from(id));
            let info = |t: &'v Arc<Table>| table_info(t.meta(), bound);
            let runs = levels.runs.iter().flat_map(|r| r.tables.iter()).map(info).collect();
            let lower =
                levels.levels.iter().skip(1).map(|tables| tables.iter().map(info).collect());
            let shape = Shape {
                runs: levels.runs.len(),
                levels: std::iter::once(runs).chain(lower).collect(),
            };
            pick(&shape, &options).map(|pick| (id, levels, pick))
        })
    }

    /// What a job starting now may drop below.
    fn bound(&self, partition: usize) -> u64 {
        let retention = self.retention.lock();
        retention.bound(partition, self.visible.sequence(partition))
    }

    fn compact(&self, id: u8, levels: &Levels, pick: &Pick) -> Result<()> {
        let inputs = select(levels, pick.level, &pick.inputs);
        let overlapped = select(levels, pick.output_level, &pick.overlapped);
        let all: Vec<&Arc<Table>> =
            inputs.iter().chain(&overlapped).flat_map(|run| run.iter()).collect();
        assert_eq!(
            all.len(),
            pick.inputs.len() + pick.overlapped.len(),
            "tables of a compaction of level {} found in the version it was picked from",
            pick.level
        );
        let delete = |level: usize, numbers: &[FileNumber]| {
            numbers
                .iter()
                .map(|n| Item::DeleteTable { partition: id, level, number: *n })
                .collect::<Vec<_>>()
        };
        let mut items = delete(pick.level, &pick.inputs);
        items.extend(delete(pick.output_level, &pick.overlapped));
        let add = |meta: TableMeta| {
            Item::AddTable(Box::new(PlacedTable { level: pick.output_level, l0_epoch: 0, meta }))
        };
        if pick.trivial {
            items.extend(all.iter().map(|t| add(t.meta().clone())));
            self.install(|_| items, &[], |_| {})?;
            self.counters.trivial_moves.add(1);
            return Ok(());
        }
        let sources = inputs.iter().chain(&overlapped).map(|run| {
            Source::Level(Box::new(LevelIter::new(Arc::clone(run), Reading::COMPACTION)))
        });
        let below = levels.levels.get(pick.output_level + 1).cloned().unwrap_or_default();
        let cutter = Cutter::aligned(self.options.table_bytes, below);
        let older = older_than_level(levels, Some(pick.output_level));
        let merged = self.write_tables(
            MergeIter::new(sources.collect()),
            self.merge_spec(id, pick.output_level, cutter, older),
        )?;
        let mut expected = Tally::default();
        all.iter().for_each(|t| expected.add(t.meta().entries, t.meta().kv_digest));
        if merged.read != expected {
            self.discard(&merged.outputs);
            let reason = format!(
                "compaction of level {} read {:?} where its tables hold {expected:?}",
                pick.level, merged.read
            );
            let imbalance = Error::Poisoned { reason };
            self.poison(&imbalance);
            return Err(imbalance);
        }
        let opened = self.publish_files(&merged.outputs)?;
        let (read, written) =
            (all.iter().map(|t| t.meta().len).sum(), merged.outputs.iter().map(|m| m.len).sum());
        items.extend(merged.outputs.into_iter().map(add));
        self.install(|_| items, &opened, |_| {})?;
        self.counters.compactions.add(1);
        self.counters.compaction_bytes_read.add(read);
        self.counters.compaction_bytes_written.add(written);
        Ok(())
    }

    fn merge_spec(&self, partition: u8, level: usize, cutter: Cutter, older: Older) -> MergeSpec {
        let bound = self.bound(usize::from(partition));
        MergeSpec { partition, bound, layout: self.layout(level), cutter, older }
    }

    /// How tables of a level are laid out.
    pub(crate) fn layout(&self, level: usize) -> TableLayout {
        layout(&self.options, level)
    }

    /// Merges into new tables; on an error removes what it wrote.
    fn write_tables(&self, input: MergeIter, spec: MergeSpec) -> Result<Merged> {
        let mut created = Vec::new();
        let mut merge = Merge::new(input, spec);
        loop {
            match merge.step(STEP_BYTES, &mut || self.create_output(&mut created)) {
                Ok(None) => {}
                Ok(Some(merged)) => {
                    self.counters.shadowed_dropped.add(merged.shadowed);
                    self.counters.deletes_dropped.add(merged.spent_deletes);
                    return Ok(merged);
                }
                Err(e) => {
                    self.remove_outputs(&created);
                    return Err(e);
                }
            }
        }
    }

    fn create_output(&self, created: &mut Vec<PathBuf>) -> Result<OutputFile> {
        let (number, uid) = self.catalog.lock().allocate().inspect_err(|e| self.poison(e))?;
        let path = table_path(&self.dir, number);
        let file = self.vfs.create_new(&path).context("create", &path)?;
        created.push(path.clone());
        Ok(OutputFile { number, uid, path, file })
    }

    /// Makes complete tables durable under their names and reads their ends back, so that an edit may
    /// refer to them; on an error removes them.
    fn publish_files(&self, metas: &[TableMeta]) -> Result<Vec<Arc<Table>>> {
        if metas.is_empty() {
            return Ok(Vec::new());
        }
        let opened = self.sync_table_dir().and_then(|()| {
            metas.iter().map(|meta| self.open_table(meta.clone())).collect::<Result<Vec<_>>>()
        });
        opened.inspect_err(|_| self.discard(metas))
    }

    fn discard(&self, metas: &[TableMeta]) {
        let paths: Vec<_> = metas.iter().map(|m| table_path(&self.dir, m.number)).collect();
        self.remove_outputs(&paths);
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

fn table_info(meta: &TableMeta, bound: u64) -> TableInfo<'_> {
    TableInfo {
        number: meta.number,
        bytes: meta.len,
        smallest: &meta.smallest.user_key,
        largest: &meta.largest.user_key,
        entries: meta.entries,
        deletes: meta.deletes,
        garbage: meta.garbage_at(bound),
    }
}

/// Where something older may be than what is in `level` and its inputs; without a level, than memtables.
fn older_than_level(levels: &Levels, level: Option<usize>) -> Older {
    let runs = level.is_none().then_some(&levels.runs).into_iter().flatten();
    let lower = levels.levels.iter().skip(level.map_or(0, |l| l + 1));
    Older(runs.map(|run| &run.tables).chain(lower).filter(|t| !t.is_empty()).cloned().collect())
}

/// The named tables of a level, as runs that are each in order.
fn select(levels: &Levels, level: usize, numbers: &[FileNumber]) -> Vec<Tables> {
    let pick = |tables: &Tables| -> Tables {
        tables.iter().filter(|t| numbers.contains(&t.meta().number)).cloned().collect()
    };
    let runs: Vec<Tables> = if level == 0 {
        levels.runs.iter().map(|r| pick(&r.tables)).collect()
    } else {
        levels.levels.get(level).map(pick).into_iter().collect()
    };
    runs.into_iter().filter(|r| !r.is_empty()).collect()
}
