//! The threads that flush, compact, clean up and look for damage, each woken by a bell that holds one ring: what is to be done is
//! in the store, not in messages, so any number of rings is one.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use crate::error::{Error, Result};
use crate::store::inner::{Bells, Inner};
use crate::store::{janitor, scrub};

/// Wait after a failed job, doubled by each further failure up to the longest.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The receiving ends of [`Bells`].
#[derive(Debug)]
pub(crate) struct Ears {
    flush: Receiver<()>,
    compaction: Receiver<()>,
    janitor: Receiver<()>,
    care: Receiver<()>,
}

/// Bells and ears.
pub(crate) fn bells() -> (Bells, Ears) {
    let (flush, flush_ear) = bounded(1);
    let (compaction, compaction_ear) = bounded(1);
    let (janitor, janitor_ear) = bounded(1);
    let (care, care_ear) = bounded(1);
    let ears =
        Ears { flush: flush_ear, compaction: compaction_ear, janitor: janitor_ear, care: care_ear };
    (Bells { flush, compaction, janitor, care }, ears)
}

/// Starts the threads.
///
/// # Errors
/// `Io` if the system has no more threads; those already started end at the next ring.
pub(crate) fn start(inner: &Arc<Inner>, ears: Ears) -> Result<Vec<JoinHandle<()>>> {
    let mut works: Vec<(&str, Receiver<()>, Work)> = vec![
        ("lsm-flush", ears.flush, |inner, bell| listen(inner, bell, Inner::flush_once)),
        ("lsm-janitor", ears.janitor, janitor::tend),
        ("lsm-care", ears.care, scrub::tend),
    ];
    let compact: Work = |inner, bell| listen(inner, bell, Inner::compact_once);
    works.extend(
        (0..inner.options.compaction_threads)
            .map(|_| ("lsm-compact", ears.compaction.clone(), compact)),
    );
    let mut threads = Vec::new();
    for (name, bell, work) in works {
        match spawn(name, Arc::clone(inner), bell, work) {
            Ok(thread) => threads.push(thread),
            Err(e) => {
                stop(inner, threads);
                return Err(e);
            }
        }
    }
    Ok(threads)
}

/// The life of a thread.
type Work = fn(&Inner, &Receiver<()>);

/// Ends the threads: a flush is finished before, a compaction is given up. Returns whether none had
/// panicked.
pub(crate) fn stop(inner: &Inner, threads: Vec<JoinHandle<()>>) -> bool {
    inner.begin_closing();
    inner.wake_waiters();
    inner.ring_flush();
    inner.ring_compaction();
    inner.ring_care();
    inner.bury();
    let mut sound = true;
    for thread in threads {
        sound &= thread.join().is_ok();
    }
    sound
}

fn spawn(name: &str, inner: Arc<Inner>, bell: Receiver<()>, work: Work) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // A panic is a broken invariant: nothing may be written after it, and nobody may wait for this thread.
        let guard = PoisonOnPanic(&inner);
        work(&inner, &bell);
        drop(guard);
    });
    thread.map_err(|source| Error::io("start a thread for", Path::new(name), source))
}

struct PoisonOnPanic<'a>(&'a Inner);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "a background thread panicked: an invariant is broken".to_owned();
            self.0.poison(&Error::Poisoned { reason });
        }
    }
}

fn listen(inner: &Inner, bell: &Receiver<()>, work: fn(&Inner) -> Result<bool>) {
    let mut backoff = None;
    loop {
        let rung = match backoff {
            None => bell.recv().map_err(|_closed| RecvTimeoutError::Disconnected),
            Some(wait) => bell.recv_timeout(wait),
        };
        match rung {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        loop {
            if inner.state.lock().closing {
                // One ring wakes one thread: it hands it on.
                inner.ring_flush();
                inner.ring_compaction();
                return;
            }
            match work(inner) {
                Ok(true) => backoff = None,
                Ok(false) => {
                    backoff = None;
                    break;
                }
                Err(_recorded) => {
                    backoff =
                        Some(backoff.map_or(BACKOFF_MIN, |b: Duration| (b * 2).min(BACKOFF_MAX)));
                    break;
                }
            }
        }
    }
}
