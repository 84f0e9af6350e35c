//! The merge of memtables and tables against a sorted list, move by move.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::InternalIter;
use super::bounds::Bounds;
use super::level::LevelIter;
use super::mem::MemIter;
use super::merge::{MergeIter, Source};
use super::reading::{FillCache, Reading};
use crate::cache::BlockCache;
use crate::error::Error;
use crate::internal_key::{Kind, compare};
use crate::memtable::MemSet;
use crate::sstable::builder::{TableBuilder, TableLayout};
use crate::sstable::format::Codec;
use crate::sstable::reader::Table;
use crate::types::{FileNumber, Op};
use crate::vfs::{Fault, FaultKind, FaultWhen, MemVfs, OpSet, Vfs};

#[derive(Clone, Debug)]
struct Row {
    key: Vec<u8>,
    sequence: u64,
    kind: Kind,
    value: Vec<u8>,
    source: usize,
}

#[derive(Clone, Debug)]
enum Move {
    First,
    Last,
    Seek(Vec<u8>, u64),
    SeekForPrev(Vec<u8>, u64),
    Step,
    SetBounds(Bound<Vec<u8>>, Bound<Vec<u8>>),
}

/// Two memtables and four levels of tables.
const MEMTABLES: usize = 2;
const SOURCES: usize = 6;

fn key() -> impl Strategy<Value = Vec<u8>> {
    let byte = || prop_oneof![Just(0_u8), Just(b'a'), Just(b'b'), Just(0xFF)];
    prop_oneof![
        8 => proptest::collection::vec(byte(), 0..3),
        2 => proptest::collection::vec(byte(), 0..3).prop_map(|tail| [b"shared-prefix".to_vec(), tail].concat()),
    ]
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let value = proptest::collection::vec(any::<u8>(), 0..24);
    let row = (key(), 1..30_u64, any::<bool>(), value, 0..SOURCES);
    proptest::collection::vec(row, 0..150).prop_map(|rows| {
        let mut rows: Vec<Row> = rows
            .into_iter()
            .map(|(key, sequence, delete, value, source)| match delete {
                true => Row { key, sequence, kind: Kind::Delete, value: Vec::new(), source },
                false => Row { key, sequence, kind: Kind::Value, value, source },
            })
            .collect();
        rows.sort_by(|a, b| compare((&a.key, a.sequence), (&b.key, b.sequence)));
        rows.dedup_by(|a, b| a.key == b.key && a.sequence == b.sequence);
        rows
    })
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        Just(Bound::Unbounded),
        key().prop_map(Bound::Included),
        key().prop_map(Bound::Excluded)
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        1 => Just(Move::First),
        1 => Just(Move::Last),
        4 => (key(), 0..32_u64).prop_map(|(key, sequence)| Move::Seek(key, sequence)),
        3 => (key(), 0..32_u64).prop_map(|(key, sequence)| Move::SeekForPrev(key, sequence)),
        20 => Just(Move::Step),
        1 => (bound(), bound()).prop_map(|(lower, upper)| Move::SetBounds(lower, upper)),
    ];
    proptest::collection::vec(one, 1..80)
}

/// The rows of one level, in tables of about so many rows; never cut within a user key.
fn tables(vfs: &MemVfs, rows: &[&Row], table_rows: usize, number: &mut u64) -> Vec<Arc<Table>> {
    let cache = Arc::new(BlockCache::new(4096));
    let mut tables = Vec::new();
    let mut rest = rows;
    while let Some(first) = rest.get(table_rows.min(rest.len()).saturating_sub(1)) {
        let end = rest.iter().position(|r| r.key > first.key).unwrap_or(rest.len());
        let (some, others) = rest.split_at(end);
        rest = others;
        *number += 1;
        let path = Path::new("/").join(format!("{number}.sst"));
        let file = vfs.create_new(&path).expect("a new name");
        let layout = TableLayout {
            block_bytes: 60,
            restart_interval: 3,
            index_partition_bytes: 60,
            filter_bits_per_key: 10,
            codec: Codec::None,
        };
        let uid = u128::from(*number);
        let mut builder =
            TableBuilder::new(file, path.clone(), FileNumber(*number), uid, 0, layout);
        for row in some {
            builder.add(&row.key, row.sequence, row.kind, &row.value).expect("writes");
        }
        let meta = builder.finish().expect("writes");
        let graveyard = Arc::new(Mutex::new(Vec::new()));
        let file = vfs.open_read(&path).expect("is there");
        let table = Table::open(file, &path, meta, Arc::clone(&cache), graveyard).expect("opens");
        tables.push(Arc::new(table));
    }
    tables
}

fn merge_of(vfs: &MemVfs, rows: &[Row], table_rows: usize) -> MergeIter {
    let mut number = 0;
    let sources = (0..SOURCES).map(|source| {
        let own: Vec<&Row> = rows.iter().filter(|r| r.source == source).collect();
        if source >= MEMTABLES {
            let tables = tables(vfs, &own, table_rows, &mut number);
            return Source::Level(Box::new(LevelIter::new(
                tables.into(),
                Reading::by_reader(FillCache::Always),
            )));
        }
        let set = MemSet::new(1);
        for row in own {
            let (key, value) = (&row.key[..], &row.value[..]);
            let op = match row.kind {
                Kind::Value => Op::Put { key, value },
                Kind::Delete => Op::Delete { key },
            };
            set.apply(0, row.sequence, &[op]);
        }
        Source::Mem(MemIter::new(Arc::new(set), 0))
    });
    MergeIter::new(sources.collect())
}

proptest! {
    #[test]
    fn a_merge_is_the_sorted_list_of_its_sources(rows in rows(), table_rows in 1..20_usize, moves in moves()) {
        let mut merge = merge_of(&MemVfs::new(1), &rows, table_rows);
        let mut bounds = Bounds { lower: Bound::Unbounded, upper: Bound::Unbounded };
        let mut at: Option<usize> = None;
        let mut backward = false;
        for (n, movement) in moves.iter().enumerate() {
            let before = at;
            let at_or_after = |key: &[u8], sequence| {
                rows.partition_point(|r| compare((&r.key, r.sequence), (key, sequence)).is_lt())
            };
            let after = |key: &[u8], sequence| {
                rows.partition_point(|r| compare((&r.key, r.sequence), (key, sequence)).is_le())
            };
            match movement {
                Move::First => {
                    (at, backward) = (Some(0), false);
                    merge.seek_to_first().expect("moves");
                }
                Move::Last => {
                    // Only without an upper bound: a merge ends at the bound in its direction, and begins where told.
                    (at, backward) = (rows.len().checked_sub(1), true);
                    merge.seek_to_last().expect("moves");
                }
                Move::Seek(key, sequence) => {
                    (at, backward) = (Some(at_or_after(key, *sequence)), false);
                    merge.seek(key, *sequence).expect("moves");
                }
                Move::SeekForPrev(key, sequence) => {
                    (at, backward) = (after(key, *sequence).checked_sub(1), true);
                    merge.seek_for_prev(key, *sequence).expect("moves");
                }
                Move::Step if at.is_none() => {}
                Move::Step if backward => {
                    at = at.and_then(|i| i.checked_sub(1));
                    merge.prev().expect("moves");
                }
                Move::Step => {
                    at = at.map(|i| i + 1);
                    merge.next().expect("moves");
                }
                Move::SetBounds(lower, upper) => {
                    at = None;
                    bounds = Bounds { lower: lower.clone(), upper: upper.clone() };
                    let (lower, upper) = (lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice));
                    merge.set_bounds(Bounds::shared(lower, upper));
                }
            }
            at = at.filter(|i| rows.get(*i).is_some_and(|r| {
                if backward { bounds.above_lower(&r.key) } else { bounds.below_upper(&r.key) }
            }));
            let expected = at.and_then(|i| rows.get(i)).map(|r| (&r.key[..], r.sequence, r.kind, &r.value[..]));
            let found = merge.valid().then(|| (merge.key(), merge.sequence(), merge.kind(), merge.value()));
            prop_assert_eq!(found, expected, "move {}: {:?} of {:?}", n, movement, moves);
            if merge.valid() {
                prop_assert_eq!(&merge.value_bytes()[..], merge.value(), "both forms of the value");
            }
            let (Some(i), false) = (at, expected.is_none()) else { continue };
            if matches!(movement, Move::Step) && !backward {
                let same = before.is_some_and(|b| rows[b].key == rows[i].key);
                prop_assert_eq!(merge.repeats_key(), same, "the user key stays, move {} of {:?}", n, moves);
            } else if !backward {
                prop_assert!(!merge.repeats_key(), "a search compares to nothing");
            } else if merge.is_newest() {
                let newer = i.checked_sub(1).is_some_and(|b| rows[b].key == rows[i].key);
                prop_assert!(!newer, "the newest version, move {} of {:?}", n, moves);
            }
        }
    }
}

#[test]
fn an_error_of_one_source_ends_the_merge_and_is_no_end() {
    let rows: Vec<Row> = (0..60_u8)
        .map(|n| Row {
            key: vec![n / 2],
            sequence: 100 - u64::from(n),
            kind: Kind::Value,
            value: vec![n; 20],
            source: MEMTABLES + usize::from(n % 2),
        })
        .collect();
    let vfs = MemVfs::new(1);
    let mut merge = merge_of(&vfs, &rows, 60);
    merge.seek_to_first().expect("moves");
    vfs.add_fault(Fault {
        ops: OpSet::READS,
        when: FaultWhen::Always,
        kind: FaultKind::Io,
        path_contains: String::new(),
    });
    let failed = loop {
        match merge.next() {
            Ok(()) => assert!(merge.valid(), "an error comes before the end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(failed, Error::Io { .. }), "{failed}");
    assert!(!merge.valid(), "it stands nowhere");
    vfs.clear_faults();
    merge.seek(&[7], 0).expect("moves");
    assert_eq!((merge.key(), merge.sequence()), (&[8][..], 84), "a search brings it back");
}
