//! Callers who wait: one [`Batch`] per call, one slot per request in it, one wake-up when the last is filled.
//!
//! A one-shot channel per request would cost an allocation and a wake-up each. Here a slot is a counted
//! reference and a number, and the calling task is woken once.
//!
//! Invariants
//! 1. A slot is filled exactly once: by [`Slot::fill`], or, if it is dropped on the way, with the truth
//!    about that: a write may or may not take effect.
//! 2. Whoever fills slots never waits.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
    time::Instant,
};

use parking_lot::Mutex;
use raft_rpc::{GetRequest, RangeRequest, WireError};

use crate::replica::Answer;

/// The answers of one call.
#[derive(Debug)]
pub(crate) struct Batch {
    node: u64,
    state: Mutex<BatchState>,
}

#[derive(Debug)]
struct BatchState {
    answers: Vec<Option<Answer>>,
    missing: usize,
    waker: Option<Waker>,
}

impl Batch {
    /// A call of `size` requests to `node`.
    pub(crate) fn new(node: u64, size: usize) -> Arc<Self> {
        let answers = std::iter::repeat_with(|| None).take(size).collect();
        let state = BatchState { answers, missing: size, waker: None };
        Arc::new(Self { node, state: Mutex::new(state) })
    }

    /// The place of request `index` in this call. Take each once.
    pub(crate) fn slot(self: &Arc<Self>, index: usize) -> Slot {
        Slot { batch: Some(Arc::clone(self)), index }
    }

    /// Waits until every slot is filled or the time has come; `None` stands for what is not filled.
    pub(crate) async fn wait_until(&self, deadline: Instant) -> Vec<Option<Answer>> {
        let filled = poll_fn(|cx| {
            let mut state = self.state.lock();
            if state.missing == 0 {
                return Poll::Ready(());
            }
            match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => state.waker = Some(cx.waker().clone()),
            }
            Poll::Pending
        });
        let deadline = tokio::time::Instant::from_std(deadline);
        // Too late or not, what is there is taken.
        drop(tokio::time::timeout_at(deadline, filled).await);
        std::mem::take(&mut self.state.lock().answers)
    }

    fn fill(&self, index: usize, answer: Answer) {
        let mut state = self.state.lock();
        // After a time-out nobody looks any more, and the list is empty.
        if let Some(slot) = state.answers.get_mut(index) {
            assert!(slot.is_none(), "request {index} of a call was answered twice");
            *slot = Some(answer);
        }
        state.missing = state.missing.saturating_sub(1);
        if state.missing == 0
            && let Some(waker) = state.waker.take()
        {
            drop(state);
            waker.wake();
        }
    }
}

/// The place where one answer goes.
#[derive(Debug)]
pub(crate) struct Slot {
    batch: Option<Arc<Batch>>,
    index: usize,
}

impl Slot {
    /// Answers the caller.
    pub(crate) fn fill(mut self, answer: Answer) {
        if let Some(batch) = self.batch.take() {
            batch.fill(self.index, answer);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            let reason = "the node stopped while the write was under way".to_owned();
            batch.fill(self.index, Err(WireError::OutcomeUnknown { node: batch.node, reason }));
        }
    }
}

/// A read of either kind.
#[derive(Clone, Debug)]
pub(crate) enum ReadRequest {
    /// One key.
    Get(GetRequest),
    /// A range.
    Range(RangeRequest),
}

/// The reads of one call that need the same freshness; they travel together.
#[derive(Debug)]
pub(crate) struct ReadJob {
    batch: Arc<Batch>,
    requests: Vec<(usize, ReadRequest)>,
    deadline: Instant,
}

impl ReadJob {
    /// The reads of `batch` with their slots' numbers; after `deadline` nobody waits for them.
    pub(crate) const fn new(
        batch: Arc<Batch>,
        requests: Vec<(usize, ReadRequest)>,
        deadline: Instant,
    ) -> Self {
        Self { batch, requests, deadline }
    }

    /// How many.
    pub(crate) const fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        now >= self.deadline
    }

    /// Answers each with what `read` says.
    pub(crate) fn answer(mut self, mut read: impl FnMut(ReadRequest) -> Answer) {
        for (index, request) in std::mem::take(&mut self.requests) {
            self.batch.fill(index, read(request));
        }
    }

    /// Answers all with the same error.
    pub(crate) fn refuse(self, error: &WireError) {
        self.answer(|_request| Err(error.clone()));
    }
}

impl Drop for ReadJob {
    fn drop(&mut self) {
        let node = self.batch.node;
        for (index, _request) in std::mem::take(&mut self.requests) {
            self.batch.fill(index, Err(WireError::ShuttingDown { node }));
        }
    }
}

/// Who waits for the replica: what [`Consensus`](crate::replica::Consensus) and
/// [`Applier`](crate::replica::Applier) carry.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// For a write.
    Write(Slot),
    /// For a read index.
    Read(ReadJob),
}

impl Waiter {
    /// Passes the replica's answer on.
    pub(crate) fn answer(self, answer: Answer) {
        match (self, answer) {
            (Self::Write(slot), answer) => slot.fill(answer),
            (Self::Read(job), Err(error)) => job.refuse(&error),
            (Self::Read(job), Ok(answer)) => job.answer(|_request| Ok(answer.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use raft_rpc::Response;

    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(future)
    }

    fn written(revision: u64) -> Answer {
        Ok(Response::Written { revision, previous: None })
    }

    #[test]
    fn a_call_ends_with_its_last_answer_and_a_dropped_write_is_unknown() {
        let batch = Batch::new(3, 3);
        let slots: Vec<Slot> = (0..3).map(|index| batch.slot(index)).collect();
        let filler = std::thread::spawn(move || {
            for (index, slot) in slots.into_iter().enumerate() {
                match index {
                    1 => drop(slot),
                    _ => slot.fill(written(index as u64)),
                }
            }
        });
        let answers = block_on(batch.wait_until(Instant::now() + Duration::from_secs(60)));
        filler.join().expect("no panic");
        assert_eq!(answers[0], Some(written(0)));
        assert!(matches!(answers[1], Some(Err(WireError::OutcomeUnknown { node: 3, .. }))));
        assert_eq!(answers[2], Some(written(2)));
    }

    #[test]
    fn what_is_late_is_none_and_a_later_answer_does_no_harm() {
        let batch = Batch::new(3, 2);
        batch.slot(0).fill(written(1));
        let late = batch.slot(1);
        let answers = block_on(batch.wait_until(Instant::now()));
        assert_eq!(answers, [Some(written(1)), None]);
        late.fill(written(2));
    }
}
