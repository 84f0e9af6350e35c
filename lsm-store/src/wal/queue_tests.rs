//! What the queue does when a stage panics, on real threads. Its order and its waiting are tested under a model
//! checker (`tests/queue_model.rs`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::queue::{Answers, CommitQueue, Items, Stages};

/// The first item waits in the stage until it is told to panic.
struct Panicking {
    stage: &'static str,
    entered: mpsc::Sender<()>,
    go_on: parking_lot::Mutex<mpsc::Receiver<()>>,
    done: AtomicBool,
}

impl Panicking {
    fn at(&self, stage: &str) {
        if stage == self.stage && !self.done.swap(true, Ordering::SeqCst) {
            self.entered.send(()).expect("the test waits");
            self.go_on.lock().recv().expect("the test goes on");
            panic!("injected");
        }
    }
}

impl Stages for Panicking {
    type Item = u8;
    type Outcome = &'static str;
    type Logged = ();

    fn bytes(&self, _: &u8) -> usize {
        1
    }
    fn wants_sync(&self, _: &u8) -> bool {
        true
    }
    fn log(&self, _: Items<'_, u8, &'static str>) -> Result<(), Answers<&'static str>> {
        self.at("log");
        Ok(())
    }
    fn log_more(
        &self,
        (): &mut (),
        _: Items<'_, u8, &'static str>,
    ) -> Result<(), Answers<&'static str>> {
        Ok(())
    }
    fn sync(&self, (): &mut ()) {
        self.at("sync");
    }
    fn apply(&self, (): (), items: Items<'_, u8, &'static str>) -> Answers<&'static str> {
        self.at("apply");
        items.answer(|| "applied")
    }
    fn broken(&self) -> &'static str {
        "broken"
    }
}

#[test]
fn a_panic_in_any_stage_tells_everybody_and_ends_the_queue() {
    for stage in ["log", "sync", "apply"] {
        let (entered, has_entered) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let stages = Arc::new(Panicking {
            stage,
            entered,
            go_on: parking_lot::Mutex::new(may_go_on),
            done: AtomicBool::new(false),
        });
        let queue = Arc::new(CommitQueue::default());
        let (told, outcomes) = mpsc::channel();
        let spawn = |item: u8| {
            let (queue, stages, told) = (Arc::clone(&queue), Arc::clone(&stages), told.clone());
            std::thread::spawn(move || {
                let outcome = queue.commit(&*stages, item);
                told.send(outcome).expect("the test waits");
            })
        };
        let first = spawn(0);
        has_entered.recv().expect("the first is in the stage");
        let others: Vec<_> = (1..4).map(spawn).collect();
        go_on.send(()).expect("the first waits");
        assert!(first.join().is_err(), "{stage}: the panic is not hidden");
        for _ in 1..4 {
            let outcome = outcomes.recv_timeout(Duration::from_secs(60));
            assert_eq!(outcome, Ok("broken"), "{stage}: all who wait are told");
        }
        assert_eq!(queue.commit(&*stages, 9), "broken", "{stage}: so are all who come");
        others.into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
}
