//! What surrounds the blocks of a table: handle, trailer, compression, footer.

#![deny(clippy::indexing_slicing)]

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use crate::checksum::{bind, bound_hash, fold64, hash_pair};
use crate::coding::{DecodeError, Reader, put_varint};
use crate::error::{Error, IoContext, Result};
use crate::perf::{self, Count};
use crate::vfs::VfsFile;

/// The newest format this build reads, and the one it writes.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Last 8 bytes of every table.
pub(crate) const MAGIC: [u8; 8] = *b"LSMSST\0\x01";
/// Length of the footer.
pub(crate) const FOOTER_BYTES: usize = 96;
/// Length of the trailer after each block's payload.
pub(crate) const TRAILER_BYTES: usize = 16;
/// Largest raw block: one entry with the largest key and value, and its surroundings, fits.
pub(crate) const BLOCK_RAW_BYTES_MAX: usize = 64 * 1024 * 1024;
/// LZ4 cannot make more than this many bytes from one; a larger claim is a lie.
const LZ4_EXPANSION_MAX: usize = 255;

/// What a block holds. The numbers are on disk and never change; 4 and 5 are reserved for range
/// tombstones and dictionaries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum BlockKind {
    Data = 1,
    Filter = 2,
    Index = 3,
    Top = 6,
    Properties = 7,
}

/// How a payload is compressed. The numbers are on disk and never change; 2 and 3 are reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Codec {
    None = 0,
    Lz4 = 1,
}

/// Where a block is: offset and length of its payload; the trailer follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Handle {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Handle {
    pub(crate) fn put(&self, buf: &mut Vec<u8>) {
        put_varint(buf, self.offset);
        put_varint(buf, self.len);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> std::result::Result<Self, DecodeError> {
        Ok(Self { offset: reader.varint()?, len: reader.varint()? })
    }

    /// Offset of what follows the block.
    pub(crate) const fn end(&self) -> Option<u64> {
        match self.offset.checked_add(self.len) {
            Some(end) => end.checked_add(TRAILER_BYTES as u64),
            None => None,
        }
    }
}

/// The trailer of a payload that will be at `offset`.
pub(crate) fn trailer(
    payload: &[u8],
    kind: BlockKind,
    codec: Codec,
    raw_len: u32,
    uid: u128,
    offset: u64,
) -> [u8; TRAILER_BYTES] {
    let [l0, l1, l2, l3] = raw_len.to_le_bytes();
    let start = [kind as u8, codec as u8, 0, 0, l0, l1, l2, l3];
    let sum = hash_pair(payload, &start).wrapping_add(bind(fold64(uid), offset));
    let mut trailer = [0; TRAILER_BYTES];
    let (first, second) = trailer.split_at_mut(8);
    first.copy_from_slice(&start);
    second.copy_from_slice(&sum.to_le_bytes());
    trailer
}

/// The file a block is read from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) file: &'a dyn VfsFile,
    pub(crate) path: &'a Path,
    pub(crate) uid: u128,
    /// Where the blocks end: the footer's offset.
    pub(crate) blocks_end: u64,
}

/// Reads, checks and decompresses a block. The buffer has [`TRAILER_BYTES`] more behind the block: so a
/// block that is not compressed is read to where it stays.
///
/// # Errors
/// `Io`, or `Corruption` at the block's offset.
pub(crate) fn read_block(source: Source<'_>, handle: Handle, kind: BlockKind) -> Result<Arc<[u8]>> {
    read_block_by(source, handle, kind, |buf, offset| source.file.read_exact_at(buf, offset))
}

/// As [`read_block`], with the bytes of the file given by `read`, which fills a buffer from an offset.
///
/// # Errors
/// As [`read_block`].
pub(crate) fn read_block_by(
    source: Source<'_>,
    handle: Handle,
    kind: BlockKind,
    read: impl FnOnce(&mut [u8], u64) -> io::Result<()>,
) -> Result<Arc<[u8]>> {
    let corrupt = |detail: String| Error::corruption(source.path, handle.offset, detail);
    let in_file = handle.end().is_some_and(|end| end <= source.blocks_end);
    let (true, Ok(len)) = (in_file, usize::try_from(handle.len)) else {
        return Err(corrupt(format!(
            "block handle of {} bytes reaches beyond the blocks, which end at {}",
            handle.len, source.blocks_end
        )));
    };
    let mut buffer = zeroed(len + TRAILER_BYTES);
    let whole = exclusive(&mut buffer);
    perf::count(Count::BlocksRead, 1);
    perf::count(Count::BytesRead, whole.len() as u64);
    perf::time(Count::ReadNanos, || read(whole, handle.offset)).map_err(|e| {
        if e.kind() == ErrorKind::UnexpectedEof {
            corrupt("the file ends inside the block".to_owned())
        } else {
            Error::io("read", source.path, e)
        }
    })?;
    let Some((payload, trailer)) = whole.split_last_chunk::<TRAILER_BYTES>() else {
        return Err(corrupt("block shorter than its trailer".to_owned()));
    };
    let (start, sum) = trailer.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let stored = sum.first_chunk::<8>().map_or(0, |s| u64::from_le_bytes(*s));
    // Payload and the start of the trailer lie beside each other, as they are summed.
    let summed = whole.get(..len + start.len()).unwrap_or_default();
    let computed = bound_hash(summed, fold64(source.uid), handle.offset);
    if stored != computed {
        return Err(corrupt(format!(
            "block checksum mismatch: stored {stored:#018x}, computed {computed:#018x}"
        )));
    }
    let [found_kind, codec, reserved0, reserved1, l0, l1, l2, l3] = *start;
    if found_kind != kind as u8 {
        return Err(corrupt(format!("block of kind {found_kind} where {kind:?} is expected")));
    }
    if (reserved0, reserved1) != (0, 0) {
        return Err(corrupt("reserved bytes of a block trailer are not zero".to_owned()));
    }
    let raw_len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if codec == Codec::None as u8 {
        if raw_len != payload.len() {
            return Err(corrupt(format!(
                "raw length {raw_len} of a block of {} bytes",
                payload.len()
            )));
        }
        return Ok(buffer);
    }
    if codec != Codec::Lz4 as u8 {
        return Err(corrupt(format!("unknown block codec {codec}")));
    }
    if raw_len > BLOCK_RAW_BYTES_MAX || raw_len > payload.len().saturating_mul(LZ4_EXPANSION_MAX) {
        return Err(corrupt(format!(
            "raw length {raw_len} cannot come from {} bytes",
            payload.len()
        )));
    }
    let mut raw = zeroed(raw_len + TRAILER_BYTES);
    let room = exclusive(&mut raw).get_mut(..raw_len).unwrap_or_default();
    match lz4_flex::block::decompress_into(payload, room) {
        Ok(got) if got == raw_len => Ok(raw),
        Ok(got) => Err(corrupt(format!("block of {got} bytes where its trailer says {raw_len}"))),
        Err(e) => Err(corrupt(format!("block does not decompress: {e}"))),
    }
}

/// The block in a buffer of [`read_block`].
pub(crate) fn without_trailer(buffer: &[u8]) -> &[u8] {
    buffer.split_last_chunk::<TRAILER_BYTES>().map_or(&[], |(raw, _)| raw)
}

/// A shared buffer of zeros, filled once. (A vector would be copied when it becomes shared.)
fn zeroed(len: usize) -> Arc<[u8]> {
    std::iter::repeat_n(0, len).collect()
}

/// The bytes of a buffer that was just made.
fn exclusive(buffer: &mut Arc<[u8]>) -> &mut [u8] {
    Arc::get_mut(buffer).unwrap_or_default()
}

/// The last 96 bytes of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Footer {
    pub(crate) uid: u128,
    pub(crate) file_len: u64,
    pub(crate) top: Handle,
    pub(crate) properties: Handle,
    pub(crate) data_end: u64,
}

impl Footer {
    pub(crate) fn encode(&self) -> Result<[u8; FOOTER_BYTES]> {
        let len32 = |len: u64| {
            u32::try_from(len).map_err(|_overflow| Error::TooLarge {
                what: "block",
                size: len,
                limit: u64::from(u32::MAX),
            })
        };
        let mut buf = Vec::with_capacity(FOOTER_BYTES);
        buf.extend_from_slice(&self.uid.to_le_bytes());
        buf.extend_from_slice(&self.file_len.to_le_bytes());
        buf.extend_from_slice(&self.top.offset.to_le_bytes());
        buf.extend_from_slice(&len32(self.top.len)?.to_le_bytes());
        buf.extend_from_slice(&len32(self.properties.len)?.to_le_bytes());
        buf.extend_from_slice(&self.properties.offset.to_le_bytes());
        buf.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        buf.extend_from_slice(&[0; 4]);
        buf.extend_from_slice(&0_u64.to_le_bytes());
        buf.extend_from_slice(&0_u64.to_le_bytes());
        buf.extend_from_slice(&self.data_end.to_le_bytes());
        let offset = self.file_len.saturating_sub(FOOTER_BYTES as u64);
        let sum = bound_hash(&buf, fold64(self.uid), offset);
        buf.extend_from_slice(&sum.to_le_bytes());
        buf.extend_from_slice(&MAGIC);
        let mut footer = [0; FOOTER_BYTES];
        footer.copy_from_slice(&buf);
        Ok(footer)
    }

    /// Reads and checks the footer of a file of `file_len` bytes.
    pub(crate) fn read(file: &dyn VfsFile, path: &Path, file_len: u64) -> Result<Self> {
        let Some(offset) = file_len.checked_sub(FOOTER_BYTES as u64) else {
            return Err(Error::corruption(
                path,
                0,
                format!("table of {file_len} bytes is shorter than its footer"),
            ));
        };
        let mut buf = [0; FOOTER_BYTES];
        file.read_exact_at(&mut buf, offset).context("read", path)?;
        Self::decode(&buf, path, offset)
    }

    fn decode(buf: &[u8; FOOTER_BYTES], path: &Path, offset: u64) -> Result<Self> {
        let corrupt = |detail: String| Error::corruption(path, offset, detail);
        if !buf.ends_with(&MAGIC) {
            return Err(corrupt(
                "no table footer: magic bytes missing (truncated or not a table)".to_owned(),
            ));
        }
        let decode = |e: DecodeError| Error::decode(path, offset, e);
        let mut reader = Reader::new(buf);
        let uid = reader.u128().map_err(decode)?;
        let file_len = reader.u64().map_err(decode)?;
        let top_offset = reader.u64().map_err(decode)?;
        let top_len = reader.u32().map_err(decode)?;
        let properties_len = reader.u32().map_err(decode)?;
        let properties_offset = reader.u64().map_err(decode)?;
        let version = reader.u32().map_err(decode)?;
        let reserved = reader.u32().map_err(decode)?;
        let incompatible = reader.u64().map_err(decode)?;
        let _compatible = reader.u64().map_err(decode)?;
        let data_end = reader.u64().map_err(decode)?;
        let stored = reader.u64().map_err(decode)?;
        let (summed, _) = buf.split_at(80);
        let computed = bound_hash(summed, fold64(uid), offset);
        if stored != computed {
            return Err(corrupt(format!(
                "footer checksum mismatch: stored {stored:#018x}, computed {computed:#018x}"
            )));
        }
        if version != FORMAT_VERSION {
            return Err(Error::UnknownVersion {
                file: path.to_path_buf(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        if reserved != 0 {
            return Err(corrupt("reserved bytes of the footer are not zero".to_owned()));
        }
        if incompatible != 0 {
            return Err(corrupt(format!("unknown incompatible features {incompatible:#x}")));
        }
        if file_len != offset + FOOTER_BYTES as u64 {
            return Err(corrupt(format!(
                "file has {} bytes, its footer says {file_len}",
                offset + FOOTER_BYTES as u64
            )));
        }
        if data_end > offset {
            return Err(corrupt(format!("data region ends at {data_end}, beyond the footer")));
        }
        Ok(Self {
            uid,
            file_len,
            top: Handle { offset: top_offset, len: u64::from(top_len) },
            properties: Handle { offset: properties_offset, len: u64::from(properties_len) },
            data_end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        Footer {
            uid: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
            file_len: 4096,
            top: Handle { offset: 100, len: 20 },
            properties: Handle { offset: 200, len: 30 },
            data_end: 90,
        }
    }

    #[test]
    fn footer_comes_back_and_every_flipped_bit_is_noticed() {
        let path = Path::new("t.sst");
        let good = footer().encode().expect("encodes");
        let offset = 4096 - FOOTER_BYTES as u64;
        assert_eq!(Footer::decode(&good, path, offset).expect("decodes"), footer(), "round trip");
        for bit in 0..FOOTER_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = Footer::decode(&bad, path, offset).expect_err("flipped bit");
            assert!(matches!(error, Error::Corruption { .. }), "bit {bit}: {error}");
        }
    }

    #[test]
    fn the_next_format_version_is_refused_by_name() {
        let mut next = footer().encode().expect("encodes");
        next[48] = u8::try_from(FORMAT_VERSION + 1).expect("small");
        let offset = 4096 - FOOTER_BYTES as u64;
        let sum = bound_hash(&next[..80], fold64(footer().uid), offset);
        next[80..88].copy_from_slice(&sum.to_le_bytes());
        let error = Footer::decode(&next, Path::new("t.sst"), offset).expect_err("next version");
        assert!(
            matches!(error, Error::UnknownVersion { found, supported, .. } if found == supported + 1),
            "{error}"
        );
    }
}
