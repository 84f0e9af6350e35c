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
