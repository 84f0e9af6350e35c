//! Walks over a table that leave out a part of it: what a range leaves over, and what damage leaves over.

use crate::error::{Error, Result};
use crate::internal_key::Kind;
use crate::sstable::block_iter::BlockIter;
use crate::sstable::format::BlockKind;
use crate::sstable::reader::Table;
use crate::types::KeyRange;

/// Takes an entry: user key, sequence number, kind, value.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&[u8], u64, Kind, &[u8]) -> Result<()>;

/// Takes a range that could not be read, both bounds included, and why.
pub(crate) type Lost<'a> = &'a mut dyn FnMut(&[u8], &[u8], Error) -> Result<()>;

/// The entries of a table that are outside of a range. Blocks wholly inside are not read.
///
/// # Errors
/// Those of reading, and of `each`.
pub(crate) fn blocks_outside(table: &Table, range: &KeyRange, each: Each<'_>) -> Result<()> {
    let skip = |smallest: &[u8], largest: &[u8]| range.covers(smallest, largest);
    let mut outside = |key: &[u8], sequence: u64, kind: Kind, value: &[u8]| {
        if range.contains(key) { Ok(()) } else { each(key, sequence, kind, value) }
    };
    walk(table, &skip, &mut outside, &mut |_, _, error| Err(error))
}

/// The entries of a table that can be read; `lost` gets the ranges of those that cannot.
///
/// # Errors
/// Those of reading but `Corruption`, and of `each` and `lost`.
pub(crate) fn readable(table: &Table, each: Each<'_>, lost: Lost<'_>) -> Result<()> {
    let smallest = &table.meta().smallest.user_key;
    if let Err(error) = table.check_open() {
        return lost(smallest, &table.meta().largest.user_key, error);
    }
    walk(table, &|_, _| false, each, lost)
}

fn walk(
    table: &Table,
    skip: &dyn Fn(&[u8], &[u8]) -> bool,
    each: Each<'_>,
    lost: Lost<'_>,
) -> Result<()> {
    table.check_open()?;
    let mut smallest = table.meta().smallest.user_key.clone();
    for top in table.top() {
        if !skip(&smallest, &top.last_key) {
            let index = table.block(top.index, BlockKind::Index);
            match index.map(BlockIter::new) {
                Ok(index) => {
                    walk_partition(table, index, &smallest, &top.last_key, skip, each, lost)?
                }
                Err(error @ Error::Corruption { .. }) => lost(&smallest, &top.last_key, error)?,
                Err(error) => return Err(error),
            }
        }
        smallest.clone_from(&top.last_key);
    }
    Ok(())
}

fn walk_partition(
    table: &Table,
    mut index: BlockIter,
    first: &[u8],
    last: &[u8],
    skip: &dyn Fn(&[u8], &[u8]) -> bool,
    each: Each<'_>,
    lost: Lost<'_>,
) -> Result<()> {
    let mut smallest = first.to_vec();
    index.seek_to_first()?;
    while index.valid() {
        // The separator of the last block may be above all that is in it.
        let largest = index.key().min(last).to_vec();
        if !skip(&smallest, &largest) {
            match table.block(index.handle(), BlockKind::Data).map(BlockIter::new) {
                Ok(mut data) => {
                    data.seek_to_first()?;
                    while data.valid() {
                        each(data.key(), data.sequence(), data.kind(), data.value())?;
                        data.next()?;
                    }
                }
                Err(error @ Error::Corruption { .. }) => lost(&smallest, &largest, error)?,
                Err(error) => return Err(error),
            }
        }
        smallest = largest;
        index.next()?;
    }
    Ok(())
}
