//! Every decoder against bytes that nobody wrote: a part of a real store is changed and its checksums are
//! made to fit again, so that the change reaches the code behind them.
//!
//! The parts are blocks and footers of tables, records and headers of log and manifest. A changed store
//! must open or say what is wrong, and so must every read, a verification, a flush and a compaction; what
//! it says names a file of the store. Nothing may panic, and nothing may take more memory than a small
//! multiple of what is on disk, whatever lengths it is told: the test process has no more.
//!
//! `LSM_STORE_SEEDS` or `LSM_STORE_EXHAUSTIVE=1` draws more, `LSM_STORE_SEED` one again.

mod common;
#[path = "common/parts.rs"]
mod parts;
#[path = "common/seeds.rs"]
mod seeds;

use std::ops::Bound::Unbounded;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use common::{BATCHES, DATA, META, exhaustive, model, open, run, write};
use lsm_store::checksum::{bind, bound_hash, digest, fold16, fold64, hash, hash_pair};
use lsm_store::rng::SplitMix64;
use lsm_store::vfs::MemVfs;
use lsm_store::{Durability, Error, Mode, SequenceNumber, Store};
use parts::{
    FOOTER, Part, RECORD_HEADER, TRAILER, block_sum, parts, record_body, u64_at, u128_at, uid,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seeds::{index, replay, seeds};

/// Changed stores per seed.
const CHANGES: usize = 60;
/// Address space of the test process.
const MEMORY_BYTES: u64 = 3 << 30;

const SNAPSHOT_PART: u8 = 16;
const SNAPSHOT_END: u8 = 17;

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// The bytes of a part that may be changed.
fn range(part: Part, content: &[u8]) -> std::ops::Range<usize> {
    match part {
        // With kind, codec and raw length.
        Part::Block { offset, len } => offset..offset + len + 8,
        Part::Footer => content.len() - FOOTER..content.len() - TRAILER,
        // Kind, flags, sequence number and promise now and then; the payload mostly.
        Part::Record { offset, len } => offset + 4..offset + RECORD_HEADER + len,
        Part::Header => 8..120,
    }
}

fn seal_record(file: &mut [u8], offset: usize, len: usize) {
    let epoch = u64_at(file, 40);
    let tag = fold16(epoch ^ offset as u64).to_le_bytes();
    file[offset + 6..offset + 8].copy_from_slice(&tag);
    let body = offset + RECORD_HEADER..offset + RECORD_HEADER + record_body(len);
    let sum = hash_pair(&file[offset..offset + 24], &file[body]);
    put_u64(file, offset + 24, sum.wrapping_add(bind(epoch, offset as u64)));
}

/// Makes the checksums fit what is there now.
fn seal(part: Part, file: &mut [u8], parts: &[Part]) {
    match part {
        Part::Block { offset, len } => {
            let sum = block_sum(file, offset, len, uid(file));
            put_u64(file, offset + len + 8, sum);
        }
        Part::Footer => {
            let start = file.len() - FOOTER;
            let sum = bound_hash(&file[start..start + 80], uid(file), start as u64);
            put_u64(file, start + 80, sum);
        }
        Part::Record { offset, len } => {
            seal_record(file, offset, len);
            // The end of a snapshot has a digest of its parts.
            if file[offset + 4] == SNAPSHOT_PART {
                let payload = file[offset + RECORD_HEADER..offset + RECORD_HEADER + len].to_vec();
                let end = parts.iter().find_map(|part| match part {
                    Part::Record { offset, len } if file[offset + 4] == SNAPSHOT_END => {
                        Some((*offset, *len))
                    }
                    Part::Record { .. } | Part::Block { .. } | Part::Footer | Part::Header => None,
                });
                if let Some((end, end_len)) = end {
                    let at = end + RECORD_HEADER + 8;
                    file[at..at + 16].copy_from_slice(&digest(&payload).to_le_bytes());
                    seal_record(file, end, end_len);
                }
            }
        }
        Part::Header => {
            let (store, number) = (fold64(u128_at(file, 16)), u64_at(file, 32));
            let sum = bound_hash(&file[..120], store, number);
            put_u64(file, 120, sum);
            file.copy_within(..128, 128);
        }
    }
}

/// Changes a stretch of bytes in one of the ways that decoders dislike.
fn change(bytes: &mut [u8], rng: &mut SplitMix64) {
    const NUMBERS: [u64; 9] =
        [0, 1, 0x7F, 0x80, 0xFFFF, 1 << 31, u32::MAX as u64, 1 << 56, u64::MAX];
    if bytes.is_empty() {
        return;
    }
    // Lengths and counts stand at both ends of most parts.
    let at = match rng.below(4) {
        0 => index(rng, bytes.len().min(24)),
        1 => bytes.len() - 1 - index(rng, bytes.len().min(24)),
        _ => index(rng, bytes.len()),
    };
    let rest = bytes.len() - at;
    match rng.below(8) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.next_u64().to_le_bytes()[0],
        2 => bytes[at] = bytes[at].wrapping_add(1),
        3 | 4 => {
            let number = NUMBERS[index(rng, NUMBERS.len())].wrapping_add(rng.below(3));
            let number = if rng.chance(1, 2) { number } else { bytes.len() as u64 + rng.below(3) };
            let width = [1, 2, 4, 8][index(rng, 4)].min(rest);
            bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        // A number as long as any.
        5 => {
            let width = (1 + index(rng, 9)).min(rest);
            bytes[at..at + width].fill(0xFF);
        }
        // Something is missing, and what follows moves up.
        6 => {
            let by = (1 + index(rng, 8)).min(rest);
            bytes[at..].rotate_left(by);
        }
        // One stretch again in the place of another.
        _ => {
            let len = (1 + index(rng, 32)).min(rest);
            let from = index(rng, bytes.len() - len + 1);
            bytes.copy_within(from..from + len, at);
        }
    }
}

/// A closed store with tables on several levels, and in `Wal` mode batches that are in the log alone.
fn sample(mode: Mode) -> MemVfs {
    let vfs = MemVfs::new(1);
    run(&vfs, mode, BATCHES - 8, &mut |_| {}).expect("no fault");
    let store = open(&vfs, mode).expect("whole");
    for number in BATCHES - 7..=BATCHES {
        write(&store, mode, number, Durability::Sync).expect("written");
    }
    if mode == Mode::External {
        store.flush().expect("flushes");
    }
    store.close().expect("closed");
    vfs
}

/// Everything that can be asked of a store, until the first error.
fn exercise(store: &Store, mode: Mode) -> Result<(), Error> {
    let mut first = Ok(());
    let mut keep = |result: Result<(), Error>| {
        if first.is_ok() {
            first = result;
        }
    };
    for (partition, content) in [DATA, META].into_iter().zip(&model(BATCHES).maps) {
        for key in content.keys() {
            keep(store.get(partition, key).map(drop));
        }
        let floor = store.floor(DATA).0;
        let views = [store.view_at(DATA, SequenceNumber(floor)), Ok(store.view())];
        for view in views.into_iter().flatten() {
            let mut iter = view.iter(partition, Unbounded, Unbounded)?;
            let forward = std::iter::from_fn(|| iter.next().map(|on| on.then_some(())).transpose());
            keep(forward.take(10_000).collect());
            let mut iter = view.iter(partition, Unbounded, Unbounded)?;
            let backward =
                std::iter::from_fn(|| iter.prev().map(|on| on.then_some(())).transpose());
            keep(backward.take(10_000).collect());
        }
    }
    keep(store.verify().map(drop));
    // Into a flush and a compaction.
    for number in BATCHES + 1..BATCHES + 6 {
        keep(write(store, mode, number, Durability::Buffered));
        keep(store.flush().map(drop));
    }
    first
}

/// Whether an error is one that a changed file may give, and what it says of the place.
fn check_error(error: &Error, vfs: &MemVfs, context: &str) {
    let file = match error {
        Error::Corruption { file, .. }
        | Error::UnknownVersion { file, .. }
        | Error::WrongStore { file, .. } => file,
        // A file that a changed manifest asks for is not there.
        Error::Io { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => path,
        // A floor, a position or numbers that are ahead of what is written.
        Error::AlreadyApplied { .. } | Error::Compacted { .. } | Error::FutureSequence { .. } => {
            return;
        }
        // Partitions that are not those asked for; numbers that do not go on.
        Error::InvalidArgument(_) | Error::Poisoned { .. } | Error::Stalled { .. } => return,
        Error::Io { .. }
        | Error::Locked { .. }
        | Error::TooLarge { .. }
        | Error::NoSpace { .. }
        | Error::Closed
        | _ => unreachable!("{context}: {error}"),
    };
    assert!(file.starts_with("/db"), "{context}: {error}");
    assert!(
        !error.to_string().is_empty(),
        "{context}: it says what it is, of {}",
        vfs.files().len()
    );
}

/// Changes a store as often as a seed says, and uses each.
fn fuzz(mode: Mode, test: &str) {
    let limit = getrlimit(Resource::As);
    setrlimit(Resource::As, Rlimit { current: Some(MEMORY_BYTES), ..limit })
        .expect("less is allowed");
    let good = sample(mode);
    let files: Vec<(PathBuf, Vec<u8>, Vec<Part>)> = good
        .files()
        .into_iter()
        .map(|path| (good.content(&path).expect("listed"), path))
        .map(|(content, path)| (parts(&path, &content), path, content))
        .map(|(parts, path, content)| (path, content, parts))
        .filter(|(.., parts)| !parts.is_empty())
        .collect();
    let kinds = ["sst", "wal", "MANIFEST"].map(|kind| {
        files.iter().filter(|(path, ..)| path.to_string_lossy().contains(kind)).collect::<Vec<_>>()
    });
    assert!(kinds[0].len() >= 2 && !kinds[2].is_empty(), "{mode:?}: {} files", files.len());
    let (mut refused, mut taken) = (0_u64, 0_u64);
    for seed in seeds(if exhaustive() { 1000 } else { 40 }) {
        let mut rng = SplitMix64::new(seed ^ hash(test.as_bytes()));
        for nth in 0..CHANGES {
            let of_kind: Vec<_> = kinds.iter().filter(|files| !files.is_empty()).collect();
            let files = of_kind[index(&mut rng, of_kind.len())];
            let (path, content, parts) = files[index(&mut rng, files.len())];
            let part = parts[index(&mut rng, parts.len())];
            let mut content = content.clone();
            let bytes = range(part, &content);
            for _ in 0..=rng.below(2) {
                change(&mut content[bytes.clone()], &mut rng);
            }
            seal(part, &mut content, parts);
            let vfs = good.fork();
            vfs.replace(path, &content).expect("there");
            let context = format!(
                "change {nth} of {}, {part:?}: {}",
                path.display(),
                replay(seed, "fuzz", test)
            );
            let used = catch_unwind(AssertUnwindSafe(|| {
                open(&vfs, mode).and_then(|store| exercise(&store, mode))
            }));
            match used {
                Ok(Ok(())) => taken += 1,
                Ok(Err(error)) => {
                    check_error(&error, &vfs, &context);
                    refused += 1;
                }
                Err(_) => unreachable!("{context}: panics"),
            }
        }
    }
    assert!(refused > taken / 4, "{mode:?}: {refused} refused, {taken} taken");
}

#[test]
fn changed_bytes_with_right_checksums_never_panic_without_a_log() {
    fuzz(Mode::External, "changed_bytes_with_right_checksums_never_panic_without_a_log");
}

#[test]
fn changed_bytes_with_right_checksums_never_panic_with_its_own_log() {
    fuzz(Mode::Wal, "changed_bytes_with_right_checksums_never_panic_with_its_own_log");
}

/// What is changed nowhere is as good as before: parts are found, and sealing is right.
#[test]
fn a_store_whose_parts_are_all_sealed_anew_is_the_same() {
    for mode in [Mode::External, Mode::Wal] {
        let good = sample(mode);
        for path in good.files() {
            let content = good.content(&path).expect("listed");
            let parts = parts(&path, &content);
            if parts.is_empty() {
                continue;
            }
            assert!(parts.len() > 2, "{mode:?}, {}: {parts:?}", path.display());
            let mut sealed = content.clone();
            for part in &parts {
                seal(*part, &mut sealed, &parts);
            }
            assert_eq!(sealed, content, "{mode:?}, {}", path.display());
        }
        let store = open(&good, mode).expect("whole");
        common::compare(&store, BATCHES, "sealed anew").expect("whole");
    }
}
