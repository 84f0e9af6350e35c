//! Seeds of random tests, and how deep a run goes: one place, so that all of them are replayed alike.
//!
//! `LSM_STORE_SEED=S` runs the one seed `S`; `LSM_STORE_SEEDS=N` runs `N` seeds instead of the few of
//! the default run.

use std::ops::Range;

use lsm_store::rng::SplitMix64;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| unreachable!("{name}={text} is not a number")))
}

/// The seeds of this run: `default` of them, unless the environment says otherwise.
pub(crate) fn seeds(default: u64) -> Range<u64> {
    match number("LSM_STORE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LSM_STORE_SEEDS").unwrap_or(default),
    }
}

/// The command that runs `seed` of a test alone.
pub(crate) fn replay(seed: u64, target: &str, test: &str) -> String {
    format!("LSM_STORE_SEED={seed} cargo test -p lsm-store --test {target} -- --exact {test}")
}

/// Draws a place in something of `len` elements; 0 if it has none.
pub(crate) fn index(rng: &mut SplitMix64, len: usize) -> usize {
    usize::try_from(rng.below(len as u64)).unwrap_or(0)
}
