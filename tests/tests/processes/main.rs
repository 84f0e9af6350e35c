//! Four real processes: what a newcomer does by hand, done by a program.
//!
//! Every module is a story of operating the cluster. The processes are the programs themselves, built
//! together with these tests; see `tests::cluster` for how they are started and never left behind.

mod dev;
mod fixture;
mod founding_scenario;
mod import;
mod old_leader;
mod recovery;
mod refusals;
