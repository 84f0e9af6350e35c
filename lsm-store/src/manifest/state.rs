//! What a manifest amounts to: the sum of its snapshot and edits. Plain data; no files.

use std::collections::{BTreeMap, BTreeSet};

use crate::manifest::edit::{Item, PlacedTable};
use crate::options::{Keep, PartitionOptions};
use crate::types::{FileNumber, Position};

/// Smallest and largest user key.
pub(crate) type KeySpan = (Vec<u8>, Vec<u8>);

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ManifestState {
    pub(crate) partitions: Vec<PartitionOptions>,
    pub(crate) tables: BTreeMap<FileNumber, PlacedTable>,
    /// Tables hold everything up to here…
    pub(crate) position: Position,
    /// … and per partition up to this sequence number.
    pub(crate) sequences: Vec<u64>,
    /// Retention floors per partition.
    pub(crate) floors: Vec<u64>,
    pub(crate) min_wal_segment: u64,
    /// Numbers at or above were never used.
    pub(crate) next_file: FileNumber,
    /// Damage found in tables: ranges of user keys, bounds included.
    pub(crate) damaged: BTreeMap<FileNumber, BTreeSet<KeySpan>>,
    /// The copy that the store is or began as, and whether it is fresh (see [`Item::Adopted`]).
    pub(crate) adopted: Option<(u128, bool)>,
    /// Follows from `tables`, so that an edit costs no look at all of them.
    index: Index,
}

/// What is asked of all tables at once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Index {
    uids: BTreeMap<u128, FileNumber>,
    /// How many tables have an epoch.
    l0_epochs: BTreeMap<u64, usize>,
}

impl Index {
    fn add(&mut self, table: &PlacedTable) {
        self.uids.insert(table.meta.uid, table.meta.number);
        *self.l0_epochs.entry(table.l0_epoch).or_default() += 1;
    }

    fn remove(&mut self, table: &PlacedTable) {
        self.uids.remove(&table.meta.uid);
        if let Some(count) = self.l0_epochs.get_mut(&table.l0_epoch) {
            *count -= 1;
            if *count == 0 {
                self.l0_epochs.remove(&table.l0_epoch);
            }
        }
    }
}

impl ManifestState {
    /// A store without anything, not even partitions: what a snapshot is applied to.
    pub(crate) fn empty() -> Self {
        Self {
            partitions: Vec::new(),
            tables: BTreeMap::new(),
            position: Position::default(),
            sequences: Vec::new(),
            floors: Vec::new(),
            min_wal_segment: 0,
            next_file: FileNumber(1),
            damaged: BTreeMap::new(),
            adopted: None,
            index: Index::default(),
        }
    }

    /// A new store with these partitions.
    pub(crate) fn create(partitions: &[PartitionOptions]) -> Self {
        Self {
            partitions: partitions.to_vec(),
            sequences: vec![0; partitions.len()],
            floors: vec![0; partitions.len()],
            ..Self::empty()
        }
    }

    /// Items that make this state out of an empty one.
    pub(crate) fn snapshot(&self) -> Vec<Item> {
        let ids = || 0_u8..;
        let mut items = Vec::new();
        for (id, partition) in ids().zip(&self.partitions) {
            items.push(Item::Partition { id, name: partition.name.clone(), keep: partition.keep });
        }
        items.push(Item::NextFile(self.next_file));
        items.push(Item::MinWalSegment(self.min_wal_segment));
        items.push(Item::Flushed {
            position: self.position.clone(),
            sequences: ids().zip(self.sequences.iter().copied()).collect(),
        });
        for (partition, &sequence) in ids().zip(&self.floors) {
            items.push(Item::Floor { partition, sequence });
        }
        items.extend(self.tables.values().map(|table| Item::AddTable(Box::new(table.clone()))));
        items.extend(self.adopted.map(|(id, fresh)| Item::Adopted { id, fresh }));
        for (&number, ranges) in &self.damaged {
            items.extend(ranges.iter().map(|(smallest, largest)| Item::Damaged {
                number,
                smallest: smallest.clone(),
                largest: largest.clone(),
            }));
        }
        items
    }

    /// Applies one edit, all of it or (with an error) nothing. Costs what the edit is long, however many
    /// tables there are.
    ///
    /// # Errors
    /// What contradicts the state, as text: a table added twice or deleted without being there, a number
    /// that falls.
    pub(crate) fn apply(&mut self, items: &[Item]) -> Result<(), String> {
        let before = self.without_tables();
        let mut undo = Vec::new();
        let applied = items.iter().try_for_each(|item| self.apply_item(item, &mut undo));
        if applied.is_err() {
            for (number, table) in undo.into_iter().rev() {
                self.replace(number, table);
            }
            let (tables, index) =
                (std::mem::take(&mut self.tables), std::mem::take(&mut self.index));
            *self = Self { tables, index, ..before };
        }
        applied
    }

    /// All of the state but what grows with the number of tables.
    fn without_tables(&self) -> Self {
        Self {
            partitions: self.partitions.clone(),
            tables: BTreeMap::new(),
            position: self.position.clone(),
            sequences: self.sequences.clone(),
            floors: self.floors.clone(),
            min_wal_segment: self.min_wal_segment,
            next_file: self.next_file,
            damaged: self.damaged.clone(),
            adopted: self.adopted,
            index: Index::default(),
        }
    }

    /// Puts a table, or none, under a number; returns what was there.
    fn replace(&mut self, number: FileNumber, table: Option<PlacedTable>) -> Option<PlacedTable> {
        let before = self.tables.remove(&number);
        if let Some(before) = &before {
            self.index.remove(before);
        }
        if let Some(table) = table {
            self.index.add(&table);
            self.tables.insert(number, table);
        }
        before
    }

    /// Applies one item; `undo` gets the numbers whose table it replaces, and what was there.
    fn apply_item(
        &mut self,
        item: &Item,
        undo: &mut Vec<(FileNumber, Option<PlacedTable>)>,
    ) -> Result<(), String> {
        match item {
            Item::AddTable(table) => {
                let number = table.meta.number;
                if usize::from(table.meta.partition) >= self.partitions.len() {
                    return Err(format!(
                        "table {number} of unknown partition {}",
                        table.meta.partition
                    ));
                }
                if number >= self.next_file {
                    return Err(format!(
                        "table {number} at or above the next file number {}",
                        self.next_file
                    ));
                }
                if self.tables.contains_key(&number) {
                    return Err(format!("table {number} added twice"));
                }
                if let Some(twin) = self.index.uids.get(&table.meta.uid) {
                    return Err(format!("tables {number} and {twin} have the same uid"));
                }
                undo.push((number, self.replace(number, Some((**table).clone()))));
            }
            Item::DeleteTable { partition, level, number } => {
                let table = self.tables.get(number);
                if table.is_none_or(|t| t.level != *level || t.meta.partition != *partition) {
                    return Err(format!(
                        "deleted table {number} is not in level {level} of partition {partition}"
                    ));
                }
                undo.push((*number, self.replace(*number, None)));
                self.damaged.remove(number);
            }
            Item::Flushed { position, sequences } => {
                rises("position", &mut self.position.index, position.index)?;
                self.position = position.clone();
                for &(partition, sequence) in sequences {
                    let last = self.sequences.get_mut(usize::from(partition));
                    let last =
                        last.ok_or_else(|| format!("flush of unknown partition {partition}"))?;
                    rises("flushed sequence number", last, sequence)?;
                }
            }
            Item::MinWalSegment(segment) => {
                rises("log segment", &mut self.min_wal_segment, *segment)?
            }
            Item::NextFile(number) => rises("next file number", &mut self.next_file.0, number.0)?,
            Item::Floor { partition, sequence } => {
                let floor = self.floors.get_mut(usize::from(*partition));
                let floor =
                    floor.ok_or_else(|| format!("floor of unknown partition {partition}"))?;
                rises("retention floor", floor, *sequence)?;
            }
            Item::Partition { id, name, keep } => {
                if usize::from(*id) != self.partitions.len() {
                    return Err(format!("partition {id} where {} is next", self.partitions.len()));
                }
                self.partitions.push(PartitionOptions { name: name.clone(), keep: *keep });
                self.sequences.push(0);
                self.floors.push(0);
            }
            Item::Damaged { number, smallest, largest } => {
                if !self.tables.contains_key(number) {
                    return Err(format!("damage in unknown table {number}"));
                }
                let ranges = self.damaged.entry(*number).or_default();
                ranges.insert((smallest.clone(), largest.clone()));
            }
            Item::Adopted { id, fresh } => self.adopted = Some((*id, *fresh)),
        }
        Ok(())
    }

    /// The age for the next run of level 0.
    pub(crate) fn next_l0_epoch(&self) -> u64 {
        self.index.l0_epochs.last_key_value().map_or(0, |(epoch, _)| *epoch) + 1
    }

    /// What differs between the partitions recorded and those asked for.
    pub(crate) fn partition_mismatch(&self, asked: &[PartitionOptions]) -> Option<String> {
        let show = |partitions: &[PartitionOptions]| {
            let one = |p: &PartitionOptions| {
                format!(
                    "{:?} keeping {}",
                    p.name,
                    if p.keep == Keep::All { "all" } else { "newest" }
                )
            };
            partitions.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        (self.partitions != asked).then(|| {
            format!(
                "the store has the partitions [{}], not [{}]",
                show(&self.partitions),
                show(asked)
            )
        })
    }
}

fn rises(what: &str, from: &mut u64, to: u64) -> Result<(), String> {
    if to < *from {
        return Err(format!("{what} falls from {from} to {to}"));
    }
    *from = to;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::edit::tests::sample_table;
    use super::*;

    fn state() -> ManifestState {
        let partition = |name: &str| PartitionOptions { name: name.to_owned(), keep: Keep::All };
        let mut state = ManifestState::create(&[partition("data"), partition("meta")]);
        state.apply(&[Item::NextFile(FileNumber(64))]).expect("applies");
        state
    }

    fn damage(number: u64) -> Item {
        Item::Damaged {
            number: FileNumber(number),
            smallest: b"b".to_vec(),
            largest: b"c".to_vec(),
        }
    }

    #[test]
    fn damage_goes_with_its_table() {
        let mut state = state();
        let table = Item::AddTable(Box::new(sample_table(5)));
        state.apply(&[table, damage(5), damage(5)]).expect("applies");
        assert_eq!(state.damaged[&FileNumber(5)].len(), 1, "the same range once");
        let delete = Item::DeleteTable { partition: 1, level: 3, number: FileNumber(5) };
        state.apply(&[delete]).expect("applies");
        assert!(state.damaged.is_empty(), "nothing is left of it");
    }

    #[test]
    fn a_snapshot_makes_the_same_state() {
        let mut state = state();
        let flushed = Item::Flushed {
            position: Position { index: 9, term: 2, extra: vec![1] },
            sequences: vec![(0, 4), (1, 9)],
        };
        let edit = [
            Item::AddTable(Box::new(sample_table(5))),
            flushed,
            Item::Floor { partition: 0, sequence: 3 },
            Item::MinWalSegment(2),
            damage(5),
            Item::Adopted { id: 77, fresh: false },
        ];
        state.apply(&edit).expect("applies");
        let mut again = ManifestState::empty();
        again.apply(&state.snapshot()).expect("applies");
        assert_eq!(again, state, "round trip through a snapshot");
    }

    #[test]
    fn contradictions_are_refused() {
        let mut state = state();
        state.apply(&[Item::AddTable(Box::new(sample_table(5)))]).expect("first time");
        let refused = [
            Item::AddTable(Box::new(sample_table(5))),
            Item::AddTable(Box::new(sample_table(6))),
            Item::AddTable(Box::new(sample_table(64))),
            Item::DeleteTable { partition: 1, level: 2, number: FileNumber(5) },
            Item::DeleteTable { partition: 1, level: 3, number: FileNumber(6) },
            Item::NextFile(FileNumber(63)),
            Item::Floor { partition: 2, sequence: 1 },
            damage(6),
            Item::Partition { id: 1, name: "again".to_owned(), keep: Keep::All },
        ];
        for item in refused {
            assert!(state.clone().apply(std::slice::from_ref(&item)).is_err(), "{item:?}");
        }
    }

    #[test]
    fn a_refused_edit_leaves_the_state_as_it_was() {
        let mut state = state();
        state.apply(&[Item::AddTable(Box::new(sample_table(5)))]).expect("applies");
        let before = state.clone();
        let with_uid = |number, uid, l0_epoch| {
            let mut table = PlacedTable { l0_epoch, ..sample_table(number) };
            table.meta.uid = uid;
            Item::AddTable(Box::new(table))
        };
        let edit = [
            Item::DeleteTable { partition: 1, level: 3, number: FileNumber(5) },
            with_uid(6, 1, 77),
            Item::DeleteTable { partition: 1, level: 3, number: FileNumber(6) },
            with_uid(5, 2, 78),
            Item::NextFile(FileNumber(100)),
            Item::MinWalSegment(9),
            Item::Floor { partition: 0, sequence: 3 },
            Item::Partition { id: 2, name: "more".to_owned(), keep: Keep::All },
            Item::Flushed {
                position: Position { index: 9, term: 2, extra: vec![1] },
                sequences: vec![(0, 4), (9, 9)],
            },
        ];
        assert!(state.apply(&edit).is_err(), "there is no partition 9");
        assert_eq!(state, before, "all or nothing");
        assert_eq!(state.next_l0_epoch(), 10, "epoch 9 of the table that is there");
        state.apply(&[with_uid(6, 1, 0)]).expect("the uid of the refused edit is free");
    }

    #[test]
    fn the_next_epoch_follows_the_tables_that_are_there() {
        let mut state = state();
        assert_eq!(state.next_l0_epoch(), 1, "none");
        state.apply(&[Item::AddTable(Box::new(sample_table(5)))]).expect("applies");
        assert_eq!(state.next_l0_epoch(), 10, "after 9");
        let delete = Item::DeleteTable { partition: 1, level: 3, number: FileNumber(5) };
        state.apply(&[delete]).expect("applies");
        assert_eq!(state.next_l0_epoch(), 1, "gone");
    }

    #[test]
    fn a_table_moves_by_delete_and_add_in_one_edit() {
        let mut state = state();
        let table = sample_table(5);
        state.apply(&[Item::AddTable(Box::new(table.clone()))]).expect("applies");
        let moved = PlacedTable { level: 4, ..table };
        let delete = Item::DeleteTable { partition: 1, level: 3, number: FileNumber(5) };
        state.apply(&[delete, Item::AddTable(Box::new(moved))]).expect("moves");
        assert_eq!(state.tables.get(&FileNumber(5)).map(|t| t.level), Some(4), "one level down");
    }
}
