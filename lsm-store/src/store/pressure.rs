//! How far background work is behind, and how much it slows writers down, long before they would have to stop.
//!
//! ```text
//! cause       behind                               room                                   work
//! memtables   what the flush under way has to do   what may be written until none may be  flush
//!                                                  frozen any more
//! level 0     depth above the trigger              depth until writers stop               level 0 into the base
//! debt        above the usual                      until it is too much                   level 0 into the base
//!
//! pressure = behind / (behind + room)              speed of writers = speed of the work × room / behind
//! ```
//!
//! * So writers may be many times faster than the work while little is behind, and come down to its speed halfway
//!   to the limit. The nearer the limit, the slower they get: they would reach it only when the work is done.
//! * A delay is in proportion to the bytes of the runs before it, never a fixed sleep; it ends early when nothing is
//!   behind any more, and no run is delayed by more than [`DELAY_MAX`], so no single write pays for many.
//! * Whoever waits rings the bell first: a wait is always for something that a job is due for.
//! * Debt is smoothed, and the targets of levels do not depend on level 0, so pressure does not swing when it drains.
//!   Once no compaction is due or under way, it is what there is.
//! * With [`Executor::Inline`](crate::Executor::Inline) nobody is delayed; writers pay in work instead (`beats`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Result;
use crate::events::{Event, StallCause};
use crate::options::{Executor, Options};
use crate::perf::{self, Count};
use crate::store::inner::Inner;
use crate::store::jobs::STEP_BYTES;
use crate::store::pacing::{Pacer, Smoothed, rate};
use crate::store::superversion::SuperVersion;

/// The longest delay of one run: half of what the longest write may take beyond the disk's own pauses.
const DELAY_MAX: Duration = Duration::from_millis(50);
/// Shorter delays are collected until they are worth a wait.
const DELAY_MIN: Duration = Duration::from_millis(1);

/// The end of a flush, syncs above all, is not seen in its progress: it counts for one part in so many.
const FLUSH_END: u64 = 4;

/// Debt in tables' or memtables' worth of bytes, whichever is larger: from which on it counts, and when it is too
/// much. It does not stop writers, so at worst …
const DEBT_USUAL: u64 = 64;
const DEBT_MAX: u64 = 256;
/// … they are so many times slower than the work.
const DEBT_SLOWEST: u64 = 4;

/// How near the store is to making writers stand still, by cause, each from 0 (nothing is behind) to 1 (they do).
/// Above 0.5, writers are slower than background work. See [`Store::pressure`](crate::Store::pressure).
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[non_exhaustive]
pub struct Pressure {
    /// By memtables that wait for their flush.
    pub memtables: f64,
    /// By the depth of level 0, between [`Options::l0_trigger`](crate::Options::l0_trigger) and
    /// [`Options::l0_stop`](crate::Options::l0_stop).
    pub level0: f64,
    /// By what compactions would have to write until nothing is due, smoothed. It only slows writers down.
    pub debt: f64,
    /// By free space, between twice the reserve and the half of it below which writes are refused. It does not slow
    /// writers down: only whoever asks them for less can.
    pub space: f64,
}

impl Pressure {
    /// The largest.
    #[must_use]
    pub const fn level(&self) -> f64 {
        self.memtables.max(self.level0).max(self.debt).max(self.space)
    }

    /// Where the largest comes from; `None` without pressure.
    #[must_use]
    pub fn cause(&self) -> Option<StallCause> {
        let causes = [
            (self.memtables, StallCause::Memtables),
            (self.level0, StallCause::Level0),
            (self.debt, StallCause::Debt),
            (self.space, StallCause::Space),
        ];
        let level = self.level();
        causes.into_iter().find(|(of, _)| *of > 0.0 && *of >= level).map(|(_, cause)| cause)
    }
}

/// One cause's way to the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    behind: u64,
    room: u64,
}

impl Way {
    /// Between nothing behind at `from` and the limit at `to`.
    const fn at(value: u64, from: u64, to: u64) -> Self {
        Self { behind: value.saturating_sub(from), room: to.saturating_sub(value) }
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn pressure(self) -> f64 {
        if self.behind == 0 {
            return 0.0;
        }
        self.behind as f64 / self.behind.saturating_add(self.room) as f64
    }

    /// How fast the work may be when it may have this speed while nothing is behind: twice that a quarter of the way,
    /// and any speed from half of it on, where writers come down to the speed of the work.
    fn lifted(self, speed: u64) -> Option<u64> {
        if self.behind == 0 {
            return Some(speed);
        }
        let left = self.room.checked_sub(self.behind).filter(|left| *left > 0)?;
        let way = u128::from(self.behind) + u128::from(self.room);
        Some(u64::try_from(u128::from(speed) * way / u128::from(left)).unwrap_or(u64::MAX))
    }

    /// How fast writers may be, when the work has this speed; any speed if nothing is behind.
    fn speed(self, work: u64) -> Option<u64> {
        if self.behind == 0 {
            return None;
        }
        let speed = u128::from(work) * u128::from(self.room) / u128::from(self.behind);
        Some(u64::try_from(speed).unwrap_or(u64::MAX))
    }
}

/// What is behind, and how fast it is worked off.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// Depth of level 0.
    depth: AtomicU64,
    /// Bytes that compactions would have to write until nothing is due, and how many when last measured.
    debt: Smoothed,
    debt_now: AtomicU64,
    /// Memory of the memtables that are being flushed, and the part of it that is in tables already.
    flushing: AtomicU64,
    flushed: AtomicU64,
    /// Bytes of memtables that flushes, and of level 0 that compactions, take away per second.
    flush_rate: Smoothed,
    level0_rate: Smoothed,
    /// That of the flush under way: all there is during the first.
    flush_rate_now: AtomicU64,
    /// Size of the active memtables at the last charge.
    active_then: AtomicU64,
    pace: Pacer,
    /// Whether `delays` is there.
    delaying: AtomicBool,
    delays: Mutex<Option<Delays>>,
}

/// Writers are being delayed.
#[derive(Clone, Copy, Debug, Default)]
struct Delays {
    /// Who waits now: the end is told after that.
    waiting: usize,
    count: u64,
    waited: Duration,
}

/// What a writer has to wait for now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delay {
    now: Instant,
    until: Instant,
    cause: StallCause,
}

impl Backlog {
    pub(crate) fn set_tables(&self, depth: usize, debt: u64) {
        self.depth.store(depth as u64, Ordering::Relaxed);
        self.debt_now.store(debt, Ordering::Relaxed);
        self.debt.update(debt);
    }

    /// Nothing is due: what was owed before does not count any more.
    fn settle(&self) {
        self.debt.set(self.debt_now.load(Ordering::Relaxed));
    }

    /// Bytes that compactions owe, smoothed.
    pub(crate) fn debt(&self) -> u64 {
        self.debt.get()
    }

    pub(crate) fn flush_begins(&self, bytes: u64) {
        self.flushed.store(0, Ordering::Relaxed);
        self.flushing.store(bytes, Ordering::Relaxed);
    }

    /// Another step of the flush is done.
    pub(crate) fn flush_goes_on(&self, since: Option<Instant>) {
        let done = self.flushed.fetch_add(STEP_BYTES, Ordering::Relaxed) + STEP_BYTES;
        if let Some(since) = since {
            self.flush_rate_now.store(rate(done, since.elapsed()), Ordering::Relaxed);
        }
    }

    pub(crate) fn flush_ends(&self, took: Option<Duration>) {
        let bytes = self.flushing.swap(0, Ordering::Relaxed);
        if let Some(took) = took {
            self.flush_rate.update(rate(bytes, took));
        }
    }

    /// A compaction has taken so many bytes out of level 0.
    pub(crate) fn level0_drained(&self, bytes: u64, took: Duration) {
        self.level0_rate.update(rate(bytes, took));
    }

    /// For memory that is `frozen`, sets of it and bytes, and `active` bytes.
    fn memtables(&self, options: &Options, frozen: (usize, u64), active: u64) -> Way {
        let (sets, bytes) = frozen;
        let memtable = options.memtable_bytes as u64;
        let free = options.frozen_max.saturating_sub(sets) as u64;
        let room = memtable.saturating_mul(free).saturating_add(memtable.saturating_sub(active));
        let behind = match self.flushing.load(Ordering::Relaxed) {
            _ if sets == 0 => 0,
            0 => bytes,
            flushing => {
                let left = flushing.saturating_sub(self.flushed.load(Ordering::Relaxed));
                left.max(flushing / FLUSH_END)
            }
        };
        Way { behind, room }
    }

    fn level0(&self, options: &Options) -> Way {
        let depth = self.depth.load(Ordering::Relaxed);
        Way::at(depth, options.l0_trigger as u64, options.l0_stop as u64)
    }

    fn owed(&self, options: &Options) -> Way {
        let unit = options.table_bytes.max(options.memtable_bytes as u64);
        let (usual, most) = (unit.saturating_mul(DEBT_USUAL), unit.saturating_mul(DEBT_MAX));
        Way::at(self.debt(), usual, most)
    }

    /// How fast compactions may be whose limit is `rate` while nothing is behind. `None` is any speed.
    pub(crate) fn lifted(&self, options: &Options, rate: u64) -> Option<u64> {
        let (level0, debt) = (self.level0(options).lifted(rate)?, self.owed(options).lifted(rate)?);
        Some(level0.max(debt))
    }

    /// How fast writers may be, and why not faster. `None` is any speed; before anything was measured, too.
    fn limit(&self, options: &Options, now: &SuperVersion) -> Option<(u64, StallCause)> {
        let (frozen, active) = memory(now);
        self.limit_at(options, frozen, active)
    }

    /// For memory that is `frozen`, sets of it and bytes, and `active` bytes.
    fn limit_at(
        &self,
        options: &Options,
        frozen: (usize, u64),
        active: u64,
    ) -> Option<(u64, StallCause)> {
        let known = |rate: u64| Some(rate).filter(|rate| *rate > 0);
        let flush = known(self.flush_rate.get())
            .or_else(|| known(self.flush_rate_now.load(Ordering::Relaxed)))?;
        let level0 = known(self.level0_rate.get()).unwrap_or(flush);
        let debt = self.owed(options).speed(level0);
        [
            (self.memtables(options, frozen, active).speed(flush), StallCause::Memtables),
            (self.level0(options).speed(level0), StallCause::Level0),
            (debt.map(|speed| speed.max(level0 / DEBT_SLOWEST)), StallCause::Debt),
        ]
        .into_iter()
        .filter_map(|(speed, cause)| speed.map(|speed| (speed, cause)))
        .min_by_key(|(speed, _)| *speed)
    }
}

impl Inner {
    /// See [`Store::pressure`](crate::Store::pressure).
    pub(crate) fn pressure(&self) -> Pressure {
        let (frozen, active) = memory(&self.superversion.load());
        let (backlog, options) = (&self.backlog, &self.options);
        Pressure {
            memtables: backlog.memtables(options, frozen, active).pressure(),
            level0: backlog.level0(options).pressure(),
            debt: backlog.owed(options).pressure(),
            space: self.space.pressure(),
        }
    }

    /// Charges for what was written since the last time, and says whether the writer has to wait for it. One
    /// writer at a time.
    pub(crate) fn delay_due(&self) -> Option<Delay> {
        if self.executor == Executor::Inline {
            return None;
        }
        let superversion = self.superversion.load();
        let active = superversion.active.bytes() as u64;
        let then = self.backlog.active_then.swap(active, Ordering::Relaxed);
        let written = active.checked_sub(then).unwrap_or(active);
        let Some((speed, cause)) = self.backlog.limit(&self.options, &superversion) else {
            self.tell_end_of_delays();
            return None;
        };
        let now = Instant::now();
        let until = self.backlog.pace.charge(now, written, speed, DELAY_MAX);
        (until >= now + DELAY_MIN).then_some(Delay { now, until, cause })
    }

    /// Waits as long as is due, or until nothing is behind any more. No lock of the store may be held.
    ///
    /// # Errors
    /// `Poisoned`, `Closed`, if the store became so meanwhile.
    pub(crate) fn wait_out(&self, delay: Delay) -> Result<()> {
        let Delay { now, until, cause } = delay;
        let mut delays = self.backlog.delays.lock();
        let first = delays.is_none();
        delays.get_or_insert_default().waiting += 1;
        self.backlog.delaying.store(true, Ordering::Relaxed);
        drop(delays);
        if first {
            self.options.events.emit(|| Event::DelaysBegan { cause });
        }
        match cause {
            StallCause::Memtables => self.ring_flush(),
            StallCause::Level0 | StallCause::Debt | StallCause::Space => self.ring_compaction(),
        }
        let mut state = self.state.lock();
        let ended = loop {
            let wait = || self.changed.wait_until(&mut state, until).timed_out();
            if perf::time(Count::WaitNanos, wait) {
                break Ok(());
            }
            let writable = state.check_writable();
            let superversion = self.superversion.load();
            if writable.is_err() || self.backlog.limit(&self.options, &superversion).is_none() {
                break writable;
            }
        };
        drop(state);
        let waited = now.elapsed();
        self.counters.delay_micros.of(cause).record_time(Some(waited));
        if let Some(delays) = self.backlog.delays.lock().as_mut() {
            delays.waiting -= 1;
            delays.count += 1;
            delays.waited += waited;
        }
        self.tell_end_of_delays();
        ended
    }

    /// No compaction is due.
    pub(crate) fn no_compaction_is_due(&self) {
        if self.state.lock().compactions == 0 {
            self.backlog.settle();
            self.tell_end_of_delays();
        }
    }

    /// Tells the listener that writers are not delayed any more, if they were and nothing is behind.
    pub(crate) fn tell_end_of_delays(&self) {
        if !self.backlog.delaying.load(Ordering::Relaxed)
            || self.backlog.limit(&self.options, &self.superversion.load()).is_some()
        {
            return;
        }
        let mut delays = self.backlog.delays.lock();
        let ended = delays.take_if(|delays| delays.waiting == 0);
        self.backlog.delaying.store(delays.is_some(), Ordering::Relaxed);
        drop(delays);
        if let Some(Delays { count, waited, .. }) = ended {
            self.options.events.emit(|| Event::DelaysEnded { delays: count, waited });
        }
    }
}

/// Frozen memtables, how many and their size, and the size of the active ones.
fn memory(now: &SuperVersion) -> ((usize, u64), u64) {
    let frozen = now.frozen.iter().map(|set| set.bytes() as u64).sum();
    ((now.frozen.len(), frozen), now.active.bytes() as u64)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::events::{EventSink, Listener};
    use crate::store::Store;
    use crate::vfs::MemVfs;
    use crate::{Keep, Op, PartitionId, PartitionOptions, Position, SequenceNumber};

    const MEMTABLE: u64 = 64 << 20;
    /// Bytes per tick.
    const WORK: u64 = MEMTABLE / 500;

    fn options() -> Options {
        Options::new(1, Vec::new())
    }

    #[test]
    fn writers_come_down_to_the_speed_of_the_work_halfway_to_the_limit_and_further() {
        let at = |depth| Way::at(depth, 4, 36);
        assert_eq!((at(4).speed(100), at(3).speed(100)), (None, None), "nothing is behind");
        assert_eq!((at(5).speed(100), at(20).speed(100)), (Some(3100), Some(100)), "halfway");
        assert_eq!((at(36).speed(100), at(99).speed(100)), (Some(0), Some(0)), "at the limit");
        for depth in 4..36 {
            let (near, nearer) = (at(depth), at(depth + 1));
            assert!(near.speed(100).is_none_or(|s| nearer.speed(100) < Some(s)), "at {depth}");
            assert!(near.pressure() < nearer.pressure(), "at {depth}");
        }
        assert!((at(4).pressure()).abs() < 1e-9 && (at(36).pressure() - 1.0).abs() < 1e-9, "ends");
        assert!((at(20).pressure() - 0.5).abs() < 1e-9, "halfway");
    }

    #[test]
    fn a_limit_of_compactions_gives_way_before_writers_come_down_to_their_speed() {
        let at = |depth| Way::at(depth, 4, 36).lifted(100);
        assert_eq!((at(0), at(4)), (Some(100), Some(100)), "nothing is behind");
        assert_eq!((at(8), at(12)), (Some(133), Some(200)), "a quarter of the way");
        assert_eq!((at(19), at(20), at(40)), (Some(1600), None, None), "half of it");
        let (backlog, options) = (Backlog::default(), options());
        assert_eq!(backlog.lifted(&options, 100), Some(100), "idle");
        backlog.set_tables(12, 0);
        assert_eq!(backlog.lifted(&options, 100), Some(200), "by level 0");
        let indebted = Backlog::default();
        indebted.set_tables(0, 112 * MEMTABLE);
        assert_eq!(indebted.lifted(&options, 100), Some(200), "by debt");
        indebted.set_tables(8, 112 * MEMTABLE);
        assert_eq!(indebted.lifted(&options, 100), Some(200), "by what is further behind");
        let late = Backlog::default();
        late.set_tables(0, 160 * MEMTABLE);
        assert_eq!(late.lifted(&options, 100), None, "too much debt for any limit");
    }

    /// A writer that writes whatever it may, and flushes that take `ticks` longer than their progress shows.
    /// Returns how much it wrote until it had to stand still, or in 20 000 ticks.
    fn flushes_follow(options: &Options, work: u64, end: u64) -> std::result::Result<u64, u64> {
        let backlog = Backlog::default();
        backlog.flush_rate.update(WORK);
        let (mut active, mut frozen, mut total) = (0, Vec::new(), 0_u64);
        let mut flush: Option<(u64, u64)> = None;
        for _ in 0..20_000 {
            let bytes = frozen.iter().sum();
            let way = backlog.memtables(options, (frozen.len(), bytes), active);
            // Faster than this no memory is.
            let step = way.speed(WORK).unwrap_or(u64::MAX).min(WORK * 20);
            active += step;
            total += step;
            if active >= MEMTABLE {
                if frozen.len() >= options.frozen_max {
                    return Err(total);
                }
                frozen.push(std::mem::take(&mut active));
            }
            flush = match flush {
                None if frozen.is_empty() => None,
                None => {
                    backlog.flush_begins(frozen.iter().sum());
                    Some((frozen.len() as u64, end))
                }
                Some((sets, end)) => {
                    let done = backlog.flushed.fetch_add(work, Ordering::Relaxed) + work;
                    let left = if done >= backlog.flushing.load(Ordering::Relaxed) {
                        end
                    } else {
                        u64::MAX
                    };
                    if left == 0 {
                        frozen.drain(..usize::try_from(sets).expect("few"));
                        backlog.flushing.store(0, Ordering::Relaxed);
                        None
                    } else {
                        Some((sets, if left == u64::MAX { end } else { left - 1 }))
                    }
                }
            };
        }
        Ok(total)
    }

    #[test]
    fn no_writer_stands_still_for_a_flush_even_if_it_is_slower_than_ever_before() {
        for frozen_max in [1, 2, 5] {
            let options = Options { frozen_max, ..options() };
            for (work, end) in [(WORK, 0), (WORK, 250), (WORK / 2, 0), (WORK / 2, 500)] {
                let written = flushes_follow(&options, work, end);
                let least = 20_000 * work / 3;
                assert!(
                    written.is_ok_and(|total| total > least),
                    "{frozen_max} frozen, {work} a tick and {end} ticks more: {written:?}, {least}"
                );
            }
        }
    }

    #[test]
    fn no_writer_stands_still_for_a_compaction_of_level_0_that_takes_ten_times_as_long() {
        // Sixteenths of a run each tick, and jobs that take all there is.
        let (mut depth, mut job, mut most) = (0_u64, None, 0);
        for tick in 0..20_000_u64 {
            let speed = Way::at(depth / 16, 4, 36).speed(4).unwrap_or(64).min(64);
            depth += speed;
            job = match job {
                None if depth >= 64 => Some((depth, tick + depth * 10 / 4)),
                Some((taken, until)) if until == tick => {
                    depth -= taken;
                    None
                }
                job => job,
            };
            most = most.max(depth / 16);
        }
        assert!((20..36).contains(&most), "{most} deep");
    }

    #[test]
    fn debt_slows_writers_down_but_never_stops_them() {
        let backlog = Backlog::default();
        let options = options();
        backlog.set_tables(0, 64 * MEMTABLE);
        assert_eq!(backlog.owed(&options).speed(100), None, "that much is usual");
        let more = Backlog::default();
        more.set_tables(0, u64::MAX);
        assert!((more.owed(&options).pressure() - 1.0).abs() < 1e-9, "too much");
        backlog.set_tables(0, 256 * MEMTABLE);
        let once = backlog.owed(&options).pressure();
        assert!(once > 0.2 && once < 0.3, "one jump counts for a quarter: {once}");
    }

    #[test]
    fn writers_have_the_speed_of_the_cause_that_slows_them_down_most() {
        let (backlog, options) = (Backlog::default(), Options { frozen_max: 2, ..options() });
        let at =
            |sets: usize, active| backlog.limit_at(&options, (sets, sets as u64 * 100), active);
        backlog.set_tables(20, 0);
        assert_eq!(at(1, 0), None, "nothing was measured");
        backlog.flush_rate_now.store(1000, Ordering::Relaxed);
        assert_eq!(at(0, 0), Some((1000, StallCause::Level0)), "what the first flush does");
        backlog.flush_rate.update(2000);
        assert_eq!(at(0, 0), Some((2000, StallCause::Level0)), "what flushes do");
        backlog.level0_drained(500, Duration::from_secs(1));
        assert_eq!(at(0, 0), Some((500, StallCause::Level0)), "what compactions of level 0 do");
        backlog.set_tables(4, 0);
        assert_eq!(at(0, 0), None, "nothing is behind");
        // Room for half a memtable, and all of two behind.
        let (two, half) = (2 * MEMTABLE, MEMTABLE / 2);
        let full = backlog.limit_at(&options, (2, two), half);
        assert_eq!(full, Some((2000 / 4, StallCause::Memtables)), "of the speed of flushes");
        backlog.set_tables(30, 0);
        let (slowest, cause) = backlog.limit_at(&options, (2, two), half).expect("both");
        assert_eq!((slowest, cause), (500 * 6 / 26, StallCause::Level0), "the slower of both");
        backlog.set_tables(0, u64::MAX);
        backlog.settle();
        let indebted = Some((500 / DEBT_SLOWEST, StallCause::Debt));
        assert_eq!(at(0, 0), indebted, "not slower, however much debt");
        backlog.set_tables(0, 160 * MEMTABLE);
        backlog.settle();
        assert_eq!(at(0, 0), Some((500, StallCause::Debt)), "halfway");
    }

    #[test]
    fn the_end_of_a_flush_which_no_progress_shows_counts_for_a_quarter_of_it() {
        let (backlog, options) = (Backlog::default(), Options { frozen_max: 2, ..options() });
        let behind = || backlog.memtables(&options, (1, 100), 0).behind;
        assert_eq!(backlog.memtables(&options, (0, 0), 0).behind, 0, "nothing is frozen");
        assert_eq!(behind(), 100, "frozen, not begun");
        backlog.flush_begins(8 * STEP_BYTES);
        let steps: Vec<u64> = (0..10)
            .map(|_| {
                backlog.flush_goes_on(None);
                behind() / STEP_BYTES
            })
            .collect();
        assert_eq!(steps, [7, 6, 5, 4, 3, 2, 2, 2, 2, 2], "of eight steps");
        backlog.flush_ends(None);
        assert_eq!(behind(), 100, "what was frozen meanwhile");
    }

    /// Counts the events of delays.
    #[derive(Debug, Default)]
    struct Delaying(AtomicU64, AtomicU64);

    impl Listener for Delaying {
        fn on_event(&self, event: &Event) {
            let (began, ended) = (&self.0, &self.1);
            began.fetch_add(
                u64::from(matches!(event, Event::DelaysBegan { .. })),
                Ordering::Relaxed,
            );
            ended.fetch_add(
                u64::from(matches!(event, Event::DelaysEnded { .. })),
                Ordering::Relaxed,
            );
        }
    }

    #[test]
    fn delays_for_debt_end_once_nothing_is_due_though_nothing_is_written_any_more() {
        let listener = Arc::new(Delaying::default());
        let events = EventSink::new(Arc::<Delaying>::clone(&listener));
        let data = PartitionOptions { name: "data".to_owned(), keep: Keep::All };
        let options = Options { events, ..Options::new(1, vec![data]) };
        let vfs = Arc::new(MemVfs::new(1));
        let store = Store::open(vfs, Path::new("/db"), options, Executor::Threads).expect("opens");
        let (inner, backlog) = (store.inner(), &store.inner().backlog);
        backlog.flush_rate.update(1000);
        backlog.set_tables(0, u64::MAX);
        let mut index = 0;
        while listener.0.load(Ordering::Relaxed) == 0 {
            // As long as it takes: a compaction thread that finds nothing due may settle in between.
            backlog.set_tables(0, u64::MAX);
            index += 1;
            let position = Position { index, ..Position::default() };
            let mut run = store.begin_run(position).expect("begins");
            let op = Op::Put { key: b"key", value: &[7; 1000] };
            run.apply(PartitionId(0), SequenceNumber(index), &[op]).expect("applies");
            run.publish().expect("publishes");
        }
        assert_eq!(listener.1.load(Ordering::Relaxed), 0, "not over yet");
        backlog.set_tables(0, 0);
        assert!(!inner.compact_once().expect("finds nothing"), "nothing is due");
        assert_eq!(backlog.owed(&inner.options).behind, 0, "nothing is owed");
        let deadline = Instant::now() + Duration::from_secs(60);
        // Another thread that found nothing, either, may be about to tell it.
        while listener.1.load(Ordering::Relaxed) == 0 {
            assert!(Instant::now() < deadline, "nobody is told");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_cause_of_the_largest_pressure_is_named() {
        assert_eq!(Pressure::default().cause(), None, "none");
        let pressure = Pressure { memtables: 0.2, debt: 0.3, ..Pressure::default() };
        assert_eq!((pressure.cause(), pressure.level()), (Some(StallCause::Debt), 0.3), "debt");
    }
}
