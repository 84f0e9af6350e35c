//! Flushes and compactions: moving entries from memtables into level 0 and from level to level.
//!
//! What to do is chosen by pure functions from the [`shape`] of a partition ([`picker`], [`manual`]), what
//! may be dropped by another ([`gc`]), where outputs end by a third ([`cut`]); they are tested alone and,
//! in a partition in miniature, together. [`merge`] executes: it reads every input entry, keeps or drops
//! it, writes tables, and checks that what it read equals what it wrote plus what it dropped, in count and
//! in digest.
//!
//! Invariants:
//! 1. Any error of an input aborts the job and removes its outputs; nothing is skipped, nothing partly installed.
//! 2. The retention bound of a job is frozen when it starts.
//! 3. Outputs never split a user key over two tables.
//! 4. Jobs that run beside each other share no table and write no overlapping ranges into one level
//!    ([`claims`]); a flush may run beside them all, since it only adds to level 0.

pub(crate) mod claims;
pub(crate) mod cut;
pub(crate) mod gc;
pub(crate) mod manual;
pub(crate) mod merge;
pub(crate) mod picker;
pub(crate) mod shape;
#[cfg(test)]
mod tests;
