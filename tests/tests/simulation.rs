//! The whole cluster in simulation: some hundred seeds, determinism, and proof that it notices what is wrong.
//!
//! `SEED=n` runs one seed instead of the usual ones. More seeds:
//! `cargo run --release -p tests --bin simulate -- --seeds 10000`.

use tests::sim::coverage::Coverage;
use tests::sim::decisions::Withheld;
use tests::sim::reduce::reduce;
use tests::sim::{self, Options, Sabotage};

/// Seeds of each of the four parts, which run beside each other.
const SEEDS_PER_PART: u64 = 75;

/// What happens in at least a third of the seeds.
const OFTEN: [&str; 5] = [
    "client operations",
    "elections",
    "crashes with lost unsynced data",
    "crashes with torn writes",
    "partitions",
];

fn run_part(part: u64) {
    let one = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let first = part * SEEDS_PER_PART;
    let seeds = one.map_or(first..first + SEEDS_PER_PART, |seed: u64| seed..seed + 1);
    let mut coverage = Coverage::default();
    for seed in seeds {
        match sim::run(seed, &Options::default()) {
            Ok(report) => coverage.add(&report),
            Err(failure) => panic!("{failure}"),
        }
    }
    if one.is_some() {
        return;
    }
    // A part in which some kind of fault never happened, or little was done, would prove nothing.
    let median = coverage.median_operations();
    assert!(median >= 500, "part {part}: {median} operations in the median seed\n{coverage}");
    assert_eq!(coverage.never(), [""; 0], "part {part}: this never happened\n{coverage}");
    for label in OFTEN {
        let seeds = coverage.row(label).map_or(0, |(_, seeds)| seeds);
        assert!(3 * seeds >= coverage.passed, "part {part}: {label} in {seeds} seeds\n{coverage}");
    }
}

#[test]
fn the_cluster_keeps_its_promises_in_seeds_of_part_0() {
    run_part(0);
}

#[test]
fn the_cluster_keeps_its_promises_in_seeds_of_part_1() {
    run_part(1);
}

#[test]
fn the_cluster_keeps_its_promises_in_seeds_of_part_2() {
    run_part(2);
}

#[test]
fn the_cluster_keeps_its_promises_in_seeds_of_part_3() {
    run_part(3);
}

/// Invariant I25. Everything a run does is in the hash of its trace.
#[test]
fn the_same_seed_gives_the_same_run() {
    let options = Options::default();
    let mut hashes = Vec::new();
    for seed in 5_000..5_010 {
        let [first, second] = [sim::run(seed, &options), sim::run(seed, &options)]
            .map(|result| result.unwrap_or_else(|failure| panic!("{failure}")));
        assert_eq!(
            (first.trace_hash, first.events),
            (second.trace_hash, second.events),
            "seed {seed} is run twice, differently"
        );
        hashes.push(first.trace_hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 10, "different seeds give different runs");
}

/// What a failing seed is reduced to fails alike, is far smaller, and is the same run every time.
#[test]
fn a_failing_seed_is_made_small_and_replays_bit_for_bit() {
    let options = Options { sabotage: Sabotage::AcknowledgeWithoutSync, ..Options::default() };
    let failure = sim::run(3, &options).expect_err("the log is acknowledged before it is synced");
    let reduced = reduce(&failure, &options);
    let [faults, operations, features] = reduced.left;
    assert!(
        faults <= 1 && operations <= 20 && features <= 4,
        "left are {faults} faults, {operations} operations, {features} features"
    );
    let withheld: Withheld = reduced.failure.withheld.to_string().parse().unwrap();
    for _ in 0..2 {
        let options = Options { withheld: withheld.clone(), ..options.clone() };
        let again = sim::run(3, &options).expect_err("the smaller run fails");
        assert_eq!(again.what, reduced.failure.what);
        assert_eq!(again.trace_hash, reduced.failure.trace_hash);
    }
}

/// Asserts that among the first `seeds` seeds of a sabotaged cluster one fails with one of these texts.
fn assert_caught(sabotage: Sabotage, invariants: bool, seeds: u64, by: &[&str]) {
    let options = Options { sabotage, invariants, ..Options::default() };
    let mut others = Vec::new();
    for seed in 0..seeds {
        if let Err(failure) = sim::run(seed, &options) {
            if by.iter().any(|by| failure.what.contains(by)) {
                return;
            }
            others.push(format!("seed {seed}: {}", failure.what));
        }
    }
    panic!("{sabotage:?} was not noticed by {by:?} in {seeds} seeds, but:\n{}", others.join("\n"));
}

#[test]
fn acknowledging_without_a_sync_is_noticed_at_once() {
    assert_caught(Sabotage::AcknowledgeWithoutSync, true, 5, &["I8:", "I11:", "I12:"]);
}

#[test]
fn acknowledging_without_a_sync_is_noticed_by_what_clients_see() {
    assert_caught(Sabotage::AcknowledgeWithoutSync, false, 200, &["not linearizable"]);
}

#[test]
fn unconfirmed_reads_are_noticed_by_the_checker_of_histories() {
    assert_caught(Sabotage::UnconfirmedReads, true, 50, &["not linearizable"]);
}

#[test]
fn repeating_a_write_under_another_number_is_noticed() {
    let by = ["in the log 2 times", "several revisions"];
    assert_caught(Sabotage::RetryWithNewTag, true, 100, &by);
}

#[test]
fn denying_an_effect_that_happened_is_noticed() {
    let by = ["in the log 1 times", "an effect was denied"];
    assert_caught(Sabotage::DenyUnknown, true, 50, &by);
}

#[test]
fn denying_an_effect_that_happened_is_noticed_by_the_checker_of_histories() {
    assert_caught(Sabotage::DenyUnknown, false, 100, &["no operation wrote"]);
}

#[test]
fn a_state_machine_that_skips_a_command_is_noticed() {
    assert_caught(Sabotage::SkipOneApply, true, 5, &["I18:", "I20:"]);
}

#[test]
fn a_state_machine_that_skips_a_command_is_noticed_by_what_clients_see() {
    assert_caught(Sabotage::SkipOneApply, false, 200, &["not linearizable"]);
}
