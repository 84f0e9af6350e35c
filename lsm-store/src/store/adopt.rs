//! Taking over a copy of another store: received beside the live one, put in force in one step.
//!
//! ```text
//! incoming/<snapshot id>/SNAPSHOT        what is expected
//! incoming/<snapshot id>/<uid>.part      a table of which not all is here
//! incoming/<snapshot id>/<uid>.sst       a table that is complete, checked and synced
//! ```
//!
//! 1. A table counts as received only if its bytes have the digest of the description; it is then synced
//!    and gets its name. What the store has already, by uid and digest, is linked and not sent.
//! 2. Adopting gives the received tables new numbers of this store (reserved before they are used, so that
//!    none is used twice), syncs their names, and writes a manifest with the state of the copy. The marker
//!    of that manifest is the one step: before it the old store is in force, after it the new one, and
//!    either is whole.
//! 3. Nothing of the old store's tables is mixed in but by uid and digest.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::BlockCache;
use crate::checksum::Digester;
use crate::error::{Error, IoContext, Result};
use crate::events::Event;
use crate::manifest::current::{Listing, parse_table, table_dir, table_path};
use crate::manifest::file::Contents;
use crate::manifest::state::ManifestState;
use crate::options::{Executor, Options};
use crate::sstable::TableMeta;
use crate::sstable::reader::{Graveyard, Table};
use crate::store::Store;
use crate::store::catalog::Catalog;
use crate::store::checkpoint::{
    check_digest, description_path, link_or_copy, read_through, read_whole, remove_dir, renumbered,
    unknown_table, write_whole, wrong_digest,
};
use crate::store::recovery::lock;
use crate::store::snapshot::Description;
use crate::types::{FileNumber, KeyRange, Position, SequenceNumber};
use crate::vfs::{Vfs, VfsFile, create_dir_durable};
use crate::wal;

/// Where copies are received.
fn incoming_dir(dir: &Path) -> PathBuf {
    dir.join("incoming")
}

fn snapshot_dir(dir: &Path, id: u128) -> PathBuf {
    incoming_dir(dir).join(format!("{id:032x}"))
}

/// What is still to be sent of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The table.
    pub uid: u128,
    /// Everything below this is here.
    pub offset: u64,
    /// Length of the whole table in bytes.
    pub len: u64,
}

/// A copy of another store that is being received, see [`Checkpoint`](crate::Checkpoint). What was received
/// is still there after a crash: begin again with the same description.
pub struct IncomingSnapshot {
    vfs: Arc<dyn Vfs>,
    store_dir: PathBuf,
    dir: PathBuf,
    description: Description,
    /// Tables of which not all is here.
    open: BTreeMap<u128, Receiving>,
}

/// A table of which not all is here.
struct Receiving {
    meta: TableMeta,
    offset: u64,
    digester: Digester,
    file: Option<Arc<dyn VfsFile>>,
}

impl Receiving {
    fn new(meta: TableMeta) -> Self {
        Self { meta, offset: 0, digester: Digester::new(), file: None }
    }
}

/// A copy of another store that is complete, checked and durable, beside the store in `dir`.
pub struct StagedSnapshot {
    vfs: Arc<dyn Vfs>,
    store_dir: PathBuf,
    dir: PathBuf,
    pub(crate) description: Description,
}

/// Without keys.
impl fmt::Debug for IncomingSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("IncomingSnapshot");
        shown.field("dir", &self.dir).field("wanted", &self.open.len()).finish_non_exhaustive()
    }
}

/// Without keys.
impl fmt::Debug for StagedSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagedSnapshot").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl IncomingSnapshot {
    /// Begins, or goes on, to receive the copy described, for the store in `store_dir`, open or not. An open
    /// one is better asked with [`Store::receive`], which knows what it has already. Whatever
    /// was being received of other copies is removed.
    ///
    /// # Errors
    /// `Corruption`, `UnknownVersion` of the description; `Io`.
    pub fn begin(vfs: Arc<dyn Vfs>, store_dir: &Path, description: &[u8]) -> Result<Self> {
        Self::begin_with(vfs, store_dir, description, &mut |_| None)
    }

    /// As [`begin`](Self::begin); `have` says where there is a table already.
    pub(crate) fn begin_with(
        vfs: Arc<dyn Vfs>,
        store_dir: &Path,
        encoded: &[u8],
        have: &mut dyn FnMut(&TableMeta) -> Option<PathBuf>,
    ) -> Result<Self> {
        let described = Path::new("SNAPSHOT as received");
        let description = Description::decode(encoded, described)?;
        let dir = snapshot_dir(store_dir, description.snapshot_id);
        let all = incoming_dir(store_dir);
        if vfs.exists(&all).context("look for", &all)? {
            for other in vfs.list(&all).context("list", &all)? {
                if other != dir {
                    remove_dir(&*vfs, &other)?;
                }
            }
        }
        create_dir_durable(&*vfs, &dir).context("create", &dir)?;
        let path = description_path(&dir);
        if vfs.exists(&path).context("look for", &path)? && read_whole(&*vfs, &path)? != encoded {
            // Written by half before a crash.
            vfs.unlink(&path).context("remove", &path)?;
        }
        if !vfs.exists(&path).context("look for", &path)? {
            write_whole(&*vfs, &path, encoded)?;
        }
        let mut this = Self {
            vfs,
            store_dir: store_dir.to_path_buf(),
            dir,
            description,
            open: BTreeMap::new(),
        };
        let metas: Vec<_> =
            this.description.state.tables.values().map(|t| t.meta.clone()).collect();
        for meta in metas {
            if let Some(receiving) = this.resume(meta, have)? {
                this.open.insert(receiving.meta.uid, receiving);
            }
        }
        Ok(this)
    }

    /// What there is of a table; `None` if it is complete.
    fn resume(
        &self,
        meta: TableMeta,
        have: &mut dyn FnMut(&TableMeta) -> Option<PathBuf>,
    ) -> Result<Option<Receiving>> {
        let (complete, part) = (self.complete_path(meta.uid), self.part_path(meta.uid));
        if self.vfs.exists(&complete).context("look for", &complete)? {
            return Ok(None);
        }
        if let Some(local) = have(&meta)
            && check_digest(&*self.vfs, &local, &meta).is_ok()
        {
            link_or_copy(&*self.vfs, &local, &complete, &meta)?;
            return Ok(None);
        }
        let mut receiving = Receiving::new(meta);
        if !self.vfs.exists(&part).context("look for", &part)? {
            return Ok(Some(receiving));
        }
        let file = self.vfs.open_rw(&part).context("open", &part)?;
        let len = file.len().context("measure", &part)?;
        if len >= receiving.meta.len {
            self.vfs.unlink(&part).context("remove", &part)?;
            return Ok(Some(receiving));
        }
        // Whether these bytes are right, after a crash, is seen at the end of the table.
        let digester = &mut receiving.digester;
        read_through(&*self.vfs, &part, len, &mut |_, chunk| {
            digester.update(chunk);
            Ok(())
        })?;
        receiving.offset = len;
        receiving.file = Some(file);
        Ok(Some(receiving))
    }

    fn complete_path(&self, uid: u128) -> PathBuf {
        self.dir.join(format!("{uid:032x}.sst"))
    }

    fn part_path(&self, uid: u128) -> PathBuf {
        self.dir.join(format!("{uid:032x}.part"))
    }

    /// Names the copy.
    #[must_use]
    pub const fn id(&self) -> u128 {
        self.description.snapshot_id
    }

    /// The position of its store that the copy holds everything up to.
    #[must_use]
    pub const fn position(&self) -> &Position {
        &self.description.state.position
    }

    /// What is to be sent: the tables that are not complete, and from where on.
    #[must_use]
    pub fn wanted(&self) -> Vec<Wanted> {
        let wanted = |r: &Receiving| Wanted { uid: r.meta.uid, offset: r.offset, len: r.meta.len };
        self.open.values().map(wanted).collect()
    }

    /// Takes the next bytes of a table. Returns whether the table is complete now.
    ///
    /// # Errors
    /// `InvalidArgument` for a table that is not wanted, another offset than is wanted, or more bytes than the
    /// table has: nothing was changed. `Corruption` if the table, complete now, is not what the description
    /// says; `Io`. After both the table is wanted from its beginning.
    pub fn write(&mut self, uid: u128, offset: u64, bytes: &[u8]) -> Result<bool> {
        let receiving = self.open.get(&uid).ok_or_else(|| unknown_table(uid))?;
        let left = receiving.meta.len - receiving.offset;
        if offset != receiving.offset || bytes.len() as u64 > left {
            return Err(Error::InvalidArgument(format!(
                "{} bytes at {offset} of table {uid:032x}, wanted are {left} at {}",
                bytes.len(),
                receiving.offset
            )));
        }
        let taken = self.take(uid, bytes);
        if taken.is_err() {
            // After a failed write or sync nothing is known of the file: it is not used again.
            let part = self.part_path(uid);
            let _removed_later = self.vfs.unlink(&part).is_err();
            if let Some(receiving) = self.open.get_mut(&uid) {
                *receiving = Receiving::new(receiving.meta.clone());
            }
        }
        taken
    }

    fn take(&mut self, uid: u128, bytes: &[u8]) -> Result<bool> {
        let (part, complete) = (self.part_path(uid), self.complete_path(uid));
        let Some(receiving) = self.open.get_mut(&uid) else { return Err(unknown_table(uid)) };
        let file = match &receiving.file {
            Some(file) => Arc::clone(file),
            None => {
                if self.vfs.exists(&part).context("look for", &part)? {
                    self.vfs.unlink(&part).context("remove", &part)?;
                }
                let file = self.vfs.create_new(&part).context("create", &part)?;
                receiving.file = Some(Arc::clone(&file));
                file
            }
        };
        file.write_all_at(bytes, receiving.offset).context("write", &part)?;
        file.hint_write_back(receiving.offset, bytes.len() as u64);
        receiving.digester.update(bytes);
        receiving.offset += bytes.len() as u64;
        if receiving.offset < receiving.meta.len {
            return Ok(false);
        }
        if receiving.digester.finish() != receiving.meta.digest {
            return Err(wrong_digest(&part));
        }
        file.sync_all().context("sync", &part)?;
        self.vfs.rename(&part, &complete).context("rename", &part)?;
        self.open.remove(&uid);
        Ok(true)
    }

    /// Ends the reception: everything is there, and durable.
    ///
    /// # Errors
    /// `InvalidArgument` if something is still wanted; `Corruption` if a table is none; `Io`.
    pub fn finish(self) -> Result<StagedSnapshot> {
        if !self.open.is_empty() {
            let detail = format!("{} tables of the snapshot are not complete", self.open.len());
            return Err(Error::InvalidArgument(detail));
        }
        self.vfs.sync_dir(&self.dir).context("sync", &self.dir)?;
        let cache = Arc::new(BlockCache::new(0));
        for placed in self.description.state.tables.values() {
            let path = self.complete_path(placed.meta.uid);
            let (cache, graveyard) = (Arc::clone(&cache), Graveyard::default());
            let file = self.vfs.open_read(&path).context("open", &path)?;
            Table::open(file, &path, placed.meta.clone(), cache, graveyard)?;
        }
        let Self { vfs, store_dir, dir, description, .. } = self;
        Ok(StagedSnapshot { vfs, store_dir, dir, description })
    }

    /// Gives the copy up and removes what was received.
    ///
    /// # Errors
    /// `Io`.
    pub fn abort(self) -> Result<()> {
        remove_dir(&*self.vfs, &self.dir)
    }
}

impl StagedSnapshot {
    /// The position of its store that the copy holds everything up to.
    #[must_use]
    pub const fn position(&self) -> &Position {
        &self.description.state.position
    }

    /// The range the copy is of, and the sequence number up to which it has everything of it; `None`: the
    /// whole store.
    #[must_use]
    pub fn range(&self) -> Option<(&KeyRange, SequenceNumber)> {
        let exported = self.description.exported.as_ref()?;
        Some((&exported.range, SequenceNumber(exported.sequence)))
    }

    /// Removes the copy.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(self) -> Result<()> {
        remove_dir(&*self.vfs, &self.dir)
    }

    /// Puts the copy in force in place of the store in the directory it was received for, which is not open.
    /// What that store held is given up, even if it could not be read. A failure or crash leaves the old
    /// store or the new one, whole; in doubt opening it says which.
    ///
    /// # Errors
    /// `InvalidArgument` for options that make no sense, or other partitions than the copy's, for a copy of a
    /// range, or a store with its own log; `WrongStore`; `Locked`; `Io`.
    pub fn adopt(self, options: &Options, executor: Executor) -> Result<()> {
        if let Some(problem) = options.problem() {
            return Err(Error::InvalidArgument(problem));
        }
        if self.description.exported.is_some() {
            let detail = "the copy is of a range of keys: it cannot replace a store".to_owned();
            return Err(Error::InvalidArgument(detail));
        }
        if let Some(mismatch) = self.description.state.partition_mismatch(&options.partitions) {
            return Err(Error::InvalidArgument(format!("the copy does not fit: {mismatch}")));
        }
        let dir = &self.store_dir;
        if wal::is_there(&*self.vfs, dir)? {
            let detail = format!("the store in {} has its own log", dir.display());
            return Err(Error::InvalidArgument(detail));
        }
        let tables = table_dir(dir);
        create_dir_durable(&*self.vfs, &tables).context("create", &tables)?;
        let _lock = lock(&*self.vfs, dir)?;
        match Catalog::read(&*self.vfs, dir, options) {
            Ok((old, listing)) => {
                let mut catalog =
                    Catalog::start(Arc::clone(&self.vfs), dir, options, executor, old, &listing)?;
                let mut numbers = BTreeMap::new();
                for placed in self.description.state.tables.values() {
                    let (number, _uid) = catalog.allocate()?;
                    numbers.insert(placed.meta.uid, number);
                }
                self.link_tables(&numbers)?;
                let next_file = catalog.state().next_file;
                catalog.replace(self.new_state(&numbers, next_file)?)?;
            }
            Err(Error::Corruption { .. } | Error::UnknownVersion { .. }) => {
                // Nothing of the old store can be used: numbers are above all names that there are.
                let listing = Listing::read(&*self.vfs, dir)?;
                let mut next = self.first_unused(&listing)?;
                let mut numbers = BTreeMap::new();
                for placed in self.description.state.tables.values() {
                    numbers.insert(placed.meta.uid, FileNumber(next));
                    next += 1;
                }
                self.link_tables(&numbers)?;
                let state = self.new_state(&numbers, FileNumber(next))?;
                let contents = Contents::unwritten(state);
                Catalog::start(Arc::clone(&self.vfs), dir, options, executor, contents, &listing)?;
            }
            Err(e) => return Err(e),
        }
        // If this fails the next opening does it.
        let _removed_later = remove_dir(&*self.vfs, &self.dir).is_err();
        options.events.emit(|| Event::Adopted {
            position: self.description.state.position.index,
            tables: self.description.state.tables.len(),
        });
        Ok(())
    }

    fn link_tables(&self, numbers: &BTreeMap<u128, FileNumber>) -> Result<()> {
        let tables = table_dir(&self.store_dir);
        for placed in self.description.state.tables.values() {
            let Some(number) = numbers.get(&placed.meta.uid) else { continue };
            let to = table_path(&self.store_dir, *number);
            link_or_copy(&*self.vfs, &self.received(placed.meta.uid), &to, &placed.meta)?;
        }
        self.vfs.sync_dir(&tables).context("sync", &tables)
    }

    /// Where a table of the copy is.
    pub(crate) fn received(&self, uid: u128) -> PathBuf {
        self.dir.join(format!("{uid:032x}.sst"))
    }

    fn new_state(
        &self,
        numbers: &BTreeMap<u128, FileNumber>,
        next_file: FileNumber,
    ) -> Result<ManifestState> {
        renumbered(&self.description, &|uid| numbers.get(&uid).copied(), next_file)
    }

    fn first_unused(&self, listing: &Listing) -> Result<u64> {
        let tables = table_dir(&self.store_dir);
        let paths = self.vfs.list(&tables).context("list", &tables)?;
        let names =
            paths.iter().filter_map(|p| parse_table(p)).chain(listing.manifests.iter().copied());
        let marked = listing.markers.iter().map(|(_, number)| *number);
        let last = names.chain(marked).map(|n| n.0).max().unwrap_or(0);
        last.checked_add(1)
            .ok_or_else(|| Error::InvalidArgument("file numbers are used up".to_owned()))
    }
}

/// Removes what a crash left of the copy that is in force.
pub(crate) fn remove_adopted(vfs: &dyn Vfs, dir: &Path, id: u128) -> Result<()> {
    remove_dir(vfs, &snapshot_dir(dir, id))
}

impl Store {
    /// Begins, or goes on, to receive a copy of another store, beside this one; tables that are here already
    /// are not wanted. See [`IncomingSnapshot`].
    ///
    /// # Errors
    /// As [`IncomingSnapshot::begin`].
    pub fn receive(&self, description: &[u8]) -> Result<IncomingSnapshot> {
        let inner = self.inner();
        let version = Arc::clone(&inner.superversion.load().version);
        IncomingSnapshot::begin_with(Arc::clone(&inner.vfs), &inner.dir, description, &mut |meta| {
            let same = |t: &&Arc<Table>| {
                let here = t.meta();
                (here.uid, here.len, here.digest) == (meta.uid, meta.len, meta.digest)
            };
            version.tables().find(same).map(|t| t.path().to_path_buf())
        })
    }

    /// Closes this store, for all handles, puts a copy of another in its place, and opens that. Views of the
    /// old store stay readable. A failure or crash leaves the old store or the new one, whole: open it again.
    ///
    /// # Errors
    /// As [`close`](Store::close), [`StagedSnapshot::adopt`] and [`open`](Store::open).
    pub fn adopt(self, staged: StagedSnapshot) -> Result<Self> {
        let inner = self.inner();
        let (vfs, dir) = (Arc::clone(&inner.vfs), inner.dir.clone());
        let (options, executor) = (inner.options.clone(), inner.executor);
        if staged.store_dir != dir {
            let detail = format!("the copy was received for {}", staged.store_dir.display());
            return Err(Error::InvalidArgument(detail));
        }
        self.close()?;
        staged.adopt(&options, executor)?;
        Self::open(vfs, &dir, options, executor)
    }
}
