//! The tree against the model, and what a set promises.

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::model::Model;
use super::*;
use crate::rng::SplitMix64;

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Op<'a> {
    Op::Put { key, value }
}

fn freeze(set: &MemSet) {
    set.freeze(FreezePoint { position: Position::default(), sequences: vec![0] });
}

/// Key, sequence number, kind, hash of the value.
type Row = (Vec<u8>, u64, Kind, u64);

fn rows(stretch: &Stretch) -> Vec<Row> {
    (0..stretch.len())
        .map(|i| {
            assert_eq!(stretch.value(i), stretch.value_bytes(i), "both forms of the value");
            let value = crate::checksum::hash(stretch.value(i));
            (stretch.key(i).to_vec(), stretch.sequence(i), stretch.kind(i), value)
        })
        .collect()
}

/// All entries by copies of `max`, one after the other.
fn walk(index: &impl MemIndex, from: Start<'_>, backward: bool, max: usize) -> Vec<Row> {
    let mut stretch = Stretch::default();
    let mut all = Vec::new();
    let mut from = from;
    loop {
        if backward {
            index.copy_backward(from, max, &mut stretch);
        } else {
            index.copy_forward(from, max, &mut stretch);
        }
        if stretch.is_empty() {
            return all;
        }
        all.extend(rows(&stretch));
        from = Start::AfterLast;
    }
}

#[test]
fn get_finds_the_newest_version_at_or_below_a_sequence() {
    let set = MemSet::new(1);
    set.apply(0, 3, &[put(b"k", b"three"), put(b"k2", b"x")]);
    set.apply(0, 5, &[Op::Delete { key: b"k" }]);
    set.apply(0, 9, &[put(b"k", b"nine")]);
    let table = set.table(0).expect("one partition");
    for frozen in [false, true] {
        assert!(table.get(b"k", 2).is_none(), "nothing at 2");
        assert_eq!(table.get(b"k", 4).expect("at 4").value, "three", "3 is newest at 4");
        assert_eq!(table.get(b"k", 8).expect("at 8").kind, Kind::Delete, "deleted at 5");
        assert_eq!(table.get(b"k", u64::MAX).expect("newest").sequence, 9, "newest is 9");
        assert!(table.get(b"k1", u64::MAX).is_none(), "a key between two others is absent");
        assert!(table.get(b"", u64::MAX).is_none(), "the empty key is a key like others");
        if !frozen {
            freeze(&set);
        }
    }
}

#[test]
fn the_last_operation_on_a_key_of_one_batch_wins() {
    let set = MemSet::new(1);
    set.apply(0, 7, &[put(b"k", b"1"), Op::Delete { key: b"k" }, put(b"k", b"2")]);
    let table = set.table(0).expect("one partition");
    assert_eq!(table.get(b"k", 7).expect("there").value, "2", "the last one");
    assert_eq!(table.len(), 1, "one entry per key and sequence number");
    let mut all = Stretch::default();
    table.copy_forward(Start::End, 10, &mut all);
    assert_eq!(all.len(), 1, "one entry is found");
}

#[test]
fn large_values_are_kept_whole_and_shared_with_readers() {
    let set = MemSet::new(1);
    let large = vec![7_u8; LARGE_BYTES * 100];
    set.apply(0, 1, &[put(b"a", b"s"), put(b"large", &large), put(b"small", b"s")]);
    let table = set.table(0).expect("one partition");
    let (one, other) = (table.get(b"large", 1).expect("there"), table.get(b"large", 1));
    assert_eq!(one.value, large, "large");
    assert_eq!(
        one.value.as_ptr(),
        other.expect("there").value.as_ptr(),
        "two readers share one copy"
    );
    assert_eq!(table.get(b"small", 1).expect("there").value, "s", "small");
    assert!(set.bytes() > large.len(), "counted: {}", set.bytes());
}

#[test]
fn values_of_a_frozen_set_are_shared_with_readers() {
    let set = MemSet::new(1);
    set.apply(0, 1, &[put(b"k", b"value")]);
    let table = set.table(0).expect("one partition");
    let before = table.get(b"k", 1).expect("there").value;
    freeze(&set);
    let (one, other) = (table.get(b"k", 1).expect("there"), table.get(b"k", 1).expect("there"));
    assert_eq!(before, one.value, "the value stays");
    assert_eq!(one.value.as_ptr(), other.value.as_ptr(), "two readers share one copy");
}

#[test]
fn a_frozen_set_is_read_while_its_lock_is_held() {
    let set = MemSet::new(1);
    set.apply(0, 1, &[put(b"k", b"value")]);
    freeze(&set);
    let table = set.table(0).expect("one partition");
    let held = table.index.write();
    assert_eq!(table.get(b"k", 1).expect("there").value, "value", "read without the lock");
    let mut stretch = Stretch::default();
    table.copy_forward(Start::End, 10, &mut stretch);
    assert_eq!(stretch.len(), 1, "copied without the lock");
    drop(held);
}

#[test]
fn a_reader_that_waited_for_the_lock_while_the_set_was_frozen_reads_what_was_frozen() {
    let set = MemSet::new(1);
    set.apply(0, 1, &[put(b"k", b"value")]);
    freeze(&set);
    let table = set.table(0).expect("one partition");
    let found = table.read_locked(|tree| tree.get(b"k", 1)).expect("there");
    assert_eq!(found.value, "value", "what was frozen, not the empty index");
}

#[test]
fn a_copy_of_nothing_forgets_where_the_copy_before_ended() {
    let mut tree = Tree::default();
    tree.insert(b"k", 1, Kind::Value, NewValue::Small(b"value"));
    let mut stretch = Stretch::default();
    tree.copy_forward(Start::End, 10, &mut stretch);
    assert!(stretch.cursor().is_some(), "it ended at the entry");
    tree.copy_forward(Start::Including(b"l", 1), 10, &mut stretch);
    assert!(stretch.is_empty() && stretch.cursor().is_none(), "nothing follows");
}

#[test]
fn nodes_stay_half_full_in_random_order_and_are_full_in_rising_order() {
    let mut rng = SplitMix64::new(5);
    for rising in [false, true] {
        let mut tree = Tree::default();
        for i in 0..150_000_u64 {
            let key = if rising { i } else { rng.next_u64() }.to_be_bytes();
            tree.insert(&key, i + 1, Kind::Value, NewValue::Small(b""));
        }
        let (leaves, inners) = tree.nodes();
        // On average; all nodes but the root are children.
        let all_but_the_root = leaves + inners - 1;
        let (entries, children) = (150_000 / leaves, all_but_the_root / inners);
        let least = if rising { 60 } else { 36 };
        assert!(
            entries >= least && children >= least,
            "rising: {rising}: {entries} entries a leaf, {children} children an inner node"
        );
    }
}

#[test]
fn a_small_set_is_counted_by_what_is_in_it() {
    let set = MemSet::new(1);
    assert_eq!(set.bytes(), 0, "nothing yet");
    set.apply(0, 1, &[put(b"key", b"value")]);
    assert!(set.bytes() < 100, "one entry of 8 bytes counts {}", set.bytes());
}

/// Keys that are prefixes of each other, runs of 0xFF and zeros, long shared beginnings, decimal numbers.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    let number = |prefix: &'static str| {
        (0..3000_u32).prop_map(move |n| format!("{prefix}{n:010}").into_bytes())
    };
    prop_oneof![
        2 => proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'a'), Just(0xFF)], 0..12),
        4 => number(""),
        2 => number("/registry/pods/default/some-long-name-of-a-thing-"),
        2 => number("/registry/pods/"),
        1 => (0..40_usize).prop_map(|n| vec![0xFF; n]),
        1 => (0..5_u8).prop_map(|n| [vec![b'x'; 700], vec![n]].concat()),
    ]
}

fn values() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        1 => Just(None),
        8 => (0..40_usize, any::<u8>()).prop_map(|(n, byte)| Some(vec![byte; n])),
        1 => (LARGE_BYTES - 1..LARGE_BYTES + 2).prop_map(|n| Some(vec![b'l'; n])),
    ]
}

/// Sequence numbers mostly rise, as they do in a store; the index does not depend on it.
#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<u8>, u64, Option<Vec<u8>>),
    /// Many keys in order, from a number on.
    Rising(u32, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let insert = (keys(), 1..6_u64, values()).prop_map(|(k, s, v)| Step::Insert(k, s, v));
    let rising = (0..2000_u32, 1..300_u32).prop_map(|(from, n)| Step::Rising(from, n));
    proptest::collection::vec(prop_oneof![30 => insert, 1 => rising], 1..700)
}

fn insert(index: &mut impl MemIndex, key: &[u8], sequence: u64, value: Option<&[u8]>) {
    match value {
        None => index.insert(key, sequence, Kind::Delete, NewValue::Small(&[])),
        Some(value) if value.len() < LARGE_BYTES => {
            index.insert(key, sequence, Kind::Value, NewValue::Small(value));
        }
        Some(value) => {
            let value = NewValue::Large(Bytes::copy_from_slice(value));
            index.insert(key, sequence, Kind::Value, value);
        }
    }
}

fn build(index: &mut impl MemIndex, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Insert(key, sequence, value) => {
                insert(index, key, *sequence, value.as_deref());
            }
            Step::Rising(from, n) => {
                for i in *from..from + n {
                    insert(index, format!("{i:010}").as_bytes(), 9, Some(b"rising"));
                }
            }
        }
    }
}

/// Everything that can be asked of both gives the same answer.
fn check(tree: &Tree, model: &Model, probes: &[(Vec<u8>, u64)]) -> Result<(), TestCaseError> {
    prop_assert_eq!(tree.len(), model.len(), "entries");
    prop_assert_eq!(tree.digest(), model.digest(), "sum of digests");
    for max in [1, 7, 64] {
        for backward in [false, true] {
            let all = walk(tree, Start::End, backward, max);
            prop_assert_eq!(all, walk(model, Start::End, backward, max), "backward: {}", backward);
        }
    }
    for (key, sequence) in probes {
        let (found, expected) = (tree.get(key, *sequence), model.get(key, *sequence));
        let plain = |f: MemFound| (f.sequence, f.kind, f.value);
        prop_assert_eq!(found.map(plain), expected.map(plain), "get {:?} at {}", key, sequence);
        for backward in [false, true] {
            let from = Start::Including(key, *sequence);
            let (mut ours, mut theirs) = (Stretch::default(), Stretch::default());
            for (out, index) in
                [(&mut ours, tree as &dyn Copies), (&mut theirs, model as &dyn Copies)]
            {
                index.copy(from, backward, out);
            }
            prop_assert_eq!(rows(&ours), rows(&theirs), "from {:?} at {}", key, sequence);
        }
    }
    Ok(())
}

/// What `check` needs of both indexes, for a loop over them.
trait Copies {
    fn copy(&self, from: Start<'_>, backward: bool, out: &mut Stretch);
}

impl<I: MemIndex> Copies for I {
    fn copy(&self, from: Start<'_>, backward: bool, out: &mut Stretch) {
        if backward {
            self.copy_backward(from, 5, out);
        } else {
            self.copy_forward(from, 5, out);
        }
    }
}

fn cases() -> u32 {
    if std::env::var_os("LSM_STORE_EXHAUSTIVE").is_some() { 3000 } else { 150 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn the_tree_answers_like_the_model(
        steps in steps(), probes in proptest::collection::vec((keys(), 0..8_u64), 40), seal: bool,
    ) {
        let (mut tree, mut model) = (Tree::default(), Model::default());
        build(&mut tree, &steps);
        build(&mut model, &steps);
        if seal {
            tree.seal();
        }
        let added = steps.iter().filter_map(|step| match step {
            Step::Insert(key, sequence, _) => Some((key.clone(), *sequence)),
            Step::Rising(..) => None,
        });
        let probes: Vec<_> = probes.into_iter().chain(added).collect();
        check(&tree, &model, &probes)?;
    }

    #[test]
    fn a_walk_goes_on_where_it_was_whatever_is_inserted_meanwhile(
        first in steps(), second in steps(), max in 1..30_usize, backward: bool,
    ) {
        let mut tree = Tree::default();
        let mut model = Model::default();
        build(&mut tree, &first);
        build(&mut model, &first);
        let (mut ours, mut theirs) = (Stretch::default(), Stretch::default());
        tree.copy(Start::End, backward, &mut ours);
        model.copy(Start::End, backward, &mut theirs);
        for some in second.chunks(max) {
            build(&mut tree, some);
            build(&mut model, some);
            if ours.is_empty() {
                break;
            }
            tree.copy(Start::AfterLast, backward, &mut ours);
            model.copy(Start::AfterLast, backward, &mut theirs);
            prop_assert_eq!(rows(&ours), rows(&theirs), "after {} more steps", some.len());
        }
    }
}

/// A tree of four levels: splits of inner nodes in the middle and at the edges.
#[test]
fn a_tall_tree_answers_like_the_model() {
    let mut rng = SplitMix64::new(11);
    for rising in [true, false] {
        let (mut tree, mut model) = (Tree::default(), Model::default());
        for i in 0..120_000_u64 {
            // Every eighth rising key is out of order.
            let n = if rising && i % 8 != 0 { i } else { rng.below(200_000) };
            let key = format!("{n:016}");
            insert(&mut tree, key.as_bytes(), i + 1, Some(&i.to_le_bytes()));
            insert(&mut model, key.as_bytes(), i + 1, Some(&i.to_le_bytes()));
        }
        let probes: Vec<_> = (0..3000)
            .map(|_| (format!("{:016}", rng.below(210_000)).into_bytes(), rng.below(130_000)))
            .collect();
        check(&tree, &model, &probes).expect("the same answers");
    }
}

/// The value of a version, from which its reader knows both.
fn version(key: u64, sequence: u64) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&key.to_le_bytes());
    value[8..].copy_from_slice(&sequence.to_le_bytes());
    value
}

fn check_version(key: &[u8], sequence: u64, value: &[u8]) {
    let number: u64 = std::str::from_utf8(key).expect("digits").parse().expect("a number");
    assert_eq!(value, version(number, sequence), "value of {number} at {sequence}");
}

#[test]
fn readers_see_whole_entries_while_others_are_inserted_and_the_set_is_frozen() {
    const KEYS: u64 = 5000;
    let set = MemSet::new(1);
    let table = set.table(0).expect("one partition");
    let published = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (set, published, done) = (&set, &published, &done);
            scope.spawn(move || {
                let mut rng = SplitMix64::new(reader);
                let mut stretch = Stretch::default();
                let mut rounds = 0;
                while !done.load(Ordering::Acquire) || rounds < 100 {
                    rounds += 1;
                    let table = set.table(0).expect("one partition");
                    let visible = published.load(Ordering::Acquire) as u64;
                    let key = format!("{:08}", rng.below(KEYS));
                    if let Some(found) = table.get(key.as_bytes(), visible) {
                        assert!(found.sequence <= visible, "a version above {visible}");
                        check_version(key.as_bytes(), found.sequence, &found.value);
                        let again = table.get(key.as_bytes(), visible).expect("still there");
                        assert_eq!(again.sequence, found.sequence, "the same at {visible}");
                    }
                    table.copy_forward(Start::Including(key.as_bytes(), visible), 20, &mut stretch);
                    for _ in 0..3 {
                        let copied = rows(&stretch);
                        for i in 0..stretch.len() {
                            check_version(stretch.key(i), stretch.sequence(i), stretch.value(i));
                        }
                        assert!(
                            copied.windows(2).all(|w| (&w[0].0, w[1].1) < (&w[1].0, w[0].1)),
                            "copied entries rise"
                        );
                        if stretch.is_empty() {
                            break;
                        }
                        table.copy_forward(Start::AfterLast, 20, &mut stretch);
                    }
                }
            });
        }
        let mut rng = SplitMix64::new(99);
        for sequence in 1..=8000_u64 {
            let numbers: [u64; 4] = std::array::from_fn(|_| rng.below(KEYS));
            let keys = numbers.map(|n| format!("{n:08}"));
            let values = numbers.map(|n| version(n, sequence));
            let ops: [Op<'_>; 4] = std::array::from_fn(|i| put(keys[i].as_bytes(), &values[i]));
            set.apply(0, sequence, &ops);
            published.store(usize::try_from(sequence).expect("small"), Ordering::Release);
        }
        freeze(&set);
        done.store(true, Ordering::Release);
    });
    assert!(table.len() > 31_000, "all there: {}", table.len());
}
