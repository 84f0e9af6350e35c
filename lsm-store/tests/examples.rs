//! The examples do what they say: each is run, and its output compared.

#[path = "../examples/backup.rs"]
#[expect(dead_code, reason = "its `main` is for running it alone")]
mod backup;
#[path = "../examples/scans.rs"]
#[expect(dead_code, reason = "its `main` is for running it alone")]
mod scans;
#[path = "../examples/threads.rs"]
#[expect(dead_code, reason = "its `main` is for running it alone")]
mod threads;
#[path = "../examples/time_travel.rs"]
#[expect(dead_code, reason = "its `main` is for running it alone")]
mod time_travel;

use std::error::Error;
use std::path::Path;

fn check(run: impl FnOnce(&Path, &mut Vec<u8>) -> Result<(), Box<dyn Error>>, expected: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut out = Vec::new();
    run(&dir.path().join("example"), &mut out).expect("the example runs");
    let out = String::from_utf8(out).expect("the example writes text");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines, expected, "output of the example");
}

#[test]
fn time_travel_reads_every_version_and_refuses_what_is_below_the_floor() {
    check(
        time_travel::run,
        &[
            "milk in the view: 1.15",
            "milk in the store: gone",
            "at 1: bread 2.10 milk 1.05",
            "at 2: bread 2.20 milk 1.05",
            "at 3: bread 2.20 milk 1.15",
            "at 4: bread 2.20",
            "at 2 with the floor at 3: refused",
        ],
    );
}

#[test]
fn scans_go_both_ways_within_their_bounds() {
    check(
        scans::run,
        &["forward: 09 10 11", "backward: 11 10 09", "the last three before 21:30: 21 20 19"],
    );
}

#[test]
fn a_backup_keeps_what_the_store_changes() {
    check(
        |dir, out| {
            std::fs::create_dir(dir)?;
            backup::run(dir, out)
        },
        &[
            "the backup has everything up to write 1",
            "alice in the backup: 100",
            "alice in the store: 0",
            "the unused backup is there: false",
        ],
    );
}

#[test]
fn threads_share_syncs_and_lose_nothing() {
    check(threads::run, &["400 writes, the last has number 400", "400 orders after reopening"]);
}
