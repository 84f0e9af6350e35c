//! What a store tells its owner as it happens: flushes, compactions, waits, damage, new logs and manifests, copies.
//!
//! Events are for logs and alarms; what can be counted is in [`Metrics`](crate::Metrics). They never
//! contain keys or values. This crate logs nothing by itself.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::store::Replaced;
use crate::types::PartitionId;

/// Takes the events of a store.
///
/// Called on the thread where it happened, without any lock of the store held, and before the work goes
/// on: be brief, hand over what takes long. The store may be used from within.
pub trait Listener: Debug + Send + Sync {
    /// Something happened.
    fn on_event(&self, event: &Event);
}

/// What makes a write wait, or be refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum StallCause {
    /// Too many frozen memtables wait for their flush.
    Memtables,
    /// Too many sorted runs are in level 0.
    Level0,
    /// Compactions have too much to write until nothing is due. It only delays.
    Debt,
    /// Too little space is free. Nothing waits for it: writes are refused when it is short.
    Space,
}

/// Something that happened in a store. Durations are `None` with [`Executor::Inline`](crate::Executor::Inline),
/// which has no clock.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Memtables are in tables now, and the durable position has moved.
    Flushed {
        /// Index of the new durable position.
        position: u64,
        /// Entries in the memtables.
        entries: u64,
        /// Tables written.
        tables: usize,
        /// Their size in bytes.
        bytes: u64,
        /// How long it took.
        took: Option<Duration>,
    },
    /// Tables were merged, or moved as they are.
    Compacted {
        /// Whose tables.
        partition: PartitionId,
        /// Level they came from.
        from: usize,
        /// Level they are in now.
        to: usize,
        /// Tables read, or moved.
        tables_in: usize,
        /// Their size in bytes.
        bytes_in: u64,
        /// Tables written; 0 for a move.
        tables_out: usize,
        /// Their size in bytes.
        bytes_out: u64,
        /// How long it took.
        took: Option<Duration>,
    },
    /// A background job failed and left nothing behind; it is tried again.
    JobFailed {
        /// What it was to do: "flush", "compaction", "scrub".
        job: &'static str,
        /// What went wrong, with file and operation.
        error: String,
    },
    /// Background work is behind, and a write was delayed for it; others will be. See
    /// [`Store::pressure`](crate::Store::pressure).
    DelaysBegan {
        /// What is behind.
        cause: StallCause,
    },
    /// Nothing is behind any more.
    DelaysEnded {
        /// How many delays there were.
        delays: u64,
        /// How long they took together.
        waited: Duration,
    },
    /// A write stood still until background work had caught up and goes on, or gave up.
    Stalled {
        /// What it waited for.
        cause: StallCause,
        /// How long.
        waited: Option<Duration>,
    },
    /// Bytes on disk are not what was written there. What they hold cannot be read until it is repaired;
    /// everything else can.
    Damaged {
        /// The damaged file.
        file: PathBuf,
        /// Where in the file it was noticed.
        offset: u64,
        /// What was expected and what was found.
        detail: String,
    },
    /// The store accepts no more writes until it is opened again.
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// Space on the disk went below the reserve: writes are refused, reads go on.
    SpaceLow {
        /// Bytes free.
        free: u64,
        /// Bytes needed before writes are accepted again.
        needed: u64,
    },
    /// There is space again, writes are accepted.
    SpaceBack {
        /// Bytes free.
        free: u64,
    },
    /// The store's own log goes on in a new segment, and what was written to it is visible.
    LogRolled {
        /// Number of the new segment.
        segment: u64,
    },
    /// A new manifest with the whole state is in force: at the open of a store whose last manifest is not certain to
    /// stay, and when the edits of the one in force outweigh what they lead to.
    ManifestRolled {
        /// Number of the new file.
        file: u64,
    },
    /// A range of keys is what another copy has of it, see
    /// [`Store::excise_and_ingest`](crate::Store::excise_and_ingest).
    RangeReplaced {
        /// Whose range.
        partition: PartitionId,
        /// What was done.
        replaced: Replaced,
        /// How long it took, with the wait for jobs under way.
        took: Option<Duration>,
    },
    /// A checkpoint is complete and on disk.
    CheckpointMade {
        /// Its directory.
        dir: PathBuf,
        /// Index of the position that it holds everything up to.
        position: u64,
        /// Its tables.
        tables: usize,
        /// Their size in bytes: what it may cost in space once the store has replaced them.
        bytes: u64,
        /// How long it took.
        took: Option<Duration>,
    },
    /// The copy of another store is in force, in the place of what was there.
    Adopted {
        /// Index of the position that it holds everything up to.
        position: u64,
        /// Its tables.
        tables: usize,
    },
}

/// Where events go: nowhere, or to a [`Listener`]. Two are equal if they are the same listener.
#[derive(Clone, Debug, Default)]
pub struct EventSink(Option<Arc<dyn Listener>>);

impl EventSink {
    /// To this listener.
    #[must_use]
    pub fn new(listener: Arc<dyn Listener>) -> Self {
        Self(Some(listener))
    }

    pub(crate) fn emit(&self, event: impl FnOnce() -> Event) {
        if let Some(listener) = &self.0 {
            listener.on_event(&event());
        }
    }
}

impl PartialEq for EventSink {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
}

impl Eq for EventSink {}
