//! What each step does and checks. One method a step; what one step leaves to a later one is a field.

use std::{collections::BTreeMap, future::Future, time::Duration};

use kv_client::{Client, Consistency, Effect, Error, KeyValue, Written};
use raft_core::NodeId;
use raft_rpc::{NodeStatus, Role};
use tokio::{task::JoinHandle, time::Instant};

use super::{Limits, Nodes, Step};
use crate::cli::probe::{Probe, wait_until};

const FIRST: (&str, &str) = ("key-01", "content 01");
const SECOND: (&str, &str) = ("key-02", "content 02");
const THIRD: (&str, &str) = ("key-03", "content 03");
/// Written by the leader that will be frozen, then by the one that follows it.
const LED_BY: &str = "led-by";
const OLD_VALUE: &str = "the old leader";
const NEW_VALUE: &str = "the new leader";
/// Sent to the frozen leader.
const WAITING: (&str, &str) = ("waiting", "sent to a frozen leader");

/// A task that ends when it is dropped.
struct Background<T>(JoinHandle<T>);

impl<T: Send + 'static> Background<T> {
    fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }

    async fn join(mut self) -> Result<T, String> {
        (&mut self.0).await.map_err(|error| format!("a task of the scenario ended: {error}"))
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A node that leads, and its term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lead {
    node: NodeId,
    term: u64,
}

/// The killed leader and the first put after it.
struct Killed {
    node: NodeId,
    at: Instant,
    first_write: Option<Background<Result<Instant, Error>>>,
    /// How long it took to catch up, once it was started again.
    caught_up_in: Option<Duration>,
}

/// The frozen leader, and what waits on it.
struct Frozen {
    node: NodeId,
    role_changes: u64,
    /// Connected before the freeze, so that its question is there the moment the node goes on.
    reader: Client,
    put: Background<Result<Written, Error>>,
}

/// The state of a scenario between its steps.
pub(super) struct Scenario<'n, N> {
    nodes: &'n mut N,
    limits: Limits,
    endpoints: BTreeMap<NodeId, String>,
    probes: BTreeMap<NodeId, Probe>,
    leader: Option<Lead>,
    killed: Option<Killed>,
    frozen: Option<Frozen>,
}

impl<'n, N: Nodes> Scenario<'n, N> {
    pub(super) fn new(nodes: &'n mut N, limits: Limits) -> Self {
        let endpoints = nodes.endpoints();
        let probes =
            endpoints.iter().map(|(id, address)| (*id, Probe::new(address.as_str()))).collect();
        Self { nodes, limits, endpoints, probes, leader: None, killed: None, frozen: None }
    }

    /// Plays one step; the steps before it have held.
    pub(super) async fn play(&mut self, step: Step) -> Result<Duration, String> {
        match step {
            Step::Elect => self.elect().await,
            Step::Put1 => self.put_1().await,
            Step::Put2 => self.put_2().await,
            Step::Get3 => self.get_3().await,
            Step::Kill => self.kill().await,
            Step::ReElect => self.re_elect().await,
            Step::FirstWrite => self.first_write().await,
            Step::ReadAll => self.read_all().await,
            Step::Freeze => self.freeze().await,
            Step::StepDown => self.step_down().await,
            Step::Rejoin => self.rejoin().await,
        }
    }

    async fn elect(&mut self) -> Result<Duration, String> {
        for id in self.ids() {
            self.nodes.start(id)?;
        }
        let started = Instant::now();
        self.wait_for_leader(self.limits.elect, 0, &self.ids()).await?;
        let took = started.elapsed();
        // A node that was slow to start may not have heard yet; the next steps speak to every one.
        let lead = self.wait_for_agreement(&self.ids()).await?;
        self.leader = Some(lead);
        Ok(took)
    }

    async fn put_1(&mut self) -> Result<Duration, String> {
        let first = self.nth(1)?;
        let began = Instant::now();
        self.client_of(first).await?.put(FIRST.0, FIRST.1).await.map_err(explain)?;
        Ok(began.elapsed())
    }

    async fn put_2(&mut self) -> Result<Duration, String> {
        let lead = self.lead()?;
        let second = self.nth(2)?;
        let through = if second == lead.node { self.nth(3)? } else { second };
        let before = self.status(through).await?.forwarded;
        let began = Instant::now();
        self.client_of(through).await?.put(SECOND.0, SECOND.1).await.map_err(explain)?;
        let took = began.elapsed();
        let after = self.status(through).await?.forwarded;
        if after <= before {
            return Err(format!(
                "node {through} follows and accepted the put, but its count of forwarded requests \
                 stayed at {after}"
            ));
        }
        Ok(took)
    }

    async fn get_3(&mut self) -> Result<Duration, String> {
        let third = self.nth(3)?;
        let client = self.client_of(third).await?;
        let began = Instant::now();
        expect(&client, SECOND, Consistency::Linearizable, third).await?;
        Ok(began.elapsed())
    }

    async fn kill(&mut self) -> Result<Duration, String> {
        let lead = self.lead()?;
        let client = self.client_of_all_but(lead.node).await?;
        let at = Instant::now();
        self.nodes.kill(lead.node).await?;
        let took = at.elapsed();
        // The first put is tried from now on, as a program would that was in the middle of something.
        let limit = self.limits.step;
        let first_write = Background::spawn(async move {
            loop {
                match client.put(THIRD.0, THIRD.1).await {
                    Ok(_) => return Ok(Instant::now()),
                    Err(error) if error.is_retryable() && at.elapsed() < limit => {}
                    Err(error) => return Err(error),
                }
            }
        });
        self.killed = Some(Killed {
            node: lead.node,
            at,
            first_write: Some(first_write),
            caught_up_in: None,
        });
        Ok(took)
    }

    async fn re_elect(&mut self) -> Result<Duration, String> {
        let old = self.lead()?;
        let at = self.killed()?.at;
        let others = self.others(old.node);
        let lead = self.wait_for_leader(self.limits.step, old.term, &others).await?;
        let took = at.elapsed();
        self.leader = Some(lead);
        Ok(took)
    }

    async fn first_write(&mut self) -> Result<Duration, String> {
        let killed = self.killed()?;
        let at = killed.at;
        let put = killed.first_write.take().ok_or("no put was begun at the kill")?;
        let accepted = put.join().await?.map_err(explain)?;
        Ok(accepted - at)
    }

    async fn read_all(&mut self) -> Result<Duration, String> {
        let dead = self.killed()?.node;
        let began = Instant::now();
        for node in self.others(dead) {
            let client = self.client_of(node).await?;
            for pair in [FIRST, SECOND, THIRD] {
                expect(&client, pair, Consistency::Linearizable, node).await?;
            }
        }
        Ok(began.elapsed())
    }

    async fn freeze(&mut self) -> Result<Duration, String> {
        self.restart_killed().await?;
        let old = self.wait_for_agreement(&self.ids()).await?;
        let writer = self.client_of(old.node).await?;
        let reader = self.client_of(old.node).await?;
        writer.put(LED_BY, OLD_VALUE).await.map_err(explain)?;
        expect(&reader, (LED_BY, OLD_VALUE), Consistency::Linearizable, old.node).await?;
        let role_changes = self.status(old.node).await?.role_changes;

        let at = Instant::now();
        self.nodes.freeze(old.node).await?;
        // The connection stands, so the put lies in the frozen process's socket: it waits on that node.
        let put = Background::spawn(async move { writer.put(WAITING.0, WAITING.1).await });
        self.frozen = Some(Frozen { node: old.node, role_changes, reader, put });
        let others = self.others(old.node);
        let lead = self.wait_for_leader(self.limits.step, old.term, &others).await?;
        let took = at.elapsed();
        self.leader = Some(lead);
        Ok(took)
    }

    async fn step_down(&mut self) -> Result<Duration, String> {
        let lead = self.lead()?;
        let frozen = self.frozen.take().ok_or("no node is frozen")?;
        let others = self.client_of_all_but(frozen.node).await?;
        others.put(LED_BY, NEW_VALUE).await.map_err(explain)?;
        if frozen.put.0.is_finished() {
            let ended = frozen.put.join().await?;
            return Err(format!(
                "the put did not wait on the frozen node, it ended with {ended:?}"
            ));
        }

        let at = Instant::now();
        self.nodes.thaw(frozen.node).await?;
        expect(&frozen.reader, (LED_BY, NEW_VALUE), Consistency::Linearizable, frozen.node).await?;
        let limit = self.limits.step;
        let status = wait_until(limit, async || {
            let status = self.status(frozen.node).await?;
            if status.role == Role::Follower && status.term >= lead.term {
                Ok(status)
            } else {
                Err(format!(
                    "node {} is {:?} at term {}, not a follower at term {} or above",
                    frozen.node, status.role, status.term, lead.term
                ))
            }
        })
        .await?;
        let took = at.elapsed();
        if status.role_changes <= frozen.role_changes {
            return Err(format!(
                "node {} follows again, but its count of role changes stayed at {}",
                frozen.node, status.role_changes
            ));
        }
        let ended = frozen.put.join().await?;
        check_effect(&others, ended).await?;
        Ok(took)
    }

    async fn rejoin(&mut self) -> Result<Duration, String> {
        let killed = self.killed()?;
        let node = killed.node;
        let caught_up_in = killed.caught_up_in.ok_or("the killed node was not started again")?;
        self.wait_for_equal_states().await?;
        let client = self.client_of(node).await?;
        let stale = Consistency::Stale { max_age: None };
        for pair in [FIRST, SECOND, THIRD, (LED_BY, NEW_VALUE)] {
            expect(&client, pair, stale, node).await?;
        }
        Ok(caught_up_in)
    }

    /// Starts the killed node and waits until it has applied all that was committed when it started.
    async fn restart_killed(&mut self) -> Result<(), String> {
        let lead = self.lead()?;
        let node = self.killed()?.node;
        let committed = self.status(lead.node).await?.commit_index;
        let at = Instant::now();
        self.nodes.start(node)?;
        let limit = self.limits.step;
        wait_until(limit, async || {
            let status = self.status(node).await?;
            if status.applied_index >= committed {
                Ok(())
            } else {
                Err(format!(
                    "node {node} has applied up to {}, not {committed} yet",
                    status.applied_index
                ))
            }
        })
        .await?;
        self.killed()?.caught_up_in = Some(at.elapsed());
        Ok(())
    }

    /// Waits until one of `nodes` leads a term above `above`, and gives it back.
    async fn wait_for_leader(
        &mut self,
        limit: Duration,
        above: u64,
        nodes: &[NodeId],
    ) -> Result<Lead, String> {
        wait_until(limit, async || {
            let statuses = self.statuses(nodes).await;
            let leads = statuses.iter().filter_map(|(node, answer)| {
                let status = answer.as_ref().ok()?;
                let leads = status.role == Role::Leader && status.term > above;
                leads.then_some(Lead { node: *node, term: status.term })
            });
            leads.max_by_key(|lead| lead.term).ok_or_else(|| {
                format!("nobody leads a term above {above}: {}", describe(&statuses))
            })
        })
        .await
    }

    /// Waits until exactly one of `nodes` leads and all follow it in its term.
    async fn wait_for_agreement(&mut self, nodes: &[NodeId]) -> Result<Lead, String> {
        let limit = self.limits.step;
        wait_until(limit, async || {
            let statuses = self.statuses(nodes).await;
            let mut answers = statuses.iter().map(|(_, answer)| answer.as_ref().ok());
            let leaders: Vec<Lead> = statuses
                .iter()
                .filter_map(|(node, answer)| {
                    let status = answer.as_ref().ok()?;
                    let leads = status.role == Role::Leader;
                    leads.then_some(Lead { node: *node, term: status.term })
                })
                .collect();
            match leaders.as_slice() {
                [lead]
                    if answers.all(|status| {
                        status.is_some_and(|status| {
                            status.term == lead.term && status.leader == Some(lead.node.get())
                        })
                    }) =>
                {
                    Ok(*lead)
                }
                _ => Err(format!("the nodes do not agree on a leader: {}", describe(&statuses))),
            }
        })
        .await
    }

    /// Waits until all nodes have applied the same entries and hash to the same state.
    async fn wait_for_equal_states(&mut self) -> Result<(), String> {
        let ids = self.ids();
        let limit = self.limits.step;
        wait_until(limit, async || {
            let statuses = self.statuses(&ids).await;
            let mut states = statuses.iter().map(|(_, answer)| {
                answer.as_ref().ok().map(|status| (status.applied_index, &status.state_hash))
            });
            let first = states.next().flatten();
            if first.is_some() && states.all(|state| state == first) {
                Ok(())
            } else {
                Err(format!("the nodes differ: {}", describe(&statuses)))
            }
        })
        .await
    }

    /// Asks `nodes` at once, so that one that does not answer holds nobody up.
    async fn statuses(&mut self, nodes: &[NodeId]) -> Vec<(NodeId, Result<NodeStatus, String>)> {
        let asked = self.probes.iter_mut().filter(|(id, _)| nodes.contains(id));
        futures::future::join_all(asked.map(async |(id, probe)| (*id, probe.status().await))).await
    }

    async fn status(&mut self, node: NodeId) -> Result<NodeStatus, String> {
        let probe = self.probes.get_mut(&node).ok_or_else(|| format!("there is no node {node}"))?;
        probe.status().await
    }

    /// A client that knows one node only, so that every request goes to it.
    async fn client_of(&self, node: NodeId) -> Result<Client, String> {
        let endpoint =
            self.endpoints.get(&node).ok_or_else(|| format!("there is no node {node}"))?;
        Client::connect([endpoint.as_str()]).await.map_err(explain)
    }

    async fn client_of_all_but(&self, node: NodeId) -> Result<Client, String> {
        let others = self.endpoints.iter().filter(|(id, _)| **id != node);
        Client::connect(others.map(|(_, endpoint)| endpoint.as_str())).await.map_err(explain)
    }

    fn ids(&self) -> Vec<NodeId> {
        self.endpoints.keys().copied().collect()
    }

    fn others(&self, than: NodeId) -> Vec<NodeId> {
        self.endpoints.keys().copied().filter(|id| *id != than).collect()
    }

    /// The node numbered `place` among all, from 1.
    fn nth(&self, place: usize) -> Result<NodeId, String> {
        let found = self.endpoints.keys().nth(place - 1);
        found.copied().ok_or_else(|| format!("there are fewer than {place} nodes"))
    }

    fn lead(&self) -> Result<Lead, String> {
        self.leader.ok_or_else(|| "no leader is known".to_owned())
    }

    fn killed(&mut self) -> Result<&mut Killed, String> {
        self.killed.as_mut().ok_or_else(|| "no node was killed".to_owned())
    }
}

/// Reads a key through `client` and checks its value.
async fn expect(
    client: &Client,
    (key, value): (&str, &str),
    consistency: Consistency,
    node: NodeId,
) -> Result<(), String> {
    let found = client.get(key).consistency(consistency).await.map_err(explain)?;
    match found {
        Some(found) if found.value == value.as_bytes() => Ok(()),
        Some(found) => Err(format!(
            "node {node} has `{}` for {key}, expected `{value}`",
            String::from_utf8_lossy(&found.value)
        )),
        None => Err(format!("node {node} has nothing for {key}, expected `{value}`")),
    }
}

/// Checks that what the put on the frozen node ended with is true.
async fn check_effect(client: &Client, ended: Result<Written, Error>) -> Result<(), String> {
    let found: Option<KeyValue> = client.get(WAITING.0).await.map_err(explain)?;
    match (ended, found) {
        (Ok(written), Some(found)) if found.mod_revision == written.revision => Ok(()),
        (Ok(written), found) => Err(format!(
            "the waiting put was accepted at revision {}, but {} holds {found:?}",
            written.revision, WAITING.0
        )),
        (Err(error), Some(found)) if error.effect() == Effect::None => Err(format!(
            "the waiting put ended without effect ({error}), but {} holds {found:?}",
            WAITING.0
        )),
        (Err(_), _) => Ok(()),
    }
}

/// An error of the client with what it says about the effect.
fn explain(error: Error) -> String {
    format!("{error} (effect: {})", error.effect().as_str())
}

fn describe(statuses: &[(NodeId, Result<NodeStatus, String>)]) -> String {
    let parts: Vec<String> = statuses
        .iter()
        .map(|(node, answer)| match answer {
            Ok(status) => format!(
                "node {node} {:?} at term {}, applied {}",
                status.role, status.term, status.applied_index
            ),
            Err(error) => format!("node {node} {error}"),
        })
        .collect();
    parts.join("; ")
}
