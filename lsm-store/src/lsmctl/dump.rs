//! `dump`: what one file says, record by record.

use std::path::Path;
use std::sync::Arc;

use super::{Outcome, Show, first_bytes, readable};
use crate::cache::BlockCache;
use crate::coding::DecodeError;
use crate::error::{Error, IoContext, Result};
use crate::journal::record::{HEADER_BYTES, kind};
use crate::journal::scan::{Found, Scanner, Step, settle_tail};
use crate::journal::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::manifest::current::{Listing, manifest_path, parse_manifest, parse_table};
use crate::manifest::edit::{self, Item};
use crate::manifest::file::{
    FIRST_RECORD, Header, KIND_EDIT, KIND_SNAPSHOT_END, KIND_SNAPSHOT_PART,
};
use crate::sstable::TableMeta;
use crate::sstable::block_iter::BlockIter;
use crate::sstable::format::{
    BlockKind, FOOTER_BYTES, Footer, Source, read_block, without_trailer,
};
use crate::sstable::properties::Properties;
use crate::sstable::reader::{Graveyard, Table};
use crate::types::{FileNumber, Op};
use crate::vfs::Vfs;
use crate::wal::batch;

pub(super) fn run(vfs: &dyn Vfs, path: &Path, show: Show, limit: u64) -> Result<Outcome> {
    if parse_manifest(path).is_some() {
        manifest(vfs, path, show, limit)?;
    } else if path.extension().is_some_and(|extension| extension == "sst") {
        table(vfs, path, show, limit)?;
    } else if path.extension().is_some_and(|extension| extension == "wal") {
        segment(vfs, path, show, limit)?;
    } else if let Some((_, number)) = Listing::read(vfs, path)?.current() {
        manifest(vfs, &manifest_path(path, number), show, limit)?;
    } else {
        let detail = format!(
            "{} is neither a MANIFEST-… nor a ….sst nor a ….wal, nor a store's directory",
            path.display()
        );
        return Err(Error::InvalidArgument(detail));
    }
    Ok(Outcome::Sound)
}

fn manifest(vfs: &dyn Vfs, path: &Path, show: Show, limit: u64) -> Result<()> {
    let header = Header::read(&first_bytes(vfs, path, FIRST_RECORD)?, path)?;
    println!(
        "manifest {} store {:032x} epoch {:016x}",
        header.number, header.store_id, header.epoch
    );
    let file = vfs.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let tail = settle_tail(&file, path, header.epoch, FIRST_RECORD, FIRST_RECORD, len)?;
    let mut scanner = Scanner::new(file, path, header.epoch, FIRST_RECORD, tail.end);
    let mut records = 0;
    while let Step::Record(found) = scanner.step()? {
        if records == limit {
            return Ok(());
        }
        records += 1;
        let what = match found.header.kind {
            KIND_SNAPSHOT_PART => "part of the snapshot",
            KIND_SNAPSHOT_END => "end of the snapshot",
            KIND_EDIT => "edit",
            kind::SYNC_NOTE => "note: what is before is synced",
            _ => "record of an unknown kind",
        };
        println!("{}: {what}", found.offset);
        if matches!(found.header.kind, KIND_SNAPSHOT_PART | KIND_EDIT) {
            let items = edit::decode(found.payload)
                .map_err(|e| Error::decode(path, found.offset + HEADER_BYTES as u64, e))?;
            items.iter().for_each(|item| println!("  {}", show_item(item, show)));
        }
    }
    Ok(())
}

fn show_item(item: &Item, show: Show) -> String {
    let Item::AddTable(table) = item else { return format!("{item:?}") };
    let m = &table.meta;
    let bounds = if show >= Show::Keys {
        format!(" {} to {}", readable(&m.smallest.user_key), readable(&m.largest.user_key))
    } else {
        String::new()
    };
    format!(
        "add table {} partition {} level {} age {} uid {:032x} bytes {} entries {} deletes {} sequences {} to {}{bounds}",
        m.number,
        m.partition,
        table.level,
        table.l0_epoch,
        m.uid,
        m.len,
        m.entries,
        m.deletes,
        m.min_sequence,
        m.max_sequence
    )
}

fn table(vfs: &dyn Vfs, path: &Path, show: Show, limit: u64) -> Result<()> {
    let meta = meta(vfs, path)?;
    let cache = Arc::new(BlockCache::new(0));
    let file = vfs.open_read(path).context("open", path)?;
    let table = Table::open(file, path, meta, cache, Graveyard::default())?;
    let meta = table.meta();
    println!(
        "table uid {:032x} partition {} bytes {} entries {} deletes {} sequences {} to {}",
        meta.uid,
        meta.partition,
        meta.len,
        meta.entries,
        meta.deletes,
        meta.min_sequence,
        meta.max_sequence
    );
    let mut entries = 0;
    for top in table.top() {
        let mut index = BlockIter::new(table.block(top.index, BlockKind::Index)?);
        index.seek_to_first()?;
        while index.valid() {
            let handle = index.handle();
            let mut data = BlockIter::new(table.block(handle, BlockKind::Data)?);
            data.seek_to_first()?;
            println!("block at {}, {} bytes", handle.offset, handle.len);
            while data.valid() {
                if entries == limit {
                    return Ok(());
                }
                entries += 1;
                let op = Shown { kind: format!("{:?}", data.kind()), key: data.key() };
                println!("  {} sequence {}", op.text(data.value(), show), data.sequence());
                data.next()?;
            }
            index.next()?;
        }
    }
    Ok(())
}

/// What a table says of itself. The digest of the file stays open: only a manifest has it.
fn meta(vfs: &dyn Vfs, path: &Path) -> Result<TableMeta> {
    let file = vfs.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let footer = Footer::read(&*file, path, len)?;
    let blocks_end = len - FOOTER_BYTES as u64;
    let source = Source { file: &*file, path, uid: footer.uid, blocks_end };
    let raw = read_block(source, footer.properties, BlockKind::Properties)?;
    let p = Properties::decode(without_trailer(&raw), path, footer.properties.offset)?;
    Ok(TableMeta {
        partition: p.partition,
        number: parse_table(path).unwrap_or(FileNumber(0)),
        uid: footer.uid,
        len,
        digest: 0,
        smallest: p.smallest,
        largest: p.largest,
        min_sequence: p.min_sequence,
        max_sequence: p.max_sequence,
        entries: p.entries,
        deletes: p.deletes,
        superseded: p.superseded,
        superseded_at: p.superseded_at,
        kv_digest: p.kv_digest,
    })
}

/// An operation or entry as it is shown.
struct Shown<'a> {
    kind: String,
    key: &'a [u8],
}

impl Shown<'_> {
    fn text(&self, value: &[u8], show: Show) -> String {
        let (kind, key) = (&self.kind, self.key);
        match show {
            Show::None => format!("{kind} key of {} bytes, value of {}", key.len(), value.len()),
            Show::Keys => format!("{kind} {} value of {} bytes", readable(key), value.len()),
            Show::Values => format!("{kind} {} = {}", readable(key), readable(value)),
        }
    }
}

fn segment(vfs: &dyn Vfs, path: &Path, show: Show, limit: u64) -> Result<()> {
    let header = SegmentHeader::read(path, &first_bytes(vfs, path, SEGMENT_HEADER_BYTES)?)?;
    println!("{header:?}");
    let file = vfs.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let tail =
        settle_tail(&file, path, header.epoch, SEGMENT_HEADER_BYTES, header.published_end, len)?;
    let mut scanner = Scanner::new(file, path, header.epoch, SEGMENT_HEADER_BYTES, tail.end);
    let mut records = 0;
    while let Step::Record(found) = scanner.step()? {
        records += 1;
        if records > limit {
            return Ok(());
        }
        record(&found, show);
    }
    println!("ends at {}; synced for certain up to {}", tail.end, tail.promised);
    if tail.torn_to > tail.end {
        println!("{} bytes behind the end were never promised to anybody", tail.torn_to - tail.end);
    }
    Ok(())
}

fn record(found: &Found<'_>, show: Show) {
    let header = &found.header;
    println!(
        "{}: kind {} sequence {} payload {} durable to {}",
        found.offset, header.kind, header.sequence, header.payload_bytes, header.durable_to
    );
    if header.kind != kind::BATCH {
        return;
    }
    // The log of a store holds batches; other users of the journal have records of their own.
    let Ok((numbers, operations)) = batch::decode(found.payload) else { return };
    let mut of = None;
    let damaged = |error: DecodeError| Error::InvalidArgument(error.to_string());
    let shown = operations.for_each_chunk(&numbers, damaged, |partition, sequence, ops| {
        if of.replace(partition) != Some(partition) {
            println!("  {partition} sequence {sequence}");
        }
        for op in ops {
            let (kind, value) = match op {
                Op::Put { value, .. } => ("Value", *value),
                Op::Delete { .. } => ("Delete", &[][..]),
            };
            println!("    {}", Shown { kind: kind.to_owned(), key: op.key() }.text(value, show));
        }
        Ok(())
    });
    if shown.is_err() {
        println!("  the rest is no batch");
    }
}
