//! `status`: what the nodes say of themselves, as one document. Needs no leader.

use std::time::{Duration, Instant};

use crate::{ClusterStatus, NodeReport, NodeStatus, Role, StorageState};

use super::builder;
use crate::kvctl::args::{Format, Global, Status};
use crate::kvctl::failure::Failure;
use crate::kvctl::json::Object;
use crate::kvctl::output::{Output, escape};

/// How often the nodes are asked while waiting.
const POLL: Duration = Duration::from_millis(50);

pub(crate) async fn status(global: &Global, asked: Status) -> Result<(), Failure> {
    let mut output = Output::new(global.output)?;
    // Members that no endpoint was given for belong to the picture.
    let kv = builder(global).discover(true).connect_lazily().map_err(Failure::Read)?;
    let until = asked.wait.map(|wait| Instant::now() + wait);
    let status = loop {
        let status = kv.cluster().report().await;
        if status.healthy || until.is_none_or(|until| Instant::now() + POLL >= until) {
            break status;
        }
        tokio::time::sleep(POLL).await;
    };
    match output.format() {
        Format::Json => output.line(&document(&status).to_line())?,
        Format::Plain | Format::Raw => print_plain(&mut output, &status)?,
        Format::Table => print_table(&mut output, &status)?,
    }
    output.flush()?;
    if !status.anyone_answered() {
        return Err(Failure::NobodyAnswered);
    }
    if status.healthy { Ok(()) } else { Err(Failure::Problem) }
}

fn document(status: &ClusterStatus) -> Object {
    Object::new()
        .with("leader", status.leader)
        .with("term", status.term)
        .with("revision", status.revision)
        .with("cluster_id", status.cluster_id.clone())
        .with("healthy", status.healthy)
        .with_list("nodes", status.nodes.iter().map(node_document).collect())
}

fn node_document(report: &NodeReport) -> Object {
    let object =
        Object::new().with("id", report.id).with("client_addr", report.client_addr.as_str());
    let node = match &report.status {
        Ok(node) => node,
        Err(error) => return object.with("reachable", false).with("error", error.as_str()),
    };
    let peers = node
        .peers
        .iter()
        .map(|peer| {
            let state = if peer.connected { "connected" } else { "broken" };
            Object::new().with("id", peer.id).with("state", state).with("changes", peer.changes)
        })
        .collect();
    object
        .with("peer_addr", report.peer_addr.clone())
        .with("reachable", true)
        .with("voter", node.voter)
        .with("role", role(node.role))
        .with("term", node.term)
        .with("last_index", node.last_index)
        .with("commit_index", node.commit_index)
        .with("applied_index", node.applied_index)
        .with("state_hash", node.state_hash.as_str())
        .with("version", node.version.as_str())
        .with("storage", storage(node.storage))
        .with("alarms", node.alarms.clone())
        .with("elections", node.elections)
        .with("role_changes", node.role_changes)
        .with("connection_changes", node.connection_changes)
        .with("forwarded", node.forwarded)
        .with_list("peers", peers)
}

const HEADER: [&str; 12] = [
    "node",
    "client address",
    "role",
    "term",
    "applied",
    "last index",
    "revision",
    "storage",
    "elections",
    "role changes",
    "forwarded",
    "peers",
];

fn summary(status: &ClusterStatus) -> String {
    let leader = status.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string());
    let health = if status.healthy { "healthy" } else { "not healthy" };
    let cluster = status.cluster_id.as_deref().unwrap_or("unknown");
    format!(
        "leader {leader}\tterm {}\trevision {}\t{health}\tcluster {cluster}",
        status.term, status.revision
    )
}

fn row(report: &NodeReport) -> Vec<String> {
    let id = report.id.map_or_else(|| "?".to_owned(), |id| id.to_string());
    let mut row = vec![id, escape(report.client_addr.as_bytes())];
    match &report.status {
        Ok(node) => row.extend(node_cells(node)),
        Err(error) => {
            row.push(format!("unreachable: {}", escape(error.as_bytes())));
            row.resize(HEADER.len(), "-".to_owned());
        }
    }
    row
}

fn node_cells(node: &NodeStatus) -> Vec<String> {
    let connected = node.peers.iter().filter(|peer| peer.connected).count();
    let role = if node.voter {
        role(node.role).to_owned()
    } else {
        format!("{}, no voter", role(node.role))
    };
    let mut storage = storage(node.storage).to_owned();
    for alarm in &node.alarms {
        storage.push_str("; ");
        storage.push_str(&escape(alarm.as_bytes()));
    }
    vec![
        role,
        node.term.to_string(),
        node.applied_index.to_string(),
        node.last_index.to_string(),
        node.revision.to_string(),
        storage,
        node.elections.to_string(),
        node.role_changes.to_string(),
        node.forwarded.to_string(),
        format!("{connected}/{}", node.peers.len()),
    ]
}

fn print_plain(output: &mut Output, status: &ClusterStatus) -> Result<(), Failure> {
    output.line(&summary(status))?;
    output.line(&HEADER.join("\t"))?;
    for report in &status.nodes {
        output.line(&row(report).join("\t"))?;
    }
    Ok(())
}

fn print_table(output: &mut Output, status: &ClusterStatus) -> Result<(), Failure> {
    output.line(&summary(status).replace('\t', "   "))?;
    output.table(&HEADER, status.nodes.iter().map(row).collect())
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre_candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::Learner => "learner",
        Role::Quarantined => "quarantined",
        Role::Halted => "halted",
    }
}

fn storage(state: StorageState) -> &'static str {
    match state {
        StorageState::Ok => "ok",
        StorageState::Damaged => "damaged",
        StorageState::Quarantined => "quarantined",
        StorageState::Full => "full",
        StorageState::Stalled => "stalled",
    }
}
