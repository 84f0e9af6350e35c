//! What happens when a journal is opened, as numbered steps:
//!
//! 1. Everything in `tmp/` is removed: it never got its name.
//! 2. Segments older than the caller needs are removed, oldest first. Each of the rest must follow the one
//!    before; one that a newer one does not count among its predecessors was copied, and is removed.
//! 3. The log's end is found (see `end.rs`): the segments up to some one are whole, the next one or two were
//!    being written, and what they end with is a torn tail or damage.
//! 4. Records above the last promise were read, but nobody knows whether they are on disk: the process
//!    may have ended without a sync, or after a failed one, and then they are in the kernel's memory
//!    only. They are copied into a new segment that seals the log at the promise. It gets its name
//!    when it is durable, so a crash at any moment leaves the old state or the new one. Then the old ones
//!    are removed, or give back the space they had reserved.
//! 5. The caller reads all records from [`Recovery`]; each sealed segment is checked up to its seal.
//!
//! A second recovery, after a crash anywhere in the first, finds the same records.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::draft::Draft;
use super::end::{LogEnd, Stretch};
use super::reader::Segment;
use super::record::{self, Meta, Place, RecordHeader, kind};
use super::scan::{Advance, Found, Scanner, Step};
use super::segment::{SEGMENT_HEADER_BYTES, Seal, SegmentHeader, file_name, parse_file_name};
use super::writer::draw_epoch;
use super::{JournalOptions, Record, RecordAddress};
use crate::error::{Error, IoContext, Result};
use crate::rng::SplitMix64;
use crate::vfs::{Vfs, VfsFile, create_dir_durable};

/// Where segments are written before they have their name, inside the journal's directory.
pub(super) const TMP_DIR: &str = "tmp";

const COPY_BUFFER_BYTES: usize = 1 << 20;

/// Where the last segment was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub segment: u64,
    /// The first byte without a valid record.
    pub offset: u64,
    /// How many bytes from there were written, none of them promised to anybody.
    pub bytes: u64,
}

/// Everything that survived, in order. Read it to its end before the journal is used: each segment is
/// checked when it is reached. After an error there is nothing more.
#[derive(Debug)]
pub struct Recovery {
    vfs: Arc<dyn Vfs>,
    waiting: VecDeque<Sealed>,
    current: Option<(Sealed, Scanner, u64)>,
    torn: Option<TornTail>,
    segments: u64,
    copied: u64,
}

/// A record that recovery came by, its payload still where it was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BorrowedRecord<'a> {
    /// Where it is.
    pub(crate) address: RecordAddress,
    /// What the payload is.
    pub(crate) kind: u8,
    /// The caller's sequence number.
    pub(crate) sequence: u64,
    /// The payload.
    pub(crate) payload: &'a [u8],
}

#[derive(Debug)]
struct Sealed {
    number: u64,
    epoch: u64,
    path: PathBuf,
    end: u64,
    last_checksum: u64,
}

impl Recovery {
    /// Where a torn tail was cut, if there was one.
    pub fn torn_tail(&self) -> Option<TornTail> {
        self.torn
    }

    /// How many segments were found; 0 for a new journal.
    pub fn segments(&self) -> u64 {
        self.segments
    }

    /// How many records above the last promise were copied to make them durable for certain.
    pub fn copied_records(&self) -> u64 {
        self.copied
    }

    fn open_next(&mut self) -> Result<bool> {
        let Some(sealed) = self.waiting.pop_front() else { return Ok(false) };
        let file = self.vfs.open_read(&sealed.path).context("open", &sealed.path)?;
        let scanner =
            Scanner::new(file, &sealed.path, sealed.epoch, SEGMENT_HEADER_BYTES, sealed.end);
        self.current = Some((sealed, scanner, 0));
        Ok(true)
    }

    /// The next record, with its payload where it was read. After an error there is nothing more.
    ///
    /// # Errors
    /// As [`Journal::open`](super::Journal::open).
    pub(crate) fn next_borrowed(&mut self) -> Result<Option<BorrowedRecord<'_>>> {
        let next = self.advance();
        if next.is_err() {
            self.waiting.clear();
            self.current = None;
        }
        let Some((address, header)) = next? else { return Ok(None) };
        let Some((_, scanner, _)) = &self.current else { return Ok(None) };
        let payload = scanner.payload(address.offset, &header);
        Ok(Some(BorrowedRecord { address, kind: header.kind, sequence: header.sequence, payload }))
    }

    fn advance(&mut self) -> Result<Option<(RecordAddress, RecordHeader)>> {
        loop {
            let Some((sealed, scanner, last_checksum)) = &mut self.current else {
                if self.open_next()? {
                    continue;
                }
                return Ok(None);
            };
            let offset = scanner.offset();
            match scanner.advance()? {
                Advance::Record { offset, header } => {
                    *last_checksum = header.checksum;
                    if kind::is_own(header.kind) {
                        continue;
                    }
                    return Ok(Some((RecordAddress { segment: sealed.number, offset }, header)));
                }
                Advance::Invalid(why) => {
                    let detail = format!("{why}, but the segment is sealed at {}", sealed.end);
                    return Err(Error::corruption(&sealed.path, offset, detail));
                }
                Advance::End if *last_checksum != sealed.last_checksum => {
                    let detail = format!(
                        "the last record's checksum is {last_checksum:016x}, sealed was {:016x}",
                        sealed.last_checksum
                    );
                    return Err(Error::corruption(&sealed.path, offset, detail));
                }
                Advance::End => self.current = None,
            }
        }
    }
}

impl Iterator for Recovery {
    type Item = Result<(RecordAddress, Record)>;

    fn next(&mut self) -> Option<Self::Item> {
        let owned = |found: BorrowedRecord<'_>| {
            let BorrowedRecord { address, kind, sequence, payload } = found;
            (address, Record { kind, sequence, payload: Bytes::copy_from_slice(payload) })
        };
        self.next_borrowed().map(|found| found.map(owned)).transpose()
    }
}

/// What a writer needs to go on.
pub(super) struct Recovered {
    pub(super) recovery: Recovery,
    pub(super) segments: BTreeMap<u64, Segment>,
    /// How the log ends.
    pub(super) sealed: Seal,
    /// The highest number that any segment has.
    pub(super) newest_number: u64,
    /// Files whose records, if they have any, are in newer segments. They are to be removed as soon as
    /// there is a segment that tells so: until then they are proof of what was.
    pub(super) superseded: Vec<PathBuf>,
}

/// A segment found on disk.
pub(super) struct OnDisk {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn VfsFile>,
    pub(super) header: SegmentHeader,
    pub(super) len: u64,
}

pub(super) fn recover(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    options: &JournalOptions,
    epochs: &mut SplitMix64,
) -> Result<Recovered> {
    let tmp_dir = dir.join(TMP_DIR);
    // A segment got its name after both directories had theirs, durably: no need to see to it again.
    let known = has_segments(&**vfs, dir)? && vfs.exists(&tmp_dir).context("look for", &tmp_dir)?;
    if !known {
        create_dir_durable(&**vfs, dir).context("create", dir)?;
        create_dir_durable(&**vfs, &tmp_dir).context("create", &tmp_dir)?;
    }
    for path in vfs.list(&tmp_dir).context("list", &tmp_dir)? {
        vfs.unlink(&path).context("remove", &path)?;
    }
    let found = find_segments(&**vfs, dir, options)?;
    if let Some(newest) = found.last() {
        // Openings with one seed must not draw the same epochs.
        let opening = SplitMix64::new(newest.header.number).next_u64();
        *epochs = SplitMix64::new(options.epoch_seed ^ opening);
    }
    let mut newest_number = found.last().map_or(0, |newest| newest.header.number);
    let LogEnd { whole, seal, torn, unpromised, copied } = LogEnd::find(&found)?;
    let mut sealed_segments = VecDeque::new();
    let mut segments = BTreeMap::new();
    let kept = found.iter().zip(&whole);
    for (segment, Seal { end, last_checksum, .. }) in kept {
        let SegmentHeader { number, epoch, copies, .. } = segment.header;
        let (path, end, last_checksum) = (segment.path.clone(), *end, *last_checksum);
        segments.insert(number, Segment { epoch, path: path.clone(), limit: end, copies });
        sealed_segments.push_back(Sealed { number, epoch, path, end, last_checksum });
    }
    let mut superseded: Vec<PathBuf> =
        found.iter().skip(whole.len()).map(|segment| segment.path.clone()).collect();
    let mut sealed = seal;
    if copied > 0 {
        newest_number += 1;
        let copy = copy_records(vfs, dir, options, epochs, newest_number, seal, &unpromised)?;
        let (segment, copy_seal) = copy;
        if let Some(last) = found.get(whole.len().wrapping_sub(1)) {
            trim(&**vfs, &last.path, seal.end)?;
        }
        for path in superseded.drain(..) {
            remove_durably(&**vfs, dir, &path)?;
        }
        sealed_segments.push_back(Sealed {
            number: newest_number,
            epoch: segment.epoch,
            path: segment.path.clone(),
            end: copy_seal.end,
            last_checksum: copy_seal.last_checksum,
        });
        segments.insert(newest_number, segment);
        sealed = copy_seal;
    }
    let recovery = Recovery {
        vfs: Arc::clone(vfs),
        waiting: sealed_segments,
        current: None,
        torn,
        segments: found.len() as u64,
        copied,
    };
    Ok(Recovered { recovery, segments, sealed, newest_number, superseded })
}

fn has_segments(vfs: &dyn Vfs, dir: &Path) -> Result<bool> {
    let named = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).and_then(parse_file_name);
    match vfs.list(dir) {
        Ok(paths) => Ok(paths.iter().any(|path| named(path).is_some())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("list", dir, error)),
    }
}

/// Step 2: the segments there are, checked to be a chain.
fn find_segments(vfs: &dyn Vfs, dir: &Path, options: &JournalOptions) -> Result<Vec<OnDisk>> {
    let mut numbers = Vec::new();
    for path in vfs.list(dir).context("list", dir)? {
        // What does not have a segment's name is not ours, and stays.
        if let Some(number) = path.file_name().and_then(OsStr::to_str).and_then(parse_file_name) {
            if number < options.oldest_needed {
                remove_durably(vfs, dir, &path)?;
            } else {
                numbers.push(number);
            }
        }
    }
    numbers.sort_unstable();
    let missing = |number: u64| {
        let path = dir.join(file_name(number));
        Error::corruption(&path, 0, "the segment is missing, though older or newer ones need it")
    };
    // Segment 1 is the first that is ever made: it may be needed before it exists.
    match numbers.first() {
        None if options.oldest_needed > 1 => return Err(missing(options.oldest_needed)),
        Some(first) if options.oldest_needed > 0 && *first > options.oldest_needed => {
            return Err(missing(options.oldest_needed));
        }
        None | Some(_) => {}
    }
    let mut found: Vec<OnDisk> = Vec::with_capacity(numbers.len());
    for number in numbers {
        let segment = open_segment(vfs, dir, options.store_id, number)?;
        let seal = segment.header.predecessor;
        // What stands between a segment and its predecessor was copied into newer ones.
        while found.last().is_some_and(|last| last.header.number > seal.segment) {
            if let Some(copied) = found.pop() {
                remove_durably(vfs, dir, &copied.path)?;
            }
        }
        if found.last().is_some_and(|before| before.header.number != seal.segment) {
            return Err(missing(seal.segment));
        }
        found.push(segment);
    }
    Ok(found)
}

fn open_segment(vfs: &dyn Vfs, dir: &Path, store_id: u128, number: u64) -> Result<OnDisk> {
    let path = dir.join(file_name(number));
    let file = vfs.open_read(&path).context("open", &path)?;
    let len = file.len().context("read the length of", &path)?;
    let mut bytes = vec![0; usize::try_from(len.min(SEGMENT_HEADER_BYTES)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).context("read", &path)?;
    let header = SegmentHeader::decode(&path, &bytes, store_id, number)?;
    Ok(OnDisk { path, file, header, len })
}

/// Step 4: a segment with copies of the records above the promise, durable before it has its name. It has a
/// head if they begin with one; other heads among them say nothing new.
fn copy_records(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    options: &JournalOptions,
    epochs: &mut SplitMix64,
    number: u64,
    predecessor: Seal,
    unpromised: &[Stretch<'_>],
) -> Result<(Segment, Seal)> {
    let epoch = draw_epoch(epochs);
    let mut header = SegmentHeader {
        store_id: options.store_id,
        number,
        epoch,
        predecessor,
        first_sequence: 0,
        published_end: 0,
        published_len: 0,
        copies: true,
        prepared: false,
    };
    // How much there is has to be known first: every copy promises all of it.
    let mut end = SEGMENT_HEADER_BYTES;
    let mut first = true;
    each_unpromised(unpromised, |found| {
        if first {
            header.copies = found.header.kind != kind::HEAD;
            header.first_sequence = found.header.sequence;
        }
        if first || found.header.kind != kind::HEAD {
            end += found.header.record_bytes();
        }
        first = false;
        Ok(())
    })?;
    (header.published_end, header.published_len) = (end, end);
    let copies = header.copies;
    let draft = Draft::create(vfs, dir, number)?;
    let mut buffer = header.encode();
    let mut written = 0_u64;
    let mut last_checksum = 0;
    let mut first = true;
    each_unpromised(unpromised, |found| {
        if first || found.header.kind != kind::HEAD {
            let place = Place { epoch, offset: written + buffer.len() as u64 };
            let meta =
                Meta { kind: found.header.kind, sequence: found.header.sequence, durable_to: end };
            last_checksum = record::encode(&mut buffer, place, meta, &[found.payload]);
        }
        first = false;
        if buffer.len() >= COPY_BUFFER_BYTES {
            draft.file.write_all_at(&buffer, written).context("write", &draft.tmp)?;
            written += buffer.len() as u64;
            buffer.clear();
        }
        Ok(())
    })?;
    draft.file.write_all_at(&buffer, written).context("write", &draft.tmp)?;
    written += buffer.len() as u64;
    assert!(written == end, "copied records end at {written}, expected {end}");
    draft.file.sync_all().context("sync", &draft.tmp)?;
    let path = draft.publish()?;
    Ok((Segment { epoch, path, limit: end, copies }, Seal { segment: number, end, last_checksum }))
}

/// Goes through the records of some stretches that are the caller's.
fn each_unpromised(
    stretches: &[Stretch<'_>],
    mut each: impl FnMut(&Found<'_>) -> Result<()>,
) -> Result<()> {
    for Stretch { segment, from, to } in stretches {
        let file = Arc::clone(&segment.file);
        let mut scanner = Scanner::new(file, &segment.path, segment.header.epoch, *from, *to);
        while let Step::Record(found) = scanner.step()? {
            if !kind::is_own(found.header.kind) {
                each(&found)?;
            }
        }
    }
    Ok(())
}

/// Gives back what a sealed segment has reserved behind its end. Only after its successor is durable: a
/// newest segment that is shorter than it was is damaged. Whether this lasts does not matter.
pub(super) fn trim(vfs: &dyn Vfs, path: &Path, end: u64) -> Result<()> {
    let file = vfs.open_rw(path).context("open", path)?;
    if file.len().context("read the length of", path)? > end {
        file.set_len(end).context("shorten", path)?;
    }
    Ok(())
}

/// Removes a segment, durably before anything else happens: so that no gap can appear.
pub(super) fn remove_durably(vfs: &dyn Vfs, dir: &Path, path: &Path) -> Result<()> {
    vfs.unlink(path).context("remove", path)?;
    vfs.sync_dir(dir).context("sync", dir)
}
