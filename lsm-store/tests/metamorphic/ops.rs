//! The operations of a history, and how they are drawn.
//!
//! Every operation makes sense wherever it stands: views and iterators are named by a number that is
//! taken modulo how many there are, sequence numbers modulo what was written. So any part of a history
//! is a history, and a failing one can be cut down.

use std::ops::Bound;

use lsm_store::rng::SplitMix64;

use crate::seeds::index;
use crate::setups::scaled;

pub(crate) type Key = Vec<u8>;
pub(crate) type Value = Vec<u8>;
pub(crate) type Bounds = (Bound<Key>, Bound<Key>);

/// One batch: partition, key, value (none: delete), and whether a store with its own log syncs it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Batch {
    pub(crate) ops: Vec<(usize, Key, Option<Value>)>,
    pub(crate) sync: bool,
}

/// A move of an iterator.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Move {
    Next,
    Prev,
    First,
    Last,
    Seek(Key),
    SeekForPrev(Key),
    SetBounds(Bounds),
    /// Goes on with the memtables and tables of now.
    Refresh,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    /// Batches that become visible together where the caller has the log, one by one elsewhere; the keys
    /// are read before, during and after.
    Run {
        batches: Vec<Batch>,
        read: Vec<Key>,
    },
    /// The newest versions.
    Get {
        partition: usize,
        keys: Vec<Key>,
    },
    /// What a view sees, by single and by many reads.
    Read {
        view: usize,
        partition: usize,
        keys: Vec<Key>,
    },
    Scan {
        view: usize,
        partition: usize,
        backward: bool,
    },
    /// All changes from a number on, as a view at another one sees them.
    History {
        partition: usize,
        at: u64,
        from: u64,
        bounds: Bounds,
    },
    TakeView,
    TakeViewAt {
        partition: usize,
        at: u64,
    },
    DropView(usize),
    OpenIter {
        view: usize,
        partition: usize,
        bounds: Bounds,
    },
    Walk {
        iter: usize,
        moves: Vec<Move>,
    },
    DropIter(usize),
    SetFloor(u64),
    /// The digest of what a reader at a number finds from one key up to another.
    Digest {
        partition: usize,
        at: u64,
        start: Key,
        end: Option<Key>,
    },
    /// A checkpoint, opened as a store of its own.
    Copy,
    /// A range exported, received and taken in again, in place of what is there.
    Repair {
        partition: usize,
        start: Key,
        end: Option<Key>,
    },
    /// A range brought down to the last level; without an end, everything from a key on.
    Compact {
        partition: usize,
        start: Key,
        end: Option<Key>,
    },
    /// Reads so many bytes of tables in search of damage, which there is none of.
    Scrub(u64),
    Flush,
    StartFlush,
    Verify,
    /// Closed and opened again; views and iterators from before stay readable.
    Close,
    /// The process ends without a word.
    Kill,
    /// The machine loses power.
    Crash {
        policy: usize,
        seed: u64,
    },
}

/// What a history is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preset {
    /// Keys of a small alphabet, so that some are prefixes of others and most are written again.
    ManyKeys,
    /// A handful of keys with very many versions each, read at old numbers.
    ManyVersions,
}

/// Draws histories.
pub(crate) struct Generator {
    rng: SplitMix64,
    preset: Preset,
}

impl Generator {
    pub(crate) fn new(seed: u64, preset: Preset) -> Self {
        Self { rng: SplitMix64::new(seed ^ 0x6f70_7300), preset }
    }

    pub(crate) fn history(&mut self, length: usize) -> Vec<Op> {
        (0..length).map(|_| self.op()).collect()
    }

    fn number(&mut self) -> usize {
        index(&mut self.rng, 64)
    }

    fn partition(&mut self) -> usize {
        usize::from(self.rng.chance(1, 4))
    }

    fn key(&mut self) -> Key {
        const ALPHABET: [u8; 5] = [0, b'a', b'b', 0xFE, 0xFF];
        const FEW: [&[u8]; 4] = [b"", b"a", b"a\0", b"\xff\xff"];
        if self.preset == Preset::ManyVersions {
            return FEW[index(&mut self.rng, FEW.len())].to_vec();
        }
        let prefix = match self.rng.below(12) {
            // Beyond what one restart head, and what one common prefix, can hold.
            0 => vec![b'p'; 300],
            1 => b"eight by".to_vec(),
            _ => Vec::new(),
        };
        let tail = (0..self.rng.below(4)).map(|_| ALPHABET[index(&mut self.rng, ALPHABET.len())]);
        [prefix, tail.collect()].concat()
    }

    fn keys(&mut self, most: u64) -> Vec<Key> {
        (0..=self.rng.below(most)).map(|_| self.key()).collect()
    }

    fn value(&mut self) -> Value {
        let len = match self.rng.below(24) {
            0 => 0,
            1..=18 => 1 + self.rng.below(12),
            19..=22 => 100 + self.rng.below(300),
            _ => scaled(&mut self.rng, 1 << 10, 1 << 16),
        };
        let tag = self.rng.next_u64().to_le_bytes();
        tag.into_iter().cycle().take(usize::try_from(len).unwrap_or(0)).collect()
    }

    fn batch(&mut self) -> Batch {
        let ops = (0..=self.rng.below(6)).map(|_| {
            let value = self.rng.chance(3, 4).then(|| self.value());
            (self.partition(), self.key(), value)
        });
        Batch { ops: ops.collect(), sync: self.rng.chance(1, 4) }
    }

    fn bound(&mut self) -> Bound<Key> {
        match self.rng.below(3) {
            0 => Bound::Unbounded,
            1 => Bound::Included(self.key()),
            _ => Bound::Excluded(self.key()),
        }
    }

    fn bounds(&mut self) -> Bounds {
        (self.bound(), self.bound())
    }

    fn moves(&mut self) -> Vec<Move> {
        (0..=self.rng.below(25))
            .map(|_| match self.rng.below(21) {
                0..=6 => Move::Next,
                7..=13 => Move::Prev,
                14 => Move::First,
                15 => Move::Last,
                16 | 17 => Move::Seek(self.key()),
                18 => Move::SeekForPrev(self.key()),
                19 => Move::SetBounds(self.bounds()),
                _ => Move::Refresh,
            })
            .collect()
    }

    fn op(&mut self) -> Op {
        let many_versions = self.preset == Preset::ManyVersions;
        match self.rng.below(100) {
            0..=33 => {
                let most = if many_versions { 12 } else { 4 };
                let batches = (0..=self.rng.below(most)).map(|_| self.batch()).collect();
                Op::Run { batches, read: self.keys(3) }
            }
            34..=37 => Op::Get { partition: self.partition(), keys: self.keys(4) },
            38..=43 => {
                Op::Read { view: self.number(), partition: self.partition(), keys: self.keys(6) }
            }
            44..=46 => Op::History {
                partition: usize::from(self.rng.chance(1, 8)),
                at: self.rng.next_u64(),
                from: self.rng.next_u64(),
                bounds: self.bounds(),
            },
            47..=49 => Op::Scan {
                view: self.number(),
                partition: self.partition(),
                backward: self.rng.chance(1, 2),
            },
            50..=52 => Op::TakeView,
            53..=57 => {
                let partition = usize::from(self.rng.chance(1, 8));
                Op::TakeViewAt { partition, at: self.rng.next_u64() }
            }
            58..=60 => Op::DropView(self.number()),
            61..=66 => Op::OpenIter {
                view: self.number(),
                partition: self.partition(),
                bounds: self.bounds(),
            },
            67..=78 => Op::Walk { iter: self.number(), moves: self.moves() },
            79..=80 => Op::DropIter(self.number()),
            81..=83 if !many_versions || self.rng.chance(1, 3) => Op::SetFloor(self.rng.next_u64()),
            84 => {
                let end = self.rng.chance(1, 2).then(|| self.key());
                let partition = self.partition();
                Op::Digest { partition, at: self.rng.next_u64(), start: self.key(), end }
            }
            85 => Op::Copy,
            86 => {
                let end = self.rng.chance(1, 2).then(|| self.key());
                Op::Repair { partition: self.partition(), start: self.key(), end }
            }
            87 => {
                let end = self.rng.chance(1, 2).then(|| self.key());
                Op::Compact { partition: self.partition(), start: self.key(), end }
            }
            81..=88 => Op::Flush,
            89..=91 => Op::StartFlush,
            92 => Op::Verify,
            93 => Op::Scrub(scaled(&mut self.rng, 1, 1 << 16)),
            94..=95 => Op::Close,
            96..=97 => Op::Kill,
            _ => Op::Crash { policy: self.number(), seed: self.rng.next_u64() },
        }
    }
}
