//! Checksums bound to the place where the bytes belong.
//!
//! A checksum of content alone lets an intact block pass at a wrong offset or in a wrong file. Here
//! every stored checksum is `H(content) + bind(id, offset)`, where `id` names the file's incarnation
//! (a table's uid, a segment's epoch): a block that was misplaced, left over from a file's earlier
//! life, or copied from another file fails the check. The sum is added, so content can be hashed
//! before its offset is known.

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

/// `H`: XXH3-64 of `bytes`.
pub fn hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Pieces up to this size together are put beside each other and hashed at once, which takes a fraction of
/// the time that it takes to set up a hash of pieces.
const JOINED_BYTES: usize = 320;

/// `H` of two pieces that are not beside each other: equal to [`hash`] of their concatenation.
pub fn hash_pair(first: &[u8], second: &[u8]) -> u64 {
    let total = first.len() + second.len();
    let mut joined = [0; JOINED_BYTES];
    if let Some(joined) = joined.get_mut(..total)
        && let Some((head, tail)) = joined.split_at_mut_checked(first.len())
    {
        head.copy_from_slice(first);
        tail.copy_from_slice(second);
        return hash(joined);
    }
    let mut state = Xxh3::new();
    state.update(first);
    state.update(second);
    state.digest()
}

/// `D`: XXH3-128 of `bytes`, for whole files and blocks that are compared by digest.
pub fn digest(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}

/// `D` of bytes that come in pieces.
#[derive(Clone, Default)]
pub struct Digester {
    state: Xxh3,
}

impl std::fmt::Debug for Digester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digester").finish_non_exhaustive()
    }
}

impl Digester {
    /// A digester that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// `D` of everything taken so far.
    pub fn finish(&self) -> u128 {
        self.state.digest128()
    }
}

/// What is added to a checksum to tie it to the place `offset` in the file incarnation `id`.
///
/// Injective in `offset` for a fixed `id` (the multiplier is odd) and in `id` for a fixed `offset`.
pub fn bind(id: u64, offset: u64) -> u64 {
    id ^ offset.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// `H(bytes)` bound to its place.
pub fn bound_hash(bytes: &[u8], id: u64, offset: u64) -> u64 {
    hash(bytes).wrapping_add(bind(id, offset))
}

/// The 64-bit id of a 128-bit one, for [`bind`].
pub fn fold64(id: u128) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = id.to_le_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_le_bytes([i, j, k, l, m, n, o, p])
}

/// The 16-bit fold of a 64-bit number: a cheap filter before a full check.
pub fn fold16(value: u64) -> u16 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    u16::from_le_bytes([a ^ c ^ e ^ g, b ^ d ^ f ^ h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_hashes_like_its_concatenation() {
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for cut in [0, 1, 24, 240, 241, 256, 1024, 4999, 5000] {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(hash_pair(first, second), hash(&bytes), "cut at {cut}");
        }
        let mut digester = Digester::new();
        digester.update(&bytes);
        assert_eq!(digester.finish(), digest(&bytes), "the digest of one piece is the digest");
    }

    #[test]
    fn the_same_bytes_have_another_sum_at_another_place() {
        let here = bound_hash(b"block", 7, 4096);
        assert_ne!(here, bound_hash(b"block", 7, 8192), "another offset");
        assert_ne!(here, bound_hash(b"block", 8, 4096), "another file");
        assert_ne!(here, bound_hash(b"blocl", 7, 4096), "another content");
    }

    #[test]
    fn known_values_stay_what_they_are() {
        assert_eq!(hash(b""), 0x2d06_8005_38d3_94c2, "XXH3-64 of nothing");
        assert_eq!(bind(0, 1), 0x9E37_79B9_7F4A_7C15, "the multiplier");
        assert_eq!(fold64(0x1_0000_0000_0000_0002), 3, "both halves");
        assert_eq!(fold16(0x0001_0002_0004_0008), 15, "all four quarters");
    }
}
