//! A few cycles of the soak: a process with a store under load is killed, and what it left is examined.
//! The example `soak` does it for as long as it is told.

#[path = "../examples/soak/cycle.rs"]
mod cycle;

use std::path::Path;
use std::process::Command;

use cycle::{Soak, child};

/// Tells this program that it is the process to be killed: the store's directory and a seed.
const DIR: &str = "LSM_STORE_SOAK_CHILD_DIR";
const SEED: &str = "LSM_STORE_SOAK_CHILD_SEED";

/// Does nothing unless [`DIR`] is set.
#[test]
fn the_process_that_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let seed = std::env::var(SEED).expect("set with the directory").parse().expect("a number");
    child(Path::new(&dir), seed);
    unreachable!("ends by being killed");
}

#[test]
fn a_store_that_is_killed_under_load_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = std::env::current_exe().expect("this test");
    let start = |dir: &Path, seed: u64| {
        let mut command = Command::new(&program);
        command.args(["--exact", "the_process_that_is_killed", "--nocapture"]);
        command.env(DIR, dir).env(SEED, seed.to_string());
        command
    };
    let mut soak = Soak::new(dir.path().to_owned(), 1);
    for _ in 0..5 {
        println!("{}", soak.cycle(&start));
    }
    println!("{}", soak.summary());
    assert!(soak.batches() > 100, "there was a load: {}", soak.batches());
}
