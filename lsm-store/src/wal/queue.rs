//! The commit queue: many writers, one order.
//!
//! ```text
//! lead:  log n ─► sync n ──────────► apply n ─► tell n
//!                 log n+1 ─► (waits) ─► sync n+1 ─► apply n+1 ─► tell n+1
//!                            n+1 still grows
//! ```
//!
//! A writer that finds nobody leading leads at once; the others wait, and the one in front leads next, with
//! all that wait as its group. A leader logs its group, hands the lead on, syncs, and applies when it is its
//! turn. So the next group is logged while this one is synced or applied.
//!
//! 1. Groups are logged in the order of the queue, and applied in the order they were logged.
//! 2. One sync at a time. The leader that waits for its own keeps the lead, and takes along what has come
//!    meanwhile.
//! 3. A group that nobody wants synced holds nobody who does: it waits for a sync only if a batch before it
//!    in the log does.
//! 4. Every writer is told exactly once, by its own thread handle; nobody is woken for nothing.
//! 5. A panic in a stage ends the queue: all who wait, and all who come, get [`Stages::broken`].
//!
//! Nothing in here knows of logs or stores; [`Stages`] does the work.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::sync::Mutex;
use crate::sync::thread::{self, Thread};

/// A group takes no more bytes than this, but always its first item.
const GROUP_BYTES: usize = 1 << 20;

/// A group whose first item is no larger than this stays small, too: a short write does not wait for many.
const SMALL_BYTES: usize = 128 << 10;

/// How often a leader gives its processor away, in a row without anybody coming, to those who were just
/// told, so that they can share its sync.
const FRUITLESS_YIELDS: usize = 2;

/// What the stages of a commit do.
pub(crate) trait Stages {
    /// What a writer brings.
    type Item;
    /// What it gets.
    type Outcome;
    /// What was logged and not yet applied.
    type Logged;

    /// The item's share of a group.
    fn bytes(&self, item: &Self::Item) -> usize;
    /// Whether it must be synced before it is applied.
    fn wants_sync(&self, item: &Self::Item) -> bool;
    /// Logs items in their order; one call at a time.
    ///
    /// # Errors
    /// Everybody's answer, if none of the items is to be applied.
    fn log(
        &self,
        items: Items<'_, Self::Item, Self::Outcome>,
    ) -> Result<Self::Logged, Answers<Self::Outcome>>;
    /// Logs more, behind what was logged last.
    ///
    /// # Errors
    /// The new ones' answers; what was logged before is as it was.
    fn log_more(
        &self,
        logged: &mut Self::Logged,
        items: Items<'_, Self::Item, Self::Outcome>,
    ) -> Result<(), Answers<Self::Outcome>>;
    /// Makes what was logged durable; one call at a time, beside the logging of later groups. A failure
    /// shows when `logged` is applied.
    fn sync(&self, logged: &mut Self::Logged);
    /// Applies a group; one call at a time, in the order of logging.
    fn apply(
        &self,
        logged: Self::Logged,
        items: Items<'_, Self::Item, Self::Outcome>,
    ) -> Answers<Self::Outcome>;
    /// What everybody gets once a stage has panicked.
    fn broken(&self) -> Self::Outcome;
}

/// One answer for each item: the leader's, if its item is among them, and the others'.
#[derive(Debug)]
pub(crate) struct Answers<O> {
    pub(crate) own: Option<O>,
    pub(crate) others: Vec<O>,
}

/// Items in their order.
#[derive(Debug)]
pub(crate) struct Items<'a, T, O> {
    own: Option<&'a T>,
    others: &'a [Arc<Ticket<T, O>>],
}

impl<'a, T, O> Items<'a, T, O> {
    /// The items.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a T> + use<'a, T, O> {
        self.own.into_iter().chain(self.others.iter().map(|ticket| &ticket.item))
    }

    /// The answer to each, made from its place.
    pub(crate) fn answer(&self, mut answer: impl FnMut() -> O) -> Answers<O> {
        let own = self.own.map(|_| answer());
        Answers { own, others: self.others.iter().map(|_| answer()).collect() }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CommitQueue<T, O> {
    state: Mutex<State<T, O>>,
}

#[derive(Debug)]
struct State<T, O> {
    waiting: VecDeque<Arc<Ticket<T, O>>>,
    /// Somebody leads, or was told to.
    leading: bool,
    /// A sync is under way.
    syncing: bool,
    /// The leader, if it waits for the sync under way.
    sync_waiter: Option<Thread>,
    /// The turn that the next logged group gets.
    next_turn: u64,
    /// Whose turn it is to apply.
    turn: u64,
    /// Leaders that wait for their turn.
    turn_waiters: Vec<(u64, Thread)>,
    /// Items of the last group that was synced: so many may come again.
    crowd: usize,
    broken: bool,
}

/// A writer that waits.
#[derive(Debug)]
pub(crate) struct Ticket<T, O> {
    item: T,
    thread: Thread,
    news: Mutex<News<O>>,
}

#[derive(Debug)]
enum News<O> {
    Nothing,
    Lead,
    Done(O),
}

impl<T, O> Ticket<T, O> {
    fn tell(&self, news: News<O>) {
        *self.news.lock() = news;
        self.thread.unpark();
    }
}

impl<T, O> Default for CommitQueue<T, O> {
    fn default() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            leading: false,
            syncing: false,
            sync_waiter: None,
            next_turn: 0,
            turn: 0,
            turn_waiters: Vec::new(),
            crowd: 0,
            broken: false,
        };
        Self { state: Mutex::new(state) }
    }
}

impl<T, O> CommitQueue<T, O> {
    /// Commits an item together with whatever else waits, and returns what became of it.
    pub(crate) fn commit<S>(&self, stages: &S, item: T) -> O
    where
        S: Stages<Item = T, Outcome = O>,
    {
        let mut state = self.state.lock();
        if state.broken {
            return stages.broken();
        }
        if !state.leading {
            // Nobody waits: whoever ends leading hands the lead to the first who does.
            state.leading = true;
            drop(state);
            return self.lead(stages, &item, false);
        }
        let ticket =
            Arc::new(Ticket { item, thread: thread::current(), news: Mutex::new(News::Nothing) });
        state.waiting.push_back(Arc::clone(&ticket));
        drop(state);
        loop {
            let news = std::mem::replace(&mut *ticket.news.lock(), News::Nothing);
            match news {
                News::Nothing => thread::park(),
                News::Lead => return self.lead(stages, &ticket.item, true),
                News::Done(outcome) => return outcome,
            }
        }
    }

    /// Leads. The caller's item is not in the queue, or not any more; others may be there if it `waited`.
    fn lead<S>(&self, stages: &S, own: &T, waited: bool) -> O
    where
        S: Stages<Item = T, Outcome = O>,
    {
        let mut group = Group { queue: self, stages, own, others: Vec::new(), told: false };
        let sync = stages.wants_sync(own);
        let mut bytes = stages.bytes(own);
        if waited {
            group.others = self.take(stages, sync, &mut bytes);
        }
        let mut logged = stages.log(group.items());
        let turn;
        if sync && let Ok(logged) = &mut logged {
            self.wait_for_sync();
            self.wait_for_the_crowd(1 + group.others.len());
            let more = self.take(stages, sync, &mut bytes);
            if !more.is_empty() {
                match stages.log_more(logged, Items { own: None, others: &more }) {
                    Ok(()) => group.others.extend(more),
                    Err(answers) => tell(&more, answers.others),
                }
            }
            turn = self.hand_over(Some(1 + group.others.len()));
            stages.sync(logged);
            self.end_sync();
        } else {
            turn = self.hand_over(None);
        }
        if !self.wait_for_turn(turn) {
            let answers = group.items().answer(|| stages.broken());
            return group.tell(answers);
        }
        let answers =
            logged.map_or_else(|refused| refused, |logged| stages.apply(logged, group.items()));
        self.end_turn();
        group.tell(answers)
    }

    /// Takes the front of the queue, as much as goes with `bytes` that are in the group already. A group
    /// that is not synced ends before the first item that wants to be.
    fn take<S>(&self, stages: &S, sync: bool, bytes: &mut usize) -> Vec<Arc<Ticket<T, O>>>
    where
        S: Stages<Item = T, Outcome = O>,
    {
        let limit = if *bytes <= SMALL_BYTES { *bytes + SMALL_BYTES } else { GROUP_BYTES };
        let mut taken = Vec::new();
        let mut state = self.state.lock();
        while let Some(next) = state.waiting.front() {
            let with_next = *bytes + stages.bytes(&next.item);
            if with_next > limit || (stages.wants_sync(&next.item) && !sync) {
                break;
            }
            *bytes = with_next;
            taken.extend(state.waiting.pop_front());
        }
        taken
    }

    /// Waits, as the leader, until no sync is under way.
    fn wait_for_sync(&self) {
        loop {
            let mut state = self.state.lock();
            if !state.syncing || state.broken {
                state.sync_waiter = None;
                return;
            }
            state.sync_waiter = Some(thread::current());
            drop(state);
            thread::park();
        }
    }

    /// Gives those a chance who were told after the last sync and are likely to write again: a sync costs
    /// far more than a few turns of the scheduler. Alone, it does nothing.
    fn wait_for_the_crowd(&self, here: usize) {
        let mut fruitless = 0;
        let mut before = 0;
        while fruitless < FRUITLESS_YIELDS {
            let state = self.state.lock();
            let (waiting, crowd) = (state.waiting.len(), state.crowd);
            drop(state);
            if here + waiting >= crowd {
                return;
            }
            fruitless = if waiting > before { 0 } else { fruitless + 1 };
            before = waiting;
            thread::yield_now();
        }
    }

    /// Gives the lead to the next in the queue, if there is one; returns the turn of the group just logged
    /// and whether it has come. The group is about to sync this many items, if any.
    fn hand_over(&self, syncs: Option<usize>) -> (u64, bool) {
        let mut state = self.state.lock();
        if let Some(items) = syncs {
            state.syncing = true;
            state.crowd = items;
        }
        let turn = state.next_turn;
        state.next_turn += 1;
        let next = state.waiting.pop_front();
        state.leading = next.is_some();
        let has_come = state.turn == turn && !state.broken;
        drop(state);
        if let Some(next) = next {
            next.tell(News::Lead);
        }
        (turn, has_come)
    }

    fn end_sync(&self) {
        let mut state = self.state.lock();
        state.syncing = false;
        let waiter = state.sync_waiter.take();
        drop(state);
        if let Some(waiter) = waiter {
            waiter.unpark();
        }
    }

    /// Returns false if the turn will not come: the queue has ended.
    fn wait_for_turn(&self, (turn, has_come): (u64, bool)) -> bool {
        let mut registered = false;
        if has_come {
            return true;
        }
        loop {
            let mut state = self.state.lock();
            if state.turn == turn || state.broken {
                return !state.broken;
            }
            if !registered {
                state.turn_waiters.push((turn, thread::current()));
                registered = true;
            }
            drop(state);
            thread::park();
        }
    }

    fn end_turn(&self) {
        let mut state = self.state.lock();
        state.turn += 1;
        let turn = state.turn;
        let next = state.turn_waiters.iter().position(|(other, _)| *other == turn);
        let next = next.map(|at| state.turn_waiters.swap_remove(at));
        drop(state);
        if let Some((_, thread)) = next {
            thread.unpark();
        }
    }

    /// Ends the queue.
    fn break_up<S>(&self, stages: &S)
    where
        S: Stages<Item = T, Outcome = O>,
    {
        let mut state = self.state.lock();
        state.broken = true;
        let waiting = std::mem::take(&mut state.waiting);
        let leaders = std::mem::take(&mut state.turn_waiters);
        let sync_waiter = state.sync_waiter.take();
        drop(state);
        waiting.iter().for_each(|ticket| ticket.tell(News::Done(stages.broken())));
        leaders.iter().for_each(|(_, thread)| thread.unpark());
        if let Some(waiter) = sync_waiter {
            waiter.unpark();
        }
    }
}

/// A leader's group. If its leader panics, the others are told and the queue ends.
struct Group<'a, S: Stages> {
    queue: &'a CommitQueue<S::Item, S::Outcome>,
    stages: &'a S,
    own: &'a S::Item,
    others: Vec<Arc<Ticket<S::Item, S::Outcome>>>,
    told: bool,
}

impl<S: Stages> Group<'_, S> {
    fn items(&self) -> Items<'_, S::Item, S::Outcome> {
        Items { own: Some(self.own), others: &self.others }
    }

    /// Tells the others, and returns the leader's answer.
    fn tell(mut self, answers: Answers<S::Outcome>) -> S::Outcome {
        self.told = true;
        tell(&self.others, answers.others);
        answers.own.unwrap_or_else(|| self.stages.broken())
    }
}

impl<S: Stages> Drop for Group<'_, S> {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        self.queue.break_up(self.stages);
        self.others.iter().for_each(|ticket| ticket.tell(News::Done(self.stages.broken())));
    }
}

fn tell<T, O>(tickets: &[Arc<Ticket<T, O>>], answers: Vec<O>) {
    assert!(tickets.len() == answers.len(), "{} answers for {}", answers.len(), tickets.len());
    for (ticket, answer) in tickets.iter().zip(answers) {
        ticket.tell(News::Done(answer));
    }
}
