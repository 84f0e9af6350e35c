//! How a node ends: asked to, or because it cannot go on.

use std::{sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::replica::ReplicaFailure;

/// Why a node stopped by itself. One line; the program's exit code is 3.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServerFailure {
    /// Disk, storage or consensus.
    #[error(transparent)]
    Replica(#[from] ReplicaFailure),
    /// A bug: one of the node's threads ended by a panic. Its message was printed where it happened.
    #[error("thread {name} panicked: this is a bug; the node stopped to keep its data safe")]
    Thread {
        /// Which.
        name: &'static str,
    },
}

/// The life of a node, as its threads, tasks and owner see it.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    /// `true` once the network shall wind down.
    stopping: watch::Sender<bool>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    failure: Option<ServerFailure>,
    threads: usize,
}

impl Lifecycle {
    /// Running.
    pub(crate) fn new() -> Arc<Self> {
        let (stopping, _receiver) = watch::channel(false);
        let state = Mutex::new(State::default());
        Arc::new(Self { stopping, state, changed: Condvar::new() })
    }

    /// Asks for the end.
    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// The node cannot go on. Only the first reason counts.
    pub(crate) fn fail(&self, failure: ServerFailure) {
        let mut state = self.state.lock();
        if state.failure.is_none() {
            tracing::error!(reason = %failure, "the node stops");
            state.failure = Some(failure);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Why the node failed, if it did.
    pub(crate) fn failure(&self) -> Option<ServerFailure> {
        self.state.lock().failure.clone()
    }

    /// Waits until the node is asked to stop or fails.
    pub(crate) fn wait_for_end(&self) {
        let mut state = self.state.lock();
        while !state.stop && state.failure.is_none() {
            self.changed.wait(&mut state);
        }
    }

    /// Tells the network to wind down.
    pub(crate) fn wind_down(&self) {
        self.stopping.send_replace(true);
    }

    /// Done once the network shall wind down.
    pub(crate) async fn winding_down(&self) {
        let mut stopping = self.stopping.subscribe();
        // An error would mean that the sender is gone, and `self` holds it.
        drop(stopping.wait_for(|stopping| *stopping).await);
    }

    /// Spawns a thread whose end is counted and whose panic is a failure.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &'static str,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        self.state.lock().threads += 1;
        let guard = Guard { lifecycle: Arc::clone(self), name };
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _guard = guard;
            body();
        });
        spawned.map(drop)
    }

    /// Waits until every spawned thread has ended; `false` if some did not in time.
    pub(crate) fn join(&self, patience: Duration) -> bool {
        let deadline = std::time::Instant::now() + patience;
        let mut state = self.state.lock();
        while state.threads > 0 {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return state.threads == 0;
            }
        }
        true
    }
}

/// Counts a thread out, however it ends; also when it could not be spawned.
struct Guard {
    lifecycle: Arc<Lifecycle>,
    name: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.lifecycle.state.lock().threads -= 1;
        if std::thread::panicking() {
            self.lifecycle.fail(ServerFailure::Thread { name: self.name });
        }
        self.lifecycle.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_thread_is_a_failure_and_the_first_failure_counts() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("kv-test", || panic!("on purpose")).expect("spawned");
        lifecycle.wait_for_end();
        lifecycle.fail(ServerFailure::Thread { name: "second" });
        assert_eq!(lifecycle.failure(), Some(ServerFailure::Thread { name: "kv-test" }));
        assert!(lifecycle.join(Duration::from_secs(60)), "it is counted out");
    }
}
