//! One history, many option sets, one truth: nothing that a store shows may depend on its options, its
//! mode, its executor, or on when it flushes, compacts, is closed, killed or loses power.
//!
//! A seed gives a history over the whole interface. It is played by a model (a map) and by stores under
//! drawn options; each operation's outcome must be the model's, hence that of every other store. What
//! a crash took is written again from the log that the caller has, so histories stay equal after it.
//! After Pebble's metamorphic tests (<https://github.com/cockroachdb/pebble>, `metamorphic/`).
//!
//! A failure is made small, operations and options, and printed with the command that repeats it.
//! `LSM_STORE_SEEDS=1000` goes deeper.

#[path = "../common/seeds.rs"]
mod seeds;

mod model;
mod ops;
mod player;
mod setups;
mod shrink;

use std::panic::{AssertUnwindSafe, catch_unwind};

use model::{Model, Outcome};
use ops::{Generator, Op, Preset};
use player::{Player, Setup};
use seeds::{replay, seeds};
use shrink::{Failure, describe, shrink};

/// Stores that play each history.
const SETUPS: u64 = 5;

/// Plays a history and returns the first difference from the model, or the message of a panic. `lie`
/// may change what a store said.
fn difference(history: &[Op], setup: &Setup, lie: &dyn Fn(&Op, &mut Outcome)) -> Option<String> {
    let mut at = 0;
    let played = catch_unwind(AssertUnwindSafe(|| {
        let (mut model, mut player) = (Model::default(), Player::new(setup.clone()));
        for (i, op) in history.iter().enumerate() {
            at = i;
            let expected = model.play(op);
            let mut found = player.play(op);
            lie(op, &mut found);
            if found != expected {
                return Some(format!("operation {i}\n   shows {found:?}\nand not {expected:?}"));
            }
        }
        at = history.len();
        player.finish();
        None
    }));
    played.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Some(format!("operation {at} panics: {}", text.unwrap_or("?")))
    })
}

fn honest(_: &Op, _: &mut Outcome) {}

fn play_all(test: &str, preset: Preset, default_seeds: u64, length: usize) {
    for seed in seeds(default_seeds) {
        let ops = Generator::new(seed, preset).history(length);
        for nth in 0..SETUPS {
            let setup = setups::draw(seed, nth);
            let fails = |ops: &[Op], setup: &Setup| difference(ops, setup, &honest);
            if let Some(what) = fails(&ops, &setup) {
                // Each of the many attempts may panic; only the result is of interest.
                std::panic::set_hook(Box::new(|_| {}));
                let failure = shrink(Failure { ops: ops.clone(), setup, what }, fails);
                drop(std::panic::take_hook());
                let again = replay(seed, "metamorphic", test);
                unreachable!("seed {seed}, setup {nth}: {}\nagain: {again}", describe(&failure));
            }
        }
    }
}

#[test]
fn options_and_interruptions_never_change_what_is_read() {
    let test = "options_and_interruptions_never_change_what_is_read";
    play_all(test, Preset::ManyKeys, 25, 150);
}

#[test]
fn options_and_interruptions_never_change_what_is_read_of_many_versions() {
    let test = "options_and_interruptions_never_change_what_is_read_of_many_versions";
    play_all(test, Preset::ManyVersions, 12, 150);
}

/// A store that answers one kind of question wrongly is found, and little is left of the history.
#[test]
fn a_lie_is_found_and_cut_down_to_what_it_takes() {
    let lie = |op: &Op, found: &mut Outcome| {
        if let (Op::Scan { backward: true, .. }, Outcome::Rows(rows)) = (op, found) {
            rows.retain(|(key, ..)| key.first() != Some(&0xFF));
        }
    };
    let setup = setups::draw(1, 2);
    let fails = |ops: &[Op], setup: &Setup| difference(ops, setup, &lie);
    let found = (0..100).find_map(|seed| {
        let ops = Generator::new(seed, Preset::ManyKeys).history(300);
        fails(&ops, &setup).map(|what| (ops, what))
    });
    let (ops, what) = found.expect("some history scans a key of 0xFF backward");
    let failure = shrink(Failure { ops, setup, what }, fails);
    assert!(
        matches!(
            failure.ops.as_slice(),
            [Op::Run { batches, .. }, Op::Scan { backward: true, .. }]
                if matches!(batches.as_slice(), [batch] if batch.ops.len() == 1)
        ),
        "one write and one scan are left: {}",
        describe(&failure)
    );
    let plain = setups::default_options(failure.setup.options[0].mode);
    assert_eq!(failure.setup.options, [plain.clone(), plain], "no option matters");
}
