//! What is visible, under a model checker that knows the memory model: every schedule of one writer and one
//! reader, and everything a reader may see of the writer's stores.
//!
//! The cell's own source is compiled here once more, against the checker's atomics: it names no others (see
//! `src/sync.rs`).

#[path = "../src/store/visible.rs"]
mod visible;

/// What the cell shares with, here the checker's.
mod sync {
    pub(crate) mod atomic {
        pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
    }
}

mod types {
    pub(crate) use lsm_store::{MAX_EXTRA_BYTES, Position};
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use types::Position;
use visible::{Visible, VisibleCell};

/// What publish `n` makes visible: all of it says `n`.
fn publish(n: u64) -> Visible {
    let position = Position { index: n, term: n + 10, extra: n.to_le_bytes().to_vec() };
    Visible { position, sequences: vec![n, n + 100] }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn a_reader_sees_one_publish_whole_and_never_an_older_one_later() {
    check(|| {
        let cell = Arc::new(VisibleCell::new(&publish(0)));
        let writer = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                for n in 1..=2 {
                    let Visible { position, sequences } = publish(n);
                    cell.publish(&position, &sequences);
                }
            })
        };
        let first = cell.load();
        assert_eq!(first, publish(first.position.index), "of one publish");
        let second = cell.sequence(1);
        assert!(second >= first.sequence(1), "{second} after {}", first.sequence(1));
        writer.join().expect("no panic");
        assert_eq!(cell.load(), publish(2), "the last");
    });
}

#[test]
fn whoever_sees_a_number_sees_what_was_written_before_it_was_published() {
    check(|| {
        let cell = Arc::new(VisibleCell::new(&publish(0)));
        let memtable = Arc::new(AtomicU64::new(0));
        let writer = {
            let (cell, memtable) = (Arc::clone(&cell), Arc::clone(&memtable));
            thread::spawn(move || {
                for n in 1..=2 {
                    memtable.store(n, Ordering::Relaxed);
                    let Visible { position, sequences } = publish(n);
                    cell.publish(&position, &sequences);
                }
            })
        };
        let seen = cell.sequence(0);
        let found = memtable.load(Ordering::Relaxed);
        assert!(found >= seen, "number {seen} is visible, its write is not: {found}");
        let index = cell.index();
        assert!(index >= seen, "position {index} after number {seen}");
        writer.join().expect("no panic");
    });
}
