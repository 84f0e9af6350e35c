//! What every store must say: a map of all versions, and iterators over lists of rows.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use lsm_store::checksum::hash;

use crate::ops::{Batch, Bounds, Key, Move, Op, Value};

/// Key, value, sequence number.
pub(crate) type Row = (Key, Value, u64);
/// Value and sequence number.
pub(crate) type Hit = Option<(Value, u64)>;

/// All versions of all keys, newest first; none: deleted.
type Versions = BTreeMap<(Key, Reverse<u64>), Option<Value>>;

/// A version: key, number, value or none for a delete.
pub(crate) type Version = (Key, u64, Option<Value>);

/// What an operation shows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Nothing,
    Hits(Vec<Hit>),
    Rows(Vec<Row>),
    Versions(Vec<Version>),
    /// Where an iterator stands after each move.
    Stops(Vec<Option<Row>>),
    /// A view was granted at this number.
    Granted(u64),
    /// A number below this floor was refused.
    Compacted(u64),
    /// A number above this last one was refused.
    Future(u64),
    /// The digest of a range, and its rows.
    Digest(u64, u64),
    /// What a copy holds: both partitions.
    Copied([Vec<Row>; 2]),
    /// Retention floor and newest numbers after an operation that may touch them.
    Stands {
        floor: u64,
        last: [u64; 2],
    },
}

#[derive(Clone, Copy)]
enum Place {
    Fresh,
    At(usize),
    End,
}

struct RowIter {
    rows: Vec<Row>,
    bounds: Bounds,
    place: Place,
}

/// The model.
#[derive(Default)]
pub(crate) struct Model {
    versions: [Versions; 2],
    pub(crate) last: [u64; 2],
    floor: u64,
    views: Vec<[u64; 2]>,
    iters: Vec<RowIter>,
}

/// Which element `number` names; none without elements.
pub(crate) fn pick<T>(number: usize, of: &[T]) -> Option<usize> {
    (!of.is_empty()).then(|| number % of.len())
}

impl Model {
    fn get(&self, partition: usize, key: &[u8], at: u64) -> Hit {
        let range = (key.to_vec(), Reverse(at))..=(key.to_vec(), Reverse(0));
        let ((_, Reverse(sequence)), value) = self.versions[partition].range(range).next()?;
        value.clone().map(|value| (value, *sequence))
    }

    fn rows(&self, partition: usize, at: u64) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let mut decided: Option<&Key> = None;
        for ((key, Reverse(sequence)), value) in &self.versions[partition] {
            if *sequence <= at && decided != Some(key) {
                decided = Some(key);
                rows.extend(value.clone().map(|value| (key.clone(), value, *sequence)));
            }
        }
        rows
    }

    fn apply(&mut self, batch: &Batch) {
        for partition in 0..2 {
            let mut ops = batch.ops.iter().filter(|(p, ..)| *p == partition).peekable();
            if ops.peek().is_some() {
                self.last[partition] += 1;
            }
            let sequence = self.last[partition];
            self.versions[partition].extend(
                ops.map(|(_, key, value)| ((key.clone(), Reverse(sequence)), value.clone())),
            );
        }
    }

    fn newest(&self, keys: &[Key]) -> Vec<Hit> {
        let both = keys.iter().flat_map(|key| [(0, key), (1, key)]);
        both.map(|(partition, key)| self.get(partition, key, u64::MAX)).collect()
    }

    fn stands(&self) -> Outcome {
        Outcome::Stands { floor: self.floor, last: self.last }
    }

    /// A view taken before, or one of now.
    fn view(&self, number: usize) -> [u64; 2] {
        match (number % (self.views.len() + 1)).checked_sub(1) {
            Some(i) => self.views[i],
            None => self.last,
        }
    }

    fn floor(&self, partition: usize) -> u64 {
        if partition == 0 { self.floor } else { self.last[partition] }
    }

    /// The answer to whoever wants a view at a number that has none.
    fn refused(&self, partition: usize, at: u64) -> Option<Outcome> {
        let (floor, last) = (self.floor(partition), self.last[partition]);
        if at > last {
            return Some(Outcome::Future(last));
        }
        (at < floor).then_some(Outcome::Compacted(floor))
    }

    /// The number that `at` names in a partition: any up to one above the last.
    pub(crate) fn sequence(at: u64, last: u64) -> u64 {
        at % (last + 2)
    }

    pub(crate) fn play(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Run { batches, read } => {
                let mut hits = self.newest(read);
                for batch in batches {
                    self.apply(batch);
                }
                hits.extend(self.newest(read));
                Outcome::Hits(hits)
            }
            Op::Get { partition, keys } => {
                Outcome::Hits(keys.iter().map(|k| self.get(*partition, k, u64::MAX)).collect())
            }
            Op::Read { view, partition, keys } => {
                let at = self.view(*view)[*partition];
                Outcome::Hits(keys.iter().map(|k| self.get(*partition, k, at)).collect())
            }
            Op::Scan { view, partition, backward } => {
                let mut rows = self.rows(*partition, self.view(*view)[*partition]);
                if *backward {
                    rows.reverse();
                }
                Outcome::Rows(rows)
            }
            Op::TakeView => {
                self.views.push(self.last);
                Outcome::Nothing
            }
            Op::History { partition, at, from, bounds } => {
                let last = self.last[*partition];
                let (at, from) = (Self::sequence(*at, last), Self::sequence(*from, last));
                let floor = self.floor(*partition);
                if let Some(refused) = self.refused(*partition, at) {
                    return refused;
                }
                if from <= floor && floor > 0 {
                    return Outcome::Compacted(floor + 1);
                }
                let versions = self.versions[*partition].iter();
                let found = versions
                    .map(|((key, Reverse(n)), value)| (key.clone(), *n, value.clone()))
                    .filter(|(key, n, _)| (from..=at).contains(n) && within(bounds, key));
                Outcome::Versions(found.collect())
            }
            Op::TakeViewAt { partition, at } => {
                let at = Self::sequence(*at, self.last[*partition]);
                if let Some(refused) = self.refused(*partition, at) {
                    return refused;
                }
                let mut view = self.last;
                view[*partition] = at;
                self.views.push(view);
                Outcome::Granted(at)
            }
            Op::DropView(number) => {
                if let Some(i) = pick(*number, &self.views) {
                    self.views.swap_remove(i);
                }
                Outcome::Nothing
            }
            Op::OpenIter { view, partition, bounds } => {
                let rows = self.rows(*partition, self.view(*view)[*partition]);
                self.iters.push(RowIter { rows, bounds: bounds.clone(), place: Place::Fresh });
                Outcome::Nothing
            }
            Op::Walk { iter, moves } => match pick(*iter, &self.iters) {
                Some(i) => {
                    let iter = &mut self.iters[i];
                    Outcome::Stops(moves.iter().map(|movement| iter.go(movement)).collect())
                }
                None => Outcome::Nothing,
            },
            Op::DropIter(number) => {
                if let Some(i) = pick(*number, &self.iters) {
                    self.iters.swap_remove(i);
                }
                Outcome::Nothing
            }
            Op::Digest { partition, at, start, end } => {
                let last = self.last[*partition];
                let at = Self::sequence(*at, last);
                let floor = if *partition == 0 { self.floor } else { last };
                if at > last {
                    return Outcome::Future(last);
                }
                if at < floor {
                    return Outcome::Compacted(floor);
                }
                let inside = |key: &Key| key >= start && end.as_ref().is_none_or(|end| key < end);
                let rows = self.rows(*partition, at).into_iter();
                rows.filter(|(key, ..)| inside(key)).fold(Outcome::Digest(0, 0), |sum, row| {
                    let Outcome::Digest(digest, rows) = sum else { return sum };
                    Outcome::Digest(digest.wrapping_add(row_digest(&row)), rows + 1)
                })
            }
            Op::Copy => Outcome::Copied([0, 1].map(|p| self.rows(p, u64::MAX))),
            Op::SetFloor(at) => {
                self.floor = self.floor.max(at % (self.last[0] + 1));
                self.stands()
            }
            Op::Flush
            | Op::StartFlush
            | Op::Verify
            | Op::Scrub(_)
            | Op::Compact { .. }
            | Op::Close
            | Op::Repair { .. } => self.stands(),
            Op::Kill | Op::Crash { .. } => {
                self.views.clear();
                self.iters.clear();
                self.stands()
            }
        }
    }
}

fn within((lower, upper): &Bounds, key: &Key) -> bool {
    let above = match lower {
        Bound::Unbounded => true,
        Bound::Included(bound) => key >= bound,
        Bound::Excluded(bound) => key > bound,
    };
    let below = match upper {
        Bound::Unbounded => true,
        Bound::Included(bound) => key <= bound,
        Bound::Excluded(bound) => key < bound,
    };
    above && below
}

/// The digest of one row, as `FORMAT.md` has it.
fn row_digest((key, value, sequence): &Row) -> u64 {
    let lengths = (key.len() as u64).to_le_bytes();
    hash(&[&lengths[..], key, &sequence.to_le_bytes(), &[0], value].concat())
}

impl RowIter {
    fn go(&mut self, movement: &Move) -> Option<Row> {
        if let Move::SetBounds(bounds) = movement {
            self.bounds = bounds.clone();
            self.place = Place::Fresh;
            return None;
        }
        let rows: Vec<&Row> = self.rows.iter().filter(|row| within(&self.bounds, &row.0)).collect();
        let at = |i: Option<usize>| i.filter(|i| *i < rows.len()).map_or(Place::End, Place::At);
        let (first, last) = (at(Some(0)), at(rows.len().checked_sub(1)));
        self.place = match (movement, self.place) {
            (Move::First, _) | (Move::Next, Place::Fresh) => first,
            (Move::Last, _) | (Move::Prev, Place::Fresh) => last,
            (Move::Next, Place::At(i)) => at(Some(i + 1)),
            (Move::Prev, Place::At(i)) => at(i.checked_sub(1)),
            (Move::Next | Move::Prev, Place::End) => Place::End,
            (Move::Seek(key), _) => at(Some(rows.partition_point(|row| row.0 < *key))),
            (Move::SeekForPrev(key), _) => {
                at(rows.partition_point(|row| row.0 <= *key).checked_sub(1))
            }
            (Move::SetBounds(_) | Move::Refresh, place) => place,
        };
        if let Place::At(i) = self.place { Some(rows[i].clone()) } else { None }
    }
}
