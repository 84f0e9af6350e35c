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

#[cfg(test)]
mod tests {
    use lsm_store::vfs::{CrashPolicy, Fault, FaultKind, FaultWhen, MemVfs, OpSet};

    use super::*;

    fn open(vfs: &MemVfs) -> PeerPins {
        PeerPins::open(Arc::new(vfs.clone()), Path::new("/node")).unwrap()
    }

    #[test]
    fn the_first_storage_of_a_peer_is_pinned_durably_and_another_is_refused() {
        let vfs = MemVfs::new(1);
        lsm_store::vfs::create_dir_durable(&vfs, Path::new("/node")).unwrap();
        let (two, three) = (NodeId::new(2).unwrap(), NodeId::new(3).unwrap());
        let pins = open(&vfs);
        pins.check_peer(two, 0xa).unwrap();
        pins.check_peer(three, 0xb).unwrap();
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, 1);
        let pins = open(&vfs);
        pins.check_peer(two, 0xa).unwrap();
        let error = pins.check_peer(three, 0xc).unwrap_err();
        assert!(
            matches!(error, PeerRefused::OtherStorage { node, shown: 0xc, pinned: 0xb } if node == three),
            "{error}"
        );
    }

    #[test]
    fn a_pin_that_cannot_be_stored_lets_nobody_in() {
        let vfs = MemVfs::new(1);
        lsm_store::vfs::create_dir_durable(&vfs, Path::new("/node")).unwrap();
        let two = NodeId::new(2).unwrap();
        let pins = open(&vfs);
        vfs.add_fault(Fault {
            ops: OpSet::SYNCS,
            when: FaultWhen::Always,
            kind: FaultKind::Io,
            path_contains: String::new(),
        });
        assert!(pins.check_peer(two, 0xa).is_err(), "let in without a pin");
        vfs.clear_faults();
        pins.check_peer(two, 0xb).unwrap();
        assert!(pins.check_peer(two, 0xa).is_err(), "only the stored pin counts");
    }
}
