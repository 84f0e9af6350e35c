//! Reads a whole table and checks everything that can be checked about it.

use std::collections::BTreeSet;

use crate::checksum::Digester;
use crate::error::{Error, IoContext, Result};
use crate::internal_key::{InternalKey, Kind, compare};
use crate::sstable::block_iter::BlockIter;
use crate::sstable::entry_digest;
use crate::sstable::filter::{Filter, key_hash};
use crate::sstable::format::{BlockKind, Handle};
use crate::sstable::reader::Table;
use crate::vfs::Advice;

/// Bytes read at once for the digest of the file.
const CHUNK_BYTES: u64 = 1 << 20;

/// Checks a table from its medium, past the cache: digest of the file, every block, order, bounds,
/// counts, sums, separators, and that filters contain every key. Returns the number of blocks.
pub(crate) fn verify_table(table: &Table) -> Result<u64> {
    table.check_open()?;
    verify_digest(table)?;
    let mut check = Check {
        table,
        entries: 0,
        deletes: 0,
        digest: 0,
        last: None,
        smallest: None,
        min_sequence: u64::MAX,
        max_sequence: 0,
        next_offset: 0,
        blocks: 0,
        scratch: Vec::new(),
    };
    let mut partition_keys = BTreeSet::new();
    for top in table.top() {
        let filter = table.load_part::<Filter>(top)?;
        let mut index = BlockIter::new(table.block(top.index, BlockKind::Index)?);
        let before = check.entries;
        let mut keys = 0;
        index.seek_to_first()?;
        while index.valid() {
            keys += check.data_block(&index, &filter)?;
            index.next()?;
        }
        if check.entries - before != top.entries {
            return Err(table.corrupt(
                top.index,
                "index partition has another number of entries than the top block says",
            ));
        }
        if u64::from(filter.keys()) != keys {
            return Err(
                table.corrupt(top.filter, "filter has another number of keys than its partition")
            );
        }
        if check.last.as_ref().is_none_or(|l| l.user_key != top.last_key)
            || !partition_keys.insert(&top.last_key)
        {
            return Err(table.corrupt(
                top.index,
                "index partition does not end with the key the top block says",
            ));
        }
        check.blocks += 2;
    }
    check.finish()
}

/// Reads every block and says how many are damaged; each is reported by the table. Nothing else is looked
/// at, so that what is found is where it is.
pub(crate) fn locate_damage(table: &Table) -> usize {
    let damaged = |handle, kind| usize::from(table.read(handle, kind).is_err());
    let mut found = 0;
    for top in table.top() {
        found += damaged(top.filter, BlockKind::Filter);
        found += damaged(top.index, BlockKind::Index);
        let blocks = table.block(top.index, BlockKind::Index).and_then(|index| {
            let mut index = BlockIter::new(index);
            let mut handles = Vec::new();
            index.seek_to_first()?;
            while index.valid() {
                handles.push(index.handle());
                index.next()?;
            }
            Ok(handles)
        });
        let handles = blocks.unwrap_or_default();
        found += handles.into_iter().map(|handle| damaged(handle, BlockKind::Data)).sum::<usize>();
    }
    found
}

fn verify_digest(table: &Table) -> Result<()> {
    let mut digester = Digester::new();
    let mut buf = Vec::new();
    let mut offset = 0;
    while offset < table.meta().len {
        let len = (table.meta().len - offset).min(CHUNK_BYTES);
        buf.resize(usize::try_from(len).unwrap_or(0), 0);
        // The medium is asked, not what the operating system remembers of it.
        table.file().advise(offset, len, Advice::DontNeed);
        table.file().read_exact_at(&mut buf, offset).context("read", table.path())?;
        digester.update(&buf);
        offset += len;
    }
    if digester.finish() == table.meta().digest {
        Ok(())
    } else {
        Err(Error::corruption(
            table.path(),
            0,
            "digest of the file differs from what the manifest says",
        ))
    }
}

struct Check<'a> {
    table: &'a Table,
    entries: u64,
    deletes: u64,
    digest: u64,
    last: Option<InternalKey>,
    smallest: Option<InternalKey>,
    min_sequence: u64,
    max_sequence: u64,
    next_offset: u64,
    blocks: u64,
    scratch: Vec<u8>,
}

impl Check<'_> {
    /// Returns the number of distinct user keys that begin in the block.
    fn data_block(&mut self, index: &BlockIter, filter: &Filter) -> Result<u64> {
        let handle = index.handle();
        let corrupt = |detail: &str| self.table.corrupt(handle, detail);
        if handle.offset != self.next_offset {
            return Err(corrupt("data blocks do not follow each other"));
        }
        let block = self.table.block(handle, BlockKind::Data)?;
        let mut data = BlockIter::new(block.clone());
        data.seek_to_first()?;
        let mut entries = 0_u32;
        let mut keys = 0;
        while data.valid() {
            let (key, sequence) = (data.key(), data.sequence());
            let order =
                self.last.as_ref().map(|l| compare((&l.user_key, l.sequence), (key, sequence)));
            if order.is_some_and(|order| !order.is_lt()) {
                return Err(corrupt("keys do not rise"));
            }
            if sequence == 0 {
                return Err(corrupt("sequence number 0"));
            }
            if self.last.as_ref().is_none_or(|l| l.user_key != key) {
                keys += 1;
                if !filter.may_contain(key_hash(key)) {
                    return Err(corrupt("filter does not contain a key of its partition"));
                }
            }
            if compare((key, sequence), (index.key(), index.sequence())).is_gt() {
                return Err(corrupt("entry above the separator of its block"));
            }
            let digest = entry_digest(&mut self.scratch, key, sequence, data.kind(), data.value());
            self.digest = self.digest.wrapping_add(digest);
            self.entries += 1;
            self.deletes += u64::from(data.kind() == Kind::Delete);
            self.min_sequence = self.min_sequence.min(sequence);
            self.max_sequence = self.max_sequence.max(sequence);
            let here = InternalKey { user_key: key.to_vec(), sequence };
            self.smallest.get_or_insert_with(|| here.clone());
            self.last = Some(here);
            entries += 1;
            data.next()?;
        }
        if entries != block.entry_count() {
            return Err(corrupt("block has another number of entries than it says"));
        }
        self.next_offset = handle.end().unwrap_or(u64::MAX);
        self.blocks += 1;
        Ok(keys)
    }

    fn finish(self) -> Result<u64> {
        let meta = self.table.meta();
        let whole = self.entries == meta.entries
            && self.deletes == meta.deletes
            && self.digest == meta.kv_digest
            && self.smallest.as_ref() == Some(&meta.smallest)
            && self.last.as_ref() == Some(&meta.largest)
            && self.min_sequence == meta.min_sequence
            && self.max_sequence == meta.max_sequence
            && self.next_offset == self.table.data_end()
            && self.table.properties().data_blocks + 2 * self.table.top().len() as u64
                == self.blocks;
        if whole {
            Ok(self.blocks)
        } else {
            let handle = Handle { offset: self.table.data_end(), len: 0 };
            Err(self
                .table
                .corrupt(handle, "counts, bounds or sums of the table differ from its entries"))
        }
    }
}
