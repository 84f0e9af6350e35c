//! Drawing options: every boundary inside the engine somewhere within a few dozen keys, and far away.

use lsm_store::rng::SplitMix64;
use lsm_store::{Compression, Executor, Keep, Mode, Options, PartitionOptions};

use crate::player::Setup;
use crate::seeds::index;

/// Draws a number of `[low, high]` so that each order of magnitude is as likely as another.
pub(crate) fn scaled(rng: &mut SplitMix64, low: u64, high: u64) -> u64 {
    let octaves = u64::from(high.ilog2() - low.max(1).ilog2());
    let base = low.max(1) << rng.below(octaves + 1);
    (base + rng.below(base)).clamp(low, high)
}

/// The defaults, for the two partitions of every history.
pub(crate) fn default_options(mode: Mode) -> Options {
    let partition = |name: &str, keep| PartitionOptions { name: name.to_owned(), keep };
    let partitions = vec![partition("data", Keep::All), partition("meta", Keep::NewestOnly)];
    Options { mode, ..Options::new(11, partitions) }
}

/// One way to make a setup less special; what makes no difference to a failure is taken away with these.
pub(crate) type Simplify = (&'static str, fn(&mut Options, &Options));

/// All of them, one for each option that is drawn.
pub(crate) const SIMPLIFY: [Simplify; 16] = [
    ("wal_segment_bytes", |o, d| o.wal_segment_bytes = d.wal_segment_bytes),
    ("uid_seed", |o, d| o.uid_seed = d.uid_seed),
    ("memtable_bytes", |o, d| o.memtable_bytes = d.memtable_bytes),
    ("frozen_max", |o, d| o.frozen_max = d.frozen_max),
    ("block_bytes", |o, d| o.block_bytes = d.block_bytes),
    ("restart_interval", |o, d| o.restart_interval = d.restart_interval),
    ("index_partition_bytes", |o, d| o.index_partition_bytes = d.index_partition_bytes),
    ("filter_bits_per_key", |o, d| o.filter_bits_per_key = d.filter_bits_per_key),
    ("compression", |o, d| o.compression = d.compression),
    ("cache_bytes", |o, d| o.cache_bytes = d.cache_bytes),
    ("table_bytes", |o, d| o.table_bytes = d.table_bytes),
    ("l0_trigger", |o, d| o.l0_trigger = d.l0_trigger.min(o.l0_stop - 1)),
    ("l0_stop", |o, d| o.l0_stop = d.l0_stop.max(o.l0_trigger + 1)),
    ("level_ratio", |o, d| o.level_ratio = d.level_ratio),
    ("base_level_bytes", |o, d| o.base_level_bytes = d.base_level_bytes),
    ("stall_max", |o, d| o.stall_max = d.stall_max),
];

fn draw_options(rng: &mut SplitMix64, mode: Mode) -> Options {
    let mut size = |low: u64, high: u64| scaled(rng, low, high);
    let small = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let l0_trigger = small(size(1, 8));
    Options {
        wal_segment_bytes: size(4096, 64 << 10),
        uid_seed: size(1, 1 << 40),
        memtable_bytes: small(size(1 << 10, 64 << 20)),
        frozen_max: small(size(1, 4)),
        block_bytes: small(size(64, 64 << 10)),
        restart_interval: small(size(1, 64)),
        index_partition_bytes: small(size(1, 8 << 10)),
        filter_bits_per_key: small(size(1, 24)),
        compression: if size(1, 2) == 1 { Compression::None } else { Compression::Lz4 },
        cache_bytes: if size(1, 3) == 1 { 0 } else { small(size(1 << 10, 4 << 20)) },
        table_bytes: size(256, 1 << 20),
        l0_trigger,
        l0_stop: l0_trigger + small(size(1, 8)),
        level_ratio: size(2, 10),
        base_level_bytes: size(256, 1 << 20),
        ..default_options(mode)
    }
}

/// Draws the setup number `nth` for a history: both modes, mostly without threads.
pub(crate) fn draw(seed: u64, nth: u64) -> Setup {
    let mut rng = SplitMix64::new(seed.wrapping_mul(1 << 16) ^ nth ^ 0x7365_7475);
    let mode = if nth.is_multiple_of(2) { Mode::External } else { Mode::Wal };
    let executor = if nth % 5 == 4 { Executor::Threads } else { Executor::Inline };
    let first = draw_options(&mut rng, mode);
    // Half of the stores keep their options over their openings.
    let second = if index(&mut rng, 2) == 0 { first.clone() } else { draw_options(&mut rng, mode) };
    Setup { executor, options: [first, second] }
}
