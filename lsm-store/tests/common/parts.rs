//! Where the parts of a file are that have a checksum of their own, found without the engine's decoders.

use std::path::Path;

use lsm_store::checksum::{bind, fold64, hash_pair};

/// What follows the payload of a block.
pub(crate) const TRAILER: usize = 16;
pub(crate) const FOOTER: usize = 96;
pub(crate) const RECORD_HEADER: usize = 32;
const FIRST_RECORD: usize = 256;

/// A part with a checksum of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A block of a table: where, and the length of its payload.
    Block { offset: usize, len: usize },
    /// The footer of a table.
    Footer,
    /// A record of a log or manifest, and the length of its payload.
    Record { offset: usize, len: usize },
    /// Both copies of the header of a log segment or manifest.
    Header,
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")) as usize
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

pub(crate) fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes[at..at + 16].try_into().expect("16 bytes"))
}

/// What the checksums of a table are bound to.
pub(crate) fn uid(table: &[u8]) -> u64 {
    fold64(u128_at(table, table.len() - FOOTER))
}

/// The checksum that a block should have.
pub(crate) fn block_sum(table: &[u8], offset: usize, len: usize, uid: u64) -> u64 {
    let (payload, rest) = table[offset..].split_at(len);
    hash_pair(payload, &rest[..8]).wrapping_add(bind(uid, offset as u64))
}

/// The blocks of a table, found by their checksums alone.
fn blocks(table: &[u8]) -> Vec<Part> {
    let (end, uid) = (table.len() - FOOTER, uid(table));
    let mut parts = Vec::new();
    let mut offset = 0;
    while offset < end {
        let fits =
            |len: &usize| block_sum(table, offset, *len, uid) == u64_at(table, offset + len + 8);
        let len = (0..=end - offset - TRAILER).find(fits);
        let len = len.expect("blocks follow each other without gaps");
        parts.push(Part::Block { offset, len });
        offset += len + TRAILER;
    }
    parts
}

/// The bytes of a record behind its header: payload and padding.
pub(crate) fn record_body(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// The records of a log segment or a manifest.
fn records(file: &[u8]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut offset = FIRST_RECORD;
    while offset + RECORD_HEADER <= file.len() && file[offset + 4] != 0 {
        let len = u32_at(file, offset);
        parts.push(Part::Record { offset, len });
        offset += RECORD_HEADER + record_body(len);
    }
    parts
}

/// All parts of a file of a store; none of one that has no checksums.
pub(crate) fn parts(path: &Path, content: &[u8]) -> Vec<Part> {
    if path.extension().is_some_and(|extension| extension == "sst") {
        let mut parts = blocks(content);
        parts.push(Part::Footer);
        return parts;
    }
    if content.len() <= FIRST_RECORD {
        return Vec::new();
    }
    let mut parts = records(content);
    parts.push(Part::Header);
    parts
}
