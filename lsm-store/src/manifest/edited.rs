//! The version that an edit leads to, made from the one before: what the edit does not touch is shared.
//!
//! Takes tables by binary search and checks the neighbours of those it adds, so the cost is that of the
//! edit plus one copy of pointers per level touched, however many tables the store has.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::iter::level::Tables;
use crate::manifest::edit::{Item, PlacedTable};
use crate::manifest::state::ManifestState;
use crate::manifest::version::{SortedRun, Version};
use crate::sstable::reader::Table;
use crate::types::FileNumber;

/// A list of tables that an edit touches: partition, level, and within level 0 the epoch of the run.
type Place = (usize, usize, Option<u64>);

/// What an edit does to one list.
#[derive(Debug, Default)]
struct Change {
    removed: Vec<Arc<Table>>,
    added: Vec<Arc<Table>>,
}

impl Version {
    /// The version after `items`, and the tables that are in this one only. `before` is the state this
    /// version shows; `opened` are the tables to be added that are not in it.
    ///
    /// # Errors
    /// `Corruption` of the manifest if a table is not there or would overlap another of its list.
    pub(crate) fn edited(
        &self,
        items: &[Item],
        opened: &[Arc<Table>],
        before: &ManifestState,
        manifest: &Path,
    ) -> Result<(Self, Vec<Arc<Table>>)> {
        self.edit(items, opened, before)
            .map_err(|detail| Error::corruption(manifest, 0, format!("edit: {detail}")))
    }

    fn edit(
        &self,
        items: &[Item],
        opened: &[Arc<Table>],
        before: &ManifestState,
    ) -> std::result::Result<(Self, Vec<Arc<Table>>), String> {
        let mut changes: BTreeMap<Place, Change> = BTreeMap::new();
        let mut loose: BTreeMap<FileNumber, Arc<Table>> = BTreeMap::new();
        // A table that moves is deleted and added by the same edit, in any order.
        for item in items {
            let Item::DeleteTable { number, .. } = item else { continue };
            let placed = before.tables.get(number);
            let placed = placed.ok_or_else(|| format!("deleted table {number} is not there"))?;
            let table = self
                .find(placed)
                .ok_or_else(|| format!("deleted table {number} is not in the version"))?;
            loose.insert(*number, Arc::clone(table));
            changes.entry(place(placed)).or_default().removed.push(Arc::clone(table));
        }
        for item in items {
            let Item::AddTable(placed) = item else { continue };
            let number = placed.meta.number;
            let new = opened.iter().find(|t| t.meta().number == number).cloned();
            let table = new.or_else(|| loose.remove(&number));
            let table = table.ok_or_else(|| format!("added table {number} is not open"))?;
            changes.entry(place(placed)).or_default().added.push(table);
        }
        let mut next = self.clone();
        for (place, change) in changes {
            next.change(place, change)?;
        }
        Ok((next, loose.into_values().collect()))
    }

    /// The open table that the manifest places there.
    fn find(&self, placed: &PlacedTable) -> Option<&Arc<Table>> {
        let levels = self.partitions.get(usize::from(placed.meta.partition))?;
        let tables = if placed.level == 0 {
            let at =
                levels.runs.binary_search_by_key(&Reverse(placed.l0_epoch), |r| Reverse(r.epoch));
            &levels.runs.get(at.ok()?)?.tables
        } else {
            levels.levels.get(placed.level)?
        };
        let at = position(tables, &placed.meta.smallest.user_key);
        tables.get(at).filter(|t| t.meta().number == placed.meta.number)
    }

    fn change(
        &mut self,
        (partition, level, epoch): Place,
        change: Change,
    ) -> std::result::Result<(), String> {
        let levels = self
            .partitions
            .get_mut(partition)
            .ok_or_else(|| format!("there is no partition {partition}"))?;
        let Some(epoch) = epoch else {
            let tables =
                levels.levels.get(level).ok_or_else(|| format!("there is no level {level}"))?;
            let tables = replaced(tables, change)
                .map_err(|d| format!("partition {partition} level {level}: {d}"))?;
            levels.replace(level, tables);
            return Ok(());
        };
        let found = levels.runs.binary_search_by_key(&Reverse(epoch), |r| Reverse(r.epoch));
        let empty = Tables::default();
        let present = match found {
            Ok(at) => levels.runs.get(at).map_or(&empty, |r| &r.tables),
            Err(_) => &empty,
        };
        let tables = replaced(present, change).map_err(|d| format!("level 0 run {epoch}: {d}"))?;
        match (found, tables.is_empty()) {
            (Ok(at), true) => {
                levels.runs.remove(at);
            }
            (Ok(at), false) => {
                if let Some(run) = levels.runs.get_mut(at) {
                    *run = SortedRun::new(epoch, tables);
                }
            }
            (Err(_), true) => {}
            (Err(at), false) => levels.runs.insert(at, SortedRun::new(epoch, tables)),
        }
        Ok(())
    }
}

fn place(table: &PlacedTable) -> Place {
    let epoch = (table.level == 0).then_some(table.l0_epoch);
    (usize::from(table.meta.partition), table.level, epoch)
}

/// Where a table that begins with `smallest` is, or would be.
fn position(tables: &[Arc<Table>], smallest: &[u8]) -> usize {
    tables.partition_point(|t| t.meta().smallest.user_key.as_slice() < smallest)
}

/// A list with a change made to it.
fn replaced(tables: &Tables, mut change: Change) -> std::result::Result<Tables, String> {
    let smallest = |t: &Arc<Table>| t.meta().smallest.user_key.clone();
    change.added.sort_by_cached_key(smallest);
    change.removed.sort_by_cached_key(smallest);
    let mut removed = change.removed.iter().peekable();
    let mut added = change.added.into_iter().peekable();
    let mut out: Vec<Arc<Table>> = Vec::with_capacity(tables.len() + added.len());
    let mut rest: &[Arc<Table>] = tables;
    loop {
        let next_removed = removed.peek().map(|t| position(rest, &t.meta().smallest.user_key));
        let next_added = added.peek().map(|t| position(rest, &t.meta().smallest.user_key));
        let (Some(upto), removes) = (match (next_removed, next_added) {
            (Some(r), Some(a)) => (Some(r.min(a)), r <= a),
            (r, a) => (r.or(a), r.is_some()),
        }) else {
            break;
        };
        let (same, after) = rest.split_at_checked(upto).unwrap_or((rest, &[]));
        append(&mut out, same)?;
        rest = after;
        if removes {
            removed.next();
            rest = rest.split_first().map_or(&[], |(_removed, after)| after);
        } else if let Some(table) = added.next() {
            append(&mut out, std::slice::from_ref(&table))?;
        }
    }
    append(&mut out, rest)?;
    Ok(Tables::from(out))
}

/// Appends tables that are in order among themselves, and checks that they follow what is there.
fn append(out: &mut Vec<Arc<Table>>, tables: &[Arc<Table>]) -> std::result::Result<(), String> {
    if let (Some(a), Some(b)) = (out.last(), tables.first())
        && a.meta().largest.user_key >= b.meta().smallest.user_key
    {
        return Err(format!("tables {} and {} overlap", a.meta().number, b.meta().number));
    }
    out.extend_from_slice(tables);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::options::{Keep, LEVELS, PartitionOptions};
    use crate::sstable::reader::tests::sample;

    const NAME: &str = "/manifest";

    /// A store as the manifest knows it, with its tables open.
    struct World {
        state: ManifestState,
        version: Version,
        open: BTreeMap<FileNumber, Arc<Table>>,
        next: u64,
    }

    impl World {
        fn new() -> Self {
            let partition =
                |name: &str| PartitionOptions { name: name.to_owned(), keep: Keep::All };
            let mut state = ManifestState::create(&[partition("data"), partition("meta")]);
            state.apply(&[Item::NextFile(FileNumber(10_000))]).expect("applies");
            let version = Version::build(&state, &BTreeMap::new(), Path::new(NAME));
            Self { state, version: version.expect("empty"), open: BTreeMap::new(), next: 1 }
        }

        fn table(&mut self, level: usize, epoch: u64, from: u8, to: u8) -> (Item, Arc<Table>) {
            let number = FileNumber(self.next);
            self.next += 1;
            let table = sample(number, 1, &[&[from], &[to.max(from)]]);
            let placed = PlacedTable { level, l0_epoch: epoch, meta: table.meta().clone() };
            (Item::AddTable(Box::new(placed)), table)
        }

        fn delete(&self, number: FileNumber) -> Item {
            let level = self.state.tables[&number].level;
            Item::DeleteTable { partition: 1, level, number }
        }

        /// Applies an edit both ways; returns whether it was accepted, which both must agree on.
        fn edit(&mut self, items: &[Item], opened: &[Arc<Table>]) -> bool {
            let mut state = self.state.clone();
            let mut open = self.open.clone();
            open.extend(opened.iter().map(|t| (t.meta().number, Arc::clone(t))));
            let edited = self.version.edited(items, opened, &self.state, Path::new(NAME));
            let built = state
                .apply(items)
                .map_err(|detail| Error::corruption(Path::new(NAME), 0, detail))
                .and_then(|()| Version::build(&state, &open, Path::new(NAME)));
            let (built, (edited, gone)) = match (built, edited) {
                (Ok(built), Ok(edited)) => (built, edited),
                (Err(_), Err(_)) => return false,
                (built, edited) => {
                    panic!("from scratch {:?}, by the edit {:?}", built.err(), edited.err())
                }
            };
            assert_eq!(layout(&edited), layout(&built), "by the edit, and from scratch");
            let gone: Vec<_> = gone.iter().map(|t| t.meta().number).collect();
            let expected =
                self.state.tables.keys().filter(|n| !state.tables.contains_key(n)).copied();
            let expected = expected.collect::<Vec<_>>();
            assert_eq!(gone, expected, "tables that leave");
            open.retain(|number, _| state.tables.contains_key(number));
            (self.state, self.version, self.open) = (state, edited, open);
            true
        }
    }

    type Layout = Vec<(Vec<(u64, Vec<FileNumber>)>, Vec<Vec<FileNumber>>)>;

    fn layout(version: &Version) -> Layout {
        let numbers = |tables: &Tables| tables.iter().map(|t| t.meta().number).collect();
        let partition = |levels: &crate::manifest::version::Levels| {
            (
                levels.runs.iter().map(|r| (r.epoch, numbers(&r.tables))).collect(),
                levels.levels.iter().map(numbers).collect(),
            )
        };
        version.partitions.iter().map(partition).collect()
    }

    #[test]
    fn a_table_moves_down_and_a_merge_replaces_its_inputs() {
        let mut world = World::new();
        let (a, ta) = world.table(0, 1, b'a', b'c');
        let (b, tb) = world.table(0, 2, b'b', b'd');
        assert!(world.edit(&[a, b], &[ta, tb]), "two runs");
        let moved = PlacedTable { level: 6, ..world.state.tables[&FileNumber(1)].clone() };
        let edit = [world.delete(FileNumber(1)), Item::AddTable(Box::new(moved))];
        assert!(world.edit(&edit, &[]), "moves");
        let (c, tc) = world.table(6, 0, b'a', b'd');
        let edit = [world.delete(FileNumber(2)), c.clone(), world.delete(FileNumber(1))];
        assert!(world.edit(&edit, &[tc]), "merged");
        assert!(!world.edit(&[c], &[]), "added twice");
    }

    #[test]
    fn an_overlap_is_refused_wherever_it_is() {
        for (from, to) in [(b'c', b'c'), (b'a', b'c'), (b'e', b'f'), (b'a', b'z'), (b'd', b'd')] {
            let mut world = World::new();
            let (a, ta) = world.table(6, 0, b'c', b'e');
            assert!(world.edit(&[a], &[ta]), "the first");
            let (b, tb) = world.table(6, 0, from, to);
            assert!(!world.edit(&[b], &[tb]), "{from} to {to} overlaps");
            let (b, tb) = world.table(5, 0, from, to);
            assert!(world.edit(&[b], &[tb]), "but not in another level");
        }
    }

    proptest! {
        #[test]
        fn edits_give_what_building_from_scratch_gives(
            steps in proptest::collection::vec(
                (0..3_u8, 0..LEVELS, 0..5_u64, any::<(u8, u8, u8)>()), 1..60,
            ),
        ) {
            let mut world = World::new();
            for (kind, level, epoch, (from, width, pick)) in steps {
                let victim = {
                    let numbers: Vec<_> = world.state.tables.keys().copied().collect();
                    numbers.get(usize::from(pick) % numbers.len().max(1)).copied()
                };
                let (add, table) = world.table(level, epoch, from, from.saturating_add(width % 8));
                match (kind, victim) {
                    (0, Some(number)) => {
                        let delete = world.delete(number);
                        prop_assert!(world.edit(&[delete], &[]), "delete");
                    }
                    (1, Some(number)) => {
                        let placed = world.state.tables[&number].clone();
                        let moved = Item::AddTable(Box::new(PlacedTable { level, l0_epoch: epoch, ..placed }));
                        let delete = world.delete(number);
                        world.edit(&[delete, moved], &[]);
                    }
                    _ => {
                        let edit: Vec<_> = victim
                            .filter(|_| pick % 2 == 0)
                            .map(|n| world.delete(n))
                            .into_iter()
                            .chain([add])
                            .collect();
                        world.edit(&edit, &[table]);
                    }
                }
            }
        }
    }
}
