//! What a store says its memtable takes is what the process grows by.

use std::path::Path;
use std::sync::Arc;

use lsm_store::rng::SplitMix64;
use lsm_store::vfs::MemVfs;
use lsm_store::{
    Executor, Keep, Op, Options, PartitionId, PartitionOptions, Position, SequenceNumber, Store,
};

const DATA: PartitionId = PartitionId(0);

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("a line for it");
    let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    kib * 1024
}

/// Alone in its file, so that nothing else in the process grows meanwhile.
#[test]
fn counted_memory_is_what_the_process_grows_by() {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
    let mut options = Options::new(1, partitions);
    options.memtable_bytes = 1 << 30;
    let vfs = Arc::new(MemVfs::new(1));
    let store = Store::open(vfs, Path::new("/db"), options, Executor::Inline).expect("opens");
    let mut rng = SplitMix64::new(3);
    let small = [7_u8; 100];
    let large = vec![8_u8; 9000];
    let before = resident();
    for index in 1..=3000_u64 {
        let position = Position { index, term: 1, extra: vec![] };
        let mut run = store.begin_run(position).expect("begins");
        let keys: Vec<[u8; 16]> = (0..100)
            .map(|_| {
                let digits = format!("{:016}", rng.below(10_000_000));
                digits.as_bytes().try_into().expect("16 digits")
            })
            .collect();
        let value = |i: usize| if i == 0 { &large[..] } else { &small[..] };
        let ops: Vec<Op<'_>> =
            keys.iter().enumerate().map(|(i, key)| Op::Put { key, value: value(i) }).collect();
        run.apply(DATA, SequenceNumber(index), &ops).expect("applies");
        run.publish().expect("publishes");
    }
    let grown = resident() - before;
    let counted = store.metrics().active_memtable_bytes;
    assert!(counted > 60 << 20, "enough to tell: {counted}");
    let (low, high) = (grown - grown / 25, grown + grown / 25);
    assert!((low..=high).contains(&counted), "counted {counted}, grown by {grown}");
}
