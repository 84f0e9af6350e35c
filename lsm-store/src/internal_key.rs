//! Internal keys: user key, sequence number, kind, and their order.
//!
//! Order: user key ascending by bytes, then sequence number **descending**, so that of one user key the
//! newest version comes first and a search for `(key, s)` lands on the newest version at or below `s`.
//! A pair `(user key, sequence number)` occurs once in a partition, so kinds never decide the order.
//!
//! An internal key stays structured; it is never encoded into one string of bytes and compared.

use std::cmp::Ordering;

/// Above every sequence number a write may carry: a search from here finds the newest version.
pub(crate) const SEQUENCE_ABOVE_ALL: u64 = u64::MAX;

/// Below every sequence number a write may carry: a search from here finds the next user key.
pub(crate) const SEQUENCE_BELOW_ALL: u64 = 0;

/// What an entry says about its key. The numbers are on disk and never change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The key has a value from here on.
    Value = 0,
    /// The key is absent from here on.
    Delete = 1,
}

impl Kind {
    pub(crate) const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Value),
            1 => Some(Self::Delete),
            _ => None,
        }
    }
}

/// Compares two internal keys.
pub(crate) fn compare(a: (&[u8], u64), b: (&[u8], u64)) -> Ordering {
    a.0.cmp(b.0).then(b.1.cmp(&a.1))
}

/// An internal key that owns its user key: bounds of tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InternalKey {
    pub(crate) user_key: Vec<u8>,
    pub(crate) sequence: u64,
}

/// The shortest user key `s` with `last <= s < next`: the separator between two blocks.
///
/// `last < next` must hold. Without a shorter one it is `last` itself.
pub(crate) fn shortest_separator(last: &[u8], next: &[u8]) -> Vec<u8> {
    let common = last.iter().zip(next).take_while(|(a, b)| a == b).count();
    if let (Some(&a), Some(&b)) = (last.get(common), next.get(common)) {
        // `last` and `next` differ at `common`, and a < b: a + 1 fits, and if it is still below b, it
        // separates in common + 1 bytes.
        if a + 1 < b {
            let mut separator = last.get(..common).unwrap_or_default().to_vec();
            separator.push(a + 1);
            return separator;
        }
    }
    last.to_vec()
}

/// The integer of the first 8 bytes, big-endian, zero-padded: orders like the bytes do, except for ties.
pub(crate) fn head(key: &[u8]) -> u64 {
    if let Some(first) = key.first_chunk::<8>() {
        return u64::from_be_bytes(*first);
    }
    let mut padded = [0_u8; 8];
    for (to, from) in padded.iter_mut().zip(key) {
        *to = *from;
    }
    u64::from_be_bytes(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_of_a_key_comes_first() {
        assert_eq!(compare((b"a", 9), (b"a", 3)), Ordering::Less, "9 is newer than 3");
        assert_eq!(
            compare((b"a", 1), (b"ab", 9)),
            Ordering::Less,
            "a prefix is before its extension"
        );
        assert_eq!(
            compare((b"", SEQUENCE_BELOW_ALL), (b"\0", 5)),
            Ordering::Less,
            "empty key first"
        );
    }

    #[test]
    fn separator_is_between_its_neighbours() {
        for (last, next, expected) in [
            (&b"abc"[..], &b"abzz"[..], &b"abd"[..]),
            (b"abc", b"abd", b"abc"),
            (b"abc", b"abcd", b"abc"),
            (b"", b"a", b""),
            (b"a\xff\xff", b"c", b"b"),
            (b"ab\xff", b"ac", b"ab\xff"),
        ] {
            let separator = shortest_separator(last, next);
            assert_eq!(separator, expected, "between {last:?} and {next:?}");
            assert!(last <= separator.as_slice() && separator.as_slice() < next, "order");
        }
    }

    #[test]
    fn heads_order_like_keys_or_tie() {
        let keys: [&[u8]; 7] =
            [b"", b"\0", b"\0\0\0\0\0\0\0\0\0", b"a", b"ab", b"abcdefgh", b"abcdefghi"];
        for pair in keys.windows(2) {
            assert!(head(pair[0]) <= head(pair[1]), "{pair:?}");
        }
    }
}
