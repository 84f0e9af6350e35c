//! Limits on requests: checked once, by the first server node, before anything is encoded.
//!
//! The state machine knows none of them: apply has to give the same result on nodes with different
//! settings (RAFT B31). An exceeded limit is a typed error that names the setting, never a closed socket.

use raft_rpc::{
    Condition, GetRequest, KeyRange, RangeRequest, Request, WireError, WriteOperation, WriteRequest,
};

/// Longest key, in bytes. Not a setting: it is part of the data model.
pub const KEY_BYTES_MAX: usize = 4096;

/// No setting allows a longer value, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 << 20;

/// Limits on what clients send and on what may wait. What may wait in bytes is a limit of consensus
/// (`raft_core::Config::max_unapplied_bytes`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Longest value, in bytes (setting `limits.value`; 1 MiB by default, at most 16 MiB).
    pub value_bytes_max: usize,
    /// Proposals are refused while this many callers wait for one.
    pub waiting_proposals_max: usize,
    /// Reads are refused while this many callers wait for a read index.
    pub waiting_reads_max: usize,
    /// A page of a range ends when its keys and values exceed this, in bytes.
    pub page_bytes_max: usize,
    /// Most items of a page.
    pub page_items_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            value_bytes_max: 1 << 20,
            waiting_proposals_max: 65_536,
            waiting_reads_max: 65_536,
            page_bytes_max: 1 << 20,
            page_items_max: 65_536,
        }
    }
}

impl Limits {
    /// Checks a request of any kind.
    ///
    /// # Errors
    /// [`WireError::TooLarge`] or [`WireError::BadInput`], said in the name of `node`.
    pub fn check(&self, node: u64, request: &Request) -> Result<(), WireError> {
        match request {
            Request::Write(write) => self.check_write(node, write),
            Request::Get(get) => Self::check_get(node, get),
            Request::Range(range) => Self::check_range(node, range),
        }
    }

    /// Checks a write.
    ///
    /// # Errors
    /// As [`Limits::check`].
    pub fn check_write(&self, node: u64, request: &WriteRequest) -> Result<(), WireError> {
        let registers = matches!(request.operation, WriteOperation::RegisterSession);
        match request.tag {
            Some(_) if registers => {
                return bad("a session is registered without a session tag");
            }
            Some(tag) if tag.session == 0 => return bad("sessions are numbered from 1"),
            Some(tag) if tag.sequence == 0 => {
                return bad("the writes of a session are numbered from 1");
            }
            Some(tag) if tag.lowest_unacknowledged > tag.sequence => {
                return bad("a write cannot be acknowledged before it is answered");
            }
            Some(_) | None => {}
        }
        match &request.operation {
            WriteOperation::RegisterSession => Ok(()),
            WriteOperation::Put { key, value, condition, .. } => {
                check_key(node, key)?;
                self.check_value(node, value.len())?;
                self.check_condition(node, condition)
            }
            WriteOperation::Delete { key, condition, .. } => {
                check_key(node, key)?;
                self.check_condition(node, condition)
            }
            WriteOperation::DeleteRange { range } => check_key_range(node, range),
        }
    }

    /// Checks a read of one key.
    ///
    /// # Errors
    /// As [`Limits::check`].
    pub fn check_get(node: u64, request: &GetRequest) -> Result<(), WireError> {
        check_key(node, &request.key)?;
        check_revision(request.revision)
    }

    /// Checks a read of a range.
    ///
    /// # Errors
    /// As [`Limits::check`].
    pub fn check_range(node: u64, request: &RangeRequest) -> Result<(), WireError> {
        check_key_range(node, &request.range)?;
        check_revision(request.revision)
    }

    fn check_value(&self, node: u64, size: usize) -> Result<(), WireError> {
        if size > self.value_bytes_max {
            return Err(too_large(node, "value", size, self.value_bytes_max, "limits.value"));
        }
        Ok(())
    }

    fn check_condition(&self, node: u64, condition: &Condition) -> Result<(), WireError> {
        match condition {
            Condition::Value(value) => self.check_value(node, value.len()),
            Condition::Revision(revision) => check_revision(Some(*revision)),
            Condition::Always | Condition::Absent => Ok(()),
        }
    }
}

fn check_key(node: u64, key: &[u8]) -> Result<(), WireError> {
    if key.is_empty() {
        return bad("a key has at least one byte");
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(too_large(node, "key", key.len(), KEY_BYTES_MAX, "fixed"));
    }
    Ok(())
}

/// The ends of a range are bounds, not keys: empty is fine, and one byte more than a key may have, so
/// that the successor of the longest key can be named.
fn check_key_range(node: u64, range: &KeyRange) -> Result<(), WireError> {
    for bound in [Some(&range.start), range.end.as_ref()].into_iter().flatten() {
        if bound.len() > KEY_BYTES_MAX + 1 {
            return Err(too_large(node, "key", bound.len(), KEY_BYTES_MAX, "fixed"));
        }
    }
    Ok(())
}

fn check_revision(revision: Option<u64>) -> Result<(), WireError> {
    match revision {
        Some(0) => bad("revisions start at 1"),
        Some(_) | None => Ok(()),
    }
}

fn bad(reason: &str) -> Result<(), WireError> {
    Err(WireError::BadInput { reason: reason.to_owned() })
}

fn too_large(node: u64, what: &str, size: usize, limit: usize, setting: &str) -> WireError {
    WireError::TooLarge {
        node,
        what: what.to_owned(),
        size: size as u64,
        limit: limit as u64,
        setting: setting.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raft_rpc::{Consistency, Projection, SessionTag};

    use super::*;

    fn put(key: usize, value: usize) -> Request {
        Request::Write(WriteRequest {
            tag: None,
            operation: WriteOperation::Put {
                key: Bytes::from(vec![b'k'; key]),
                value: Bytes::from(vec![b'v'; value]),
                condition: Condition::Always,
                return_previous: false,
            },
        })
    }

    #[test]
    fn the_largest_key_and_value_pass_and_one_byte_more_is_named_with_its_limit() {
        let limits = Limits::default();
        assert_eq!(limits.check(2, &put(KEY_BYTES_MAX, 1 << 20)), Ok(()), "the largest");
        let error = limits.check(2, &put(1, (1 << 20) + 1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "value is 1048577 bytes, limit is 1048576 (limits.value on node 2)",
            "a value"
        );
        let error = limits.check(2, &put(KEY_BYTES_MAX + 1, 0)).unwrap_err();
        assert!(error.to_string().starts_with("key is 4097 bytes, limit is 4096"), "{error}");
        assert!(limits.check(2, &put(0, 0)).is_err(), "an empty key");
    }

    #[test]
    fn requests_that_make_no_sense_are_bad_input() {
        let limits = Limits::default();
        let key = Bytes::from_static(b"k");
        let tagged = |session, sequence, lowest_unacknowledged, operation| {
            let tag = Some(SessionTag { session, sequence, lowest_unacknowledged });
            Request::Write(WriteRequest { tag, operation })
        };
        let delete = || WriteOperation::Delete {
            key: key.clone(),
            condition: Condition::Always,
            return_previous: false,
        };
        let range = RangeRequest {
            range: KeyRange { start: Bytes::new(), end: None },
            limit: None,
            reverse: false,
            projection: Projection::Count,
            revision: Some(0),
            consistency: Consistency::Linearizable,
        };
        for request in [
            tagged(0, 1, 1, delete()),
            tagged(1, 0, 0, delete()),
            tagged(1, 1, 2, delete()),
            tagged(1, 1, 1, WriteOperation::RegisterSession),
            Request::Range(range),
        ] {
            let error = limits.check(1, &request).unwrap_err();
            assert!(matches!(error, WireError::BadInput { .. }), "{request:?}: {error}");
        }
        assert_eq!(limits.check(1, &tagged(1, 1, 1, delete())), Ok(()), "a sensible one");
    }
}
