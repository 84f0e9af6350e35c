//! Bytes to numbers and back: fixed-width little-endian integers and varints.
//!
//! [`Reader`] is the only way bytes from disk are taken apart: it checks every length against what is
//! left before anything is used or allocated, never panics, and refuses varints that are longer than
//! they need to be, so that every value has exactly one encoding.

#![deny(clippy::indexing_slicing)]

use thiserror::Error;

/// The longest varint in bytes: 64 bits in groups of seven.
pub const MAX_VARINT_BYTES: usize = 10;

/// Bytes that do not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{what} at byte {offset} of the decoded range")]
pub struct DecodeError {
    /// Where, from the start of the decoded range.
    pub offset: u64,
    /// What was expected.
    pub what: &'static str,
}

/// Appends a varint: seven bits a byte, lowest first, the top bit set on all but the last.
pub fn put_varint(buf: &mut Vec<u8>, value: u64) {
    let mut rest = value;
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            buf.push(low);
            return;
        }
        buf.push(low | 0x80);
    }
}

/// The number of bytes [`put_varint`] takes for `value`.
pub fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Appends a length as varint, then the bytes.
pub fn put_length_prefixed(buf: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(buf, bytes.len() as u64);
    buf.extend_from_slice(bytes);
}

/// Takes bytes apart from front to back.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their beginning.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, total: bytes.len() }
    }

    /// How many bytes were taken so far.
    #[inline]
    pub fn position(&self) -> usize {
        self.total - self.rest.len()
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether nothing is left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// An error at the present position.
    pub fn error(&self, what: &'static str) -> DecodeError {
        DecodeError { offset: self.position() as u64, what }
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// If fewer are left.
    #[inline]
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((head, tail)) = self.rest.split_at_checked(len) else {
            return Err(self.error("fewer bytes than the length says"));
        };
        self.rest = tail;
        Ok(head)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.error("fewer bytes than the field needs"));
        };
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// If nothing is left.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(u8::from_le_bytes)
    }

    /// Two bytes, little-endian.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes, little-endian.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes, little-endian.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Sixteen bytes, little-endian.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_le_bytes)
    }

    /// A varint in its shortest encoding.
    ///
    /// # Errors
    /// If it does not end, does not fit 64 bits, or could be shorter.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        // Most varints on disk are lengths and small differences: one byte.
        if let Some((&first, tail)) = self.rest.split_first()
            && first < 0x80
        {
            self.rest = tail;
            return Ok(u64::from(first));
        }
        // Up to eight bytes are taken at once: the top bits say where the varint ends, and its groups of
        // seven bits are moved together in three steps, by pairs, pairs of pairs, and halves.
        if let Some(chunk) = self.rest.first_chunk::<8>() {
            let word = u64::from_le_bytes(*chunk);
            let ends = !word & 0x8080_8080_8080_8080;
            let last = ends & ends.wrapping_neg();
            let len = usize::try_from(last.trailing_zeros() / 8 + 1).unwrap_or(usize::MAX);
            // All bits up to the one that ends the varint; none if it goes on.
            let groups = word & last.wrapping_sub(1) & 0x7F7F_7F7F_7F7F_7F7F;
            if last != 0
                && groups >> (last.trailing_zeros() - 7) != 0
                && let Some(tail) = self.rest.get(len..)
            {
                let pairs =
                    (groups & 0x007F_007F_007F_007F) | (groups & 0x7F00_7F00_7F00_7F00) >> 1;
                let quads = (pairs & 0x0000_3FFF_0000_3FFF) | (pairs & 0x3FFF_0000_3FFF_0000) >> 2;
                let value = (quads & 0x0FFF_FFFF) | (quads & 0x0FFF_FFFF_0000_0000) >> 4;
                self.rest = tail;
                return Ok(value);
            }
        }
        self.varint_by_bytes()
    }

    /// A varint at the end of the bytes, of nine or ten bytes, or one to refuse.
    #[cold]
    fn varint_by_bytes(&mut self) -> Result<u64, DecodeError> {
        let start = self.position() as u64;
        let fail = |what| DecodeError { offset: start, what };
        let mut value = 0_u64;
        let mut rest = self.rest;
        for index in 0..MAX_VARINT_BYTES {
            let Some((&byte, tail)) = rest.split_first() else {
                return Err(fail("a varint that does not end"));
            };
            rest = tail;
            let group = u64::from(byte & 0x7F);
            if index == MAX_VARINT_BYTES - 1 && group > 1 {
                return Err(fail("a varint above 64 bits"));
            }
            value |= group << (7 * index);
            if byte < 0x80 {
                if byte == 0 && index > 0 {
                    return Err(fail("a varint longer than it needs to be"));
                }
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(fail("a varint above ten bytes"))
    }

    /// A varint that must fit a length in memory and not exceed what is left.
    ///
    /// # Errors
    /// As [`Reader::varint`], and if it is more than what is left.
    #[inline]
    pub fn length(&mut self) -> Result<usize, DecodeError> {
        let at = self.clone();
        let value = self.varint()?;
        match usize::try_from(value) {
            Ok(len) if len <= self.rest.len() => Ok(len),
            Ok(_) | Err(_) => Err(at.error("a length beyond the end")),
        }
    }

    /// A length as varint, then that many bytes.
    ///
    /// # Errors
    /// As [`Reader::length`].
    pub fn length_prefixed(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.length()?;
        self.bytes(len)
    }

    /// Says that nothing may be left.
    ///
    /// # Errors
    /// If something is.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error("bytes after the end")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one_varint(bytes: &[u8]) -> Result<u64, DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = reader.varint()?;
        reader.finish()?;
        Ok(value)
    }

    #[test]
    fn varints_at_every_width_come_back() {
        let edges = (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) - 1, (1 << bit) + 1]);
        for value in edges.chain([0, u64::MAX]) {
            let mut buf = Vec::new();
            put_varint(&mut buf, value);
            assert_eq!(buf.len(), varint_len(value), "length of {value}");
            assert_eq!(one_varint(&buf), Ok(value), "value {value}");
        }
    }

    #[test]
    fn varints_come_back_whatever_follows_them() {
        let edges = (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) - 1, (1 << bit) + 1]);
        for value in edges.chain([0, u64::MAX]) {
            for behind in [[0x00; 9], [0x7F; 9], [0x80; 9], [0xFF; 9]] {
                let mut buf = Vec::new();
                put_varint(&mut buf, value);
                let len = buf.len();
                buf.extend_from_slice(&behind);
                let mut reader = Reader::new(&buf);
                assert_eq!(reader.varint(), Ok(value), "value {value} before {behind:?}");
                assert_eq!(reader.position(), len, "bytes taken for {value} before {behind:?}");
            }
        }
        for bytes in [[0x80, 0x00, 1, 1, 1, 1, 1, 1], [0xFF, 0x80, 0x00, 1, 1, 1, 1, 1]] {
            let error = Reader::new(&bytes).varint().expect_err("not the shortest encoding");
            assert_eq!(error.what, "a varint longer than it needs to be", "for {bytes:?}");
        }
    }

    #[test]
    fn a_varint_that_could_be_shorter_is_refused() {
        for bytes in [&[0x80, 0x00][..], &[0xFF, 0x00], &[0x81, 0x80, 0x00]] {
            let error = one_varint(bytes).expect_err("not the shortest encoding");
            assert_eq!(error.what, "a varint longer than it needs to be", "for {bytes:?}");
        }
    }

    #[test]
    fn a_varint_above_64_bits_is_refused() {
        let mut bytes = [0xFF; 10];
        bytes[9] = 0x02;
        assert!(one_varint(&bytes).is_err(), "65 bits");
        bytes[9] = 0x01;
        assert_eq!(one_varint(&bytes), Ok(u64::MAX), "exactly 64 bits");
        assert!(one_varint(&[0xFF; 11]).is_err(), "eleven bytes");
        assert!(one_varint(&[0x80]).is_err(), "no end");
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_where_it_stands() {
        let mut buf = vec![7];
        put_varint(&mut buf, u64::MAX);
        buf.extend_from_slice(b"abc");
        let mut reader = Reader::new(&buf);
        assert_eq!(reader.u8(), Ok(7), "the byte before");
        let error = reader.length_prefixed().expect_err("no such length");
        assert_eq!(error, DecodeError { offset: 1, what: "a length beyond the end" });
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            while !reader.is_empty() {
                let before = reader.position();
                if let Ok(value) = reader.varint() {
                    let mut again = Vec::new();
                    put_varint(&mut again, value);
                    prop_assert_eq!(&bytes[before..reader.position()], &again[..], "one encoding only");
                    let _shorter = reader.length_prefixed();
                } else {
                    break;
                }
            }
        }
    }
}
