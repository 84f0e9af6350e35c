//! The harness of the whole-cluster tests.

pub mod history;
pub mod linearizability;
