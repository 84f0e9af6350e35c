//! Makes a failing seed small: takes back decision after decision as long as the run still fails alike.
//!
//! The method is delta debugging (Zeller and Hildebrandt 2002), over numbers of decisions: halves, then
//! quarters, down to single ones. It does not try every subset, so what remains is small, not the
//! smallest. A run without a decision may draw all that follows differently; that does not matter, since
//! every set of withheld decisions is a run of its own that replays bit for bit.

use super::decisions::{Feature, feature_number, operation_number};
use super::plan::Plan;
use super::random::Random;
use super::{Failure, Options, run};

/// Runs at most: some tens of seconds.
const RUNS_MAX: u64 = 600;

/// A failure that needs less than its seed decides.
#[derive(Clone, Debug)]
pub struct Reduced {
    /// How the smaller run fails.
    pub failure: Failure,
    /// Decisions that it still makes: faults, operations, features.
    pub left: [usize; 3],
    /// Runs that were tried.
    pub runs: u64,
}

/// Reduces a failure, running as `options` say.
#[must_use]
pub fn reduce(failure: &Failure, options: &Options) -> Reduced {
    let mut search = Search {
        options: options.clone(),
        kind: kind(&failure.what).to_owned(),
        best: failure.clone(),
        runs: 0,
    };
    let plan = Plan::draw(&mut Random::new(failure.seed), &failure.withheld);
    let clients = u32::try_from(plan.clients).unwrap_or(0);
    let operations = u32::try_from(plan.operations).unwrap_or(0);
    let operations = (0..operations)
        .flat_map(|number| (0..clients).map(move |client| operation_number(client, number)));
    let features = Feature::ALL.map(feature_number).to_vec();
    let faults = search.reduce_by(plan.fault_numbers());
    // What comes last is most often needed least.
    let operations: Vec<_> = operations.rev().collect();
    let operations = search.reduce_by(operations);
    let features = search.reduce_by(features);
    let faults = search.reduce_by(faults);
    let left = [faults.len(), operations.len(), features.len()];
    Reduced { failure: search.best, left, runs: search.runs }
}

/// What kind of failure it is: the invariant, or the first words.
fn kind(what: &str) -> &str {
    let end = what.char_indices().filter(|(_, letter)| *letter == ' ').nth(1);
    let words = end.map_or(what, |(end, _)| &what[..end]);
    words.split_once(':').map_or(words, |(tag, _)| tag)
}

struct Search {
    options: Options,
    kind: String,
    best: Failure,
    runs: u64,
}

impl Search {
    /// Withholds as many of these as possible; returns those that are needed.
    fn reduce_by(&mut self, mut needed: Vec<u32>) -> Vec<u32> {
        needed.retain(|number| !self.best.withheld.with(&[*number]).eq(&self.best.withheld));
        let mut size = needed.len();
        while size > 0 {
            let mut from = 0;
            while from < needed.len() {
                let upto = needed.len().min(from + size);
                if self.fails_without(&needed[from..upto]) {
                    needed.drain(from..upto);
                } else {
                    from = upto;
                }
            }
            size /= 2;
        }
        needed
    }

    fn fails_without(&mut self, numbers: &[u32]) -> bool {
        if self.runs >= RUNS_MAX {
            return false;
        }
        self.runs += 1;
        let withheld = self.best.withheld.with(numbers);
        let options = Options { withheld, ..self.options.clone() };
        match run(self.best.seed, &options) {
            Err(failure) if kind(&failure.what) == self.kind => {
                self.best = *failure;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_known_by_its_invariant_or_its_first_words() {
        assert_eq!(kind("I12: node 1 votes"), "I12");
        assert_eq!(kind("not linearizable: the second"), "not linearizable");
        assert_eq!(kind("L2"), "L2");
    }
}
