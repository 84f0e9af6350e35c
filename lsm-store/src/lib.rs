//! The storage engine.

pub mod vfs;
