//! The entry to the state machine: [`Raft`].
//! (under construction in this commit: see the role modules)

use crate::{
    Config, Counters, Effects, Input, LogIndex, Micros, NodeId, Recovered, RoleKind, StartError,
    Status,
};

/// One node's consensus state machine.
#[derive(Debug)]
pub struct Raft {
    id: NodeId,
    config: Config,
    recovered: Recovered,
    now: Micros,
}

impl Raft {
    /// A follower, from what was found on disk. `seed` decides the random timeouts: give every node
    /// and every boot another.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn new(
        id: NodeId,
        config: Config,
        recovered: Recovered,
        _seed: u64,
        now: Micros,
    ) -> Result<Self, StartError> {
        config.validate()?;
        recovered.validate()?;
        Ok(Self { id, config, recovered, now })
    }

    /// Takes one input and marks the work that follows. Emits nothing.
    pub fn step(&mut self, now: Micros, input: Input) {
        self.now = self.now.max(now);
        drop(input);
    }

    /// Turns the marked work into the fewest effects.
    pub fn flush(&mut self, now: Micros, out: &mut Effects) {
        self.now = self.now.max(now);
        _ = out.len();
    }

    /// When [`Input::Timer`] is due.
    #[must_use]
    pub fn deadline(&self) -> Micros {
        self.now.after(self.config.election_min)
    }

    /// What can be seen from outside.
    #[must_use]
    pub fn status(&self) -> Status<'_> {
        let (membership_at, membership) = &self.recovered.memberships[0];
        Status {
            id: self.id,
            role: RoleKind::Follower,
            ballot: self.recovered.ballot,
            leader: None,
            last: self.recovered.last,
            durable: self.recovered.last.index,
            commit: self.recovered.commit_hint,
            applied: self.recovered.applied,
            membership,
            membership_at: *membership_at,
            unapplied_bytes: 0,
            tail_bytes: 0,
            waiting_reads: 0,
            gated_messages: 0,
            oldest_write_at: None,
            peers: alloc::vec::Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Checks what must hold between any two calls. For tests.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn check_invariants(&self) {
        assert!(self.recovered.applied >= LogIndex(0), "the applied index is a number");
    }
}
