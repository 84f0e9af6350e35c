//! The whole store against crashes before every call that changes the disk, in both modes, with every
//! policy of what a crash takes, and again inside the recovery that follows.
//!
//! The workload is a pure function of the batch's number, so the model is too: state `n` is what the first
//! `n` batches leave. After a crash the store must be exactly in some state `n`, at or above everything
//! acknowledged as durable; in external mode exactly at its durable position. So batches that were only
//! buffered are a prefix without holes.
//!
//! A crash *in* a call is a crash before the next one: what the call did is not synced, and the policies
//! take any part of it. Disks that are byte for byte the same after a crash, with the same
//! acknowledged, are looked at once: most crashes leave a disk that was seen before.
//!
//! By default every policy is played at every place, and recovery is interrupted after a sample of them;
//! `LSM_STORE_EXHAUSTIVE=1` interrupts it after all of them, on all processors.

mod common;
#[path = "common/survive.rs"]
mod survive;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use common::{Acked, BATCHES, check, exhaustive, model, open, run};
use lsm_store::Mode;
use lsm_store::checksum::Digester;
use lsm_store::vfs::{CrashPolicy, DataLoss, MemVfs, NameLoss, Vfs};
use parking_lot::Mutex;
use survive::{WorkOn, no_orphans, survive};

/// What a crash does to bytes, and independently of that to names.
fn policies() -> Vec<CrashPolicy> {
    let data = [
        DataLoss::LoseAll,
        DataLoss::KeepAll,
        DataLoss::Sectors,
        DataLoss::Prefix,
        DataLoss::Zeroed,
        DataLoss::Garbage,
    ];
    let names = [NameLoss::LoseAll, NameLoss::KeepAll, NameLoss::Random];
    data.iter()
        .flat_map(|data| names.iter().map(|names| CrashPolicy { data: *data, names: *names }))
        .collect()
}

/// A place to crash at: the disk there, and what was acknowledged by then.
struct Point {
    call: u64,
    world: MemVfs,
    acked: Acked,
}

/// Runs the workload once and returns every place of it.
fn record(mode: Mode) -> Vec<Point> {
    let vfs = MemVfs::new(1);
    vfs.record();
    let mut acks = Vec::new();
    run(&vfs, mode, BATCHES, &mut |acked| acks.push((vfs.mutating_calls(), acked)))
        .expect("no fault");
    let mut acked = Acked::default();
    let mut acks = acks.into_iter().peekable();
    let worlds = (0..).zip(vfs.take_recorded());
    let points: Vec<Point> = worlds
        .map(|(call, world)| {
            while let Some((_, newer)) = acks.next_if(|(at, _)| *at <= call) {
                acked = acked.and(newer);
            }
            Point { call, world, acked }
        })
        .collect();
    assert!(points.len() > 300, "{} places to crash at", points.len());
    points
}

/// Goes through places, and remembers which disks it has seen.
struct Explorer {
    mode: Mode,
    /// Disks from which recovery was followed, and disks that were only to survive.
    seen: [Mutex<BTreeSet<(u128, Acked)>>; 2],
    crashes: AtomicU64,
    disks: AtomicU64,
    /// Calls inside recoveries: one that finds everything settled makes none.
    inside: AtomicU64,
}

/// Every byte that a store could read, and the directories it could find.
fn fingerprint(vfs: &MemVfs) -> u128 {
    let mut digest = Digester::new();
    for path in vfs.files().iter().filter(|path| !path.ends_with("LOCK")) {
        let content = vfs.content(path).expect("listed");
        digest.update(path.as_os_str().as_encoded_bytes());
        digest.update(&(content.len() as u64).to_le_bytes());
        digest.update(&content);
    }
    for dir in ["/db", "/db/sst", "/db/wal", "/db/wal/tmp"] {
        digest.update(&[u8::from(vfs.exists(Path::new(dir)).expect("no fault"))]);
    }
    digest.finish()
}

impl Explorer {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            seen: [Mutex::default(), Mutex::default()],
            crashes: AtomicU64::new(0),
            disks: AtomicU64::new(0),
            inside: AtomicU64::new(0),
        }
    }

    /// Crashes, and says whether that left a disk that was not seen at this depth.
    fn crash(
        &self,
        vfs: &MemVfs,
        acked: Acked,
        policy: CrashPolicy,
        seed: u64,
        depth: usize,
    ) -> bool {
        vfs.crash(policy, seed);
        self.crashes.fetch_add(1, Ordering::Relaxed);
        let new = self.seen[depth].lock().insert((fingerprint(vfs), acked));
        self.disks.fetch_add(u64::from(new), Ordering::Relaxed);
        new
    }

    fn survive(&self, vfs: &MemVfs, acked: Acked, to_the_end: bool, context: &str) {
        let work_on = if to_the_end { WorkOn::ToTheEnd } else { WorkOn::OneBatch };
        survive(vfs, self.mode, acked, work_on, context);
    }

    /// Every policy at one place.
    fn at(&self, point: &Point, policies: &[CrashPolicy]) {
        for (nth, policy) in (0_u64..).zip(policies) {
            let seed = point.call * 32 + nth;
            let vfs = point.world.fork();
            if self.crash(&vfs, point.acked, *policy, seed, 0) {
                let context = self.context(point, policy, seed);
                let to_the_end = exhaustive() || (point.call + nth).is_multiple_of(8);
                self.survive(&vfs, point.acked, to_the_end, &context);
            }
        }
        // The process alone ends: nothing is lost, and nothing is more durable than it was.
        let vfs = point.world.fork();
        vfs.kill();
        let context = format!("{:?}, killed before call {}", self.mode, point.call);
        self.survive(&vfs, point.acked, false, &context);
        vfs.crash(CrashPolicy::LOSE_UNSYNCED, point.call);
        self.survive(&vfs, point.acked, false, &format!("{context}, then power lost"));
    }

    fn context(&self, point: &Point, policy: &CrashPolicy, seed: u64) -> String {
        format!("{:?}, crash before call {}, {policy:?}, seed {seed}", self.mode, point.call)
    }

    /// A second crash before every call of the recovery from a first one, or from the end of the process.
    fn inside_recovery(&self, point: &Point, policies: &[CrashPolicy]) {
        let kill = self.sampled(point, 0).then(|| point.world.fork());
        if let Some(vfs) = kill {
            vfs.kill();
            let context = format!("{:?}, killed before call {}", self.mode, point.call);
            self.recover(&vfs, point.acked, policies, point.call, &context);
        }
        for (nth, policy) in (0_u64..).zip(policies) {
            let seed = point.call * 32 + nth;
            let vfs = point.world.fork();
            if self.sampled(point, nth + 1) && self.crash(&vfs, point.acked, *policy, seed, 0) {
                let context = self.context(point, policy, seed);
                self.recover(&vfs, point.acked, &[*policy, policies[0]], seed, &context);
            }
        }
    }

    fn sampled(&self, point: &Point, nth: u64) -> bool {
        exhaustive() || (point.call * 19 + nth).is_multiple_of(97)
    }

    fn recover(&self, vfs: &MemVfs, acked: Acked, then: &[CrashPolicy], seed: u64, context: &str) {
        vfs.record();
        // What the first recovery shows may be acted upon, so the second must not show less.
        let shown = open(vfs, self.mode).and_then(|store| check(&store, self.mode, acked, context));
        let shown = shown.unwrap_or_else(|failure| unreachable!("{context}: {failure}"));
        let after = vfs.fork();
        let inside = vfs.take_recorded();
        self.inside.fetch_add(inside.len() as u64, Ordering::Relaxed);
        let shown = match self.mode {
            Mode::Wal => Acked { batches: shown, ..acked },
            Mode::External => acked,
        };
        let inside = (0_u64..).zip(inside).map(|(call, world)| (call, world, acked));
        for (call, world, acked) in inside.chain([(u64::MAX, after, shown)]) {
            for policy in then {
                let vfs = world.fork();
                let seed = seed.wrapping_add(call).wrapping_add(1);
                if self.crash(&vfs, acked, *policy, seed, 1) {
                    let place = if call == u64::MAX {
                        "right after recovery".to_owned()
                    } else {
                        format!("inside recovery before its call {call}")
                    };
                    let context = format!("{context}, then {place}, {policy:?}");
                    self.survive(&vfs, acked, seed.is_multiple_of(16), &context);
                }
            }
        }
    }

    /// Goes through all places, on all processors if there is much to do.
    fn explore(&self, points: &[Point], at: impl Fn(&Point) + Sync) -> String {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = if exhaustive() { processors } else { 1 };
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                        at(point);
                    }
                });
            }
        });
        let (crashes, disks) =
            (self.crashes.load(Ordering::Relaxed), self.disks.load(Ordering::Relaxed));
        assert!(crashes > 1000, "{crashes} crashes, {disks} disks, {} places", points.len());
        format!("{:?}: {} places, {crashes} crashes, {disks} disks", self.mode, points.len())
    }
}

fn crash_everywhere(mode: Mode) -> String {
    let (explorer, points, policies) = (Explorer::new(mode), record(mode), policies());
    explorer.explore(&points, |point| explorer.at(point, &policies))
}

fn crash_inside_recovery(mode: Mode) -> String {
    let (explorer, points, policies) = (Explorer::new(mode), record(mode), policies());
    let told = explorer.explore(&points, |point| explorer.inside_recovery(point, &policies));
    let inside = explorer.inside.load(Ordering::Relaxed);
    assert!(inside > 500, "{inside} calls inside recoveries to crash at");
    told
}

#[test]
fn a_store_with_its_own_log_survives_a_crash_at_every_call() {
    println!("{}", crash_everywhere(Mode::Wal));
}

#[test]
fn a_store_without_a_log_is_exactly_at_its_durable_position_after_a_crash_at_every_call() {
    println!("{}", crash_everywhere(Mode::External));
}

#[test]
fn a_crash_inside_recovery_loses_nothing_with_its_own_log() {
    println!("{}", crash_inside_recovery(Mode::Wal));
}

#[test]
fn a_crash_inside_recovery_loses_nothing_without_a_log() {
    println!("{}", crash_inside_recovery(Mode::External));
}

#[test]
fn the_workload_flushes_compacts_and_deletes_so_that_the_tests_above_mean_something() {
    for mode in [Mode::Wal, Mode::External] {
        let vfs = MemVfs::new(1);
        run(&vfs, mode, BATCHES, &mut |_| {}).expect("no fault");
        let store = open(&vfs, mode).expect("whole");
        no_orphans(&vfs, &store, "at the end");
        let metrics = store.metrics();
        let levels = metrics.partitions.iter().flat_map(|p| &p.levels);
        assert!(
            levels.clone().map(|level| level.tables).sum::<usize>() >= 2,
            "{mode:?}: {metrics:?}"
        );
        assert!(levels.skip(1).any(|level| level.tables > 0), "{mode:?}: nothing was compacted");
        assert!(model(BATCHES).maps[0].len() > 3, "{mode:?}: something is there");
    }
}
