//! Reading records one after the other, and deciding what the end of a file that was being written
//! means: a torn tail or damage.
//!
//! The decision is by proof. Let `X` be the first offset without a valid record, and `P` the largest
//! durable-to promise of any valid record, before or behind `X`. Bytes below `P` were synced, so
//! `X < P` is damage: the file is refused. Otherwise what is behind `X` was never promised to anybody:
//! a torn tail. Valid records behind `X` prove nothing by being there, because a device may write
//! unsynced sectors in any order.

#![deny(clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{ALIGNMENT_BYTES, HEADER_BYTES, Place, RecordHeader, kind};
use crate::checksum::fold16;
use crate::error::{Error, IoContext, Result};
use crate::vfs::VfsFile;

const WINDOW_BYTES: u64 = 256 << 10;

/// A record in a scanner's window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    /// Where it begins.
    pub(crate) offset: u64,
    /// Where the next one begins.
    pub(crate) end: u64,
    /// Its header.
    pub(crate) header: RecordHeader,
    /// Its payload.
    pub(crate) payload: &'a [u8],
}

/// What a scanner meets next.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    /// A valid record.
    Record(Found<'a>),
    /// No valid record begins here; why not, in words.
    Invalid(&'static str),
    /// The limit.
    End,
}

/// What a scanner came by.
#[derive(Debug, Clone, Copy)]
pub(super) enum Advance {
    /// A valid record.
    Record { offset: u64, header: RecordHeader },
    /// No valid record begins here; why not, in words.
    Invalid(&'static str),
    /// The limit.
    End,
}

/// Reads the records of one file in order.
#[derive(Debug)]
pub(crate) struct Scanner {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    epoch: u64,
    /// The next record's offset.
    offset: u64,
    /// Nothing is read at or behind it.
    limit: u64,
    window: Vec<u8>,
    window_start: u64,
    /// Records below were checked before, by another pass over the same bytes.
    checked_to: u64,
}

impl Scanner {
    /// Reads from `offset` up to `limit`, which must be within the file.
    pub(crate) fn new(
        file: Arc<dyn VfsFile>,
        path: &Path,
        epoch: u64,
        offset: u64,
        limit: u64,
    ) -> Self {
        let path = path.to_path_buf();
        let (window, window_start, checked_to) = (Vec::new(), 0, 0);
        Self { file, path, epoch, offset, limit, window, window_start, checked_to }
    }

    /// Takes the checksums of records below `checked_to` for granted.
    fn trust(mut self, checked_to: u64) -> Self {
        self.checked_to = checked_to;
        self
    }

    /// Where the next record begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The `len` bytes at `at`, or `None` if the limit comes first.
    fn bytes(&mut self, at: u64, len: usize) -> Result<Option<&[u8]>> {
        let end = at.saturating_add(len as u64);
        if end > self.limit {
            return Ok(None);
        }
        let window_end = self.window_start + self.window.len() as u64;
        if at < self.window_start || end > window_end {
            let take = (self.limit - at).min(WINDOW_BYTES.max(len as u64));
            let take = usize::try_from(take).unwrap_or(len);
            self.window.clear();
            self.window.resize(take, 0);
            self.window_start = at;
            let read = self.file.read_exact_at(&mut self.window, at);
            if read.is_err() {
                self.window.clear();
            }
            read.context("read", &self.path)?;
        }
        let from = usize::try_from(at - self.window_start).unwrap_or(usize::MAX);
        Ok(self.window.get(from..from.saturating_add(len)))
    }

    /// Checks the record at `at`.
    fn check(&mut self, at: u64) -> Result<std::result::Result<RecordHeader, &'static str>> {
        let place = Place { epoch: self.epoch, offset: at };
        let Some(header_bytes) =
            self.bytes(at, HEADER_BYTES)?.and_then(|bytes| bytes.first_chunk().copied())
        else {
            return Ok(Err("the file ends inside a record's header"));
        };
        let header = match RecordHeader::parse(&header_bytes, place) {
            Ok(header) => header,
            Err(why) => return Ok(Err(why)),
        };
        let checked_before = at < self.checked_to;
        let Some(record) = self.bytes(at, HEADER_BYTES + header.body_bytes())? else {
            return Ok(Err("the record's length goes beyond the end"));
        };
        let (_, body) = record.split_at_checked(HEADER_BYTES).unwrap_or((&[], &[]));
        if checked_before || header.matches(&header_bytes, body, place) {
            Ok(Ok(header))
        } else {
            Ok(Err("the record's checksum is wrong"))
        }
    }

    /// The next record, after which the scanner stands behind it; at an invalid one it stays.
    ///
    /// # Errors
    /// `Io`: never taken for the end.
    pub(crate) fn step(&mut self) -> Result<Step<'_>> {
        Ok(match self.advance()? {
            Advance::Record { offset, header } => Step::Record(Found {
                offset,
                end: self.offset,
                header,
                payload: self.payload(offset, &header),
            }),
            Advance::Invalid(why) => Step::Invalid(why),
            Advance::End => Step::End,
        })
    }

    /// As [`Scanner::step`], with the payload left to be asked for.
    ///
    /// # Errors
    /// `Io`: never taken for the end.
    pub(super) fn advance(&mut self) -> Result<Advance> {
        if self.offset >= self.limit {
            return Ok(Advance::End);
        }
        let offset = self.offset;
        let header = match self.check(offset)? {
            Ok(header) => header,
            Err(why) => return Ok(Advance::Invalid(why)),
        };
        self.offset = offset + header.record_bytes();
        Ok(Advance::Record { offset, header })
    }

    /// The payload of the record that the scanner advanced over last.
    pub(super) fn payload(&self, offset: u64, header: &RecordHeader) -> &[u8] {
        let from = offset + HEADER_BYTES as u64 - self.window_start;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let to = from.saturating_add(header.payload_bytes as usize);
        self.window.get(from..to).unwrap_or_default()
    }

    /// Looks at everything behind the present offset: the largest promise of a valid record there, and
    /// the end of the last bytes that are not zero.
    pub(super) fn survey(&mut self) -> Result<(u64, u64)> {
        let mut promise = 0;
        let mut used_to = self.offset;
        let mut chunk = Vec::new();
        let mut at = self.offset;
        while at < self.limit {
            let take = (self.limit - at).min(WINDOW_BYTES);
            chunk.clear();
            chunk.resize(usize::try_from(take).unwrap_or(0), 0);
            self.file.read_exact_at(&mut chunk, at).context("read", &self.path)?;
            if let Some(last) = chunk.iter().rposition(|byte| *byte != 0) {
                used_to = at + last as u64 + 1;
                for (index, word) in chunk.chunks_exact(8).enumerate() {
                    let offset = at + index as u64 * ALIGNMENT_BYTES;
                    // The first word holds length, kind, flags and tag: a cheap look before a full check.
                    let &[_, _, _, _, kind, 0, low, high] = word else { continue };
                    if kind == kind::INVALID
                        || offset == self.offset
                        || u16::from_le_bytes([low, high]) != fold16(self.epoch ^ offset)
                    {
                        continue;
                    }
                    if let Ok(header) = self.check(offset)? {
                        promise = promise.max(header.durable_to);
                    }
                }
            }
            at += take;
        }
        Ok((promise, used_to))
    }
}

/// How a file that was being written ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The first offset without a valid record.
    pub(crate) end: u64,
    /// Bytes below this were synced, by promise. A record begins or ends here.
    pub(crate) promised: u64,
    /// The checksum of the last record that ends at `promised`; 0 if none does.
    pub(crate) promised_checksum: u64,
    /// The end of whatever was written behind `end`; equal to `end` if nothing was torn.
    pub(crate) torn_to: u64,
    /// Records between `promised` and `end` that are not the journal's own.
    pub(crate) unpromised_records: u64,
    /// Their bytes on disk.
    pub(crate) unpromised_bytes: u64,
    /// Whether there is a seal: the file had a successor.
    pub(crate) has_seal: bool,
}

/// Reads a file that was being written from `first` to its length `len` and decides how it ends, where
/// bytes below `published` are known to have been synced.
///
/// # Errors
/// `Corruption` if synced bytes are gone, with the offset of the damage; `Io`.
pub(crate) fn settle_tail(
    file: &Arc<dyn VfsFile>,
    path: &Path,
    epoch: u64,
    first: u64,
    published: u64,
    len: u64,
) -> Result<Tail> {
    let mut scanner = Scanner::new(Arc::clone(file), path, epoch, first, len);
    let mut promised = published.max(first);
    let why = loop {
        match scanner.step()? {
            Step::Record(found) => promised = promised.max(found.header.durable_to),
            Step::Invalid(why) => break why,
            Step::End => break "the file ends here",
        }
    };
    let end = scanner.offset();
    let (later_promise, torn_to) = scanner.survey()?;
    promised = promised.max(later_promise);
    if end < promised {
        let detail = format!(
            "{why}, but the bytes up to {promised} were synced: this is damage, not a torn tail"
        );
        return Err(Error::corruption(path, end, detail));
    }
    // A second pass, up to the promise and beyond it: the journal seals at the promise and copies the rest.
    let mut scanner = Scanner::new(Arc::clone(file), path, epoch, first, end).trust(end);
    let mut tail = Tail {
        end,
        promised,
        promised_checksum: 0,
        torn_to,
        unpromised_records: 0,
        unpromised_bytes: 0,
        has_seal: false,
    };
    let mut boundary = first;
    while let Step::Record(found) = scanner.step()? {
        tail.has_seal |= found.header.kind == kind::SEAL;
        if found.end <= promised {
            boundary = found.end;
            tail.promised_checksum = found.header.checksum;
        } else if !kind::is_own(found.header.kind) {
            tail.unpromised_records += 1;
            tail.unpromised_bytes += found.end - found.offset;
        }
    }
    if boundary != promised {
        let detail = format!("bytes up to {promised} were promised, but no record ends there");
        return Err(Error::corruption(path, boundary, detail));
    }
    Ok(tail)
}
