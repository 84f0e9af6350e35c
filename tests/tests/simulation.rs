//! The whole cluster in simulation: some hundred seeds, determinism, and proof that it notices what is wrong.
//!
//! `SEED=n` runs one seed instead of the usual ones. More seeds:
//! `cargo run --release -p tests --bin simulate -- --seeds 10000`.

use tests::sim::{self, Options, Report, Sabotage};

/// Seeds of each of the four parts, which run beside each other.
const SEEDS_PER_PART: u64 = 150;

fn run_part(part: u64) {
    let one = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let first = part * SEEDS_PER_PART;
    let seeds = one.map_or(first..first + SEEDS_PER_PART, |seed: u64| seed..seed + 1);
    let mut reports: Vec<Report> = Vec::new();
    for seed in seeds {
        match sim::run(seed, &Options::default()) {
            Ok(report) => reports.push(report),
            Err(failure) => panic!("{failure}"),
        }
    }
    if one.is_some() {
        return;
    }
    // A part in which some kind of fault never happened, or nothing was done, would prove nothing.
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    for (what, count, at_least) in [
        ("crashes", sum(|r| r.counts.crashes), 200),
        ("crashes in a write", sum(|r| r.counts.crashes_in_write), 20),
        ("failed syncs", sum(|r| r.counts.failed_syncs), 20),
        ("restarts", sum(|r| r.counts.restarts), 200),
        ("pauses", sum(|r| r.counts.pauses), 50),
        ("cuts", sum(|r| r.counts.cuts), 100),
        ("messages lost", sum(|r| r.messages.1), 1_000),
        ("terms led", sum(|r| r.terms_led), 300),
        ("logs cut for a leader's", sum(|r| r.truncations), 20),
        ("entries committed", sum(|r| r.committed), 5_000),
        ("operations answered", sum(|r| r.counts.answered), 10_000),
        ("operations without effect", sum(|r| r.counts.no_effect), 50),
        ("operations of unknown outcome", sum(|r| r.counts.unknown), 100),
        ("repeated attempts", sum(|r| r.counts.retries), 1_000),
        ("forwarded requests", sum(|r| r.counts.forwarded), 1_000),
        ("fetches", sum(|r| r.counts.fetches), 100),
    ] {
        assert!(count >= at_least, "part {part}: {count} {what}, expected at least {at_least}");
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
