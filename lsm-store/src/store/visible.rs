//! What readers see: the position of the last published run and each partition's last sequence number.
//!
//! Two slots take turns: a publish fills the one that nobody is sent to, then says that it is the newer
//! one. So a reader never waits for a writer, not even for one that lost its processor in the middle; it
//! reads again only if a whole publish went by meanwhile. All numbers a reader gets are of one publish.
//!
//! One publish at a time: the run that does it is the only one open.

use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::types::{MAX_EXTRA_BYTES, Position};

const WORD_BYTES: usize = 8;

/// How far readers see, all of one publish.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Visible {
    pub(crate) position: Position,
    /// Per partition.
    pub(crate) sequences: Vec<u64>,
}

impl Visible {
    pub(crate) fn sequence(&self, partition: usize) -> u64 {
        self.sequences.get(partition).copied().unwrap_or(0)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct VisibleCell {
    /// Publishes so far; its lowest bit names the slot of the last one.
    published: AtomicU64,
    slots: [Slot; 2],
}

#[derive(Debug)]
struct Slot {
    index: AtomicU64,
    term: AtomicU64,
    extra_bytes: AtomicU64,
    extra: Box<[AtomicU64]>,
    sequences: Box<[AtomicU64]>,
}

impl Slot {
    fn new(partitions: usize) -> Self {
        let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            index: AtomicU64::new(0),
            term: AtomicU64::new(0),
            extra_bytes: AtomicU64::new(0),
            extra: words(MAX_EXTRA_BYTES / WORD_BYTES),
            sequences: words(partitions),
        }
    }

    fn fill(&self, position: &Position, sequences: &[u64]) {
        self.index.store(position.index, Ordering::Relaxed);
        self.term.store(position.term, Ordering::Relaxed);
        self.extra_bytes.store(position.extra.len() as u64, Ordering::Relaxed);
        for (word, bytes) in self.extra.iter().zip(position.extra.chunks(WORD_BYTES)) {
            let mut padded = [0; WORD_BYTES];
            for (to, from) in padded.iter_mut().zip(bytes) {
                *to = *from;
            }
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        for (word, sequence) in self.sequences.iter().zip(sequences) {
            word.store(*sequence, Ordering::Relaxed);
        }
    }

    fn copy(&self) -> Visible {
        let extra_bytes = usize::try_from(self.extra_bytes.load(Ordering::Relaxed)).unwrap_or(0);
        let words = self.extra.iter().take(extra_bytes.div_ceil(WORD_BYTES));
        let mut extra: Vec<u8> =
            words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        extra.truncate(extra_bytes);
        let position = Position {
            index: self.index.load(Ordering::Relaxed),
            term: self.term.load(Ordering::Relaxed),
            extra,
        };
        let sequences = self.sequences.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        Visible { position, sequences }
    }
}

impl VisibleCell {
    /// A cell where this is visible.
    pub(crate) fn new(visible: &Visible) -> Self {
        let slots = [Slot::new(visible.sequences.len()), Slot::new(visible.sequences.len())];
        slots[0].fill(&visible.position, &visible.sequences);
        Self { published: AtomicU64::new(0), slots }
    }

    /// Everything, of one publish.
    pub(crate) fn load(&self) -> Visible {
        self.read(Slot::copy)
    }

    /// A partition's last sequence number; 0 for an unknown partition.
    pub(crate) fn sequence(&self, partition: usize) -> u64 {
        self.read(|slot| {
            slot.sequences.get(partition).map_or(0, |word| word.load(Ordering::Relaxed))
        })
    }

    /// The position's index.
    pub(crate) fn index(&self) -> u64 {
        self.read(|slot| slot.index.load(Ordering::Relaxed))
    }

    /// Makes `position` and `sequences` what readers see. The caller is the only one that does.
    pub(crate) fn publish(&self, position: &Position, sequences: &[u64]) {
        let before = self.published.load(Ordering::Relaxed);
        // A reader that sees a word of what follows also sees that the slot it read is not the newest.
        fence(Ordering::Release);
        self.slot(before + 1).fill(position, sequences);
        self.published.store(before + 1, Ordering::Release);
    }

    fn read<T>(&self, read: impl Fn(&Slot) -> T) -> T {
        loop {
            let published = self.published.load(Ordering::Acquire);
            let value = read(self.slot(published));
            fence(Ordering::Acquire);
            // The slot is filled again only after the next publish.
            if self.published.load(Ordering::Relaxed) == published {
                return value;
            }
        }
    }

    fn slot(&self, published: u64) -> &Slot {
        let [even, odd] = &self.slots;
        if published.is_multiple_of(2) { even } else { odd }
    }
}
