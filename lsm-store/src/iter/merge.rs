//! Merges sources into one order.
//!
//! The source with the current entry is kept apart; the others wait in a heap whose top is the rival. As long
//! as the current source stays before the rival, a step is one step of one source and one comparison; with one
//! source there is nothing to compare. Comparisons look at the head (the first 8 bytes of the user key, as an
//! integer) first. A pair (user key, sequence number) occurs in one source only, so there are no ties.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::error::Result;
use crate::internal_key::{Kind, compare, head};
use crate::iter::InternalIter;
use crate::iter::bounds::SharedBounds;
use crate::iter::level::LevelIter;
use crate::iter::mem::MemIter;
use crate::perf::{self, Count};

/// A source of a merge.
#[derive(Debug)]
pub(crate) enum Source {
    Mem(MemIter),
    Level(Box<LevelIter>),
}

macro_rules! each {
    ($self:expr, $source:ident => $call:expr) => {
        match $self {
            Source::Mem($source) => $call,
            Source::Level($source) => $call,
        }
    };
}

/// A source, and what the merge keeps about where it stands.
#[derive(Debug)]
struct Child {
    source: Source,
    /// Of the user key it stands on.
    head: u64,
    /// For memtables: the user key before the last step forward, and whether that step kept it.
    stepped_from: Vec<u8>,
    repeats: bool,
}

impl Child {
    const fn new(source: Source) -> Self {
        Self { source, head: 0, stepped_from: Vec::new(), repeats: false }
    }

    #[inline]
    fn key(&self) -> &[u8] {
        each!(&self.source, s => s.key())
    }

    #[inline]
    fn sequence(&self) -> u64 {
        each!(&self.source, s => s.sequence())
    }

    /// Whether it stands on an entry within the bounds. Tables know by themselves; the keys of memtables are
    /// compared here.
    #[inline]
    fn valid(&self, bounds: &SharedBounds, backward: bool) -> bool {
        match &self.source {
            Source::Level(level) => level.valid(),
            Source::Mem(mem) => {
                let inside = bounds.as_ref().is_none_or(|b| {
                    if backward { b.above_lower(mem.key()) } else { b.below_upper(mem.key()) }
                });
                mem.valid() && inside
            }
        }
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        match &mut self.source {
            Source::Level(level) => {
                level.next()?;
                self.repeats = level.repeats_key();
            }
            Source::Mem(mem) => {
                self.stepped_from.clear();
                self.stepped_from.extend_from_slice(mem.key());
                mem.next()?;
                self.repeats = mem.valid() && mem.key() == self.stepped_from;
            }
        }
        Ok(())
    }

    /// Compares where two children stand; user keys alone tie if one has a newer version than the other.
    #[inline]
    fn compare(&self, other: &Self) -> Order {
        let heads = self.head.cmp(&other.head);
        if heads.is_ne() {
            return Order { order: heads, same_key: false };
        }
        let keys = self.key().cmp(other.key());
        let order = keys.then_with(|| other.sequence().cmp(&self.sequence()));
        Order { order, same_key: keys.is_eq() }
    }
}

/// Of two internal keys.
#[derive(Clone, Copy)]
struct Order {
    order: Ordering,
    same_key: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MergeIter {
    children: Vec<Child>,
    bounds: SharedBounds,
    /// The child with the current entry; `None` at the end or after an error.
    current: Option<usize>,
    /// The other children that stand on an entry, as a heap: each is before those at twice its place, plus 1 and 2.
    waiting: Vec<usize>,
    /// Whether the rival (the first of `waiting`) stands on the user key of the current entry.
    rival_has_key: bool,
    /// See [`MergeIter::repeats_key`].
    repeats: bool,
    backward: bool,
}

impl MergeIter {
    pub(crate) fn new(sources: Vec<Source>) -> Self {
        let children: Vec<Child> = sources.into_iter().map(Child::new).collect();
        Self {
            waiting: Vec::with_capacity(children.len()),
            children,
            bounds: None,
            current: None,
            rival_has_key: false,
            repeats: false,
            backward: false,
        }
    }

    /// Changes the bounds; stands on no entry.
    pub(crate) fn set_bounds(&mut self, bounds: SharedBounds) {
        self.current = None;
        for child in &mut self.children {
            match &mut child.source {
                Source::Level(level) => level.set_bounds(bounds.clone()),
                Source::Mem(_) => {}
            }
        }
        self.bounds = bounds;
    }

    /// After `next`: whether the entry it stepped from has the same user key. After a search: `false`.
    pub(crate) const fn repeats_key(&self) -> bool {
        self.repeats
    }

    /// After a move backward: whether the entry is known to be the newest version of its key; `false` says
    /// nothing.
    pub(crate) fn is_newest(&self) -> bool {
        let newest_of_source = match self.child().map(|c| &c.source) {
            Some(Source::Level(level)) => level.is_newest(),
            Some(Source::Mem(_)) | None => false,
        };
        newest_of_source && !self.rival_has_key
    }

    #[inline]
    fn child(&self) -> Option<&Child> {
        self.current.and_then(|i| self.children.get(i))
    }

    /// Moves every child, then picks.
    fn all(&mut self, backward: bool, seek: impl FnMut(&mut Child) -> Result<()>) -> Result<()> {
        self.current = None;
        self.backward = backward;
        perf::count(Count::Seeks, self.children.len() as u64);
        self.children.iter_mut().try_for_each(seek)?;
        self.line_up();
        Ok(())
    }

    /// Orders all children anew.
    fn line_up(&mut self) {
        self.repeats = false;
        self.waiting.clear();
        for (i, child) in self.children.iter_mut().enumerate() {
            if child.valid(&self.bounds, self.backward) {
                child.head = head(child.key());
                self.waiting.push(i);
            }
        }
        for place in (0..self.waiting.len() / 2).rev() {
            self.sift_down(place);
        }
        self.current = self.waiting.first().copied();
        self.drop_rival();
        self.rival_has_key = self.order_to_rival().is_some_and(|o| o.same_key);
    }

    /// Takes the first one out of the heap.
    fn drop_rival(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        self.waiting.swap_remove(0);
        self.sift_down(0);
    }

    fn sift_down(&mut self, mut place: usize) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let mut first = place;
            if self.waits_before(left, first) {
                first = left;
            }
            if self.waits_before(right, first) {
                first = right;
            }
            if first == place {
                return;
            }
            self.waiting.swap(place, first);
            place = first;
        }
    }

    /// Whether the child at one place of the heap is before the one at another; not if there is none.
    fn waits_before(&self, place: usize, other: usize) -> bool {
        let child = |place| self.waiting.get(place).and_then(|i: &usize| self.children.get(*i));
        match (child(place), child(other)) {
            (Some(child), Some(other)) => self.is_before(child.compare(other).order),
            _ => false,
        }
    }

    const fn is_before(&self, order: Ordering) -> bool {
        if self.backward { order.is_gt() } else { order.is_lt() }
    }

    /// How the current child compares to the rival; `None` without one.
    #[inline]
    fn order_to_rival(&self) -> Option<Order> {
        let rival = self.waiting.first().and_then(|i| self.children.get(*i))?;
        Some(self.child()?.compare(rival))
    }

    /// After a step of the current child: whether it is still the first.
    #[inline]
    fn settle(&mut self, current: usize) {
        let Some(child) = self.children.get_mut(current) else { return };
        let valid = child.valid(&self.bounds, self.backward);
        self.repeats = child.repeats;
        if self.waiting.is_empty() {
            self.current = valid.then_some(current);
            return;
        }
        let had_key = self.rival_has_key;
        if valid {
            child.head = head(child.key());
            self.current = Some(current);
            if let Some(order) = self.order_to_rival() {
                self.rival_has_key = order.same_key;
                if self.is_before(order.order) {
                    return;
                }
            }
            // The rival is first now, and takes the place of the one that falls behind.
            if let Some(top) = self.waiting.first_mut() {
                self.current = Some(std::mem::replace(top, current));
                self.sift_down(0);
            }
        } else {
            self.current = self.waiting.first().copied();
            self.drop_rival();
        }
        self.repeats = had_key;
        self.rival_has_key = self.order_to_rival().is_some_and(|o| o.same_key);
    }
}

impl InternalIter for MergeIter {
    fn valid(&self) -> bool {
        self.current.is_some()
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.child().map_or(&[], Child::key)
    }

    #[inline]
    fn sequence(&self) -> u64 {
        self.child().map_or(0, Child::sequence)
    }

    #[inline]
    fn kind(&self) -> Kind {
        self.child().map_or(Kind::Value, |c| each!(&c.source, s => s.kind()))
    }

    #[inline]
    fn value(&self) -> &[u8] {
        self.child().map_or(&[], |c| each!(&c.source, s => s.value()))
    }

    fn value_bytes(&self) -> Bytes {
        self.child().map_or_else(Bytes::new, |c| each!(&c.source, s => s.value_bytes()))
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.all(false, |c| each!(&mut c.source, s => s.seek_to_first()))
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.all(true, |c| each!(&mut c.source, s => s.seek_to_last()))
    }

    fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        // Going forward, a child stands on its first entry at or after the current one: if the target is at or
        // after that too, a child that is not before the target is where a search would put it.
        let ahead = !self.backward
            && self
                .child()
                .is_some_and(|c| compare((c.key(), c.sequence()), (key, sequence)).is_le());
        self.current = None;
        self.backward = false;
        for child in &mut self.children {
            let stays = ahead
                && (!child.valid(&self.bounds, false)
                    || compare((child.key(), child.sequence()), (key, sequence)).is_ge());
            if !stays {
                each!(&mut child.source, s => s.seek(key, sequence))?;
            }
        }
        self.line_up();
        Ok(())
    }

    fn seek_for_prev(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.all(true, |c| each!(&mut c.source, s => s.seek_for_prev(key, sequence)))
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        assert!(!self.backward, "a merge changes its direction only by a search");
        let Some(current) = self.current.take() else { return Ok(()) };
        if let Some(child) = self.children.get_mut(current) {
            child.next()?;
        }
        self.settle(current);
        Ok(())
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        assert!(self.backward, "a merge changes its direction only by a search");
        let Some(current) = self.current.take() else { return Ok(()) };
        if let Some(child) = self.children.get_mut(current) {
            each!(&mut child.source, s => s.prev())?;
        }
        self.settle(current);
        Ok(())
    }
}
