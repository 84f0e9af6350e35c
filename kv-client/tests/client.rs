//! The client against a pretended cluster: what it sends when answers are lost, nodes refuse, die
//! or freeze, and what it says of the effect. The clock is tokio's paused one: it jumps to the next
//! timer whenever nothing else is to be done, so deadlines of seconds pass at once.

mod fake;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fake::{Act, Fake};
use futures::future::join_all;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use kv_client::{
    Client, ClientBuilder, Conditional, Consistency, Effect, Error, ErrorKind, Result, prefix,
};
use raft_rpc::{Request, WireError};
use tokio::sync::Semaphore;
use tokio::time::Instant;

async fn builder(fake: &Fake, nodes: &[u64]) -> ClientBuilder {
    Client::builder()
        .connector(fake.connector().await)
        .endpoints(nodes.iter().map(|id| fake.address(*id)))
}

async fn client(fake: &Fake, nodes: &[u64]) -> Client {
    builder(fake, nodes).await.connect_lazily().expect("good endpoints")
}

fn no_leader(node: u64) -> Act {
    Act::Fail(WireError::NoLeader { node })
}

fn failure<T: std::fmt::Debug>(result: Result<T>) -> Error {
    result.expect_err("the call fails")
}

#[tokio::test(start_paused = true)]
async fn what_was_put_is_read_back_with_its_history() -> Result<()> {
    let fake = Fake::new(4);
    let kv = client(&fake, &[1, 2, 3, 4]).await;
    let first = kv.put("key-01", "content 01").await?;
    let second = kv.put("key-01", "content 02").previous().await?;
    assert_eq!((first.revision, second.revision), (2, 3));
    assert_eq!(second.previous.expect("asked for").value, "content 01");
    let found = kv.get("key-01").await?.expect("just written");
    assert_eq!((&found.value[..], found.version), (&b"content 02"[..], 2));
    assert_eq!((found.create_revision, found.mod_revision), (2, 3));
    let old = kv.get("key-01").at(2).await?.expect("history is kept");
    assert_eq!(old.value, "content 01");
    assert_eq!(kv.get("key-02").await?, None);
    let deleted = kv.delete("key-01").await?;
    assert_eq!((deleted.revision, deleted.count), (4, 1));
    assert_eq!(kv.delete(prefix("key-")).await?.count, 0);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_does_not_hold_is_an_answer_with_what_is_there() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    assert!(kv.put("job", "mine").if_absent().await?.is_applied(), "nobody has it");
    let Conditional::Refused { revision, current } = kv.put("job", "theirs").if_absent().await?
    else {
        panic!("somebody has it");
    };
    assert_eq!(revision, 2);
    assert_eq!(current.expect("exists").value, "mine");
    assert!(!kv.put("job", "x").if_value("other").await?.is_applied(), "another value");
    assert!(kv.put("job", "x").if_revision(2).await?.is_applied(), "unchanged since 2");
    let error = failure(kv.put("job", "y").if_revision(2).await?.applied());
    assert_eq!((error.kind(), error.effect()), (ErrorKind::ConditionFailed, Effect::None));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_was_lost_is_sent_again_with_its_tag_and_applied_once() -> Result<()> {
    let fake = Fake::new(3);
    fake.script(1, [Act::ApplyAndCut]);
    fake.script(
        2,
        [Act::ApplyAndFail(WireError::OutcomeUnknown { node: 2, reason: "leader changed".into() })],
    );
    let kv = client(&fake, &[1, 2, 3]).await;
    let written = kv.put("key", "value").await?;
    assert_eq!(written.revision, 2, "the first application's answer");
    assert_eq!(fake.applied(), 1);
    let tags = fake.tags();
    assert_eq!(tags.len(), 3, "three attempts: {tags:?}");
    let distinct: BTreeSet<(u64, u64)> =
        tags.iter().map(|(_, tag)| (tag.session, tag.sequence)).collect();
    assert_eq!(distinct.len(), 1, "one tag: {tags:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_followed_at_once_and_remembered() -> Result<()> {
    let fake = Fake::new(3);
    fake.lead(0);
    let kv = client(&fake, &[1, 2, 3]).await;
    fake.script(
        1,
        [Act::Fail(WireError::NotLeader {
            node: 1,
            hint: Some(3),
            hint_addr: Some(fake.address(3)),
        })],
    );
    let start = Instant::now();
    kv.put("key", "value").await?;
    assert_eq!(start.elapsed(), Duration::ZERO, "no pause before following");
    kv.put("key", "value 2").await?;
    assert_eq!(fake.asked(), [1, 3, 3]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn nodes_that_point_at_one_another_are_asked_with_pauses_until_the_deadline() {
    let fake = Fake::new(2);
    fake.lead(0);
    let kv = client(&fake, &[1, 2]).await;
    for (node, other) in [(1, 2), (2, 1)] {
        let hint_addr = Some(fake.address(other));
        let error = WireError::NotLeader { node, hint: Some(other), hint_addr };
        fake.always(node, Some(Act::Fail(error)));
    }
    // Registration passes, so that the put itself meets them.
    let error = failure(kv.get("key").await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::NoLeader, Effect::None));
    let asked = fake.asked().len();
    assert!((10..300).contains(&asked), "{asked} attempts in 5 s");
}

#[tokio::test(start_paused = true)]
async fn the_leader_is_found_without_being_told() -> Result<()> {
    let fake = Fake::new(4);
    fake.lead(3);
    let kv = client(&fake, &[1, 2, 3, 4]).await;
    kv.put("a", "1").await?;
    kv.put("b", "2").await?;
    kv.get("a").await?;
    let asked = fake.asked();
    assert_eq!(asked[1..], [3, 3], "after the first answer the leader is asked: {asked:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_a_call_ends_at_its_deadline_and_has_done_nothing() {
    let fake = Fake::new(4);
    fake.lead(0);
    for node in [2, 3, 4] {
        fake.kill(node);
    }
    fake.always(1, Some(no_leader(1)));
    let kv = client(&fake, &[1, 2, 3, 4]).await;
    let start = Instant::now();
    let error = failure(kv.put("key", "value").await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::NoLeader, Effect::None));
    assert_eq!(
        error.to_string(),
        "no leader among node-1:3330 (+3): 1 of 4 nodes reachable, 3 needed"
    );
    assert!(error.is_retryable(), "nothing has happened");
    assert!(start.elapsed() > Duration::from_secs(4), "it tried to the end");
    assert!(start.elapsed() <= Duration::from_secs(5), "and not beyond");
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_all_waiting_writers_learn_why() {
    let fake = Fake::new(2);
    fake.lead(0);
    for node in [1, 2] {
        fake.always(node, Some(no_leader(node)));
    }
    let kv = client(&fake, &[1, 2]).await;
    for result in join_all((0..20).map(|_| kv.put("key", "value").into_future())).await {
        let error = failure(result);
        assert_eq!((error.kind(), error.effect()), (ErrorKind::NoLeader, Effect::None), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_came_back_is_used_again() -> Result<()> {
    let fake = Fake::new(2);
    let kv = client(&fake, &[1, 2]).await;
    kv.put("key", "1").await?;
    fake.kill(1);
    fake.lead(2);
    kv.put("key", "2").await?;
    fake.revive(1);
    fake.lead(1);
    // The leader is checked once a second while in use.
    for _ in 0..30 {
        kv.get("key").await?;
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    fake.cluster.seen.lock().clear();
    kv.put("key", "3").await?;
    assert_eq!(fake.asked(), [1], "straight to the leader");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn sessions_that_are_never_known_end_in_an_error_and_not_in_a_loop() {
    let fake = Fake::new(1);
    fake.always(1, Some(Act::Fail(WireError::SessionExpired { session: 1 })));
    let kv = client(&fake, &[1]).await;
    let error = failure(kv.put("key", "value").await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Protocol, Effect::None));
}

#[tokio::test(start_paused = true)]
async fn an_election_is_waited_out() -> Result<()> {
    let fake = Fake::new(2);
    fake.lead(0);
    fake.script(1, vec![no_leader(1); 6]);
    fake.script(2, vec![no_leader(2); 6]);
    let kv = client(&fake, &[1, 2]).await;
    assert_eq!(kv.put("key", "value").await?.revision, 2);
    assert_eq!(fake.applied(), 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn nobody_listening_is_unavailable_without_effect() {
    let fake = Fake::new(2);
    fake.kill(1);
    fake.kill(2);
    let kv = client(&fake, &[1, 2]).await;
    let error = failure(kv.put("key", "value").timeout(Duration::from_secs(1)).await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));
    assert!(error.to_string().starts_with("cannot reach node-1:3330 (+1) within 1s: "), "{error}");
    let error = failure(builder(&fake, &[1, 2]).await.connect().await);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn overload_is_waited_out_as_long_as_the_node_asks() -> Result<()> {
    let fake = Fake::new(1);
    let overloaded = WireError::Overloaded { node: 1, retry_after_ms: 200 };
    fake.script(1, [Act::Fail(overloaded.clone())]);
    let kv = client(&fake, &[1]).await;
    let start = Instant::now();
    kv.put("key", "value").await?;
    assert!(start.elapsed() >= Duration::from_millis(200), "waited {:?}", start.elapsed());
    let tags = fake.tags();
    assert_eq!(tags[0].1.sequence, tags[1].1.sequence, "the same write");

    // A pause beyond the deadline is not made; the caller is told how long it would have been.
    fake.always(1, Some(Act::Fail(overloaded)));
    let start = Instant::now();
    let error = failure(kv.get("key").timeout(Duration::from_millis(150)).await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Overloaded, Effect::None));
    assert_eq!(error.retry_after(), Some(Duration::from_millis(200)));
    assert_eq!(start.elapsed(), Duration::ZERO);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_is_unknown_and_a_read_is_not() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    kv.put("key", "registers the session").await?;
    fake.always(1, Some(Act::Never));
    let start = Instant::now();
    let error = failure(kv.put("key", "value").await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::OutcomeUnknown, Effect::Unknown));
    assert_eq!(
        error.to_string(),
        "write outcome unknown: no answer from node 1 (node-1:3330) (deadline 5s)"
    );
    assert!(!error.is_retryable(), "a repetition might apply twice");
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    let error = failure(kv.get("key").timeout(Duration::from_millis(300)).await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::None));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn once_unknown_only_an_answer_of_the_store_settles_a_write() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    kv.put("key", "registers the session").await?;
    fake.script(1, [Act::ApplyAndCut]);
    fake.always(1, Some(no_leader(1)));
    let error = failure(kv.put("key", "value").await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::OutcomeUnknown, Effect::Unknown));
    assert!(error.to_string().contains("lost after send"), "{error}");
    assert_eq!(fake.value("key").as_deref(), Some(&b"value"[..]), "it did take effect");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_is_replaced_if_the_write_was_never_sent_before() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    kv.put("key", "1").await?;
    fake.expire_sessions();
    assert_eq!(kv.put("key", "2").await?.revision, 3);
    assert_eq!(fake.cluster.store.lock().registered, 2);

    // A retry can't know whether its first attempt was applied before the session was dropped.
    fake.script(1, [Act::ApplyAndCut, Act::Fail(WireError::SessionExpired { session: 102 })]);
    let error = failure(kv.put("key", "3").await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::OutcomeUnknown, Effect::Unknown));
    assert_eq!(fake.applied(), 3);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_failed_storage_leaves_a_write_unknown_and_a_read_asks_another_node() -> Result<()> {
    let fake = Fake::new(2);
    let storage = |node| Act::Fail(WireError::Storage { node, reason: "sync failed".into() });
    let kv = client(&fake, &[1, 2]).await;
    kv.put("key", "value").await?;
    fake.always(1, Some(storage(1)));
    assert!(kv.get("key").await?.is_some(), "node 2 has it");
    fake.always(2, Some(storage(2)));
    let error = failure(kv.put("key", "2").await);
    assert_eq!(error.effect(), Effect::Unknown);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_refused_once_with_the_nodes_limit() -> Result<()> {
    let fake = Fake::with_limits(1, 100, 10);
    let kv = client(&fake, &[1]).await;
    let error = failure(kv.put("key", vec![0; 101]).await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::TooLarge, Effect::None));
    assert_eq!(
        error.to_string(),
        "value is 101 bytes, limit is 100 bytes (limits.value on node 1)"
    );
    assert_eq!(fake.asked().len(), 1);
    // Beyond what any node may be configured to take nothing is sent at all.
    let error = failure(kv.put("key", vec![0; (16 << 20) + 1]).await);
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(fake.asked().len(), 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn with_one_endpoint_every_request_goes_to_that_node() -> Result<()> {
    let fake = Fake::new(4);
    fake.lead(1);
    let kv = client(&fake, &[3]).await;
    kv.put("key", "value").await?;
    kv.get("key").await?;
    kv.get("key").consistency(Consistency::Stale { max_age: None }).await?;
    // A hint to a node that is not among the endpoints is not followed.
    fake.script(
        3,
        [Act::Fail(WireError::NotLeader {
            node: 3,
            hint: Some(1),
            hint_addr: Some(fake.address(1)),
        })],
    );
    kv.get("key").await?;
    assert_eq!(fake.asked(), [3; 5]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn members_are_used_only_if_their_discovery_is_asked_for() -> Result<()> {
    let fake = Fake::new(3);
    fake.lead(2);
    let kv = builder(&fake, &[1]).await.discover(true).connect().await?;
    kv.put("key", "value").await?;
    kv.put("key", "value").await?;
    assert_eq!(fake.asked(), [2, 2], "the leader was discovered");
    let status = kv.cluster().status().await?;
    assert_eq!((status.leader, status.healthy, status.nodes.len()), (Some(2), true, 3));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn calls_at_the_same_time_share_batches_and_a_lone_call_waits_for_nobody() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    let start = Instant::now();
    kv.put("first", "registers the session").await?;
    assert_eq!(start.elapsed(), Duration::ZERO, "no delay is added");
    fake.cluster.batches.lock().clear();
    let puts = (0..256).map(|number| kv.put(format!("key-{number}"), "value").into_future());
    let gets = (0..100).map(|_| kv.get("first").into_future());
    let (puts, gets) = tokio::join!(join_all(puts), join_all(gets));
    assert!(puts.iter().all(Result::is_ok) && gets.iter().all(Result::is_ok), "all succeed");
    assert_eq!(start.elapsed(), Duration::ZERO, "no delay is added");
    let batches = fake.cluster.batches.lock().clone();
    // Reads begin with small batches, since nobody knows yet how large their answers are.
    assert!(batches.len() <= 12, "356 calls in a handful of batches: {batches:?}");
    assert!(
        batches.iter().all(|(writes, reads)| *writes == 0 || *reads == 0),
        "reads and writes are kept apart: {batches:?}"
    );
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn large_answers_make_small_batches_and_small_ones_large() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    kv.put("large", vec![b'v'; 1 << 20]).await?;
    kv.put("small", "v").await?;
    for (key, rounds) in [("large", 1), ("small", 6)] {
        for _ in 0..rounds {
            fake.cluster.batches.lock().clear();
            let found = join_all((0..100).map(|_| kv.get(key).into_future())).await;
            assert!(found.iter().all(|found| matches!(found, Ok(Some(_)))), "all are read");
        }
        let largest = fake.cluster.batches.lock().iter().map(|(_, reads)| *reads).max();
        match key {
            "large" => assert!(largest <= Some(16), "at most 16 MiB in a frame: {largest:?}"),
            _ => assert!(largest >= Some(64), "grown again: {largest:?}"),
        }
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_held_write_does_not_hold_up_reads_or_other_writes() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    kv.put("key", "value").await?;
    let gate = Arc::new(Semaphore::new(0));
    fake.script(1, [Act::Hold(Arc::clone(&gate))]);
    let held = tokio::spawn(kv.put("held", "value").into_future());
    tokio::task::yield_now().await;
    assert!(kv.get("key").await?.is_some(), "reads pass");
    kv.put("other", "value").await?;
    assert!(!held.is_finished(), "still held");
    gate.add_permits(1);
    held.await.expect("not cancelled")?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn more_writers_than_the_window_all_get_their_turn_within_it() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    let puts = (0..3000).map(|number| kv.put(format!("key-{number}"), "v").into_future());
    let results = join_all(puts).await;
    assert!(results.iter().all(Result::is_ok), "all are written");
    assert_eq!(fake.applied(), 3000);
    for (_, tag) in fake.tags() {
        assert!(tag.lowest_unacknowledged <= tag.sequence, "{tag:?}");
        assert!(tag.sequence - tag.lowest_unacknowledged < 1024, "{tag:?}");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_dropped_write_frees_its_number() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    kv.put("key", "1").await?;
    fake.script(1, [Act::Never]);
    {
        let mut dropped = kv.put("key", "2").into_future();
        assert!((&mut dropped).now_or_never().is_none(), "not answered");
        tokio::task::yield_now().await;
    }
    kv.put("key", "3").await?;
    let tags = fake.tags();
    let last = tags.last().expect("writes").1;
    assert_eq!((last.sequence, last.lowest_unacknowledged), (3, 3));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_frozen_leader_is_left_for_another_node_with_the_same_tag() -> Result<()> {
    let fake = Fake::new(3);
    let kv = client(&fake, &[1, 2, 3]).await;
    kv.put("key", "1").await?;
    fake.freeze(1);
    fake.lead(2);
    let start = Instant::now();
    // With so much time only the silence tells, long before the limit of an attempt.
    kv.put("key", "2").timeout(Duration::from_secs(60)).await?;
    assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
    assert_eq!(fake.value("key").as_deref(), Some(&b"2"[..]));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_node_that_answers_pings_but_not_requests_is_left_after_a_third_of_the_time() -> Result<()>
{
    // A follower that has handed its requests to a frozen leader looks like this.
    let fake = Fake::new(2);
    fake.lead(0);
    let kv = client(&fake, &[1, 2]).await;
    kv.put("key", "1").await?;
    fake.always(1, Some(Act::Never));
    let start = Instant::now();
    let calls = (0..2000).map(|number| kv.put(format!("key/{number}"), "2").into_future());
    for result in join_all(calls).await {
        result?;
    }
    assert!(start.elapsed() < Duration::from_secs(4), "took {:?}", start.elapsed());
    assert_eq!(fake.applied(), 2001);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_attempt_limit_moves_a_write_on_with_its_tag() -> Result<()> {
    let fake = Fake::new(2);
    let limit = Duration::from_millis(300);
    let kv = builder(&fake, &[1, 2]).await.attempt_timeout(limit).connect_lazily()?;
    kv.put("key", "1").await?;
    fake.script(1, [Act::Never]);
    let start = Instant::now();
    kv.put("key", "2").await?;
    assert_eq!(start.elapsed(), limit);
    let tags = fake.tags();
    assert_eq!((tags[1].0, tags[2].0), (1, 2), "first the leader, then the other");
    assert_eq!(tags[1].1.sequence, tags[2].1.sequence, "the same write");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_client_survives_its_nodes_restart() -> Result<()> {
    let fake = Fake::new(1);
    let kv = client(&fake, &[1]).await;
    kv.put("key", "1").await?;
    fake.kill(1);
    let waiting = tokio::spawn(kv.put("key", "2").into_future());
    tokio::task::yield_now().await;
    fake.revive(1);
    assert_eq!(waiting.await.expect("not cancelled")?.revision, 3);
    assert_eq!(fake.applied(), 2);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_listing_of_many_pages_is_one_view_however_the_store_changes_meanwhile() -> Result<()> {
    let fake = Fake::with_limits(1, 1 << 20, 10);
    let kv = client(&fake, &[1]).await;
    for number in 0..35 {
        kv.put(format!("city/{number:02}"), "before").await?;
    }
    let mut items = kv.range(prefix("city/")).stream();
    let mut seen: Vec<Bytes> = Vec::new();
    while let Some(item) = items.next().await {
        let item = item?;
        assert_eq!(item.value, "before", "as of the first page");
        seen.push(item.key);
        kv.delete("city/34").await?;
        kv.put("city/33", "after").await?;
        kv.put("city/99", "new").await?;
    }
    assert_eq!(seen.len(), 35);
    assert!(seen.is_sorted(), "in key order");

    let reverse: Vec<_> =
        kv.range(prefix("city/")).keys_only().reverse().limit(12).stream().try_collect().await?;
    assert_eq!(reverse.len(), 12);
    assert_eq!(reverse[0].key, "city/99");
    assert!(reverse.iter().all(|item| item.value.is_empty()), "keys only");
    assert_eq!(kv.count(prefix("city/")).await?.count, 35);

    let page = kv.range(prefix("city/")).limit(3).await?;
    let rest = kv.range(prefix("city/")).limit(3).from(page.next.expect("more")).await?;
    assert_eq!(rest.items[0].key, "city/03");
    assert_eq!(rest.revision, page.revision);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_session_read_asks_for_what_the_client_has_seen() -> Result<()> {
    let fake = Fake::new(1);
    let kv = builder(&fake, &[1]).await.consistency(Consistency::Session).connect().await?;
    let written = kv.put("key", "value").await?;
    kv.clone().get("key").await?;
    let seen = fake.cluster.seen.lock().last().cloned().expect("a request");
    let Request::Get(get) = seen.request.request else { panic!("a get") };
    assert_eq!(get.consistency, raft_rpc::Consistency::AtLeast(written.revision));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_too_stale_everywhere_fails_after_each_node_was_asked_once() {
    let fake = Fake::new(3);
    for node in 1..=3 {
        let error = WireError::TooStale { node, age_ms: 900, max_age_ms: 100 };
        fake.always(node, Some(Act::Fail(error)));
    }
    let kv = client(&fake, &[1, 2, 3]).await;
    let stale = Consistency::Stale { max_age: Some(Duration::from_millis(100)) };
    let error = failure(kv.get("key").consistency(stale).await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::TooStale, Effect::None));
    assert_eq!(fake.asked().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_checked_before_anything_is_dialled() {
    for bad in ["", "localhost", "localhost:0", "localhost:99999", ":3331", "a b:1"] {
        let error = failure(Client::builder().endpoints([bad]).connect_lazily());
        assert_eq!(error.kind(), ErrorKind::BadInput, "{bad:?}");
    }
    let none: [&str; 0] = [];
    assert_eq!(failure(Client::connect(none).await).kind(), ErrorKind::BadInput);
}

#[test]
fn futures_are_send_and_errors_travel() {
    fn send<T: Send + 'static>(_: Option<T>) {}
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    send::<<kv_client::operation::Put as IntoFuture>::IntoFuture>(None);
    send::<kv_client::operation::RangeStream>(None);
    send::<Client>(None);
    error::<Error>();
}
