//! Checkpoints: a second store made of the first one's tables, at one moment, without copying them.
//!
//! Tables never change, so a second name is a copy. A checkpoint has them under the same numbers, a
//! manifest of its own with nothing but their state, and a file `SNAPSHOT` that describes it (see
//! `snapshot`). It has no log: what is in it is in tables. The marker comes last, after everything is
//! synced; a directory without one is not a checkpoint.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checksum::{Digester, fold64};
use crate::error::{Error, IoContext, Result};
use crate::events::Event;
use crate::manifest::current::{Listing, manifest_path, switch, table_dir, table_path};
use crate::manifest::edit::{Item, PlacedTable};
use crate::manifest::file::{Header, ManifestFile};
use crate::manifest::version::Version;
use crate::sstable::TableMeta;
use crate::store::inner::Inner;
use crate::store::recovery::lock;
use crate::store::snapshot::{Description, SnapshotTable};
use crate::types::{FileNumber, KeyRange, PartitionId, Position, SequenceNumber};
use crate::vfs::{Advice, Vfs, create_dir_durable};

/// Copied or read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// A copy of a store in a directory: whole (a checkpoint, which opens as a store) or of a range of keys (an
/// export). It can be read table by table, to be sent to another store, which takes it with
/// [`IncomingSnapshot`](crate::IncomingSnapshot). Lives until it is [removed](Checkpoint::remove).
#[derive(Clone)]
pub struct Checkpoint {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    description: Description,
    encoded: Vec<u8>,
}

/// Without keys.
impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.description.state.tables.len();
        f.debug_struct("Checkpoint")
            .field("dir", &self.dir)
            .field("tables", &tables)
            .finish_non_exhaustive()
    }
}

pub(crate) fn description_path(dir: &Path) -> PathBuf {
    dir.join("SNAPSHOT")
}

impl Checkpoint {
    /// Opens a copy made earlier.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no complete copy in `dir`; `Corruption`, `UnknownVersion`; `Io`.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Self> {
        let path = description_path(dir);
        let complete = vfs.exists(dir).context("look for", dir)?
            // A store that was opened in it goes on from there, and is a copy no longer.
            && Listing::read(&*vfs, dir)?.current().is_some_and(|(iteration, _)| iteration == 1);
        if !complete {
            let detail = format!("{} has no complete and unused copy of a store", dir.display());
            return Err(Error::InvalidArgument(detail));
        }
        let encoded = read_whole(&*vfs, &path)?;
        let description = Description::decode(&encoded, &path)?;
        Ok(Self { vfs, dir: dir.to_path_buf(), description, encoded })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names the copy; no other has the same.
    #[must_use]
    pub const fn id(&self) -> u128 {
        self.description.snapshot_id
    }

    /// The store it is of.
    #[must_use]
    pub const fn store_id(&self) -> u128 {
        self.description.store_id
    }

    /// The position of the store that the copy holds everything up to.
    #[must_use]
    pub const fn position(&self) -> &Position {
        &self.description.state.position
    }

    /// The last sequence number of a partition; 0 for an unknown one.
    #[must_use]
    pub fn last_sequence(&self, partition: PartitionId) -> SequenceNumber {
        let sequences = &self.description.state.sequences;
        SequenceNumber(sequences.get(partition.slot()).copied().unwrap_or(0))
    }

    /// The retention floor of a partition; 0 for an unknown one.
    #[must_use]
    pub fn floor(&self, partition: PartitionId) -> SequenceNumber {
        let floors = &self.description.state.floors;
        SequenceNumber(floors.get(partition.slot()).copied().unwrap_or(0))
    }

    /// The range the copy is of, and the sequence number up to which it has everything of it; `None`: the
    /// whole store.
    #[must_use]
    pub fn range(&self) -> Option<(&KeyRange, SequenceNumber)> {
        let exported = self.description.exported.as_ref()?;
        Some((&exported.range, SequenceNumber(exported.sequence)))
    }

    /// What is sent ahead of the tables: tells the receiver all of the above. Has its own digest.
    #[must_use]
    pub fn description(&self) -> &[u8] {
        &self.encoded
    }

    /// The tables, in no order that matters.
    #[must_use]
    pub fn tables(&self) -> Vec<SnapshotTable> {
        self.description.tables()
    }

    /// Reads from a table into `buf`; returns how many bytes there were, 0 at its end.
    ///
    /// # Errors
    /// `InvalidArgument` for a table that is not part of the copy; `Io`.
    pub fn read(&self, uid: u128, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let meta = self.meta(uid)?;
        let path = table_path(&self.dir, meta.number);
        let left = usize::try_from(meta.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        let Some(part) = buf.get_mut(..len).filter(|part| !part.is_empty()) else { return Ok(0) };
        let file = self.vfs.open_read(&path).context("open", &path)?;
        file.advise(offset, len as u64, Advice::Sequential);
        file.read_exact_at(part, offset).context("read", &path)?;
        Ok(len)
    }

    /// Reads every table and compares its digest with the description's: what is damaged here should not be
    /// sent. The receiver compares again.
    ///
    /// # Errors
    /// `Corruption` naming the table; `Io`.
    pub fn verify(&self) -> Result<()> {
        let tables = self.description.state.tables.values();
        tables.map(|t| &t.meta).try_for_each(|meta| {
            let path = table_path(&self.dir, meta.number);
            check_digest(&*self.vfs, &path, meta)
        })
    }

    /// Removes the copy. Until it is removed the space of its tables is not given back.
    ///
    /// # Errors
    /// `Locked` if it is open as a store; `Io`: what is left is no copy any more.
    pub fn remove(self) -> Result<()> {
        let _lock = lock(&*self.vfs, &self.dir)?;
        // The marker first: what is left of a copy is none.
        for (iteration, number) in Listing::read(&*self.vfs, &self.dir)?.markers {
            let marker = crate::manifest::current::marker_path(&self.dir, iteration, number);
            self.vfs.unlink(&marker).context("remove", &marker)?;
        }
        self.vfs.sync_dir(&self.dir).context("sync", &self.dir)?;
        remove_dir(&*self.vfs, &table_dir(&self.dir))?;
        remove_dir(&*self.vfs, &self.dir)
    }

    fn meta(&self, uid: u128) -> Result<&TableMeta> {
        let metas = self.description.state.tables.values().map(|t| &t.meta);
        metas.into_iter().find(|meta| meta.uid == uid).ok_or_else(|| unknown_table(uid))
    }
}

pub(crate) fn unknown_table(uid: u128) -> Error {
    Error::InvalidArgument(format!("table {uid:032x} is not part of the snapshot"))
}

impl Inner {
    /// Makes a checkpoint of what is in tables.
    pub(crate) fn checkpoint(&self, dir: &Path) -> Result<Checkpoint> {
        let since = self.stopwatch();
        let mut catalog = self.catalog.lock();
        self.state.lock().check_writable()?;
        // A number is used up for the id, so that none is given twice.
        let (_number, snapshot_id) = catalog.allocate().inspect_err(|e| self.edit_failed(e))?;
        let mut state = catalog.state().clone();
        // Keeps its files while they are linked.
        let version = Arc::clone(&self.superversion.load().version);
        drop(catalog);
        self.refuse_damage(&version)?;
        let adopted = state.apply(&[Item::Adopted { id: snapshot_id, fresh: true }]);
        adopted.map_err(|detail| Error::InvalidArgument(format!("snapshot id: {detail}")))?;
        let store_id = self.options.store_id;
        let description = Description { store_id, snapshot_id, state, exported: None };
        new_dir(&*self.vfs, dir)?;
        let made = version
            .tables()
            .try_for_each(|table| {
                let to = table_path(dir, table.meta().number);
                link_or_copy(&*self.vfs, table.path(), &to, table.meta())
            })
            .and_then(|()| complete(&self.vfs, dir, description));
        let made = made.inspect_err(|_| {
            let _as_far_as_possible = remove_dir(&*self.vfs, &table_dir(dir)).is_ok();
            let _as_far_as_possible = remove_dir(&*self.vfs, dir).is_ok();
        })?;
        let tables = &made.description.state.tables;
        self.options.events.emit(|| Event::CheckpointMade {
            dir: dir.to_path_buf(),
            position: made.position().index,
            tables: tables.len(),
            bytes: tables.values().map(|placed| placed.meta.len).sum(),
            took: since.map(|since| since.elapsed()),
        });
        Ok(made)
    }

    /// Whether the store is a copy that was never opened: then it has no log yet, and none is missing.
    pub(crate) fn is_fresh_copy(&self) -> bool {
        self.catalog.lock().state().adopted.is_some_and(|(_, fresh)| fresh)
    }

    /// Records that there is a log from now on.
    pub(crate) fn settle_copy(&self) -> Result<()> {
        let mut catalog = self.catalog.lock();
        let Some((id, true)) = catalog.state().adopted else { return Ok(()) };
        let committed = catalog.commit(&[Item::Adopted { id, fresh: false }]);
        drop(catalog);
        committed.inspect_err(|e| self.edit_failed(e))
    }

    fn refuse_damage(&self, version: &Version) -> Result<()> {
        match version.tables().find(|t| self.is_quarantined(t.meta().number)) {
            None => Ok(()),
            Some(table) => {
                let detail = "the table is damaged; a copy of the store would be, too";
                Err(Error::corruption(table.path(), 0, detail))
            }
        }
    }
}

/// Creates the directories of a copy, which must not be there or be empty.
pub(crate) fn new_dir(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    create_dir_durable(vfs, dir).context("create", dir)?;
    if !vfs.list(dir).context("list", dir)?.is_empty() {
        let detail = format!("{} is not empty: a copy needs a directory of its own", dir.display());
        return Err(Error::InvalidArgument(detail));
    }
    let tables = table_dir(dir);
    create_dir_durable(vfs, &tables).context("create", &tables)
}

/// Completes a copy whose tables are in place: description, manifest, marker, in this order.
pub(crate) fn complete(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    description: Description,
) -> Result<Checkpoint> {
    let tables = table_dir(dir);
    vfs.sync_dir(&tables).context("sync", &tables)?;
    let encoded = description.encode();
    write_whole(&**vfs, &description_path(dir), &encoded)?;
    let mut state = description.state.clone();
    let number = state.next_file;
    state.next_file = FileNumber(number.0 + 1);
    let epoch = fold64(description.snapshot_id).max(1);
    let header = Header { store_id: description.store_id, number, epoch };
    ManifestFile::create(&**vfs, &manifest_path(dir, number), header, &state)?;
    switch(&**vfs, dir, 1, number)?;
    Ok(Checkpoint { vfs: Arc::clone(vfs), dir: dir.to_path_buf(), description, encoded })
}

/// The state with its tables under other numbers, and what else is different in a copy.
pub(crate) fn renumbered(
    description: &Description,
    number_of: &dyn Fn(u128) -> Option<FileNumber>,
    next_file: FileNumber,
) -> Result<crate::manifest::state::ManifestState> {
    let wrong = |detail: String| Error::InvalidArgument(format!("snapshot: {detail}"));
    let mut items = Vec::new();
    for item in description.state.snapshot() {
        items.push(match item {
            Item::AddTable(placed) => {
                let number = number_of(placed.meta.uid);
                let number = number.ok_or_else(|| unknown_table(placed.meta.uid))?;
                let meta = TableMeta { number, ..placed.meta.clone() };
                Item::AddTable(Box::new(PlacedTable { meta, ..*placed }))
            }
            Item::NextFile(_) => Item::NextFile(next_file),
            // The copy has no log, nor had its source one that matters here.
            Item::MinWalSegment(_) | Item::Adopted { .. } => continue,
            other @ (Item::DeleteTable { .. }
            | Item::Flushed { .. }
            | Item::Floor { .. }
            | Item::Partition { .. }
            | Item::Damaged { .. }) => other,
        });
    }
    items.push(Item::Adopted { id: description.snapshot_id, fresh: false });
    let mut state = crate::manifest::state::ManifestState::empty();
    state.apply(&items).map_err(wrong)?;
    Ok(state)
}

/// Gives a table a second name; where that is not possible, a second copy.
pub(crate) fn link_or_copy(vfs: &dyn Vfs, from: &Path, to: &Path, meta: &TableMeta) -> Result<()> {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    match vfs.link(from, to) {
        Ok(()) => Ok(()),
        // Another file system, too many names, or one that knows no links.
        Err(e)
            if [CrossesDevices, PermissionDenied, TooManyLinks, Unsupported]
                .contains(&e.kind()) =>
        {
            copy(vfs, from, to, meta)
        }
        Err(e) => Err(Error::io("link", to, e)),
    }
}

fn copy(vfs: &dyn Vfs, from: &Path, to: &Path, meta: &TableMeta) -> Result<()> {
    let target = vfs.create_new(to).context("create", to)?;
    let digest = read_through(vfs, from, meta.len, &mut |offset, chunk| {
        target.write_all_at(chunk, offset).context("write", to)?;
        target.hint_write_back(offset, chunk.len() as u64);
        Ok(())
    })?;
    if digest != meta.digest {
        return Err(wrong_digest(from));
    }
    target.sync_all().context("sync", to)
}

pub(crate) fn check_digest(vfs: &dyn Vfs, path: &Path, meta: &TableMeta) -> Result<()> {
    let digest = read_through(vfs, path, meta.len, &mut |_, _| Ok(()))?;
    if digest == meta.digest { Ok(()) } else { Err(wrong_digest(path)) }
}

pub(crate) fn wrong_digest(path: &Path) -> Error {
    Error::corruption(path, 0, "the file has another digest than the table it should be")
}

/// Reads `len` bytes of a file from its beginning and returns their digest.
pub(crate) fn read_through(
    vfs: &dyn Vfs,
    path: &Path,
    len: u64,
    each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<u128> {
    let file = vfs.open_read(path).context("open", path)?;
    let mut digester = Digester::new();
    let mut chunk = Vec::new();
    let mut offset = 0;
    while offset < len {
        let part = CHUNK_BYTES.min(len - offset);
        chunk.resize(usize::try_from(part).unwrap_or(0), 0);
        file.read_exact_at(&mut chunk, offset).context("read", path)?;
        digester.update(&chunk);
        each(offset, &chunk)?;
        offset += part;
    }
    Ok(digester.finish())
}

/// Writes a new file and syncs it.
pub(crate) fn write_whole(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> Result<()> {
    let file = vfs.create_new(path).context("create", path)?;
    file.write_all_at(bytes, 0).context("write", path)?;
    file.sync_all().context("sync", path)
}

pub(crate) fn read_whole(vfs: &dyn Vfs, path: &Path) -> Result<Vec<u8>> {
    let file = vfs.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0).context("read", path)?;
    Ok(bytes)
}

/// Removes a directory of files; it is fine if it is not there.
pub(crate) fn remove_dir(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    if !vfs.exists(dir).context("look for", dir)? {
        return Ok(());
    }
    for path in vfs.list(dir).context("list", dir)? {
        vfs.unlink(&path).context("remove", &path)?;
    }
    vfs.remove_dir(dir).context("remove", dir)
}
