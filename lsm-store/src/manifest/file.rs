//! The manifest's file: header, complete state, edits.
//!
//! ```text
//! header, two identical copies of 128 bytes; records (the journal's framing) from 256 on:
//!   snapshot part*   items, at most 1 MiB each
//!   snapshot end     count of parts u64 | XXH3-128 of their payloads
//!   edit*            items; after each synced edit a note that promises it is durable
//! ```

#![deny(clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checksum::{Digester, bound_hash, fold64};
use crate::coding::{DecodeError, Reader};
use crate::error::{Error, IoContext, Result};
use crate::journal::record::{self, Meta, Place};
use crate::journal::scan::{Scanner, Step, settle_tail};
use crate::manifest::edit::{self, Item};
use crate::manifest::state::ManifestState;
use crate::perf::{self, Count};
use crate::types::FileNumber;
use crate::vfs::{Vfs, VfsFile};

/// The newest format this build reads, and the one it writes.
pub(crate) const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"LSMMAN\0\x01";
const COPY_BYTES: usize = 128;
const COPY_SUMMED_BYTES: usize = 120;
pub(crate) const FIRST_RECORD: u64 = 256;
pub(crate) const KIND_SNAPSHOT_PART: u8 = 16;
pub(crate) const KIND_SNAPSHOT_END: u8 = 17;
pub(crate) const KIND_EDIT: u8 = 18;
/// Payload size at which a snapshot part is ended; one item is never split.
const PART_BYTES: usize = 1 << 20;

/// Who a manifest belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) store_id: u128,
    pub(crate) number: FileNumber,
    /// Fresh per file, never 0; binds the records to it.
    pub(crate) epoch: u64,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(2 * COPY_BYTES);
        copy.extend_from_slice(&MAGIC);
        copy.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        copy.extend_from_slice(&256_u32.to_le_bytes());
        copy.extend_from_slice(&self.store_id.to_le_bytes());
        copy.extend_from_slice(&self.number.0.to_le_bytes());
        copy.extend_from_slice(&self.epoch.to_le_bytes());
        copy.resize(COPY_SUMMED_BYTES, 0);
        let sum = bound_hash(&copy, fold64(self.store_id), self.number.0);
        copy.extend_from_slice(&sum.to_le_bytes());
        copy.extend_from_within(..);
        copy
    }

    /// Reads the header and checks whose it is.
    fn decode(bytes: &[u8], path: &Path, store_id: u128, number: FileNumber) -> Result<Self> {
        let header = Self::read(bytes, path)?;
        if header.store_id != store_id {
            return Err(Error::WrongStore {
                file: path.to_path_buf(),
                expected: store_id,
                found: header.store_id,
            });
        }
        if header.number != number {
            return Err(Error::corruption(path, 32, format!("this is manifest {}", header.number)));
        }
        Ok(header)
    }

    /// Reads the header from whichever copy is whole.
    ///
    /// # Errors
    /// `Corruption` if neither is, or if they differ; `UnknownVersion`.
    pub(crate) fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        let first = bytes.get(..COPY_BYTES).unwrap_or_default();
        let second = bytes.get(COPY_BYTES..2 * COPY_BYTES).unwrap_or_default();
        let (version, header) = match (parse_copy(first), parse_copy(second)) {
            (Ok(a), Ok(b)) if a != b => {
                return Err(Error::corruption(
                    path,
                    COPY_BYTES as u64,
                    "the two copies of the header differ",
                ));
            }
            (Ok(a), _) => a,
            (Err(_), Ok(b)) => b,
            (Err(e), Err(_)) => {
                return Err(Error::corruption(
                    path,
                    e.offset,
                    format!("both copies of the manifest header are damaged: {}", e.what),
                ));
            }
        };
        if version != FORMAT_VERSION {
            return Err(Error::UnknownVersion {
                file: path.to_path_buf(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        Ok(header)
    }
}

fn parse_copy(copy: &[u8]) -> std::result::Result<(u32, Header), DecodeError> {
    let mut reader = Reader::new(copy);
    if reader.array()? != MAGIC {
        return Err(DecodeError { offset: 0, what: "no manifest: magic bytes missing" });
    }
    let version = reader.u32()?;
    let first_record = reader.u32()?;
    let store_id = reader.u128()?;
    let number = FileNumber(reader.u64()?);
    let epoch = reader.u64()?;
    let reserved: [u8; 72] = reader.array()?;
    let sum = reader.u64()?;
    let (summed, _) = copy.split_at_checked(COPY_SUMMED_BYTES).unwrap_or((copy, &[]));
    if sum != bound_hash(summed, fold64(store_id), number.0) {
        return Err(DecodeError { offset: 120, what: "header checksum mismatch" });
    }
    // Other versions keep magic, version and checksum in place, so that they can be named.
    if version == FORMAT_VERSION
        && (u64::from(first_record) != FIRST_RECORD
            || epoch == 0
            || reserved.iter().any(|b| *b != 0))
    {
        return Err(DecodeError {
            offset: 12,
            what: "fixed or reserved fields of the header differ",
        });
    }
    Ok((version, Header { store_id, number, epoch }))
}

/// The manifest being written.
#[derive(Debug)]
pub(crate) struct ManifestFile {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    epoch: u64,
    /// Where the next record goes.
    end: u64,
    /// Everything below is synced.
    durable_to: u64,
    records: u64,
    /// How many of them are below `durable_to`.
    durable_records: u64,
    snapshot_end: u64,
}

impl ManifestFile {
    /// Writes a manifest with the complete state and syncs it. No marker names it yet.
    pub(crate) fn create(
        vfs: &dyn Vfs,
        path: &Path,
        header: Header,
        state: &ManifestState,
    ) -> Result<Self> {
        let file = vfs.create_new(path).context("create", path)?;
        let mut manifest = Self {
            file,
            path: path.to_path_buf(),
            epoch: header.epoch,
            end: FIRST_RECORD,
            durable_to: 0,
            records: 0,
            durable_records: 0,
            snapshot_end: 0,
        };
        let mut buf = header.encode();
        let mut digester = Digester::new();
        let mut parts = 0_u64;
        let mut part = Vec::new();
        let items = state.snapshot();
        for (i, item) in items.iter().enumerate() {
            item.encode(&mut part);
            if part.len() >= PART_BYTES || i + 1 == items.len() {
                manifest.encode_record(&mut buf, KIND_SNAPSHOT_PART, &part);
                digester.update(&part);
                parts += 1;
                part.clear();
            }
        }
        let mut end = parts.to_le_bytes().to_vec();
        end.extend_from_slice(&digester.finish().to_le_bytes());
        manifest.encode_record(&mut buf, KIND_SNAPSHOT_END, &end);
        manifest.file.write_all_at(&buf, 0).context("write", path)?;
        perf::time(Count::SyncNanos, || manifest.file.sync_all()).context("sync", path)?;
        manifest.synced();
        manifest.snapshot_end = manifest.end;
        manifest.write_note()?;
        Ok(manifest)
    }

    fn encode_record(&mut self, buf: &mut Vec<u8>, kind: u8, payload: &[u8]) {
        let place = Place { epoch: self.epoch, offset: self.end };
        self.records += 1;
        let meta = Meta { kind, sequence: self.records, durable_to: self.durable_to };
        let before = buf.len();
        record::encode(buf, place, meta, &[payload]);
        self.end += (buf.len() - before) as u64;
    }

    /// Appends an edit and syncs it. After an error it is unknown whether the edit is in the file: write
    /// a new manifest.
    pub(crate) fn append(&mut self, items: &[Item]) -> Result<()> {
        let payload = edit::encode(items);
        let limit = u64::from(record::MAX_PAYLOAD_BYTES);
        if payload.len() as u64 > limit {
            return Err(Error::TooLarge {
                what: "manifest edit",
                size: payload.len() as u64,
                limit,
            });
        }
        let at = self.end;
        let mut buf = Vec::new();
        self.encode_record(&mut buf, KIND_EDIT, &payload);
        self.file.write_all_at(&buf, at).context("write", &self.path)?;
        perf::time(Count::SyncNanos, || self.file.sync_data()).context("sync", &self.path)?;
        self.synced();
        // The edit is durable, whether there is room for the note or not: the next append then covers it.
        match self.write_note() {
            Err(error) if error.is_full_disk() => self.take_back(),
            noted => noted,
        }
    }

    /// Takes back what there was no room for: afterwards nothing but what was synced is in the file.
    ///
    /// # Errors
    /// What is in the file is unknown.
    pub(crate) fn take_back(&mut self) -> Result<()> {
        self.file.set_len(self.durable_to).context("shorten", &self.path)?;
        self.file.sync_all().context("sync", &self.path)?;
        self.end = self.durable_to;
        self.records = self.durable_records;
        Ok(())
    }

    const fn synced(&mut self) {
        self.durable_to = self.end;
        self.durable_records = self.records;
    }

    /// Promises that what was synced is synced, so that damage to the last edit is told from a torn tail.
    /// The note itself is not synced: losing it costs only that distinction.
    fn write_note(&mut self) -> Result<()> {
        let at = self.end;
        let mut buf = Vec::new();
        self.encode_record(&mut buf, record::kind::SYNC_NOTE, &[]);
        self.file.write_all_at(&buf, at).context("write", &self.path)
    }

    /// Makes the last note durable.
    pub(crate) fn sync(&self) -> Result<()> {
        perf::time(Count::SyncNanos, || self.file.sync_data()).context("sync", &self.path)
    }

    /// Whether the edits outweigh the snapshot so far that a new manifest is due.
    pub(crate) fn should_roll(&self) -> bool {
        let edits = self.end - self.snapshot_end;
        edits > PART_BYTES as u64 && edits > 4 * self.snapshot_end
    }
}

/// What a manifest says, and how certain that is.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) state: ManifestState,
    /// Every byte of it is durable, by promise: whoever wrote it saw it synced, and nothing was torn off.
    pub(crate) is_settled: bool,
    /// Whether there are edits: then it was in force when they were made.
    pub(crate) is_edited: bool,
}

impl Contents {
    /// Of a manifest that is still to be written.
    pub(crate) fn unwritten(state: ManifestState) -> Self {
        Self { state, is_settled: false, is_edited: false }
    }
}

/// Reads the state that a manifest amounts to.
///
/// # Errors
/// As [`read_contents`].
pub(crate) fn read(
    vfs: &dyn Vfs,
    path: &Path,
    store_id: u128,
    number: FileNumber,
) -> Result<ManifestState> {
    read_contents(vfs, path, store_id, number).map(|contents| contents.state)
}

/// Reads a manifest.
///
/// # Errors
/// `Corruption` naming file and offset; `UnknownVersion`, `WrongStore`; `Io`.
pub(crate) fn read_contents(
    vfs: &dyn Vfs,
    path: &Path,
    store_id: u128,
    number: FileNumber,
) -> Result<Contents> {
    let file = vfs.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let mut bytes = vec![0; usize::try_from(len.min(FIRST_RECORD)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).context("read", path)?;
    let header = Header::decode(&bytes, path, store_id, number)?;
    if len < FIRST_RECORD {
        return Err(Error::corruption(path, len, "manifest ends inside its header"));
    }
    let tail = settle_tail(&file, path, header.epoch, FIRST_RECORD, FIRST_RECORD, len)?;
    let mut scanner = Scanner::new(file, path, header.epoch, FIRST_RECORD, tail.end);
    let mut replay = Replay {
        path,
        state: ManifestState::empty(),
        digester: Digester::new(),
        parts: 0,
        complete: false,
        is_edited: false,
    };
    while let Step::Record(found) = scanner.step()? {
        replay.record(found.offset, found.header.kind, found.payload)?;
    }
    if !replay.complete {
        // It was synced before a marker named this file.
        return Err(Error::corruption(
            path,
            tail.end,
            "manifest ends before its snapshot is complete",
        ));
    }
    // Of notes it does not matter whether they last.
    let is_settled = tail.unpromised_records == 0 && tail.torn_to == tail.end;
    Ok(Contents { state: replay.state, is_settled, is_edited: replay.is_edited })
}

struct Replay<'a> {
    path: &'a Path,
    state: ManifestState,
    digester: Digester,
    parts: u64,
    complete: bool,
    is_edited: bool,
}

impl Replay<'_> {
    fn record(&mut self, offset: u64, kind: u8, payload: &[u8]) -> Result<()> {
        let corrupt = |detail: String| Error::corruption(self.path, offset, detail);
        match (kind, self.complete) {
            (KIND_SNAPSHOT_PART, false) => {
                self.digester.update(payload);
                self.parts += 1;
                self.items(offset, payload)
            }
            (KIND_SNAPSHOT_END, false) => {
                let mut reader = Reader::new(payload);
                let decode = |e: DecodeError| corrupt(format!("snapshot end: {}", e.what));
                let parts = reader.u64().map_err(decode)?;
                let digest = reader.u128().map_err(decode)?;
                reader.finish().map_err(decode)?;
                if parts != self.parts || digest != self.digester.finish() {
                    return Err(corrupt(format!(
                        "snapshot of {} parts does not match its end",
                        self.parts
                    )));
                }
                self.complete = true;
                Ok(())
            }
            (KIND_EDIT, true) => {
                self.is_edited = true;
                self.items(offset, payload)
            }
            (record::kind::SYNC_NOTE, true) => Ok(()),
            _ => Err(corrupt(format!("record of kind {kind} where none is expected"))),
        }
    }

    fn items(&mut self, offset: u64, payload: &[u8]) -> Result<()> {
        let items = edit::decode(payload).map_err(|e| {
            Error::corruption(self.path, offset + record::HEADER_BYTES as u64 + e.offset, e.what)
        })?;
        self.state.apply(&items).map_err(|detail| Error::corruption(self.path, offset, detail))
    }
}
