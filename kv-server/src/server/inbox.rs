//! The queue in front of a thread: bounded, and emptied whole at every wake-up.
//!
//! A channel hands over item by item and spins before it sleeps; with four nodes on two cores both show.
//! This one is a list under a lock: the consumer takes the whole list with one lock, and a producer wakes
//! it only if it sleeps.
//!
//! Two kinds of producers:
//! * [`Inbox::offer`]: clients and peers. Each class has its own limit in items and bytes; beyond it the
//!   item comes back, and the producer says "overloaded" or drops it.
//! * [`Inbox::push`]: the node's own threads. Always taken, so that two threads never wait for each
//!   other; how many can be under way is bounded by what consensus hands out (windows, unapplied bytes,
//!   one notice per job).
//!
//! Threads: any number of producers, one consumer. The lock is never held across anything that waits.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Who offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// Clients' requests, of this node's or handed over by another.
    Client,
    /// Messages of peers.
    Peer,
}

/// What an offer weighs, or how much of a class may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Load {
    /// Requests or messages.
    pub items: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Load {
    /// No limit: for inboxes that are only pushed to.
    pub(crate) const NONE: Self = Self { items: usize::MAX, bytes: usize::MAX };

    const fn plus(self, other: Self) -> Self {
        Self {
            items: self.items.saturating_add(other.items),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    const fn exceeds(self, limit: Self) -> bool {
        self.items > limit.items || self.bytes > limit.bytes
    }
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Taken {
    /// There was something, or the time came.
    Open,
    /// Nothing is left and nothing more will come.
    Closed,
}

/// A bounded queue with one consumer.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    clients_max: Load,
    peers_max: Load,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    clients: Load,
    peers: Load,
    sleeping: bool,
    closed: bool,
}

impl<T> Inbox<T> {
    /// An inbox that takes offers up to these limits. An offer that is larger than a limit is taken if
    /// nothing else of its class waits.
    pub(crate) const fn new(clients_max: Load, peers_max: Load) -> Self {
        Self {
            state: Mutex::new(State {
                items: Vec::new(),
                clients: Load { items: 0, bytes: 0 },
                peers: Load { items: 0, bytes: 0 },
                sleeping: false,
                closed: false,
            }),
            ready: Condvar::new(),
            clients_max,
            peers_max,
        }
    }

    /// Hands an item over if there is room.
    ///
    /// # Errors
    /// The item itself if its class is full or the inbox is closed.
    pub(crate) fn offer(&self, class: Class, load: Load, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        let (waiting, limit) = match class {
            Class::Client => (&mut state.clients, self.clients_max),
            Class::Peer => (&mut state.peers, self.peers_max),
        };
        let next = waiting.plus(load);
        if waiting.items > 0 && next.exceeds(limit) {
            return Err(item);
        }
        if state.closed {
            return Err(item);
        }
        match class {
            Class::Client => state.clients = next,
            Class::Peer => state.peers = next,
        }
        state.items.push(item);
        let wake = std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Hands an item of the node itself over. After [`Inbox::close`] it is dropped.
    pub(crate) fn push(&self, item: T) {
        self.push_all(std::iter::once(item));
    }

    /// Hands over an item that the consumer needs only when it is at work anyway: it lies there until
    /// something else comes, a second one included.
    pub(crate) fn push_lazily(&self, item: T) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let alone = state.items.is_empty();
        state.items.push(item);
        let wake = !alone && std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
    }

    /// Hands items of the node itself over, with one wake-up.
    pub(crate) fn push_all(&self, items: impl IntoIterator<Item = T>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let before = state.items.len();
        state.items.extend(items);
        let wake = state.items.len() > before && std::mem::take(&mut state.sleeping);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
    }

    /// Moves everything that waits into `into`, which is empty; if nothing does, sleeps until something
    /// comes or `until` has come.
    pub(crate) fn take(&self, into: &mut Vec<T>, until: Option<Instant>) -> Taken {
        let mut state = self.state.lock();
        while state.items.is_empty() {
            if state.closed {
                return Taken::Closed;
            }
            state.sleeping = true;
            let late = match until {
                Some(until) => self.ready.wait_until(&mut state, until).timed_out(),
                None => {
                    self.ready.wait(&mut state);
                    false
                }
            };
            state.sleeping = false;
            if late {
                break;
            }
        }
        std::mem::swap(&mut state.items, into);
        (state.clients, state.peers) = (Load::default(), Load::default());
        Taken::Open
    }

    /// Takes no more; what waits is still taken by the consumer.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.ready.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    const SMALL: Load = Load { items: 4, bytes: 100 };

    fn load(items: usize, bytes: usize) -> Load {
        Load { items, bytes }
    }

    #[test]
    fn an_offer_beyond_the_limit_comes_back_and_pushes_are_always_taken() {
        let inbox = Inbox::new(SMALL, SMALL);
        assert_eq!(inbox.offer(Class::Client, load(3, 10), "a"), Ok(()));
        assert_eq!(inbox.offer(Class::Client, load(2, 10), "items"), Err("items"));
        assert_eq!(inbox.offer(Class::Client, load(1, 91), "bytes"), Err("bytes"));
        assert_eq!(inbox.offer(Class::Peer, load(4, 100), "b"), Ok(()), "classes are apart");
        inbox.push("c");
        let mut taken = Vec::new();
        assert_eq!(inbox.take(&mut taken, None), Taken::Open);
        assert_eq!(taken, ["a", "b", "c"], "everything at once, in order");
        taken.clear();
        assert_eq!(inbox.offer(Class::Client, load(9, 999), "large"), Ok(()), "alone it is taken");
    }

    #[test]
    fn a_lazy_item_wakes_nobody_and_is_there_with_the_next() {
        let inbox = Arc::new(Inbox::<u32>::new(SMALL, SMALL));
        let consumer = {
            let inbox = Arc::clone(&inbox);
            std::thread::spawn(move || {
                let mut taken = Vec::new();
                let far = Instant::now() + Duration::from_secs(60);
                assert_eq!(inbox.take(&mut taken, Some(far)), Taken::Open);
                taken
            })
        };
        while !inbox.state.lock().sleeping {
            std::thread::yield_now();
        }
        inbox.push_lazily(1);
        assert!(inbox.state.lock().sleeping, "one lazy item leaves the consumer asleep");
        inbox.push_lazily(2);
        assert_eq!(consumer.join().expect("no panic"), [1, 2], "a second one wakes it");
    }

    #[test]
    fn the_time_ends_a_wait_and_so_does_closing() {
        let inbox = Arc::new(Inbox::<u32>::new(SMALL, SMALL));
        let mut taken = Vec::new();
        assert_eq!(inbox.take(&mut taken, Some(Instant::now())), Taken::Open);
        assert!(taken.is_empty(), "{taken:?}");
        let consumer = {
            let inbox = Arc::clone(&inbox);
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let mut taken = Vec::new();
                while inbox.take(&mut taken, Some(Instant::now() + Duration::from_secs(60)))
                    == Taken::Open
                {
                    all.append(&mut taken);
                }
                all
            })
        };
        for item in 0..1_000 {
            inbox.push(item);
        }
        inbox.close();
        inbox.push(1_000);
        assert_eq!(inbox.offer(Class::Client, load(1, 1), 7), Err(7), "closed");
        let all = consumer.join().expect("no panic");
        assert_eq!(all, (0..1_000).collect::<Vec<_>>(), "nothing is lost before the close");
    }
}
