//! Where the nodes of a development cluster live: ids, ports, directories, and the command of each.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use raft_core::{NodeId, NodeInfo};

use crate::config::cluster;

/// What a peer port is above its client port.
const PEER_PORT_OFFSET: u16 = 1000;

/// One node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NodePlan {
    pub(crate) id: NodeId,
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) directory: PathBuf,
}

impl NodePlan {
    /// The file its output goes to.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }
}

/// All nodes, and the program that runs each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub(crate) nodes: Vec<NodePlan>,
    program: PathBuf,
    cluster: String,
}

impl Layout {
    /// Nodes 1 to `count` in directories below `directory` (absolute), the first one's clients on `base_port`.
    ///
    /// # Errors
    /// If the ports do not fit, or a path cannot stand in a command.
    pub(crate) fn new(
        program: &Path,
        directory: &Path,
        count: u16,
        base_port: u16,
    ) -> Result<Self, String> {
        if count > PEER_PORT_OFFSET || base_port.checked_add(PEER_PORT_OFFSET + count).is_none() {
            return Err(format!(
                "{count} nodes from port {base_port} on need ports up to {}, but 65535 is the last one; choose a lower --base-port",
                u32::from(base_port) + u32::from(PEER_PORT_OFFSET) + u32::from(count) - 1
            ));
        }
        for path in [program, directory] {
            if path.to_str().is_none() {
                return Err(format!("the path {} is not UTF-8", path.display()));
            }
        }
        let nodes: Vec<NodePlan> = (0..count)
            .filter_map(|at| {
                let port = base_port + at;
                Some(NodePlan {
                    id: NodeId::new(u64::from(at) + 1)?,
                    client: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                    peer: SocketAddr::from((Ipv4Addr::LOCALHOST, port + PEER_PORT_OFFSET)),
                    directory: directory.join(format!("node-{:02}", at + 1)),
                })
            })
            .collect();
        let members = nodes
            .iter()
            .map(|node| {
                let info = NodeInfo {
                    peer_addr: node.peer.to_string(),
                    client_addr: node.client.to_string(),
                    storage_id: None,
                };
                (node.id, info)
            })
            .collect();
        Ok(Self { nodes, program: program.to_owned(), cluster: cluster::show(&members) })
    }

    /// The program that runs a node.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The arguments that run `node` by hand.
    pub(crate) fn arguments(&self, node: &NodePlan) -> Vec<String> {
        vec![
            "run".to_owned(),
            "--id".to_owned(),
            node.id.to_string(),
            "--data-dir".to_owned(),
            node.directory.display().to_string(),
            "--listen-client".to_owned(),
            node.client.to_string(),
            "--listen-peer".to_owned(),
            node.peer.to_string(),
            "--cluster".to_owned(),
            self.cluster.clone(),
        ]
    }

    /// The command that starts `node` by hand: absolute, quoted for a shell.
    pub(crate) fn restart_command(&self, node: &NodePlan) -> String {
        let program = self.program.display().to_string();
        let arguments = self.arguments(node);
        let words = std::iter::once(program.as_str()).chain(arguments.iter().map(String::as_str));
        // Only a NUL byte cannot be quoted, and no path holds one.
        shlex::try_join(words).unwrap_or(program)
    }

    /// Where clients reach the nodes, with commas.
    pub(crate) fn endpoints(&self) -> String {
        let addresses: Vec<String> =
            self.nodes.iter().map(|node| node.client.to_string()).collect();
        addresses.join(",")
    }

    /// Checks every port before anything starts.
    ///
    /// # Errors
    /// Names every port that cannot be had, whose it is, and what to do.
    pub(crate) fn check_ports(&self) -> Result<(), String> {
        let mut taken = Vec::new();
        // All at once, so that none can be taken by another of the same check.
        let mut held = Vec::new();
        for node in &self.nodes {
            for (address, of) in [(node.client, "clients"), (node.peer, "peers")] {
                match TcpListener::bind(address) {
                    Ok(listener) => held.push(listener),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        taken.push(format!("{address} ({of} of node {}) is in use", node.id));
                    }
                    Err(error) => {
                        taken.push(format!("{address} ({of} of node {}): {error}", node.id));
                    }
                }
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        Err(format!("{}; stop what uses them, or choose others with --base-port", taken.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_ports_follow_from_the_number_of_the_node() {
        let layout = Layout::new(Path::new("/bin/kv"), Path::new("/d"), 4, 3331).unwrap();
        let last = &layout.nodes[3];
        assert_eq!(last.directory, Path::new("/d/node-04"));
        assert_eq!((last.client.port(), last.peer.port()), (3334, 4334));
        assert_eq!(
            layout.endpoints(),
            "127.0.0.1:3331,127.0.0.1:3332,127.0.0.1:3333,127.0.0.1:3334"
        );
    }

    #[test]
    fn the_restart_command_survives_a_shell() {
        let layout =
            Layout::new(Path::new("/my programs/kv server"), Path::new("/it's"), 2, 3331).unwrap();
        let command = layout.restart_command(&layout.nodes[1]);
        let words = shlex::split(&command).unwrap();
        assert_eq!(words[0], "/my programs/kv server");
        assert_eq!(words[1..], layout.arguments(&layout.nodes[1]));
        assert!(words.contains(&"/it's/node-02".to_owned()), "{command}");
        assert!(!command.contains("exit-on-stdin-close"), "{command}");
    }

    #[test]
    fn ports_beyond_the_last_one_are_refused_before_anything_starts() {
        let error = Layout::new(Path::new("/k"), Path::new("/d"), 4, 64_533).unwrap_err();
        assert!(error.contains("65536") && error.contains("--base-port"), "{error}");
        assert!(Layout::new(Path::new("/k"), Path::new("/d"), 4, 64_531).is_ok());
    }

    #[test]
    fn every_port_in_use_is_named() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = held.local_addr().unwrap();
        let mut layout = Layout::new(Path::new("/k"), Path::new("/d"), 2, 3331).unwrap();
        for (node, peer) in layout.nodes.iter_mut().zip([taken.port(), 0]) {
            node.client.set_port(if peer == 0 { taken.port() } else { 0 });
            node.peer.set_port(peer);
        }
        let error = layout.check_ports().unwrap_err();
        assert!(error.contains(&format!("{taken} (peers of node 1)")), "{error}");
        assert!(error.contains(&format!("{taken} (clients of node 2)")), "{error}");
    }
}
