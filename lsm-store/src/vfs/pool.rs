//! Files open for reading, of which only so many are really open.
//!
//! A store may have more tables than its process may have descriptors. A [`PooledFile`] knows its path and asks
//! for a handle when it is read; the pool keeps those used last. A file is closed with its last user, whether or
//! not it is among them.
//!
//! Rules
//! 1. The file at a path is opened again and again: nobody may put another in its place while it is in use.
//! 2. Reads under way keep their handle, so there are at most as many more open as there are readers.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;

use super::{Advice, Vfs, VfsFile};

/// See the module.
pub(crate) struct FilePool {
    vfs: Arc<dyn Vfs>,
    open: Cache<u64, Arc<dyn VfsFile>>,
    /// Names the files: a path may be in use twice.
    next: AtomicU64,
}

impl fmt::Debug for FilePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilePool").field("open", &self.open.len()).finish_non_exhaustive()
    }
}

impl FilePool {
    /// Keeps at most `max_open` files open, and at least one.
    pub(crate) fn new(vfs: Arc<dyn Vfs>, max_open: usize) -> Arc<Self> {
        let open = Cache::new(max_open.max(1));
        Arc::new(Self { vfs, open, next: AtomicU64::new(0) })
    }

    /// Opens an existing file.
    ///
    /// # Errors
    /// `NotFound`, or what the file system says.
    pub(crate) fn open_read(self: &Arc<Self>, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let name = self.next.fetch_add(1, Ordering::Relaxed);
        let file = PooledFile { pool: Arc::clone(self), name, path: Box::from(path) };
        file.handle()?;
        Ok(Arc::new(file))
    }

    /// Files that are open now.
    pub(crate) fn open_files(&self) -> usize {
        self.open.len()
    }
}

/// See the module. It is only read.
struct PooledFile {
    pool: Arc<FilePool>,
    name: u64,
    path: Box<Path>,
}

impl fmt::Debug for PooledFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl PooledFile {
    fn handle(&self) -> io::Result<Arc<dyn VfsFile>> {
        self.pool.open.get_or_insert_with(&self.name, || self.pool.vfs.open_read(&self.path))
    }

    fn read_only<T>() -> io::Result<T> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "opened for reading only"))
    }
}

impl VfsFile for PooledFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.handle()?.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        Self::read_only()
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::read_only()
    }

    fn sync_all(&self) -> io::Result<()> {
        Self::read_only()
    }

    fn len(&self) -> io::Result<u64> {
        self.handle()?.len()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Self::read_only()
    }

    fn allocate(&self, _len: u64) -> io::Result<()> {
        Self::read_only()
    }

    fn advise(&self, offset: u64, len: u64, advice: Advice) {
        // Advice needs no answer, and a file that cannot be opened will not be read either.
        if let Ok(handle) = self.handle() {
            handle.advise(offset, len, advice);
        }
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        drop(self.pool.open.remove(&self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::MemVfs;

    /// How many of `files` are open in `pool`, as far as handles tell.
    fn with_files(count: u32) -> (Arc<MemVfs>, Vec<std::path::PathBuf>) {
        let vfs = Arc::new(MemVfs::new(1));
        let paths: Vec<_> = (0..count).map(|n| std::path::PathBuf::from(format!("/{n}"))).collect();
        for (n, path) in (0_u32..).zip(&paths) {
            let file = vfs.create_new(path).expect("creates");
            file.write_all_at(&n.to_le_bytes(), 0).expect("writes");
        }
        (vfs, paths)
    }

    #[test]
    fn any_number_of_files_is_read_with_few_of_them_open() {
        let (vfs, paths) = with_files(300);
        let pool = FilePool::new(vfs, 8);
        let files: Vec<_> = paths.iter().map(|p| pool.open_read(p).expect("opens")).collect();
        for round in 0..3 {
            for (n, file) in (0_u32..).zip(&files) {
                let mut content = [0; 4];
                file.read_exact_at(&mut content, 0).expect("reads");
                assert_eq!(u32::from_le_bytes(content), n, "content, round {round}");
                assert!(pool.open_files() <= 8, "{} files are open", pool.open_files());
            }
        }
        assert!(pool.open_files() > 0, "the last ones stay open");
    }

    #[test]
    fn a_file_is_closed_with_its_last_user_and_a_missing_one_is_an_error() {
        let (vfs, paths) = with_files(2);
        let pool = FilePool::new(Arc::clone(&vfs) as Arc<dyn Vfs>, 8);
        let file = pool.open_read(&paths[0]).expect("opens");
        assert_eq!(pool.open_files(), 1, "in use");
        drop(file);
        assert_eq!(pool.open_files(), 0, "not in use any more");
        vfs.unlink(&paths[1]).expect("removes");
        let missing = pool.open_read(&paths[1]).expect_err("is not there");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert_eq!(pool.open_files(), 0, "nothing is kept of it");
    }

    #[test]
    fn two_users_of_one_path_do_not_close_each_others_file() {
        let (vfs, paths) = with_files(1);
        let pool = FilePool::new(vfs, 8);
        let (one, other) = (pool.open_read(&paths[0]), pool.open_read(&paths[0]));
        assert_eq!(pool.open_files(), 2, "each has its own");
        drop(one);
        assert_eq!(other.expect("opens").len().expect("is there"), 4);
    }
}
