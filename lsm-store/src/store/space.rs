//! The reserve of free space: what keeps a store able to flush, and to say no in time.
//!
//! ```text
//! free ≥ reserve           everything goes on
//! reserve/2 ≤ free         merges only as far as their outputs leave half of the reserve
//! free < reserve/2         writes are refused before anything is touched; reads and flushes go on
//! ```
//!
//! Free space is measured when a run begins, once per so many bytes written, after a flush and before a merge; while
//! writes are refused at every attempt, so that they go on by themselves once there is room. A measurement
//! that fails changes nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::events::Event;
use crate::options::Options;
use crate::store::inner::Inner;

/// The reserve is measured anew after this part of it was written.
const SAMPLES_PER_RESERVE: u64 = 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct Space {
    /// Bytes; 0 watches nothing.
    reserve: u64,
    /// As measured last.
    free: AtomicU64,
    /// Size of the active memtables then.
    active_then: AtomicU64,
    /// Whether writes were refused after the last measurement.
    refusing: AtomicBool,
}

impl Space {
    pub(crate) fn new(options: &Options) -> Self {
        let reserve = options.space_reserve_bytes.unwrap_or_else(|| options.default_reserve());
        // The first run measures.
        Self {
            reserve,
            free: AtomicU64::new(u64::MAX),
            active_then: AtomicU64::new(u64::MAX),
            refusing: AtomicBool::new(false),
        }
    }

    /// Bytes free as last measured; `None` before the first time.
    pub(crate) fn free(&self) -> Option<u64> {
        Some(self.free.load(Ordering::Relaxed)).filter(|free| *free != u64::MAX)
    }

    /// How near the free space is to where writes are refused, from 0 to 1: from twice the reserve on.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub(crate) fn pressure(&self) -> f64 {
        let free = self.free.load(Ordering::Relaxed);
        let (most, least) = (self.reserve.saturating_mul(2), self.half());
        if free >= most {
            return 0.0;
        }
        (most - free.max(least)) as f64 / (most - least).max(1) as f64
    }

    const fn half(&self) -> u64 {
        self.reserve / 2
    }

    /// Whether merges are restricted.
    pub(crate) fn is_low(&self) -> bool {
        self.free.load(Ordering::Relaxed) < self.reserve
    }

    fn no_space(&self) -> Error {
        Error::NoSpace { free: self.free.load(Ordering::Relaxed), needed: self.half() }
    }
}

impl Inner {
    /// Refuses a write while less than half of the reserve is free.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn check_space(&self) -> Result<()> {
        let space = &self.space;
        if space.reserve == 0 {
            return Ok(());
        }
        let active = self.superversion.load().active.bytes() as u64;
        let then = space.active_then.load(Ordering::Relaxed);
        let refused = space.free.load(Ordering::Relaxed) < space.half();
        let sample = space.reserve / SAMPLES_PER_RESERVE;
        if refused || active.checked_sub(then).is_none_or(|written| written >= sample) {
            space.active_then.store(active, Ordering::Relaxed);
            self.measure_space();
        }
        if space.free.load(Ordering::Relaxed) < space.half() {
            Err(space.no_space())
        } else {
            Ok(())
        }
    }

    /// Whether a merge that reads so many bytes may run: it writes at most as many before it removes any.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        self.measure_space();
        if self.space.reserve == 0 {
            return true;
        }
        let room =
            self.space.free.load(Ordering::Relaxed).saturating_sub(bytes) >= self.space.half();
        self.counters.merges_refused.add(u64::from(!room));
        room
    }

    /// The reason for a wait that is in vain: nothing is merged until there is room.
    pub(crate) fn want_of_space(&self) -> Option<Error> {
        self.space.is_low().then(|| self.space.no_space())
    }

    /// Looks how much is free.
    pub(crate) fn measure_space(&self) {
        if self.space.reserve == 0 {
            return;
        }
        let Ok(free) = self.vfs.free_space(&self.dir) else { return };
        let was_low = self.space.is_low();
        self.space.free.store(free, Ordering::Relaxed);
        let needed = self.space.half();
        let refusing = free < needed;
        if self.space.refusing.swap(refusing, Ordering::Relaxed) != refusing {
            self.options.events.emit(|| match refusing {
                true => Event::SpaceLow { free, needed },
                false => Event::SpaceBack { free },
            });
        }
        if was_low && !self.space.is_low() {
            // What was refused is due, and nobody else says so.
            self.ring_compaction();
        }
    }
}
