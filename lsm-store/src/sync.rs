//! The primitives under the parts that many threads share: the commit queue and what is visible.
//!
//! Those two files name nothing else to wait or to share with, so that the tests compile the very same
//! source against model checkers instead (`tests/queue_model.rs`, `tests/visible_model.rs`).

pub(crate) use parking_lot::Mutex;

pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
}

pub(crate) mod thread {
    pub(crate) use std::thread::{Thread, current, park, yield_now};
}
