//! The manifest in force and what goes with it: file numbers, table uids, commits, rolling over.
//!
//! A manifest is never appended to by another opening than the one that made it: unsynced bytes that a reader
//! sees may be gone later. But a new one is written only by the first commit if the one in force is certain to
//! stay what it is: opening a store that was closed cleanly, and reading it, writes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checksum::{Digester, fold64};
use crate::error::{Error, Result};
use crate::manifest::current::{Listing, manifest_path, refuse_lost_marker, switch};
use crate::manifest::edit::{self, Item};
use crate::manifest::file::{self, Contents, Header, ManifestFile};
use crate::manifest::state::ManifestState;
use crate::options::{Executor, Options};
use crate::types::FileNumber;
use crate::vfs::Vfs;

/// File numbers are reserved in the manifest this many at a time, so that one is never used twice even
/// if what it was used for is lost in a crash.
const NUMBERS_RESERVED: u64 = 64;

/// How much of an edit is in the manifest that is appended to.
enum Appended {
    Whole,
    /// Nothing that cannot be cut off.
    Nothing,
    Unknown,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Catalog {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    store_id: u128,
    /// The manifest that is appended to; none before this opening wrote one.
    file: Option<ManifestFile>,
    /// The manifest in force.
    path: PathBuf,
    state: ManifestState,
    iteration: u64,
    number: FileNumber,
    /// The next unused number; below `state.next_file` it is reserved.
    next: FileNumber,
    /// Mixed into every uid; with threads, entropy.
    uid_base: u128,
    /// The manifest that was put in force since the listener was last told of one.
    news: Option<FileNumber>,
    /// Names that could not be removed; the next open tries again.
    leftovers: usize,
}

impl Catalog {
    /// A seed for what must differ with every open of the store, besides uids.
    pub(crate) fn epoch_seed(&self) -> u64 {
        fold64(mix(self.uid_base, u64::MAX))
    }

    /// The state on disk, and the manifests there are; the state of a new store if there is none.
    pub(crate) fn read(
        vfs: &dyn Vfs,
        dir: &Path,
        options: &Options,
    ) -> Result<(Contents, Listing)> {
        let listing = Listing::read(vfs, dir)?;
        let Some((_, number)) = listing.current() else {
            refuse_lost_marker(vfs, dir)?;
            let state = ManifestState::create(&options.partitions);
            return Ok((Contents::unwritten(state), listing));
        };
        let path = manifest_path(dir, number);
        let contents = file::read_contents(vfs, &path, options.store_id, number)?;
        if let Some(mismatch) = contents.state.partition_mismatch(&options.partitions) {
            return Err(Error::InvalidArgument(format!("{}: {mismatch}", path.display())));
        }
        Ok((contents, listing))
    }

    /// Goes on from what was read. Unless it is certain to last, it is written into a new manifest, which is
    /// put in force.
    pub(crate) fn start(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: &Options,
        executor: Executor,
        contents: Contents,
        listing: &Listing,
    ) -> Result<Self> {
        let lasts = will_last(&contents, listing);
        let state = contents.state;
        // A manifest that a crash left behind may have a number that was never recorded as used.
        let left = listing.manifests.last().map_or(0, |n| n.0 + 1);
        let next = FileNumber(state.next_file.0.max(left));
        let (iteration, number) = listing.current().unwrap_or((0, next));
        let uid_base = uid_base(options, executor, next, state.adopted.map(|(copy, _)| copy));
        let mut catalog = Self {
            vfs,
            dir: dir.to_path_buf(),
            store_id: options.store_id,
            file: None,
            path: manifest_path(dir, number),
            state,
            iteration,
            number,
            next,
            uid_base,
            news: None,
            leftovers: 0,
        };
        if !lasts {
            catalog.roll()?;
        }
        Ok(catalog)
    }

    pub(crate) const fn state(&self) -> &ManifestState {
        &self.state
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A manifest that was put in force and that nobody was told of.
    pub(crate) const fn take_news(&mut self) -> Option<FileNumber> {
        self.news.take()
    }

    pub(crate) const fn leftovers(&self) -> usize {
        self.leftovers
    }

    /// A number for a new file, and a uid that no other table has.
    ///
    /// # Errors
    /// As [`Catalog::commit`].
    pub(crate) fn allocate(&mut self) -> Result<(FileNumber, u128)> {
        if self.next >= self.state.next_file {
            self.commit(&[Item::NextFile(FileNumber(self.next.0 + NUMBERS_RESERVED))])?;
        }
        let number = self.next;
        self.next = FileNumber(number.0 + 1);
        Ok((number, mix(self.uid_base, number.0)))
    }

    /// Makes an edit durable. If appending it fails, a new manifest with the whole state settles whether
    /// it happened. A manifest that is due to be shortened goes on as it is until there is room for another.
    ///
    /// # Errors
    /// `NoSpace` if there is room for neither: the edit is certainly not on disk, and the state is what it was.
    /// Any other if the new manifest fails too, or the edit contradicts the state (a bug): what is on disk is then
    /// unknown and the store must not go on.
    pub(crate) fn commit(&mut self, items: &[Item]) -> Result<()> {
        let applied = self.state.apply(items);
        applied.map_err(|detail| Error::Poisoned {
            reason: format!("invalid manifest edit: {detail}"),
        })?;
        let appended = match &mut self.file {
            None => Appended::Nothing,
            Some(file) => match file.append(items) {
                Ok(()) if !file.should_roll() => return Ok(()),
                Ok(()) => Appended::Whole,
                Err(full) if full.is_full_disk() => Appended::Nothing,
                Err(_settled_by_a_new_one) => Appended::Unknown,
            },
        };
        match (self.roll(), appended) {
            (Err(full), Appended::Whole) if full.is_full_disk() => Ok(()),
            (Err(full), Appended::Nothing) if full.is_full_disk() => self.take_back(items),
            (rolled, _) => rolled,
        }
    }

    /// Undoes an edit that there was no room for: what is in the file of it is cut off, and the state is
    /// what the file says.
    fn take_back(&mut self, items: &[Item]) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.take_back()?;
        }
        self.state = self.reread()?;
        Err(Error::NoSpace {
            free: self.vfs.free_space(&self.dir).unwrap_or(0),
            needed: edit::encode(items).len() as u64,
        })
    }

    /// Writes a new manifest with the present state and puts it in force.
    ///
    /// # Errors
    /// That of a full disk: nothing has changed but a number, which is used up. After any other it is unknown
    /// which manifest is in force.
    fn roll(&mut self) -> Result<()> {
        let number = self.next;
        self.next = FileNumber(number.0 + 1);
        let reserved = self.state.next_file;
        // The snapshot itself reserves, so there is always a number to roll with.
        self.state.next_file = FileNumber(reserved.0.max(self.next.0 + NUMBERS_RESERVED));
        let header =
            Header { store_id: self.store_id, number, epoch: epoch(self.uid_base, number) };
        let path = manifest_path(&self.dir, number);
        let created = ManifestFile::create(&*self.vfs, &path, header, &self.state);
        let switched = created.and_then(|file| {
            Ok((file, switch(&*self.vfs, &self.dir, self.iteration + 1, number)?))
        });
        let (file, leftovers) = switched.inspect_err(|error| {
            self.state.next_file = reserved;
            if error.is_full_disk() {
                // No marker names it, and it takes room. If it cannot be removed the next switch does it.
                let _as_far_as_possible = self.vfs.unlink(&path).is_ok();
            }
        })?;
        self.file = Some(file);
        self.path = path;
        self.iteration += 1;
        self.number = number;
        self.leftovers = leftovers;
        self.news = Some(number);
        Ok(())
    }

    /// Puts another state in force, in one step.
    ///
    /// # Errors
    /// If it is unknown which one is in force.
    pub(crate) fn replace(&mut self, state: ManifestState) -> Result<()> {
        self.state = state;
        self.roll()
    }

    /// What the manifest on disk amounts to; for comparison with [`Catalog::state`].
    pub(crate) fn reread(&self) -> Result<ManifestState> {
        file::read(&*self.vfs, &self.path, self.store_id, self.number)
    }

    /// Makes everything written durable, for a clean close.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), ManifestFile::sync)
    }
}

/// Whether a manifest and its name are certain to be there after a crash, by nothing but what other openings
/// saw synced: all of it is promised; and its marker was synced before it was edited, or before the one that
/// it replaces was removed.
fn will_last(contents: &Contents, listing: &Listing) -> bool {
    let replaced = listing.current().is_some_and(|(iteration, _)| iteration > 1);
    let alone = listing.markers.len() == 1 && listing.manifests.len() == 1;
    contents.is_settled && alone && (replaced || contents.is_edited)
}

fn mix(base: u128, number: u64) -> u128 {
    let mut digester = Digester::new();
    digester.update(&base.to_le_bytes());
    digester.update(&number.to_le_bytes());
    digester.finish()
}

fn epoch(base: u128, number: FileNumber) -> u64 {
    fold64(mix(!base, number.0)).max(1)
}

/// What all uids of this open are derived from: seed, store and manifest number, so that two opens with
/// one seed still differ; with threads also entropy of several sources, none of which is trusted alone.
fn uid_base(
    options: &Options,
    executor: Executor,
    manifest: FileNumber,
    adopted: Option<u128>,
) -> u128 {
    let mut digester = Digester::new();
    digester.update(&options.store_id.to_le_bytes());
    digester.update(&options.uid_seed.to_le_bytes());
    digester.update(&manifest.0.to_le_bytes());
    // A copy of a store has its id and numbers, but must not give the same uids.
    if let Some(copy) = adopted {
        digester.update(&copy.to_le_bytes());
    }
    if executor == Executor::Threads {
        digester.update(&entropy());
    }
    digester.finish()
}

/// The operating system's randomness by way of the standard library's hash keys, the time and the process.
fn entropy() -> Vec<u8> {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut bytes = Vec::new();
    for _ in 0..2 {
        bytes.extend_from_slice(&RandomState::new().build_hasher().finish().to_le_bytes());
    }
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    bytes.extend_from_slice(&since.as_nanos().to_le_bytes());
    bytes.extend_from_slice(&std::process::id().to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_lasts_if_all_of_it_and_its_name_are_proved_to_be_synced() {
        let contents = |is_settled, is_edited| Contents {
            is_settled,
            is_edited,
            ..Contents::unwritten(ManifestState::empty())
        };
        let listing = |iterations: &[u64], manifests: &[u64]| Listing {
            markers: iterations.iter().map(|i| (*i, FileNumber(7))).collect(),
            manifests: manifests.iter().copied().map(FileNumber).collect(),
        };
        let lasts = |contents: Contents, listing: Listing| will_last(&contents, &listing);
        assert!(lasts(contents(true, false), listing(&[2], &[7])), "it replaced one that is gone");
        assert!(lasts(contents(true, true), listing(&[1], &[7])), "it was in force when edited");
        assert!(!lasts(contents(false, true), listing(&[2], &[7])), "its end is not promised");
        assert!(!lasts(contents(true, false), listing(&[1], &[7])), "its marker may be new");
        assert!(!lasts(contents(true, true), listing(&[1, 2], &[7])), "there is another marker");
        assert!(!lasts(contents(true, true), listing(&[2], &[6, 7])), "there is another manifest");
        assert!(!lasts(contents(true, true), listing(&[], &[])), "there is none");
    }
}
