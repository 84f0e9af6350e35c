//! The tests of the core: transcripts of whole scenarios, the paper's rules, properties, and random
//! schedules under the invariants. All drive the public interface only.

mod cluster;
mod commit_delay;
mod failover;
mod invariants;
mod membership;
mod quarantine;
mod snapshots;
mod transcripts;
mod transfer;

mod paper;
mod properties;
