//! A new segment's file, before it has its name.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::recovery::TMP_DIR;
use super::segment::file_name;
use super::syncer::sync_names;
use crate::error::{Error, IoContext, Result};
use crate::vfs::{Vfs, VfsFile};

/// See the module.
#[derive(Debug)]
pub(super) struct Draft {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    number: u64,
    pub(super) file: Arc<dyn VfsFile>,
    pub(super) tmp: PathBuf,
}

impl Draft {
    /// Creates the file; what an earlier try left is removed.
    pub(super) fn create(vfs: &Arc<dyn Vfs>, dir: &Path, number: u64) -> Result<Self> {
        let tmp = dir.join(TMP_DIR).join(file_name(number));
        if vfs.exists(&tmp).context("look for", &tmp)? {
            vfs.unlink(&tmp).context("remove", &tmp)?;
        }
        let file = vfs.create_new(&tmp).context("create", &tmp)?;
        Ok(Self { vfs: Arc::clone(vfs), dir: dir.to_path_buf(), number, file, tmp })
    }

    /// Writes and syncs what the segment begins with. Nothing refers to the file yet.
    pub(super) fn fill(&self, content: &[u8], len: Option<u64>) -> Result<()> {
        if let Some(len) = len {
            self.file.allocate(len).context("reserve space in", &self.tmp)?;
        }
        self.file.write_all_at(content, 0).context("write", &self.tmp)?;
        self.file.sync_all().context("sync", &self.tmp)
    }

    /// Removes what could not be completed. What stays is removed by the next try or the next open.
    pub(super) fn discard(self, error: Error, needed: u64) -> Error {
        let _left = self.vfs.unlink(&self.tmp).is_err();
        no_space(error, &*self.vfs, &self.dir, needed)
    }

    /// Gives the synced file its name, which is durable after [`sync_names`]. A rename never replaces a
    /// segment.
    pub(super) fn name(&self) -> Result<PathBuf> {
        let path = self.dir.join(file_name(self.number));
        if self.vfs.exists(&path).context("look for", &path)? {
            return Err(Error::corruption(&path, 0, "a segment of this number already exists"));
        }
        self.vfs.rename(&self.tmp, &path).context("rename", &self.tmp)?;
        Ok(path)
    }

    /// Gives the synced file its name, durably.
    pub(super) fn publish(self) -> Result<PathBuf> {
        let path = self.name()?;
        sync_names(&*self.vfs, &self.dir)?;
        Ok(path)
    }
}

/// An error that says that the disk is full as what it is.
pub(super) fn no_space(error: Error, vfs: &dyn Vfs, dir: &Path, needed: u64) -> Error {
    if let Error::Io { source, .. } = &error
        && matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    {
        return Error::NoSpace { free: vfs.free_space(dir).unwrap_or(0), needed };
    }
    error
}
