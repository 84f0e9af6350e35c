//! Which storage each peer has: the first one seen is pinned in the fsynced file `PEERS` (DESIGN 10.1).
//!
//! A peer whose disk was wiped and that comes back under its old id has forgotten its votes and its
//! acknowledgements (RAFT B17). Until storage ids are in the membership, this file is how that is noticed.
//!
//! The lock is held across the write of the file: it happens once per peer in a node's life.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use lsm_store::vfs::Vfs;
use parking_lot::Mutex;
use raft_core::NodeId;

use crate::small_file::{self, SmallFileError};

const FILE: &str = "PEERS";
const NAME: &str = "kv-server peers";
const VERSION: u32 = 1;

/// The pinned storage ids; shared by whoever accepts and dials peers.
#[derive(Clone, Debug)]
pub struct PeerPins {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    pins: Mutex<BTreeMap<NodeId, u128>>,
}

/// Why a peer is not let in.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerRefused {
    /// It has another disk than before.
    #[error(
        "node {node} has storage {shown:032x}, but is known with {pinned:032x}: its disk was replaced; add it anew under a new id"
    )]
    OtherStorage {
        /// Who.
        node: NodeId,
        /// What it shows.
        shown: u128,
        /// What is pinned.
        pinned: u128,
    },
    /// The pin could not be stored.
    #[error(transparent)]
    File(#[from] SmallFileError),
}

impl PeerPins {
    pub(crate) fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Self, SmallFileError> {
        let path = dir.join(FILE);
        let mut pins = BTreeMap::new();
        if let Some(mut fields) = small_file::read(&*vfs, &path, NAME, VERSION)? {
            while let Some((node, storage_id)) = fields.take_any() {
                let node = node.strip_prefix("node_").and_then(|id| NodeId::new(id.parse().ok()?));
                let storage_id = u128::from_str_radix(&storage_id, 16).ok();
                let (Some(node), Some(storage_id)) = (node, storage_id) else {
                    return Err(fields.damaged("not a node and its storage"));
                };
                pins.insert(node, storage_id);
            }
        }
        Ok(Self { shared: Arc::new(Shared { vfs, path, pins: Mutex::new(pins) }) })
    }

    /// Checks the storage a peer shows; the first one ever seen is pinned, durably, before this returns.
    ///
    /// Blocks on the disk the first time a peer is seen.
    ///
    /// # Errors
    /// [`PeerRefused::OtherStorage`] if the peer had another one; [`PeerRefused::File`] if the pin cannot be stored.
    pub fn check_peer(&self, node: NodeId, storage_id: u128) -> Result<(), PeerRefused> {
        let mut pins = self.shared.pins.lock();
        match pins.get(&node) {
            Some(&pinned) if pinned == storage_id => Ok(()),
            Some(&pinned) => Err(PeerRefused::OtherStorage { node, shown: storage_id, pinned }),
            None => {
                let mut next = pins.clone();
                next.insert(node, storage_id);
                let names: Vec<String> = next.keys().map(|id| format!("node_{id}")).collect();
                let fields: Vec<(&str, String)> = names
                    .iter()
                    .map(String::as_str)
                    .zip(next.values().map(|storage_id| format!("{storage_id:032x}")))
                    .collect();
                small_file::write(&*self.shared.vfs, &self.shared.path, NAME, VERSION, &fields)?;
                *pins = next;
                Ok(())
            }
        }
    }
}
