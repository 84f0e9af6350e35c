//! [`Consensus`]: raft-core and the callers who wait for it.

use raft_core::Micros;

use crate::replica::{ConsensusInput, Outputs, ReplicaStatus};

/// The consensus core of one node with everyone who waits for it. Owned by one thread.
#[derive(Debug)]
pub struct Consensus<W> {
    waiting: Vec<W>,
}

impl<W> Consensus<W> {
    /// Takes one input and marks the work that follows. Emits nothing, except that it never blocks.
    ///
    /// `now` never goes back. Feed everything that is queued, then [`ConsensusInput::Timer`] if
    /// [`Consensus::deadline`] has passed, then call [`Consensus::flush`].
    pub fn handle(&mut self, now: Micros, input: ConsensusInput<W>) {
        todo!("{now:?} {}", matches!(input, ConsensusInput::Timer))
    }

    /// Turns the marked work into the fewest outputs, appended to `out`.
    pub fn flush(&mut self, now: Micros, out: &mut Outputs<W>) {
        todo!("{now:?} {}", out.is_empty())
    }

    /// When [`ConsensusInput::Timer`] is due.
    #[must_use]
    pub fn deadline(&self) -> Micros {
        todo!("{}", self.waiting.len())
    }

    /// What can be seen from outside.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        todo!("{}", self.waiting.len())
    }
}
