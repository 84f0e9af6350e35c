//! The benchmark measures nothing if it cannot tell a wrong value.

use super::data::{Values, key, shuffled, skewed};
use super::{Bench, Config, LsmStore, Settings, Workload};
use crate::rng::SplitMix64;
use std::time::Duration;

#[test]
fn keys_are_sixteen_digits() {
    assert_eq!(&key(0), b"0000000000000000", "zero");
    assert_eq!(&key(1_234_567), b"0000000001234567", "seven digits");
}

#[test]
fn a_value_with_any_flipped_bit_is_not_verified() {
    let values = Values::new(100, 3);
    let mut value = Vec::new();
    values.append(42, &mut SplitMix64::new(9), &mut value);
    assert_eq!(values.verified(&value), Some(42), "whole");
    for bit in 0..value.len() * 8 {
        value[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(values.verified(&value), Some(42), "bit {bit} flipped");
        value[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(values.verified(&value[..99]), None, "cut");
}

#[test]
fn a_shuffle_has_every_number_once() {
    let mut all = shuffled(1000, &mut SplitMix64::new(1));
    assert!(!all.is_sorted(), "shuffled");
    all.sort_unstable();
    assert!(all.into_iter().eq(0..1000), "every number once");
}

#[test]
fn skewed_choices_repeat_a_few_numbers_often() {
    let chosen = skewed(10_000, 20_000, &mut SplitMix64::new(1));
    let mut counts = vec![0_u32; 10_000];
    for number in chosen {
        counts[number as usize] += 1;
    }
    counts.sort_unstable_by(|a, b| b.cmp(a));
    // The first of 10,000 by Zipf's law with exponent 0.99 has a share of about a tenth.
    assert!((1600..2600).contains(&counts[0]), "most popular: {}", counts[0]);
    let top: u32 = counts[..100].iter().sum();
    assert!(top > 9000, "the hundred most popular: {top}");
}

#[test]
fn every_workload_runs_and_counts_its_operations() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        dir: dir.path().join("store"),
        keys: 2000,
        value_bytes: 100,
        row_time_max: Duration::from_secs(10),
        seed: 1,
        settings: Settings { memtable_bytes: 64 << 10, ..Settings::default() },
    };
    let mut bench = Bench::<LsmStore>::new(config);
    for workload in Workload::ALL {
        let row = bench.run(workload).unwrap();
        assert_eq!(row.workload, workload.name(), "name");
        assert!(row.operations > 0, "{row:?}");
        assert!(row.json_members().starts_with("\"workload\":\""), "{row:?}");
    }
    bench.close().unwrap();
}
