//! Known bugs of Raft implementations, to be put back one at a time: a test of the tests.
//!
//! Each names what others got wrong. With the feature `mutants` a test program chooses one at run time, by
//! `activate`, and the suite has to notice; without it no bug can be chosen, and the compiler removes the
//! places that ask. Only builds of their own have the feature:
//! `cargo run --release -p tests --bin simulate -- --mutants` makes one.
//!
//! A place that asks changes one expression and nothing else, so that the code reads as it runs.

/// A bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mutant {
    /// A leader commits entries of earlier terms by counting replicas (Raft §5.4.2, figure 8).
    CommitOfOlderTerm = 1,
    /// A majority of an even number of voters is half of them.
    HalfIsAQuorum,
    /// A vote leaves before it is on disk.
    VoteBeforeDurable,
    /// An acknowledgement leaves before the entries are on disk.
    AckBeforeDurable,
    /// Entries that are there already are cut off and appended again.
    TruncateAlways,
    /// A follower takes the leader's commit index for the log that it happens to have.
    CommitUnverifiedTail,
    /// What is committed is applied before it is on this node's disk.
    ApplyBeforeDurable,
    /// Any answer confirms a read, also one to a message sent before it.
    StaleEchoConfirmsReads,
    /// A window of which everything was lost is never asked about.
    WindowNotProbed,
    /// A new leader counts the entries it inherits as nothing.
    UnappliedForgottenAtElection,
    /// A trial vote is refused without telling the higher term.
    PreVoteHidesTerm,
    /// A write that is overwritten while it is under way makes its entries count as durable.
    OverwrittenWriteVouches,
}

#[cfg(feature = "mutants")]
mod chosen {
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::Mutant;

    /// The bug of this process; 0 is none.
    static ACTIVE: AtomicU8 = AtomicU8::new(0);

    impl Mutant {
        /// All of them.
        pub const ALL: [Self; 12] = [
            Self::CommitOfOlderTerm,
            Self::HalfIsAQuorum,
            Self::VoteBeforeDurable,
            Self::AckBeforeDurable,
            Self::TruncateAlways,
            Self::CommitUnverifiedTail,
            Self::ApplyBeforeDurable,
            Self::StaleEchoConfirmsReads,
            Self::WindowNotProbed,
            Self::UnappliedForgottenAtElection,
            Self::PreVoteHidesTerm,
            Self::OverwrittenWriteVouches,
        ];
    }

    /// Puts a bug into all nodes of this process, or takes it out again.
    pub fn activate(mutant: Option<Mutant>) {
        ACTIVE.store(mutant.map_or(0, |mutant| mutant as u8), Ordering::SeqCst);
    }

    /// Whether this bug is in.
    pub(crate) fn is_active(mutant: Mutant) -> bool {
        ACTIVE.load(Ordering::Relaxed) == mutant as u8
    }
}

#[cfg(feature = "mutants")]
pub use chosen::activate;
#[cfg(feature = "mutants")]
pub(crate) use chosen::is_active;

/// Whether this bug is in: never.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn is_active(_: Mutant) -> bool {
    false
}
