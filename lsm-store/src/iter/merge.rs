//! Merges sources into one order.
//!
//! Sources are few (memtables, runs of level 0, one per level), so the smallest is found by comparing
//! all; a pair (user key, sequence number) occurs in one source only, so there are no ties.

use bytes::Bytes;

use crate::error::Result;
use crate::internal_key::{Kind, compare};
use crate::iter::InternalIter;
use crate::iter::level::LevelIter;
use crate::iter::mem::MemIter;

/// A source of a merge.
#[derive(Debug)]
pub(crate) enum Source {
    Mem(MemIter),
    Level(Box<LevelIter>),
}

macro_rules! each {
    ($self:ident, $source:ident => $call:expr) => {
        match $self {
            Self::Mem($source) => $call,
            Self::Level($source) => $call,
        }
    };
}

impl InternalIter for Source {
    fn valid(&self) -> bool {
        each!(self, s => s.valid())
    }
    fn key(&self) -> &[u8] {
        each!(self, s => s.key())
    }
    fn sequence(&self) -> u64 {
        each!(self, s => s.sequence())
    }
    fn kind(&self) -> Kind {
        each!(self, s => s.kind())
    }
    fn value(&self) -> &[u8] {
        each!(self, s => s.value())
    }
    fn value_bytes(&self) -> Bytes {
        each!(self, s => s.value_bytes())
    }
    fn seek_to_first(&mut self) -> Result<()> {
        each!(self, s => s.seek_to_first())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        each!(self, s => s.seek_to_last())
    }
    fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        each!(self, s => s.seek(key, sequence))
    }
    fn seek_for_prev(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        each!(self, s => s.seek_for_prev(key, sequence))
    }
    fn next(&mut self) -> Result<()> {
        each!(self, s => s.next())
    }
    fn prev(&mut self) -> Result<()> {
        each!(self, s => s.prev())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MergeIter {
    sources: Vec<Source>,
    /// The source with the current entry; `None` at the end or after an error.
    current: Option<usize>,
    backward: bool,
}

impl MergeIter {
    pub(crate) const fn new(sources: Vec<Source>) -> Self {
        Self { sources, current: None, backward: false }
    }

    fn source(&self) -> Option<&Source> {
        self.current.and_then(|i| self.sources.get(i))
    }

    /// Moves every source, then picks.
    fn all(
        &mut self,
        backward: bool,
        mut seek: impl FnMut(&mut Source) -> Result<()>,
    ) -> Result<()> {
        self.current = None;
        self.backward = backward;
        for source in &mut self.sources {
            seek(source)?;
        }
        self.pick();
        Ok(())
    }

    fn pick(&mut self) {
        let mut best: Option<(usize, &Source)> = None;
        for (i, source) in self.sources.iter().enumerate().filter(|(_, s)| s.valid()) {
            let better = best.is_none_or(|(_, b)| {
                let order = compare((source.key(), source.sequence()), (b.key(), b.sequence()));
                if self.backward { order.is_gt() } else { order.is_lt() }
            });
            if better {
                best = Some((i, source));
            }
        }
        self.current = best.map(|(i, _)| i);
    }

    /// Moves the current source one entry.
    fn go(&mut self, backward: bool) -> Result<()> {
        assert_eq!(self.backward, backward, "a merge changes its direction only by a search");
        let Some(current) = self.current.take() else { return Ok(()) };
        if let Some(source) = self.sources.get_mut(current) {
            if backward { source.prev()? } else { source.next()? }
        }
        self.pick();
        Ok(())
    }
}

impl InternalIter for MergeIter {
    fn valid(&self) -> bool {
        self.current.is_some()
    }
    fn key(&self) -> &[u8] {
        self.source().map_or(&[], InternalIter::key)
    }
    fn sequence(&self) -> u64 {
        self.source().map_or(0, InternalIter::sequence)
    }
    fn kind(&self) -> Kind {
        self.source().map_or(Kind::Value, InternalIter::kind)
    }
    fn value(&self) -> &[u8] {
        self.source().map_or(&[], InternalIter::value)
    }
    fn value_bytes(&self) -> Bytes {
        self.source().map_or_else(Bytes::new, InternalIter::value_bytes)
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.all(false, Source::seek_to_first)
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.all(true, Source::seek_to_last)
    }
    fn seek(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.all(false, |s| s.seek(key, sequence))
    }
    fn seek_for_prev(&mut self, key: &[u8], sequence: u64) -> Result<()> {
        self.all(true, |s| s.seek_for_prev(key, sequence))
    }
    fn next(&mut self) -> Result<()> {
        self.go(false)
    }
    fn prev(&mut self) -> Result<()> {
        self.go(true)
    }
}
