//! The list of a cluster's founding members as text: `1=PEER_ADDR/CLIENT_ADDR,2=…`.
//!
//! Addresses are `HOST:PORT`, where the host may be a name, since members find each other by it
//! wherever they run. They are compared as text: the cluster id is a hash of this list, so every
//! founding member must be given the same list, letter by letter.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use raft_core::{NodeId, NodeInfo};

use super::server::MEMBERS_MAX;

/// Reads a list of members.
///
/// # Errors
/// Names the member that is wrong, and how it should look.
pub fn parse(text: &str) -> Result<BTreeMap<NodeId, NodeInfo>, String> {
    let mut nodes = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (id, info) = parse_member(part)?;
        for address in [&info.peer_addr, &info.client_addr] {
            if !seen.insert(address.clone()) {
                return Err(format!("the address {address} occurs twice in the list of members"));
            }
        }
        if nodes.insert(id, info).is_some() {
            return Err(format!("node {id} occurs twice in the list of members"));
        }
    }
    if nodes.len() > MEMBERS_MAX {
        return Err(format!("{} members, at most {MEMBERS_MAX} are possible", nodes.len()));
    }
    Ok(nodes)
}

/// The text that [`parse`] reads as `nodes`, in the order of their ids.
#[must_use]
pub fn show(nodes: &BTreeMap<NodeId, NodeInfo>) -> String {
    let mut text = String::new();
    for (id, info) in nodes {
        let comma = if text.is_empty() { "" } else { "," };
        let written = write!(text, "{comma}{id}={}/{}", info.peer_addr, info.client_addr);
        debug_assert!(written.is_ok(), "writing into a string cannot fail");
    }
    text
}

fn parse_member(text: &str) -> Result<(NodeId, NodeInfo), String> {
    let shape = || format!("`{text}` is no member, expected ID=PEER_ADDR/CLIENT_ADDR");
    let (id, addresses) = text.split_once('=').ok_or_else(shape)?;
    let (peer, client) = addresses.split_once('/').ok_or_else(shape)?;
    let id = parse_node_id(id.trim())?;
    let info = NodeInfo {
        peer_addr: check_address(peer.trim())?,
        client_addr: check_address(client.trim())?,
        storage_id: None,
    };
    Ok((id, info))
}

/// Reads a node id.
///
/// # Errors
/// If it is no whole number from 1 on.
pub fn parse_node_id(text: &str) -> Result<NodeId, String> {
    text.parse::<u64>()
        .ok()
        .and_then(NodeId::new)
        .ok_or_else(|| format!("`{text}` is no node id, expected a whole number from 1 on"))
}

/// Checks that `text` is `HOST:PORT` with a port that can be dialled, and gives it back.
fn check_address(text: &str) -> Result<String, String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("`{text}` is no address, expected HOST:PORT"))?;
    let port_fits = port.parse::<u16>().is_ok_and(|port| port != 0);
    if !port_fits {
        return Err(format!("`{text}` has no port from 1 to 65535 at its end, expected HOST:PORT"));
    }
    // A bare IPv6 address is ambiguous with its port; brackets make it one.
    let bare_colon = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || bare_colon || host.contains(|c: char| c.is_whitespace() || c == '/') {
        return Err(format!("`{text}` has no host before its port, expected HOST:PORT"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_members_is_read_and_shown() {
        let text = "1=10.0.0.1:4331/10.0.0.1:3331,2=kv-2.internal:4331/kv-2.internal:3331,3=[::1]:4331/[::1]:3331";
        let nodes = parse(text).unwrap();
        assert_eq!(nodes.len(), 3);
        assert_eq!(nodes[&NodeId::new(2).unwrap()].peer_addr, "kv-2.internal:4331");
        assert_eq!(show(&nodes), text);
    }

    #[test]
    fn each_mistake_is_named() {
        for (text, part) in [
            ("", "is no member"),
            ("1=a:1", "is no member"),
            ("1=a:1/a:2,", "is no member"),
            ("0=a:1/a:2", "from 1 on"),
            ("x=a:1/a:2", "from 1 on"),
            ("1=a/a:2", "HOST:PORT"),
            ("1=a:0/a:2", "port from 1"),
            ("1=:1/a:2", "no host"),
            ("1=::1:4331/a:2", "no host"),
            ("1=a:1/a:1", "occurs twice"),
            ("1=a:1/a:2,1=b:1/b:2", "node 1 occurs twice"),
            ("1=a:1/a:2,2=a:1/b:2", "address a:1 occurs twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text:?} gave {error:?}");
        }
    }
}
