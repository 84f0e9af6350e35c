//! The harness of the whole-cluster tests.

pub mod cluster;
pub mod history;
pub mod linearizability;
pub mod model;
pub mod process;
pub mod sim;
pub mod workload;
