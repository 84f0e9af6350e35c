//! Who a data directory belongs to: the `IDENTITY` file (DESIGN 10.1).
//!
//! It is fsynced before anything else is written. Later starts take it as the truth and refuse another
//! node or another cluster. `state` tells a first start that was cut short (its log may be missing) from
//! a directory that has lost its log (it may have voted: never start it).

use std::{
    fmt,
    path::{Path, PathBuf},
};

use lsm_store::vfs::Vfs;
use raft_core::{Membership, NodeId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::small_file::{self, SmallFileError};

/// The newest version of the file this program knows.
pub const IDENTITY_VERSION: u32 = 1;

pub(crate) const IDENTITY_FILE: &str = "IDENTITY";
const NAME: &str = "kv-server identity";

/// The id of the cluster that begins with `membership`: a 128-bit hash over the list of its nodes with
/// their addresses, sorted by id.
#[must_use]
pub fn cluster_id(membership: &Membership) -> u128 {
    let mut bytes = b"kv cluster 1\0".to_vec();
    for (id, node) in membership.nodes() {
        bytes.extend_from_slice(&id.get().to_le_bytes());
        for address in [&node.peer_addr, &node.client_addr] {
            bytes.extend_from_slice(&(address.len() as u64).to_le_bytes());
            bytes.extend_from_slice(address.as_bytes());
        }
    }
    xxh3_128(&bytes)
}

/// How far the first start came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirectoryState {
    /// The log and the engine may not exist yet; nothing was ever promised to anybody.
    Formatting,
    /// The log and the engine exist.
    Ready,
}

/// What the file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u128,
    /// The node.
    pub node_id: NodeId,
    /// Random, given when the directory was formatted: a wiped disk is another node (RAFT B17).
    pub storage_id: u128,
    /// How often the cluster was recovered by force; 0 at first.
    pub generation: u64,
    /// How far the first start came.
    pub state: DirectoryState,
}

/// Why a directory is not this node's.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] SmallFileError),
    /// The directory belongs to another cluster.
    #[error(
        "data directory {dir} belongs to cluster {found:032x}, node {node}, but --cluster or --cluster-id says {asked:032x}"
    )]
    OtherCluster {
        /// The directory.
        dir: PathBuf,
        /// Its cluster.
        found: u128,
        /// Its node.
        node: NodeId,
        /// The cluster asked for.
        asked: u128,
    },
    /// The directory belongs to another node.
    #[error(
        "data directory {dir} belongs to cluster {cluster:032x}, node {found}, but --id says {asked}"
    )]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Its cluster.
        cluster: u128,
        /// Its node.
        found: NodeId,
        /// The node asked for.
        asked: NodeId,
    },
    /// There is data, but no word whose.
    #[error(
        "data directory {dir} holds {held} but no IDENTITY: restore it, or give the node a new id and an empty directory"
    )]
    Missing {
        /// The directory.
        dir: PathBuf,
        /// What it holds.
        held: &'static str,
    },
    /// The directory was in use, and its log is gone.
    #[error(
        "data directory {dir} was in use but its log is gone: what it voted and acknowledged is lost; give the node a new id and an empty directory"
    )]
    LogLost {
        /// The directory.
        dir: PathBuf,
    },
}

impl Identity {
    /// Reads the identity of `dir`, or gives it one.
    ///
    /// `seed` is where a new storage id comes from; the server draws it from the operating system.
    ///
    /// # Errors
    /// [`IdentityError`]: the directory is another node's, of a newer program, or damaged.
    pub fn claim(
        vfs: &dyn Vfs,
        dir: &Path,
        cluster_id: u128,
        node_id: NodeId,
        seed: u64,
    ) -> Result<Self, IdentityError> {
        match Self::read(vfs, dir)? {
            Some(found) if found.cluster_id != cluster_id => Err(IdentityError::OtherCluster {
                dir: dir.to_owned(),
                found: found.cluster_id,
                node: found.node_id,
                asked: cluster_id,
            }),
            Some(found) if found.node_id != node_id => Err(IdentityError::OtherNode {
                dir: dir.to_owned(),
                cluster: found.cluster_id,
                found: found.node_id,
                asked: node_id,
            }),
            Some(found) => Ok(found),
            None => {
                let new = Self {
                    cluster_id,
                    node_id,
                    storage_id: new_storage_id(cluster_id, node_id, seed),
                    generation: 0,
                    state: DirectoryState::Formatting,
                };
                new.write(vfs, dir)?;
                Ok(new)
            }
        }
    }

    /// Notes that the log and the engine exist.
    ///
    /// # Errors
    /// [`IdentityError::File`] if the file cannot be written.
    pub fn set_ready(&mut self, vfs: &dyn Vfs, dir: &Path) -> Result<(), IdentityError> {
        let ready = Self { state: DirectoryState::Ready, ..*self };
        ready.write(vfs, dir)?;
        *self = ready;
        Ok(())
    }

    /// The id of the engine and of the log below this identity: both are bound to it, so that files of
    /// another node are refused.
    #[must_use]
    pub fn store_id(&self, of: &str) -> u128 {
        let mut bytes = of.as_bytes().to_vec();
        bytes.extend_from_slice(&self.storage_id.to_le_bytes());
        xxh3_128(&bytes)
    }

    fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(mut fields) =
            small_file::read(vfs, &dir.join(IDENTITY_FILE), NAME, IDENTITY_VERSION)?
        else {
            return Ok(None);
        };
        let hex = |text: &str| u128::from_str_radix(text, 16).ok();
        let identity = Self {
            cluster_id: fields.take("cluster_id", hex)?,
            node_id: fields.take("node_id", |text| NodeId::new(text.parse().ok()?))?,
            storage_id: fields.take("storage_id", hex)?,
            generation: fields.take("generation", |text| text.parse().ok())?,
            state: fields.take("state", |text| match text {
                "formatting" => Some(DirectoryState::Formatting),
                "ready" => Some(DirectoryState::Ready),
                _ => None,
            })?,
        };
        fields.finish()?;
        Ok(Some(identity))
    }

    fn write(&self, vfs: &dyn Vfs, dir: &Path) -> Result<(), IdentityError> {
        let state = match self.state {
            DirectoryState::Formatting => "formatting",
            DirectoryState::Ready => "ready",
        };
        small_file::write(
            vfs,
            &dir.join(IDENTITY_FILE),
            NAME,
            IDENTITY_VERSION,
            &[
                ("cluster_id", format!("{:032x}", self.cluster_id)),
                ("node_id", self.node_id.to_string()),
                ("storage_id", format!("{:032x}", self.storage_id)),
                ("generation", self.generation.to_string()),
                ("state", state.to_owned()),
            ],
        )?;
        Ok(())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {:032x}", self.node_id, self.cluster_id)
    }
}

fn new_storage_id(cluster_id: u128, node_id: NodeId, seed: u64) -> u128 {
    let mut bytes = b"kv storage 1\0".to_vec();
    bytes.extend_from_slice(&cluster_id.to_le_bytes());
    bytes.extend_from_slice(&node_id.get().to_le_bytes());
    bytes.extend_from_slice(&seed.to_le_bytes());
    xxh3_128(&bytes)
}

/// The seed of one boot of one node, from the caller's seed: equal seeds on all nodes still give
/// different election timeouts (RAFT B85).
#[must_use]
pub(crate) fn boot_seed(seed: u64, node_id: NodeId, purpose: &str) -> u64 {
    let mut bytes = purpose.as_bytes().to_vec();
    bytes.extend_from_slice(&seed.to_le_bytes());
    bytes.extend_from_slice(&node_id.get().to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lsm_store::vfs::{CrashPolicy, MemVfs};
    use raft_core::NodeInfo;

    use super::*;

    const DIR: &str = "/node-03";
    const FILE: &str = "/node-03/IDENTITY";

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn disk() -> MemVfs {
        let vfs = MemVfs::new(1);
        lsm_store::vfs::create_dir_durable(&vfs, Path::new(DIR)).unwrap();
        vfs
    }

    fn claim(vfs: &MemVfs, cluster: u128, id: u64, seed: u64) -> Result<Identity, IdentityError> {
        Identity::claim(vfs, Path::new(DIR), cluster, node(id), seed)
    }

    #[test]
    fn the_first_claim_is_durable_and_later_ones_find_it() {
        let vfs = disk();
        let mut first = claim(&vfs, 0x41af, 3, 7).unwrap();
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
        assert_eq!(claim(&vfs, 0x41af, 3, 8).unwrap(), first, "the storage id is drawn once");
        first.set_ready(&vfs, Path::new(DIR)).unwrap();
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, 2);
        let found = claim(&vfs, 0x41af, 3, 9).unwrap();
        assert_eq!(found.state, DirectoryState::Ready, "ready stays ready");
        assert_eq!(found, first, "nothing else changed");
    }

    #[test]
    fn another_node_or_cluster_is_refused_in_words_that_help() {
        let vfs = disk();
        claim(&vfs, 0x9c1e, 3, 7).unwrap();
        let error = claim(&vfs, 0x41af, 3, 7).unwrap_err().to_string();
        let expected = format!(
            "data directory /node-03 belongs to cluster {:032x}, node 3, but --cluster or --cluster-id says {:032x}",
            0x9c1e, 0x41af
        );
        assert_eq!(error, expected, "another cluster");
        let error = claim(&vfs, 0x9c1e, 4, 7).unwrap_err().to_string();
        assert!(error.ends_with("node 3, but --id says 4"), "another node: {error}");
    }

    #[test]
    fn a_newer_version_is_refused_by_name_and_every_flipped_bit_is_noticed() {
        let vfs = disk();
        let good = claim(&vfs, 5, 3, 7).unwrap();
        let text = vfs.content(Path::new(FILE)).unwrap();
        let newer = String::from_utf8(text.clone()).unwrap().replacen("version 1", "version 2", 1);
        vfs.replace(Path::new(FILE), newer.as_bytes()).unwrap();
        let error = claim(&vfs, 5, 3, 7).unwrap_err();
        assert!(
            matches!(
                error,
                IdentityError::File(SmallFileError::UnknownVersion { found: 2, supported: 1, .. })
            ),
            "{error}"
        );
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            vfs.replace(Path::new(FILE), &flipped).unwrap();
            match claim(&vfs, 5, 3, 7) {
                Err(IdentityError::File(_)) => {}
                other => panic!("bit {bit}: {other:?}"),
            }
        }
        vfs.replace(Path::new(FILE), &text).unwrap();
        assert_eq!(claim(&vfs, 5, 3, 7).unwrap(), good, "unharmed");
    }

    #[test]
    fn a_crash_while_claiming_leaves_nothing_or_an_identity() {
        for call in 0..12 {
            for policy in CrashPolicy::ALL {
                let vfs = disk();
                vfs.crash_at(vfs.mutating_calls() + call);
                let claimed = claim(&vfs, 5, 3, 7);
                vfs.crash(policy, call);
                let found = claim(&vfs, 5, 3, 8).unwrap();
                if let Ok(claimed) = claimed {
                    assert_eq!(found, claimed, "call {call}, {policy:?}: an identity was lost");
                }
            }
        }
    }

    #[test]
    fn the_cluster_id_depends_on_every_id_and_address() {
        let id = |list: &[(u64, &str, &str)]| {
            let nodes = list.iter().map(|&(id, peer, client)| {
                let (peer_addr, client_addr) = (peer.to_owned(), client.to_owned());
                (node(id), NodeInfo { peer_addr, client_addr, storage_id: None })
            });
            cluster_id(&Membership::of_voters(nodes.collect::<BTreeMap<_, _>>()).unwrap())
        };
        let base = id(&[(1, "a:1", "a:2"), (2, "b:1", "b:2")]);
        assert_eq!(base, id(&[(2, "b:1", "b:2"), (1, "a:1", "a:2")]), "the order is that of ids");
        for other in [
            id(&[(1, "a:1", "a:2"), (3, "b:1", "b:2")]),
            id(&[(1, "a:1", "a:2"), (2, "b:1", "b:3")]),
            id(&[(1, "a:1", "a:2"), (2, "b:1b", ":2")]),
            id(&[(1, "a:1", "a:2")]),
        ] {
            assert_ne!(base, other, "another list has the same id");
        }
    }
}
