//! The manifest: which tables make up the store, and what they hold everything up to.
//!
//! ```text
//! CURRENT.<iteration>.<n>   an empty file; the highest iteration names the manifest in force
//! MANIFEST-<n>              header | snapshot parts | snapshot end | edit | edit | …
//! ```
//!
//! * [`mod@edit`]: one atomic change, as bytes. * [`mod@state`]: what all edits together amount to.
//! * [`mod@file`]: the file, its header, reading and appending. * [`mod@current`]: markers and switching.
//! * [`mod@version`]: the open tables, level by level, as readers see them; [`mod@edited`]: the next one.
//!
//! Invariants:
//! 1. A manifest begins with the complete state; it is written, synced, and its directory entry synced,
//!    before a marker names it. Markers have no content that could be torn.
//! 2. Every edit is synced before anything follows from it, and each record promises that what is before
//!    it is durable: damage before the last record is corruption, never a torn tail.
//! 3. An edit that may or may not have reached the disk is settled by writing a new manifest.

pub(crate) mod current;
pub(crate) mod edit;
pub(crate) mod edited;
pub(crate) mod file;
pub(crate) mod state;
pub(crate) mod version;
