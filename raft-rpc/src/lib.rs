//! What the nodes and the clients of the store say to each other.

mod error;
mod kv;
mod peer;

pub use error::*;
pub use kv::*;
pub use peer::*;
