//! Shapes of a partition, and the job that is due for each.

use super::*;
use crate::compaction::shape::RunInfo;

const OPTIONS: PickOptions = PickOptions {
    l0_trigger: 4,
    level_ratio: 10,
    base_level_bytes: 100,
    table_bytes: 100,
    compressed_from: 2,
};

type Table = TableInfo<'static>;

fn table(number: u64, bytes: u64, smallest: &'static str, largest: &'static str) -> Table {
    TableInfo {
        number: FileNumber(number),
        bytes,
        smallest: smallest.as_bytes(),
        largest: largest.as_bytes(),
        entries: 100,
        deletes: 0,
        garbage: 0,
        dense: false,
        quarantined: false,
    }
}

/// Runs from the newest to the oldest, and levels by their number.
fn shape<const N: usize>(
    runs: Vec<Vec<Table>>,
    levels: [(usize, Vec<Table>); N],
) -> Shape<'static> {
    let epochs = (1..=runs.len() as u64).rev();
    let runs =
        runs.into_iter().zip(epochs).map(|(tables, epoch)| RunInfo { epoch, tables }).collect();
    let mut all = vec![Vec::new(); LEVELS];
    for (level, tables) in levels {
        all[level] = tables;
    }
    Shape { runs, levels: all }
}

fn pick_of(shape: &Shape<'_>) -> Option<Pick> {
    pick(shape, &OPTIONS, 0, &Claims::default())
}

fn numbers(pick: &Pick) -> Vec<(usize, Vec<u64>)> {
    pick.inputs.iter().map(|(l, t)| (*l, t.iter().map(|n| n.0).collect())).collect()
}

#[test]
fn a_small_store_goes_straight_to_the_last_level() {
    let (base, targets) = targets(&[0; LEVELS], &OPTIONS);
    assert_eq!((base, targets[6]), (6, 100), "empty");
}

#[test]
fn targets_follow_the_size_of_the_last_level_and_never_that_of_level_0() {
    for level0 in [0, 1, 1 << 40] {
        let (base, targets) = targets(&[level0, 0, 0, 0, 0, 0, 123_456], &OPTIONS);
        assert_eq!(base, 3, "three levels above hold a tenth each, at least 100");
        assert_eq!(&targets[3..], [123, 1234, 12_345, 123_456], "a tenth each");
    }
}

#[test]
fn debt_does_not_jump_when_level_0_drains() {
    let before = debt(&[400, 0, 0, 0, 0, 0, 10_000], &OPTIONS);
    let after = debt(&[0, 0, 0, 0, 0, 0, 10_400], &OPTIONS);
    assert_eq!((before, after), (400, 0), "what was in level 0, and nothing more");
    let excess = debt(&[0, 0, 0, 0, 0, 1500, 10_000], &OPTIONS);
    assert_eq!(excess, 500 * 7, "with six times as much below it");
}

#[test]
fn a_level_above_the_base_drains() {
    let shape =
        shape(vec![], [(2, vec![table(1, 50, "a", "z")]), (6, vec![table(2, 80, "a", "z")])]);
    let (base, _) = targets(&shape.sizes(|_| true), &OPTIONS);
    assert_eq!(base, 2, "level 0 may not pass it by");
    let pick = pick_of(&shape).expect("drains");
    assert_eq!((numbers(&pick), pick.output_level), (vec![(2, vec![1])], 3), "one down");
}

#[test]
fn level_0_is_due_by_overlaps_and_takes_a_column_with_all_that_is_older_below_it() {
    let three = |number| vec![table(number, 10, "d", "m"), table(number + 1, 10, "p", "q")];
    let oldest = vec![table(30, 10, "a", "e")];
    let base = vec![table(1, 50, "a", "c"), table(2, 50, "g", "p"), table(3, 50, "q", "z")];
    let mut shape = shape(vec![three(10), three(12), three(14)], [(6, base)]);
    assert_eq!(pick_of(&shape), None, "three deep is not due");
    shape.runs.push(RunInfo { epoch: 0, tables: oldest });
    let pick = pick_of(&shape).expect("four deep from d to e");
    let column = vec![(0, vec![10, 12, 14, 30]), (6, vec![1, 2])];
    assert_eq!((numbers(&pick), pick.output_level), (column, 6), "not what is at p and q");
    assert_eq!((&*pick.smallest, &*pick.largest), (&b"a"[..], &b"p"[..]), "its range");
}

#[test]
fn a_job_under_way_sends_level_0_to_merge_within_itself() {
    let run = |number| vec![table(number, 10, "a", "z")];
    let old = [run(20), run(21), run(22), run(23)];
    let mut claims = Claims::default();
    let first = shape(old.to_vec(), [(6, vec![table(1, 50, "a", "z")])]);
    let taken = pick(&first, &OPTIONS, 0, &claims).expect("due");
    claims.take(taken.claim(0));
    assert_eq!(pick(&first, &OPTIONS, 0, &claims), None, "all of it is taken");
    let new = [run(30), run(31), run(32), run(33)];
    let both = shape([new, old].concat(), [(6, vec![table(1, 50, "a", "z")])]);
    let second = pick(&both, &OPTIONS, 0, &claims).expect("four new runs");
    assert_eq!(numbers(&second), [(0, vec![30, 31, 32, 33])], "the new ones");
    assert_eq!((second.output_level, second.method), (0, Method::Level0 { epoch: 8 }), "newest");
}

#[test]
fn tiny_runs_merge_among_themselves_rather_than_rewrite_a_large_base() {
    let run = |number| vec![table(number, 10, "a", "z")];
    let runs = vec![run(20), run(21), run(22), run(23)];
    let large = shape(runs.clone(), [(6, vec![table(1, 401, "a", "z")])]);
    let pick = pick_of(&large).expect("due");
    assert_eq!(pick.method, Method::Level0 { epoch: 4 }, "40 bytes would rewrite 401");
    let fair = shape(runs, [(6, vec![table(1, 400, "a", "z")])]);
    assert_eq!(pick_of(&fair).expect("due").method, Method::Merge, "400 are worth it");
}

#[test]
fn a_merge_within_level_0_ends_at_a_much_larger_run_and_at_the_size_of_eight_tables() {
    let taken = |sizes: &[u64]| {
        let runs = sizes.iter().zip(20..).map(|(bytes, n)| vec![table(n, *bytes, "a", "z")]);
        let (shape, claims) = (shape(runs.collect(), []), Claims::default());
        let picker = Picker { shape: &shape, options: &OPTIONS, partition: 0, claims: &claims };
        picker
            .intra_level0_job(8 * OPTIONS.table_bytes)
            .expect("four runs are enough")
            .tables()
            .count()
    };
    assert_eq!(taken(&[10, 10, 10, 10, 80]), 5, "twice as much as the newer ones together");
    assert_eq!(taken(&[10, 10, 10, 10, 81]), 4, "more than that");
    assert_eq!(taken(&[200, 200, 200, 200, 10]), 4, "eight tables' worth is enough");
    assert_eq!(taken(&[200, 200, 200, 190, 10]), 5, "not yet");
}

#[test]
fn the_level_that_is_most_over_its_target_comes_first() {
    let level = |first, n: u64| -> Vec<Table> {
        let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
        keys.into_iter().zip(first..first + n).map(|(k, n)| table(n, 100, k, k)).collect()
    };
    let last = vec![table(1, 10_000, "a", "z")];
    // Targets are 100 and 1000.
    let shape_of =
        |upper| shape(vec![], [(4, level(10, upper)), (5, level(30, 8)), (6, last.clone())]);
    let mut both = shape_of(3);
    both.levels[5].extend((0..8).map(|n| table(40 + n, 100, "i", "i")));
    both.levels[5].sort_by_key(|t| t.number);
    let pick = pick_of(&both).expect("both are due");
    assert_eq!(pick.inputs[0].0, 4, "three times its target, not 1.6 times");
    both.levels[4].truncate(1);
    assert_eq!(pick_of(&both).expect("one is due").inputs[0].0, 5, "the other is not due");
}

#[test]
fn a_full_level_gives_up_the_table_with_the_least_below_it() {
    let l5 = vec![table(11, 100, "a", "f"), table(12, 100, "g", "k"), table(13, 100, "l", "z")];
    let l6 = vec![table(1, 900, "a", "c"), table(2, 90, "g", "h"), table(3, 910, "m", "n")];
    let shape = shape(vec![], [(5, l5), (6, l6)]);
    let first = pick_of(&shape).expect("300 bytes where 190 are the target");
    assert_eq!(numbers(&first), [(5, vec![12]), (6, vec![2])], "90 bytes below it");
    let mut claims = Claims::default();
    claims.take(first.claim(0));
    let second = pick(&shape, &OPTIONS, 0, &claims).expect("200 are left, still too many");
    assert_eq!(numbers(&second), [(5, vec![11]), (6, vec![1])], "the next best");
    claims.take(second.claim(0));
    assert_eq!(pick(&shape, &OPTIONS, 0, &claims), None, "100 are not too many");
}

#[test]
fn no_job_takes_a_damaged_table_and_others_go_on() {
    let damaged = TableInfo { quarantined: true, ..table(2, 90, "g", "h") };
    let l5 = vec![table(11, 100, "a", "f"), table(12, 100, "g", "k"), table(13, 100, "l", "z")];
    let l6 = vec![table(1, 900, "a", "c"), damaged, table(3, 910, "m", "n")];
    let pick = pick_of(&shape(vec![], [(5, l5), (6, l6)])).expect("due");
    assert_eq!(numbers(&pick), [(5, vec![11]), (6, vec![1])], "the next best");
}

#[test]
fn level_0_goes_first_once_it_is_twice_as_deep_as_its_trigger() {
    let l5 = vec![table(11, 500, "a", "f")];
    let l6 = vec![table(1, 1000, "m", "n")];
    let deep = |runs: u64| {
        let runs = (20..20 + runs).map(|n| vec![table(n, 500, "a", "c")]).collect();
        pick_of(&shape(runs, [(5, l5.clone()), (6, l6.clone())])).expect("due").inputs[0].0
    };
    assert_eq!((deep(7), deep(8)), (5, 0), "500 bytes where 100 are the target, then level 0");
}

#[test]
fn many_runs_that_do_not_overlap_are_due_and_only_the_deepest_column_goes_before_they_merge() {
    const KEYS: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let with = |runs: usize| {
        let runs = KEYS.iter().take(runs).zip(20..).map(|(k, n)| vec![table(n, 60, k, k)]);
        shape(runs.collect(), [(6, vec![table(1, 100, "a", "b"), table(2, 100, "c", "z")])])
    };
    assert_eq!(pick_of(&with(7)), None, "half of them are not four");
    let first = pick_of(&with(8)).expect("due");
    assert_eq!((numbers(&first), first.output_level), (vec![(0, vec![20]), (6, vec![1])], 6));
    let mut claims = Claims::default();
    let ten = with(10);
    let first = pick(&ten, &OPTIONS, 0, &claims).expect("due");
    claims.take(first.claim(0));
    let second = pick(&ten, &OPTIONS, 0, &claims).expect("nine are left");
    assert_eq!(numbers(&second), [(0, (21..30).collect())], "not each by itself");
}

#[test]
fn what_is_urgent_over_damage_is_merged_before_another_column_goes() {
    let deep = |runs: u64| {
        let mut runs: Vec<_> = (0..runs).map(|n| vec![table(20 + n, 500, "a", "c")]).collect();
        for (n, run) in (0..4).zip(&mut runs) {
            run.push(table(40 + n, 500, "x", "z"));
        }
        runs.push(vec![TableInfo { quarantined: true, ..table(30, 500, "a", "c") }]);
        let l6 = vec![table(1, 50, "a", "c"), table(2, 50, "x", "z")];
        pick_of(&shape(runs, [(6, l6)])).expect("due")
    };
    assert_eq!(numbers(&deep(7)), [(0, vec![40, 41, 42, 43]), (6, vec![2])], "not yet");
    let urgent = deep(8);
    assert_eq!((urgent.output_level, urgent.tables().count()), (0, 12), "into one run");
    assert_eq!(urgent.method, Method::Level0 { epoch: 9 }, "of all above the damage");
}

#[test]
fn where_a_column_is_held_or_damaged_the_next_one_goes() {
    let mut runs: Vec<_> = (0..5).map(|n| vec![table(20 + n, 500, "a", "c")]).collect();
    for (n, run) in (0..4).zip(&mut runs) {
        run.push(table(30 + n, 500, "x", "z"));
    }
    let l6 = vec![table(1, 50, "a", "c"), table(2, 50, "x", "z")];
    let mut shape = shape(runs, [(6, l6)]);
    let first = pick_of(&shape).expect("five deep at a");
    assert_eq!(numbers(&first)[0], (0, vec![20, 21, 22, 23, 24]), "the deepest");
    let next = vec![(0, vec![30, 31, 32, 33]), (6, vec![2])];
    let mut claims = Claims::default();
    claims.take(first.claim(0));
    let second = pick(&shape, &OPTIONS, 0, &claims).expect("four deep at x");
    assert_eq!(numbers(&second), next, "beside the first");
    shape.runs[4].tables[0].quarantined = true;
    assert_eq!(numbers(&pick_of(&shape).expect("due")), next, "damage in level 0");
    shape.runs[4].tables[0].quarantined = false;
    shape.levels[6][0].quarantined = true;
    assert_eq!(numbers(&pick_of(&shape).expect("due")), next, "damage below it");
}

#[test]
fn what_piles_up_over_damage_merges_within_level_0_however_large_it_is() {
    let mut runs: Vec<_> = (0..4).map(|n| vec![table(20 + n, 500, "a", "c")]).collect();
    runs.push(vec![TableInfo { quarantined: true, ..table(24, 500, "a", "c") }]);
    let pick = pick_of(&shape(runs, [(6, vec![table(1, 50, "a", "c")])])).expect("due");
    assert_eq!(numbers(&pick), [(0, vec![20, 21, 22, 23])], "2000 bytes: twenty tables");
}

#[test]
fn a_table_with_nothing_below_it_moves_unless_its_compression_changes_or_it_has_deletes() {
    let moved = |t: Table, at| pick_of(&shape(vec![], [(at, vec![t])])).expect("due").method;
    assert_eq!(moved(table(1, 500, "a", "z"), 3), Method::Move, "level 3 to 4");
    assert_eq!(moved(table(1, 500, "a", "z"), 1), Method::Merge, "gets compressed");
    let deletes = TableInfo { deletes: 1, ..table(1, 500, "a", "z") };
    assert_eq!(moved(deletes, 3), Method::Merge, "deletes may be spent");
    let garbage = TableInfo { garbage: 1, ..table(1, 500, "a", "z") };
    assert_eq!(moved(garbage, 3), Method::Merge, "garbage goes by the way");
}

#[test]
fn a_table_does_not_move_above_more_tables_than_a_later_merge_should_take_along() {
    const NAMES: [&str; 12] = ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"];
    let moves_above = |below: usize| {
        let l5 = NAMES.iter().take(below).zip(10..).map(|(k, n)| table(n, 60, k, k)).collect();
        let levels =
            [(3, vec![table(1, 500, "a", "z")]), (5, l5), (6, vec![table(2, 9000, "n", "y")])];
        let shape = shape(vec![], levels);
        let claims = Claims::default();
        let picker = Picker { shape: &shape, options: &OPTIONS, partition: 0, claims: &claims };
        let mut inputs = Inputs::new(b"a", b"z");
        inputs.take(3, shape.level(3));
        picker.may_move(&inputs, 3, 4)
    };
    assert!(moves_above(GRANDPARENTS_MAX), "so many are not too many");
    assert!(!moves_above(GRANDPARENTS_MAX + 1), "one more is");
}

#[test]
fn garbage_is_rewritten_in_place_as_far_as_it_certainly_goes() {
    let garbage = TableInfo { garbage: 25, ..table(1, 50, "a", "c") };
    let bottom = shape(vec![], [(6, vec![garbage.clone(), table(2, 50, "d", "f")])]);
    let pick = pick_of(&bottom).expect("a quarter is garbage");
    assert_eq!((numbers(&pick), pick.output_level), (vec![(6, vec![1])], 6), "in place");
    let deletes = TableInfo { deletes: 25, ..garbage.clone() };
    let above = |t: Table| shape(vec![], [(5, vec![t]), (6, vec![table(2, 1000, "b", "f")])]);
    assert_eq!(pick_of(&above(deletes)), None, "deletes are still needed above something");
    assert_eq!(pick_of(&above(garbage)).expect("shadowed").output_level, 5, "in place");
}

#[test]
fn tables_dense_with_deletes_go_down_and_stale_rests_at_the_bottom_go() {
    let dense = TableInfo { garbage: 10, deletes: 10, dense: true, ..table(1, 50, "a", "c") };
    // So large that level 5 has a target: it is not due by its size.
    let large = vec![table(2, 1000, "b", "f")];
    let pick = pick_of(&shape(vec![], [(5, vec![dense.clone()]), (6, large)]));
    let l6 = vec![table(2, 900, "b", "f")];
    assert_eq!(numbers(&pick.expect("dense")), [(5, vec![1]), (6, vec![2])], "down");
    let pick = pick_of(&shape(vec![vec![dense.clone()]], [(6, l6)])).expect("dense");
    assert_eq!(numbers(&pick), [(0, vec![1]), (6, vec![2])], "from level 0, too");
    let pinned = TableInfo { garbage: 0, ..dense };
    assert_eq!(pick_of(&shape(vec![], [(6, vec![pinned])])), None, "nothing may go yet");
    let rest = |garbage| TableInfo { garbage, ..table(1, 50, "a", "c") };
    assert_eq!(pick_of(&shape(vec![], [(6, vec![rest(6)])])), None, "not worth it");
    assert!(pick_of(&shape(vec![], [(6, vec![rest(7)])])).is_some(), "a sixteenth is");
}
