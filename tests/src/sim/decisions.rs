//! The decisions of a run that can be taken back, each by its number: what a failing seed is reduced by.
//!
//! A seed decides three things that stand alone: how the run is unlike a calm one ([`Feature`]), which
//! faults happen when, and which operations clients ask for. Each such decision has a number, and each
//! draws what it needs from a generator of its own, so that taking one back leaves the others as they
//! are. What remains, how long things take and which message is lost, is drawn as the run goes.
//!
//! | number | decision |
//! |---|---|
//! | 0 … 99 | a [`Feature`] |
//! | 100 … 99,999 | a fault, in the order of time |
//! | 100,000 (c + 1) + n | operation n of client c |
//!
//! A seed and the numbers that are withheld are a whole run: [`Withheld`] prints and reads them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The number of the first fault.
const FAULTS_FROM: u32 = 100;

/// Numbers set aside for each client's operations, and for all faults.
const OPERATIONS_FROM: u32 = 100_000;

/// A way in which a run is unlike a calm one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    /// Messages are lost on an ordinary day.
    Lost,
    /// Messages are delivered twice on an ordinary day.
    Doubled,
    /// Messages are very late on an ordinary day.
    Late,
    /// Delays are long, and spread in another way than evenly.
    Delay,
    /// Links are unlike each other.
    OddLinks,
    /// Disks and appliers take long.
    SlowWork,
    /// Consensus learns late of what is done.
    SlowReports,
    /// Consensus handles its inbox in parts.
    PartialInbox,
    /// Outputs are taken between two inputs.
    FlushBetween,
    /// The log writer takes its queue in parts.
    PartialLogBatch,
    /// Limits of consensus are small.
    SmallLimits,
    /// Segments and memtables are small.
    SmallFiles,
    /// A client has several operations under way at a time.
    Lanes,
}

impl Feature {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Lost,
        Self::Doubled,
        Self::Late,
        Self::Delay,
        Self::OddLinks,
        Self::SlowWork,
        Self::SlowReports,
        Self::PartialInbox,
        Self::FlushBetween,
        Self::PartialLogBatch,
        Self::SmallLimits,
        Self::SmallFiles,
        Self::Lanes,
    ];
}

/// Numbers of decisions that are taken back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Withheld(BTreeSet<u32>);

impl Withheld {
    /// These.
    #[must_use]
    pub fn new(numbers: impl IntoIterator<Item = u32>) -> Self {
        Self(numbers.into_iter().collect())
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the run is as its seed says.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// With these as well.
    #[must_use]
    pub fn with(&self, numbers: &[u32]) -> Self {
        Self(self.0.iter().chain(numbers).copied().collect())
    }

    /// Whether this is taken back.
    #[must_use]
    pub fn feature(&self, feature: Feature) -> bool {
        self.0.contains(&feature_number(feature))
    }

    /// Whether this fault is taken back.
    #[must_use]
    pub fn fault(&self, number: u32) -> bool {
        self.0.contains(&fault_number(number))
    }

    /// Whether this operation is taken back.
    #[must_use]
    pub fn operation(&self, client: u32, number: u32) -> bool {
        self.0.contains(&operation_number(client, number))
    }
}

/// The number of a feature.
#[must_use]
pub const fn feature_number(feature: Feature) -> u32 {
    feature as u32
}

/// The number of a run's fault.
#[must_use]
pub const fn fault_number(number: u32) -> u32 {
    FAULTS_FROM + number
}

/// The number of a client's operation.
#[must_use]
pub const fn operation_number(client: u32, number: u32) -> u32 {
    OPERATIONS_FROM * (client + 1) + number
}

/// As ranges: `3,7,100-140`.
impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

impl FromStr for Withheld {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|error| format!("{text:?} is no decision's number: {error}"))
        };
        let mut numbers = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if last < first || last - first > OPERATIONS_FROM {
                return Err(format!("{part:?} is no range of decisions"));
            }
            numbers.extend(first..=last);
        }
        Ok(Self(numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_withheld_reads_back_as_it_prints() {
        for text in ["", "0", "3,7,100-140", "0-2,200000,200002-200009"] {
            let withheld: Withheld = text.parse().unwrap();
            assert_eq!(withheld.to_string(), text);
        }
        for text in ["x", "3-1", "1-4000000000", "1,,2x"] {
            assert!(text.parse::<Withheld>().is_err(), "{text} is read");
        }
    }

    #[test]
    fn no_two_decisions_share_a_number() {
        let mut numbers: Vec<u32> = Feature::ALL.into_iter().map(feature_number).collect();
        assert_eq!(numbers, (0..13).collect::<Vec<_>>(), "in the order of their numbers");
        numbers.extend([fault_number(0), fault_number(99_899), operation_number(0, 0)]);
        numbers.extend([operation_number(0, 99_999), operation_number(1, 0)]);
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }
}
