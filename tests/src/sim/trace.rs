//! What happened, in order: a hash over every event, and the last lines as text.
//!
//! The hash is what tells two runs apart (invariant I25: the same seed gives the same hash). Lines are
//! made only when someone will read them: a run that failed is repeated with lines on.

use std::collections::VecDeque;

/// How many lines are kept.
const LINES_MAX: usize = 60;

/// The trace of a run.
#[derive(Clone, Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    lines: Option<VecDeque<String>>,
    print: bool,
}

impl Trace {
    /// An empty trace; with `lines`, the last lines are kept; with `print`, every line is printed.
    #[must_use]
    pub fn new(lines: bool, print: bool) -> Self {
        Self { hash: 0x9E37_79B9_7F4A_7C15, events: 0, lines: lines.then(VecDeque::new), print }
    }

    /// One thing happened: `parts` are mixed into the hash.
    pub fn event(&mut self, parts: &[u64]) {
        self.events += 1;
        for &part in parts {
            self.hash = mix(self.hash, part);
        }
    }

    /// A line about it, made only if it is kept.
    pub fn line(&mut self, now: u64, line: impl FnOnce() -> String) {
        let Some(lines) = &mut self.lines else { return };
        let line = format!("{:>10.6} {}", seconds(now), line());
        if self.print {
            print_line(&line);
        }
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The hash over everything so far.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        self.lines.iter().flatten().cloned().collect()
    }
}

/// Microseconds as seconds, for people.
#[expect(clippy::cast_precision_loss, reason = "shown with six digits; a run lasts minutes")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1_000_000.0
}

fn print_line(line: &str) {
    use std::io::Write as _;
    // Whoever reads the trace may stop reading; the run goes on.
    if writeln!(std::io::stdout(), "{line}").is_err() {}
}

/// One step of a 64-bit hash: cheap, and every bit of `part` reaches every bit of the result.
#[must_use]
pub const fn mix(hash: u64, part: u64) -> u64 {
    let mut mixed = (hash ^ part).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^= mixed >> 29;
    mixed = mixed.wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 32)
}

/// A hash over bytes.
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = mix(0x5851_F42D_4C95_7F2D, bytes.len() as u64);
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash, u64::from_le_bytes(last))
}
