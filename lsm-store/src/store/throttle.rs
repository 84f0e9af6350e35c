//! How many bytes a second compactions read and write, so that whoever shares disk and processors with them is not
//! slowed down by work that nobody waits for. Flushes are not limited: writers wait for them.
//!
//! 1. A job pays after each step, in bytes of files: for what it read, in proportion to the entries of its inputs, and
//!    for what its outputs grew by. All jobs together keep to the limit; what a job owes at its end, the next one waits for.
//! 2. The limit gives way to back-pressure: it is twice as high a quarter of the way to where level 0 stops writers or
//!    debt slows them down most, and there is none from half of it on. So it never makes writers wait.
//! 3. A wait is for an event: its time has come, the limit or the pressure has changed, the store closes, or somebody
//!    waits until no job is under way.
//! 4. With [`Executor::Inline`](crate::Executor::Inline) there is no clock, and no limit.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::options::Executor;
use crate::store::Store;
use crate::store::inner::{Inner, State};
use crate::store::pacing::Pacer;

/// Shorter waits are collected until they are worth one.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// No wait is longer. Long enough for the largest step at the lowest limit that makes any sense.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// Bytes a second; 0 for no limit.
    rate: AtomicU64,
    pace: Pacer,
    /// Jobs that wait now.
    waiting: AtomicUsize,
}

impl Throttle {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate: AtomicU64::new(rate), pace: Pacer::default(), waiting: AtomicUsize::new(0) }
    }

    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// Bytes a second that compactions may read and write now; `None` is any number.
    fn compaction_limit(&self, state: &State) -> Option<u64> {
        if self.executor == Executor::Inline
            || state.jobs_stopped
            || state.check_writable().is_err()
        {
            return None;
        }
        match self.throttle.rate() {
            0 => None,
            rate => self.backlog.lifted(&self.options, rate),
        }
    }

    /// Charges for bytes of a job that is over.
    pub(crate) fn charge_compaction(&self, bytes: u64) {
        let limit = self.compaction_limit(&self.state.lock());
        if let Some(rate) = limit {
            self.throttle.pace.charge(Instant::now(), bytes, rate, WAIT_MAX);
        }
    }

    /// Charges for bytes of a job and waits as long as the limit asks for. Returns how long that was. No lock of
    /// the store may be held.
    pub(crate) fn throttle_compaction(&self, bytes: u64) -> Duration {
        let mut state = self.state.lock();
        let Some(rate) = self.compaction_limit(&state) else { return Duration::ZERO };
        let now = Instant::now();
        let until = self.throttle.pace.charge(now, bytes, rate, WAIT_MAX);
        if until < now + WAIT_MIN {
            return Duration::ZERO;
        }
        self.throttle.waiting.fetch_add(1, Ordering::Relaxed);
        while !self.changed.wait_until(&mut state, until).timed_out() {
            if self.compaction_limit(&state) != Some(rate) {
                // What was to be paid was reckoned at another rate.
                self.throttle.pace.forgive();
                break;
            }
        }
        drop(state);
        self.throttle.waiting.fetch_sub(1, Ordering::Relaxed);
        let waited = now.elapsed();
        self.counters.throttle_micros.record_time(Some(waited));
        waited
    }
}

impl Store {
    /// Sets [`Options::compaction_rate`](crate::Options::compaction_rate) anew; compactions under way keep to it, too.
    pub fn set_compaction_rate(&self, bytes_per_second: u64) {
        let inner = self.inner();
        inner.throttle.rate.store(bytes_per_second, Ordering::Relaxed);
        // Whoever found the old one is waiting once the lock is free.
        drop(inner.state.lock());
        inner.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use crate::vfs::MemVfs;
    use crate::{
        Compression, Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position,
        SequenceNumber, Store,
    };

    #[test]
    fn a_compaction_pays_step_by_step_for_the_bytes_of_files_that_it_reads_and_writes() {
        let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
        let options = Options {
            l0_trigger: 2,
            compression: Compression::None,
            ..Options::new(1, partitions)
        };
        let store =
            Store::open(Arc::new(MemVfs::new(1)), Path::new("/db"), options, Executor::Inline)
                .expect("opens");
        let inner = store.inner();
        for index in 1..=2 {
            let position = Position { index, ..Position::default() };
            let mut run = store.begin_run(position).expect("begins");
            let value = index.to_le_bytes().repeat(100);
            let keys: Vec<[u8; 8]> = (0_u64..200).map(u64::to_be_bytes).collect();
            let puts: Vec<_> = keys.iter().map(|key| Op::Put { key, value: &value }).collect();
            run.apply(PartitionId(0), SequenceNumber(index), &puts).expect("applies");
            run.publish().expect("publishes");
            inner.freeze(&mut inner.state.lock());
            assert!(inner.flush_once().expect("flushes"), "run {index}");
        }
        let mut job = inner.begin_compaction().expect("due");
        let mut steps = Vec::new();
        while !inner.step(&mut job, 8 << 10).expect("goes on") {
            steps.push(job.charge());
            assert_eq!(job.charge(), 0, "once");
        }
        inner.end_compaction(job, Ok(())).expect("ends");
        let metrics = store.metrics();
        let all = metrics.compaction_bytes_read + metrics.compaction_bytes_written;
        assert!(metrics.compaction_bytes_written > 0 && steps.len() > 10, "{steps:?}");
        let (paid, most) = (steps.iter().sum::<u64>(), steps.iter().max().copied());
        assert!(paid > all * 9 / 10 && paid <= all + all / 20, "{paid} of {all}: {steps:?}");
        assert!(most < Some(all / 5), "evenly: {steps:?}");
    }
}
