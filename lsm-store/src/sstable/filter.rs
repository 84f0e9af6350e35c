//! Blocked bloom filters: one 64-byte line per key, six bits in it, all from one hash.
//!
//! `kind u8 | probes u8 | reserved u16 | lines u32 | keys u32 | reserved u32 | lines × 64 B`
//!
//! A filter of unknown kind answers "maybe": it can never hide a key.

#![deny(clippy::indexing_slicing)]

use std::path::Path;

use crate::checksum::hash;
use crate::coding::{DecodeError, Reader};
use crate::error::{Error, Result};

const KIND_BLOCKED_BLOOM: u8 = 1;
const HEADER_BYTES: usize = 16;
const LINE_BYTES: usize = 64;
/// Bits per key at which six probes are near the optimum of a blocked filter; about 1 % false positives.
const PROBES: u8 = 6;

/// The hash all filters of a lookup share.
pub(crate) fn key_hash(user_key: &[u8]) -> u64 {
    hash(user_key)
}

/// Builds the filter of a partition from the hashes of its distinct user keys.
pub(crate) fn build(hashes: &[u64], bits_per_key: usize) -> Result<Vec<u8>> {
    let bits = hashes.len().saturating_mul(bits_per_key).max(1);
    let too_large = |_overflow| Error::TooLarge {
        what: "filter",
        size: bits as u64 / 8,
        limit: u64::from(u32::MAX),
    };
    let lines = u32::try_from(bits.div_ceil(LINE_BYTES * 8)).map_err(too_large)?;
    let keys = u32::try_from(hashes.len()).map_err(too_large)?;
    let mut filter = Vec::with_capacity(HEADER_BYTES + lines as usize * LINE_BYTES);
    filter.extend_from_slice(&[KIND_BLOCKED_BLOOM, PROBES, 0, 0]);
    filter.extend_from_slice(&lines.to_le_bytes());
    filter.extend_from_slice(&keys.to_le_bytes());
    filter.extend_from_slice(&[0; 4]);
    filter.resize(HEADER_BYTES + lines as usize * LINE_BYTES, 0);
    for &hash in hashes {
        let start = HEADER_BYTES + line_of(hash, lines) * LINE_BYTES;
        for bit in probes(hash) {
            if let Some(place) = filter.get_mut(start + bit / 8) {
                *place |= 1 << (bit % 8);
            }
        }
    }
    Ok(filter)
}

/// High half of the hash, scaled to the number of lines.
fn line_of(hash: u64, lines: u32) -> usize {
    let scaled = ((hash >> 32) * u64::from(lines)) >> 32;
    usize::try_from(scaled).unwrap_or(0)
}

/// Places of a key's bits in its line: nine bits of a remixed hash each.
fn probes(hash: u64) -> impl Iterator<Item = usize> {
    let mixed = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..u32::from(PROBES)).map(move |i| usize::try_from((mixed >> (10 + 9 * i)) & 511).unwrap_or(0))
}

/// One line, in one line of the processor's caches.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line([u64; 8]);

/// A parsed filter partition.
#[derive(Debug)]
pub(crate) struct Filter {
    /// None for a kind this build does not know: always "maybe".
    lines: Box<[Line]>,
    keys: u32,
}

impl Filter {
    /// Parses the raw block.
    ///
    /// # Errors
    /// `Corruption` at the block's offset.
    pub(crate) fn parse(raw: &[u8], path: &Path, offset: u64) -> Result<Self> {
        let corrupt = |detail: &str| Error::corruption(path, offset, detail);
        let decode = |e: DecodeError| Error::corruption(path, offset, e.what);
        let mut reader = Reader::new(raw);
        let kind = reader.u8().map_err(decode)?;
        let probes = reader.u8().map_err(decode)?;
        let reserved = reader.u16().map_err(decode)?;
        let lines = reader.u32().map_err(decode)?;
        let keys = reader.u32().map_err(decode)?;
        let reserved_too = reader.u32().map_err(decode)?;
        if kind != KIND_BLOCKED_BLOOM || probes != PROBES {
            return Ok(Self { lines: Box::default(), keys });
        }
        if reserved != 0 || reserved_too != 0 {
            return Err(corrupt("reserved parts of a filter are not zero"));
        }
        let expected = u64::from(lines) * LINE_BYTES as u64;
        if lines == 0 || reader.remaining() as u64 != expected {
            return Err(corrupt("filter length does not match its number of lines"));
        }
        let (words, _) = raw.get(HEADER_BYTES..).unwrap_or_default().as_chunks::<8>();
        let (lines, _) = words.as_chunks::<8>();
        let lines = lines.iter().map(|line| Line(line.map(u64::from_le_bytes))).collect();
        Ok(Self { lines, keys })
    }

    /// Bytes of memory the filter takes.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.lines)
    }

    /// Distinct user keys in the partition.
    pub(crate) const fn keys(&self) -> u32 {
        self.keys
    }

    /// False only if no key with this hash was added.
    #[inline]
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let lines = u32::try_from(self.lines.len()).unwrap_or(u32::MAX);
        let Some(Line(line)) = self.lines.get(line_of(hash, lines)) else { return true };
        // All bits are looked at, without a branch each.
        let set = |bit: usize| line.get(bit / 64).map_or(1, |word| word >> (bit % 64));
        probes(hash).fold(1, |all, bit| all & set(bit)) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_added_key_is_found_and_few_others_are() {
        let hashes: Vec<u64> = (0..10_000_u32).map(|i| key_hash(&i.to_be_bytes())).collect();
        let raw = build(&hashes, 10).expect("builds");
        let filter = Filter::parse(&raw, Path::new("f"), 0).expect("parses");
        assert!(hashes.iter().all(|h| filter.may_contain(*h)), "no false negatives");
        let false_positives = (10_000..110_000_u32)
            .filter(|i| filter.may_contain(key_hash(&i.to_be_bytes())))
            .count();
        assert!(false_positives < 2_000, "{false_positives} of 100000 absent keys pass");
    }

    #[test]
    fn a_filter_of_unknown_kind_says_maybe() {
        let mut raw = build(&[1], 10).expect("builds");
        raw[0] = 9;
        let filter = Filter::parse(&raw, Path::new("f"), 0).expect("parses");
        assert!(filter.may_contain(12345), "unknown kind");
    }
}
