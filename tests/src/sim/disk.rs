//! What goes wrong with a simulated disk, and what that took.
//!
//! Crashes go by the policies of [`MemVfs`]; here it is found out whether something unsynced was lost
//! in one, and whether something was torn: kept in part. Damage hits what was synced long ago: tables,
//! segments of the log that are complete, the small files. The segment that is being written is left
//! out: damage in its last record cannot be told from a torn write by anything that is on the same disk.

use std::path::{Path, PathBuf};

use lsm_store::vfs::{CrashPolicy, MemVfs};

use super::random::Random;

/// A misdirected write is so long, in bytes.
const SECTOR_BYTES: usize = 512;

/// What a loss of power took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Taken {
    /// Something that was not synced is gone.
    pub lost: bool,
    /// Something that was not synced is there in part.
    pub torn: bool,
}

/// A disk loses power.
pub(super) fn crash(disk: &MemVfs, policy: CrashPolicy, seed: u64) -> Taken {
    let unsynced: Vec<_> = disk
        .files()
        .into_iter()
        .filter(|path| !disk.is_durable(path).unwrap_or(false))
        .map(|path| (disk.content(&path).ok(), path))
        .collect();
    let synced = disk.fork();
    disk.crash(policy, seed);
    if unsynced.is_empty() {
        return Taken::default();
    }
    synced.crash(CrashPolicy::LOSE_UNSYNCED, seed);
    let mut taken = Taken::default();
    for (before, path) in unsynced {
        let after = disk.content(&path).ok();
        if after != before {
            taken.lost = true;
            // A file whose name was lost is gone as a whole.
            taken.torn |= after.is_some() && after != synced.content(&path).ok();
        }
    }
    taken
}

/// Flips bits somewhere; says where, if there was anything to damage.
pub(super) fn flip_bits(disk: &MemVfs, random: &mut Random) -> Option<String> {
    let path = pick_file(disk, random)?;
    let len = disk.content(&path).ok()?.len() as u64;
    for _ in 0..random.between(1, 3) {
        let mask = 1 << random.below(8);
        disk.flip(&path, random.below(len), mask).ok()?;
    }
    Some(path.display().to_string())
}

/// Writes a sector of one file over another; says where, if there was anything to damage.
pub(super) fn misdirect(disk: &MemVfs, random: &mut Random) -> Option<String> {
    let (from, to) = (pick_file(disk, random)?, pick_file(disk, random)?);
    let source = disk.content(&from).ok()?;
    let mut target = disk.content(&to).ok()?;
    let at =
        |len: usize, random: &mut Random| random.index(len.div_ceil(SECTOR_BYTES)) * SECTOR_BYTES;
    let source_at = at(source.len(), random);
    let target_at = at(target.len(), random);
    let sector = source.get(source_at..)?.iter().take(SECTOR_BYTES);
    let mut changed = false;
    for (old, new) in target.get_mut(target_at..)?.iter_mut().zip(sector) {
        changed |= old != new;
        *old = *new;
    }
    disk.replace(&to, &target).ok()?;
    changed
        .then(|| format!("{} at {target_at}, with {} at {source_at}", to.display(), from.display()))
}

/// A file that was complete some time ago; tables most of all.
fn pick_file(disk: &MemVfs, random: &mut Random) -> Option<PathBuf> {
    let files = disk.files();
    let has = |path: &Path, extension| path.extension().is_some_and(|found| found == extension);
    let newest_segment = files.iter().filter(|path| has(path, "wal")).max().cloned();
    let (mut tables, mut segments, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for path in files {
        let unfit = disk.content(&path).map_or(true, |content| content.is_empty())
            || Some(&path) == newest_segment.as_ref()
            || path.file_name().is_some_and(|name| name == "LOCK")
            || !disk.is_durable(&path).unwrap_or(false);
        if unfit {
        } else if has(&path, "sst") {
            tables.push(path);
        } else if has(&path, "wal") {
            segments.push(path);
        } else {
            others.push(path);
        }
    }
    let weights = [6, 3, 1];
    let kinds = [tables, segments, others];
    let weights: Vec<u64> = kinds
        .iter()
        .zip(weights)
        .map(|(kind, weight)| if kind.is_empty() { 0 } else { weight })
        .collect();
    if weights.iter().all(|&weight| weight == 0) {
        return None;
    }
    let kind = &kinds[random.weighted(&weights)];
    Some(random.pick(kind).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lsm_store::vfs::Vfs as _;

    fn disk_with(name: &str, synced: &[u8], unsynced: &[u8]) -> (MemVfs, PathBuf) {
        let disk = MemVfs::new(1);
        let path = PathBuf::from(name);
        let file = disk.create_new(&path).unwrap();
        file.write_all_at(synced, 0).unwrap();
        file.sync_all().unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        if !unsynced.is_empty() {
            file.write_all_at(unsynced, synced.len() as u64).unwrap();
        }
        (disk, path)
    }

    #[test]
    fn a_crash_says_whether_something_unsynced_was_lost_or_torn() {
        let new = vec![7; 5_000];
        let (disk, _) = disk_with("/a", &new, &[]);
        assert_eq!(crash(&disk, CrashPolicy::LOSE_UNSYNCED, 1), Taken::default(), "all was synced");
        let (disk, _) = disk_with("/a", &[1], &new);
        assert_eq!(crash(&disk, CrashPolicy::KEEP_ALL, 1), Taken::default(), "all was kept");
        let (disk, _) = disk_with("/a", &[1], &new);
        let taken = crash(&disk, CrashPolicy::LOSE_UNSYNCED, 1);
        assert_eq!(taken, Taken { lost: true, torn: false });
        let torn = (0..20).filter(|&seed| {
            let (disk, _) = disk_with("/a", &[1], &new);
            crash(&disk, CrashPolicy::ALL[2], seed).torn
        });
        assert!(torn.count() > 5, "sectors kept and lost on their own are often torn");
    }

    #[test]
    fn damage_hits_what_is_complete_and_never_the_segment_that_is_written() {
        let mut random = Random::new(1);
        let (disk, path) = disk_with("/1.wal", &[3; 2_000], &[]);
        assert_eq!(flip_bits(&disk, &mut random), None, "the only segment is the newest");
        let file = disk.create_new(Path::new("/2.wal")).unwrap();
        file.write_all_at(&[4; 2_000], 0).unwrap();
        file.sync_all().unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        assert!(flip_bits(&disk, &mut random).is_some_and(|place| place.contains("1.wal")));
        assert_ne!(disk.content(&path).unwrap(), vec![3; 2_000]);
        assert_eq!(disk.content(Path::new("/2.wal")).unwrap(), vec![4; 2_000]);
        let file = disk.create_new(Path::new("/3.sst")).unwrap();
        file.write_all_at(&[5; 2_000], 0).unwrap();
        file.sync_all().unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let changed = (0..50).filter_map(|_| misdirect(&disk, &mut random)).count();
        assert!(changed > 5, "{changed} of 50 writes went to another file");
    }
}
