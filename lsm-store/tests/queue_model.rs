//! The commit queue under a model checker: many schedules of a few writers, each the whole test.
//!
//! The queue's own source is compiled here once more, against the checker's mutex and threads: it names no
//! others (see `src/sync.rs`). That needs neither a build flag for all dependencies nor type parameters that only
//! a test would use. `LSM_STORE_SCHEDULES` runs more schedules; a failed one is printed and replayed with
//! `shuttle::replay`.

#[path = "../src/wal/queue.rs"]
mod queue;

/// What the queue waits and shares with, here the checker's.
mod sync {
    use std::sync::PoisonError;

    pub(crate) use shuttle::sync::MutexGuard;

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    pub(crate) mod thread {
        pub(crate) use shuttle::thread::{Thread, current, park, yield_now};
    }
}

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use queue::{Answers, CommitQueue, Items, Stages};
use shuttle::thread;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    id: usize,
    sync: bool,
    /// The log has no room for it.
    refused: bool,
}

/// Where an item is in the log, or that it was refused.
type Outcome = Option<usize>;

/// A log that knows what it promised. Only the queue keeps its stages apart; each looks whether it does.
#[derive(Debug, Default)]
struct Model {
    log: parking_lot::Mutex<Vec<Item>>,
    synced: AtomicUsize,
    applied: AtomicUsize,
    in_log: AtomicBool,
    in_sync: AtomicBool,
    in_apply: AtomicBool,
    /// A sync ends only once so many items are applied.
    sync_ends_at: usize,
    syncs: AtomicUsize,
}

/// Stays in a stage for a while, alone.
fn alone<T>(stage: &AtomicBool, name: &str, work: impl FnOnce() -> T) -> T {
    assert!(!stage.swap(true, SeqCst), "two at once {name}");
    thread::yield_now();
    let done = work();
    thread::yield_now();
    stage.store(false, SeqCst);
    done
}

impl Model {
    fn append(&self, items: &Items<'_, Item, Outcome>) -> Result<usize, Answers<Outcome>> {
        alone(&self.in_log, "log", || {
            if items.iter().any(|item| item.refused) {
                return Err(items.answer(|| None));
            }
            let mut log = self.log.lock();
            let first = log.len();
            log.extend(items.iter());
            Ok(first)
        })
    }
}

impl Stages for Model {
    type Item = Item;
    type Outcome = Outcome;
    /// The first item's place, and how many there are.
    type Logged = (usize, usize);

    fn bytes(&self, _: &Item) -> usize {
        60 << 10
    }

    fn wants_sync(&self, item: &Item) -> bool {
        item.sync
    }

    fn log(&self, items: Items<'_, Item, Outcome>) -> Result<(usize, usize), Answers<Outcome>> {
        self.append(&items).map(|first| (first, items.iter().count()))
    }

    fn log_more(
        &self,
        logged: &mut (usize, usize),
        items: Items<'_, Item, Outcome>,
    ) -> Result<(), Answers<Outcome>> {
        let first = self.append(&items)?;
        assert_eq!(first, logged.0 + logged.1, "nobody logged in between");
        logged.1 += items.iter().count();
        Ok(())
    }

    fn sync(&self, logged: &mut (usize, usize)) {
        alone(&self.in_sync, "sync", || {
            let end = self.log.lock().len();
            assert!(end >= logged.0 + logged.1, "what is synced was logged");
            let mut turns = 0;
            while self.applied.load(SeqCst) < self.sync_ends_at {
                turns += 1;
                assert!(turns < 10_000, "somebody waits for a sync that is none of theirs");
                thread::yield_now();
            }
            self.synced.store(end, SeqCst);
            self.syncs.fetch_add(1, SeqCst);
        });
    }

    fn apply(&self, logged: (usize, usize), items: Items<'_, Item, Outcome>) -> Answers<Outcome> {
        alone(&self.in_apply, "apply", || {
            let (first, count) = logged;
            assert_eq!(self.applied.load(SeqCst), first, "in the order of the log");
            assert_eq!(items.iter().count(), count, "all that were logged");
            let log = self.log.lock().clone();
            for (place, item) in (first..).zip(items.iter()) {
                assert_eq!(log.get(place), Some(item), "each at its place");
                assert!(!item.sync || self.synced.load(SeqCst) > place, "{item:?} is not synced");
            }
            self.applied.store(first + count, SeqCst);
            let mut place = first..;
            items.answer(|| place.next())
        })
    }

    fn broken(&self) -> Outcome {
        unreachable!("no stage panics")
    }
}

fn schedules() -> usize {
    let asked = std::env::var("LSM_STORE_SCHEDULES");
    asked.ok().and_then(|count| count.parse().ok()).unwrap_or(10_000)
}

/// Commits an item and checks what the writer was told.
fn commit(queue: &CommitQueue<Item, Outcome>, model: &Model, item: Item) {
    let outcome = queue.commit(model, item);
    let Some(place) = outcome else {
        // Refused with somebody who was: it is not in the log.
        assert!(!model.log.lock().contains(&item), "{item:?} was refused but logged");
        return;
    };
    assert_eq!(model.log.lock().get(place), Some(&item), "{item:?} is where it was told");
    assert!(model.applied.load(SeqCst) > place, "{item:?} was told before it was applied");
    assert!(!item.sync || model.synced.load(SeqCst) > place, "{item:?} was told before its sync");
}

/// Each writer commits some items, given by whether they want a sync.
fn write_all(writers: &'static [&'static [bool]], refused: Option<usize>) {
    let queue = Arc::new(CommitQueue::default());
    let model = Arc::new(Model::default());
    let mut next = 0;
    let threads: Vec<_> = writers
        .iter()
        .map(|items| {
            let (queue, model) = (Arc::clone(&queue), Arc::clone(&model));
            let first = next;
            next += items.len();
            thread::spawn(move || {
                for (id, sync) in (first..).zip(*items) {
                    let refused = refused == Some(id);
                    commit(&queue, &model, Item { id, sync: *sync, refused });
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a writer ends well");
    }
    let log = model.log.lock();
    assert_eq!(model.applied.load(SeqCst), log.len(), "all that was logged is applied");
    assert!(refused.is_some() || log.len() == next, "all were logged");
    let syncs = log.iter().filter(|item| item.sync).count();
    assert!(model.syncs.load(SeqCst) <= syncs, "no sync without need");
}

#[test]
fn synced_writers_get_one_order_and_what_they_asked_for() {
    shuttle::check_random(
        || write_all(&[&[true, true], &[true, true], &[true, true]], None),
        schedules(),
    );
}

#[test]
fn buffered_and_synced_writers_get_one_order_and_what_they_asked_for() {
    shuttle::check_random(
        || write_all(&[&[true, false], &[false, true, false], &[false, false]], None),
        schedules(),
    );
    shuttle::check_pct(
        || write_all(&[&[true, false], &[false, true], &[false, false], &[true]], None),
        schedules(),
        3,
    );
}

#[test]
fn what_the_log_refuses_holds_up_nobody() {
    shuttle::check_random(
        || write_all(&[&[true, true], &[false, true], &[true, false]], Some(2)),
        schedules(),
    );
}

#[test]
fn a_buffered_write_does_not_wait_for_the_sync_of_one_behind_it() {
    shuttle::check_random(
        || {
            let queue = Arc::new(CommitQueue::default());
            // The sync ends only after both buffered items are applied: if they wait for it, nobody goes on.
            let model = Arc::new(Model { sync_ends_at: 2, ..Model::default() });
            let item = |id, sync| Item { id, sync, refused: false };
            let spawn = |item| {
                let (queue, model) = (Arc::clone(&queue), Arc::clone(&model));
                thread::spawn(move || commit(&queue, &model, item))
            };
            let first = spawn(item(0, false));
            let second = spawn(item(1, false));
            while model.log.lock().len() < 2 {
                thread::yield_now();
            }
            let last = spawn(item(2, true));
            for thread in [first, second, last] {
                thread.join().expect("a writer ends well");
            }
        },
        schedules(),
    );
}
