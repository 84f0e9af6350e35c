//! Removing segments that nobody needs any more, from any thread, beside the writer.

use std::sync::{Arc, OnceLock};

use super::reader::Shared;
use super::syncer::check_alive;
use super::upkeep::{Removal, Upkeep};
use crate::error::Result;

/// Removes segments of a journal. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SegmentRemover {
    pub(super) shared: Arc<Shared>,
    pub(super) upkeep: Arc<Upkeep>,
    pub(super) poison: Arc<OnceLock<String>>,
}

impl SegmentRemover {
    /// As [`Journal::remove_segments_below`](super::Journal::remove_segments_below).
    pub(crate) fn remove_below(&self, segment: u64) -> Result<u64> {
        check_alive(&self.poison)?;
        let (oldest_kept, after) = self.shared.kept_from(segment);
        let mut removed = 0;
        while let Some(path) = self.shared.forget_oldest_below(oldest_kept) {
            self.upkeep.remove(Removal { path, after: after.clone() })?;
            removed += 1;
        }
        Ok(removed)
    }

    /// The oldest segment's number; 0 if there is none.
    pub(crate) fn oldest_segment(&self) -> u64 {
        self.shared.oldest()
    }
}
