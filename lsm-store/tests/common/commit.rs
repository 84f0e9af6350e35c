//! Operations committed in one go, by a store of either mode.

use lsm_store::{Durability, Mode, Op, PartitionId, Position, SequenceNumber, Store, WriteBatch};

/// Commits operations at `position`. In the mode without a log of the store's own, its index is also their
/// sequence number; with one, the store numbers them itself, and if every batch writes every partition it
/// comes to the same.
pub(crate) fn commit(store: &Store, mode: Mode, position: Position, ops: &[(PartitionId, Op<'_>)]) {
    match mode {
        Mode::External => {
            let number = SequenceNumber(position.index);
            let mut run = store.begin_run(position).expect("begins");
            for (partition, op) in ops {
                run.apply(*partition, number, &[*op]).expect("applies");
            }
            run.publish().expect("publishes");
        }
        Mode::Wal => {
            let mut batch = WriteBatch::new();
            for (partition, op) in ops {
                let added = match op {
                    Op::Put { key, value } => batch.put(*partition, key, value),
                    Op::Delete { key } => batch.delete(*partition, key),
                };
                added.expect("fits");
            }
            store.write(batch, Durability::Sync).expect("written");
        }
    }
}
