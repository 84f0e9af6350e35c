//! Executes a flush or compaction: entries in, tables out, nothing lost in between.

use std::path::PathBuf;
use std::sync::Arc;

use crate::compaction::cut::Cutter;
use crate::compaction::gc::{Fate, KeyFate};
use crate::error::Result;
use crate::internal_key::SEQUENCE_BELOW_ALL;
use crate::iter::InternalIter;
use crate::iter::level::Tables;
use crate::iter::merge::MergeIter;
use crate::manifest::version::covering;
use crate::sstable::builder::{TableBuilder, TableLayout};
use crate::sstable::{TableMeta, entry_digest};
use crate::types::FileNumber;
use crate::vfs::VfsFile;

/// What an entry costs besides its key and value.
const ENTRY_BYTES: u64 = 8;

/// A fresh file for an output table.
#[derive(Debug)]
pub(crate) struct OutputFile {
    pub(crate) number: FileNumber,
    pub(crate) uid: u128,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn VfsFile>,
}

/// What a merge is to do.
#[derive(Debug)]
pub(crate) struct MergeSpec {
    pub(crate) partition: u8,
    /// See [`crate::compaction::gc`]; frozen.
    pub(crate) bound: u64,
    pub(crate) layout: TableLayout,
    pub(crate) cutter: Cutter,
    pub(crate) older: Older,
}

/// Where versions of a key may be that are older than all of a job's and not part of it: lists of
/// tables, each in order and without overlap.
#[derive(Debug)]
pub(crate) struct Older(pub(crate) Vec<Tables>);

impl Older {
    fn may_hold(&self, key: &[u8]) -> bool {
        self.0.iter().any(|tables| covering(tables, key).is_some())
    }
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

/// A merge under way. It goes forward step by step, so that whoever drives it can look up in between:
/// to pay for the next step, to wait for its turn, to give up.
#[derive(Debug)]
pub(crate) struct Merge {
    input: MergeIter,
    spec: MergeSpec,
    /// The user key after which it begins.
    after: Option<Vec<u8>>,
    started: bool,
    /// The user key that `fate` decides about.
    key: Option<Vec<u8>>,
    fate: KeyFate,
    output: Option<TableBuilder>,
    merged: Merged,
    dropped: Tally,
    written: Tally,
    scratch: Vec<u8>,
}

impl Merged {
    /// Adds what the merge of the keys after these did.
    pub(crate) fn append(&mut self, next: Self) {
        self.outputs.extend(next.outputs);
        self.read.add(next.read.entries, next.read.digest);
        self.shadowed += next.shadowed;
        self.spent_deletes += next.spent_deletes;
    }
}

impl Merge {
    pub(crate) fn new(input: MergeIter, spec: MergeSpec) -> Self {
        Self {
            input,
            after: None,
            started: false,
            key: None,
            fate: KeyFate::new(spec.bound),
            output: None,
            merged: Merged::default(),
            dropped: Tally::default(),
            written: Tally::default(),
            scratch: Vec::new(),
            spec,
        }
    }

    /// Of what comes after a user key; what it ends with, the bounds of the input say.
    pub(crate) fn beginning_after(mut self, key: Option<Vec<u8>>) -> Self {
        self.after = key;
        self
    }

    /// Goes on until at least `budget` bytes of entries were read, or to the end. Outputs are made by
    /// `create`. Returns what was done, once all is.
    ///
    /// # Errors
    /// Whatever reading or writing gives; `Corruption` if keys do not rise. The merge is then over, and the
    /// tables made so far are the caller's to remove.
    ///
    /// # Panics
    /// If what was read is not what was written plus what was dropped: installing such tables would lose
    /// data.
    pub(crate) fn step(
        &mut self,
        budget: u64,
        create: &mut dyn FnMut() -> Result<OutputFile>,
    ) -> Result<Option<Merged>> {
        if !self.started {
            self.started = true;
            match &self.after {
                None => self.input.seek_to_first()?,
                Some(key) => self.input.seek(key, SEQUENCE_BELOW_ALL)?,
            }
        }
        let mut read = 0;
        while self.input.valid() {
            if read >= budget {
                return Ok(None);
            }
            read += (self.input.key().len() + self.input.value().len()) as u64 + ENTRY_BYTES;
            self.entry(create)?;
            self.input.next()?;
        }
        if let Some(last) = self.output.take() {
            self.finish(last)?;
        }
        let mut accounted = self.written;
        accounted.add(self.dropped.entries, self.dropped.digest);
        assert_eq!(
            self.merged.read, accounted,
            "entries read, and written plus dropped: {:?} + {:?}",
            self.written, self.dropped
        );
        Ok(Some(std::mem::take(&mut self.merged)))
    }

    /// Entries read so far, and about how many bytes the tables written so far have.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let finished: u64 = self.merged.outputs.iter().map(|meta| meta.len).sum();
        let growing = self.output.as_ref().map_or(0, TableBuilder::estimated_bytes);
        (self.merged.read.entries, finished + growing)
    }

    /// Keeps or drops the entry the input is at.
    fn entry(&mut self, create: &mut dyn FnMut() -> Result<OutputFile>) -> Result<()> {
        let (sequence, kind) = (self.input.sequence(), self.input.kind());
        if self.key.as_deref() != Some(self.input.key()) {
            let changed = self.key.get_or_insert_default();
            changed.clear();
            changed.extend_from_slice(self.input.key());
            self.fate = KeyFate::new(self.spec.bound);
            // Cut only here: versions of a user key stay in one table.
            let bytes = self.output.as_ref().map(TableBuilder::estimated_bytes);
            if self.spec.cutter.ends_before(self.input.key(), bytes)
                && let Some(full) = self.output.take()
            {
                self.finish(full)?;
            }
        }
        let key = self.input.key();
        let digest = entry_digest(&mut self.scratch, key, sequence, kind, self.input.value());
        self.merged.read.add(1, digest);
        match self.fate.next(sequence, kind, || self.spec.older.may_hold(key)) {
            Fate::Keep => {
                let builder = match &mut self.output {
                    Some(builder) => builder,
                    none => {
                        let made = create()?;
                        none.insert(TableBuilder::new(
                            made.file,
                            made.path,
                            made.number,
                            made.uid,
                            self.spec.partition,
                            self.spec.layout,
                        ))
                    }
                };
                builder.add_digested(key, sequence, kind, self.input.value(), digest)?;
            }
            Fate::Shadowed => {
                self.merged.shadowed += 1;
                self.dropped.add(1, digest);
            }
            Fate::SpentDelete => {
                self.merged.spent_deletes += 1;
                self.dropped.add(1, digest);
            }
        }
        Ok(())
    }

    fn finish(&mut self, builder: TableBuilder) -> Result<()> {
        let meta = builder.finish()?;
        self.written.add(meta.entries, meta.kv_digest);
        self.merged.outputs.push(meta);
        Ok(())
    }
}
