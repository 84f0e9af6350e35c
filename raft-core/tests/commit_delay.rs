//! When a follower that misses nothing but a higher commit index is told it.

use std::time::Duration;

use bytes::Bytes;
use raft_core::{Config, LogIndex};

use crate::cluster::{Cluster, node_id, voters};

fn propose(cluster: &mut Cluster) {
    cluster.propose(node_id(1), vec![Bytes::from_static(b"command")]);
}

/// §5.3: followers learn the commit index with the next entries; if none come within the commit
/// delay, in a message of their own; and one that asked for a read index at once.
#[test]
fn commit_index_rides_on_the_next_entries_or_comes_after_the_commit_delay() {
    let delay = Duration::from_millis(2);
    let config = Config { commit_delay: delay, ..Config::default() };
    let mut cluster = Cluster::new(voters(3), &config, 3);
    cluster.timeout(node_id(1));
    cluster.settle();
    cluster.run_until(cluster.now.after(delay));
    cluster.settle();
    let known = |cluster: &Cluster, id| -> LogIndex { cluster.status(node_id(id)).commit };
    let before = known(&cluster, 1);
    assert_eq!((known(&cluster, 2), known(&cluster, 3)), (before, before), "the delay has passed");

    propose(&mut cluster);
    cluster.settle();
    assert_eq!(known(&cluster, 1), before.next(), "a quorum has it");
    assert_eq!(known(&cluster, 2), before, "nothing was sent for the commit index alone");
    propose(&mut cluster);
    cluster.settle();
    assert_eq!(known(&cluster, 2), before.next(), "it came with the next entries");

    cluster.read(node_id(2));
    cluster.settle();
    assert_eq!(known(&cluster, 2), before.next().next(), "a reader does not wait for the delay");

    propose(&mut cluster);
    cluster.settle();
    cluster.run_until(cluster.now.after(delay));
    cluster.settle();
    let last = known(&cluster, 1);
    assert_eq!((known(&cluster, 2), known(&cluster, 3)), (last, last), "told after the delay");
}
