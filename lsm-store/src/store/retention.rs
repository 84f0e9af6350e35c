//! Floors and pins: which sequence numbers may be read, hence what a job may drop.
//!
//! A pin is registered under the same lock that raises floors and that jobs take their bound under, so no
//! job can drop what a view that was granted still sees.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::options::Keep;

#[derive(Debug)]
struct Partition {
    keep: Keep,
    floor: u64,
    /// Views in use per sequence number.
    pins: BTreeMap<u64, Pin>,
}

/// Views that read at one number.
#[derive(Debug, Default)]
struct Pin {
    views: usize,
    /// When somebody looked first. A view itself does not ask the clock: that may cost more than all else it does.
    since: Option<Instant>,
}

impl Partition {
    /// The oldest sequence number a new view may have.
    const fn floor_at(&self, visible: u64) -> u64 {
        match self.keep {
            Keep::All => self.floor,
            Keep::NewestOnly => visible,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Retention {
    partitions: Vec<Partition>,
}

impl Retention {
    /// Floors and retention per partition, as the manifest has them.
    pub(crate) fn new(partitions: impl Iterator<Item = (Keep, u64)>) -> Self {
        let partition = |(keep, floor)| Partition { keep, floor, pins: BTreeMap::new() };
        Self { partitions: partitions.map(partition).collect() }
    }

    /// The oldest sequence number that can be read when `visible` is the newest.
    pub(crate) fn floor(&self, partition: usize, visible: u64) -> u64 {
        self.partitions.get(partition).map_or(0, |p| p.floor_at(visible))
    }

    /// Raises a floor; a lower one changes nothing.
    pub(crate) fn raise(&mut self, partition: usize, floor: u64) {
        if let Some(p) = self.partitions.get_mut(partition) {
            p.floor = p.floor.max(floor);
        }
    }

    /// Pins the sequence numbers of a view at what is visible.
    pub(crate) fn pin(&mut self, sequences: &[u64]) {
        for (partition, sequence) in self.partitions.iter_mut().zip(sequences) {
            partition.pins.entry(*sequence).or_default().views += 1;
        }
    }

    /// Remembers since when there are the views in use, as far as that is not known. Nothing without a clock.
    pub(crate) fn look(&mut self, now: Option<Instant>) {
        for pin in self.partitions.iter_mut().flat_map(|p| p.pins.values_mut()) {
            pin.since = pin.since.or(now);
        }
    }

    /// Ends a view.
    pub(crate) fn unpin(&mut self, sequences: &[u64]) {
        for (partition, sequence) in self.partitions.iter_mut().zip(sequences) {
            if let Some(pin) = partition.pins.get_mut(sequence) {
                pin.views -= 1;
                if pin.views == 0 {
                    partition.pins.remove(sequence);
                }
            }
        }
    }

    /// Whether a new view may be at `asked` when `visible` is the newest.
    ///
    /// # Errors
    /// `FutureSequence`, `Compacted`.
    pub(crate) fn check(&self, partition: usize, asked: u64, visible: u64) -> Result<()> {
        if asked > visible {
            return Err(Error::FutureSequence { asked, visible });
        }
        let floor = self.floor(partition, visible);
        if asked < floor {
            return Err(Error::Compacted { asked, floor });
        }
        Ok(())
    }

    /// The bound a job starting now may drop below: no read at or above it, now or later, may change.
    pub(crate) fn bound(&self, partition: usize, visible: u64) -> u64 {
        let Some(p) = self.partitions.get(partition) else { return 0 };
        let oldest_pin = p.pins.first_key_value().map_or(u64::MAX, |(sequence, _)| *sequence);
        p.floor_at(visible).min(visible).min(oldest_pin)
    }

    /// The oldest number that a view reads at.
    pub(crate) fn oldest_pin(&self, partition: usize) -> Option<u64> {
        let p = self.partitions.get(partition)?;
        p.pins.first_key_value().map(|(sequence, _)| *sequence)
    }

    /// Since when it is known that there is a view at the oldest number, without a pause; nothing without a clock.
    pub(crate) fn oldest_pin_since(&self, partition: usize) -> Option<Instant> {
        self.partitions.get(partition)?.pins.first_key_value()?.1.since
    }

    /// Views in use: those of any one partition, which are the same for all.
    pub(crate) fn pins(&self) -> usize {
        self.partitions.first().map_or(0, |p| p.pins.values().map(|pin| pin.views).sum())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bound_never_passes_a_pin_the_floor_or_what_is_visible() {
        let mut retention = Retention::new([(Keep::All, 10), (Keep::NewestOnly, 0)].into_iter());
        assert_eq!(retention.bound(0, 100), 10, "the floor");
        assert_eq!(retention.bound(0, 5), 5, "a floor ahead of replay");
        assert_eq!(retention.bound(1, 100), 100, "newest only");
        retention.pin(&[7, 70]);
        retention.pin(&[7, 70]);
        assert_eq!((retention.bound(0, 100), retention.bound(1, 100)), (7, 70), "pinned");
        retention.unpin(&[7, 70]);
        assert_eq!(retention.bound(1, 100), 70, "one of two is still there");
        retention.unpin(&[7, 70]);
        assert_eq!(retention.bound(1, 100), 100, "none left");
        retention.raise(0, 8);
        assert_eq!(retention.floor(0, 100), 10, "floors do not fall");
    }

    #[test]
    fn the_oldest_number_is_as_old_as_it_is_known_that_views_read_at_it_without_a_pause() {
        let mut retention = Retention::new(std::iter::once((Keep::All, 0)));
        let start = Instant::now();
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        retention.look(at(1));
        retention.pin(&[8]);
        retention.look(None);
        assert_eq!(retention.oldest_pin_since(0), None, "nobody has looked, with a clock");
        retention.look(at(2));
        retention.pin(&[7]);
        retention.look(at(3));
        retention.pin(&[7]);
        retention.look(at(4));
        assert_eq!(retention.oldest_pin_since(0), at(3), "the lowest number, at the first look");
        retention.unpin(&[7]);
        assert_eq!(retention.oldest_pin_since(0), at(3), "one of two is still there");
        retention.unpin(&[7]);
        assert_eq!(retention.oldest_pin_since(0), at(2), "the other number");
        retention.pin(&[7]);
        retention.look(at(5));
        assert_eq!(retention.oldest_pin_since(0), at(5), "anew");
    }

    #[test]
    fn reading_at_the_floor_is_allowed_and_below_it_is_not() {
        let retention = Retention::new(std::iter::once((Keep::All, 10)));
        assert!(retention.check(0, 10, 20).is_ok(), "at the floor");
        assert!(
            matches!(retention.check(0, 9, 20), Err(Error::Compacted { floor: 10, .. })),
            "below"
        );
        assert!(matches!(retention.check(0, 21, 20), Err(Error::FutureSequence { .. })), "above");
    }
}
