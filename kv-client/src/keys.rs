//! Keys, values and ranges of keys, as a caller writes them.
//!
//! Conversions only; limits that the cluster sets are checked by the cluster, the two that are
//! part of the data model (a key has 1 to 4,096 bytes) also here, before anything is sent.

use bytes::Bytes;
use raft_rpc::KeyRange;

use crate::error::{Effect, Error, ErrorKind, Result, bytes_text};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;

/// No node can be configured to take a larger value than this, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 << 20;

/// What can be used as a key or a value: strings and byte strings, borrowed or owned.
///
/// Owned ones and [`Bytes`] are taken without copying.
pub trait IntoBytes {
    /// The bytes.
    fn into_bytes(self) -> Bytes;
}

impl IntoBytes for Bytes {
    fn into_bytes(self) -> Bytes {
        self
    }
}

impl IntoBytes for &Bytes {
    fn into_bytes(self) -> Bytes {
        self.clone()
    }
}

impl IntoBytes for String {
    fn into_bytes(self) -> Bytes {
        Bytes::from(self)
    }
}

impl IntoBytes for Vec<u8> {
    fn into_bytes(self) -> Bytes {
        Bytes::from(self)
    }
}

impl IntoBytes for &str {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self.as_bytes())
    }
}

impl IntoBytes for &String {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self.as_bytes())
    }
}

impl IntoBytes for &[u8] {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl IntoBytes for &Vec<u8> {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl<const N: usize> IntoBytes for &[u8; N] {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl<const N: usize> IntoBytes for [u8; N] {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self)
    }
}

/// All keys that begin with `prefix`; all keys at all if it is empty.
#[must_use]
pub fn prefix(prefix: impl IntoBytes) -> KeyRange {
    let start = prefix.into_bytes();
    // The first key past the prefix: the prefix with its last byte that can be raised raised, and
    // what follows it cut. If none can be, nothing lies past it.
    let end = start.iter().rposition(|byte| *byte != u8::MAX).map(|position| {
        let mut end = start[..=position].to_vec();
        end[position] += 1;
        Bytes::from(end)
    });
    KeyRange { start, end }
}

/// All keys.
#[must_use]
pub fn all() -> KeyRange {
    KeyRange { start: Bytes::new(), end: None }
}

/// The keys from `start` up to, not including, `end`.
#[must_use]
pub fn between(start: impl IntoBytes, end: impl IntoBytes) -> KeyRange {
    KeyRange { start: start.into_bytes(), end: Some(end.into_bytes()) }
}

/// The keys from `start` on.
#[must_use]
pub fn starting_at(start: impl IntoBytes) -> KeyRange {
    KeyRange { start: start.into_bytes(), end: None }
}

/// # Errors
/// The key is empty or longer than [`KEY_BYTES_MAX`].
pub(crate) fn check_key(key: &Bytes) -> Result<()> {
    if key.is_empty() {
        return Err(Error::bad_input("key is empty", "a key has 1 to 4096 bytes"));
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            Effect::None,
            format!("key is {} bytes, limit is {KEY_BYTES_MAX} bytes", key.len()),
            "use a shorter key, for example a hash of it",
        ));
    }
    Ok(())
}

/// # Errors
/// The value is larger than any node can be configured to take; such a frame would only break the
/// connection.
pub(crate) fn check_value(value: &Bytes) -> Result<()> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            Effect::None,
            format!(
                "value is {}, limit is {} at most (limits.value)",
                bytes_text(value.len() as u64),
                bytes_text(VALUE_BYTES_MAX as u64)
            ),
            "split it",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(bytes: &[u8]) -> Option<Vec<u8>> {
        prefix(bytes).end.map(|end| end.to_vec())
    }

    #[test]
    fn a_prefix_ends_before_the_next_key_that_lacks_it() {
        assert_eq!(end_of(b"tmp/"), Some(b"tmp0".to_vec()));
        assert_eq!(end_of(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(end_of(b"\xff\xff"), None);
        assert_eq!(end_of(b""), None);
    }

    #[test]
    fn keys_outside_the_data_model_are_refused_before_anything_is_sent() {
        assert_eq!(
            check_key(&Bytes::new()).map_err(|error| error.kind()),
            Err(ErrorKind::BadInput)
        );
        let long = Bytes::from(vec![b'k'; KEY_BYTES_MAX + 1]);
        let error = check_key(&long).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(error.to_string(), "key is 4097 bytes, limit is 4096 bytes");
        assert!(check_key(&long.slice(1..)).is_ok(), "4096 bytes are allowed");
    }
}
