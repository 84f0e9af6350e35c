//! Reads: when each may be served, and who serves it.
//!
//! ```text
//! linearizable   consensus gives a read index ──► wait until it is applied here ──┐
//! at least R     wait until revision R is applied here ───────────────────────────┼──► reader thread ──► answer
//! stale          heard from a leader lately? ─────────────────────────────────────┘
//! ```
//!
//! A read never blocks a network thread on the disk: it is served by a small pool behind a bounded queue.
//! Nothing is woken before its read can be served, and the caller's task only when all are answered.
//!
//! Threads: [`ReadGate::publish`] is called by the apply thread alone, everything else by anybody. The
//! lock guards the lists of waiting reads and is held for a few map operations.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::{Mutex, RwLock};
use raft_core::LogIndex;
use raft_rpc::{Response, WireError};

use crate::{
    replica::{Applied, StateReader},
    server::waiter::{ReadJob, ReadRequest},
};

/// Calls whose reads wait for a reader thread; beyond it they are answered "overloaded".
const POOL_QUEUE: usize = 4_096;
/// What an overloaded read is told to wait, in milliseconds.
const RETRY_AFTER_MS: u32 = 20;

/// Holds reads back until the state they need is applied.
#[derive(Debug)]
pub(crate) struct ReadGate {
    node: u64,
    /// Requests that may wait in the lists.
    waiting_max: usize,
    waiting: Mutex<Waiting>,
    /// `None` once the node stops.
    pool: RwLock<Option<Sender<ReadJob>>>,
}

#[derive(Debug, Default)]
struct Waiting {
    applied: Applied,
    for_index: BTreeMap<LogIndex, Vec<ReadJob>>,
    for_revision: BTreeMap<u64, Vec<ReadJob>>,
    /// Requests in both lists.
    count: usize,
}

impl ReadGate {
    /// A gate before `applied`, and the queue that [`run_reader`] empties.
    pub(crate) fn new(
        node: u64,
        waiting_max: usize,
        applied: Applied,
    ) -> (Self, Receiver<ReadJob>) {
        let (pool, jobs) = crossbeam_channel::bounded(POOL_QUEUE);
        let waiting = Mutex::new(Waiting { applied, ..Waiting::default() });
        (Self { node, waiting_max, waiting, pool: RwLock::new(Some(pool)) }, jobs)
    }

    /// Serves `job` once everything up to `index` is applied here.
    pub(crate) fn when_applied(&self, index: LogIndex, job: ReadJob) {
        let mut waiting = self.waiting.lock();
        if waiting.applied.index >= index {
            drop(waiting);
            return self.serve(job);
        }
        match waiting.admit(self.waiting_max, &job) {
            true => waiting.for_index.entry(index).or_default().push(job),
            false => {
                drop(waiting);
                job.refuse(&self.overloaded());
            }
        }
    }

    /// Serves `job` once `revision` is applied here.
    pub(crate) fn when_at_revision(&self, revision: u64, job: ReadJob) {
        let mut waiting = self.waiting.lock();
        if waiting.applied.revision >= revision {
            drop(waiting);
            return self.serve(job);
        }
        match waiting.admit(self.waiting_max, &job) {
            true => waiting.for_revision.entry(revision).or_default().push(job),
            false => {
                drop(waiting);
                job.refuse(&self.overloaded());
            }
        }
    }

    /// Serves `job` from what is applied now.
    pub(crate) fn serve(&self, job: ReadJob) {
        let sent = match &*self.pool.read() {
            Some(pool) => pool.try_send(job),
            None => Err(TrySendError::Disconnected(job)),
        };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => job.refuse(&self.overloaded()),
            Err(TrySendError::Disconnected(job)) => {
                job.refuse(&WireError::ShuttingDown { node: self.node });
            }
        }
    }

    /// What is applied and visible to readers.
    pub(crate) fn applied(&self) -> Applied {
        self.waiting.lock().applied
    }

    /// Everything in `applied` is visible to readers now.
    pub(crate) fn publish(&self, applied: Applied) {
        let mut ready = Vec::new();
        {
            let mut waiting = self.waiting.lock();
            waiting.applied = applied;
            while let Some(first) = waiting.for_index.first_entry()
                && *first.key() <= applied.index
            {
                ready.append(&mut first.remove());
            }
            while let Some(first) = waiting.for_revision.first_entry()
                && *first.key() <= applied.revision
            {
                ready.append(&mut first.remove());
            }
            waiting.count -= ready.iter().map(ReadJob::len).sum::<usize>();
        }
        for job in ready {
            self.serve(job);
        }
    }

    /// Answers everything that waits with "shutting down", and ends the readers.
    pub(crate) fn close(&self) {
        drop(self.pool.write().take());
        let mut waiting = self.waiting.lock();
        waiting.count = 0;
        let lists =
            (std::mem::take(&mut waiting.for_index), std::mem::take(&mut waiting.for_revision));
        drop(waiting);
        drop(lists);
    }

    fn overloaded(&self) -> WireError {
        WireError::Overloaded { node: self.node, retry_after_ms: RETRY_AFTER_MS }
    }
}

impl Waiting {
    /// Counts `job` in if there is room. Reads that nobody waits for any more are cleared away first: a
    /// revision far in the future would keep them for ever.
    fn admit(&mut self, waiting_max: usize, job: &ReadJob) -> bool {
        if self.count + job.len() > waiting_max {
            let now = Instant::now();
            for list in self.for_index.values_mut().chain(self.for_revision.values_mut()) {
                list.retain(|job| !job.is_late(now));
            }
            self.for_index.retain(|_index, list| !list.is_empty());
            self.for_revision.retain(|_revision, list| !list.is_empty());
            let lists = self.for_index.values().chain(self.for_revision.values());
            self.count = lists.flatten().map(ReadJob::len).sum();
        }
        let fits = self.count + job.len() <= waiting_max;
        if fits {
            self.count += job.len();
        }
        fits
    }
}

/// One thread of the pool: serves reads until the gate is gone. The answers of one call stay below
/// `answer_bytes_max` bytes together; what would exceed it is answered "overloaded", to be asked again.
pub(crate) fn run_reader(
    node: u64,
    jobs: &Receiver<ReadJob>,
    state: &StateReader,
    answer_bytes_max: usize,
) {
    for job in jobs {
        if job.is_late(Instant::now()) {
            job.refuse(&WireError::Timeout { node });
            continue;
        }
        let mut bytes = 0_usize;
        job.answer(|request| {
            if bytes > answer_bytes_max {
                return Err(WireError::Overloaded { node, retry_after_ms: 0 });
            }
            let answer = match request {
                ReadRequest::Get(get) => state.get(&get),
                ReadRequest::Range(range) => state.range(&range),
            };
            bytes = bytes.saturating_add(answer.as_ref().map_or(0, answer_bytes));
            answer
        });
    }
}

/// The bytes of an answer that are not bounded by its type.
fn answer_bytes(response: &Response) -> usize {
    let of = |item: &raft_rpc::KeyValue| item.key.len() + item.value.len() + 32;
    match response {
        Response::Written { previous: item, .. }
        | Response::Deleted { previous: item, .. }
        | Response::Refused { current: item, .. }
        | Response::Value { found: item, .. } => item.as_ref().map_or(0, of),
        Response::Page { items, .. } => items.iter().map(of).sum(),
        Response::Session { .. } | Response::Count { .. } => 0,
    }
}

/// Whether a stale read may be served: `age` is how long ago this node heard from a leader.
///
/// # Errors
/// [`WireError::TooStale`] if that is too long ago.
pub(crate) fn check_age(
    node: u64,
    age: Duration,
    max_age_ms: Option<u64>,
) -> Result<(), WireError> {
    let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    match max_age_ms {
        Some(max_age_ms) if age_ms > max_age_ms => {
            Err(WireError::TooStale { node, age_ms, max_age_ms })
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raft_rpc::{Consistency, GetRequest};

    use super::*;
    use crate::server::waiter::Batch;

    fn job(deadline: Instant) -> ReadJob {
        let get = GetRequest {
            key: Bytes::from_static(b"k"),
            revision: None,
            consistency: Consistency::Linearizable,
        };
        ReadJob::new(Batch::new(1, 1), vec![(0, ReadRequest::Get(get))], deadline)
    }

    fn applied(index: u64, revision: u64) -> Applied {
        Applied { index: LogIndex(index), revision, ..Applied::default() }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_read_passes_when_its_index_or_revision_is_applied_and_not_before() {
        let (gate, jobs) = ReadGate::new(1, 10, applied(5, 50));
        gate.when_applied(LogIndex(5), job(soon()));
        assert_eq!(jobs.len(), 1, "applied already");
        gate.when_applied(LogIndex(6), job(soon()));
        gate.when_at_revision(52, job(soon()));
        gate.publish(applied(5, 50));
        assert_eq!(jobs.len(), 1, "nothing new");
        gate.publish(applied(6, 51));
        assert_eq!(jobs.len(), 2, "the index is there, the revision is not");
        gate.publish(applied(7, 52));
        assert_eq!(jobs.len(), 3);
    }

    #[test]
    fn waiting_reads_are_bounded_and_late_ones_make_room() {
        let (gate, _jobs) = ReadGate::new(1, 2, applied(5, 50));
        let late = Instant::now();
        gate.when_at_revision(u64::MAX, job(late));
        gate.when_at_revision(u64::MAX, job(late));
        gate.when_at_revision(99, job(soon()));
        gate.when_applied(LogIndex(9), job(soon()));
        assert_eq!(gate.waiting.lock().count, 2, "the late ones are gone");
        gate.when_applied(LogIndex(9), job(soon()));
        let waiting = gate.waiting.lock();
        assert_eq!(waiting.count, 2, "no room");
        assert_eq!(waiting.for_index.values().map(Vec::len).sum::<usize>(), 1);
    }

    #[test]
    fn a_stale_read_is_refused_beyond_its_age() {
        let age = Duration::from_millis(500);
        assert_eq!(check_age(1, age, None), Ok(()));
        assert_eq!(check_age(1, age, Some(500)), Ok(()));
        let refused = Err(WireError::TooStale { node: 1, age_ms: 500, max_age_ms: 499 });
        assert_eq!(check_age(1, age, Some(499)), refused);
    }
}
