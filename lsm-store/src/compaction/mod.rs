//! Flushes and compactions: moving entries from memtables into level 0 and from level to level.
//!
//! What to do is chosen by pure functions ([`picker`]), what may be dropped by another ([`gc`]); both are
//! tested alone. [`merge`] executes: it reads every input entry, keeps or drops it, writes tables, and
//! checks that what it read equals what it wrote plus what it dropped, in count and in digest.
//!
//! Invariants:
//! 1. Any error of an input aborts the job and removes its outputs; nothing is skipped, nothing partly installed.
//! 2. The retention bound of a job is frozen when it starts.
//! 3. Outputs never split a user key over two tables.
//! 4. One compaction runs at a time; a flush may run beside it, since it only adds to level 0.

pub(crate) mod cut;
pub(crate) mod gc;
pub(crate) mod merge;
pub(crate) mod picker;
