//! What the journal counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Since the journal was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    segments: AtomicU64,
    segments_late: AtomicU64,
    reserved_late: AtomicU64,
}

/// What a journal did since it was opened, and how large it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct JournalMetrics {
    /// Bytes of records and headers in all segments, reserved space not counted.
    pub bytes: u64,
    /// Segments begun.
    pub segments: u64,
    /// Segments that could not be begun at once: an append waited for one to be prepared, or for the sync of
    /// the last but one.
    pub segments_late: u64,
    /// Times that space was not reserved when it was needed: an append waited.
    pub reserved_late: u64,
}

impl Counters {
    pub(super) fn segment_begun(&self, late: bool) {
        self.segments.fetch_add(1, Ordering::Relaxed);
        self.segments_late.fetch_add(u64::from(late), Ordering::Relaxed);
    }

    pub(super) fn reserved_late(&self) {
        self.reserved_late.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn metrics(&self, bytes: u64) -> JournalMetrics {
        JournalMetrics {
            bytes,
            segments: self.segments.load(Ordering::Relaxed),
            segments_late: self.segments_late.load(Ordering::Relaxed),
            reserved_late: self.reserved_late.load(Ordering::Relaxed),
        }
    }
}
