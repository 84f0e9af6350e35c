//! `verify`: everything on disk against everything else, without opening the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::{Closed, Format, Outcome, first_bytes, names};
use crate::cache::BlockCache;
use crate::error::{Error, IoContext, Result};
use crate::journal::end::joint_seal;
use crate::journal::scan::{Scanner, Step, settle_tail};
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Seal, SegmentHeader, parse_file_name};
use crate::manifest::current::{parse_table, table_dir, table_path};
use crate::manifest::version::Version;
use crate::sstable::reader::{Graveyard, Table};
use crate::sstable::verify::verify_table;
use crate::types::FileNumber;
use crate::vfs::{FilePool, Vfs};
use crate::wal;

/// Tables that are open at the same time.
const OPEN_FILES: usize = 64;

/// What was looked at, and what is wrong with it.
#[derive(Debug, Default)]
struct Report {
    tables: usize,
    entries: u64,
    bytes: u64,
    segments: usize,
    records: u64,
    /// Tables that the manifest does not list: left behind by a crash, removed at the next open.
    unlisted: usize,
    findings: Vec<Error>,
}

pub(super) fn run(vfs: &Arc<dyn Vfs>, dir: &Path, output: Format) -> Result<Outcome> {
    let store = Closed::read(&**vfs, dir)?;
    let mut report = Report::default();
    tables(vfs, &store, &mut report)?;
    log(&**vfs, &store, &mut report)?;
    if output == Format::Json {
        let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
        println!(
            "{}",
            json!({
                "tables": report.tables, "entries": report.entries, "bytes": report.bytes,
                "log_segments": report.segments, "log_records": report.records,
                "unlisted_tables": report.unlisted, "findings": findings,
            })
        );
    } else {
        report.findings.iter().for_each(|finding| println!("damaged: {finding}"));
        println!(
            "{} tables, {} entries, {} bytes; log: {} segments, {} records; {} unlisted tables; {} findings",
            report.tables,
            report.entries,
            report.bytes,
            report.segments,
            report.records,
            report.unlisted,
            report.findings.len()
        );
    }
    Ok(if report.findings.is_empty() { Outcome::Sound } else { Outcome::Damaged })
}

fn tables(vfs: &Arc<dyn Vfs>, store: &Closed, report: &mut Report) -> Result<()> {
    let cache = Arc::new(BlockCache::new(0));
    let files = FilePool::new(Arc::clone(vfs), OPEN_FILES);
    let mut open: BTreeMap<FileNumber, Arc<Table>> = BTreeMap::new();
    for (number, placed) in &store.state.tables {
        let path = table_path(&store.dir, *number);
        let meta = placed.meta.clone();
        let checked = files
            .open_read(&path)
            .context("open", &path)
            .and_then(|file| {
                Table::open(file, &path, meta, Arc::clone(&cache), Graveyard::default())
            })
            .and_then(|table| verify_table(&table).map(|_blocks| table));
        match checked {
            Ok(table) => {
                report.tables += 1;
                report.entries += table.meta().entries;
                report.bytes += table.meta().len;
                open.insert(*number, Arc::new(table));
            }
            Err(error) => report.findings.push(error),
        }
    }
    if report.findings.is_empty()
        && let Err(error) = Version::build(&store.state, &open, &store.manifest)
    {
        report.findings.push(error);
    }
    let listed = |path: &PathBuf| parse_table(path).is_some_and(|n| open.contains_key(&n));
    let on_disk = names(&**vfs, &table_dir(&store.dir))?;
    report.unlisted =
        on_disk.iter().filter(|path| parse_table(path).is_some() && !listed(path)).count();
    Ok(())
}

fn log(vfs: &dyn Vfs, store: &Closed, report: &mut Report) -> Result<()> {
    let mut segments = BTreeMap::new();
    for path in names(vfs, &wal::directory(&store.dir))? {
        let Some(number) = path.file_name().and_then(|n| n.to_str()).and_then(parse_file_name)
        else {
            continue;
        };
        let header = first_bytes(vfs, &path, SEGMENT_HEADER_BYTES)
            .and_then(|head| SegmentHeader::decode(&path, &head, store.header.store_id, number));
        match header {
            Ok(header) => {
                segments.insert(number, (path, header));
            }
            Err(error) => report.findings.push(error),
        }
    }
    report.segments = segments.len();
    // From the newest to the oldest, each by what its successor says of it; what none of them names was copied.
    let mut seal = None;
    let mut expected = segments.keys().next_back().copied();
    for (number, (path, header)) in segments.iter().rev() {
        match expected {
            Some(next) if *number > next => continue,
            Some(next) if *number < next => {
                report.findings.push(Error::corruption(path, 0, "the next segment is missing"));
            }
            Some(_) | None => {}
        }
        match check_segment(vfs, path, header, seal) {
            Ok(records) => report.records += records,
            Err(error) => report.findings.push(error),
        }
        expected = Some(header.predecessor.segment);
        seal = seal_of_predecessor(vfs, path, header)?;
    }
    Ok(())
}

/// How a segment says that its predecessor ended. One that was prepared says nothing if the power was lost
/// before its first record was durable.
fn seal_of_predecessor(vfs: &dyn Vfs, path: &Path, header: &SegmentHeader) -> Result<Option<Seal>> {
    if !header.prepared {
        return Ok(Some(header.predecessor));
    }
    let file = vfs.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let mut scanner = Scanner::new(file, path, header.epoch, SEGMENT_HEADER_BYTES, len);
    Ok(match scanner.step()? {
        Step::Record(found) => joint_seal(header, found.header.kind, found.payload),
        Step::Invalid(_) | Step::End => None,
    })
}

/// Reads a segment up to its seal, or, of the last one, settles its end. Returns its records.
fn check_segment(
    vfs: &dyn Vfs,
    path: &Path,
    header: &SegmentHeader,
    seal: Option<Seal>,
) -> Result<u64> {
    let file = vfs.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let end = match seal {
        Some(seal) => seal.end,
        None => {
            let published = header.published_end;
            settle_tail(&file, path, header.epoch, SEGMENT_HEADER_BYTES, published, len)?.end
        }
    };
    if end > len {
        let detail = format!("segment of {len} bytes, sealed at {end}");
        return Err(Error::corruption(path, len, detail));
    }
    let mut scanner = Scanner::new(file, path, header.epoch, SEGMENT_HEADER_BYTES, end);
    let (mut records, mut last_checksum) = (0, 0);
    loop {
        let offset = scanner.offset();
        match scanner.step()? {
            Step::Record(found) => {
                records += 1;
                last_checksum = found.header.checksum;
            }
            Step::Invalid(why) => return Err(Error::corruption(path, offset, why)),
            Step::End => break,
        }
    }
    if seal.is_some_and(|seal| seal.last_checksum != last_checksum) {
        return Err(Error::corruption(path, end, "the last record is not the one that was sealed"));
    }
    Ok(records)
}
