//! The checker of histories must let through what a correct store can do and nothing else.
//!
//! Hand-made histories show each kind of failure by name; random small ones are compared with a
//! checker that tries every order.

use bytes::Bytes;
use raft_rpc::{
    Condition, Consistency, GetRequest, KeyRange, KeyValue, Projection, RangeRequest, Request,
    Response, WriteOperation, WriteRequest,
};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};
use tests::history::{ClientId, History, Moment, Operation, OperationId, Outcome};
use tests::linearizability::{Checked, Violation, check};

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);

fn write(operation: WriteOperation) -> Request {
    Request::Write(WriteRequest { tag: None, operation })
}

fn put_if(key: &str, value: &str, condition: Condition) -> Request {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), value.to_owned().into());
    write(WriteOperation::Put { key, value, condition, return_previous: false })
}

fn put(key: &str, value: &str) -> Request {
    put_if(key, value, Condition::Always)
}

fn delete(key: &str) -> Request {
    let key = Bytes::copy_from_slice(key.as_bytes());
    write(WriteOperation::Delete { key, condition: Condition::Always, return_previous: false })
}

fn get_with(key: &str, consistency: Consistency) -> Request {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Request::Get(GetRequest { key, revision: None, consistency })
}

fn get(key: &str) -> Request {
    get_with(key, Consistency::Linearizable)
}

fn range() -> Request {
    Request::Range(RangeRequest {
        range: KeyRange { start: Bytes::new(), end: None },
        limit: None,
        reverse: false,
        projection: Projection::KeyValues,
        revision: None,
        consistency: Consistency::Linearizable,
    })
}

const fn written(revision: u64) -> Response {
    Response::Written { revision, previous: None }
}

const fn deleted(revision: u64, count: u64) -> Response {
    Response::Deleted { revision, count, previous: None }
}

fn held(key: &str, value: &str, created: u64, modified: u64, version: u64) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        create_revision: created,
        mod_revision: modified,
        version,
        lease: 0,
    }
}

const fn value(revision: u64, found: Option<KeyValue>) -> Response {
    Response::Value { revision, found }
}

/// Records an operation that is answered before anything else happens.
fn call(history: &mut History, request: Request, response: Response) -> OperationId {
    let id = history.invoke(A, request);
    history.answer(id, response);
    id
}

fn violation(history: &History) -> Violation {
    check(history).expect_err("the history cannot be explained, but the checker accepted it")
}

#[test]
fn an_empty_history_passes() {
    assert_eq!(check(&History::new()), Ok(Checked::default()));
}

#[test]
fn writes_and_reads_one_after_the_other_pass() {
    let mut history = History::new();
    call(&mut history, get("k"), value(0, None));
    call(&mut history, put("k", "1"), written(1));
    call(&mut history, get("k"), value(1, Some(held("k", "1", 1, 1, 1))));
    call(&mut history, put("k", "2"), written(2));
    call(&mut history, delete("k"), deleted(3, 1));
    call(&mut history, delete("k"), deleted(3, 0));
    call(&mut history, put("k", "3"), written(4));
    call(&mut history, get("k"), value(4, Some(held("k", "3", 4, 4, 1))));
    let checked = check(&history).expect("a sequential history of a correct store");
    assert_eq!((checked.answered, checked.unknown, checked.keys), (8, 0, 1));
}

#[test]
fn a_stale_read_fails() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    call(&mut history, put("k", "2"), written(2));
    call(&mut history, get("k"), value(1, Some(held("k", "1", 1, 1, 1))));
    assert!(matches!(violation(&history), Violation::RealTime { .. }), "{}", violation(&history));
}

#[test]
fn a_stale_read_that_claims_a_fresh_revision_fails() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    call(&mut history, put("k", "2"), written(2));
    call(&mut history, get("k"), value(2, Some(held("k", "1", 1, 1, 1))));
    assert!(
        matches!(violation(&history), Violation::NotLinearizable { .. }),
        "{}",
        violation(&history)
    );
}

#[test]
fn a_read_overlapping_a_write_may_see_either_side() {
    for seen in [value(1, Some(held("k", "1", 1, 1, 1))), value(2, Some(held("k", "2", 1, 2, 2)))] {
        let mut history = History::new();
        call(&mut history, put("k", "1"), written(1));
        let write = history.invoke(A, put("k", "2"));
        let read = history.invoke(B, get("k"));
        history.answer(read, seen);
        history.answer(write, written(2));
        check(&history).expect("the read overlaps the write");
    }
}

#[test]
fn a_lost_update_fails() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    let a = history.invoke(A, put_if("k", "a", Condition::Revision(1)));
    let b = history.invoke(B, put_if("k", "b", Condition::Revision(1)));
    history.answer(a, written(2));
    history.answer(b, written(3));
    assert!(
        matches!(violation(&history), Violation::NotLinearizable { .. }),
        "{}",
        violation(&history)
    );
}

#[test]
fn an_acknowledged_write_that_is_gone_fails() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    call(&mut history, put("k", "2"), written(2));
    call(&mut history, get("k"), value(3, Some(held("k", "1", 1, 1, 1))));
    assert!(
        matches!(violation(&history), Violation::NotLinearizable { .. }),
        "{}",
        violation(&history)
    );
}

#[test]
fn a_write_that_applies_twice_fails() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    call(&mut history, put("k", "2"), written(2));
    call(&mut history, get("k"), value(3, Some(held("k", "1", 1, 3, 3))));
    assert!(
        matches!(violation(&history), Violation::AppliedTwice { .. }),
        "{}",
        violation(&history)
    );
}

#[test]
fn an_unknown_write_that_applies_twice_fails() {
    let mut history = History::new();
    let lost = history.invoke(B, put("k", "lost"));
    history.give_up(lost);
    call(&mut history, get("k"), value(1, Some(held("k", "lost", 1, 1, 1))));
    call(&mut history, put("k", "1"), written(2));
    call(&mut history, get("k"), value(3, Some(held("k", "lost", 1, 3, 3))));
    assert!(
        matches!(violation(&history), Violation::AppliedTwice { .. }),
        "{}",
        violation(&history)
    );
}

#[test]
fn a_double_application_that_only_the_version_shows_fails() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    call(&mut history, put("k", "2"), written(3));
    call(&mut history, get("k"), value(3, Some(held("k", "2", 1, 3, 3))));
    assert!(
        matches!(violation(&history), Violation::NotLinearizable { .. }),
        "{}",
        violation(&history)
    );
}

#[test]
fn a_resurrected_delete_fails() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    call(&mut history, delete("k"), deleted(2, 1));
    call(&mut history, get("k"), value(2, Some(held("k", "1", 1, 1, 1))));
    assert!(
        matches!(violation(&history), Violation::NotLinearizable { .. }),
        "{}",
        violation(&history)
    );
}

#[test]
fn a_write_promised_to_have_no_effect_but_seen_fails() {
    let mut history = History::new();
    let denied = history.invoke(B, put("k", "denied"));
    history.no_effect(denied);
    call(&mut history, get("k"), value(1, Some(held("k", "denied", 1, 1, 1))));
    let Violation::NobodyWrote { denied, .. } = violation(&history) else {
        panic!("{}", violation(&history));
    };
    assert_eq!(denied.len(), 1, "the message names the operation that was denied: {denied:?}");
}

#[test]
fn an_unknown_write_may_take_effect_late_or_never() {
    let mut history = History::new();
    let lost = history.invoke(B, put("k", "lost"));
    history.give_up(lost);
    call(&mut history, get("k"), value(0, None));
    call(&mut history, put("k", "1"), written(1));
    check(&history).expect("it never takes effect");
    call(&mut history, get("k"), value(2, Some(held("k", "lost", 1, 2, 2))));
    check(&history).expect("it takes effect late");
    call(&mut history, get("k"), value(1, Some(held("k", "1", 1, 1, 1))));
    violation(&history);
}

#[test]
fn an_unknown_write_explains_a_version_but_only_once() {
    let mut history = History::new();
    let lost = history.invoke(B, put("k", "lost"));
    history.give_up(lost);
    call(&mut history, put("k", "1"), written(2));
    call(&mut history, get("k"), value(2, Some(held("k", "1", 1, 2, 2))));
    check(&history).expect("the lost write came first and was overwritten");
    call(&mut history, put("k", "2"), written(5));
    call(&mut history, get("k"), value(5, Some(held("k", "2", 1, 5, 4))));
    violation(&history);
}

#[test]
fn an_unknown_delete_explains_an_absence() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    let lost = history.invoke(B, delete("k"));
    history.give_up(lost);
    call(&mut history, get("k"), value(2, None));
    check(&history).expect("the lost delete took effect");
    call(&mut history, put("k", "2"), written(3));
    call(&mut history, get("k"), value(4, None));
    violation(&history);
}

#[test]
fn an_unknown_write_cannot_take_effect_before_it_began() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    call(&mut history, get("k"), value(2, None));
    let lost = history.invoke(B, delete("k"));
    history.give_up(lost);
    violation(&history);
}

#[test]
fn two_puts_if_absent_that_both_win_fail() {
    let mut history = History::new();
    let a = history.invoke(A, put_if("k", "a", Condition::Absent));
    let b = history.invoke(B, put_if("k", "b", Condition::Absent));
    history.answer(a, written(1));
    history.answer(b, written(2));
    violation(&history);
}

#[test]
fn a_refusal_must_agree_with_its_condition() {
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    let current = Some(held("k", "1", 1, 1, 1));
    let request = put_if("k", "2", Condition::Value("1".into()));
    call(&mut history, request, Response::Refused { revision: 1, current });
    assert!(matches!(violation(&history), Violation::Nonsense { .. }), "{}", violation(&history));
}

#[test]
fn two_writes_with_one_revision_fail() {
    let mut history = History::new();
    let a = history.invoke(A, put("a", "1"));
    let b = history.invoke(B, put("b", "1"));
    history.answer(a, written(1));
    history.answer(b, written(1));
    assert!(
        matches!(violation(&history), Violation::SameRevision { revision: 1, .. }),
        "{}",
        violation(&history)
    );
}

#[test]
fn reads_of_two_keys_that_contradict_real_time_fail() {
    let mut history = History::new();
    call(&mut history, put("a", "1"), written(1));
    call(&mut history, put("b", "1"), written(2));
    call(&mut history, get("a"), value(1, Some(held("a", "1", 1, 1, 1))));
    assert!(matches!(violation(&history), Violation::RealTime { .. }), "{}", violation(&history));
}

#[test]
fn a_range_read_sees_one_revision_of_all_keys() {
    let mut history = History::new();
    call(&mut history, put("a", "1"), written(1));
    let slow = history.invoke(B, range());
    call(&mut history, put("b", "1"), written(2));
    call(&mut history, put("a", "2"), written(3));
    let mut torn = history.clone();
    let items = vec![held("a", "1", 1, 1, 1), held("b", "1", 2, 2, 1)];
    history.answer(slow, Response::Page { revision: 2, items, more: false });
    check(&history).expect("as of revision 2");
    let items = vec![held("a", "2", 1, 3, 2)];
    torn.answer(slow, Response::Page { revision: 3, items, more: false });
    violation(&torn);
}

#[test]
fn a_stale_read_marked_as_stale_passes_but_must_be_a_state_that_was() {
    let stale = || get_with("k", Consistency::Stale { max_age_ms: None });
    let mut history = History::new();
    call(&mut history, put("k", "1"), written(1));
    call(&mut history, put("k", "2"), written(2));
    call(&mut history, stale(), value(1, Some(held("k", "1", 1, 1, 1))));
    check(&history).expect("a state that was");
    call(&mut history, stale(), value(2, Some(held("k", "1", 1, 1, 1))));
    violation(&history);
}

#[test]
fn a_stale_read_cannot_see_the_future() {
    let mut history = History::new();
    let read = history.invoke(A, get_with("k", Consistency::Stale { max_age_ms: None }));
    history.answer(read, value(1, Some(held("k", "1", 1, 1, 1))));
    call(&mut history, put("k", "1"), written(1));
    violation(&history);
}

#[test]
fn thousands_of_operations_with_many_unknown_outcomes_are_checked_quickly() {
    let mut random = Pcg64Mcg::seed_from_u64(1);
    let run = random_history(&mut random, 6, 6_000, 0);
    let checked = check(&run).expect("made by a correct store");
    assert!(checked.unknown > 500, "many unknown outcomes: {checked:?}");
    assert!(checked.configurations < 500_000, "the search stays narrow: {checked:?}");
}

#[test]
fn agrees_with_trying_every_order() {
    let (mut passed, mut failed) = (0, 0);
    for seed in 0..40_000 {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let history = random_history(&mut random, 3, 6, 1);
        check(&history).unwrap_or_else(|violation| {
            panic!(
                "seed {seed}: a correct store's history was refused: {violation}\n{}",
                show(&history)
            )
        });
        let Some(history) = falsify(&history, &mut random) else { continue };
        let fast = check(&history);
        let slow = try_every_order(&history);
        assert_eq!(
            fast.is_ok(),
            slow,
            "seed {seed}: the checker says {fast:?}, every order says {slow}\n{}",
            show(&history)
        );
        if slow { passed += 1 } else { failed += 1 }
    }
    assert!(passed > 1_000 && failed > 1_000, "both kinds occur: {passed} passed, {failed} failed");
}

/// What the only key holds, in the store that makes the random histories.
#[derive(Clone, Default, PartialEq)]
struct Store {
    revision: u64,
    held: Option<KeyValue>,
}

impl Store {
    fn meets(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Always => true,
            Condition::Absent => self.held.is_none(),
            Condition::Value(value) => self.held.as_ref().is_some_and(|h| h.value == value),
            Condition::Revision(r) => self.held.as_ref().is_some_and(|h| h.mod_revision == *r),
        }
    }

    /// Executes at `revision`, if it writes.
    fn execute(&mut self, request: &Request, revision: u64) -> Response {
        match request {
            Request::Get(_) => {
                Response::Value { revision: self.revision, found: self.held.clone() }
            }
            Request::Write(write) => match &write.operation {
                WriteOperation::Put { condition, .. }
                | WriteOperation::Delete { condition, .. }
                    if !self.meets(condition) =>
                {
                    Response::Refused { revision: self.revision, current: self.held.clone() }
                }
                WriteOperation::Put { key, value, .. } => {
                    let (create_revision, version) = self
                        .held
                        .as_ref()
                        .map_or((revision, 1), |h| (h.create_revision, h.version + 1));
                    self.held = Some(KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision,
                        mod_revision: revision,
                        version,
                        lease: 0,
                    });
                    self.revision = revision;
                    written(revision)
                }
                WriteOperation::Delete { .. } if self.held.is_none() => deleted(self.revision, 0),
                WriteOperation::Delete { .. } => {
                    self.held = None;
                    self.revision = revision;
                    deleted(revision, 1)
                }
                WriteOperation::RegisterSession | WriteOperation::DeleteRange { .. } => {
                    panic!("not made by this test: {request:?}")
                }
            },
            Request::Range(_) => panic!("not made by this test: {request:?}"),
        }
    }
}

fn below(random: &mut Pcg64Mcg, bound: u64) -> u64 {
    random.next_u64() % bound
}

/// A history of a correct store with concurrent clients that lose answers.
///
/// `shared` of three values are the same as others; the rest occur once.
fn random_history(
    random: &mut Pcg64Mcg,
    clients: usize,
    operations: usize,
    shared: u64,
) -> History {
    let mut history = History::new();
    let mut store = Store::default();
    // Per client: the operation under way, and its answer once it has taken effect.
    let mut under_way: Vec<Option<(OperationId, Request, Option<Response>)>> = vec![None; clients];
    let mut limbo: Vec<Request> = Vec::new();
    let mut left = operations;
    while left > 0 || under_way.iter().any(Option::is_some) {
        if !limbo.is_empty() && below(random, 4) == 0 {
            let late = usize::try_from(below(random, limbo.len() as u64)).unwrap();
            let request = limbo.swap_remove(late);
            let revision = store.revision + 20;
            store.execute(&request, revision);
        }
        let client = usize::try_from(below(random, clients as u64)).unwrap();
        match under_way[client].take() {
            None if left > 0 => {
                left -= 1;
                let request = random_request(random, &store, left, shared);
                let id = history.invoke(ClientId(u32::try_from(client).unwrap()), request.clone());
                under_way[client] = Some((id, request, None));
            }
            None => {}
            Some((id, request, None)) => match below(random, 12) {
                0 => history.no_effect(id),
                1 => limbo.push(request),
                2..8 => {
                    let revision = store.revision + 20;
                    let response = store.execute(&request, revision);
                    under_way[client] = Some((id, request, Some(response)));
                }
                _ => under_way[client] = Some((id, request, None)),
            },
            Some((id, request, Some(response))) => match below(random, 8) {
                0 => {}
                1..6 => history.answer(id, response),
                _ => under_way[client] = Some((id, request, Some(response))),
            },
        }
    }
    history
}

fn random_request(random: &mut Pcg64Mcg, store: &Store, number: usize, shared: u64) -> Request {
    let same = below(random, 3) < shared;
    let value = if same { "same".to_owned() } else { format!("v{number}") };
    let condition = match below(random, 6) {
        0 => Condition::Absent,
        1 => store.held.as_ref().map_or(Condition::Absent, |h| Condition::Value(h.value.clone())),
        2 => store
            .held
            .as_ref()
            .map_or(Condition::Revision(1), |h| Condition::Revision(h.mod_revision)),
        _ => Condition::Always,
    };
    match below(random, 10) {
        0..4 => put_if("k", &value, condition),
        4..6 => write(WriteOperation::Delete {
            key: "k".into(),
            condition: Condition::Always,
            return_previous: false,
        }),
        6 => get_with("k", Consistency::Stale { max_age_ms: None }),
        _ => get("k"),
    }
}

/// The same history with one answer changed, or `None` if nothing was answered.
fn falsify(history: &History, random: &mut Pcg64Mcg) -> Option<History> {
    let answered = |o: &&Operation| matches!(o.outcome, Outcome::Answered(_));
    let candidates: Vec<_> = history.operations().iter().filter(answered).collect();
    if candidates.is_empty() {
        return None;
    }
    let victim = candidates[usize::try_from(below(random, candidates.len() as u64)).unwrap()].id;
    let other = &candidates[usize::try_from(below(random, candidates.len() as u64)).unwrap()];
    let shift = [0, 20, 40][usize::try_from(below(random, 3)).unwrap()];
    let change = |revision: &mut u64| *revision = revision.saturating_sub(shift);
    let mut events: Vec<(Moment, OperationId, bool)> = Vec::new();
    for operation in history.operations() {
        events.push((operation.invoked, operation.id, true));
        events.push((operation.completed, operation.id, false));
    }
    events.sort();
    let mut changed = History::new();
    for (moment, id, begins) in events {
        let operation = history.operation(id);
        if begins {
            changed.invoke(operation.client, operation.request.clone());
        } else if moment != Moment::NEVER {
            match &operation.outcome {
                Outcome::Answered(response) => {
                    let mut response = response.clone();
                    if id == victim {
                        if let (
                            Response::Value { revision, found },
                            Outcome::Answered(Response::Value { found: other, .. }),
                        ) = (&mut response, &other.outcome)
                        {
                            change(revision);
                            found.clone_from(other);
                        } else if let Response::Written { revision, .. }
                        | Response::Deleted { revision, .. }
                        | Response::Refused { revision, .. } = &mut response
                        {
                            change(revision);
                        }
                    }
                    changed.answer(id, response);
                }
                Outcome::NoEffect => changed.no_effect(id),
                Outcome::Unknown => panic!("an unknown outcome has no end"),
            }
        }
    }
    Some(changed)
}

/// Whether some order of some of the unknown writes and all answered operations explains the history.
fn try_every_order(history: &History) -> bool {
    let relevant = |o: &&Operation| match o.outcome {
        Outcome::Answered(_) => true,
        Outcome::Unknown => matches!(o.request, Request::Write(_)),
        Outcome::NoEffect => false,
    };
    let operations: Vec<_> = history.operations().iter().filter(relevant).collect();
    let mut revisions: Vec<u64> = Vec::new();
    for operation in &operations {
        if let Outcome::Answered(response) = &operation.outcome {
            let found = match response {
                Response::Value { found, .. } => found,
                Response::Refused { current, .. } => current,
                _ => &None,
            };
            revisions.extend(found.iter().flat_map(|f| [f.create_revision, f.mod_revision]));
        }
        if let Request::Write(w) = &operation.request
            && let WriteOperation::Put { condition: Condition::Revision(r), .. } = &w.operation
        {
            revisions.push(*r);
        }
    }
    extend(&operations, &mut vec![false; operations.len()], &Store::default(), &revisions)
}

fn extend(
    operations: &[&Operation],
    placed: &mut Vec<bool>,
    store: &Store,
    revisions: &[u64],
) -> bool {
    let left: Vec<_> = (0..operations.len()).filter(|&o| !placed[o]).collect();
    if left.iter().all(|&o| operations[o].outcome == Outcome::Unknown) {
        return true;
    }
    for &next in &left {
        let operation = operations[next];
        let stale = matches!(
            &operation.request,
            Request::Get(get) if get.consistency != Consistency::Linearizable
        );
        let must_wait = |&o: &usize| operations[o].completed < operation.invoked;
        if !stale && left.iter().any(must_wait) {
            continue;
        }
        let mut attempts: Vec<(Store, u64)> = Vec::new();
        match &operation.outcome {
            Outcome::Answered(response) => {
                let (Response::Value { revision, .. }
                | Response::Written { revision, .. }
                | Response::Deleted { revision, .. }
                | Response::Refused { revision, .. }) = response
                else {
                    panic!("not made by this test: {response:?}");
                };
                let writes = matches!(
                    response,
                    Response::Written { .. } | Response::Deleted { count: 1, .. }
                );
                // Writes to other keys may have moved the store's revision on, up to here.
                let possible =
                    if writes { *revision > store.revision } else { *revision >= store.revision };
                if possible {
                    let mut after = store.clone();
                    after.revision = if writes { *revision - 1 } else { *revision };
                    if after.execute(&operation.request, *revision) == *response {
                        attempts.push((after, *revision));
                    }
                }
            }
            Outcome::Unknown => {
                let mut possible: Vec<u64> = revisions.to_vec();
                possible.push(store.revision + 1);
                for revision in possible.into_iter().filter(|&r| r > store.revision) {
                    let mut after = store.clone();
                    after.execute(&operation.request, revision);
                    attempts.push((after, revision));
                }
            }
            Outcome::NoEffect => panic!("left out above"),
        }
        placed[next] = true;
        let found =
            attempts.into_iter().any(|(after, _)| extend(operations, placed, &after, revisions));
        placed[next] = false;
        if found {
            return true;
        }
    }
    false
}

fn show(history: &History) -> String {
    history.operations().iter().map(|o| format!("{o}\n")).collect()
}
