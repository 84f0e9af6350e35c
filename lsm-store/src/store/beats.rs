//! Background work on the caller's thread: in beats, each in proportion to what was written since the one
//! before, so that no single write pays for a whole compaction.
//!
//! Only counts of bytes and calls decide, no clock: the same calls do the same work.

use crate::error::{Error, Result};
use crate::store::compact::Compaction;
use crate::store::inner::Inner;
use crate::store::jobs::STEP_BYTES;

/// Bytes of compaction for a byte written, at the least.
const EFFORT_MIN: u64 = 4;

/// Beats without work after a failure, doubled by each further one up to the most.
const REST_MIN: u64 = 16;
const REST_MAX: u64 = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Beats {
    /// Under way, waiting for its next step.
    job: Option<Compaction>,
    /// Size of the active memtables at the last beat.
    active_then: u64,
    /// Bytes of compaction to do for a byte written.
    effort: u64,
    /// Beats to let pass after a failure.
    rest: u64,
    /// How many after the next one.
    rest_next: u64,
}

impl Inner {
    /// Does everything that is due, on this thread. A failed compaction is recorded and done by a later
    /// call.
    ///
    /// # Errors
    /// That of a flush that fails, what it was to do is done by a later call; that of a record of damage.
    pub(crate) fn work_inline(&self) -> Result<()> {
        while self.flush_once()? {}
        let paused = self.paused.lock().job.take();
        if paused.is_none_or(|job| self.drive(job).is_ok()) {
            while self.compact_once().is_ok_and(|done| done) {}
        }
        self.settle_damage()
    }

    /// Flushes what is frozen, and decides how much the writes until the next flush pay for compactions:
    /// twice what would leave nothing to do.
    ///
    /// # Errors
    /// That of a flush that fails, or of a record of damage.
    pub(crate) fn flush_inline(&self) -> Result<()> {
        while self.flush_once()? {}
        let debt = self.debt();
        let memtable = (self.options.memtable_bytes as u64).max(1);
        self.paused.lock().effort = (debt.saturating_mul(2) / memtable).max(EFFORT_MIN);
        self.settle_damage()
    }

    /// Pays for what was written since the last beat, with compaction. A failure is recorded; after it the
    /// work rests for some beats.
    pub(crate) fn beat(&self) {
        let active = self.superversion.load().active.bytes() as u64;
        let mut beats = self.paused.lock();
        let written = active.checked_sub(beats.active_then).unwrap_or(active);
        beats.active_then = active;
        if beats.rest > 0 {
            beats.rest -= 1;
            return;
        }
        let mut credit = written.saturating_mul(beats.effort);
        while credit > 0 {
            let Some(mut job) = beats.job.take().or_else(|| self.begin_compaction()) else {
                return;
            };
            let budget = credit.min(STEP_BYTES);
            credit -= budget;
            match self.step(&mut job, budget) {
                Ok(false) => beats.job = Some(job),
                Ok(true) => {
                    let _ended = self.end_compaction(job, Ok(())).is_ok();
                    beats.rest_next = 0;
                }
                Err(e) => {
                    let _recorded = self.end_compaction(job, Err(e)).is_err();
                    beats.rest = beats.rest_next.clamp(REST_MIN, REST_MAX);
                    beats.rest_next = beats.rest * 2;
                    return;
                }
            }
        }
    }

    /// Gives up the compaction that is paused, when the store ends.
    pub(crate) fn drop_paused(&self) {
        let job = self.paused.lock().job.take();
        if let Some(job) = job {
            let _closed = self.end_compaction(job, Err(Error::Closed)).is_err();
        }
    }
}
