//! The harness of the whole-cluster tests.
