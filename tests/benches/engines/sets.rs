//! What is measured: sets of rows, each with its sizes, and the groups of rows that share a process.

use lsm_store::bench::{Settings, Workload};

/// After a crash: the row that is not a workload of one process.
pub(crate) const RECOVER: &str = "recover";

/// Rows that run on the same sizes and settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// What the table says above it.
    pub(crate) title: &'static str,
    keys: u64,
    pub(crate) value_bytes: usize,
    cache_bytes: usize,
    compressed: bool,
    groups: &'static [Rows],
}

const MIB: usize = 1 << 20;

/// One process, in this order.
#[derive(Clone, Copy, Debug)]
struct Rows {
    workloads: &'static [Workload],
    needs: Needs,
}

/// What a process finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needs {
    /// Nothing: it begins with an empty store.
    Nothing,
    /// The store that the group with [`Workload::FillBatch`] left.
    Load,
    /// What a killed process left.
    Crash,
}

const fn alone(workloads: &'static [Workload]) -> Rows {
    Rows { workloads, needs: Needs::Nothing }
}

const fn loaded(workloads: &'static [Workload]) -> Rows {
    Rows { workloads, needs: Needs::Load }
}

use Workload as W;

/// Everything.
const ALL: &[Rows] = &[
    alone(&[W::FillSeq]),
    alone(&[W::FillSync]),
    alone(&[W::FillSync8]),
    alone(&[W::FillRandom, W::Overwrite, W::DeleteRandom]),
    Rows { workloads: &[], needs: Needs::Crash },
    alone(&[W::FillBatch, W::Compact, W::Reopen]),
    loaded(&[
        W::ReadRandom,
        W::ReadRandom2,
        W::ReadMissing,
        W::ReadHot,
        W::SeekRandom,
        W::ReadSeq,
        W::ReadReverse,
    ]),
    loaded(&[W::ReadWhileWriting]),
    loaded(&[W::Mixed]),
];

/// What depends on the cache.
const READS: &[Rows] = &[
    alone(&[W::FillBatch, W::Compact, W::Reopen]),
    loaded(&[W::ReadRandom, W::ReadMissing, W::ReadHot, W::SeekRandom, W::ReadSeq, W::ReadReverse]),
];

/// All sets.
pub(crate) const SETS: [Set; 5] = [
    Set {
        name: "main",
        title: "values of 100 bytes, cache 512 MiB: everything fits",
        keys: 2_000_000,
        value_bytes: 100,
        cache_bytes: 512 * MIB,
        compressed: false,
        groups: ALL,
    },
    Set {
        name: "kib",
        title: "values of 1 KiB, cache 640 MiB: everything fits",
        keys: 400_000,
        value_bytes: 1024,
        cache_bytes: 640 * MIB,
        compressed: false,
        groups: ALL,
    },
    Set {
        name: "c64",
        title: "values of 100 bytes, cache 64 MiB: a quarter fits, the files are in the page cache",
        keys: 2_000_000,
        value_bytes: 100,
        cache_bytes: 64 * MIB,
        compressed: false,
        groups: READS,
    },
    Set {
        name: "lz4",
        title: "values of 100 bytes, cache 512 MiB, compressed",
        keys: 2_000_000,
        value_bytes: 100,
        cache_bytes: 512 * MIB,
        compressed: true,
        groups: READS,
    },
    Set {
        name: "big",
        title: "values of 100 bytes, cache 64 MiB: one part in fourteen fits, the files are in the page cache",
        keys: 8_000_000,
        value_bytes: 100,
        cache_bytes: 64 * MIB,
        compressed: false,
        groups: READS,
    },
];

/// The rows of one process.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// What it runs.
    pub(crate) workloads: Vec<Workload>,
    /// The rows of it that were asked for; the others only prepare.
    pub(crate) shown: Vec<String>,
    /// The store is loaded already.
    pub(crate) on_loaded: bool,
    /// A process that is killed, and one that opens what it left.
    pub(crate) recover: bool,
}

impl Group {
    pub(crate) fn shows(&self, workload: &str) -> bool {
        self.shown.iter().any(|shown| shown == workload)
    }
}

impl Set {
    /// How many keys; `n` in place of the set's own number.
    pub(crate) fn keys(&self, n: Option<u64>) -> u64 {
        match n {
            None => self.keys,
            Some(n) if self.value_bytes >= 1000 => n / 5,
            Some(n) => n,
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            cache_bytes: self.cache_bytes,
            compressed: self.compressed,
            ..Settings::default()
        }
    }

    /// Whether the set means anything for an engine: redb compresses nothing.
    pub(crate) fn has(&self, engine: &str) -> bool {
        !(self.compressed && engine == "redb")
    }

    /// The processes to run for these rows, all rows if none are named.
    pub(crate) fn groups(&self, rows: &[String]) -> Vec<Group> {
        let asked = |name: &str| rows.is_empty() || rows.iter().any(|row| row == name);
        let mut groups = Vec::new();
        for group in self.groups {
            let names = group.workloads.iter().map(|workload| workload.name());
            let recover = group.needs == Needs::Crash;
            let shown: Vec<String> = names
                .chain(recover.then_some(RECOVER))
                .filter(|name| asked(name))
                .map(str::to_owned)
                .collect();
            let loads = group.workloads.contains(&Workload::FillBatch);
            let later_reads = self.groups.iter().any(|other| {
                other.needs == Needs::Load && other.workloads.iter().any(|w| asked(w.name()))
            });
            if shown.is_empty() && !(loads && later_reads) {
                continue;
            }
            // What comes after the last row asked for is not needed, unless others read it.
            let last = group.workloads.iter().rposition(|w| asked(w.name()));
            let until = match last {
                _ if loads && later_reads => group.workloads.len(),
                Some(last) => last + 1,
                None => 0,
            };
            let workloads = group.workloads.iter().take(until).copied();
            // A load for others needs no reopening, and a row on a loaded store none before it.
            let workloads = workloads
                .filter(|w| group.needs == Needs::Nothing || asked(w.name()))
                .filter(|w| *w != Workload::Reopen || asked(w.name()))
                .collect();
            let on_loaded = group.needs == Needs::Load;
            groups.push(Group { workloads, shown, on_loaded, recover });
        }
        groups
    }

    /// Names of the rows, in order.
    pub(crate) fn rows(&self) -> Vec<&'static str> {
        let mut rows = Vec::new();
        for group in self.groups {
            rows.extend(group.workloads.iter().map(|workload| workload.name()));
            if group.needs == Needs::Crash {
                rows.push(RECOVER);
            }
        }
        rows
    }
}
