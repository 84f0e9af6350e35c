//! What nobody waits for: files of replaced tables are unlinked one after the other, at a pace (many large unlinks at
//! once stall some file systems, and the discards of some disks), and memtables of a store with its own log that
//! nobody writes to any more are flushed, so that a restart has little to replay.
//!
//! Files are not cut short before they are unlinked: a checkpoint may have another name of theirs.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::options::Mode;
use crate::store::inner::Inner;
use crate::store::pacing::Pacer;

/// The pace is kept while so many files wait at most: the space of more is worth more than a smooth disk.
const PACED_FILES: usize = 8;

/// The longest wait for the pace of one file.
const PACE_MAX: Duration = Duration::from_secs(60);

/// The life of the thread. What is left when the store ends is unlinked then.
pub(crate) fn tend(inner: &Inner, bell: &Receiver<()>) {
    let pace = Pacer::default();
    let idle = inner.options.idle_flush;
    // With the log of somebody else, it is for them to say when a flush may cut its past off.
    let watches = inner.options.mode == Mode::Wal && !idle.is_zero();
    let mut look_at = watches.then(|| Instant::now() + idle);
    let mut unlink_at: Option<Instant> = None;
    let mut seen = 0;
    loop {
        let rung = match look_at.into_iter().chain(unlink_at).min() {
            Some(at) => bell.recv_deadline(at),
            None => bell.recv().map_err(|_closed| RecvTimeoutError::Disconnected),
        };
        if rung == Err(RecvTimeoutError::Disconnected) || inner.state.lock().closing {
            return;
        }
        let now = Instant::now();
        if look_at.is_some_and(|at| at <= now) {
            look_at = Some(now + idle);
            let index = inner.visible.index();
            if index == seen {
                inner.flush_idle();
            }
            seen = index;
        }
        let hurry = inner.space.is_low() || inner.graveyard.lock().len() > PACED_FILES;
        if hurry || unlink_at.is_none_or(|at| at <= now) {
            unlink_at = inner.bury_one().map(|bytes| match inner.options.deletion_rate {
                0 => now,
                _ if hurry => now,
                rate => pace.charge(now, bytes, rate, PACE_MAX),
            });
        }
    }
}

impl Inner {
    /// Lets what is in the active memtables be flushed, if anything is.
    fn flush_idle(&self) {
        let mut state = self.state.lock();
        if state.active.entries() == 0 || state.run_open || state.check_writable().is_err() {
            return;
        }
        self.freeze(&mut state);
        drop(state);
        self.counters.idle_flushes.add(1);
        self.ring_flush();
    }
}
