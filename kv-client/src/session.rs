//! The client's session: the tag of each write that makes a retry of it harmless.
//!
//! A session is registered with the first write and shared by all clones of a client. Each write
//! takes the next sequence number and keeps it over all its attempts; the store applies a number
//! once and answers a repetition with the first answer. Each tag also carries the lowest number
//! whose answer this client still waits for, so that the store can forget the others.
//!
//! Invariants
//! 1. At most [`WINDOW`] consecutive numbers are in use: from the lowest outstanding to the newest.
//!    A write beyond waits, within its deadline.
//! 2. A number is given back exactly once: when its call has ended, whatever way, also by being
//!    dropped.
//! 3. `lowest unacknowledged` never falls within a session and never exceeds an outstanding number.
//!
//! Source: DESIGN.md 10.5; Raft dissertation §6.3.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use raft_rpc::SessionTag;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::error::Result;

/// Writes of one session outstanding at most; the store refuses numbers further apart.
pub(crate) const WINDOW: usize = 1024;

/// The session of a client and its clones.
#[derive(Debug)]
pub(crate) struct Sessions {
    /// Fair: writes get their turn in the order they came.
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    /// Woken when the lowest outstanding number rises.
    advanced: Notify,
    /// Held while a session is registered, so that concurrent first writes register one.
    registering: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Numbers>,
}

#[derive(Debug)]
struct Numbers {
    session: u64,
    next: u64,
    lowest: u64,
    /// For each number from `lowest` up to `next`: whether its call has ended.
    ended: VecDeque<bool>,
}

/// The right to one write, and its number. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Tag {
    sessions: Arc<Sessions>,
    session: u64,
    sequence: u64,
    /// The lowest outstanding number when this one was given.
    lowest: u64,
    _permit: OwnedSemaphorePermit,
}

impl Sessions {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(WINDOW)),
            state: Mutex::new(State::default()),
            advanced: Notify::new(),
            registering: tokio::sync::Mutex::new(()),
        })
    }

    /// A number for a write. Waits for its turn if the window is full; registers a session with
    /// `register` if there is none.
    ///
    /// # Errors
    /// What `register` returned.
    pub(crate) async fn tag<F>(self: &Arc<Self>, register: impl Fn() -> F) -> Result<Tag>
    where
        F: Future<Output = Result<u64>>,
    {
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            unreachable!("the semaphore is never closed: nothing calls close")
        };
        loop {
            // Made before looking, so that a rise between looking and waiting is not missed.
            let advanced = self.advanced.notified();
            match self.take_number() {
                Taken::Number { session, sequence, lowest } => {
                    let sessions = Arc::clone(self);
                    return Ok(Tag { sessions, session, sequence, lowest, _permit: permit });
                }
                Taken::WindowFull => advanced.await,
                Taken::NoSession => {
                    let registering = self.registering.lock().await;
                    if self.state.lock().current.is_none() {
                        let session = register().await?;
                        self.state.lock().current =
                            Some(Numbers { session, next: 1, lowest: 1, ended: VecDeque::new() });
                    }
                    drop(registering);
                }
            }
        }
    }

    fn take_number(&self) -> Taken {
        let mut state = self.state.lock();
        match &mut state.current {
            None => Taken::NoSession,
            Some(numbers) if numbers.ended.len() >= WINDOW => Taken::WindowFull,
            Some(numbers) => {
                let sequence = numbers.next;
                numbers.next += 1;
                numbers.ended.push_back(false);
                Taken::Number { session: numbers.session, sequence, lowest: numbers.lowest }
            }
        }
    }

    pub(crate) fn is_registered(&self) -> bool {
        self.state.lock().current.is_some()
    }

    /// The store does not know `session` any more: the next write registers another.
    pub(crate) fn forget(&self, session: u64) {
        let mut state = self.state.lock();
        if state.current.as_ref().is_some_and(|numbers| numbers.session == session) {
            state.current = None;
            drop(state);
            self.advanced.notify_waiters();
        }
    }

    fn give_back(&self, session: u64, sequence: u64) {
        let mut state = self.state.lock();
        let Some(numbers) = &mut state.current else { return };
        if numbers.session != session {
            return;
        }
        assert!(
            sequence >= numbers.lowest && sequence < numbers.next,
            "number {sequence} given back twice: outstanding are {} to {}",
            numbers.lowest,
            numbers.next
        );
        let place = usize::try_from(sequence - numbers.lowest).unwrap_or(usize::MAX);
        if let Some(ended) = numbers.ended.get_mut(place) {
            *ended = true;
        }
        let was_full = numbers.ended.len() >= WINDOW;
        let lowest = numbers.lowest;
        while numbers.ended.front() == Some(&true) {
            numbers.ended.pop_front();
            numbers.lowest += 1;
        }
        let risen = numbers.lowest > lowest;
        drop(state);
        if was_full && risen {
            self.advanced.notify_waiters();
        }
    }
}

enum Taken {
    Number { session: u64, sequence: u64, lowest: u64 },
    WindowFull,
    NoSession,
}

impl Tag {
    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// The tag as it is sent: with what is outstanding now.
    pub(crate) fn wire(&self) -> SessionTag {
        let state = self.sessions.state.lock();
        let lowest_unacknowledged = match &state.current {
            Some(numbers) if numbers.session == self.session => numbers.lowest,
            // The session was given up; what was outstanding then is not followed any more.
            Some(_) | None => self.lowest,
        };
        SessionTag { session: self.session, sequence: self.sequence, lowest_unacknowledged }
    }
}

impl Drop for Tag {
    fn drop(&mut self) {
        self.sessions.give_back(self.session, self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn register() -> std::future::Ready<Result<u64>> {
        std::future::ready(Ok(7))
    }

    fn take(sessions: &Arc<Sessions>) -> Option<Tag> {
        sessions.tag(register).now_or_never().map(|tag| tag.expect("registering succeeds"))
    }

    #[test]
    fn the_lowest_unacknowledged_rises_only_over_ended_calls() {
        let sessions = Sessions::new();
        let first = take(&sessions).expect("room");
        let second = take(&sessions).expect("room");
        let third = take(&sessions).expect("room");
        assert_eq!(third.wire(), SessionTag { session: 7, sequence: 3, lowest_unacknowledged: 1 });
        drop(second);
        assert_eq!(third.wire().lowest_unacknowledged, 1, "the first is outstanding");
        drop(first);
        assert_eq!(third.wire().lowest_unacknowledged, 3);
    }

    #[test]
    fn a_write_beyond_the_window_waits_until_the_oldest_has_ended() {
        let sessions = Sessions::new();
        let mut tags: Vec<Tag> = (0..WINDOW).map(|_| take(&sessions).expect("room")).collect();
        assert!(take(&sessions).is_none(), "the window is full");
        // Ending a later one gives a permit, but the numbers would be too far apart.
        drop(tags.pop());
        let mut waiting = Box::pin(sessions.tag(register));
        assert!(waiting.as_mut().now_or_never().is_none(), "the oldest holds the window");
        drop(tags.remove(0));
        let tag = waiting.now_or_never().expect("the window moved").expect("a tag");
        assert_eq!(tag.wire().sequence, WINDOW as u64 + 1);
        assert_eq!(tag.wire().lowest_unacknowledged, 2);
    }

    #[test]
    fn a_forgotten_session_is_replaced_once_and_its_numbers_end_quietly() {
        let sessions = Sessions::new();
        let old = take(&sessions).expect("room");
        sessions.forget(old.session());
        let registered = std::cell::Cell::new(0);
        let register_other = || {
            registered.set(registered.get() + 1);
            std::future::ready(Ok(8))
        };
        let new = sessions.tag(register_other).now_or_never().expect("at once").expect("a tag");
        assert_eq!((new.session(), new.wire().sequence), (8, 1));
        // A second report of the old session's end must not end the new one.
        sessions.forget(7);
        drop(old);
        let next = sessions.tag(register_other).now_or_never().expect("at once").expect("a tag");
        assert_eq!((next.session(), next.wire().sequence, registered.get()), (8, 2, 1));
    }
}
