//! The file system as the store sees it: the only module that touches files.
//!
//! [`Vfs`] names files, [`VfsFile`] reads and writes one. The real one is `RealVfs`; `MemVfs` keeps
//! everything in memory, loses what was not synced when it is told to crash, and injects errors.
//!
//! Rules for implementations and callers:
//! 1. Short reads, short writes and interrupted calls are handled inside; a call did all of it or failed.
//! 2. Files are created exclusively (`create_new`), never opened and truncated.
//! 3. A created, renamed, linked or unlinked name is durable only after `sync_dir` of its directory.
//! 4. Content is durable only after `sync_data` or `sync_all` returned without error. A failed sync is
//!    never retried: after it, nothing is known of the file's unsynced bytes.
//! 5. No memory maps: an I/O error would become a signal.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod mem;
mod pool;
mod real;

pub use mem::{CrashPolicy, DataLoss, Fault, FaultKind, FaultWhen, MemVfs, NameLoss, OpSet};
pub(crate) use pool::FilePool;
pub use real::RealVfs;

/// A file system.
pub trait Vfs: Send + Sync + Debug {
    /// Opens an existing file for reading.
    ///
    /// # Errors
    /// `NotFound`, or what the file system says.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`, or what the file system says.
    fn open_rw(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;

    /// Creates a file for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the file system says.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>>;

    /// Renames a file or a directory; an existing file at `to` is replaced.
    ///
    /// # Errors
    /// What the file system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name.
    ///
    /// # Errors
    /// What the file system says; `AlreadyExists` if `to` exists.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// `NotFound`, or what the file system says.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and its parents; an existing directory is fine.
    ///
    /// # Errors
    /// What the file system says.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What the file system says.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, as full paths, sorted.
    ///
    /// # Errors
    /// `NotFound`, or what the file system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Whether a file or directory of this name exists.
    ///
    /// # Errors
    /// What the file system says; absence is `Ok(false)`.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Makes the directory's entries durable.
    ///
    /// # Errors
    /// What the file system says; final, as for files.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes an exclusive lock on a file, creating it if need be; released when the guard is dropped.
    /// `content` is written into it for whoever looks (process id, start time).
    ///
    /// # Errors
    /// `WouldBlock` if another process (or another store of this one) holds it.
    fn lock(&self, path: &Path, content: &[u8]) -> io::Result<Box<dyn VfsLock>>;

    /// Bytes free for this user on the file system that holds `path`.
    ///
    /// # Errors
    /// What the file system says.
    fn free_space(&self, path: &Path) -> io::Result<u64>;
}

/// An open file. Methods take `&self`: concurrent reads are fine; writers are serialised by their owner.
pub trait VfsFile: Send + Sync + Debug {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file is shorter, or what the file system says.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`, extending the file if need be.
    ///
    /// # Errors
    /// What the file system says; the bytes of the range are then unknown.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes content, and the length if it grew, durable.
    ///
    /// # Errors
    /// What the file system says; final.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes content and all metadata durable.
    ///
    /// # Errors
    /// What the file system says; final.
    fn sync_all(&self) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds no bytes.
    ///
    /// # Errors
    /// As [`VfsFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Sets the length; new bytes read as zero.
    ///
    /// # Errors
    /// What the file system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves space for `[0, len)` and extends the file to `len`, so that later syncs need not
    /// record a new length. New bytes read as zero.
    ///
    /// # Errors
    /// `StorageFull`, or what the file system says.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Says how `[offset, offset + len)` will be read. Only speed depends on it, so it cannot fail; without
    /// an implementation it does nothing.
    fn advise(&self, _offset: u64, _len: u64, _advice: Advice) {}

    /// Asks for `[offset, offset + len)`, written before, to be brought to the device soon, so that the
    /// sync at the end has less to do. A hint: nothing is durable by it. Without an implementation it does
    /// nothing.
    fn hint_write_back(&self, _offset: u64, _len: u64) {}
}

/// How a stretch of a file will be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// From front to back: read ahead.
    Sequential,
    /// Here and there: do not read ahead.
    Random,
    /// Soon: begin to read.
    WillNeed,
    /// Not soon: what is in memory of it may go, so that the next read is of the device.
    DontNeed,
}

/// Holds a lock until it is dropped.
pub trait VfsLock: Send + Sync + Debug {}

/// Creates a directory with its missing parents, and makes every new name durable. An existing
/// directory's name is made durable too: whoever created it may have stopped before that.
///
/// # Errors
/// What the file system says.
pub fn create_dir_durable(vfs: &dyn Vfs, path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    // A relative path of one component has an empty parent, which no file system knows.
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    if path == parent {
        return Ok(());
    }
    if vfs.exists(path)? {
        return match vfs.sync_dir(parent) {
            // Not ours to read, so not ours to have created the name in.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            done => done,
        };
    }
    create_dir_durable(vfs, parent)?;
    vfs.create_dir_all(path)?;
    vfs.sync_dir(parent)
}
