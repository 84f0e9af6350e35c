//! Executes a flush or compaction: entries in, tables out, nothing lost in between.

use std::path::PathBuf;
use std::sync::Arc;

use crate::compaction::gc::{Fate, KeyFate};
use crate::compaction::picker::GRANDPARENTS_MAX;
use crate::error::Result;
use crate::iter::InternalIter;
use crate::iter::merge::MergeIter;
use crate::sstable::builder::{TableBuilder, TableLayout};
use crate::sstable::reader::Table;
use crate::sstable::{TableMeta, entry_digest};
use crate::types::FileNumber;
use crate::vfs::VfsFile;

/// A fresh file for an output table.
#[derive(Debug)]
pub(crate) struct OutputFile {
    pub(crate) number: FileNumber,
    pub(crate) uid: u128,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn VfsFile>,
}

/// What a merge is to do.
pub(crate) struct MergeSpec<'a> {
    pub(crate) partition: u8,
    /// See [`crate::compaction::gc`]; frozen.
    pub(crate) bound: u64,
    pub(crate) layout: TableLayout,
    pub(crate) table_bytes: u64,
    /// Whether an older version of a user key may be outside of the job.
    pub(crate) older_elsewhere: &'a dyn Fn(&[u8]) -> bool,
    /// Tables of the level below the output's: an output overlaps only so many of them.
    pub(crate) grandparents: &'a [Arc<Table>],
}

/// Entries and the sum of their digests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) entries: u64,
    pub(crate) digest: u64,
}

impl Tally {
    pub(crate) const fn add(&mut self, entries: u64, digest: u64) {
        self.entries += entries;
        self.digest = self.digest.wrapping_add(digest);
    }
}

/// What a merge did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Merged {
    pub(crate) outputs: Vec<TableMeta>,
    pub(crate) read: Tally,
    pub(crate) shadowed: u64,
    pub(crate) spent_deletes: u64,
}

/// Merges `input` into tables made by `create`.
///
/// # Errors
/// Whatever reading or writing gives; the tables made so far are then the caller's to remove.
///
/// # Panics
/// If what was read is not what was written plus what was dropped, or if keys do not rise: installing
/// such tables would lose data.
pub(crate) fn merge(
    input: &mut MergeIter,
    spec: &MergeSpec<'_>,
    create: &mut dyn FnMut() -> Result<OutputFile>,
) -> Result<Merged> {
    let mut merged = Merged::default();
    let mut dropped = Tally::default();
    let mut written = Tally::default();
    let mut output: Option<TableBuilder> = None;
    let mut key: Option<Vec<u8>> = None;
    let mut fate = KeyFate::new(spec.bound);
    let mut grandparents = Grandparents { tables: spec.grandparents, passed: 0 };
    let mut scratch = Vec::new();
    input.seek_to_first()?;
    while input.valid() {
        let (sequence, kind) = (input.sequence(), input.kind());
        if key.as_deref() != Some(input.key()) {
            let changed = key.get_or_insert_default();
            changed.clear();
            changed.extend_from_slice(input.key());
            fate = KeyFate::new(spec.bound);
            // Cut only here: versions of a user key stay in one table.
            let crossed = grandparents.pass(input.key());
            if let Some(full) =
                output.take_if(|o| o.estimated_bytes() >= spec.table_bytes || crossed)
            {
                finish(full, &mut merged, &mut written)?;
                grandparents.passed = 0;
            }
        }
        let digest = entry_digest(&mut scratch, input.key(), sequence, kind, input.value());
        merged.read.add(1, digest);
        match fate.next(sequence, kind, || (spec.older_elsewhere)(input.key())) {
            Fate::Keep => {
                let builder = match &mut output {
                    Some(builder) => builder,
                    none => {
                        let made = create()?;
                        none.insert(TableBuilder::new(
                            made.file,
                            made.path,
                            made.number,
                            made.uid,
                            spec.partition,
                            spec.layout,
                        ))
                    }
                };
                builder.add(input.key(), sequence, kind, input.value())?;
            }
            Fate::Shadowed => {
                merged.shadowed += 1;
                dropped.add(1, digest);
            }
            Fate::SpentDelete => {
                merged.spent_deletes += 1;
                dropped.add(1, digest);
            }
        }
        input.next()?;
    }
    if let Some(last) = output {
        finish(last, &mut merged, &mut written)?;
    }
    let mut accounted = written;
    accounted.add(dropped.entries, dropped.digest);
    assert_eq!(
        merged.read, accounted,
        "entries read, and written plus dropped: {written:?} + {dropped:?}"
    );
    Ok(merged)
}

fn finish(builder: TableBuilder, merged: &mut Merged, written: &mut Tally) -> Result<()> {
    let meta = builder.finish()?;
    written.add(meta.entries, meta.kv_digest);
    merged.outputs.push(meta);
    Ok(())
}

/// Counts the tables of the level below that an output has passed.
struct Grandparents<'a> {
    /// Those not passed yet.
    tables: &'a [Arc<Table>],
    passed: usize,
}

impl Grandparents<'_> {
    /// Whether the output has passed too many, once it reaches `key`.
    fn pass(&mut self, key: &[u8]) -> bool {
        while let Some((first, rest)) = self.tables.split_first() {
            if first.meta().largest.user_key.as_slice() >= key {
                break;
            }
            self.tables = rest;
            self.passed += 1;
        }
        self.passed > GRANDPARENTS_MAX
    }
}
