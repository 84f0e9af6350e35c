//! Counters that every read raises, from many threads at once.
//!
//! A counter that threads share moves a line of memory from processor to processor each time, and an atomic
//! addition costs as much as a search in a filter. So each thread counts in a lane of its own, by a plain
//! load and store; a sum of all lanes is made when somebody asks.
//!
//! 1. A lane but the first belongs to one thread at a time, the same in all stores; it is claimed by the first
//!    count of a thread and given back when the thread ends. Whoever finds none left shares the first one and
//!    adds atomically.
//! 2. Nothing is lost: what a thread left in its lane is there for the next owner, who sees it because claiming
//!    follows giving back.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// As many threads as have a lane of their own, and the shared one.
const LANES: usize = u32::BITS as usize;

/// The lane of all who have none of their own.
const SHARED: usize = 0;

/// A thread that has not counted yet.
const UNCLAIMED: usize = usize::MAX;

/// Counters in lanes.
#[derive(Debug)]
pub(crate) struct Lanes<const N: usize>([Lane<N>; LANES]);

/// Alone in its lines of memory.
#[derive(Debug)]
#[repr(align(64))]
struct Lane<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Lanes<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Lane(std::array::from_fn(|_| AtomicU64::new(0)))))
    }
}

impl<const N: usize> Lanes<N> {
    #[inline]
    pub(crate) fn add(&self, counter: usize, by: u64) {
        let lane = match LANE.get() {
            UNCLAIMED => claim(),
            lane => lane,
        };
        let Some(counter) = self.0.get(lane).and_then(|lane| lane.0.get(counter)) else { return };
        if lane == SHARED {
            counter.fetch_add(by, Ordering::Relaxed);
        } else {
            // Nobody else writes here.
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
    }

    pub(crate) fn sum(&self, counter: usize) -> u64 {
        let counters = self.0.iter().filter_map(|lane| lane.0.get(counter));
        counters.fold(0, |sum, counter| sum.wrapping_add(counter.load(Ordering::Relaxed)))
    }
}

/// A bit for each lane that belongs to a thread; that of the shared lane is set for good.
static CLAIMED: AtomicU32 = AtomicU32::new(1 << SHARED);

thread_local! {
    /// A copy of what `CLAIM` holds that costs no look at whether it is still alive.
    static LANE: Cell<usize> = const { Cell::new(UNCLAIMED) };
    static CLAIM: Claim = const { Claim(Cell::new(SHARED)) };
}

/// Gives the lane back when the thread ends.
struct Claim(Cell<usize>);

impl Drop for Claim {
    fn drop(&mut self) {
        // What else ends with the thread counts in the shared lane.
        LANE.set(SHARED);
        let lane = self.0.replace(SHARED);
        if lane != SHARED {
            CLAIMED.fetch_and(!(1 << lane), Ordering::Release);
        }
    }
}

#[cold]
fn claim() -> usize {
    let lane = CLAIM.try_with(|claim| {
        let free = |claimed: u32| (claimed != u32::MAX).then(|| claimed | (claimed + 1));
        let before = CLAIMED.fetch_update(Ordering::Acquire, Ordering::Relaxed, free);
        let lane = before.map_or(SHARED, |claimed| claimed.trailing_ones() as usize);
        claim.0.set(lane);
        lane
    });
    let lane = lane.unwrap_or(SHARED);
    LANE.set(lane);
    lane
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn no_count_is_lost_whether_threads_have_lanes_of_their_own_share_one_or_follow_each_other() {
        const THREADS: usize = LANES + 8;
        const ROUNDS: u64 = 3;
        const COUNTS: u64 = 1000;
        let lanes = Lanes::<3>::default();
        for _ in 0..ROUNDS {
            // All at once, so that some find no lane left.
            let barrier = Barrier::new(THREADS);
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        lanes.add(1, 5);
                        barrier.wait();
                        (0..COUNTS).for_each(|_| lanes.add(2, 1));
                    });
                }
            });
        }
        let threads = THREADS as u64 * ROUNDS;
        assert_eq!(
            (lanes.sum(0), lanes.sum(1), lanes.sum(2)),
            (0, 5 * threads, COUNTS * threads),
            "each counter apart"
        );
    }
}
