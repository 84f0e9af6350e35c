//! How many requests travel together: limits of a batch, and what requests and answers weigh.
//!
//! Arithmetic only; `connection` forms the batches. A node answers a batch in one frame and from
//! memory, so both directions are bounded well below the frame limit.

use raft_rpc::{Request, Response};

use crate::job::{Answer, Job};

/// Requests in a batch: enough that the cost of a call is nothing beside them.
pub(crate) const BATCH_REQUESTS_MAX: usize = 512;
/// Bytes of keys and values in a batch, but always at least one request. Small beside the frame
/// limit, and small enough that a batch does not hold up the next one for long.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Bytes of answers that a batch of reads should not exceed. A node answers a batch in one frame
/// and from memory; how much that will be is estimated from the batches before.
pub(crate) const READ_ANSWER_BYTES: usize = 4 << 20;
/// Reads in the first batch, before anything is known: with the largest values of a default
/// configuration still half a frame.
pub(crate) const READ_BATCH_FIRST: usize = 16;
/// Requests in a batch whose answers may be a page of 1 MiB each: together below the frame limit.
const BATCH_PAGES_MAX: usize = 16;
/// How many of the waiting jobs make a batch: at least one.
pub(crate) fn batch_length(held: &[Job], longest: usize) -> usize {
    let (mut bytes, mut pages) = (0, 0);
    let mut length = 0;
    for job in held.iter().take(longest) {
        let (job_bytes, job_pages) = weight(&job.request);
        bytes += job_bytes;
        pages += job_pages;
        let full = bytes > BATCH_BYTES_MAX || pages > BATCH_PAGES_MAX || job.alone;
        if length > 0 && full {
            break;
        }
        length += 1;
        if job.alone {
            break;
        }
    }
    length
}

/// The bytes of a request's keys and values, and how many pages its answer may fill.
fn weight(request: &Request) -> (usize, usize) {
    match request {
        Request::Write(write) => {
            let bytes = match &write.operation {
                raft_rpc::WriteOperation::RegisterSession => 0,
                raft_rpc::WriteOperation::Put { key, value, condition, .. } => {
                    key.len() + value.len() + condition_bytes(condition)
                }
                raft_rpc::WriteOperation::Delete { key, condition, .. } => {
                    key.len() + condition_bytes(condition)
                }
                raft_rpc::WriteOperation::DeleteRange { range } => range_bytes(range),
            };
            (bytes, 0)
        }
        Request::Get(get) => (get.key.len(), 0),
        Request::Range(range) => (range_bytes(&range.range), 1),
    }
}

/// The bytes of keys and values in an answer.
pub(crate) fn answer_bytes(answer: &Answer) -> usize {
    let item_bytes = |item: &raft_rpc::KeyValue| item.key.len() + item.value.len();
    match answer {
        Ok(Response::Value { found, .. }) => found.as_ref().map_or(0, item_bytes),
        Ok(Response::Page { items, .. }) => items.iter().map(item_bytes).sum(),
        Ok(
            Response::Session { .. }
            | Response::Written { .. }
            | Response::Deleted { .. }
            | Response::Refused { .. }
            | Response::Count { .. },
        )
        | Err(_) => 0,
    }
}

fn condition_bytes(condition: &raft_rpc::Condition) -> usize {
    match condition {
        raft_rpc::Condition::Value(value) => value.len(),
        raft_rpc::Condition::Always
        | raft_rpc::Condition::Absent
        | raft_rpc::Condition::Revision(_) => 0,
    }
}

fn range_bytes(range: &raft_rpc::KeyRange) -> usize {
    range.start.len() + range.end.as_ref().map_or(0, bytes::Bytes::len)
}
