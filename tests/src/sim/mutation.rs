//! A test of the tests: puts known bugs back into the consensus core, and sees who notices.
//!
//! [`raft_core::mutants`] has the bugs. Each runs through seeds, from the first on, until one fails; a
//! seed counts as its killer only if it passes without the bug. A bug that no seed notices within the
//! budget is left to the tests of the core itself, which take the bug's name from the environment.

use std::fmt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use raft_core::mutants::{Mutant, activate};

use super::{Options, run};

/// Seeds that a bug runs through.
pub const SEEDS_MAX: u64 = 1_000;

/// Who noticed a bug.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Killer {
    /// A seed of the simulation.
    Seed {
        /// The seed.
        seed: u64,
        /// What did not hold.
        what: String,
    },
    /// Tests of the core.
    Tests(Vec<String>),
    /// Nobody.
    Nobody,
}

impl fmt::Display for Killer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed { seed, what } => {
                let what = what.lines().next().unwrap_or_default();
                write!(f, "killed by seed {seed}, after {} seeds: {what:.100}", seed + 1)
            }
            Self::Tests(names) => {
                write!(
                    f,
                    "killed by {} tests of raft-core, after {SEEDS_MAX} seeds: ",
                    names.len()
                )?;
                f.write_str(&names[..names.len().min(3)].join(", "))
            }
            Self::Nobody => {
                write!(f, "NOT killed, after {SEEDS_MAX} seeds and the tests of raft-core")
            }
        }
    }
}

/// Finds who notices a bug, on so many threads.
#[must_use]
pub fn hunt(mutant: Mutant, jobs: usize) -> Killer {
    let mut from = 0;
    while let Some((seed, what)) = first_failure(mutant, from, jobs) {
        // The bug is out again: the same seed has to pass.
        if run(seed, &Options::default()).is_ok() {
            return Killer::Seed { seed, what };
        }
        from = seed + 1;
    }
    match failing_tests(mutant) {
        names if names.is_empty() => Killer::Nobody,
        names => Killer::Tests(names),
    }
}

/// The lowest seed from `from` on that fails with the bug.
fn first_failure(mutant: Mutant, from: u64, jobs: usize) -> Option<(u64, String)> {
    activate(Some(mutant));
    let (next, lowest) = (AtomicU64::new(from), AtomicU64::new(u64::MAX));
    let work = || {
        let mut first: Option<(u64, String)> = None;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS_MAX || seed > lowest.load(Ordering::Relaxed) {
                return first;
            }
            if let Err(failure) = run(seed, &Options::default()) {
                lowest.fetch_min(seed, Ordering::Relaxed);
                if first.as_ref().is_none_or(|(found, _)| *found > seed) {
                    first = Some((seed, failure.what));
                }
            }
        }
    };
    let found = thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().filter_map(|thread| thread.join().ok().flatten());
        results.min_by_key(|(seed, _)| *seed)
    });
    activate(None);
    found
}

/// The tests of the core that fail with the bug. They pass without it: else nothing would be landed.
fn failing_tests(mutant: Mutant) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "-p", "raft-core", "--features", "mutants", "--test", "rules"])
        .args(["--target-dir", "target/mutants"])
        .env("MUTANT", format!("{mutant:?}"))
        .stderr(Stdio::null())
        .output();
    let Ok(output) = output else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = text.lines().filter_map(|line| {
        line.strip_prefix("test ")?.strip_suffix(" ... FAILED").map(str::to_owned)
    });
    failed.collect()
}
