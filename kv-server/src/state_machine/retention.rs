//! How much history is kept: a pure function of the state, so that all nodes refuse the same reads.

use crate::state_machine::FIRST_REVISION;

/// At least this many revisions can be read.
pub const HISTORY_REVISIONS: u64 = 100_000;

/// The floor rises in steps of this size: each step is one durable note in the engine.
pub const FLOOR_STEP: u64 = 10_000;

/// The oldest revision that can be read when the store is at `revision`.
#[must_use]
pub const fn floor(revision: u64) -> u64 {
    let floor = revision.saturating_sub(HISTORY_REVISIONS) / FLOOR_STEP * FLOOR_STEP;
    if floor < FIRST_REVISION { FIRST_REVISION } else { floor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_rises_in_steps_and_always_keeps_the_last_100_000_revisions() {
        assert_eq!(floor(1), 1, "a fresh store");
        assert_eq!(floor(109_999), 1, "before the first step");
        assert_eq!(floor(110_000), 10_000, "at the first step");
        assert_eq!(floor(119_999), 10_000, "before the second step");
        for revision in (1..2_000_000).step_by(997) {
            assert!(
                floor(revision) <= revision.saturating_sub(HISTORY_REVISIONS).max(1),
                "revision {revision} keeps too little"
            );
            assert!(
                revision - floor(revision) < HISTORY_REVISIONS + FLOOR_STEP,
                "revision {revision} keeps too much"
            );
        }
    }
}
