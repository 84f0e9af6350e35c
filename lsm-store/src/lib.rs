//! The storage engine.

pub mod checksum;
pub mod coding;
pub mod error;
pub mod vfs;

pub use error::{Error, Result};
